"""A comparison as it comes from three paths and three seeds, with pictures of toy data; and one by an ill-wisher."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from flowcli import plots
from flowcli.comparison.view import Cell, Column, Figure, LeftOut, Page, Section

LABELS = ("path=ot", "path=vp", "path=ve", "path=ot, coupling=ot", "model=discrete")
ATTACK = (
    "<script>alert(1)</script> </script> \" ' onerror=alert(1) javascript:alert(1) &amp; {{ 7*7 }} --> ]]> " + 99 * "W"
)


def points(rng: np.random.Generator, count: int, width: float) -> np.ndarray:
    """Points (N, 2) around eight centres."""
    angle = np.pi / 4 * rng.integers(8, size=count)
    return 2.8 * np.stack([np.cos(angle), np.sin(angle)], axis=1) + width * rng.normal(size=(count, 2))


def figures(folder: Path) -> tuple[Figure, ...]:
    """Three pictures."""
    rng = np.random.default_rng(0)
    spread = (0.0, 0.012, 0.31, -0.001, 0.05)
    rows = [
        (label, value, value - 0.006, value + 0.006, "reference" if value == 0 else "tie" if value < 0.006 else "worse")
        for label, value in zip(LABELS, spread, strict=True)
    ]
    plots.differences(rows, folder / "a.png", xlabel="difference in NLL, nats", reference="path=ot")
    made = [(label, points(rng, 1500, 0.25 + value)) for label, value in zip(LABELS, spread, strict=True)]
    plots.sample_grid(made, points(rng, 1500, 0.2), folder / "b.png", columns=None)
    nfe = 2.0 ** np.arange(7)
    curves = {
        label: (nfe, 0.1 + (1 + value) / nfe, 0.01 + 0 * nfe) for label, value in zip(LABELS, spread, strict=True)
    }
    solvers = {"euler": curves, "midpoint": curves}
    plots.cost_panels(solvers, folder / "c.png", floor=(0.09, 0.01), ylabel="2-Wasserstein distance")
    told = {
        "a": ("Differences in NLL", "Each row's NLL less that of path=ot, on the same points, with its 95 % interval."),
        "b": ("Samples beside data", "From the same noise; the limits are those of the data."),
        "c": ("Quality against cost", "Distance of samples from true ones by the evaluations they take."),
    }
    return tuple(
        Figure(title, caption, (folder / f"{name}.png").read_bytes(), f"{title}. {caption}")
        for name, (title, caption) in told.items()
    )


def example(folder: Path) -> Page:
    """A page as `compare` makes it; pictures are drawn in the folder."""
    columns = (
        Column("row", "row", numeric=False),
        Column("seeds", "seeds", help="Runs that differ in nothing but the seed."),
        Column("nll", "NLL", "perfect 2.614", "Mean negative log-likelihood of test points, in nats."),
        Column("nll_difference", "Δ NLL", "from the lowest", "Paired difference in NLL, and its interval."),
        Column("w2", "W2", "perfect 0.081 ± 0.006", "2-Wasserstein distance between samples and true ones."),
        Column("nfe", "NFE", "", "Evaluations of the network for one batch of samples."),
        Column("train_seconds", "training (s)"),
    )
    table = (
        ("2.630 ± 0.004", 2.630, "best", "", 0.0, "", "0.094", 0.094, 38.0, 61.0),
        ("2.642 ± 0.005", 2.642, "worse", "+0.012 [0.006, 0.018]", 0.012, "worse", "0.101", 0.101, 110.0, 65.0),
        ("2.94 ± 0.03", 2.94, "worse", "+0.31 [0.28, 0.34]", 0.31, "worse", "0.35", 0.35, 9.0, 70.0),
        ("2.631 ± 0.004", 2.631, "tie", "+0.001 [−0.004, 0.006]", 0.001, "tie", "0.093", 0.093, 26.0, 178.0),
        ("–", None, "", "", None, "", "0.15", 0.15, 1.0, None),
    )
    rows = tuple(
        (
            Cell(label, label),
            Cell("3", 3.0),
            Cell(nll, order, mark),
            Cell(difference, value, told),
            Cell(w2, distance, detail="tie: +0.001 [−0.009, +0.011] from path=ot" if mark == "tie" else ""),
            Cell(f"{nfe:.0f}", nfe),
            Cell("–" if seconds is None else f"{seconds:.0f}", seconds),
        )
        for label, (nll, order, mark, difference, value, told, w2, distance, nfe, seconds) in zip(
            LABELS, table, strict=True
        )
    )
    section = Section(
        "data=8gaussians",
        (
            "path=ot has the lowest NLL, 2.630 ± 0.004 nats; a perfect model has 2.614.",
            "path=ot, coupling=ot ties (+0.001 [−0.004, 0.006]); path=vp is worse by 0.012 [0.006, 0.018] and path=ve "
            "by 0.31 [0.28, 0.34] nats.",
        ),
        columns,
        rows,
        ("±: standard deviation over the seeds", "same in all: network=mlp trainer=default"),
        figures(folder),
    )
    second = replace(section, title="data=moons", verdict=("Only one row: nothing is compared.",), rows=rows[:1])
    return Page(
        "Comparison of outputs/sweeps/paths",
        (section, replace(second, figures=())),
        (LeftOut("outputs/sweeps/paths/7", "failed", "solver: 10,000 evaluations were not enough (rtol=1e-9)"),),
        (
            ("row", "path", "coupling", "model.depth"),
            ("path=ot", "ot", "independent", "3"),
            ("path=ve", "ve", "–", "3"),
        ),
        (
            ("Train", "flowcli train -m experiment=paths"),
            ("Compare", "flowcli compare outputs/sweeps/paths --nfe 1,2,4,8,16,32,64 --metrics nll,w2,nfe --out page"),
        ),
        (("test points", "10,000 of the test split, the same for all"), ("solver", "dopri5, rtol=1e-5, atol=1e-5")),
        "flowcli 0.5.0, 22 November 2026",
    )


def hostile(page: Page) -> Page:
    """The same page with an ill-wisher's words wherever there may be words."""
    cell = Cell(ATTACK, ATTACK, "best", ATTACK)
    section = Section(
        ATTACK,
        (ATTACK,),
        tuple(Column(ATTACK, ATTACK, ATTACK, ATTACK, numeric=False) for _ in range(2)),
        ((cell, cell), (cell, replace(cell, order="\x00\ud800"))),
        (ATTACK,),
        (replace(page.sections[0].figures[0], title=ATTACK, caption=ATTACK, alt=ATTACK),),
    )
    pair = ((ATTACK, ATTACK),)
    return Page(ATTACK, (section,), (LeftOut(ATTACK, ATTACK, ATTACK),), pair * 2, pair, pair, ATTACK)

"""The table of a run, from its timings alone."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from works import Work, operations, times_evaluations

Results = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""By work and implementation: {"seconds": [...], "facts": {...}, "prepared": s} or {"skipped": why}."""
TITLES = {
    "ours": "flowcli",
    "torchcfm": "torchcfm",
    "torchcfm_selu": "torchcfm, its own SELU",
    "flow_matching": "flow_matching",
    "zuko": "zuko",
    "jax": "JAX, diffrax",
}
MISSING = "—"
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def seconds_of(results: Results, work: Work, name: str) -> float | None:
    """Median time of a work done once, of limits' products of one evaluation; None where it was not done."""
    found = results.get(work.name, {}).get(name, {})
    repeats = found.get("facts", {}).get("repeats", work.repeat)
    return median(found["seconds"]) / repeats if found.get("seconds") else None


def peak(results: Results, works: Mapping[str, Work]) -> float | None:
    """Most operations a second that any library reached on a large product."""
    taken = [seconds_of(results, works["peak"], name) for name in results.get("peak", {})]
    return max((operations(works["peak"]) / seconds for seconds in taken if seconds), default=None)


def limits(results: Results, works: Mapping[str, Work], work: Work) -> tuple[float | None, float | None]:
    """Seconds of a work's products at the peak, and at their own shapes; None where that was not measured.

    Where the products are those of one evaluation, they count as often as ours evaluates the field.
    """
    times = 1.0
    if times_evaluations(work):
        times = results.get(work.name, {}).get("ours", {}).get("facts", {}).get("nfe")
    best, alone = peak(results, works), seconds_of(results, work, "limits")
    if times is None or not operations(work):
        return None, None
    return operations(work) * times / best if best else None, alone * times if alone else None


def table(results: Results, works: Mapping[str, Work], names: Sequence[str]) -> str:
    """Markdown: a row a work; of a peer its time, and how many times as long as ours that is.

    names: of the implementations, in order, without limits.
    """
    heads = ["work", "products at the peak", "products, torch.mm", *(TITLES[name] for name in names)]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for name, work in works.items():
        if name == "peak" or name not in results:
            continue
        ours = seconds_of(results, work, "ours")
        bounds = [MISSING if bound is None else shown(bound) for bound in limits(results, works, work)]
        cells = [_cell(results, work, each, None if each == "ours" else ours) for each in names]
        lines.append([work.text, *bounds, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(results: Results, work: Work, name: str, ours: float | None) -> str:
    seconds = seconds_of(results, work, name)
    if seconds is None:
        return MISSING
    return shown(seconds) if ours is None else f"{shown(seconds)} ({seconds / ours:.2f} x)"


def shown(seconds: float) -> str:
    """Three digits and a unit."""
    unit, name = next(each for each in UNITS if seconds >= 0.9995 * each[0] or each is UNITS[-1])
    value = seconds / unit
    return f"{value:.{2 - (value >= 9.995) - (value >= 99.95)}f} {name}"


def notes(results: Results, missing: Mapping[str, str]) -> list[str]:
    """What stands below the table: evaluations, losses, time to prepare, and why a dash is there."""
    lines = [f"{TITLES.get(name, name)}: not run ({why})" for name, why in missing.items()]
    for work, found in results.items():
        facts = [_facts(TITLES.get(name, name), each) for name, each in found.items()]
        lines += [f"{work}: {'; '.join(fact for fact in facts if fact)}"]
    return lines


def _facts(title: str, found: Mapping[str, Any]) -> str:
    if "skipped" in found:
        return f"{title} skipped ({found['skipped']})"
    facts = [f"{name} {value:.4g}" for name, value in found["facts"].items() if name != "repeats"]
    return " ".join([title, ", ".join([*facts, f"prepared in {found['prepared']:.1f} s"])])

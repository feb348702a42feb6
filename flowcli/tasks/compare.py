"""`flowcli compare`: runs in; a table, a verdict and a page out. What was scored before is not scored again."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from flowcli.comparison import album, exports, page, present, tables, text, view
from flowcli.comparison.catalogue import costs
from flowcli.comparison.differences import setting
from flowcli.comparison.material import MOST_ROWS, Curve, Material
from flowcli.comparison.reproduce import commands, settings
from flowcli.comparison.standings import Standings, known
from flowcli.comparison.variants import Group, filtered, grouped, one_row, without_repeats
from flowcli.errors import choice, integer
from flowcli.launch.composed import composed
from flowcli.numbers import text_of
from flowcli.records import collect
from flowcli.storage import require_writable, write_bytes
from flowcli.tasks.bench import Bench

FORMATS = ("text", "csv", "json", "markdown", "latex")
PAGE = "index.html"


@dataclass(frozen=True)
class Question:
    """What was asked.

    Attributes:
        words: overrides of conf/compare.yaml.
        by: config keys that make a row; None: all but the seed.
        baseline: key=value of the row to compare with; None: the lowest.
        filters: key=value; runs that have other values are left out.
        nfe: evaluations at which samplers are compared, too.
        out: folder of the page; None: conf/compare.yaml's.
        fresh: score again what was scored before.
        trust: names of classes of the user's own that the runs' configs may build.
    """

    runs: Sequence[Path]
    words: Sequence[str] = ()
    by: Sequence[str] | None = None
    baseline: str | None = None
    sort: str | None = None
    filters: Sequence[str] = ()
    metrics: Sequence[str] | None = None
    nfe: Sequence[int] = ()
    format: str = "text"
    out: Path | None = None
    fresh: bool = False
    trust: Sequence[str] = ()
    command: str = "flowcli compare"


@dataclass(frozen=True)
class _Answer:
    """Groups of rows, and what is shown of them."""

    standings: Sequence[Standings]
    sections: Sequence[view.Section]
    orders: Sequence[Sequence[int]]
    left_out: Sequence[view.LeftOut]


def run(**asked: Any) -> None:
    """Score the runs alike, print what was asked for, and with format=text write the page.

    asked: as in `Question`.

    Raises:
        UserError: a path holds no run, or no run has what is asked for.
    """
    question = Question(**asked)
    choice("--format", question.format, FORMATS)
    nfe = sorted({integer("--nfe", each, minimum=1, maximum=10_000) for each in question.nfe})
    config, options = composed("compare", question.words)
    out = question.out or Path(config["out"])
    if question.format == "text":
        require_writable(out)
    found = collect(question.runs)
    done = filtered([record for record in found if record.status == "done"], question.filters)
    bench = Bench(config, options, nfe=nfe, fresh=question.fresh, trusted=question.trust)
    scored, without = bench.scored(done)
    runs, repeated = without_repeats(scored)
    without += [(run.record.path, "repeated", "another run has the same config and seed") for run in repeated]
    left_out = [(each.path, each.status, each.reason) for each in found if each.status != "done"] + without
    left_out = [view.LeftOut(text_of(str(path)), status, text_of(reason)) for path, status, reason in left_out]
    answer = _answer(grouped(runs, question.by) if runs else [], question, left_out)
    if question.format != "text":
        sys.stdout.write(_for_programs(answer, question.format))
        return
    _print(answer)
    if not runs:
        sys.stdout.write("no run is finished and can be scored, so there is nothing to compare\n")
        return
    _write_page(answer, bench, config, question, out)
    sys.stdout.write(f"page  {out / PAGE}\n")


def _width() -> int:
    return shutil.get_terminal_size((80, 24)).columns


def _answer(groups: Sequence[Group], question: Question, left_out: Sequence[view.LeftOut]) -> _Answer:
    if groups:
        present.require_names(groups, question.metrics, question.sort)
    against = [None if question.baseline is None else one_row(group, question.baseline) for group in groups]
    found = [Standings(group, baseline) for group, baseline in zip(groups, against, strict=True)]
    made = [present.section(each, metrics=question.metrics, sort=question.sort) for each in found]
    return _Answer(found, [section for section, _ in made], [order for _, order in made], left_out)


# ---------------------------------------------------------------- standard output
def _for_programs(answer: _Answer, format: str) -> str:
    if format == "csv":
        return exports.to_csv(answer.standings, answer.left_out)
    if format == "json":
        return exports.to_json(answer.standings, answer.left_out)
    write = tables.markdown if format == "markdown" else tables.latex
    return "\n".join(write(section) for section in answer.sections)


def _print(answer: _Answer) -> None:
    colour = sys.stdout.isatty()
    for found, section, order in zip(answer.standings, answer.sections, answer.orders, strict=True):
        for table in (section, *_cost_tables(found, order)):
            sys.stdout.write(text.text(table, _width(), colour=colour, without=found.group.keys) + "\n")
    sys.stdout.write(text.left_out(answer.left_out, _width()))
    sys.stdout.flush()


def _cost_tables(found: Standings, order: Sequence[int]) -> list[view.Section]:
    """For each solver the distance of the samples by the evaluations they take; empty where nobody asked."""
    solvers: dict[str, list[str]] = {}
    for name in known(found.group):
        sampler = costs(name)
        if sampler is not None:
            solvers.setdefault(sampler[0], []).append(name)
    return [present.cost_table(found, solver, names, order) for solver, names in solvers.items()]


# ---------------------------------------------------------------- the page
def _write_page(answer: _Answer, bench: Bench, config: Mapping[str, Any], question: Question, out: Path) -> None:
    """The page, and beside it every picture and table as a file of its own."""
    out.mkdir(parents=True, exist_ok=True)
    sections: list[view.Section] = []
    groups = [found.group for found in answer.standings]
    told = zip(answer.standings, answer.sections, answer.orders, strict=True)
    for number, (found, section, order) in enumerate(told, 1):
        folder = out / f"{number}" if len(groups) > 1 else out
        folder.mkdir(exist_ok=True)
        made = _figures(found, order, bench, folder)
        cost_tables = _cost_tables(found, order)
        for name, write in (("table.md", tables.markdown), ("table.tex", tables.latex)):
            write_bytes(folder / name, "\n".join(write(each) for each in (section, *cost_tables)).encode())
        sections += [replace(section, figures=tuple(made)), *cost_tables]
    write_bytes(out / "figures.csv", exports.to_csv(answer.standings, answer.left_out).encode())
    write_bytes(out / "figures.json", exports.to_json(answer.standings, answer.left_out).encode())
    whole = view.Page(
        title=_title(groups),
        sections=tuple(sections),
        left_out=tuple(answer.left_out),
        differences=_differences(groups),
        commands=(*commands(groups), ("this page", question.command)),
        settings=tuple(settings(config, groups)),
        made=datetime.now().strftime("%Y-%m-%d %H:%M"),
    )
    write_bytes(out / PAGE, page.render(whole).encode())


def _title(groups: Sequence[Group]) -> str:
    keys = list(dict.fromkeys(key for group in groups for key in group.keys))
    runs = sum(len(variant.runs) for group in groups for variant in group.variants)
    what = f"Comparing {', '.join(keys)}" if keys else "Comparison"
    return f"{what}: {runs} run{'s' if runs > 1 else ''}"


def _figures(found: Standings, order: Sequence[int], bench: Bench, folder: Path) -> list[view.Figure]:
    """The pictures of a group; those that were drawn of the same before are kept in its first run."""
    rows = [found.group.variants[index] for index in order[:MOST_ROWS]]
    first = {row.label: row.runs[0].record.path for row in rows}
    shown = {label: arrays for label, path in first.items() if (arrays := bench.shown(path)) is not None}
    costs_of, floor = _curves(found)
    material = Material(shown, costs_of, floor, bench.columns(next(iter(first.values()))))
    return album.drawn(found, order, material, folder, next(iter(first.values())))


def _curves(found: Standings) -> tuple[dict[str, dict[str, Curve]], tuple[float, float] | None]:
    """For each solver and row the evaluations, the distance and its error; and what true samples score."""
    panels: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    floor = None
    for name in known(found.group):
        sampler, standing = costs(name), found[name]
        if sampler is None:
            continue
        floor = (standing.floor.mean, standing.floor.stderr) if standing.floor is not None else floor
        for variant, score in zip(found.group.variants, standing.scores, strict=True):
            if score.average is not None:
                point = (sampler[1], score.average.mean, score.average.stderr)
                panels.setdefault(sampler[0], {}).setdefault(variant.label, []).append(point)
    curves = {solver: {label: _columns(points) for label, points in rows.items()} for solver, rows in panels.items()}
    return curves, floor


def _columns(points: Sequence[tuple[float, float, float]]) -> Curve:
    nfe, value, error = np.array(sorted(points)).T
    return nfe, value, error


def _differences(groups: Sequence[Group]) -> tuple[tuple[str, ...], ...]:
    """What differs between the rows' configs, one line a row."""
    keys = list(dict.fromkeys(key for group in groups for key in (*group.keys, *group.implied)))
    if not keys:
        return ()
    rows = [
        (variant.label, *(text_of(setting(variant.runs[0].record, key)) for key in keys))
        for group in groups
        for variant in group.variants
    ]
    return (("row", *keys), *rows)

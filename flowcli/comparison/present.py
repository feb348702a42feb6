"""A group and its figures as the plain values that the terminal, the page, Markdown and LaTeX show."""

from collections.abc import Sequence

from flowcli.comparison import view
from flowcli.comparison.catalogue import SHOWN, figure
from flowcli.comparison.differences import choices_of
from flowcli.comparison.standings import Score, Standing, Standings, known, primary
from flowcli.comparison.variants import Group
from flowcli.comparison.words import between, verdict
from flowcli.errors import UserError
from flowcli.explain import did_you_mean
from flowcli.numbers import format_value, number_of, signed, text_of

MOST_NAMED = 60
"""Figures and keys that an error names."""
MARKS: dict[str, view.Mark] = {"reference": "best", "tie": "tie", "worse": "worse", "better": "better"}


def section(found: Standings, *, metrics: Sequence[str] | None, sort: str | None) -> tuple[view.Section, list[int]]:
    """A group's verdict and table, and the order of its rows.

    metrics: which to show, the usual ones if None; sort: a metric or a config key, the verdict's metric if None.
    """
    group, there = found.group, known(found.group)
    names = [name for name in (metrics or SHOWN) if name in there]
    main = primary(group)
    order = _order(found, sort or main, there)
    columns = [view.Column("row", "row", numeric=False)]
    columns += [view.Column(key, key, numeric=_is_numeric(group, key)) for key in group.keys if len(group.keys) > 1]
    what = "runs" if group.averaged else "seeds"
    columns.append(view.Column("seeds", what, help=f"How many {what} a row is the mean of.", numeric=True))
    for name in names:
        columns += _columns(found[name], main)
    rows = []
    for index in order:
        variant = group.variants[index]
        cells = [view.Cell(variant.label, variant.label)]
        if len(group.keys) > 1:
            cells += [_setting(variant.settings.get(key)) for key in group.keys]
        cells.append(view.Cell(str(len(variant.runs)), len(variant.runs)))
        for name in names:
            cells += _cells(found[name], index, main)
        rows.append(tuple(cells))
    made = view.Section(
        group.title, tuple(verdict(found)), tuple(columns), tuple(rows), tuple(_remarks(group, found, names))
    )
    return made, order


def cost_table(found: Standings, solver: str, names: Sequence[str], order: Sequence[int]) -> view.Section:
    """The distance of the samples of one solver, a column for each number of evaluations; order: of the rows."""
    group = found.group
    columns = [view.Column("row", "row", numeric=False)]
    for name, standing in ((name, found[name]) for name in names):
        columns.append(view.Column(name, f"NFE {name.rpartition('/')[2]}", _perfect(standing), figure(name).help))
    rows = [
        (view.Cell(variant.label, variant.label), *(_cells(found[name], index, None)[0] for name in names))
        for index, variant in ((index, group.variants[index]) for index in order)
    ]
    what = "samples of models that solve nothing" if solver == "none" else f"samples by {solver}"
    return view.Section(f"{group.title}: W2 of {what}, by evaluations", (), tuple(columns), tuple(rows))


def require_names(groups: Sequence[Group], metrics: Sequence[str] | None, sort: str | None) -> None:
    """Refuse figures and keys that no group has.

    Raises:
        UserError: naming those that there are.
    """
    there = list(dict.fromkeys(name for group in groups for name in known(group)))
    keys = list(dict.fromkeys(key for group in groups for key in (*group.keys, *group.implied)))
    for name in metrics or ():
        _require("--metrics", name, there)
    if sort is not None:
        _require("--sort", sort, [*there, *keys])


def _require(flag: str, name: str, legal: Sequence[str]) -> None:
    if name not in legal:
        there = ", ".join(legal[:MOST_NAMED])
        raise UserError(f"{flag} {text_of(name)}: no run has it{did_you_mean(name, legal)} (there are: {there})")


def _order(found: Standings, by: str | None, figures: Sequence[str]) -> list[int]:
    """Rows by rising value; those without it last, in their own order."""
    variants = found.group.variants

    def rank(index: int) -> tuple[int, float, str]:
        value = found[str(by)].scores[index].value if by in figures else variants[index].settings.get(str(by))
        number = number_of(value)
        if number is not None:
            return (0, number, "")
        return (2, 0.0, "") if value is None or isinstance(value, float) else (1, 0.0, text_of(value))

    return sorted(range(len(variants)), key=rank) if by else list(range(len(variants)))


# ---------------------------------------------------------------- columns and cells
def _perfect(standing: Standing) -> str:
    floor = standing.floor
    return "" if floor is None else f"perfect {format_value(floor.mean, floor.stderr)}"


def _columns(standing: Standing, main: str | None) -> list[view.Column]:
    known_of = figure(standing.name)
    against = "from the lowest" if standing.best else "from the baseline"
    small = "" if standing.reference is None else f"Small print: the paired difference {against}, with its interval."
    made = [view.Column(standing.name, known_of.title, _perfect(standing), f"{known_of.help} {small}".strip())]
    if standing.name == main and standing.reference is not None:
        help_ = f"Paired difference in {known_of.title} {against}, and its interval."
        made.append(view.Column(f"{standing.name}_difference", f"Δ {known_of.title}", against, help_))
    return made


def _cells(standing: Standing, index: int, main: str | None) -> list[view.Cell]:
    score = standing.scores[index]
    mark = MARKS.get(score.verdict, "") if standing.best or score.verdict != "reference" else ""
    order = number_of(score.value)
    has_column = standing.name == main and standing.reference is not None  # of the difference
    differs = _difference(score)
    detail = "not resolved" if score.verdict == "unresolved" else "" if has_column else differs
    cell = view.Cell(_text(score), order if order is not None else _words(score), mark, detail)
    if not has_column:
        return [cell]
    if not differs or score.difference is None:
        return [cell, view.Cell("", 0.0 if score.verdict == "reference" else None)]
    return [cell, view.Cell(differs, score.difference.value, mark)]


def _text(score: Score) -> str:
    return format_value(score.value, score.spread) + (" ?" if score.verdict == "unresolved" else "")


def _words(score: Score) -> str | None:
    return None if score.value is None or isinstance(score.value, float) else str(score.value)


def _difference(score: Score) -> str:
    """From the row of reference, with its interval; empty where there is none."""
    if score.difference is None or score.verdict == "reference":
        return ""
    width = score.difference.high - score.difference.low
    return f"{signed(score.difference.value, width)} {between(score)}".strip()


def _setting(value: object) -> view.Cell:
    number = number_of(value)
    return view.Cell(text_of(value), number if number is not None else text_of(value))


def _is_numeric(group: Group, key: str) -> bool:
    values = [variant.settings.get(key) for variant in group.variants]
    return all(value is None or number_of(value) is not None for value in values)


# ---------------------------------------------------------------- remarks
def _remarks(group: Group, found: Standings, names: Sequence[str]) -> list[str]:
    said = []
    if any(score.verdict == "unresolved" for name in names for score in found[name].scores):
        said.append("? not resolved: the solver's error is too large for the figure to be ranked")
    many = {len(variant.runs) > 1 for variant in group.variants}
    if many == {True}:
        runs = "runs" if group.averaged else "seeds"
        said.append(f"±: standard deviation over the {runs}; of what a perfect model has, standard error")
    elif many == {False}:
        said.append("±: standard error over test points, or over draws of samples")
    else:
        said.append("±: standard deviation over the seeds; of rows with one seed, standard error over test points")
    if group.averaged:
        said.append(f"a row averages over {', '.join(group.averaged)}")
    if group.implied:
        said.append(f"with {' and '.join(group.keys)} also differ: {', '.join(group.implied)}")
    same = _same(group)
    if same:
        said.append(f"same in all: {' '.join(same)}")
    return said


def _same(group: Group) -> list[str]:
    """Options that all runs of a group share, `coupling=ot`."""
    choices = [choices_of(run.record) for variant in group.variants for run in variant.runs]
    first, *others = choices
    return [
        text_of(f"{key}={option}")
        for key, option in first.items()
        if key not in ("evaluation", "logger", "experiment") and all(other.get(key) == option for other in others)
    ]

"""Runs side by side: what differs between their configs, what they scored, and which scores are really better."""

import csv
import difflib
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowcli.errors import UserError
from flowcli.records import RunRecord

Scalar = float | int | str | bool | None

SHOWN = (
    "nll",
    "nll_gap",
    "bits_per_dim",
    "w2",
    "mmd",
    "energy_distance",
    "nfe_sample",
    "parameters",
    "train_seconds",
    "step",
)
LOWER_IS_BETTER = frozenset(
    {
        "nll",
        "nll_gap",
        "nll_standardised",
        "bits_per_dim",
        "w2",
        "mmd",
        "energy_distance",
        "path_energy",
        "normalized_path_energy",
        "straightness",
        "velocity_error",
        "continuity_residual",
    }
)
ERROR, FLOOR = "_stderr", "_floor"
MISSING = "–"
LONGEST_NAME, LONGEST_VALUE = 16, 24
MOST_TRANSPOSED = 4
SMALLEST_ERROR = 1e-300
"""Below it, 10 to the power of its exponent is 0."""
MOST_NAMED = 60
"""Metrics that an error names."""


@dataclass(frozen=True)
class Row:
    """One run: its name in the comparison, settings by config key, metrics, and those it is among the best in."""

    record: RunRecord
    name: str
    settings: dict[str, Any]
    metrics: dict[str, Scalar]
    best: frozenset[str]


@dataclass(frozen=True)
class Table:
    """Runs (rows), the config keys in which they differ, the metrics to show, and every metric that any run has."""

    rows: tuple[Row, ...]
    settings: tuple[str, ...]
    shown: tuple[str, ...]
    metrics: tuple[str, ...]
    folder: str


# ---------------------------------------------------------------- what differs
def differing(records: Sequence[RunRecord]) -> list[str]:
    """Config keys in which the runs differ: whole group choices first, then single keys, the seeds last.

    Below a group that differs (path: ot, vp) a key is compared among the runs that made the same choice, so that
    options of one group which merely have other keys or defaults do not fill the table.
    """
    groups: list[str] = []
    keys: list[str] = []
    members = [(record.config, _choices(record)) for record in records if record.config]
    _walk("", members, groups, keys)
    keys = [key for key in dict.fromkeys(keys) if key not in groups]
    return list(dict.fromkeys(groups)) + sorted(keys, key=lambda key: key.split(".")[-1] == "seed")


def _walk(
    prefix: str, members: Sequence[tuple[Mapping[str, Any], Mapping[str, str]]], groups: list[str], keys: list[str]
) -> None:
    for key in dict.fromkeys(key for node, _ in members for key in node):
        path = f"{prefix}{key}"
        if path == "hydra":  # where a run was written is no property of the run
            continue
        having = [(node[key], choices) for node, choices in members if key in node]
        if not any(isinstance(value, Mapping) for value, _ in having):
            if len({_canonical(value) for value, _ in having}) > 1:
                keys.append(path)
            continue
        options: dict[str, list[tuple[Mapping[str, Any], Mapping[str, str]]]] = {}
        for value, choices in having:
            nodes = options.setdefault(_option(value, choices.get(path)), [])
            if isinstance(value, Mapping):
                nodes.append((value, choices))
        # A run without the group at all made another choice; a plain section that an older run lacks is no choice.
        if len(options) > 1 or (len(having) < len(members) and "" not in options):
            groups.append(path)
        for nodes in options.values():
            _walk(f"{path}.", nodes, groups, keys)


def _choices(record: RunRecord) -> dict[str, str]:
    """The option chosen for each node of the config, by the node's dotted key."""
    nodes = (
        (group.split("@")[-1].removeprefix("_global_.").replace("/", "."), option)
        for group, option in record.choices.items()
    )
    return {node: option for node, option in nodes if option.lower() not in ("none", "null")}


def _option(value: object, choice: str | None) -> str:
    """What was chosen for a node: the option's name, else the class it names; empty for a plain section."""
    if isinstance(value, Mapping):
        return choice or str(value.get("_target_", ""))
    return "none" if value is None else str(value)


def _canonical(value: object) -> str:
    """A text that is equal for equal settings: 1e4 and 10000 are one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, list):
        return f"[{','.join(_canonical(item) for item in value)}]"
    return json.dumps(value, sort_keys=True, default=str)


def _setting(record: RunRecord, key: str) -> object:
    """The value of a config key in a run; of a node, its option; None where the run has no such key."""
    node: Any = record.config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    choice = _choices(record).get(key)
    if isinstance(node, Mapping):
        option = _option(node, choice)
        return option.rsplit(".", 1)[-1] if option and option != choice else option or None
    return "none" if node is None else node


# ---------------------------------------------------------------- the table
def build(records: Sequence[RunRecord], *, sort: str | None = None, metrics: Sequence[str] | None = None) -> Table:
    """Line the runs up.

    sort: a metric or config key to sort by, ascending; runs without it come last. metrics: what to show instead of
    the usual choice.

    Raises:
        UserError: no run has the metric or key that is asked for.
    """
    known = _all_metrics(records)
    settings = differing(records)
    for name in metrics or ():
        _require("--metrics", name, known)
    if sort is not None:
        _require("--sort", sort, [*known, *settings])
    best = _best(records)
    folder, names = _names(records)
    rows = [
        Row(
            record,
            name,
            {key: _setting(record, key) for key in settings},
            {key: _scalar(value) for key, value in record.metrics.items()},
            frozenset(metric for metric, winners in best.items() if index in winners),
        )
        for index, (record, name) in enumerate(zip(records, names, strict=True))
    ]
    if sort is not None:
        rows.sort(key=lambda row: _rank(row.metrics.get(sort) if sort in known else row.settings.get(sort)))
    shown = tuple(dict.fromkeys(metrics)) if metrics else tuple(name for name in SHOWN if name in known)
    return Table(tuple(rows), tuple(settings), shown, tuple(known), folder)


def _all_metrics(records: Sequence[RunRecord]) -> list[str]:
    """Every metric of any run, the usual ones with their errors and floors first."""
    present = dict.fromkeys(key for record in records for key in record.metrics)
    usual = [f"{name}{suffix}" for name in SHOWN for suffix in ("", ERROR, FLOOR)]
    return [key for key in usual if key in present] + [key for key in present if key not in usual]


def _require(flag: str, name: str, legal: Sequence[str]) -> None:
    if name in legal:
        return
    near = difflib.get_close_matches(name, legal, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    more = f", ... ({len(legal)} in all)" if len(legal) > MOST_NAMED else ""
    known = f"{', '.join(legal[:MOST_NAMED]) or 'none at all'}{more}"
    raise UserError(_text(f"{flag} {name}: no run has it{hint} (there are: {known})"))


def _scalar(value: object) -> Scalar:
    """A metric as it may be printed; lists and mappings, which no metric of ours is, become text."""
    return value if value is None or isinstance(value, float | int | str | bool) else json.dumps(value, default=str)


def _number(value: object) -> float | None:
    """A finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, float | int):
        return None
    try:
        number = float(value)
    except OverflowError:  # JSON has whole numbers of any length
        return None
    return number if math.isfinite(number) else None


def _rank(value: object) -> tuple[int, float, str]:
    """Numbers ascending, then texts, then what is missing or not a number."""
    number = _number(value)
    if number is not None:
        return (0, number, "")
    return (2, 0.0, "") if value is None or isinstance(value, float) else (1, 0.0, _text(value))


def _best(records: Sequence[RunRecord]) -> dict[str, set[int]]:
    """For each metric the runs (by index) that none beats by more than the standard errors of both.

    Only finished runs on the same data compete, and only if there are two. A score below its floor, what a perfect
    model gets, is luck and counts as the floor.
    """
    best: dict[str, set[int]] = {}
    groups: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        if record.status == "done":
            groups.setdefault(_data(record), []).append(index)
    for metric in LOWER_IS_BETTER:
        for group in groups.values():
            scores: dict[int, tuple[float, float]] = {}
            for index in group:
                found = records[index].metrics
                value, floor = _number(found.get(metric)), _number(found.get(metric + FLOOR))
                if value is not None:
                    scores[index] = (
                        (value if floor is None else max(value, floor)),
                        _number(found.get(metric + ERROR)) or 0,
                    )
            if len(scores) > 1:
                value, error = min(scores.values())
                best.setdefault(metric, set()).update(i for i, (v, e) in scores.items() if v - e <= value + error)
    return best


def _data(record: RunRecord) -> str:
    """What data a run was scored on. Standardising is left out: scores are in the data's own units."""
    data = record.config.get("data")
    return _canonical(
        {key: value for key, value in data.items() if key != "standardize"} if isinstance(data, dict) else data
    )


def _names(records: Sequence[RunRecord]) -> tuple[str, list[str]]:
    """The folder that holds all runs, and each run's path below it."""
    paths = [os.path.normpath(record.path) for record in records]
    absolute = [os.path.abspath(path) for path in paths]
    parent = os.path.commonpath([os.path.dirname(path) for path in absolute]) if absolute else os.getcwd()
    names = [os.path.relpath(path, parent) for path in absolute]
    below = os.path.relpath(parent)
    return (parent if below.startswith("..") else below), names


# ---------------------------------------------------------------- numbers and words
def format_value(value: Scalar, error: Scalar = None) -> str:
    """A metric for people: `2.632 ± 0.004`, with as many digits as the error warrants; `–` where there is none."""
    number, spread = _number(value), _number(error)
    if number is None or isinstance(value, bool):
        return _text(value)
    if spread is None or spread < SMALLEST_ERROR:
        return f"{value:,}" if isinstance(value, int) else _plain(number)
    # Two digits of an error that begins with 1 to 3, one digit of a larger one: rounding changes it by < 1/6.
    exponent = math.floor(math.log10(spread))
    digits = 1 if spread / 10**exponent < 3.55 else 0
    decimals = digits - exponent
    if decimals < -3 or decimals > 6 or abs(number) >= 1e7:
        return f"{number:.3g} ± {spread:.2g}"
    number, spread = round(number, decimals), round(spread, decimals)
    shown = max(decimals, 0)
    return f"{number:.{shown}f} ± {spread:.{shown}f}"


def _plain(number: float) -> str:
    """Four digits, but no exponent for whole numbers in the thousands."""
    return f"{number:,.0f}" if 1e4 <= abs(number) < 1e7 else f"{number:.4g}"


def _text(value: object) -> str:
    """A setting or a metric that is no number, on one line and free of control characters."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_text(item) for item in value)}]"
    return "".join(letter if letter.isprintable() else "�" for letter in str(value))


def _short(text: str) -> str:
    """The end of a long value: of a path it tells most."""
    return text if len(text) <= LONGEST_VALUE else f"…{text[1 - LONGEST_VALUE :]}"


# ---------------------------------------------------------------- text
@dataclass(frozen=True)
class _Column:
    title: str
    note: str
    cells: list[str]
    bold: list[bool]
    right: bool

    @property
    def header(self) -> list[str]:
        """The title, broken after dots and underscores where it is wider than the cells, and the note below."""
        room = max([len(cell) for cell in self.cells] + [len(self.note)])
        lines = [""]
        for piece in self.title.replace(".", ".\n").replace("_", "_\n").split("\n"):
            if lines[-1] and len(lines[-1] + piece) > room:
                lines.append("")
            lines[-1] += piece
        return [*lines, self.note] if self.note else lines

    @property
    def width(self) -> int:
        """Columns of a terminal that it takes; East Asian letters take two."""
        from rich.cells import cell_len

        return max(cell_len(text) for text in [*self.header, *self.cells])


GAP = 2


def to_text(table: Table, width: int, *, colour: bool = False) -> str:
    """The table for a terminal or a file `width` columns wide; without colour there are no escape codes in it.

    One row a run if that fits; a few runs that do not fit stand side by side; else the columns are dealt out over
    several blocks, each beginning with the run's number.
    """
    long = any(len(row.name) > LONGEST_NAME for row in table.rows)
    labels = [str(index + 1) if long else _text(row.name) for index, row in enumerate(table.rows)]
    head = [_Column("run", "", labels, [False] * len(labels), long)]
    if any(row.record.status != "done" for row in table.rows):
        statuses = [row.record.status for row in table.rows]
        head.append(_Column("status", "", statuses, [False] * len(labels), False))
    settings = [_setting_column(table, key) for key in table.settings]
    metrics = [column for name in table.shown for column in _metric_columns(table, name)]
    blocks = _lay_out(head, settings, metrics, width, len(table.rows))

    parts = [_render(block, width, colour) for block in blocks]
    parts.append("\n".join(_remarks(table, labels, long, width)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _lay_out(
    head: list[_Column], settings: list[_Column], metrics: list[_Column], width: int, runs: int
) -> list[list[_Column]]:
    if _total([*head, *settings, *metrics]) <= width:
        return [[*head, *settings, *metrics]]
    if runs <= MOST_TRANSPOSED:
        transposed = _transpose([*head, *settings, *metrics])
        if _total(transposed) <= width:
            return [transposed]
    blocks = [list(head)]
    for column in [*settings, *metrics]:
        if len(blocks[-1]) > 1 and _total([*blocks[-1], column]) > width:
            blocks.append(head[:1])
        blocks[-1].append(column)
    return blocks


def _total(columns: Sequence[_Column]) -> int:
    return sum(column.width for column in columns) + GAP * (len(columns) - 1)


def _setting_column(table: Table, key: str) -> _Column:
    values = [row.settings[key] for row in table.rows]
    numeric = all(value is None or _number(value) is not None for value in values)
    return _Column(key, "", [_short(_text(value)) for value in values], [False] * len(values), numeric)


def _metric_columns(table: Table, name: str) -> list[_Column]:
    """The metric with its error; its floor below the title if the runs share it, else in a column of its own."""
    best = [name in row.best for row in table.rows]
    mark = (lambda wins: "*" if wins else " ") if any(best) else (lambda wins: "")
    cells = [cell + mark(wins) for cell, wins in zip(_cells(table, name), best, strict=True)]
    floors = [format_value(row.metrics.get(name + FLOOR)) for row in table.rows]
    shared = {floor for floor, row in zip(floors, table.rows, strict=True) if row.metrics.get(name) is not None}
    plain = [False] * len(cells)
    note = f"floor {shared.pop()}{mark(False)}" if len(shared) == 1 and shared != {MISSING} else ""
    columns = [_Column(name, note, cells, best, True)]
    if not note and name + FLOOR in table.metrics and name + FLOOR not in table.shown:
        columns.append(_Column(name + FLOOR, "", floors, plain, True))
    return columns


def _cells(table: Table, name: str) -> list[str]:
    """One metric of every run; numbers without an error share their decimals, so that they can be read downwards."""
    values = [row.metrics.get(name) for row in table.rows]
    errors = [row.metrics.get(name + ERROR) for row in table.rows]
    numbers = [abs(number) for number in map(_number, values) if number]
    whole = all(isinstance(value, int) for value in values if value is not None)
    if whole or not numbers or any(error is not None for error in errors) or max(numbers) > 1e4 * min(numbers):
        return [format_value(value, error) for value, error in zip(values, errors, strict=True)]
    decimals = 3 - math.floor(math.log10(max(numbers)))
    if not 0 <= decimals <= 7:
        return [format_value(value) for value in values]
    while decimals > 0 and all(round(number, decimals) == round(number, decimals - 1) for number in numbers):
        decimals -= 1
    return [format_value(value) if _number(value) is None else f"{value:.{decimals}f}" for value in values]


def _transpose(columns: list[_Column]) -> list[_Column]:
    """The same cells with a column a run; titles become the first column."""
    labels, body = columns[0], []
    for column in columns[1:]:
        body.append(column)
        if column.note:  # a floor that all runs share
            floor = column.note.removeprefix("floor ")
            body.append(
                _Column(column.title + FLOOR, "", [floor] * len(column.cells), [False] * len(column.cells), True)
            )
    marked = any(any(column.bold) for column in body)

    def cell(column: _Column, index: int) -> str:
        return column.cells[index] + (" " if marked and not any(column.bold) else "")  # figures end below figures

    runs = [
        _Column(label, "", [cell(column, i) for column in body], [column.bold[i] for column in body], True)
        for i, label in enumerate(labels.cells)
    ]
    titles = [column.title for column in body]
    return [_Column(labels.title, "", titles, [False] * len(titles), False), *runs]


def _render(columns: list[_Column], width: int, colour: bool) -> str:
    from rich.box import Box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    rule = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")  # one line below the titles and no other
    grid = RichTable(box=rule, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0), header_style="")
    for column in columns:
        justify = "right" if column.right else "left"
        grid.add_column(Text("\n".join(column.header)), justify=justify, no_wrap=True, vertical="bottom")
    for index in range(len(columns[0].cells)):
        grid.add_row(
            *(Text(c.cells[index], style="bold" if c.bold[index] and colour else "") for c in columns),
        )
    buffer = io.StringIO()
    room = max(width, _total(columns))  # better a long line than a figure cut short
    console = Console(file=buffer, width=room, force_terminal=colour, color_system="standard" if colour else None)
    console.print(grid)
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip("\n").split("\n"))


def _remarks(table: Table, labels: Sequence[str], long: bool, width: int) -> Iterable[str]:
    """What the marks mean, which run is which, and why some are not done; one point a line or more."""
    import textwrap

    if any(row.best & set(table.shown) for row in table.rows):
        text = "* lowest on the same data, or within the standard errors of it (a tie)"
        yield from textwrap.wrap(text, width, subsequent_indent="  ")
    same = _shared_choices(table)
    if same:
        yield from textwrap.wrap(
            f"same in all: {' '.join(same)}", width, subsequent_indent="  ", break_on_hyphens=False
        )
    margin = max((len(label) for label in labels), default=0)
    yield f"runs in {_text(table.folder)}" + (":" if long else "")
    if long:
        yield from (f"  {label:>{margin}}  {_text(row.name)}" for label, row in zip(labels, table.rows, strict=True))
    for label, row in zip(labels, table.rows, strict=True):
        if row.record.status != "done":
            indent = " " * (margin + 4)
            text = f"  {label:>{margin}}  {row.record.status}: {_text(row.record.reason)}"
            yield from textwrap.wrap(text, width, subsequent_indent=indent)


def _shared_choices(table: Table) -> list[str]:
    """Group choices that all runs with a readable config made, `data=8gaussians`."""
    choices = [_choices(row.record) for row in table.rows if row.record.config]
    first, *others = choices or [{}]
    return [
        _text(f"{key}={option}")
        for key, option in first.items()
        if not key.startswith("hydra") and all(other.get(key) == option for other in others)
    ]


# ---------------------------------------------------------------- for other programs
def to_csv(table: Table) -> str:
    """Comma-separated values: run, status, reason, every differing setting, every metric, in full precision.

    A text that a spreadsheet would take for a formula (it begins with = + - @) gets an apostrophe in front.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([_cell(head) for head in ("run", "status", "reason", *table.settings, *table.metrics)])
    for row in table.rows:
        values = [*(row.settings[key] for key in table.settings), *(row.metrics.get(key) for key in table.metrics)]
        record = row.record
        writer.writerow([_cell(value) for value in (str(record.path), record.status, record.reason, *values)])
    return buffer.getvalue()


def _cell(value: object) -> object:
    """A number as it is; a text without control characters, and as no formula."""
    if value is None or isinstance(value, bool | int | float):
        return "" if value is None else value
    text = _text(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def to_json(table: Table) -> str:
    """JSON: every differing setting and every metric of each run, in full precision; null where there is none."""
    runs = [
        {
            "run": str(row.record.path),
            "status": row.record.status,
            "reason": row.record.reason,
            "settings": _finite(row.settings),
            "metrics": {key: _finite(row.metrics.get(key)) for key in table.metrics},
            "best": sorted(row.best),
        }
        for row in table.rows
    ]
    return json.dumps({"differing": list(table.settings), "runs": runs}, indent=2, allow_nan=False, default=str) + "\n"


def _finite(value: Any) -> Any:
    """The value with null for every number that JSON has not."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

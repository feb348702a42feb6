"""A comparison for other programs: every figure in full precision, rows and runs."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from flowcli.comparison import view
from flowcli.comparison.standings import Score, Standings, known
from flowcli.comparison.words import verdict
from flowcli.numbers import text_of
from flowcli.storage import finite

HEADS = ("data", "row", "seeds", "figure", "mean", "verdict", "reason")
"""That a CSV has in any case."""


def rows(standings: Sequence[Standings]) -> list[dict[str, Any]]:
    """One mapping for each row and figure; figures that are no number have a mean of None."""
    made = []
    for found in standings:
        group = found.group
        for name, standing in ((name, found[name]) for name in known(group)):
            for variant, score in zip(group.variants, standing.scores, strict=True):
                perfect = None if standing.floor is None else standing.floor.mean
                made.append(
                    {"data": group.title, "row": variant.label, "seeds": len(variant.runs), "figure": name}
                    | _numbers(score)
                    | {"perfect": perfect}
                )
    return made


def _numbers(score: Score) -> dict[str, Any]:
    average, difference = score.average, score.difference
    return {
        "mean": score.value,
        "deviation": score.spread if average is None else average.deviation,
        "stderr": None if average is None else average.stderr,
        "difference": None if difference is None else difference.value,
        "low": None if difference is None else difference.low,
        "high": None if difference is None else difference.high,
        "covers": None if difference is None else ("test points" if difference.units_only else "seeds and test points"),
        "verdict": score.verdict,
        "at_floor": score.at_floor,
    }


def to_csv(standings: Sequence[Standings], left_out: Sequence[view.LeftOut]) -> str:
    """Comma-separated values: a line for each row and figure, and one for each run that is not compared.

    A text that a spreadsheet would take for a formula (it begins with = + - @) gets an apostrophe in front.
    """
    made = rows(standings)
    buffer = io.StringIO()
    made += [{"row": each.run, "verdict": each.status, "reason": each.reason} for each in left_out]
    heads = list(dict.fromkeys([*HEADS, *(head for row in made for head in row)]))
    writer = csv.DictWriter(buffer, heads, lineterminator="\n")
    writer.writeheader()
    writer.writerows({head: _cell(value) for head, value in row.items()} for row in made)
    return buffer.getvalue()


def _cell(value: object) -> object:
    """A number as it is; a text without control characters, and as no formula."""
    if value is None or isinstance(value, bool | int | float):
        return "" if value is None else value
    text = text_of(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def to_json(standings: Sequence[Standings], left_out: Sequence[view.LeftOut]) -> str:
    """JSON: verdicts, rows with their runs, every figure; null for what is no number in JSON."""
    content = {"groups": [_group(found) for found in standings], "left_out": [vars(each) for each in left_out]}
    return json.dumps(finite(content), indent=2, allow_nan=False, default=str) + "\n"


def _group(found: Standings) -> dict[str, Any]:
    group = found.group
    figures: dict[str, dict[str, Any]] = {variant.label: {} for variant in group.variants}
    for row in rows([found]):
        figures[row["row"]][row["figure"]] = {key: value for key, value in row.items() if key not in _OF_ROW}
    told = [
        {
            "row": variant.label,
            "settings": variant.settings,
            "runs": [str(run.record.path) for run in variant.runs],
            "figures": figures[variant.label],
        }
        for variant in group.variants
    ]
    return {"data": group.title, "verdict": verdict(found), "rows": told}


_OF_ROW = ("data", "row", "seeds", "figure")

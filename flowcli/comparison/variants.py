"""Runs become rows: which runs are one variant under several seeds, what a row is called, which rows are asked for."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from flowcli.comparison.differences import NOT_THE_MODEL, SEED, canonical, choices_of, differing, setting
from flowcli.errors import UserError
from flowcli.explain import did_you_mean
from flowcli.numbers import number_of, shortened, text_of
from flowcli.records import RunRecord
from flowcli.scores import Scores

MOST_NAMED = 40
"""Keys that an error names."""


@dataclass(frozen=True)
class Scored:
    """A run and its figures."""

    record: RunRecord
    scores: Scores


@dataclass(frozen=True)
class Variant:
    """A row: runs that agree in all but the seed, or, with --by, in the keys that were named.

    Attributes:
        label: what sets it apart from the other rows, `path=vp`.
        settings: its values of the section's keys; None where its runs disagree.
        runs: in the order of their seeds.
    """

    label: str
    settings: dict[str, Any]
    runs: tuple[Scored, ...]

    @property
    def seeds(self) -> tuple[Any, ...]:
        """Of its runs."""
        return tuple(setting(run.record, SEED) for run in self.runs)


@dataclass(frozen=True)
class Group:
    """Variants that were asked about the same test points, so that they may be compared.

    Attributes:
        title: the data, `data=8gaussians`.
        keys: what tells the rows apart.
        implied: keys that differ as well, but with those.
        averaged: keys, other than the seed, that differ within a row (with --by).
        seeds_alone: all runs differ in nothing but the seed, and still there are rows (--by seed).
    """

    title: str
    keys: tuple[str, ...]
    implied: tuple[str, ...]
    variants: tuple[Variant, ...]
    averaged: tuple[str, ...] = ()
    seeds_alone: bool = False


# ---------------------------------------------------------------- which runs
def filtered(records: Sequence[RunRecord], filters: Iterable[str]) -> list[RunRecord]:
    """The runs that have these values, `path=ot,vp`; each filter leaves fewer.

    Raises:
        UserError: no run has such a key, or none such a value.
    """
    left = list(records)
    for told in filters:
        key, sign, values = told.partition("=")
        if not sign or not key or not values:
            raise UserError(f"--filter {told}: want key=value, or key=value,value")
        require_key("--filter", key, left)
        wanted = values.split(",")
        found = [record for record in left if any(_equal(setting(record, key), value) for value in wanted)]
        if not found:
            there = sorted({text_of(setting(record, key)) for record in left if record.config})
            raise UserError(f"--filter {told}: no run has it (there are: {', '.join(there[:MOST_NAMED])})")
        left = found
    return left


def require_key(flag: str, key: str, records: Sequence[RunRecord]) -> None:
    """Refuse a config key that no run has.

    Raises:
        UserError: naming those that there are.
    """
    if any(setting(record, key) is not None for record in records):
        return
    known = [*differing(records), SEED]
    known = list(dict.fromkeys([*known, *(choice for record in records for choice in choices_of(record))]))
    there = ", ".join(known[:MOST_NAMED])
    raise UserError(f"{flag} {text_of(key)}: no run has such a key{did_you_mean(key, known)} (there are: {there})")


def _equal(found: object, wanted: str) -> bool:
    try:
        return number_of(found) == float(wanted)
    except ValueError:
        return text_of(found) == wanted


def without_repeats(runs: Sequence[Scored]) -> tuple[list[Scored], list[Scored]]:
    """The runs, each config and seed once, and those that are the same again: they are no seeds of their own."""
    last: dict[str, Scored] = {}
    for run in runs:
        told = {key: value for key, value in run.record.config.items() if key not in NOT_THE_MODEL}
        last[f"{run.scores.points} {canonical(told)}"] = run
    kept = list(last.values())
    ours = {id(run) for run in kept}
    return kept, [run for run in runs if id(run) not in ours]


# ---------------------------------------------------------------- rows
def grouped(runs: Sequence[Scored], by: Sequence[str] | None) -> list[Group]:
    """Put runs with the same test points together, and the seeds of one variant into a row.

    by: config keys that make a row; None: all but the seed.

    Raises:
        UserError: no run has such a key.
    """
    for key in by or ():
        require_key("--by", key, [run.record for run in runs])
    together: dict[str, list[Scored]] = {}
    for run in runs:
        together.setdefault(run.scores.points, []).append(run)
    first = [members[0].record for members in together.values()]
    among = [key for key in differing(first) if key == "data" or key.startswith("data.")] if len(first) > 1 else []
    return [_group(members, by, [key for key in among if key != "data"]) for members in together.values()]


def _group(runs: Sequence[Scored], by: Sequence[str] | None, of_data: Sequence[str]) -> Group:
    records = [run.record for run in runs]
    data = [f"data={text_of(setting(records[0], 'data'))}"]
    data += [
        f"{key}={shortened(text_of(setting(records[0], key)))}"
        for key in of_data
        if setting(records[0], key) is not None
    ]
    keys = list(by) if by else [key for key in differing(records) if key != SEED]
    rows: dict[str, list[Scored]] = {}
    for run in runs:
        rows.setdefault(canonical([canonical(setting(run.record, key)) for key in keys]), []).append(run)
    ordered = [sorted(members, key=_by_seed) for members in rows.values()]
    telling = _telling(keys, [members[0].record for members in ordered])
    labels = _labels(telling, ordered)
    variants = tuple(
        Variant(label, {key: _common(members, key) for key in keys}, tuple(members))
        for label, members in zip(labels, ordered, strict=True)
    )
    everything = [key for key in differing(records) if key != SEED]
    inside = [differing([run.record for run in members]) for members in ordered]
    averaged = tuple(dict.fromkeys(key for found in inside for key in found if key != SEED))
    implied = tuple(key for key in dict.fromkeys([*keys, *everything]) if key not in (*telling, *averaged))
    alone = len(variants) > 1 and not everything
    return Group(" ".join(data), tuple(telling), implied, variants, averaged, alone)


def _by_seed(run: Scored) -> tuple[float, str]:
    number = number_of(setting(run.record, SEED))
    return (0.0 if number is None else number, str(run.record.path))


def _common(runs: Sequence[Scored], key: str) -> object:
    values = {canonical(setting(run.record, key)): setting(run.record, key) for run in runs}
    return next(iter(values.values())) if len(values) == 1 else None


def _telling(keys: Sequence[str], records: Sequence[RunRecord]) -> list[str]:
    """As few keys as tell all rows apart: a model brings its objective and its network along, which need no naming."""

    def classes(chosen: Sequence[str]) -> int:
        return len({tuple(canonical(setting(record, key)) for key in chosen) for record in records})

    chosen: list[str] = []
    for key in sorted(keys, key=lambda key: (-classes([key]), key != "model", key.count("."), keys.index(key))):
        if classes([*chosen, key]) > classes(chosen) or not chosen:
            chosen.append(key)
    for key in reversed(chosen[:]):  # one that was needed at first may not be in the end
        rest = [other for other in chosen if other != key]
        if rest and classes(rest) == len(records):
            chosen = rest
    return sorted(chosen, key=keys.index)


def _labels(keys: Sequence[str], rows: Sequence[Sequence[Scored]]) -> list[str]:
    """What each row is called; long values are shortened where that leaves the names different."""
    for cut in (shortened, str):
        labels = [_label(keys, members, cut) for members in rows]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{label} ({text_of(str(members[0].record.path))})" for label, members in zip(labels, rows, strict=True)]


def _label(keys: Sequence[str], runs: Sequence[Scored], cut: Callable[[str], str]) -> str:
    if not keys:
        return text_of(runs[0].record.path.name) if len(runs) == 1 else f"{len(runs)} runs"
    return " ".join(f"{key}={cut(text_of(setting(runs[0].record, key)))}" for key in keys)


def one_row(group: Group, told: str) -> int:
    """The row that `key=value,key=value` means.

    Raises:
        UserError: none of the group's rows, or more than one.
    """
    pairs = [part.partition("=") for part in told.replace(" ", ",").split(",") if part]
    if not pairs or not all(key and sign and value for key, sign, value in pairs):
        raise UserError(f"--baseline {told}: want key=value, or key=value,key=value")
    rows = range(len(group.variants))
    found = [
        index
        for index in rows
        if all(_equal(setting(group.variants[index].runs[0].record, key), value) for key, _, value in pairs)
    ]
    if len(found) != 1:
        labels = "; ".join(variant.label for variant in group.variants[:MOST_NAMED])
        many = "no row has it" if not found else f"{len(found)} rows have it"
        raise UserError(f"--baseline {told}: {many} ({group.title}: {labels})")
    return found[0]

"""The verdict in words: which row is better, by how much, whether that is real, what a perfect model would score."""

import math
from collections.abc import Iterator, Sequence

from flowcli.comparison.catalogue import figure
from flowcli.comparison.differences import SEED, choices_of, differing
from flowcli.comparison.resolved import is_resolved, solver_error
from flowcli.comparison.standings import LEVEL, Score, Standing, Standings, primary
from flowcli.comparison.variants import Group, Variant
from flowcli.numbers import format_value, signed, text_of

MOST_SENTENCES, MOST_TIES = 12, 4
"""Rows that are spoken of one by one, and of ties: of more the table has the intervals."""
MOST_NAMES = 6
"""Rows in one sentence."""


def verdict(found: Standings) -> list[str]:
    """Sentences on a group: the figure that counts, the samples, what the intervals cover, the solver's error."""
    group, main = found.group, primary(found.group)
    if main is None:
        return ["None of these runs has a likelihood or samples that could be compared."]
    scored = any("log_prob" in run.scores.units for variant in group.variants for run in variant.runs)
    said = ["No likelihood here is resolved, so the samples decide."] if main != "nll" and scored else []
    said += _ranking(found, found[main])
    if main == "nll":
        said += [f"{row.label} has no likelihood: {_why_not(row)}." for row in group.variants if _why_not(row)]
    said += _samples(group, found["w2"]) if main != "w2" else []
    said += _covered(group, found[main])
    said += _one_network(group)
    said += _resolved(group)
    return said


# ---------------------------------------------------------------- who is better
def _ranking(found: Standings, main: Standing) -> Iterator[str]:
    group, gap = found.group, found["nll_gap"]
    what, unit = figure(main.name).title, figure(main.name).unit
    labels = [variant.label for variant in group.variants]
    scored = [
        index for index, score in enumerate(main.scores) if score.average is not None and score.verdict != "unresolved"
    ]
    if found.baseline is not None and main.reference is None:
        yield f"{labels[found.baseline]} cannot be ranked by its {what}, so nothing is compared with it."
        return
    reference = main.reference if main.reference is not None else scored[0]
    head = f"{what} {_value(main.scores[reference])}{_unit(unit)}{_above(main, gap, reference)}"
    if len(scored) == 1:
        yield f"{labels[reference]}: {head}."
        return
    others = sorted((index for index in scored if index != reference), key=lambda index: _order(main.scores[index]))
    ties = [index for index in others if main.scores[index].verdict == "tie"]
    if group.seeds_alone:
        yield f"These rows are one model under {len(scored)} seeds: what they differ by is chance, so they tie. {head}."
        return
    if not main.best:
        yield f"Against {labels[reference]} ({head}):"
    elif len(ties) == len(others):
        yield f"A tie in {what}: {_list([labels[index] for index in scored])} cannot be told apart."
        yield f"The lowest is {labels[reference]}: {head}."
    elif ties:
        tied = _list([labels[index] for index in (reference, *ties)])
        yield f"{tied} tie for the lowest {what}; the lowest is {labels[reference]}: {head}."
    else:
        yield f"{labels[reference]} has the lowest {what}: {head}."
    told = [index for index in others if index not in ties] if len(ties) > MOST_TIES else others
    for index in told[:MOST_SENTENCES]:
        yield f"{labels[index]} {_compared(main.scores[index], unit)}."
    if len(told) > MOST_SENTENCES:
        yield f"{len(told) - MOST_SENTENCES} more rows: see the table."


def _compared(score: Score, unit: str) -> str:
    difference = score.difference
    assert difference is not None
    if math.isinf(difference.value):
        which = "it" if difference.value > 0 else "the row of reference"
        return f"is {score.verdict} without bound: {which} gives some of the test points no density at all"
    interval = f"{signed(difference.value, difference.high - difference.low)}{_unit(unit)} {between(score)}"
    if score.verdict != "tie":
        return f"is {score.verdict} by {interval.lstrip('+−')}"
    why = ""
    if difference.real:
        why = "neither can be told from true samples: " if score.at_floor else "within the solvers' errors: "
    return f"ties ({why}{interval})"


def between(score: Score) -> str:
    """The interval of a difference, `[+0.006, +0.018]`; empty where there is none."""
    difference = score.difference
    if difference is None or math.isnan(difference.low):
        return ""
    width = difference.high - difference.low
    return f"[{signed(difference.low, width)}, {signed(difference.high, width)}]"


def _above(main: Standing, gap: Standing, index: int) -> str:
    """How far a row is from what a perfect model would score."""
    if main.name == "nll":
        score = gap.scores[index]
        if score.average is None:
            return ""
        above = "above" if score.average.mean >= 0 else "below"
        distance = format_value(abs(score.average.mean), score.average.stderr)
        return f", {distance} {above} the true density on the same points"
    return _floor_words(main, index)


def _floor_words(standing: Standing, index: int) -> str:
    if standing.floor is None:
        return ""
    floor = format_value(standing.floor.mean, standing.floor.stderr)
    told = "not told from true samples" if standing.scores[index].at_floor else "true samples"
    return f", {told} ({floor})"


def _samples(group: Group, w2: Standing) -> Iterator[str]:
    """What the samples say, apart from the likelihoods."""
    having = [index for index, score in enumerate(w2.scores) if score.average is not None]
    if not having or w2.floor is None:
        return
    floor = format_value(w2.floor.mean, w2.floor.stderr)
    if not any("true_log_prob" in run.scores.units for variant in group.variants for run in variant.runs):
        yield (
            f"In samples two parts of the data are {floor} apart (W2). The truth is known by its rows alone, and draws "
            "share rows: the intervals of distances leave out the choice of rows."
        )
        return
    labels = [variant.label for variant in group.variants]
    high = [index for index in having if not w2.scores[index].at_floor]
    if not high:
        yield f"In samples (W2) no row can be told from true samples, which score {floor}."
        return
    told = ", ".join(f"{labels[index]} {_value(w2.scores[index])}" for index in high[:MOST_SENTENCES])
    yield f"In samples (W2; true ones score {floor}) these can be told from true ones: {told}."


# ---------------------------------------------------------------- what that rests on
def _covered(group: Group, main: Standing) -> Iterator[str]:
    compared = [score for score in main.scores if score.difference is not None and score.verdict != "reference"]
    if not compared or group.seeds_alone:
        return
    units = "test points" if main.name == "nll" else "draws of samples"
    count = f"The {len(compared)} intervals hold together at" if len(compared) > 1 else "The interval holds at"
    share = f"{LEVEL:.0%}".replace("%", " %")
    alone = any(score.difference is not None and score.difference.units_only for score in compared)
    if alone and not any(_is_trained(variant) for variant in group.variants):
        yield f"{count} {share}: over {units}, paired on the same {units}; nothing is trained, so there is no seed."
    elif alone:
        yield (
            f"{count} {share}. Rows with one seed: the intervals cover the choice of {units} alone; "
            "another seed may come out otherwise."
        )
    else:
        runs = "runs" if group.averaged else "seeds"
        yield f"{count} {share}: over {runs} and {units}, paired on the same {units}."


def _is_trained(variant: Variant) -> bool:
    return any(run.record.config.get("objective") is not None for run in variant.runs)


def _one_network(group: Group) -> Iterator[str]:
    """What the mathematics says where nothing but the path differs and the network is preconditioned."""
    differs = differing([run.record for variant in group.variants for run in variant.runs])
    if len(group.variants) < 2 or "path" not in differs or not _only_paths([key for key in differs if key != SEED]):
        return
    for variant in group.variants:
        for run in variant.runs:
            config = run.record.config
            model, choices = config.get("model"), choices_of(run.record)
            preconditioned = isinstance(model, dict) and model.get("precondition") in (True, "auto")
            if not preconditioned or choices.get("path") is None or choices.get("objective") == "mle":
                return
    yield (
        "These rows train one and the same network: preconditioned, they predict the same quantity, and the paths "
        "differ only in which times they train on, in the range of angles and in where the solver steps. "
        "model.precondition=false has the raw contrast."
    )


def _only_paths(keys: Sequence[str]) -> bool:
    return all(key == "path" or key.startswith("path.") for key in keys)


def _resolved(group: Group) -> Iterator[str]:
    """Whether the likelihoods are the models' own, and not their solvers'."""
    having = [variant for variant in group.variants if any("log_prob" in run.scores.units for run in variant.runs)]
    wrong = sorted((variant for variant in having if not is_resolved(variant)), key=solver_error, reverse=True)
    if wrong:
        told = _list([f"{variant.label} ({solver_error(variant):.1g} nats)" for variant in wrong])
        yield (
            f"Not resolved, so not ranked by likelihood: {told}. The solver's error is above a tenth of the standard "
            "error of the NLL; with solver=dopri5 added to this command all rows are solved tightly."
        )
    if len(wrong) < len(having):
        most = max(solver_error(variant) for variant in having if variant not in wrong)
        yield f"Resolved: the solver's error is at most {most:.1e} nats in {'the other rows' if wrong else 'any row'}."


# ---------------------------------------------------------------- parts of sentences
def _value(score: Score) -> str:
    return format_value(score.value, score.spread)


def _unit(unit: str) -> str:
    return f" {unit}" if unit else ""


def _order(score: Score) -> float:
    return math.inf if score.average is None or math.isnan(score.average.mean) else score.average.mean


def _why_not(variant: Variant) -> str | None:
    found = [run.scores.metrics.get("nll_missing") for run in variant.runs]
    return next((text_of(reason) for reason in found if reason), None)


def _list(names: Sequence[str]) -> str:
    if len(names) > MOST_NAMES:
        return f"{', '.join(names[:2])} and {len(names) - 2} more rows"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

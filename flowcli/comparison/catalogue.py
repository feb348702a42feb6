"""What is known of each figure: its name for people, what it means, and what a perfect model has."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A metric.

    Attributes:
        title: for people.
        help: what it means, one sentence.
        perfect: what a perfect model has, where that is one number for all data.
        unit: of differences.
    """

    title: str
    help: str
    perfect: float | None = None
    unit: str = ""


TWO_SAMPLE = ("w2", "mmd", "energy_distance", "c2st")
"""Measured draw by draw, each with a floor: two sets of true samples."""
UNITS = ("nll", "nll_gap", "bits_per_dim", *TWO_SAMPLE)
"""Figures with something behind them to resample."""
SHOWN = (*UNITS, "nfe_sample", "parameters", "train_seconds", "sample_seconds_per_1000")
"""What a table shows if nothing else is asked for."""

FIGURES = {
    "nll": Figure("NLL", "Mean negative log-density of the test points, in data units.", unit="nats"),
    "nll_gap": Figure("NLL gap", "NLL minus the true density's on the same points.", perfect=0.0, unit="nats"),
    "bits_per_dim": Figure("bits/dim", "NLL of whole numbers, in bits for each of them.", unit="bits"),
    "w2": Figure("W2", "2-Wasserstein distance of samples from as many true ones."),
    "mmd": Figure("MMD²", "Squared maximum mean discrepancy, unbiased: a perfect model is as often below 0 as above."),
    "energy_distance": Figure("energy distance", "Unbiased: a perfect model is as often below 0 as above."),
    "c2st": Figure("C2ST", "How often nearest neighbours tell a sample from a true point: 1/2 if they cannot."),
    "nfe_sample": Figure("NFE", "Evaluations of the network a batch of samples took."),
    "nfe_log_prob": Figure("NFE, likelihood", "Evaluations a batch of likelihoods took."),
    "parameters": Figure("parameters", "Numbers that training adjusts."),
    "train_seconds": Figure("training, s", "Seconds of training."),
    "sample_seconds_per_1000": Figure("1,000 samples, s", "Seconds that a thousand samples take."),
    "log_prob_seconds_per_1000": Figure("1,000 likelihoods, s", "Seconds for a thousand log-densities."),
    "nll_standardised": Figure("NLL, standardised", "NLL in the units that the network sees.", unit="nats"),
    "velocity_error": Figure("velocity error", "Relative distance of the field from the closed-form one.", perfect=0.0),
    "continuity_residual": Figure("continuity residual", "By how much the field fails to move p_t.", perfect=0.0),
    "normalized_path_energy": Figure("path energy", "Relative distance from optimal transport's.", perfect=0.0),
    "straightness": Figure("bend of the paths", "0 for straight paths at even speed.", perfect=0.0),
}


def cost(solver: str, nfe: int) -> str:
    """The name of the distance of samples that a solver drew with so many evaluations."""
    return f"w2@{solver}/{nfe}"


def costs(name: str) -> tuple[str, int] | None:
    """Solver and evaluations in a name that `cost` made; None in any other."""
    found = re.fullmatch(r"w2@(\w+)/(\d+)", name)
    return None if found is None else (found[1], int(found[2]))


def figure(name: str) -> Figure:
    """What is known of a metric; of one without an entry, its name."""
    sampler = costs(name)
    if sampler is not None:
        return Figure(
            f"{sampler[0]}, NFE {sampler[1]}", "W2 of samples that this solver drew with so many evaluations."
        )
    return FIGURES.get(name, Figure(name, ""))

"""The matrix products of a work and nothing else; as `peak`, a large square product by the fastest library here."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rounds import Rounds, serve
from works import Work, products

SHORTEST = 0.2
"""Seconds of one repetition, about."""
ONEDNN = 'oneDNN ("medium")'


def peak(work: Work, points: Path, rounds: Rounds) -> None:
    """By the fastest of torch's two libraries and NumPy's one; the facts name the GFLOP/s of each.

    oneDNN is asked for as a user can: by torch's `medium` precision, which does not round where there are no units for
    it; where it does, the fact `error` is above 1e-5 and oneDNN is left out.
    """
    a, b = (torch.randn(work.rows, work.rows) for _ in range(2))
    plain, other = a.numpy(), b.numpy()
    makers: dict[str, Callable[[], object]] = {
        "torch.mm": lambda: torch.mm(a, b),
        "NumPy": lambda: np.matmul(plain, other),
    }
    exact = torch.mm(a.double(), b.double())
    with_medium = _at_medium(lambda: torch.mm(a, b))
    error = float((with_medium() - exact).norm() / exact.norm())
    if error < 1e-5:
        makers[ONEDNN] = with_medium
    operations = sum(product.operations for product in products(work))
    seconds = {name: min(_seconds(make) for _ in range(4)) for name, make in makers.items()}
    fastest = makers[min(seconds, key=lambda name: seconds[name])]
    facts = {f"GFLOP/s {name}": operations / taken / 1e9 for name, taken in seconds.items()}
    rounds.each(lambda: [fastest() for _ in range(work.repeat)], **facts, error=error)


def _at_medium(make: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    def made() -> torch.Tensor:
        torch.set_float32_matmul_precision("medium")
        try:
            return make()
        finally:
            torch.set_float32_matmul_precision("highest")

    return made


def _seconds(make: Callable[[], object]) -> float:
    began = time.perf_counter()
    make()
    return time.perf_counter() - began


def own_products(work: Work, points: Path, rounds: Rounds) -> None:
    """Each product of one step or evaluation, by torch.mm at its own shape, into memory that is there already."""
    triples = [
        (torch.randn(rows, inner), torch.randn(inner, columns), torch.empty(rows, columns))
        for rows, inner, columns in products(work)
    ]

    def once() -> None:
        for left, right, out in triples:
            torch.mm(left, right, out=out)

    once()
    repeats = max(1, round(SHORTEST / min(_seconds(once) for _ in range(5))))
    rounds.each(lambda: [once() for _ in range(repeats)], repeats=repeats)


DOINGS = {
    "peak": peak,
    **dict.fromkeys(("step", "ot_step", "large_step", "euler", "dopri5", "log_prob"), own_products),
}

if __name__ == "__main__":
    serve(DOINGS, "torch", "numpy")

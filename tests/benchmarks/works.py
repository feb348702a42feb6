"""What is measured: sizes, and the matrix products that no implementation can do without. Plain Python."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

DIMENSION = 2
"""Of a point of 8gaussians."""
POINTS = 100_000
RATE = 1e-3
"""Learning rate of Adam, everywhere."""


class Product(NamedTuple):
    """A (rows, inner) matrix times an (inner, columns) one."""

    rows: int
    inner: int
    columns: int

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.rows * self.inner * self.columns


@dataclass(frozen=True)
class Work:
    """One thing that every implementation does as well as it can, in float32.

    Attributes:
        name: on the command line.
        text: in the table.
        kind: which products it is made of.
        rows: points at once.
        width, layers: of the network, an MLP over x and t with SiLU.
        repeat: how often the thing is done in one timed repetition.
        trained: training steps in the preparation.
        solve_steps: of Euler.
        tolerance: of dopri5, relative and absolute.
    """

    name: str
    text: str
    kind: Literal["peak", "training", "sampling", "density", "likelihood training", "process"]
    rows: int = 256
    width: int = 64
    layers: int = 3
    repeat: int = 1
    trained: int = 2000
    solve_steps: int = 100
    tolerance: float = 1e-5


WORKS = {
    work.name: work
    for work in (
        Work("peak", "product of two square matrices, 2048", "peak", rows=2048, repeat=5),
        Work("step", "training step, batch 256, MLP 3 x 64", "training", repeat=500, trained=1000),
        Work("ot_step", "the same with exact minibatch OT", "training", repeat=200, trained=200),
        Work("euler", "10,000 samples, Euler, 100 steps", "sampling", rows=10_000),
        Work("dopri5", "10,000 samples, dopri5, 1e-5", "sampling", rows=10_000, repeat=3),
        Work("log_prob", "2,000 exact log-densities, dopri5, 1e-5", "density", rows=2000, repeat=3),
        Work(
            "mle_step",
            "maximum-likelihood step, exact trace, dopri5, 1e-4, batch 256",
            "likelihood training",
            repeat=10,
            trained=200,
            tolerance=1e-4,
        ),
        Work("large_step", "training step, batch 4096, MLP 4 x 512", "training", 4096, 512, 4, repeat=5, trained=5),
        Work("process", "whole process: 5,000 training steps, 10,000 samples", "process", trained=5000, rows=10_000),
        Work("help", "whole process: flowcli --help", "process"),
    )
}

OFFERS = {
    "ours": ("step", "ot_step", "euler", "dopri5", "log_prob", "mle_step", "large_step", "process", "help"),
    "torchcfm": ("step", "ot_step", "euler", "dopri5", "large_step", "process"),
    "torchcfm_selu": ("step", "euler", "dopri5"),
    "flow_matching": ("step", "euler", "dopri5", "log_prob", "large_step"),
    "zuko": ("mle_step",),
    "jax": ("peak", "step", "euler", "dopri5", "log_prob", "mle_step", "large_step"),
    "limits": ("peak", "step", "ot_step", "euler", "dopri5", "log_prob", "large_step"),
}
"""Who does what. limits is no implementation: the products alone."""


def products(work: Work) -> list[Product]:
    """Those of one training step, or of one evaluation of the field; none where they are not what counts.

    A density takes the derivative of every hidden layer in each direction too; the first layer's is its weight, and of
    the last one only a trace is left.
    """
    if work.kind == "peak":
        return [Product(work.rows, work.rows, work.rows)]
    first, last = (DIMENSION + 1, work.width), (work.width, DIMENSION)
    hidden = [(work.width, work.width)] * (work.layers - 1)
    forward = [Product(work.rows, *shape) for shape in (first, *hidden, last)]
    if work.kind == "sampling":
        return forward
    if work.kind == "density":
        return forward + [Product(work.rows, *shape) for shape in hidden * DIMENSION]
    if work.kind == "training":
        weights = [Product(inner, work.rows, columns) for inner, columns in (first, *hidden, last)]
        inputs = [Product(work.rows, columns, inner) for inner, columns in (*hidden, last)]
        return forward + weights + inputs
    return []


def operations(work: Work) -> int:
    """Of its products."""
    return sum(product.operations for product in products(work))


def times_evaluations(work: Work) -> bool:
    """The products are those of one evaluation of the field, of which the work takes several."""
    return work.kind in ("sampling", "density")

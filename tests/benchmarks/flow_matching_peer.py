"""flow_matching, as its 2-D example uses it."""

from pathlib import Path
from typing import Any

import torch
from flow_matching.path import AffineProbPath
from flow_matching.path.scheduler import CondOTScheduler
from flow_matching.solver import ODESolver
from flow_matching.utils import ModelWrapper
from rounds import Rounds, serve
from torch import Tensor, nn
from torch_parts import Counted, Training, read, stack
from works import DIMENSION, WORKS, Work


class Velocity(nn.Module):
    """(x, t) to a velocity, t a scalar or (B,)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """(B, D)."""
        return self.network(torch.cat([x, t.reshape(-1, 1).expand(len(x), 1)], dim=1))


class Wrapped(ModelWrapper):
    """What its solver takes."""

    def forward(self, x: Tensor, t: Tensor, **extras: Any) -> Tensor:
        """(B, D)."""
        return self.model(x, t)


def training(velocity: Velocity, points: Tensor, rows: int) -> Training:
    """Its example's loop."""
    path = AffineProbPath(scheduler=CondOTScheduler())

    def loss(x_1: Tensor) -> Tensor:
        sample = path.sample(t=torch.rand(len(x_1)), x_0=torch.randn_like(x_1), x_1=x_1)
        return torch.pow(velocity(sample.x_t, sample.t) - sample.dx_t, 2).mean()

    return Training(velocity, loss, points, rows)


def step(work: Work, points: Path, rounds: Rounds) -> None:
    """Training steps."""
    train = training(Velocity(stack(work)), read(points), work.rows)
    train(work.trained)
    rounds.each(lambda: train(work.repeat))


def _solver(work: Work, points: Tensor) -> tuple[ODESolver, Counted]:
    field = Counted(stack(work))
    velocity = Velocity(field)
    training(velocity, points, WORKS["step"].rows)(work.trained)
    field.calls = 0
    return ODESolver(velocity_model=Wrapped(velocity)), field


def samples(work: Work, points: Path, rounds: Rounds) -> None:
    """Samples of a trained field."""
    solver, field = _solver(work, read(points))
    fixed = {"method": "euler", "step_size": 1 / work.solve_steps}
    adaptive = {"method": "dopri5", "step_size": None, "rtol": work.tolerance, "atol": work.tolerance}
    settings: dict[str, Any] = fixed if work.name == "euler" else adaptive

    def sample() -> None:
        solver.sample(x_init=torch.randn(work.rows, DIMENSION), **settings)

    sample()
    rounds.each(lambda: [sample() for _ in range(work.repeat)], nfe=field.calls)


def log_prob(work: Work, points: Path, rounds: Rounds) -> None:
    """Log-densities under a trained field."""
    known = read(points)
    solver, field = _solver(work, known)
    noise = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1)

    def score() -> Tensor:
        _, found = solver.compute_likelihood(
            x_1=known[: work.rows],
            log_p0=noise.log_prob,
            step_size=None,
            method="dopri5",
            rtol=work.tolerance,
            atol=work.tolerance,
            exact_divergence=True,
        )
        return found

    nll = -float(score().mean())
    rounds.each(lambda: [score() for _ in range(work.repeat)], nfe=field.calls, nll=nll)


DOINGS = {"step": step, "large_step": step, "euler": samples, "dopri5": samples, "log_prob": log_prob}

if __name__ == "__main__":
    serve(DOINGS, "flow_matching", "torch", "torchdiffeq")

"""torchcfm, as its examples use it; they sample with torchdyn or torchdiffeq, here with the latter."""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rounds import Doing, Rounds, serve
from torch import Tensor, nn
from torch_parts import Counted, Training, read, stack
from torchcfm.conditional_flow_matching import ConditionalFlowMatcher, ExactOptimalTransportConditionalFlowMatcher
from torchcfm.models import MLP
from torchdiffeq import odeint
from works import DIMENSION, WORKS, Work

SCRIPT = Path(__file__).with_name("torchcfm_process.py")


def network(work: Work, activation: type[nn.Module]) -> nn.Module:
    """Its own MLP, or one like it with another activation."""
    return MLP(dim=DIMENSION, w=work.width, time_varying=True) if activation is nn.SELU else stack(work, activation)


def training(network: nn.Module, matcher: ConditionalFlowMatcher, points: Tensor, rows: int) -> Training:
    """Its loop: mean squared error of the conditional flow."""

    def loss(x_1: Tensor) -> Tensor:
        t, x_t, u_t = matcher.sample_location_and_conditional_flow(torch.randn_like(x_1), x_1)
        v_t = network(torch.cat([x_t, t[:, None]], dim=-1))
        return torch.mean((v_t - u_t) ** 2)

    return Training(network, loss, points, rows)


def steps(matcher: Callable[[], ConditionalFlowMatcher], activation: type[nn.Module]) -> Doing:
    """Training steps."""

    def do(work: Work, points: Path, rounds: Rounds) -> None:
        train = training(network(work, activation), matcher(), read(points), work.rows)
        train(work.trained)
        rounds.each(lambda: train(work.repeat))

    return do


def sample(network: nn.Module, work: Work) -> Tensor:
    """Points (N, D): `torch_wrapper` of its utilities and torchdiffeq."""

    def field(t: Tensor, x: Tensor) -> Tensor:
        return network(torch.cat([x, t.repeat(x.shape[0])[:, None]], 1))

    noise = torch.randn(work.rows, DIMENSION)
    with torch.no_grad():
        if work.name == "euler":
            return odeint(field, noise, torch.linspace(0, 1, work.solve_steps + 1), method="euler")[-1]
        ends = torch.linspace(0, 1, 2)
        return odeint(field, noise, ends, method="dopri5", rtol=work.tolerance, atol=work.tolerance)[-1]


def samples(activation: type[nn.Module]) -> Doing:
    """Samples of a trained field."""

    def do(work: Work, points: Path, rounds: Rounds) -> None:
        field = Counted(network(work, activation))
        training(field, ConditionalFlowMatcher(sigma=0.0), read(points), WORKS["step"].rows)(work.trained)
        field.calls = 0
        sample(field, work)
        rounds.each(lambda: [sample(field, work) for _ in range(work.repeat)], nfe=field.calls)

    return do


def process(work: Work, points: Path, rounds: Rounds) -> None:
    """A script from its start to its end."""
    command = [sys.executable, str(SCRIPT), str(points), str(work.trained)]
    rounds.each(lambda: subprocess.run(command, check=True))


def doings(activation: type[nn.Module]) -> dict[str, Doing]:
    """All works, with this activation."""
    independent = steps(lambda: ConditionalFlowMatcher(sigma=0.0), activation)
    return {
        "step": independent,
        "ot_step": steps(lambda: ExactOptimalTransportConditionalFlowMatcher(sigma=0.0), activation),
        "large_step": independent,
        "euler": samples(activation),
        "dopri5": samples(activation),
        "process": process,
    }


DOINGS = doings(nn.SiLU)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--activation", choices=("SiLU", "SELU"), default="SiLU")
    serve(doings(getattr(nn, parser.parse_args().activation)), "torchcfm", "torch", "torchdiffeq", "pot")

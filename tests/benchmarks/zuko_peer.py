"""zuko's continuous flow, trained by maximum likelihood as its tutorial does."""

from pathlib import Path

import torch
import zuko
from rounds import Rounds, serve
from torch import Tensor, nn
from torch_parts import Counted, Training, read
from works import DIMENSION, Work


def mle_step(work: Work, points: Path, rounds: Rounds) -> None:
    """Steps of a CNF with exact trace."""
    known = read(points)
    flow = zuko.flows.CNF(
        features=DIMENSION,
        hidden_features=(work.width,) * work.layers,
        activation=nn.SiLU,
        atol=work.tolerance,
        rtol=work.tolerance,
        exact=True,
    )
    flow.transform.ode = field = Counted(flow.transform.ode)

    def loss(x_1: Tensor) -> Tensor:
        return -flow().log_prob(x_1).mean()

    train = Training(flow, loss, known, work.rows)
    train(work.trained)
    field.calls = 0
    with torch.no_grad():
        nll = float(loss(known[: work.rows]))
    rounds.each(lambda: train(work.repeat), nfe=field.calls, nll=nll)


DOINGS = {"mle_step": mle_step}

if __name__ == "__main__":
    serve(DOINGS, "zuko", "torch")

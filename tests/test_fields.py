"""The products of a field's Jacobian with directions, against autograd's whole Jacobian, in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from flowcli.flows.fields import Field, FreeField, LearnedField
from flowcli.networks.mlp import MLP
from flowcli.parametrizations import PREDICTIONS, Moments, Preconditioned, Raw
from flowcli.paths import OT, VE, VP, Path

PATHS: dict[str, Path] = {"ot": OT(0.0), "vp": VP(0.1, 20.0), "ve": VE(0.01, 10.0)}


class NoRule(nn.Module):
    """A network that is known by its values alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return self.network(x, t, condition)


def network(features: int = 0, octaves: int = 2, *, residual: bool = True, rule: bool = True) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = MLP((3,), 16, 2, features, 1.0, octaves, residual, "auto")
        nn.init.normal_(made.last.weight, std=0.5)
    return (made if rule else NoRule(made)).double()


def learned(path: Path, prediction: str | None, **kind: Any) -> LearnedField:
    moments = Moments(
        *(torch.tensor(values, dtype=torch.float64) for values in ([0.1, 0.0, -0.2], [0.5, -1.0, 2.0])),
        *(torch.tensor(value, dtype=torch.float64) for value in (0.9, 2.5, 0.3)),
    )
    parametrization = Preconditioned() if prediction is None else Raw(prediction, path)
    return LearnedField(network(**kind), parametrization, path, moments)


def held(value: Any, along: Any, x: Tensor) -> None:
    """For directions that rows share, and for some of each row's own: J e or e^T J, and e^T J e either way."""
    jacobian = vmap(jacrev(lambda row: value(row[None])[0]))(x)
    own = torch.randn(4, *x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    for directions in (torch.eye(3, dtype=x.dtype)[:, None], own):
        found, products = along(directions)
        e = directions.expand(-1, *x.shape)
        right, left = (torch.einsum(rule, jacobian, e) for rule in ("bij,kbj->kbi", "bij,kbi->kbj"))
        torch.testing.assert_close(found, value(x), rtol=1e-12, atol=1e-12)
        assert any(torch.allclose(products, side, rtol=1e-9, atol=1e-10) for side in (right, left))
        torch.testing.assert_close((products * e).sum(2), (right * e).sum(2), rtol=1e-9, atol=1e-10)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("features", "octaves"), [(0, 0), (7, 3)])
def test_the_mlp_s_rule_is_its_jacobian(features, octaves, residual, grad, x):
    made, t = network(features, octaves, residual=residual), torch.tensor(0.4, dtype=torch.float64)
    assert isinstance(made, MLP)
    with torch.set_grad_enabled(grad):
        held(lambda x: made(x, t, None), lambda directions: made.along(x, t, None, directions), x)


@pytest.mark.parametrize("rule", [True, False], ids=["own rule", "values alone"])
@pytest.mark.parametrize("prediction", [None, *PREDICTIONS])
@pytest.mark.parametrize("path", PATHS)
def test_a_field_s_products_are_its_jacobian_s(path, prediction, rule, x):
    field = learned(PATHS[path], prediction, rule=rule)
    for u in (torch.tensor(0.37, dtype=torch.float64), torch.full((5,), 0.8, dtype=torch.float64)):
        one = u if u.dim() == 0 else u[:1]  # a row's own Jacobian has a batch of one row
        held(
            lambda x, u=u, one=one: field.velocity(x, u if len(x) == 5 else one, None),
            lambda directions, u=u: field.along(x, u, None, directions),
            x,
        )


@pytest.mark.parametrize("rule", [True, False], ids=["own rule", "values alone"])
def test_a_rotation_s_and_a_free_field_s_too(rule, x):
    angle, turned = torch.tensor(0.9, dtype=torch.float64), learned(OT(0.0), None, rule=rule)
    free: Field = FreeField(network(rule=rule))
    held(lambda x: turned.rotation(x, angle, None), lambda e: turned.rotation_along(x, angle, None, e), x)
    held(lambda x: free.velocity(x, angle, None), lambda e: free.along(x, angle, None, e), x)

"""Discrete flows: the change of variables against Jacobians, integrals and closed forms."""

import inspect
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.distributions import Uniform
from torch.distributions.transforms import AffineTransform, PowerTransform
from zuko.lazy import UnconditionalTransform
from zuko.transforms import DependentTransform

from flowcli.bases import Base, GaussianMixture, StandardNormal
from flowcli.errors import UserError
from flowcli.flows import discrete
from flowcli.flows.discrete import MAF, NICE, NSF, Discrete, DiscreteFlow, RealNVP
from flowcli.randomness import generator
from flowcli.transforms import Affine

CONF = Path(__file__).resolve().parents[1] / "conf"
CPU, F32, F64 = torch.device("cpu"), torch.float32, torch.float64
UNITS = Affine(torch.tensor([100.0, -3.0], dtype=F64), torch.tensor([2.0, 0.1], dtype=F64))
MODELS = [RealNVP(4, 16, 2), NICE(4, 16, 2), MAF(4, 16, 2, None), NSF(3, 16, 2, None, 6, 5.0)]
every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)


def parts(units: Affine = UNITS, *, base: Base | None = None, seed: int = 0, **given: Any) -> Any:
    shape = tuple(units.shift.shape)
    settled = {"network": None, "path": None, "solver": None, "divergence": None, **given}
    base = StandardNormal(shape) if base is None else base
    return SimpleNamespace(base=base, transform=units, event_shape=shape, seed=seed, **settled)


def rough(
    model: Discrete, units: Affine = UNITS, *, base: Base | None = None, dtype: torch.dtype = F64
) -> DiscreteFlow:
    """A flow whose layers bend more than fresh ones do."""
    flow = model.flow(parts(units, base=base))
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in flow.layers.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=g)
    return flow.requires_grad_(False).cast(dtype, CPU)


def points(n: int, units: Affine = UNITS) -> Tensor:
    g = torch.Generator().manual_seed(2)
    return units.inverse(1.5 * torch.randn(n, *units.shift.shape, generator=g, dtype=F64))


def grid(half_width: float, count: int) -> tuple[Tensor, float]:
    """Centres (count^2, 2) of the cells of a square in model units, in data units; the area of a cell there."""
    ticks = half_width * ((2 * torch.arange(count, dtype=F64) + 1) / count - 1)
    cell = (2 * half_width / count) ** 2 * float(UNITS.scale.prod())
    return UNITS.inverse(torch.cartesian_prod(ticks, ticks)), cell


# ------------------------------------------------------------------------------------------------- densities
@every_model
def test_log_prob_is_the_change_of_variables(model):
    flow, x = rough(model), points(5)
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(lambda row: flow.encode(row[None]).value[0], r) for r in x]
    )
    z = flow.encode(x).value
    expected = -z.square().sum(1) / 2 - math.log(2 * math.pi) + torch.linalg.slogdet(jacobian).logabsdet
    assert jacobian.diagonal(dim1=1, dim2=2).sub(1 / UNITS.scale).abs().min() > 1e-3  # it is not the identity
    torch.testing.assert_close(flow.log_prob(x).value, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(flow.density(UNITS(x), None) + UNITS.log_det, expected, rtol=0, atol=1e-10)


@every_model
def test_density_of_every_layer_integrates_to_one(model):
    flow = rough(model)
    x, cell = grid(16.0, 300)
    layers = flow.layer_log_probs(x, batch_size=50_000).value
    assert layers.shape == (len(x), len(flow.layers) + 1)
    torch.testing.assert_close(layers.exp().sum(0) * cell, torch.ones(layers.shape[1], dtype=F64), rtol=0, atol=2e-3)
    torch.testing.assert_close(layers[:, -1], flow.log_prob(x).value, rtol=0, atol=0)
    noise = flow.start.log_prob(UNITS(x)) + UNITS.log_det
    torch.testing.assert_close(layers[:, 0], noise, rtol=0, atol=0)


@every_model
def test_layers_push_the_trajectory_and_its_density_alike(model):
    """log p_k(x_k) changes by -log |det| of the layer between the states."""
    flow = rough(model)
    way = flow.trajectory(4, seed=3, points=7)
    count = len(flow.layers)
    assert way.nfe == count and way.states.shape == (count + 1, 4, 2)
    torch.testing.assert_close(way.times, torch.arange(count + 1, dtype=F64) / count)
    torch.testing.assert_close(way.states[-1], flow.sample(4, seed=3).value, rtol=0, atol=0)
    noise = flow.start.sample(1024, generator(3, "sample", 0))[:4].double()
    torch.testing.assert_close(way.states[0], UNITS.inverse(noise), rtol=0, atol=0)
    for k, layer in enumerate(reversed(flow.layers)):
        _, log_det = layer().call_and_ladj(UNITS(way.states[k + 1]))
        before, after = flow.layer_log_probs(way.states[k]).value[:, k], flow.layer_log_probs(way.states[k + 1]).value
        torch.testing.assert_close(after[:, k + 1], before + log_det, rtol=0, atol=1e-8)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(
    "model", [MAF(2, 16, 2, None), NSF(2, 16, 2, None, 6, 5.0), RealNVP(2, 16, 2)], ids=lambda m: m.name
)
def test_a_layer_has_a_triangular_jacobian(model, layer):
    """Notes 003: the determinant is the product of the diagonal."""
    size = 4
    flow = rough(model, Affine.identity((size,)))
    transform = flow.layers[layer]()
    x = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=F64)
    jacobian = torch.autograd.functional.jacobian(transform, x)
    _, log_det = transform.call_and_ladj(x[None])
    torch.testing.assert_close(jacobian.diagonal().log().sum(), log_det[0])
    if isinstance(model, RealNVP):  # first the values that stay, then those that they move
        order = torch.tensor([0, 2, 1, 3] if layer == 0 else [1, 3, 0, 2])
    else:
        order = torch.arange(size) if layer == 0 else torch.arange(size).flip(0)
    turned = jacobian[order][:, order]
    assert torch.equal(turned.triu(1), torch.zeros_like(turned).triu(1))
    assert turned.tril(-1).abs().max() > 0.01


@pytest.mark.parametrize("model", [MAF(2, 16, 2, 2), NSF(2, 16, 2, 2, 6, 5.0)], ids=lambda m: m.name)
def test_two_passes_are_couplings_of_halves(model):
    size = 5
    flow = rough(model, Affine.identity((size,)))
    x = points(9, Affine.identity((size,)))
    torch.testing.assert_close(flow.decode(flow.encode(x).value).value, x, rtol=0, atol=1e-9)
    jacobian = torch.autograd.functional.jacobian(flow.layers[0](), x[0])
    inner = jacobian - jacobian.diagonal().diag()
    assert torch.equal(inner[:3], torch.zeros(3, 5).double()) and torch.equal(inner[:, 3:], torch.zeros(5, 2).double())
    assert (inner[3:, :3].abs() > 0).any()


class UniformBase(Base):
    """U(0, 2), of the notes' example."""

    is_gaussian, has_density = False, True

    def __init__(self) -> None:
        super().__init__(torch.ones(1, dtype=F64), torch.tensor(3.0, dtype=F64).rsqrt())

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return 2 * torch.rand(n, 1, generator=generator)

    def log_prob(self, x: Tensor) -> Tensor:
        return Uniform(0.0, 2.0, validate_args=False).log_prob(x).sum(1)


def elementwise(make: Any, *args: Any) -> nn.Module:
    """zuko's lazy form of a transform that treats every value alike."""
    return UnconditionalTransform(lambda: DependentTransform(make(*args), 1))


def test_the_square_of_a_uniform_number():
    """z ~ U(0, 2), x = z^2 has the density 1 / (4 sqrt x) on (0, 4)."""
    root = elementwise(PowerTransform, torch.tensor(0.5, dtype=F64))
    flow = DiscreteFlow([root], UniformBase(), Affine.identity((1,)), (1,)).cast(F64, CPU)
    x = torch.linspace(0.01, 3.99, 50, dtype=F64)[:, None]
    torch.testing.assert_close(flow.log_prob(x).value.exp(), 1 / (4 * x[:, 0].sqrt()))
    assert torch.isneginf(flow.log_prob(torch.tensor([[4.1]], dtype=F64)).value).all()
    drawn = flow.sample(20_000, seed=0).value[:, 0]
    assert abs(float(drawn.sqrt().mean()) - 1) < 0.02 and float(drawn.min()) >= 0 and float(drawn.max()) <= 4


def test_layers_are_applied_in_their_order():
    """z = (x + 1) * 3, not x * 3 + 1."""
    layers = [elementwise(AffineTransform, 1.0, 1.0), elementwise(AffineTransform, 0.0, 3.0)]
    flow = DiscreteFlow(layers, StandardNormal((1,)), Affine.identity((1,)), (1,)).cast(F64, CPU)
    x = torch.tensor([[0.5]], dtype=F64)
    torch.testing.assert_close(flow.encode(x).value, 3 * (x + 1))
    # after one of two layers from the noise: z / 3 is N(0, 1/9)
    normal = torch.distributions.Normal(torch.zeros(1).double(), 1 / 3)
    torch.testing.assert_close(flow.layer_log_probs(x).value[:, 1], normal.log_prob(x)[:, 0])


def test_a_base_other_than_the_standard_normal():
    """Latents are standardised; the density is the base's own."""
    weights, means = torch.tensor([0.3, 0.7], dtype=F64), torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=F64)
    base = GaussianMixture(weights, means, torch.eye(2, dtype=F64).expand(2, 2, 2) * 0.2, (2,))
    base.has_density = True
    flow, x = rough(MAF(2, 16, 1, None), base=base), points(6)
    noise = base.from_latent(flow.encode(x).value)
    torch.testing.assert_close(
        flow.layer_log_probs(UNITS.inverse(noise)).value[:, 0], base.log_prob(noise) + UNITS.log_det
    )
    torch.testing.assert_close(flow.decode(flow.encode(x).value).value, x, rtol=0, atol=1e-8)


# ------------------------------------------------------------------------------------------------- round trips, rows
@every_model
@pytest.mark.parametrize(("dtype", "close"), [(F64, 1e-9), (F32, 2e-3)], ids=["float64", "float32"])
def test_encode_and_decode_are_inverse(model, dtype, close):
    flow, x = rough(model, dtype=dtype), points(200)
    z = flow.encode(x)
    back = flow.decode(z.value)
    assert z.value.dtype == dtype and z.nfe == back.nfe == 1
    torch.testing.assert_close(UNITS(back.value), UNITS(x), rtol=0, atol=close)
    noise = flow.start.sample(1024, generator(3, "sample", 0))[:6]
    latents = flow.encode(flow.sample(6, seed=3).value).value
    torch.testing.assert_close(latents, noise.to(dtype), rtol=0, atol=close)


@every_model
def test_rows_do_not_depend_on_the_batch(model):
    flow, x = rough(model), points(15)
    whole, scores = flow.sample(15, seed=2).value, flow.log_prob(x).value
    for size in (1, 4, 100):
        torch.testing.assert_close(flow.sample(15, seed=2, batch_size=size).value, whole, rtol=0, atol=1e-9)
        torch.testing.assert_close(flow.log_prob(x, batch_size=size).value, scores, rtol=0, atol=1e-9)
    torch.testing.assert_close(flow.sample(10, seed=2, start=5).value, whole[5:], rtol=0, atol=1e-9)
    assert not torch.allclose(flow.sample(15, seed=4).value, whole)


@every_model
def test_nothing_at_all(model):
    flow = rough(model)
    none = torch.zeros(0, 2, dtype=F64)
    assert flow.sample(0, seed=0).value.shape == flow.encode(none).value.shape == (0, 2)
    assert flow.log_prob(none).value.shape == (0,)
    assert flow.layer_log_probs(none).value.shape == (0, len(flow.layers) + 1)


@every_model
def test_events_of_another_shape(model):
    units = Affine.rescale(torch.rand(50, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=F64))
    flow, x = rough(model, units), points(3, units)
    z = flow.encode(x).value
    assert z.shape == (3, 1, 4, 4)
    torch.testing.assert_close(flow.decode(z).value, x, rtol=0, atol=1e-8)
    assert flow.sample(2, seed=0).value.shape == (2, 1, 4, 4)
    assert flow.trajectory(2, seed=0, points=2).states.shape == (len(flow.layers) + 1, 2, 1, 4, 4)
    flat = torch.autograd.functional.jacobian(
        lambda row: flow.encode(row.reshape(1, 1, 4, 4)).value.flatten(), x[0].flatten()
    )
    expected = flow.start.log_prob(z[:1]) + torch.linalg.slogdet(flat).logabsdet
    torch.testing.assert_close(flow.log_prob(x[:1]).value, expected, rtol=0, atol=1e-8)


@every_model
@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
def test_an_outlier_has_a_finite_density(model, dtype):
    flow = rough(model, dtype=dtype)
    far = UNITS.inverse(torch.tensor([[50.0, 50.0], [-50.0, 0.0], [0.3, 50.0]], dtype=F64))
    log_prob = flow.log_prob(far).value
    assert torch.isfinite(log_prob).all() and (log_prob < -100).all()
    flow.requires_grad_(True).density(UNITS(far).to(dtype), None).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in flow.layers.parameters())


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("model", [RealNVP(16, 8, 1), MAF(8, 8, 1, None)], ids=lambda model: model.name)
def test_layers_at_their_extremes_do_not_overflow(model, sign):
    """Far out a ReLU network asks every layer for its largest scale, in float32 too."""
    flow = model.flow(parts()).requires_grad_(False)
    for layer in flow.layers:
        last = layer.hyper[-1]
        last.weight.zero_()
        last.bias.view(-1, 2)[:, 1] = sign * 1e4
    far = UNITS.inverse(torch.full((1, 2), 50.0, dtype=F64))
    exact, single = (flow.cast(dtype, CPU).log_prob(far).value for dtype in (F64, F32))
    assert torch.isfinite(single).all()
    torch.testing.assert_close(single, exact, rtol=1e-3, atol=0)


def test_splines_end_at_their_bound():
    flow = rough(NSF(3, 16, 2, None, 6, 2.0))
    x = torch.tensor([[2.1, -7.0], [1.9, -7.0]], dtype=F64)
    z = flow.encode(UNITS.inverse(x)).value
    torch.testing.assert_close(z[0], x[0], rtol=0, atol=1e-12)
    assert (z[1, 0] - x[1, 0]).abs() > 1e-3 and z[1, 0].abs() < 2
    normal = -x[0].square().sum() / 2 - math.log(2 * math.pi) + UNITS.log_det
    torch.testing.assert_close(flow.log_prob(UNITS.inverse(x)).value[0], normal)


# ------------------------------------------------------------------------------------------------- building
@every_model
def test_gradients_reach_every_parameter(model):
    flow = model.flow(parts()).cast(F32, CPU)
    flow.density(UNITS(points(64)).float(), None).mean().backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name
    assert flow.trainable_parameters() == sum(p.numel() for p in flow.layers.parameters()) > 0


@every_model
def test_weights_depend_on_the_seed_alone(model):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    one, two, other = (model.flow(parts(seed=seed)).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@every_model
def test_a_state_dict_carries_everything(model):
    flow, x = rough(model), points(5)
    blank = model.flow(parts(Affine.identity((2,)), seed=9)).cast(F64, CPU)
    blank.load_state_dict(flow.state_dict())
    torch.testing.assert_close(blank.log_prob(x).value.detach(), flow.log_prob(x).value, rtol=0, atol=0)


def test_one_dimension():
    units = Affine.identity((1,))
    x = torch.linspace(-12, 12, 4001, dtype=F64)[:, None]
    for model in (NSF(2, 8, 1, None, 6, 5.0), MAF(2, 8, 1, None)):
        density = rough(model, units).log_prob(x).value.exp()
        assert abs(float(torch.trapezoid(density, x[:, 0])) - 1) < 1e-3
    for model in (RealNVP(2, 8, 1), NICE(2, 8, 1)):
        with pytest.raises(UserError, match="model=nsf"):
            model.flow(parts(units))


def test_masks_that_would_be_blind_are_refused():
    """Below D - 1 units the last value would not see all others; with D - 1 it does."""
    wide = Affine.identity((6,))
    for model in (MAF(1, 4, 1, None), NSF(1, 4, 1, None, 6, 5.0)):
        with pytest.raises(UserError, match=r"model\.width"):
            model.flow(parts(wide))
    assert MAF(1, 4, 1, 5).flow(parts(wide))
    flow = rough(MAF(1, 5, 1, None), wide)
    jacobians = [
        torch.autograd.functional.jacobian(lambda row: flow.encode(row[None]).value[0], x) for x in points(20, wide)
    ]
    seen = torch.stack(jacobians).abs().sum(0) > 0  # somewhere: a ReLU unit may be off at a point
    assert torch.equal(seen, torch.ones(6, 6).tril() > 0)


@every_model
def test_what_does_not_go_together_is_refused(model):
    for group in ("network", "path", "solver", "divergence"):
        with pytest.raises(UserError, match=f"{group}=none"):
            model.flow(parts(**{group: object()}))
    blind = StandardNormal((2,))
    blind.has_density = False
    with pytest.raises(UserError, match="has no density"):
        model.flow(parts(base=blind))
    flow, x, label = rough(model), points(2), torch.zeros(2)
    calls = [
        lambda: flow.density(x, label),
        lambda: flow.sample(2, seed=0, condition=label),
        lambda: flow.log_prob(x, condition=label),
        lambda: flow.encode(x, condition=label),
        lambda: flow.decode(x, condition=label),
        lambda: flow.trajectory(2, seed=0, points=2, condition=label),
    ]
    for call in calls:
        with pytest.raises(UserError, match="condition"):
            call()
    with pytest.raises(UserError, match="shape"):
        flow.log_prob(torch.zeros(2, 3))


@pytest.mark.parametrize("name", ["realnvp", "nice", "maf", "nsf"])
def test_the_shipped_option_builds_its_model(name):
    node = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())["model"]
    made = getattr(discrete, node.pop("_target_").removeprefix("flowcli.flows.discrete."))
    assert set(node) == set(inspect.signature(made).parameters)
    model = made(**node)
    assert model.name == name and model.trained
    assert model.flow(parts()).cast(F32, CPU).log_prob(points(2)).value.shape == (2,)


def test_settings_out_of_range():
    for name, make in {
        "transforms": lambda: MAF(0, 8, 1, None),
        "width": lambda: RealNVP(1, 0, 1),
        "depth": lambda: NICE(1, 8, 0),
        "passes": lambda: MAF(1, 8, 1, 1),
        "bins": lambda: NSF(1, 8, 1, None, 1, 5.0),
        "bound": lambda: NSF(1, 8, 1, None, 8, 0.0),
    }.items():
        with pytest.raises(UserError, match=f"^{name}"):
            make()

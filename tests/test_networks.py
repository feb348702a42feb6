"""The MLP: shapes, size, start and what it refuses."""

import pytest
import torch

from flowcli.errors import UserError
from flowcli.networks.mlp import MLP


def mlp(event_shape=(2,), width=16, depth=2, features=4, std=1.0, octaves=3, residual=True) -> MLP:
    torch.manual_seed(0)
    return MLP(event_shape, width, depth, features, std, octaves, residual, "auto")


def awake(network: MLP) -> MLP:
    """Give the last layer something to say."""
    torch.nn.init.normal_(network.last.weight)
    return network


@pytest.mark.parametrize("shape", [(1,), (2,), (1, 8, 8)])
@pytest.mark.parametrize(
    ("features", "octaves", "residual"), [(4, 3, True), (0, 0, False), (0, 2, True), (4, 0, False)]
)
def test_shapes_and_zero_at_the_start(shape, features, octaves, residual):
    network = mlp(shape, features=features, octaves=octaves, residual=residual)
    x, t = torch.randn(5, *shape), torch.rand(5)
    assert torch.equal(network(x, t, None), torch.zeros(5, *shape))
    assert awake(network)(x, t, None).abs().min() > 0


def test_one_time_for_all_is_the_same_as_a_time_each():
    network = awake(mlp()).double()
    x, t = torch.randn(5, 2).double(), torch.tensor(0.7).double()
    torch.testing.assert_close(network(x, t, None), network(x, t.expand(5), None), rtol=1e-14, atol=1e-14)
    assert not torch.allclose(network(x, t, None), network(x, t + 0.1, None))


@pytest.mark.parametrize("octaves", [0, 3])
def test_rows_are_independent(octaves):
    network = awake(mlp(octaves=octaves)).double()
    x, t = torch.randn(5, 2).double(), torch.rand(5).double()
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], None) for i in range(5)])
    torch.testing.assert_close(network(x, t, None), alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("size", "width", "depth"), [(2, 64, 2), (3, 8, 0)])
def test_size_of_a_plain_mlp(size, width, depth):
    """(x, t) -> width -> ... -> x: what a student would write."""
    network = mlp((size,), width, depth, features=0, octaves=0, residual=False)
    expected = (size + 1) * width + width + depth * (width * width + width) + width * size + size
    assert sum(p.numel() for p in network.parameters()) == expected
    plain = torch.nn.Sequential(torch.nn.Linear(size + 1, width))
    for _ in range(depth):
        plain.extend([torch.nn.SiLU(), torch.nn.Linear(width, width)])
    plain.extend([torch.nn.SiLU(), torch.nn.Linear(width, size)])
    awake(network)
    first, *hidden, last = [layer for layer in plain if isinstance(layer, torch.nn.Linear)]
    with torch.no_grad():
        first.weight.copy_(torch.cat([network.of_event.weight, network.of_time.weight], 1))
        first.bias.copy_(network.of_event.bias)
    for mine, theirs in zip([*network.hidden, network.last], [*hidden, last], strict=True):
        theirs.load_state_dict(mine.state_dict())
    x, t = torch.randn(7, size), torch.rand(7)
    torch.testing.assert_close(network(x, t, None), plain(torch.cat([x, t[:, None]], 1)), rtol=1e-5, atol=1e-6)


def test_frequencies_keep_the_spread_of_the_phase():
    """A standardised point in D dimensions has phases of the same spread whatever D is."""
    for size in (2, 50):
        phase = torch.randn(2000, size) @ mlp((size,), features=200, std=3.0).frequencies
        assert float(phase.std()) == pytest.approx(3 * 2**0.5, rel=0.1)


def test_frequencies_are_kept_and_not_trained():
    network = mlp()
    assert {"frequencies", "octaves"} <= set(network.state_dict())
    assert not any(name.startswith(("frequencies", "octaves")) for name, _ in network.named_parameters())


def test_a_condition_is_refused():
    with pytest.raises(UserError, match="network=mlp takes no condition"):
        mlp()(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"width": 0}, "width"),
        ({"width": 2.5}, "width"),
        ({"depth": -1}, "depth"),
        ({"features": -1}, "fourier_features"),
        ({"octaves": 17}, "time_octaves"),
        ({"std": 0.0}, "fourier_std"),
        ({"std": float("inf")}, "fourier_std"),
        ({"residual": 1}, "residual"),
    ],
)
def test_ranges(changes, name):
    with pytest.raises(UserError, match=f"^{name} must be "):
        mlp(**changes)

"""Optimal transport from the base to the whole training set."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from flowcli.bases import Base
from flowcli.couplings.base import Coupling, Pairs, by_label, check_labels
from flowcli.errors import integer, number
from flowcli.randomness import generator as seeded

PAIRS = 2**18
"""Distances of the semidiscrete coupling are made this many at a time: more no longer fits a processor's cache."""

WARM_POINTS, WARM_STEPS, WARM_BATCH = 2048, 200, 1024
"""The semidiscrete potentials' smoothed beginning: at most so many data, steps, and noises a step."""

CHECK_PER_CELL, CHECK_DRAWS, CHECK_CHUNK = 400, 2**19, 2**14
"""Noise drawn to measure how evenly the data are used: so much for each datum, at most so much, so much at a time."""

MOMENTUM = 0.9
"""Of the semidiscrete ascent; higher ones oscillate, lower ones leave the potentials' slow modes behind."""


class Semidiscrete(Coupling):
    r"""Each noise goes to the datum of the whole training set that optimal transport from the base assigns it to.

    The potentials maximise $E_{x_0} \min_i (|x_0 - x_i|^2 / 2 - g_i) + \mathrm{mean}(g)$, whose gradient in $g_i$ is
    1/N less the mass of cell i. They are fitted once: first smoothed (the minimum is soft, and hardens from the cost's
    scale to the data's spacing) on at most 2,048 data, then carried over to all of them, then by averaged stochastic
    ascent with momentum (Genevay et al., arXiv 1605.08527). The batch's own data are not used; with labels, each label
    has a fit of its own. Equal data cannot share their cell: the first of them gets it.

    Attributes:
        largest_error: max_i |N P_i - 1| on fresh noise: 400 draws for each datum, 2^19 at most. The
            count's own error is part of it: about 4 / sqrt(draws for each datum), 0.2 at 400.
    """

    independent = False
    keeps_marginals = True

    def __init__(self, iterations: int, batch_size: int, learning_rate: float) -> None:
        """learning_rate: the first step, in squared distances of neighbours; step s of S has (1 - s/S)^2 of it."""
        self.iterations = integer("iterations", iterations, minimum=1)
        self.batch_size = integer("batch_size", batch_size, minimum=1, maximum=1 << 24)
        self.learning_rate = number("learning_rate", learning_rate, above=0, maximum=1e6)
        self.largest_error = math.nan
        self._state: dict[str, Tensor] | None = None

    def prepare(self, train: Tensor, base: Base, seed: int, *, condition: Tensor | None, jitter: Tensor | None) -> None:
        """Fit the potentials and measure `largest_error`.

        Raises:
            UserError: the condition is not a label.
        """
        check_labels(condition)
        potentials, self.largest_error = torch.empty(len(train)), 0.0
        for label, rows in by_label(condition, len(train)):
            noise = _Noise(base, seed, label, train.device)
            points = train[rows.to(train.device)].detach().flatten(1).float()
            fitted = self._fit(points, noise)
            potentials[rows] = fitted.cpu()
            self.largest_error = max(self.largest_error, _largest_error(points, fitted, noise))
        self._state = {
            "points": train,
            "potentials": potentials,
            "largest_error": torch.tensor(self.largest_error, dtype=torch.float64),
        }
        self._state |= {} if condition is None else {"labels": condition}
        self._state |= {} if jitter is None else {"jitter": jitter}

    def state(self) -> dict[str, Tensor]:
        """The data (N, ...), their potentials (N,) and labels, and the error."""
        return dict(self._fitted())

    def load(self, state: dict[str, Tensor]) -> None:
        """Take what `state` gave, instead of `prepare`."""
        self._state, self.largest_error = dict(state), float(state["largest_error"])

    def __call__(self, x_0: Tensor, x_1: Tensor, condition: Tensor | None, generator: torch.Generator) -> Pairs:
        """Send each noise (B, ...) to its datum, among the data of the row's label.

        Raises:
            RuntimeError: before `prepare` or `load`.
        """
        fitted = {name: tensor.to(x_0.device) for name, tensor in self._fitted().items()}
        self._state = fitted  # they stay on the device
        points, chosen = fitted["points"], torch.empty(len(x_0), dtype=torch.long, device=x_0.device)
        for label, rows in by_label(condition, len(x_0)):
            members = slice(None) if label is None else (fitted["labels"] == label).nonzero().squeeze(1)
            cells = points[members].flatten(1).float(), fitted["potentials"][members]
            cell = _assign(*cells, x_0[rows.to(x_0.device)].flatten(1).float())
            chosen[rows.to(x_0.device)] = cell if label is None else members[cell]  # type: ignore[index]
        data = points[chosen].to(x_1.dtype)
        if "jitter" in fitted:
            data = data + fitted["jitter"].to(data) * torch.rand(data.shape, generator=generator).to(data)
        return Pairs(x_0, data, condition)

    def _fitted(self) -> dict[str, Tensor]:
        if self._state is None:
            raise RuntimeError("coupling=semidiscrete needs prepare or load first")
        return self._state

    def _fit(self, points: Tensor, noise: "_Noise") -> Tensor:
        """Potentials (N,) of points (N, D)."""
        if len(points) == 1:
            return torch.zeros_like(points[:, 0])
        few = noise.some(points, WARM_POINTS)
        spacing = float(_spacings(few).mean().clamp_min(1e-12))
        potentials = _smoothed(few, spacing, noise)
        if len(few) < len(points):
            potentials = _extended(few, potentials, points, spacing, noise(2 * WARM_POINTS))
        rates = self.learning_rate * _spacings(points)
        momentum, average = torch.zeros_like(potentials), potentials.clone()
        for step in range(self.iterations):
            used = _assign(points, potentials, noise(self.batch_size)).bincount(minlength=len(points))
            momentum = MOMENTUM * momentum + (1 - MOMENTUM) * (1 - used * (len(points) / self.batch_size))
            potentials = potentials + rates * (1 - step / self.iterations) ** 2 * momentum
            average += (potentials - average) / max(1, step - self.iterations // 2 + 1)
        return average - average.mean()


class _Noise:
    """Draws for one fit of the semidiscrete potentials."""

    def __init__(self, base: Base, seed: int, label: int | None, device: torch.device) -> None:
        self._base, self._device = base, device
        self._generator = seeded(seed, "semidiscrete", "all" if label is None else label)

    def __call__(self, n: int) -> Tensor:
        """Noise (n, D), float32."""
        return self._base.sample(n, self._generator).flatten(1).float().to(self._device)

    def some(self, points: Tensor, most: int) -> Tensor:
        """At most so many of the points (N, D)."""
        if len(points) <= most:
            return points
        return points[torch.randperm(len(points), generator=self._generator)[:most].to(points.device)]


def _scores(points: Tensor, potentials: Tensor, x: Tensor) -> Iterator[Tensor]:
    """g_i - |x - x_i|^2 / 2 + |x|^2 / 2 for all noises x (B, D) and points (N, D), a block of rows (b, N) at a time."""
    offsets, columns = potentials - points.square().sum(1) / 2, points.T.contiguous()
    for rows in x.split(max(1, PAIRS // len(points))):
        yield torch.addmm(offsets, rows, columns)


def _assign(points: Tensor, potentials: Tensor, x: Tensor) -> Tensor:
    """The cell of each noise x (B, D), (B,)."""
    # numpy's argmax is five times as fast as torch's on a processor
    return torch.cat(
        [
            scores.argmax(1) if scores.is_cuda else torch.from_numpy(scores.numpy().argmax(1))
            for scores in _scores(points, potentials, x)
        ]
    )


def _spacings(points: Tensor) -> Tensor:
    """Squared distance of each point (N, D) to its neighbours, (N,).

    The geometric mean of that to the nearest one and of that to the nearest in each of four parts of the data, because
    a cell's mass answers to its potential like 1 / (its width x the distance to its neighbour).
    """
    half_squares, rows = points.square().sum(1) / 2, torch.arange(len(points), device=points.device)
    nearest = []
    for part, columns in zip(*(x.tensor_split(4 if len(points) >= 8 else 1) for x in (points, rows)), strict=True):
        best, start = [], 0
        for scores in _scores(part, torch.zeros_like(part[:, 0]), points):
            scores[rows[start : start + len(scores), None] == columns] = -math.inf
            best.append(scores.amax(1))
            start += len(scores)
        nearest.append(2 * (half_squares - torch.cat(best)).clamp_min(0))
    distances = torch.stack(nearest)
    mean = distances.mean(0)
    return (mean * distances.amin(0).clamp_min(mean / 10)).sqrt()  # a close couple must move together, too


def _smoothed(points: Tensor, spacing: float, noise: _Noise) -> Tensor:
    """Potentials of few points (N, D) with a soft minimum that hardens from the cost's scale down to the spacing."""
    potentials = torch.zeros_like(points[:, 0])
    widest = max(float((noise(WARM_BATCH).mean(0) - points).square().sum(1).mean()), spacing)
    for step in range(WARM_STEPS):
        width = widest * (spacing / widest) ** (step / (WARM_STEPS - 1))
        x = noise(WARM_BATCH)
        mass = torch.zeros_like(potentials)
        for scores in _scores(points, potentials, x):
            mass += torch.softmax(scores / width, 1).sum(0) / len(x)
        potentials = potentials + width * (1 - len(points) * mass).clamp_min(-5)  # a longer step undoes the rest
    return potentials


def _extended(few: Tensor, potentials: Tensor, points: Tensor, width: float, x: Tensor) -> Tensor:
    """Potentials of all points (N, D) by a soft transform of those of a few, over noises x (B, D)."""
    level = torch.cat([torch.logsumexp(scores / width, 1) for scores in _scores(few, potentials, x)])
    offsets = -width * level  # the noise's potential, less |x|^2 / 2
    columns, half_squares = x.T.contiguous(), points.square().sum(1) / 2
    found = [
        torch.logsumexp(torch.addmm(offsets, rows, columns) / width, 1)
        for rows in points.split(max(1, PAIRS // len(x)))
    ]
    return half_squares - width * torch.cat(found)


def _largest_error(points: Tensor, potentials: Tensor, noise: _Noise) -> float:
    """max_i |N P_i - 1| on fresh noise."""
    n = len(points)
    draws = min(CHECK_PER_CELL * n, CHECK_DRAWS)
    used = torch.zeros(n, dtype=torch.long, device=points.device)
    for start in range(0, draws, CHECK_CHUNK):
        used += _assign(points, potentials, noise(min(CHECK_CHUNK, draws - start))).bincount(minlength=n)
    return float((used * (n / draws) - 1).abs().max())

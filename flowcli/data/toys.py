r"""Data made by formula: the usual 2-D targets, a Gaussian and a Gaussian mixture of any dimension.

Scale and noise are those of the published siblings (scikit-learn, FFJORD) after their scaling; every noise is an
isotropic Gaussian, so that the density is exact. Splits are drawn by `data.seed` alone.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from flowcli import memory
from flowcli.data import targets
from flowcli.data.units import to_model_units
from flowcli.dataset import SPLITS, Dataset, Mixture, Target
from flowcli.errors import UserError, boolean, integer, number
from flowcli.randomness import generator


@dataclass(kw_only=True)
class Toy(ABC):
    """A source that draws its splits from a known target.

    Attributes:
        train, validation, test: numbers of points, at least 2 each.
        seed: owns the three splits.
        standardize: give every coordinate of the training split mean 0 and standard deviation 1.
    """

    train: int
    validation: int
    test: int
    seed: int
    standardize: bool

    def __post_init__(self) -> None:
        """Check every parameter.

        Raises:
            UserError: naming the parameter and its legal range.
        """
        for split in SPLITS:
            setattr(self, split, integer(f"data.{split}", getattr(self, split), minimum=2))
        self.seed = integer("data.seed", self.seed, minimum=0)
        boolean("data.standardize", self.standardize)
        self._check()
        for split in SPLITS:  # as drawn, in data units and in model units
            points = getattr(self, split)
            memory.require(f"data.{split}={points}", 3 * 8 * points * self.dimension)

    def load(self) -> Dataset:
        """Draw the splits."""
        target = self.target()
        train, validation, test = (
            target.sample(getattr(self, split), generator(self.seed, "data", split)) for split in SPLITS
        )
        names = [f"coordinate {i}" for i in range(train.shape[1])]
        transform = to_model_units(train, names, standardize=self.standardize, source=f"data, {type(self).__name__}")
        return Dataset(
            train=train,
            validation=validation,
            test=test,
            seed=self.seed,
            transform=transform,
            target=target,
            mixture=target.mixture if isinstance(target, targets.GaussianMixture) else None,
            source={"kind": "formula", "name": type(self).__name__, "parameters": asdict(self)},
        )

    def read(self, path: Path, columns: tuple[str, ...] | None, event_shape: tuple[int, ...]) -> Tensor:
        """Events (N, D) of a file: see `flowcli.data.files.read_events`."""
        from flowcli.data.files import read_events  # here, because tables are slow to import

        return read_events(path, columns, event_shape, header="auto", delimiter="auto")

    @property
    def dimension(self) -> int:
        """Numbers of a point."""
        return 2

    @abstractmethod
    def target(self) -> Target:
        """The distribution that the splits are drawn from."""

    @abstractmethod
    def _check(self) -> None:
        """Check and convert the parameters of the shape."""


@dataclass(kw_only=True)
class Gaussian(Toy):
    """N(mean, covariance): mean (D,), covariance (D, D), as lists."""

    mean: Sequence[float]
    covariance: Sequence[Sequence[float]]

    def _check(self) -> None:
        self.mean = _vector("data.mean", self.mean)
        self.covariance = _covariance("data.covariance", self.covariance, len(self.mean))

    @property
    def dimension(self) -> int:
        """As the mean has."""
        return len(self.mean)

    def target(self) -> targets.GaussianMixture:
        """The Gaussian, as a mixture of one component."""
        return _mixture([1.0], [self.mean], [self.covariance])


@dataclass(kw_only=True)
class GaussianMixture(Toy):
    """Mixture of Gaussians: weights (K,) that sum to 1, means (K, D), covariances (K, D, D), as lists."""

    weights: Sequence[float]
    means: Sequence[Sequence[float]]
    covariances: Sequence[Sequence[Sequence[float]]]

    def _check(self) -> None:
        self.weights = _vector("data.weights", self.weights)
        total = math.fsum(self.weights)
        if min(self.weights) <= 0 or abs(total - 1) > 1e-6:
            raise UserError(f"data.weights must be positive and sum to 1, got {self.weights}")
        self.weights = [weight / total for weight in self.weights]
        components = {"data.means": self.means, "data.covariances": self.covariances}
        for name, value in components.items():
            if len(_sequence(name, value)) != len(self.weights):
                raise UserError(f"{name} must have one entry a weight: {len(self.weights)}, got {len(value)}")
        self.means = [_vector(f"data.means[{k}]", mean) for k, mean in enumerate(self.means)]
        dimension = len(self.means[0])
        for k, mean in enumerate(self.means):
            if len(mean) != dimension:
                raise UserError(f"data.means[{k}] must have {dimension} numbers like data.means[0], got {len(mean)}")
        self.covariances = [
            _covariance(f"data.covariances[{k}]", matrix, dimension) for k, matrix in enumerate(self.covariances)
        ]

    @property
    def dimension(self) -> int:
        """As the means have."""
        return len(self.means[0])

    def target(self) -> targets.GaussianMixture:
        """The mixture."""
        return _mixture(self.weights, self.means, self.covariances)


@dataclass(kw_only=True)
class GaussianRing(Toy):
    """Isotropic Gaussians, evenly spaced on a circle: modes of them, of standard deviation std."""

    modes: int
    radius: float
    std: float

    def _check(self) -> None:
        self.modes = integer("data.modes", self.modes, minimum=1, maximum=1000)
        self.radius = _size("data.radius", self.radius)
        self.std = _size("data.std", self.std)

    def target(self) -> targets.GaussianMixture:
        """The ring, as a mixture."""
        angles = [2 * math.pi * k / self.modes for k in range(self.modes)]
        means = [[self.radius * math.cos(angle), self.radius * math.sin(angle)] for angle in angles]
        variance = self.std**2
        covariance = [[variance, 0.0], [0.0, variance]]
        return _mixture([1 / self.modes] * self.modes, means, [covariance] * self.modes)


@dataclass(kw_only=True)
class Checkerboard(Toy):
    """Uniform on half the squares of a board of squares x squares that spans [-half_width, half_width]^2."""

    half_width: float
    squares: int

    def _check(self) -> None:
        self.half_width = _size("data.half_width", self.half_width)
        self.squares = integer("data.squares", self.squares, minimum=2, maximum=1000)
        if self.squares % 2:
            raise UserError(f"data.squares must be an even number >= 2, got {self.squares}")

    def target(self) -> targets.Checkerboard:
        """The board."""
        return targets.Checkerboard(self.half_width, self.squares)


@dataclass(kw_only=True)
class Circles(Toy):
    """Concentric circles of equal weight, with noise of standard deviation std."""

    radii: Sequence[float]
    std: float

    def _check(self) -> None:
        self.radii = _vector("data.radii", self.radii)
        self.radii = [_size(f"data.radii[{i}]", radius) for i, radius in enumerate(self.radii)]
        self.std = _size("data.std", self.std)

    def target(self) -> targets.Circles:
        """The circles."""
        return targets.Circles(torch.tensor(self.radii, dtype=torch.float64), self.std)


@dataclass(kw_only=True)
class Pinwheel(Toy):
    """Arms of Gaussian blobs twisted round the centre; the two spreads are before scaling."""

    arms: int
    radial_std: float
    tangential_std: float
    rate: float
    scale: float

    def _check(self) -> None:
        self.arms = integer("data.arms", self.arms, minimum=1, maximum=1000)
        self.radial_std = _size("data.radial_std", self.radial_std)
        self.tangential_std = _size("data.tangential_std", self.tangential_std)
        self.rate = number("data.rate", self.rate)
        self.scale = _size("data.scale", self.scale)

    def target(self) -> targets.Pinwheel:
        """The pinwheel."""
        return targets.Pinwheel(
            arms=self.arms,
            radial_std=self.radial_std,
            tangential_std=self.tangential_std,
            rate=self.rate,
            scale=self.scale,
        )


@dataclass(kw_only=True)
class Curve(Toy, ABC):
    """A plane curve of the given scale, with noise of standard deviation std (in data units, after scaling)."""

    scale: float
    std: float

    def _check(self) -> None:
        self.scale = _size("data.scale", self.scale)
        self.std = _size("data.std", self.std)
        try:
            self.target()
        except ValueError as error:  # the quadrature refuses noise too fine for it
            raise UserError(f"data.{error}, got {self.std:g}") from error


@dataclass(kw_only=True)
class Moons(Curve):
    """Two half circles facing each other: scikit-learn's make_moons, times scale, plus shift in both coordinates."""

    shift: float

    def _check(self) -> None:
        self.shift = number("data.shift", self.shift)
        super()._check()

    def target(self) -> targets.NoisyCurve:
        """The half circles with noise."""

        def upper(s: Tensor) -> Tensor:
            return self.scale * _polar(1.0, math.pi * s) + self.shift

        def lower(s: Tensor) -> Tensor:
            return self.scale * (torch.tensor([1.0, 0.5], dtype=s.dtype) - _polar(1.0, math.pi * s)) + self.shift

        return targets.NoisyCurve((upper, lower), exponent=1.0, std=self.std)


@dataclass(kw_only=True)
class SwissRoll(Curve):
    """The spiral r = angle = 3 pi (1/2 + u), times scale: the first and third coordinate of make_swiss_roll."""

    def target(self) -> targets.NoisyCurve:
        """The spiral with noise."""

        def spiral(s: Tensor) -> Tensor:
            angle = 3 * math.pi * (0.5 + s)
            return self.scale * _polar(angle, angle)

        return targets.NoisyCurve((spiral,), exponent=1.0, std=self.std)


@dataclass(kw_only=True)
class SCurve(Curve):
    """Two three-quarter circles joined to an S, times scale: the first and third coordinate of make_s_curve."""

    def target(self) -> targets.NoisyCurve:
        """The S with noise."""

        def letter(s: Tensor) -> Tensor:
            angle = 3 * math.pi * (s - 0.5)
            return self.scale * torch.stack([angle.sin(), angle.sign() * (angle.cos() - 1)], 1)

        return targets.NoisyCurve((letter,), exponent=1.0, std=self.std)


@dataclass(kw_only=True)
class Spirals(Curve):
    """Two arms r = angle = 2 pi turns sqrt(u), one the other turned by pi, times scale.

    As in FFJORD but for its uniform jitter of width scale/2, which is left out.
    """

    turns: float

    def _check(self) -> None:
        self.turns = _size("data.turns", self.turns)
        super()._check()

    def target(self) -> targets.NoisyCurve:
        """The arms with noise."""

        def arm(s: Tensor) -> Tensor:
            angle = 2 * math.pi * self.turns * s
            return self.scale * _polar(angle, math.pi - angle)

        return targets.NoisyCurve((arm, lambda s: -arm(s)), exponent=0.5, std=self.std)


def _polar(radius: Tensor | float, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def _mixture(
    weights: Sequence[float], means: Sequence[Sequence[float]], covariances: Sequence[Sequence[Sequence[float]]]
) -> targets.GaussianMixture:
    parts = (torch.tensor(part, dtype=torch.float64) for part in (weights, means, covariances))
    return targets.GaussianMixture(Mixture(*parts))


def _size(name: str, value: object) -> float:
    """A length that can be squared and divided by in double precision."""
    return number(name, value, minimum=1e-100, maximum=1e100)


def _sequence(name: str, value: object) -> Sequence[object]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) == 0:
        raise UserError(f"{name} must be a list that is not empty, got {value!r}")
    return value


def _vector(name: str, value: object) -> list[float]:
    return [number(f"{name}[{i}]", item) for i, item in enumerate(_sequence(name, value))]


def _covariance(name: str, value: object, dimension: int) -> list[list[float]]:
    rows = [_vector(f"{name}[{i}]", row) for i, row in enumerate(_sequence(name, value))]
    if len(rows) != dimension or any(len(row) != dimension for row in rows):
        raise UserError(f"{name} must be a list of {dimension} lists of {dimension} numbers, like the mean")
    matrix = torch.tensor(rows, dtype=torch.float64)
    if not torch.equal(matrix, matrix.T) or int(torch.linalg.cholesky_ex(matrix).info) != 0:
        raise UserError(f"{name} must be symmetric and positive definite, got {rows}")
    return rows

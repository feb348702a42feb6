"""A flow and test data in, a flat dict of metrics out; every distance beside what a perfect model would score."""

import copy
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from flowcli import metrics
from flowcli.bases import Base, GaussianMixture
from flowcli.dataset import Dataset, Mixture
from flowcli.diagnostics import continuity_residual, fokker_planck_residual, velocity_error
from flowcli.errors import UserError, boolean, integer
from flowcli.flows.augmented import AugmentedFlow
from flowcli.flows.base import Flow, Result
from flowcli.flows.continuous import ContinuousFlow
from flowcli.flows.fields import PathField, beside
from flowcli.flows.oracle import ClosedForm, field_of_mixture, field_of_points, noise_of
from flowcli.randomness import generator
from flowcli.resolution import rescored, spread_out
from flowcli.sde import Stochastic

ORACLE_ROWS, RESIDUAL_ROWS = 4096, 1024
"""Pairs behind the velocity error, and behind the continuity residual, which needs an exact divergence at each."""
RESIDUAL_CUT = 0.02
"""The residual is taken for t in [0.02, 0.98]: nearer to the data its terms grow like 1/sigma^2 and hide all others."""

CHECK_ROWS = 200
"""Test points that an evaluation solves again, more tightly, to see by how much its NLL is off."""
TWO_SAMPLE = ("w2", "mmd", "energy_distance", "c2st")
FLOOR = "_floor"

Metrics = dict[str, float | int | str | bool]


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found.

    Attributes:
        metrics: flat names and values.
        units: what lies behind the means, float64: `log_prob`, `true_log_prob` and `bits_per_dim` (N,), one number a
            test point; the two-sample metrics and their floors (K,), one number a draw.
        samples: (draws * points, ...), data units.
    """

    metrics: Metrics
    units: dict[str, Tensor]
    samples: Tensor


class Evaluation:
    """How much an evaluation may cost."""

    def __init__(
        self,
        draws: int,
        draw_points: int,
        batch_size: int,
        trajectories: int,
        dequantization_draws: int,
        velocity_error: bool | str,
        pictures: bool,
    ) -> None:
        """Check the settings.

        Args:
            draws: two-sample metrics are averaged over this many independent pairs of samples.
            draw_points: points of each.
            batch_size: rows solved at once.
            trajectories: paths behind the path energy.
            dequantization_draws: draws of uniform noise behind bits/dim of discrete data.
            velocity_error: hold the field against the closed-form one: true; false; or auto, where the data is a
                Gaussian mixture and the ends are independent.
            pictures: whether a training ends with pictures.
        """
        self.draws = integer("draws", draws, minimum=2, maximum=10_000)
        self.draw_points = integer("draw_points", draw_points, minimum=2, maximum=100_000)
        self.batch_size = integer("batch_size", batch_size, minimum=1, maximum=1 << 30)
        self.trajectories = integer("trajectories", trajectories, minimum=2, maximum=100_000)
        self.dequantization_draws = integer("dequantization_draws", dequantization_draws, minimum=1, maximum=10_000)
        auto = velocity_error == "auto"
        self.velocity_error = "auto" if auto else boolean("velocity_error (auto, or a truth value)", velocity_error)

        self.pictures = boolean("pictures", pictures)

    def require(self, flow: Flow, dataset: Dataset) -> None:
        """Refuse what was asked for and cannot be measured.

        Raises:
            UserError: velocity_error=true where there is no closed-form field.
        """
        reason = None if self.velocity_error is not True else _no_closed_form(flow)
        if reason is not None:
            raise UserError(f"evaluation.velocity_error=true: there is no closed form of this field: {reason}")

    @torch.no_grad()
    def __call__(self, flow: Flow, dataset: Dataset) -> Evaluated:
        """All metrics of a flow on the test split.

        `nll` is in nats an event, in data units; `*_floor` is the same metric between two sets of true samples. The
        noise belongs to the data's seed, as the test points do: flows of one data set meet the same of both.
        """
        metrics: Metrics = {"parameters": flow.trainable_parameters()}
        found, units = self.likelihood(flow, dataset)
        metrics |= found
        points = min(self.draw_points, len(dataset.test))
        began = time.perf_counter()
        result = flow.sample(self.draws * points, seed=dataset.seed, batch_size=self.batch_size)
        metrics["sample_seconds_per_1000"] = _per_1000(began, self.draws * points)
        samples = result.value.cpu()
        found, distances = self.two_sample(samples, dataset, points)
        metrics |= {"nfe_sample": result.nfe} | found
        if isinstance(flow, ContinuousFlow):
            metrics |= self.path(flow, seed=dataset.seed)
            metrics |= base_divergence(flow, dataset) | self.against_oracle(flow, dataset)
        return Evaluated(metrics, units | distances, samples)

    def likelihood(self, flow: Flow, dataset: Dataset) -> tuple[Metrics, dict[str, Tensor]]:
        """NLL of the test split with its error, beside the true density's on the same points where that is known.

        Also the logarithms (N,) behind it.
        """
        x = dataset.points("test")
        began = time.perf_counter()
        try:
            result = flow.log_prob(x, batch_size=self.batch_size)
        except UserError as error:  # a flow that has no density says why; its samples are measured all the same
            return {"nll_missing": str(error)}, {}
        log_prob, truth = result.value.cpu(), true_log_prob(x, dataset)
        found = scores(flow, result) | {"log_prob_seconds_per_1000": _per_1000(began, len(x))}
        found["nll_standardised"] = float(found["nll"]) + float(dataset.transform.log_det)
        change = rescored(flow, spread_out(x, CHECK_ROWS), seed=0, batch_size=self.batch_size).change
        found |= {"nll_solver_error": change.mean, "nll_solver_error_stderr": change.stderr}
        baseline = gaussian_nll(dataset.points("train"), x)
        found |= {} if baseline is None else {"nll_gaussian": baseline}
        found |= against_truth(log_prob, truth, dataset)
        units = {"log_prob": log_prob} | ({} if truth is None else {"true_log_prob": truth})
        if dataset.discrete:
            draws = [log_prob]
            for draw in range(1, self.dequantization_draws):
                draws.append(flow.log_prob(dataset.points("test", draw), batch_size=self.batch_size).value.cpu())
            bits = bits_per_dim(torch.stack(draws), math.prod(dataset.event_shape))
            found |= discrete_likelihood(bits, len(draws))
            units["bits_per_dim"] = bits
        return found, {name: values.double() for name, values in units.items()}

    def two_sample(self, samples: Tensor, dataset: Dataset, points: int) -> tuple[Metrics, dict[str, Tensor]]:
        """Distances of samples (draws * points, ...) from the truth, with errors and floors; also draw by draw."""
        truth = Truth(dataset, points)
        bandwidth = metrics.median_bandwidth(truth(0, "bandwidth"))
        values: dict[str, list[float]] = {name + suffix: [] for name in TWO_SAMPLE for suffix in ("", FLOOR)}
        for draw, part in zip(range(self.draws), samples.split(points), strict=True):
            true = truth(draw, "truth")
            kernels = metrics.mmd_and_energy(true, bandwidth=bandwidth)
            for suffix, x in (("", part), (FLOOR, truth(draw, "second truth"))):
                w2 = metrics.wasserstein_2(x, true, generator=generator(dataset.seed, "slices"))
                measured = (w2, *kernels(x), metrics.classifier_accuracy(x, true))
                for name, value in zip(TWO_SAMPLE, measured, strict=True):
                    values[name + suffix].append(value)
        found: Metrics = {}
        draws = {key: torch.tensor(each, dtype=torch.float64) for key, each in values.items()}
        for key, each in draws.items():
            mean = metrics.mean_and_stderr(each)
            found |= {key: mean.mean, f"{key}_stderr": mean.stderr}
        return found, draws

    def path(self, flow: ContinuousFlow, *, seed: int) -> Metrics:
        """Energy of the model's own trajectories in data units, how far it is from optimal transport's, and their bend.

        None for an SDE, whose paths have no velocity.
        """
        if isinstance(flow.solver, Stochastic):
            return {}
        way = flow.trajectory(self.trajectories, seed=seed, points=101)
        energy = metrics.path_energy(way.states.cpu(), way.times.cpu())
        slices = generator(seed, "slices")
        w2 = metrics.wasserstein_2(way.states[0].cpu(), way.states[-1].cpu(), generator=slices)
        return {
            "path_energy": energy,
            "normalized_path_energy": metrics.normalized_path_energy(energy, w2**2),
            "straightness": metrics.straightness(way.states.cpu(), way.times.cpu()),
        }

    def against_oracle(self, flow: ContinuousFlow, dataset: Dataset) -> Metrics:
        """Relative error of the velocity, and the residual of the continuity equation, against the closed-form field.

        Of the target where it is a mixture; else, and only if asked for, of the training points, which a flow that
        does not memorise them never reaches.
        """
        known = dataset.mixture is not None
        if self.velocity_error is False or _no_closed_form(flow) or (self.velocity_error == "auto" and not known):
            return {}
        field = copy.deepcopy(flow.field).cpu().double()
        assert isinstance(field, PathField)
        moments, transform = field.moments, copy.deepcopy(flow.transform).cpu()
        base = noise_of(moments)
        draws = generator(dataset.seed, "oracle")
        if dataset.mixture is not None and dataset.target is not None:
            oracle: ClosedForm = field_of_mixture(dataset.mixture.through(transform), field.path, base)
            x_1, suffix = transform(dataset.target.sample(ORACLE_ROWS, draws)), ""
        else:
            train = transform(dataset.points("train"))
            oracle, suffix = field_of_points(train, field.path, base), "_train"
            x_1 = train[torch.randint(len(train), (ORACLE_ROWS,), generator=draws)]
        x_0, u = base.sample(len(x_1), draws).double(), torch.rand(len(x_1), generator=draws, dtype=torch.float64)
        error = velocity_error(field, oracle, x_0, x_1, u)
        found: Metrics = {f"velocity_error{suffix}": error.relative, f"velocity_error{suffix}_stderr": error.stderr}
        if suffix:
            return found
        rows = RESIDUAL_ROWS
        u = u[:rows].clamp(RESIDUAL_CUT, 1 - RESIDUAL_CUT)
        c = field.path.schedule(u)
        x_t = beside(c.alpha, x_1) * x_1[:rows] + beside(c.sigma, x_0) * x_0[:rows]
        squared = metrics.mean_and_stderr(continuity_residual(field, oracle, x_t, u).square())
        root = math.sqrt(squared.mean)
        stderr = squared.stderr / (2 * root) if root > 0 else 0.0
        found |= {"continuity_residual": root, "continuity_residual_stderr": stderr}
        if isinstance(flow.solver, Stochastic):  # its drift has the score's error in it, too
            g = flow.solver.squared_diffusion(field.path, u).sqrt()
            squared = metrics.mean_and_stderr(fokker_planck_residual(field, oracle, x_t, u, g).square())
            found["fokker_planck_residual"] = math.sqrt(squared.mean)
        return found


def _no_closed_form(flow: Flow) -> str | None:
    """Why the marginal field of this flow's path is not known, if it is not."""
    if isinstance(flow, AugmentedFlow):
        return "the flow has extra coordinates (model.augment_dim=0)"
    if not isinstance(flow, ContinuousFlow):
        return "this model has no velocity"
    return flow.field.no_score


class Truth:
    """True samples: fresh ones where the distribution is known, else subsets of the splits that were not fitted."""

    def __init__(self, dataset: Dataset, points: int) -> None:
        self._dataset, self._points = dataset, points

    def __call__(self, draw: int, stream: str) -> Tensor:
        """Draw number `draw` of a stream, (points, ...)."""
        source = generator(self._dataset.seed, stream, draw)
        if self._dataset.target is not None:
            return self._dataset.target.sample(self._points, source)
        # two halves of the truth that share no point: the test split, and the training split for the floor's other side
        pool = self._dataset.points("train" if stream == "second truth" else "test")
        return pool[torch.randperm(len(pool), generator=source)[: self._points]]


def scores(flow: Flow, result: Result) -> Metrics:
    """NLL with its error, and what it was computed by, out of log-densities (N,)."""
    log_prob = result.value.cpu()
    nll, inside = metrics.mean_and_stderr(-log_prob), torch.isfinite(log_prob)
    found: Metrics = {"nll": nll.mean, "nll_stderr": nll.stderr, "nfe_log_prob": result.nfe}
    if not bool(inside.all()):  # a base without tails: these points cannot come out of this flow
        found |= {"outside": 1 - float(inside.double().mean()), "nll_inside": -float(log_prob[inside].mean())}
    if isinstance(flow, AugmentedFlow):
        found["augment_draws"] = flow.draws
    return found


def true_log_prob(x: Tensor, dataset: Dataset) -> Tensor | None:
    """The true density's logarithm at x (N, ...), (N,), where it is known."""
    return None if dataset.target is None else dataset.target.log_prob(x)


def against_truth(log_prob: Tensor, truth: Tensor | None, dataset: Dataset) -> Metrics:
    """The true density's NLL out of its logarithms (N,), and the paired gap of log_prob (N,); {} where unknown."""
    if dataset.target is None or truth is None:
        return {}
    gap = metrics.mean_and_stderr(truth - log_prob)
    found: Metrics = {"nll_floor": float(-truth.mean()), "nll_gap": gap.mean, "nll_gap_stderr": gap.stderr}
    return found | ({} if dataset.target.entropy is None else {"entropy": dataset.target.entropy})


def gaussian_nll(train: Tensor, x: Tensor) -> float | None:
    """NLL of x (N, ...) under the full-covariance Gaussian fitted to train (M, ...): what a flow has to beat.

    None where the fit has no density: too few rows, or columns that depend on each other linearly.
    """
    train, x = train.flatten(1), x.flatten(1)
    mean, scale = train.mean(0), train.std(0)
    correlation = torch.cov(((train - mean) / scale).T, correction=0).reshape(train.shape[1], -1)
    if len(train) <= train.shape[1] or float(torch.linalg.eigvalsh(correlation)[0]) < 1e-9:
        return None
    factor = torch.linalg.cholesky(correlation)
    white = torch.linalg.solve_triangular(factor, ((x - mean) / scale).T, upper=False)
    volume = factor.diagonal().log().sum() + scale.log().sum() + x.shape[1] * math.log(2 * math.pi) / 2
    return float(white.square().sum(0).mean() / 2 + volume)


def bits_per_dim(log_prob: Tensor, dimensions: int) -> Tensor:
    """Bits/dim (N,) of whole numbers from log-densities (K, N) under K draws of uniform dequantisation noise."""
    return -metrics.log_mean_exp(log_prob, 0) / (dimensions * math.log(2))


def discrete_likelihood(bits: Tensor, draws: int) -> Metrics:
    """The mean of bits/dim (N,) that come from so many draws."""
    value = metrics.mean_and_stderr(bits)
    return {"bits_per_dim": value.mean, "bits_per_dim_stderr": value.stderr, "dequantization_draws": draws}


def _per_1000(began: float, rows: int) -> float:
    """Seconds since then for each thousand of these rows."""
    return (time.perf_counter() - began) * 1000 / max(rows, 1)


def base_divergence(flow: ContinuousFlow, dataset: Dataset) -> Metrics:
    """KL(p_0 || base) in nats, by sampling, where a path starts at smoothed data (VP, VE) that is a mixture."""
    field = flow.field
    if not isinstance(field, PathField) or field.path.starts_at_noise or dataset.mixture is None:
        return {}
    if isinstance(flow, AugmentedFlow):
        return {}
    true_start = _true_start(flow, field, dataset.mixture)
    x = true_start.sample(20_000, generator(dataset.seed, "base")).double()
    base: Base = copy.deepcopy(flow.start).cpu().double()
    kl = metrics.mean_and_stderr(true_start.log_prob(x) - base.log_prob(x))
    return {"base_kl": kl.mean, "base_kl_stderr": kl.stderr}


def _true_start(flow: ContinuousFlow, field: PathField, mixture: Mixture) -> GaussianMixture:
    alpha, sigma = field.path.at(1.0)
    transform, moments = copy.deepcopy(flow.transform).cpu(), copy.deepcopy(field.moments).cpu().double()
    data = mixture.through(transform)
    noise = sigma**2 * moments.var_0 * torch.eye(data.means.shape[1], dtype=torch.float64)
    means = alpha * data.means + sigma * moments.mean_0.flatten()
    return GaussianMixture(data.weights, means, alpha**2 * data.covariances + noise, flow.event_shape)

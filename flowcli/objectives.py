r"""Losses of a batch.

Regressions on a path differ in one weight on $|F - r|^2$ for the same network output F (see `parametrizations`);
maximum likelihood needs no path.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowcli.bases import Uniform
from flowcli.dataset import TrainingData
from flowcli.divergence import Divergence
from flowcli.ends import Ends
from flowcli.errors import UserError, choice, number
from flowcli.flows.augmented import AugmentedFlow
from flowcli.flows.base import Flow
from flowcli.flows.continuous import ContinuousFlow, Graphs
from flowcli.flows.discrete import DiscreteFlow
from flowcli.flows.fields import LearnedField
from flowcli.flows.oracle import ClosedForm, field_of_mixture, field_of_points
from flowcli.paths import Schedule
from flowcli.solvers import Solver, tightened

END = 1e-5
"""Times are drawn from [END, 1 - END]: the ends have measure zero, and weights may be infinite there."""
REGRESSION_ROWS, COUPLED_ROWS, SOLVED_ROWS = 100_000, 16_384, 2_048
"""Rows behind a validation loss: the scatter of its noise must stay below what late training still gains."""

WEIGHTINGS = ("unit", "native")


class Example(NamedTuple):
    """Batches with all that is random about them.

    Attributes:
        x_1: (B, ...), states in model units; `condition` has one row each, or is None.
        x_0: (B, ...), the noise of each, where the objective has pairs.
        u: (B,), 1 - t, where the objective draws times.
        directions: of the divergence, where the objective solves.
    """

    x_1: Tensor
    condition: Tensor | None = None
    x_0: Tensor | None = None
    u: Tensor | None = None
    directions: Tensor | None = None

    def part(self, rows: slice) -> "Example":
        """Some of the rows."""
        return Example(**_part(self, rows))


class Inputs(NamedTuple):
    """All that a loss needs besides weights, so that a step computes nothing that weights do not change.

    Attributes:
        x: (B, ...), what the network sees of x_t, or the state that is solved.
        condition: one row each, or None.
        time: (B,), what the network sees of time, of a regression.
        target: (B, ...), what it should put out.
        weight: (B,), on the square, or None.
        directions: of the divergence, where the objective solves.
    """

    x: Tensor
    condition: Tensor | None = None
    time: Tensor | None = None
    target: Tensor | None = None
    weight: Tensor | None = None
    directions: Tensor | None = None

    def part(self, rows: slice) -> "Inputs":
        """Some of the rows."""
        return Inputs(**_part(self, rows))

    def split(self, rows: int) -> "list[Inputs]":
        """The same rows in pieces of so many."""
        return [self.part(slice(first, first + rows)) for first in range(0, len(self.x), rows)]


def _part(batch: Example | Inputs, rows: slice) -> dict[str, Any]:
    """Some of the rows of each tensor, by name; directions that all rows share stay whole."""
    found = {name: None if value is None else value[rows] for name, value in batch._asdict().items()}
    if batch.directions is not None:
        found["directions"] = batch.directions[:, rows] if batch.directions.shape[1] > 1 else batch.directions
    return found


def stratified(n: int, generator: torch.Generator, batches: int = 1) -> Tensor:
    """One uniform draw in each of n equal parts of (0, 1), (n,): the variance over time of a batch's loss is gone.

    batches: so many times, one behind the other, (batches * n,).
    """
    return ((torch.rand(batches, n, generator=generator) + torch.arange(n)) / n).flatten()


class Objective(ABC):
    """A loss, with what it draws, what follows from that alone, and what the weights make of it kept apart.

    Attributes:
        coupling_seconds: time spent in couplings so far.
        graphs: compiled parts of a loss that cannot be one graph as a whole, because it solves an ODE; None: plain.
    """

    coupling_seconds: float = 0.0
    graphs: Graphs | None = None

    @property
    def solves(self) -> bool:
        """Whether a loss solves an ODE."""
        return False

    @property
    def plain(self) -> str | None:
        """Why no part of a loss can be compiled; None: it can."""
        return None

    def regressed(self, flow: Flow) -> nn.Module | None:
        """The network whose mean square distance from `Inputs.target`, weighted, is the loss; None: it is another."""
        return None

    @abstractmethod
    def prepare(self, flow: Flow, data: TrainingData, ends: Ends | None) -> None:
        """Fit what depends on the flow and the data, once, before training.

        Raises:
            UserError: this flow cannot be trained so.
        """

    @abstractmethod
    def validation_rows(self, available: int) -> int:
        """How many rows a validation loss is taken over, of a split with so many."""

    @abstractmethod
    def draw(
        self,
        flow: Flow,
        x_1: Tensor,
        condition: Tensor | None,
        generator: torch.Generator,
        *,
        batch_size: int | None = None,
    ) -> Example:
        """All random numbers of x_1 (N, ...) in model units: of one batch, or of several, of batch_size rows each."""

    @abstractmethod
    def inputs(self, flow: Flow, example: Example) -> Inputs:
        """What the loss needs of an example (B, ...)."""

    @abstractmethod
    def loss(self, flow: Flow, inputs: Inputs) -> Tensor:
        """Of each row, (B,)."""

    def held_out(self, flow: Flow, inputs: Inputs) -> Tensor:
        """What checkpoints are chosen by, (B,): the loss itself, without what only guides the training."""
        return self.loss(flow, inputs)

    def __call__(self, flow: Flow, example: Example) -> Tensor:
        """The loss of each row, (B,)."""
        return self.loss(flow, self.inputs(flow, example))


# ---------------------------------------------------------------- regressions on a path
class Regression(Objective):
    """|F - r|^2 at random times, weighted. weighting=unit counts every time alike, whatever is regressed.

    Another weighting is the loss as it is written in the quantity itself; such weights may diverge at an end, so half
    of the times are drawn from the weight, which keeps the variance of the estimate bounded.
    """

    weightings: tuple[str, ...] = WEIGHTINGS

    def __init__(self, weighting: str) -> None:
        """weighting: unit, or one of the class's own."""
        self.weighting = choice("weighting", weighting, self.weightings)
        self._law: _HalfByWeight | None = None
        self._ends: Ends | None = None

    @abstractmethod
    def weight(self, c: Schedule, field: LearnedField) -> Tensor:
        """The weight on |F - r|^2 that the loss in the quantity itself has, of the schedule's shape."""

    def prepare(self, flow: Flow, data: TrainingData, ends: Ends | None) -> None:
        """Tabulate the weight's law over time."""
        field = learned_field(flow)
        self._ends = ends
        self._law = None if self.weighting == "unit" else _HalfByWeight(lambda u: self._weight(field, u))

    def _weight(self, field: LearnedField, u: Tensor) -> Tensor:
        return self.weight(field.path.schedule(field.parametrization.clip(u).to(field.moments.var_1)), field).to(u)

    def regressed(self, flow: Flow) -> nn.Module:
        """The field's."""
        return learned_field(flow).network

    def validation_rows(self, available: int) -> int:
        """Many times the split, with fresh noise for each; fewer where a coupling has to be solved."""
        return REGRESSION_ROWS if self._prepared_ends().coupling.independent else COUPLED_ROWS

    def draw(
        self,
        flow: Flow,
        x_1: Tensor,
        condition: Tensor | None,
        generator: torch.Generator,
        *,
        batch_size: int | None = None,
    ) -> Example:
        """Pairs and times."""
        assert isinstance(flow, ContinuousFlow)
        ends, state = self._prepared_ends(), flow.lift(x_1, generator)
        began = time.perf_counter()
        batch_size = len(x_1) if batch_size is None else batch_size
        pairs = ends.draw(state, condition, generator, batch_size=batch_size)
        if not ends.coupling.independent:
            self.coupling_seconds += time.perf_counter() - began
        u = self.times(batch_size, generator, len(pairs.x_1) // batch_size).to(x_1)
        return Example(pairs.x_1, pairs.condition, pairs.x_0, u)

    def times(self, n: int, generator: torch.Generator, batches: int = 1) -> Tensor:
        """u of so many batches of n, (batches * n,): uniform, or by the weight's law."""
        uniform = stratified(n, generator, batches)
        return uniform.clamp(END, 1 - END) if self.weighting == "unit" else self._prepared().quantile(uniform)

    @torch.no_grad()
    def inputs(self, flow: Flow, example: Example) -> Inputs:
        """x_t as the network sees it, the target that its ends make, and the weight."""
        field, x_0, u = learned_field(flow), example.x_0, example.u
        assert x_0 is not None and u is not None
        c = field.schedule(example.x_1, u)
        x_t = c.alpha * example.x_1 + c.sigma * x_0
        x, time, c = field.shown(x_t, u)
        target = field.parametrization.target(*self.ends(x_t, x_0, example.x_1, c), c, field.moments)
        weight = None if self.weighting == "unit" else self._weight(field, u) * self._prepared().correction(u)
        return Inputs(x, example.condition, time, target, weight)

    def ends(self, x_t: Tensor, x_0: Tensor, x_1: Tensor, c: Schedule) -> tuple[Tensor, Tensor]:
        """The ends (B, ...) that make the target: those that were drawn."""
        return x_0, x_1

    def loss(self, flow: Flow, inputs: Inputs) -> Tensor:
        """Mean square over the event's coordinates, weighted, (B,)."""
        output = self.regressed(flow)(inputs.x, inputs.time, inputs.condition)
        loss = (output - inputs.target).square().flatten(1).mean(1)
        return loss if inputs.weight is None else inputs.weight * loss

    def _prepared(self) -> "_HalfByWeight":
        if self._law is None:
            raise RuntimeError(
                f"weighting={self.weighting} needs prepare(...) first: its law of time depends on the path"
            )
        return self._law

    def _prepared_ends(self) -> Ends:
        if self._ends is None:
            raise RuntimeError("a regression needs prepare(...) with a base and a coupling first")
        return self._ends


class FlowMatching(Regression):
    r"""Conditional flow matching, $E |v_\theta(x_t) - (\alpha' x_1 + \sigma' x_0)|^2$ (2210.02747; notes 001 V)."""

    def weight(self, c: Schedule, field: LearnedField) -> Tensor:
        """(dv/dF)^2; on VP it diverges like 1/u."""
        return field.parametrization.velocity_gain(c, field.moments).square()


class NoisePrediction(Regression):
    r"""$E |\hat x_0 - x_0|^2$, the usual loss of diffusion models (arXiv 2006.11239; notes 004)."""

    def weight(self, c: Schedule, field: LearnedField) -> Tensor:
        """(dx_0/dF)^2."""
        return field.parametrization.gains(c, field.moments)[0].square()


class DataPrediction(Regression):
    r"""$E |\hat x_1 - x_1|^2$: a denoiser."""

    def weight(self, c: Schedule, field: LearnedField) -> Tensor:
        """(dx_1/dF)^2."""
        return field.parametrization.gains(c, field.moments)[1].square()


class ScoreMatching(Regression):
    r"""Denoising score matching, $E \lambda_t |s_\theta(x_t) - \nabla \log p_t(x_t | x_1)|^2$ (notes 004).

    weighting: unit; native with $\lambda = \sigma^2$, the noise loss; uniform with $\lambda = 1$; likelihood with
    $\lambda = g^2$ of the path's own diffusion, which bounds the likelihood of its SDE (arXiv 2101.09258).
    """

    weightings = ("unit", "native", "uniform", "likelihood")

    def prepare(self, flow: Flow, data: TrainingData, ends: Ends | None) -> None:
        """Tabulate the weight's law.

        Raises:
            UserError: there is no score to match.
        """
        reason = learned_field(flow).no_score
        if reason is not None:
            raise UserError(f"objective=score: there is no score to match: {reason}")
        super().prepare(flow, data, ends)

    def weight(self, c: Schedule, field: LearnedField) -> Tensor:
        r"""$\lambda (ds/dF)^2$ with $s = (m_0 - x_0)/(\sigma b^2)$."""
        noise = (field.parametrization.gains(c, field.moments)[0] / field.moments.var_0).square()
        match self.weighting:
            case "native":
                return noise
            case "uniform":
                return noise / c.sigma.square()
        # g^2 / sigma^2 with g^2 = 2 sigma (sigma alpha' / alpha - sigma')
        return noise * 2 * (c.d_alpha * c.sigma - c.d_sigma * c.alpha) / (c.sigma * c.alpha)


class MarginalMatching(FlowMatching):
    r"""$E |v_\theta(x_t) - u_t(x_t)|^2$ with the closed-form marginal field u: the notes' L_FM (000, 001 V, 004).

    It has the gradient of conditional flow matching (arXiv 2210.02747, theorem 2) and less noise, where u is known.
    """

    def __init__(self, weighting: str, over: str) -> None:
        """over: target (a Gaussian mixture) or train (the training points); weighting as for flow matching."""
        super().__init__(weighting)
        self.over = choice("over", over, ("target", "train"))
        self._oracle: ClosedForm | None = None

    def prepare(self, flow: Flow, data: TrainingData, ends: Ends | None) -> None:
        """Build the closed-form field in the flow's units and precision.

        Raises:
            UserError: there is none.
        """
        field = learned_field(flow)
        if isinstance(flow, AugmentedFlow):
            raise UserError("objective=marginal: there is no closed form with extra coordinates (model.augment_dim=0)")
        if field.no_score is not None:
            raise UserError(f"objective=marginal: there is no closed form of the marginal field: {field.no_score}")
        assert ends is not None
        if self.over == "train" and data.jitter is not None:
            raise UserError(
                "objective.over=train: dequantised data are no fixed points, so they have no closed form; "
                "say data.dequantize=false, or another objective"
            )
        if self.over == "train":
            oracle: ClosedForm = field_of_points(data.train, field.path, ends.base)
        elif data.mixture is not None:
            oracle = field_of_mixture(data.mixture, field.path, ends.base)
        else:
            raise UserError(
                "objective=marginal: this data is no Gaussian mixture; objective.over=train takes the training points"
            )
        self._oracle = oracle.to(device=data.train.device, dtype=data.train.dtype)
        super().prepare(flow, data, ends)

    def ends(self, x_t: Tensor, x_0: Tensor, x_1: Tensor, c: Schedule) -> tuple[Tensor, Tensor]:
        """Their conditional means at x_t, (B, ...) each."""
        assert self._oracle is not None
        return self._oracle.ends(x_t, c.alpha, c.sigma)


class _HalfByWeight:
    """The law (uniform + weight / its integral) / 2 on [END, 1 - END], piecewise uniform on a grid fine at the data."""

    def __init__(self, weight: Callable[[Tensor], Tensor]) -> None:
        self._edges = torch.logspace(-5, 0, 4097, dtype=torch.float64).clamp(END, 1 - END)
        middle, width = (self._edges[1:] * self._edges[:-1]).sqrt(), self._edges.diff()
        uniform, weighted = width / width.sum(), weight(middle) * width
        cells = (uniform + weighted / weighted.sum()) / 2
        self._cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), cells.cumsum(0)])
        self._uniform_over_law = uniform / cells

    def quantile(self, uniform: Tensor) -> Tensor:
        """Times (n,) at levels (n,) of the distribution function."""
        level = uniform.double() * self._cumulative[-1]
        cell = self._cell(self._cumulative, level)
        inside = (level - self._cumulative[cell]) / (self._cumulative[cell + 1] - self._cumulative[cell])
        return (self._edges[cell] + inside * (self._edges[cell + 1] - self._edges[cell])).float()

    def correction(self, u: Tensor) -> Tensor:
        """Density of the uniform law over that of this one at u (n,): what keeps the estimate unbiased."""
        return self._uniform_over_law[self._cell(self._edges, u.double().cpu())].to(u)

    def _cell(self, edges: Tensor, value: Tensor) -> Tensor:
        return (torch.searchsorted(edges, value, right=True) - 1).clamp(0, len(edges) - 2)


# ---------------------------------------------------------------- maximum likelihood
class MaximumLikelihood(Objective):
    r"""$-\log p_\theta(x)$ in model units, nats an event (notes 000, 001 IV, 002, 003, 004).

    For discrete flows by the change of variables; for continuous ones through an ODE solve, with the regularisers of
    arXiv 2002.02798 if wanted: $w_K \int |v|^2 dt + w_J \int |e^T J|^2 dt$.
    """

    def __init__(
        self, solver: Solver | None, divergence: Divergence | None, gradient: str, kinetic: float, jacobian: float
    ) -> None:
        """Take what a continuous flow is solved with in training; None for a flow that solves nothing.

        Args:
            solver: in training alone; the run's own solver scores the result.
            divergence: in training alone.
            gradient: direct (through the solver's steps) or adjoint (an ODE of its own, backwards; less memory).
            kinetic, jacobian: the weights w_K and w_J.
        """
        self.solver, self.divergence = solver, divergence
        for name, value, kind in (("solver", solver, Solver), ("divergence", divergence, Divergence)):
            if value is not None and not isinstance(value, kind):
                raise UserError(f"{name}: want a {name} for ODEs, not {type(value).__name__}")
        self.gradient = choice("gradient", gradient, ("direct", "adjoint"))
        self.kinetic = number("kinetic", kinetic, minimum=0, maximum=1e6)
        self.jacobian = number("jacobian", jacobian, minimum=0, maximum=1e6)

    @property
    def solves(self) -> bool:
        """For a continuous flow."""
        return self.solver is not None

    @property
    def plain(self) -> str | None:
        """The adjoint's gradients are an ODE of their own."""
        return "objective.gradient=adjoint is never compiled" if self.gradient == "adjoint" else None

    def prepare(self, flow: Flow, data: TrainingData, ends: Ends | None) -> None:
        """Nothing to fit.

        Raises:
            UserError: the flow's kind and these settings do not go together.
        """
        if ends is not None and not ends.coupling.independent:
            raise UserError("objective=mle has no pairs: it takes coupling=none, which it brings along")
        settings = (self.solver, self.divergence)
        if isinstance(flow, ContinuousFlow) and None in settings:
            raise UserError(
                "objective=mle solves an ODE for model=cnf: objective.solver and objective.divergence are null"
            )
        if isinstance(flow, DiscreteFlow) and (settings != (None, None) or self.gradient != "direct"):
            raise UserError(
                "objective.solver, .divergence and .gradient belong to continuous flows; this model solves nothing"
            )
        if isinstance(flow, ContinuousFlow) and not flow.start.has_density:
            raise UserError("objective=mle: base=data has no density, it is known by its points alone")
        if isinstance(flow, ContinuousFlow | DiscreteFlow) and isinstance(flow.start, Uniform):
            raise UserError("objective=mle: base=uniform has no tails, so the first data outside it have likelihood 0")
        if isinstance(flow, DiscreteFlow) and (self.kinetic or self.jacobian):
            raise UserError("objective.kinetic and .jacobian belong to continuous flows; this model has no velocity")

    def validation_rows(self, available: int) -> int:
        """The split once; a part of it where every row is an ODE."""
        return available if self.solver is None else min(available, SOLVED_ROWS)

    def draw(
        self,
        flow: Flow,
        x_1: Tensor,
        condition: Tensor | None,
        generator: torch.Generator,
        *,
        batch_size: int | None = None,
    ) -> Example:
        """The divergence's probes, if it has any."""
        if self.divergence is None:
            return Example(x_1, condition)
        assert isinstance(flow, ContinuousFlow)
        state = flow.lift(x_1, generator)
        seed = int(torch.randint(1 << 62, (), generator=generator))
        return Example(state, condition, directions=self.divergence.directions(state, seed, 0))

    def inputs(self, flow: Flow, example: Example) -> Inputs:
        """The example itself."""
        return Inputs(example.x_1, example.condition, directions=example.directions)

    def loss(self, flow: Flow, inputs: Inputs) -> Tensor:
        """Negative log-density and regularisers, (B,)."""
        return self._loss(flow, inputs, self.kinetic, self.jacobian, self.solver)

    def held_out(self, flow: Flow, inputs: Inputs) -> Tensor:
        """Negative log-density, (B,), under a solver tighter than the training's, whose errors a training exploits."""
        return self._loss(flow, inputs, 0.0, 0.0, None if self.solver is None else tightened(self.solver))

    def _loss(self, flow: Flow, inputs: Inputs, kinetic: float, jacobian: float, solver: Solver | None) -> Tensor:
        if isinstance(flow, DiscreteFlow):
            return -flow.density(inputs.x, inputs.condition)
        assert isinstance(flow, ContinuousFlow) and inputs.directions is not None
        assert solver is not None and self.divergence is not None
        regularized = kinetic > 0 or jacobian > 0
        flow = flow.with_solver(solver).with_divergence(self.divergence)
        if self.graphs is not None and torch.is_grad_enabled():
            flow = flow.with_graphs(self.graphs)
        found = flow.density(
            inputs.x,
            inputs.directions,
            condition=inputs.condition,
            regularized=regularized,
            adjoint=self.gradient == "adjoint" and torch.is_grad_enabled(),
        )
        loss = -found.log_prob.mean(1)
        if found.kinetic is not None and found.jacobian is not None:
            loss = loss + kinetic * found.kinetic + jacobian * found.jacobian
        return loss


# ---------------------------------------------------------------- what regressions need of a flow
def learned_field(flow: Flow) -> LearnedField:
    """The network behind a parametrisation that a regression trains.

    Raises:
        UserError: the flow has none.
    """
    field = getattr(flow, "field", None)
    if not isinstance(field, LearnedField):
        raise UserError("this objective regresses a field on a path: it needs model=cnf and a path (path=ot)")
    return field

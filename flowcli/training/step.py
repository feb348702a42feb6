"""One training step: loss, gradient, Adam and the running average of the weights; plain, fused or compiled.

The plain step computes the gradient first and touches no weight before it is known to be finite. The compiled one takes
several steps a call, with their random numbers and rates as inputs, and reports each step's loss and gradient norm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.func import functional_call

from flowcli import processes
from flowcli.compiling import compiled
from flowcli.flows.base import Flow
from flowcli.objectives import Inputs, Objective
from flowcli.training.adam import Adam, State
from flowcli.training.flat import Flat, trainable
from flowcli.training.fused import FusedSteps, HasKernel


class MeanLoss(nn.Module):
    """A batch's mean loss, of which each process computes its share: their mean is that of the whole batch."""

    def __init__(self, flow: Flow, objective: Objective) -> None:
        super().__init__()
        self.flow, self._objective = flow, objective

    def forward(self, inputs: Inputs) -> Tensor:
        """Of the batch's rows, a scalar; only this process's are computed."""
        if processes.count() == 1:
            return self._objective.loss(self.flow, inputs).mean()
        rows = len(inputs.x)
        loss = self._objective.loss(self.flow, inputs.part(processes.part(rows)))
        return loss.mean() * (len(loss) * processes.count() / rows)


@dataclass(frozen=True)
class Gradient:
    """What a batch says: its loss and gradient (P,), and the gradient's norm before it is clipped."""

    loss: Tensor
    vector: Tensor
    norm: Tensor


class Step:
    """Moves a flow's weights, Adam's memory and the averaged weights.

    Attributes:
        adam: the optimizer's memory.
    """

    def __init__(
        self, flow: Flow, average: Flow, objective: Objective, *, weight_decay: float, grad_clip: float | None
    ) -> None:
        """flow and average: the weights of both become views of one vector each."""
        self._loss, self._regressed = MeanLoss(flow, objective), objective.regressed(flow)
        named, averaged = trainable(self._loss), dict(MeanLoss(average, objective).named_parameters())
        self._flat, self._average = Flat(named), Flat({name: averaged[name] for name in named}).vector
        self.adam = Adam(self._flat, weight_decay)
        self._grad_clip = grad_clip

    def rates(self, step: int, lr: float, memory: float) -> list[float]:
        """What depends on the step's number: Adam's rates, and the part of the average that is kept."""
        return [*self.adam.rates(step, lr), memory]

    # ------------------------------------------------------------ plain
    def gradient(self, inputs: Inputs) -> Gradient:
        """Of the weights as they are."""
        loss = self._loss(inputs)
        parts = torch.autograd.grad(loss, self._flat.parameters, allow_unused=True, materialize_grads=True)
        vector = torch.cat([part.flatten() for part in parts])
        processes.average(vector)
        return Gradient(loss.detach(), vector, torch.linalg.vector_norm(vector))

    @torch.no_grad()
    def apply(self, gradient: Gradient, rates: list[float]) -> None:
        """Take the step."""
        self._move(self.state(), gradient, rates)

    def _move(self, state: State, gradient: Gradient, rates: Sequence[float] | Sequence[Tensor]) -> None:
        vector = gradient.vector
        if self._grad_clip is not None:
            vector = vector * (self._grad_clip / (gradient.norm + 1e-6)).clamp_max(1)
        Adam.update(state.weights, state.first, state.second, vector, rates[:3])
        state.average.lerp_(state.weights, 1 - rates[3])

    # ------------------------------------------------------------ fused
    def fused(self, rows: int, steps: int) -> FusedSteps | None:
        """The same steps of so many rows by the network's kernel, so many at a time; None: it has none for them."""
        network = self._regressed
        if not isinstance(network, HasKernel) or processes.count() > 1:
            return None
        layers = network.layers()
        if layers is None or any(a is not b for a, b in zip_longest(self._flat.parameters, layers.weights)):
            return None
        return FusedSteps(network, layers, self.state(), rows=rows, steps=steps, grad_clip=self._grad_clip)

    # ------------------------------------------------------------ compiled
    def compile(self, inputs: Inputs, steps: int) -> "CompiledSteps":
        """So many steps as one graph, for inputs shaped like this one, which holds their batches.

        Raises:
            NotCompiled: the objective or the machine does not allow it.
        """
        return CompiledSteps(self, inputs, steps)

    def state(self) -> State:
        """What the steps change, itself."""
        return State(self._flat.vector, self.adam.first, self.adam.second, self._average)

    def traced(self, state: State, inputs: Inputs, rates: Tensor) -> Gradient:
        """One step as a function of tensors alone: in place on the state."""
        weights = state.weights.detach().requires_grad_()
        with torch.enable_grad():
            loss = functional_call(self._loss, dict(self._flat.named(weights)), (inputs,))
            (vector,) = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            gradient = Gradient(loss.detach(), vector, torch.linalg.vector_norm(vector))
            self._move(state, gradient, rates.unbind())
        return gradient


class CompiledSteps:
    """Several steps as one graph.

    Attributes:
        steps: how many.
        threads: torch's meanwhile.
    """

    def __init__(self, step: Step, inputs: Inputs, steps: int) -> None:
        self.steps, self.threads, rows = steps, torch.get_num_threads(), len(inputs.x) // steps
        self._state, given = (
            step.state(),
            [name for name, value in zip(inputs._fields, inputs, strict=True) if value is not None],
        )

        def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            state, rates = State(*tensors[:4]), tensors[4]
            whole = Inputs(**dict(zip(given, tensors[5:], strict=True)))
            parts = [step.traced(state, part, rates[i]) for i, part in enumerate(whole.split(rows))]
            return torch.stack([part.loss for part in parts]), torch.stack([part.norm for part in parts])

        rates = torch.ones(steps, 4).to(self._state.weights)
        self._run = compiled(run, [*self._state, rates, *(value for value in inputs if value is not None)])

    def next(self, step: int, last: int) -> int:
        """How many steps one call takes from this one on: all of them, at a multiple of their number, or 0."""
        return self.steps if step % self.steps == 0 and step + self.steps <= last else 0

    def __call__(self, inputs: Inputs, rates: list[list[float]]) -> tuple[list[float], list[float]]:
        """Take the steps; the loss and the gradient norm of each.

        A gradient that is not finite spoils the weights of its step and of those that follow.
        """
        present = [value for value in inputs if value is not None]
        losses, norms = self._run(*self._state, self._state.weights.new_tensor(rates), *present)
        return losses.tolist(), norms.tolist()

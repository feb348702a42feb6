"""From a config to objects, in the order data -> network -> flow, so that nothing looks back.

Only classes that the shipped conf/ names, or that the user named with --trust, are built out of a checkpoint's config.
"""

import inspect
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowcli import processes, trust
from flowcli.allowance import Allowance
from flowcli.bases import Base, Empirical
from flowcli.checkpoints import Checkpoint, find_checkpoint, flatten
from flowcli.couplings import Coupling
from flowcli.dataset import Dataset, Mixture, Source
from flowcli.divergence import Divergence
from flowcli.engine import Trainer
from flowcli.errors import UserError, choice, integer
from flowcli.evaluate import Evaluation
from flowcli.flows.base import Flow
from flowcli.flows.discrete import Discrete
from flowcli.flows.fields import LearnedField
from flowcli.flows.parts import Model, Parts
from flowcli.foreign import printable, short
from flowcli.objectives import MaximumLikelihood, Objective, Regression
from flowcli.paths import Path as ProbabilityPath
from flowcli.randomness import generator
from flowcli.run import POINTERS, WEIGHTS
from flowcli.sde import Stochastic
from flowcli.solvers import Solver
from flowcli.tracking import Tracker
from flowcli.transforms import Affine

DTYPES = {"float32": torch.float32, "float64": torch.float64}
LARGEST_SIZE = 100_000
"""A whole number in a checkpoint's model that needs no explanation; a larger one counts some of its weights."""


# ---------------------------------------------------------------- one node
def construct(node: Mapping[str, Any] | None, group: str, **given: Any) -> Any:
    """Call the class that a node names with the node's keys and what the program gives.

    Raises:
        UserError: prefixed with the group: an unknown or missing key, or a value that the constructor refuses.
    """
    if not isinstance(node, Mapping) or trust.TARGET not in node:
        raise UserError(f"{group}: nothing to build (want an option of the group, {group}=...)")
    made = trust.locate(str(node[trust.TARGET]))
    values = {key: value for key, value in node.items() if key != trust.TARGET}
    # a node inside a node, say a solver of an objective's own, is a constructor call too
    values = {
        key: construct(value, f"{group}.{key}") if isinstance(value, Mapping) and trust.TARGET in value else value
        for key, value in values.items()
    }
    legal = [name for name in inspect.signature(made).parameters if name not in given]
    for key in values:
        if key not in legal:
            raise UserError(
                f"{group}.{key}: {made.__name__} has no such parameter (have: {', '.join(legal) or 'none'})"
            )
    try:
        inspect.signature(made).bind(**values, **given)
    except TypeError as error:
        raise UserError(f"{group}: {error}") from error
    try:
        return made(**values, **given)
    except ValueError as error:
        text = str(error)
        if text.startswith(f"{group}."):
            raise UserError(text) from error
        named = any(text.startswith(key) for key in values)  # the constructor's words begin with its parameter's name
        raise UserError(f"{group}{'.' if named else ': '}{text}") from error


def _expect(kind: type | tuple[type, ...], made: Any, group: str) -> Any:
    if not isinstance(made, kind):
        wanted = kind.__name__ if isinstance(kind, type) else " or ".join(each.__name__ for each in kind)
        raise UserError(f"{group}: {type(made).__module__}.{type(made).__name__} is no {wanted}")
    return made


def device_of(name: object) -> torch.device:
    """`auto`, or a device that is here.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and processes.started():  # one GPU a process
        name = f"cuda:{processes.local_rank()}"
    legal = f"device must be auto, cpu or cuda (or cuda:N) where there is one, got {name!r}"
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", str(name)):
        raise UserError(legal)
    try:
        device = torch.device(str(name))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(legal) from error
    return device


# ---------------------------------------------------------------- a whole config
@dataclass(frozen=True)
class Mathematics:
    """The parts of a config that need no data: what a preflight builds. None where the config says none."""

    path: ProbabilityPath | None
    coupling: Coupling | None
    solver: Solver | Stochastic | None
    divergence: Divergence | None
    model: Model
    dtype: torch.dtype
    device: torch.device


def mathematics(config: Mapping[str, Any]) -> Mathematics:
    """Build the light parts.

    Raises:
        UserError: an unknown key, a value out of its range, or parts that do not go together.
    """
    path, coupling = _optional(ProbabilityPath, config, "path"), _optional(Coupling, config, "coupling")
    if path is not None and coupling is not None and not coupling.independent and not path.starts_at_noise:
        raise UserError(
            f"coupling={_name(coupling)} needs a path that starts at the noise itself (alpha_0 = 0): "
            f"{type(path).__name__} starts at a mixture of noise and data; say path=ot, linear_vp or cosine"
        )
    return Mathematics(
        path=path,
        coupling=coupling,
        solver=_optional((Solver, Stochastic), config, "solver"),
        divergence=_optional(Divergence, config, "divergence"),
        model=_expect(Model, construct(config.get("model"), "model"), "model"),
        dtype=DTYPES[choice("dtype", config.get("dtype"), DTYPES)],
        device=device_of(config.get("device")),
    )


def _optional(kind: Any, config: Mapping[str, Any], group: str) -> Any:
    return None if config.get(group) is None else _expect(kind, construct(config[group], group), group)


def _name(made: object) -> str:
    return type(made).__name__.lower()


@dataclass(frozen=True)
class Training:
    """What `train` needs besides the flow; objective is None for a model with nothing to train."""

    objective: Objective | None
    trainer: Trainer


def training(config: Mapping[str, Any], maths: Mathematics) -> Training:
    """Build objective and trainer, and refuse what does not go together.

    Raises:
        UserError: as above.
    """
    trainer = _expect(Trainer, construct(config.get("trainer"), "trainer"), "trainer")
    if not maths.model.trained:
        _refuse_training(config, maths)
        return Training(None, trainer)
    if config.get("objective") is None:
        raise UserError("objective=none leaves nothing to train this model with; say objective=flow_matching")
    _refuse_other_objectives(config, maths)
    return Training(_expect(Objective, construct(config["objective"], "objective"), "objective"), trainer)


def _refuse_training(config: Mapping[str, Any], maths: Mathematics) -> None:
    for group in ("objective", "network"):
        if config.get(group) is not None:
            raise UserError(f"this model is not trained: it takes {group}=none, which model=oracle brings along")
    if maths.coupling is None or not maths.coupling.independent:
        raise UserError("model=oracle is the field of independent noise: it takes coupling=independent")


def _refuse_other_objectives(config: Mapping[str, Any], maths: Mathematics) -> None:
    """Say which objective a model takes before its keys are read: they would be those of another one."""
    node = config["objective"]
    kind = trust.locate(str(node[trust.TARGET])) if isinstance(node, Mapping) and trust.TARGET in node else object
    likelihood = issubclass(kind, MaximumLikelihood)
    if isinstance(maths.model, Discrete) and not likelihood:
        raise UserError(
            f"model={_name(maths.model)} is trained by maximum likelihood alone: it takes objective=mle, "
            "which it brings along"
        )
    if likelihood:
        for group in ("path", "coupling"):
            if getattr(maths, group) is not None:
                raise UserError(
                    f"objective=mle has no pairs of noise and data and no path between them: "
                    f"it takes {group}=none, which it brings along"
                )
    elif issubclass(kind, Regression):
        for group, option in (("path", "ot"), ("coupling", "independent")):
            if getattr(maths, group) is None:
                raise UserError(f"this objective regresses a field on a path: it needs {group}={option} or another")


def evaluation(config: Mapping[str, Any]) -> Evaluation:
    """How a flow is measured.

    Raises:
        UserError: as above.
    """
    trust.refuse_untrusted(config.get("evaluation"), config.get("trust") or ())
    return _expect(Evaluation, construct(config.get("evaluation"), "evaluation"), "evaluation")


def base(
    config: Mapping[str, Any], shape: tuple[int, ...], transform: Affine, tensors: Mapping[str, Tensor] | None = None
) -> Base:
    """The distribution of the noise x_0 in model units; another data set is opened, unless tensors are there for it.

    Raises:
        UserError: as above.
    """
    made = _expect(Base, construct(config.get("base"), "base", event_shape=shape), "base")
    if isinstance(made, Empirical):
        made.fill(_other_data(made, shape, transform) if tensors is None else tensors["start.points"].double())
        if not len(made.points):
            raise UserError("base: it holds no points to draw from")
    return made


def _other_data(base: Empirical, shape: tuple[int, ...], transform: Affine) -> Tensor:
    """The points of another data set in the units of this one."""
    points = base.source.load().points("train")
    if tuple(points.shape[1:]) != shape:
        raise UserError(f"base.data has events of the shape {tuple(points.shape[1:])}, data has {shape}")
    return transform(points)


def seed(config: Mapping[str, Any]) -> int:
    """The run's seed.

    Raises:
        UserError: it is no whole number >= 0.
    """
    return integer("seed", config.get("seed"), minimum=0)


def tracker(config: Mapping[str, Any]) -> Tracker | None:
    """Who is told of a training besides its run folder, nobody as a rule.

    Raises:
        UserError: as above; its package is not installed, or its place cannot be used.
    """
    if config.get("logger") is None:
        return None
    trust.refuse_untrusted(config["logger"], config.get("trust") or ())
    made = _expect(Tracker, construct(config["logger"], "logger"), "logger")
    made.require()
    return made


def source(config: Mapping[str, Any]) -> Source:
    """The data, not opened yet.

    Raises:
        UserError: as above.
    """
    trust.refuse_untrusted(config.get("data"), config.get("trust") or ())
    made = construct(config.get("data"), "data")
    if not callable(getattr(made, "load", None)) or not callable(getattr(made, "read", None)):
        raise UserError(f"data: {type(made).__name__} is no data set: it has no load() and read()")
    return made


def network(config: Mapping[str, Any], event_shape: tuple[int, ...], seed: int) -> nn.Module | None:
    """An untrained network whose weights depend on the seed alone.

    Raises:
        UserError: as above.
    """
    if config.get("network") is None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, "network").initial_seed())
        return _expect(nn.Module, construct(config["network"], "network", event_shape=event_shape), "network")


def new_flow(config: Mapping[str, Any], dataset: Dataset) -> Flow:
    """An untrained flow over a data set.

    Raises:
        UserError: as above.
    """
    train = dataset.transform(dataset.points("train"))
    mixture = None if dataset.mixture is None else dataset.mixture.through(dataset.transform)
    return _flow(config, seed(config), dataset.event_shape, dataset.transform, train, mixture, None)


def restore(config: Mapping[str, Any], checkpoint: Checkpoint, weights: str, trusted: Collection[str] = ()) -> Flow:
    """The flow of a checkpoint, with the solver, divergence, dtype and device of the config; no data is opened.

    weights: ema or raw.

    Raises:
        UserError: a class that is not trusted, damaged files, or weights that do not fit the config.
    """
    groups = ("model", "network", "path", "coupling", "base", "solver", "divergence")
    trust.refuse_untrusted({group: config.get(group) for group in groups}, trusted)
    if checkpoint.description.get("event_shape") is None:
        raise UserError(f"{checkpoint.folder}: description.json names no event shape")
    tensors = checkpoint.tensors(choice("weights", weights, WEIGHTS))
    event_shape = tuple(checkpoint.description["event_shape"])
    _refuse_foreign(config, checkpoint, tensors)
    try:
        with Allowance(tensors):
            flow = _flow(config, 0, event_shape, Affine.identity(event_shape), None, None, tensors)
    except UserError:
        raise
    except (ArithmeticError, IndexError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{checkpoint.folder}: its config and weights do not go together ({short(error)})") from error
    wrong = _misfit(flow.state_dict(), tensors)
    if wrong is not None:
        raise UserError(f"{checkpoint.folder}: the weights do not fit the config ({wrong})")
    flow.load_state_dict(tensors)
    if not bool((flow.transform.scale > 0).all()) or not bool((flow.start.std > 0).all()):
        raise UserError(f"{checkpoint.folder}: the weights hold a scale that is not positive, so they are damaged")
    return flow.requires_grad_(False).eval()


def _refuse_foreign(config: Mapping[str, Any], checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
    """Hold events and sizes against the weights, before anything is made of them."""
    shift, event_shape = tensors["transform.shift"].shape, checkpoint.description["event_shape"]
    if list(shift) != event_shape:
        raise UserError(f"{checkpoint.folder}: its events have the shape {event_shape}, its weights' {list(shift)}")
    most = max(LARGEST_SIZE, sum(tensor.numel() for tensor in tensors.values()))
    for key, value in flatten({group: config.get(group) for group in ("model", "network", "base")}):
        if isinstance(value, int) and abs(value) > most:
            raise UserError(f"{checkpoint.folder}: {key}={value} is more than its weights hold numbers")


def _misfit(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """The first difference between two state dicts' names, shapes and kinds of numbers."""
    for name in [*wanted, *found]:
        if name not in found:
            return f"there is no {name}"
        if name not in wanted:
            return f"nothing has a place for {printable(name[:80])}"
        there, here = found[name], wanted[name]
        if there.shape != here.shape:
            return f"{name} has the shape {list(there.shape)}, wanted {list(here.shape)}"
        if there.is_floating_point() != here.is_floating_point() or (there.dtype == torch.bool) != (
            here.dtype == torch.bool
        ):
            return f"{name} is of {there.dtype}, wanted {here.dtype}"
    return None


def load(
    ckpt: str | Path,
    *,
    weights: str = "ema",
    which: str = "best",
    dtype: str | None = None,
    device: str = "auto",
    trusted: Collection[str] = (),
) -> Flow:
    """A trained flow, from Python: `flowcli.load("outputs/train/RUN").log_prob(x)`.

    Args:
        ckpt: a run, a checkpoint folder, a weights file, or `latest`.
        weights: ema or raw.
        which: best or last.
        dtype: float32 or float64; None keeps the run's own.
        device: auto, cpu, cuda, ...
        trusted: dotted names of classes of your own that the run's config may build.

    Raises:
        UserError: there is no such checkpoint, or it is not one that may be loaded.
    """
    checkpoint = find_checkpoint(ckpt, choice("which", which, POINTERS))
    config = {**checkpoint.config, "device": device, **({} if dtype is None else {"dtype": dtype})}
    return restore(config, checkpoint, checkpoint.weights or weights, trusted)


def from_checkpoint(config: Mapping[str, Any]) -> tuple[Checkpoint, Flow]:
    """The checkpoint and the flow that a verb's config (ckpt, weights, which, trust) means.

    Raises:
        UserError: as for `load`.
    """
    checkpoint = find_checkpoint(str(config["ckpt"]), choice("which", config.get("which"), POINTERS))
    weights = checkpoint.weights or str(config.get("weights"))
    if config.get("weights") == "raw" != weights:
        raise UserError(f"--weights raw: {config['ckpt']} holds the averaged weights; give the checkpoint's folder")
    return checkpoint, restore(config, checkpoint, weights, config.get("trust") or ())


def _flow(
    config: Mapping[str, Any],
    seed: int,
    event_shape: tuple[int, ...],
    transform: Affine,
    train: Tensor | None,
    mixture: Mixture | None,
    tensors: dict[str, Tensor] | None,
) -> Flow:
    maths = mathematics(config)
    shape = maths.model.state_shape(event_shape)
    made = base(config, shape, transform, tensors)
    parts = Parts(
        network=network(config, shape, seed),
        path=maths.path,
        base=made,
        transform=transform,
        solver=maths.solver,
        divergence=maths.divergence,
        event_shape=event_shape,
        train=train,
        mixture=mixture,
        tensors=tensors,
        no_score=_no_score(made, maths.coupling),
        seed=seed,
    )
    flow = maths.model.flow(parts).cast(maths.dtype, maths.device)
    field = getattr(flow, "field", None)
    overflow = field.overflow() if isinstance(field, LearnedField) else None
    if overflow is not None:
        raise UserError(f"path: {overflow}; take a path with smaller scales, or dtype=float64 for a larger range")
    return flow


def _no_score(base: Base, coupling: Coupling | None) -> str | None:
    """Why grad log p_t is not -E[x_0 | x_t] / sigma_t, if it is not."""
    if not base.is_gaussian:
        return "the base is not Gaussian (base=gaussian)"
    if coupling is not None and not coupling.independent:
        return f"coupling={_name(coupling)} makes the noise depend on the data (coupling=independent)"
    return None

"""From a config to objects, in the order data -> network -> flow, so that nothing looks back.

Only classes that the shipped conf/ names, or that the user named with --trust, are built out of a checkpoint's config.
"""

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowcli import trust
from flowcli.bases import Base
from flowcli.couplings import Coupling
from flowcli.dataset import Dataset, Mixture, Source
from flowcli.divergence import Divergence
from flowcli.errors import UserError, choice, integer
from flowcli.evaluate import Evaluation
from flowcli.flows.base import Flow
from flowcli.flows.continuous import Parts
from flowcli.flows.fields import LearnedField
from flowcli.objectives import Objective
from flowcli.paths import Path as ProbabilityPath
from flowcli.randomness import generator
from flowcli.run import POINTERS, WEIGHTS, Checkpoint, find_checkpoint
from flowcli.solvers import Solver
from flowcli.transforms import Affine

DTYPES = {"float32": torch.float32, "float64": torch.float64}


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


def _expect(kind: type, made: Any, group: str) -> Any:
    if not isinstance(made, kind):
        raise UserError(f"{group}: {type(made).__module__}.{type(made).__name__} is no {kind.__name__}")
    return made


def device_of(name: object) -> torch.device:
    """`auto`, or a device that is here.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(str(name))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device must be auto, cpu or cuda (or cuda:N) where there is one, got {name!r}") from error
    return device


# ---------------------------------------------------------------- a whole config
@dataclass(frozen=True)
class Mathematics:
    """The parts of a config that need no data: what a preflight builds."""

    path: ProbabilityPath
    solver: Solver
    divergence: Divergence
    model: Any
    dtype: torch.dtype
    device: torch.device


def mathematics(config: Mapping[str, Any]) -> Mathematics:
    """Build the light parts.

    Raises:
        UserError: an unknown key, a value out of its range, or parts that do not go together.
    """
    return Mathematics(
        path=_expect(ProbabilityPath, construct(config.get("path"), "path"), "path"),
        solver=_expect(Solver, construct(config.get("solver"), "solver"), "solver"),
        divergence=_expect(Divergence, construct(config.get("divergence"), "divergence"), "divergence"),
        model=construct(config.get("model"), "model"),
        dtype=DTYPES[choice("dtype", config.get("dtype"), DTYPES)],
        device=device_of(config.get("device")),
    )


@dataclass(frozen=True)
class Training:
    """What `train` needs besides the flow; objective and trainer are None for a model with nothing to train."""

    objective: Objective | None
    coupling: Coupling
    trainer: Any


def training(config: Mapping[str, Any], model: Any) -> Training:
    """Build objective, coupling and trainer, and refuse what does not go together.

    Raises:
        UserError: as above.
    """
    from flowcli.engine import Trainer

    if model.trained == (config.get("objective") is None):
        raise UserError(
            "objective=none leaves nothing to train this model with; say objective=flow_matching"
            if model.trained
            else "this model is not trained: it takes objective=none and network=none, which model=oracle brings along"
        )
    if not model.trained and config.get("network") is not None:
        raise UserError("this model has no network: it takes network=none, which model=oracle brings along")
    objective = construct(config["objective"], "objective") if model.trained else None
    return Training(
        None if objective is None else _expect(Objective, objective, "objective"),
        _expect(Coupling, construct(config.get("coupling"), "coupling"), "coupling"),
        _expect(Trainer, construct(config.get("trainer"), "trainer"), "trainer"),
    )


def evaluation(config: Mapping[str, Any]) -> Evaluation:
    """How a flow is measured.

    Raises:
        UserError: as above.
    """
    return _expect(Evaluation, construct(config.get("evaluation"), "evaluation"), "evaluation")


def base(config: Mapping[str, Any], event_shape: tuple[int, ...]) -> Base:
    """The distribution of the noise x_0.

    Raises:
        UserError: as above.
    """
    return _expect(Base, construct(config.get("base"), "base", event_shape=event_shape), "base")


def seed(config: Mapping[str, Any]) -> int:
    """The run's seed.

    Raises:
        UserError: it is no whole number >= 0.
    """
    return integer("seed", config.get("seed"), minimum=0)


def source(config: Mapping[str, Any]) -> Source:
    """The data, not opened yet.

    Raises:
        UserError: as above.
    """
    return construct(config.get("data"), "data")


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
    mixture = None if dataset.mixture is None else _in_model_units(dataset.mixture, dataset.transform)
    return _flow(config, seed(config), dataset.event_shape, dataset.transform, train, mixture, None)


def restore(config: Mapping[str, Any], checkpoint: Checkpoint, weights: str, trusted: Collection[str] = ()) -> Flow:
    """The flow of a checkpoint, with the solver, divergence, dtype and device of the config; no data is opened.

    weights: ema or raw.

    Raises:
        UserError: a class that is not trusted, damaged files, or weights that do not fit the config.
    """
    groups = ("model", "network", "path", "base", "solver", "divergence")
    trust.refuse_untrusted({group: config.get(group) for group in groups}, trusted)
    shape = checkpoint.description.get("event_shape")
    if not isinstance(shape, list) or not shape or not all(isinstance(n, int) and 0 < n <= 1 << 20 for n in shape):
        raise UserError(f"{checkpoint.folder}: description.json names no event shape")
    tensors = checkpoint.tensors(choice("weights", weights, WEIGHTS))
    event_shape = tuple(shape)
    flow = _flow(config, 0, event_shape, Affine.identity(event_shape), None, None, tensors)
    try:
        flow.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{checkpoint.folder}: the weights do not fit the config ({reason})") from error
    return flow.requires_grad_(False).eval()


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


def learned_field(flow: Flow) -> LearnedField:
    """The trainable field of a flow."""
    return _expect(LearnedField, getattr(flow, "field", None), "model")


def _flow(
    config: Mapping[str, Any],
    network_seed: int,
    event_shape: tuple[int, ...],
    transform: Affine,
    train: Tensor | None,
    mixture: Mixture | None,
    tensors: dict[str, Tensor] | None,
) -> Flow:
    maths = mathematics(config)
    parts = Parts(
        network=network(config, event_shape, network_seed),
        path=maths.path,
        base=base(config, event_shape),
        transform=transform,
        solver=maths.solver,
        divergence=maths.divergence,
        event_shape=event_shape,
        train=train,
        mixture=mixture,
        tensors=tensors,
    )
    return maths.model.flow(parts).cast(maths.dtype, maths.device)


def _in_model_units(mixture: Mixture, transform: Affine) -> Mixture:
    scale = transform.scale.flatten()
    means = transform(mixture.means)
    return Mixture(mixture.weights, means, mixture.covariances / (scale[:, None] * scale[None, :]))

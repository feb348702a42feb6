"""mode=explain: the pictures of the lecture notes, of this flow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowcli import build, console, pictures
from flowcli.checkpoints import Checkpoint, fitted_coupling
from flowcli.dataset import Dataset
from flowcli.ends import Ends
from flowcli.flows.base import Flow
from flowcli.tasks.events import open_dataset

KEYS: tuple[str, ...] = ()


def check(config: Mapping[str, Any], checkpoint: Checkpoint, flow: Flow) -> None:
    """Open the data.

    Raises:
        UserError: the data or the fitted coupling cannot be opened.
    """
    _ends(config, checkpoint, flow, open_dataset(config, checkpoint))


def run(config: Mapping[str, Any], checkpoint: Checkpoint, flow: Flow, folder: Path) -> None:
    """Draw the pictures.

    Raises:
        JobError: the solver failed.
    """
    dataset = open_dataset(config, checkpoint)
    ends, seed = _ends(config, checkpoint, flow, dataset), build.seed(config)
    written = pictures.explain(flow, dataset, ends, folder, seed=seed, batch_size=config["batch_size"])
    said = f"wrote {', '.join(written)} in {console.shown(folder)}" if written else "the notes have no picture of it"
    console.console().print(said)


def _ends(config: Mapping[str, Any], checkpoint: Checkpoint, flow: Flow, dataset: Dataset) -> Ends | None:
    """Base and coupling of the training, fitted as they were; None where it had no pairs."""
    maths = build.mathematics(config)
    if maths.coupling is None:
        return None
    if not maths.coupling.independent:
        maths.coupling.load(fitted_coupling(checkpoint.run))
    shape = maths.model.state_shape(dataset.event_shape)
    return Ends(build.base(config, shape, dataset.transform, flow.state_dict()), maths.coupling)

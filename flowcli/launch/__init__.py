"""The front between Typer and Hydra, and the only place that talks to Hydra.

A verb's work is found by name inside the job: `flowcli.tasks.<verb>` has

    check(configs)        before anything is written: build what is cheap, open the data, raise UserError
    run(config, folder)   one job: a resolved plain dict and the folder that is its to write in

Hydra, OmegaConf and torch are imported inside functions, so that `flowcli --help` answers at once.
"""

from flowcli.launch.completion import complete
from flowcli.launch.ending import hush
from flowcli.launch.entry import launch, perform
from flowcli.launch.offers import groups, keys
from flowcli.launch.request import FLAG_OR_KEY, ON_CHECKPOINT, Request

__all__ = ["FLAG_OR_KEY", "ON_CHECKPOINT", "Request", "complete", "groups", "hush", "keys", "launch", "perform"]

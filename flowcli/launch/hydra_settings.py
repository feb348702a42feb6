"""Hydra's own settings: what it would stumble over is refused."""

import importlib
import importlib.util
import os
from collections.abc import Iterable
from typing import Any

from flowcli import trust
from flowcli.errors import UserError
from flowcli.launch.request import Request


def refuse_unready(request: Request, overrides: Iterable[Any]) -> None:
    """Refuse what Hydra would stumble over before it has a config to speak of."""
    for override in overrides:
        key, said = override.key_or_group, override.input_line
        if key in ("hydra", "defaults"):
            raise UserError(f"{said}: {key} is no key of its own; write hydra.run.dir=FOLDER, path=vp, ...")
        if key.startswith(("hydra.job_logging", "hydra.hydra_logging")):
            raise UserError(f"{said}: what is logged where is flowcli's; hydra.verbose=true logs more")
        if key.startswith("hydra.sweeper.params"):
            raise UserError(f"{said}: say what is swept itself, with -m: seed=0,1,2")
        if override.is_delete() or override.is_sweep_override():
            continue
        if key == "hydra.mode" and request.multirun and override.value() != "MULTIRUN":
            raise UserError(f"{said}: --multirun says another mode; leave out one of the two")
        names = override.value() if key == "hydra.job.env_copy" else None
        for name in names if isinstance(names, list) else []:
            if name not in os.environ:
                raise UserError(f"{said}: the environment has no {name!r}")
        places = override.value() if key == "hydra.searchpath" else None
        for place in places if isinstance(places, list) else []:
            kind, _, where = str(place).rpartition("://")
            if kind not in ("", "file", "pkg"):
                raise UserError(f"{said}: want folders (file://FOLDER) or packages (pkg://PACKAGE), got {place!r}")
            package = where.replace("/", ".").partition(".")[0]
            if kind == "pkg" and (not package or importlib.util.find_spec(package) is None):
                raise UserError(f"{said}: {where}: no such package")
            if kind != "pkg" and not os.path.isdir(where):
                raise UserError(f"{said}: {where}: no such folder (its configs can be given with --config-dir, too)")


def check_settings(hydra: Any, *, resumed: bool, jobs: int | None) -> None:
    """Check the settings that Hydra reads only when a job's folder is there; jobs: of a sweep, or None.

    Raises:
        UserError: naming the key.
    """
    from omegaconf import OmegaConf

    sweep: Any = OmegaConf.to_container(hydra.sweep, resolve=False)
    subdir = sweep["subdir"]  # unresolved: it holds the job's number, which no job has yet
    folders = {"run.dir": hydra.run.dir} if jobs is None else {"sweep.dir": hydra.sweep.dir, "sweep.subdir": subdir}
    for key, folder in folders.items():
        if not isinstance(folder, str) or not folder.strip() or not folder.isprintable():
            raise UserError(f"hydra.{key} must name a folder, in characters that can be seen, got {folder!r}")
    if jobs is not None and jobs > 1 and "${" not in subdir:
        raise UserError(f"hydra.sweep.subdir={subdir}: each of the {jobs} jobs needs a folder of its own")
    if not resumed and hydra.output_subdir != ".hydra":
        raise UserError(f"hydra.output_subdir={hydra.output_subdir}: a run keeps its config in .hydra, leave this out")
    if hydra.job.chdir:
        raise UserError("hydra.job.chdir=true: the config's paths are relative to where you are, leave this out")
    name = hydra.job.name
    if not isinstance(name, str) or not name.isprintable() or not name or "/" in name:
        raise UserError(f"hydra.job.name must be the name of a file, got {name!r}")
    for key in ("job_logging", "hydra_logging"):
        if hydra[key] is None or hydra[key].get("version") != 1:
            raise UserError(f"hydra.{key} must be a config of Python's logging, version: 1; choose hydra/{key}=NAME")
    verbose = hydra.verbose
    if not isinstance(verbose, bool | str) and not OmegaConf.is_list(verbose):
        raise UserError(f"hydra.verbose must be true, false, or names of loggers, got {verbose!r}")


def check_sweeper(hydra: Any) -> None:
    """Check launcher and sweeper.

    Raises:
        UserError: naming the key.
    """
    from omegaconf import DictConfig

    for key, plugin in (("launcher", hydra.launcher), ("sweeper", hydra.sweeper)):
        target = str(plugin.get(trust.TARGET)) if isinstance(plugin, DictConfig) else None
        if target is None or not target.startswith(("hydra_plugins.", "hydra._internal.core_plugins.")):
            raise UserError(f"hydra.{key}: {target or plugin} is no {key}; choose one with hydra/{key}=NAME")
        trust.locate(target)
    most = hydra.sweeper.get("max_batch_size")
    if most is not None and most < 1:
        raise UserError(f"hydra.sweeper.max_batch_size must be a whole number >= 1, got {most}")

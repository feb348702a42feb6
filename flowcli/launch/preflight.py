"""Composing every job of a command before the first one starts."""

import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowcli import run, storage, trust
from flowcli.checkpoints import is_choice
from flowcli.errors import UserError
from flowcli.explain import did_you_mean
from flowcli.launch import cells
from flowcli.launch.cells import Cell
from flowcli.launch.hydra_settings import check_settings, check_sweeper
from flowcli.launch.offers import groups
from flowcli.launch.request import MAX_PREFLIGHT, Request, quote

MAX_SWEEP = 100_000
"""Values of one sweep, and jobs in all: Hydra lists them before the first starts."""


@dataclass(frozen=True)
class Plan:
    """What will run.

    Attributes:
        configs: of the jobs that will be run, as far as they were composed (MAX_PREFLIGHT).
        jobs: how many; None where only the sweeper knows.
        sweep_dir: where a sweep goes.
        cells: the first jobs of a training sweep, at most MAX_PREFLIGHT.
        fixed: keys that are the same in all jobs.
    """

    configs: list[dict[str, Any]]
    jobs: int | None
    sweep_dir: Path | None = None
    cells: Sequence[Cell] = ()
    fixed: frozenset[str] = frozenset()


def prepare(request: Request, primary: str, words: list[str]) -> Plan:
    """Compose every job before the first starts: no half-run sweep, no empty folders, and no torch yet."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import open_dict

    root, extra = search_path(request, primary)
    with initialize_config_dir(str(root), job_name=request.verb, version_base="1.3"):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        parsed = parser.parse_overrides(words)
        fixed = [word for word, override in zip(words, parsed, strict=True) if not override.is_sweep_override()]
        base = compose(primary, [*fixed, *extra], return_hydra_config=True)
        _refuse_new_keys(parsed, base)
        hydra = base.hydra
        for group, option in hydra.runtime.choices.items():
            if not str(group).startswith("hydra/") and not is_choice(group, option):
                raise UserError(f"{group}={option}: want names of letters, digits, _ and - for groups and options")
        with open_dict(base):
            del base["hydra"]
        if request.multirun or (hydra.mode is not None and hydra.mode.name == "MULTIRUN"):
            return _prepare_sweep(request, primary, hydra, parser, parsed, extra)
        for override in parsed:
            if override.is_sweep_override():
                key, _, value = str(override.input_line).partition("=")
                a_list = "" if key in groups() else f", or write {key}=[{value}] for a list"
                raise UserError(f"{override.input_line} is a sweep: add -m to run each{a_list}")
        if request.retry_failed:
            raise UserError("--retry-failed is of a sweep: add -m; one run goes on with --resume RUN")
        check_settings(hydra, resumed=request.resume is not None, jobs=None)
        _refuse_to_overwrite(request, Path(hydra.run.dir))
        storage.require_writable(Path(hydra.run.dir))
        return Plan([plain(base, request.own)], 1)


def _prepare_sweep(
    request: Request, primary: str, hydra: Any, parser: Any, parsed: Sequence[Any], extra: list[str]
) -> Plan:
    from hydra import compose
    from omegaconf import OmegaConf

    check_sweeper(hydra)
    basic = str(hydra.sweeper.get("_target_")).endswith(".BasicSweeper")
    for override in parsed if basic else ():
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise UserError(f"{override.input_line}: this sweeper takes no interval; list the values, 0.1,0.2")
    swept = hydra.sweeper.get("params") if basic else None
    given = parser.parse_overrides([f"{key}={value}" for key, value in (swept or {}).items()])
    # a key that comes again takes its first place and its last value, as in Hydra's own sweeper
    overrides = list({override.get_key_element(): override for override in (*given, *parsed)}.values())
    values = [
        _swept(override) if override.is_discrete_sweep() else [str(override.input_line)]
        for override in overrides
        if override.is_discrete_sweep() or not override.is_sweep_override()  # an interval has no list of values
    ]
    jobs = math.prod(map(len, values))
    if jobs > MAX_SWEEP:
        told = " ".join(str(override.input_line) for override in overrides if override.is_sweep_override())
        raise UserError(f"{told}: {jobs:,} jobs in one sweep, at most {MAX_SWEEP:,} can be listed")
    check_settings(hydra, resumed=False, jobs=jobs)
    sweep_dir = Path(hydra.sweep.dir)
    storage.require_writable(sweep_dir)
    if request.verb == "train" and os.path.lexists(sweep_dir / run.RUN_FILE):
        raise UserError(f"hydra.sweep.dir={sweep_dir}: is a run itself; a sweep wants a folder of its own")
    fixed = frozenset(
        override.get_key_element().lstrip("+~") for override in overrides if not override.is_sweep_override()
    )
    known: list[Cell] = []
    configs: list[dict[str, Any]] = []
    for number, job in enumerate(_cells(values)):
        composed = compose(primary, [*job, *extra], return_hydra_config=True)
        if request.verb == "train" and basic and number < min(jobs, MAX_PREFLIGHT):
            known.append(_cell(composed, number, sweep_dir, job, fixed, own=request.own))
            if _will_run(known[-1].folder, request.retry_failed):
                configs.append(dict(known[-1].config))
        else:
            configs.append(_config(composed, request.own))
    _refuse_shared(known, OmegaConf.to_container(hydra.sweep, resolve=False)["subdir"])  # type: ignore[index]
    for cell in known:
        if (cell.folder / run.RUN_FILE).exists():
            cells.refuse_another(cell.folder, cell.config)
    return Plan(configs, jobs if basic else None, sweep_dir, known, fixed)


def _config(composed: Any, own: bool) -> dict[str, Any]:
    """The job's own part of a config that was composed with Hydra's."""
    from omegaconf import open_dict

    with open_dict(composed):
        del composed["hydra"]
    return plain(composed, own)


def _cell(composed: Any, number: int, sweep_dir: Path, job: Sequence[str], fixed: frozenset[str], *, own: bool) -> Cell:
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict, read_write

    with read_write(composed.hydra), open_dict(composed.hydra):
        composed.hydra.job.num = composed.hydra.job.id = number
        composed.hydra.sweep.dir = str(sweep_dir)
    current, before = HydraConfig.instance(), HydraConfig.instance().cfg
    current.set_config(composed)  # for ${hydra:...}
    try:
        folder = sweep_dir / str(composed.hydra.sweep.subdir)
    finally:
        current.cfg = before
    return Cell(number, folder, own_words(job, fixed), _config(composed, own))


def own_words(job: Iterable[str], fixed: frozenset[str]) -> str:
    """What is a job's own of its words."""
    return " ".join(word for word in job if word.partition("=")[0].lstrip("+~") not in fixed)


def _will_run(folder: Path, retry_failed: bool) -> bool:
    standing = cells.standing(folder)
    return standing in (cells.FRESH, cells.OPEN) or (standing == cells.FAILED and retry_failed)


def _refuse_shared(known: Sequence[Cell], subdir: str) -> None:
    taken: dict[Path, Cell] = {}
    for cell in known:
        other = taken.setdefault(cell.folder, cell)
        if other is not cell:
            raise UserError(
                f"hydra.sweep.subdir={subdir}: jobs {other.number} and {cell.number} would share {cell.folder}"
            )


def _swept(override: Any) -> list[str]:
    """Every value of a sweep, as an override each.

    Raises:
        UserError: it has no value, or so many that nobody waits for the jobs.
    """
    span = override.value()
    try:
        length = abs((span.stop - span.start) / span.step) if hasattr(span, "step") else 0  # shuffle() lists a range
        found = [] if length > MAX_SWEEP else list(itertools.islice(override.sweep_string_iterator(), MAX_SWEEP + 1))
    except (ValueError, ArithmeticError) as error:
        raise UserError(f"{override.input_line}: no range of numbers, range(start,stop,step)") from error
    if length > MAX_SWEEP or len(found) > MAX_SWEEP:
        raise UserError(f"{override.input_line}: a sweep over more than {MAX_SWEEP:,} values")
    if not found:
        raise UserError(f"{override.input_line}: a sweep over no value")
    return [f"{override.get_key_element()}={value}" for value in found]


def _cells(values: list[list[str]]) -> Iterator[Sequence[str]]:
    """The first cells of the product, and then each value that was in none of them."""
    cells = list(itertools.islice(itertools.product(*values), MAX_PREFLIGHT))
    yield from cells
    for position, options in enumerate(values):
        for value in options[1:]:
            if all(cell[position] != value for cell in cells):
                yield [value if at == position else other[0] for at, other in enumerate(values)]


def search_path(request: Request, primary: str) -> tuple[Path, list[str]]:
    """The folder to compose from, and the override that adds the user's --config-dir behind it."""
    main = trust.conf_dir()
    if request.config_dir is None:
        return main, []
    other = request.config_dir.resolve()
    if (other / f"{primary}.yaml").is_file() and not (main / f"{primary}.yaml").is_file():
        main, other = other, main  # compose() looks for a primary config in the first folder only
    return main, [f"hydra.searchpath=[{quote(f'file://{other}')}]"]


def _refuse_to_overwrite(request: Request, folder: Path) -> None:
    if request.verb == "train" and request.resume is None and (folder / run.RUN_FILE).exists():
        raise UserError(f"{folder} holds a run already; flowcli train --resume {folder} goes on with it")


def _refuse_new_keys(overrides: Iterable[Any], base: Any) -> None:
    """`+experimnt=vp` would add a key that nothing reads."""
    for override in overrides:
        key = str(override.key_or_group)
        if override.is_add() and not override.is_sweep_override() and re.fullmatch(r"\w+", key) and key not in groups():
            known = [str(k) for k in base if k not in (key, "hydra")]
            if key not in ("hydra", *known):
                raise UserError(
                    f"{override.input_line}: nothing reads the key {key!r}{did_you_mean(key, [*known, *groups()])}"
                )


def plain(cfg: Any, own: bool) -> dict[str, Any]:
    """The resolved config as plain values; own: its user wrote it, so it may name his own classes."""
    from omegaconf import OmegaConf

    config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    for key, value in _leaves(config):
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{key}: a value may not hold '${{' once resolved, got {value!r}")
    if own:
        config["trust"] = sorted({*config.get("trust", []), *trust.own_targets(config)})
    return config


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if children is None:
        yield prefix[:-1], node
    else:
        for key, value in children:
            yield from _leaves(value, f"{prefix}{key}.")

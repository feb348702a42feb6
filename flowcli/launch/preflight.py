"""Composing every job of a command before the first one starts."""

import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowcli import run, storage, trust
from flowcli.checkpoints import is_choice
from flowcli.errors import UserError
from flowcli.explain import did_you_mean
from flowcli.launch import cells
from flowcli.launch.cells import Cell
from flowcli.launch.ending import typed
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
        words: for Hydra, which composes a sweep once without its swept words.
        jobs: how many; None where only the sweeper knows.
        sweep_dir: where a sweep goes.
        cells: the first jobs of a training sweep, at most MAX_PREFLIGHT.
        fixed: keys that are the same in all jobs.
        composed: of one job, with Hydra's node; None where Hydra has to compose itself.
    """

    configs: list[dict[str, Any]]
    words: list[str]
    jobs: int | None
    sweep_dir: Path | None = None
    cells: Sequence[Cell] = ()
    fixed: frozenset[str] = frozenset()
    composed: Any = None


def prepare(request: Request, primary: str, words: list[str]) -> Plan:
    """Compose every job before the first starts: no half-run sweep, no empty folders, and no torch yet."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    root, extra = search_path(request, primary)
    with initialize_config_dir(str(root), job_name=request.verb, version_base="1.3"):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        parsed = parser.parse_overrides(words)
        base = _first_job(primary, parser, parsed, extra)
        _refuse_new_keys(parsed, base)
        hydra = base.hydra
        for group, option in hydra.runtime.choices.items():
            if not str(group).startswith("hydra/") and not is_choice(group, option):
                raise UserError(f"{group}={option}: want names of letters, digits, _ and - for groups and options")
        if request.multirun or (hydra.mode is not None and hydra.mode.name == "MULTIRUN"):
            words = _words_for_hydra(primary, words, parsed, extra)
            return _prepare_sweep(request, primary, hydra, parser, words, extra)
        for override in parsed:
            if override.is_sweep_override():
                key, _, value = str(override.input_line).partition("=")
                a_list = "" if key in groups() else f", or write {key}=[{value}] for a list"
                raise UserError(f"{override.input_line} is a sweep: add -m to run each{a_list}")
        if request.retry_failed:
            raise UserError("--retry-failed is of a sweep: add -m; one run goes on with --resume RUN")
        check_settings(hydra, resumed=request.resume is not None, jobs=None)
        folder = Path(hydra.run.dir)
        _refuse_to_overwrite(request, folder)
        storage.require_writable(folder)
        # Hydra records where it found --config-dir's files, and under hydra.verbose shows how it composed them
        composed = None if extra or hydra.verbose else deepcopy(base)
        return Plan([_as_job(base, lambda: folder, request.own)[1]], words, 1, composed=composed)


def _first_job(primary: str, parser: Any, parsed: Sequence[Any], extra: list[str]) -> Any:
    """Compose the command with the first value of all that is swept: only then each key may be there."""
    from hydra import compose
    from hydra.errors import HydraException

    try:
        return compose(primary, [*_firsts(parsed), *extra], return_hydra_config=True)
    except HydraException:  # a key may be one of an option that the config's own sweep chooses
        params = _params(compose(primary, [*filter(_chooses, _firsts(parsed)), *extra], return_hydra_config=True))
        overrides = _merged(parser, params, parsed)
        return compose(primary, [*_firsts(overrides), *extra], return_hydra_config=True)


def _words_for_hydra(primary: str, words: list[str], parsed: Sequence[Any], extra: list[str]) -> list[str]:
    """The words of a sweep, such that Hydra can compose it without the swept ones, as it does once.

    A key that is there only with them is swept, too, over its one value.
    """
    from hydra import compose
    from hydra.errors import HydraException

    fixed = [word for word, override in zip(words, parsed, strict=True) if not override.is_sweep_override()]
    try:
        compose(primary, [*fixed, *extra], return_hydra_config=True)
    except HydraException:
        return [
            word
            if override.is_sweep_override() or override.is_delete() or _chooses(word)
            else "{}=choice({})".format(*word.split("=", 1))
            for word, override in zip(words, parsed, strict=True)
        ]
    return words


def _firsts(overrides: Iterable[Any]) -> list[str]:
    """Each word, or the first of its values; an interval has none."""
    return [
        _swept(override, 1)[0] if override.is_discrete_sweep() else str(override.input_line)
        for override in overrides
        if override.is_discrete_sweep() or not override.is_sweep_override()
    ]


def _chooses(word: str) -> bool:
    """Whether a word may choose a group's option, or is Hydra's: the others need options that are chosen."""
    key = word.partition("=")[0].lstrip("+~")
    return not re.search("[.@]", key) or key.startswith("hydra.")


def _params(composed: Any) -> Mapping[str, Any]:
    """What a config sweeps by itself."""
    from omegaconf import OmegaConf

    return OmegaConf.select(composed, "hydra.sweeper.params") or {}


def _merged(parser: Any, params: Mapping[str, Any], parsed: Sequence[Any]) -> list[Any]:
    """A key that comes again takes its first place and its last value, as in Hydra's own sweeper."""
    given = parser.parse_overrides([f"{key}={value}" for key, value in params.items()])
    return list({override.get_key_element(): override for override in (*given, *parsed)}.values())


def _prepare_sweep(request: Request, primary: str, hydra: Any, parser: Any, words: list[str], extra: list[str]) -> Plan:
    from hydra import compose
    from omegaconf import OmegaConf

    check_sweeper(hydra)
    parsed = parser.parse_overrides(words)
    basic = str(hydra.sweeper.get("_target_")).endswith(".BasicSweeper")
    for override in parsed if basic else ():
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise UserError(f"{override.input_line}: this sweeper takes no interval; list the values, 0.1,0.2")
    params = _own_params(primary, parsed, extra)
    overrides = _merged(parser, params if basic else {}, parsed)
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
    fixed = frozenset(options[0].partition("=")[0].lstrip("+~") for options in values if len(options) == 1)
    known: list[Cell] = []
    configs: list[dict[str, Any]] = []
    for number, job in enumerate(_cells(values)):
        composed = compose(primary, [*job, *extra], return_hydra_config=True)
        if _params(composed) != params:
            _refuse_a_sweep_of_sweeps(primary, params, parsed, job, extra)
        folder, config = _as_job_of_sweep(composed, number, sweep_dir, own=request.own)
        if request.verb == "train" and basic and number < min(jobs, MAX_PREFLIGHT):
            known.append(Cell(number, folder, own_words(job, fixed), config))
            if not _will_run(folder, request.retry_failed):
                continue
        configs.append(config)
    _refuse_shared(known, OmegaConf.to_container(hydra.sweep, resolve=False)["subdir"])  # type: ignore[index]
    _refuse_twins(known)
    for cell in known:
        if (cell.folder / run.RUN_FILE).exists():
            cells.refuse_another(cell.folder, cell.config)
    return Plan(configs, words, jobs if basic else None, sweep_dir, known, fixed)


def _own_params(primary: str, parsed: Sequence[Any], extra: list[str]) -> Mapping[str, Any]:
    """What the config sweeps by itself, whatever the command sweeps."""
    from hydra import compose

    fixed = [str(override.input_line) for override in parsed if not override.is_sweep_override()]
    return _params(compose(primary, [*filter(_chooses, fixed), *extra], return_hydra_config=True))


def _refuse_a_sweep_of_sweeps(
    primary: str, params: Mapping[str, Any], parsed: Sequence[Any], job: Sequence[str], extra: list[str]
) -> None:
    """Hydra would leave out what an option that is swept itself sweeps."""
    from hydra import compose

    fixed = [str(override.input_line) for override in parsed if not override.is_sweep_override()]
    for word in filter(_chooses, job):
        if word not in fixed:
            alone = [*filter(_chooses, fixed), word, *extra]
            if _params(compose(primary, alone, return_hydra_config=True)) != params:
                raise UserError(f"{word} is a sweep of its own: give each its own command")


def _as_job_of_sweep(composed: Any, number: int, sweep_dir: Path, *, own: bool) -> tuple[Path, dict[str, Any]]:
    from omegaconf import open_dict, read_write

    with read_write(composed.hydra), open_dict(composed.hydra):
        composed.hydra.job.num = composed.hydra.job.id = number
        composed.hydra.sweep.dir = str(sweep_dir)
    return _as_job(composed, lambda: sweep_dir / str(composed.hydra.sweep.subdir), own)


def _as_job(composed: Any, place: Callable[[], Path], own: bool) -> tuple[Path, dict[str, Any]]:
    """A job's folder, and its own part of a config that was composed with Hydra's, read as they are in the job."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict, read_write

    current, before = HydraConfig.instance(), HydraConfig.instance().cfg
    current.set_config(composed)  # for ${hydra:...}
    try:
        folder = place()
        hydra: Any = HydraConfig.get()
        with read_write(hydra), open_dict(hydra):
            hydra.runtime.output_dir = str(folder.absolute())
        with open_dict(composed):
            del composed["hydra"]
        return folder, plain(composed, own)
    finally:
        current.cfg = before


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


def _refuse_twins(known: Sequence[Cell]) -> None:
    taken: dict[str, Cell] = {}
    for cell in known:
        other = taken.setdefault(json.dumps(cell.config, sort_keys=True, default=str), cell)
        if other is not cell:
            told = f" ({other.words or 'no words'}; {cell.words or 'no words'})"
            raise UserError(f"jobs {other.number} and {cell.number} are the very same training{told}")


def _swept(override: Any, most: int = MAX_SWEEP + 1) -> list[str]:
    """The first values of a sweep, as an override each.

    Raises:
        UserError: it has no value, or so many that nobody waits for the jobs.
    """
    span = override.value()
    try:
        length = abs((span.stop - span.start) / span.step) if hasattr(span, "step") else 0  # shuffle() lists a range
        found = [] if length > MAX_SWEEP else list(itertools.islice(override.sweep_string_iterator(), most))
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
        raise UserError(f"{folder} holds a run already; flowcli train --resume {typed(folder)} goes on with it")


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

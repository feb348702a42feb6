"""The one place that talks to Hydra: hand-over, preflight, frozen configs, completion of overrides.

A verb's work is found by name inside the job: `flowcli.tasks.<verb>` has

    check(configs)        before anything is written: build what is cheap, open the data, raise UserError
    run(config, folder)   one job: a resolved plain dict and the folder that is its to write in

Hydra, OmegaConf and torch are imported inside functions, so that `flowcli --help` answers at once.
"""

import importlib
import importlib.util
import io
import itertools
import logging
import math
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowcli import configs, foreign, processes, run, storage, trust
from flowcli.errors import Interrupted, JobError, UserError
from flowcli.explain import FLAGS_ONLY, did_you_mean, explain, have, is_users, quoted
from flowcli.signals import listening

log = logging.getLogger(__name__)

MAX_PREFLIGHT = 200
"""Jobs of one sweep that are composed before the first starts; at about 30 ms each, 6 s."""

MAX_SWEEP = 100_000
"""Values of one sweep, and jobs in all: Hydra lists them before the first starts."""

FROZEN = "_ckpt"
"""The option under which a checkpoint's own node stands in each config group."""

ON_CHECKPOINT = {
    "sample": ("solver", "seed", "device", "dtype"),
    "likelihood": ("solver", "divergence", "seed", "device", "dtype", "evaluation"),
}
"""What may be changed for a trained flow, besides the verb's own keys."""

ON_RESUME = ("trainer.steps", "trainer.max_time", "logger")
"""What may be changed when a run goes on."""

FLAG_OR_KEY = ("weights", "which", "out")
"""Config keys that have a flag for convenience."""

DONE, FAILED, WRONG_INPUT = 0, 1, 2


@dataclass(frozen=True)
class Request:
    """One command line, taken apart."""

    verb: str
    overrides: Sequence[str] = ()
    multirun: bool = False
    cfg: str | None = None
    resolve: bool = False
    package: str | None = None
    info: str | None = None
    config_name: str | None = None
    config_dir: Path | None = None
    trust: Sequence[str] = ()
    resume: Path | None = None
    ckpt: Path | None = None
    weights: str | None = None
    which: str | None = None
    out: Path | None = None


# ---------------------------------------------------------------- what conf/ offers, without Hydra (for --help)
def groups() -> dict[str, list[str]]:
    """The config groups and their options, by listing folders."""
    found: dict[str, list[str]] = {}
    for file in sorted(trust.conf_dir().glob("*/*.yaml")):
        found.setdefault(file.parent.name, []).append(file.stem)
    return found


def keys(verb: str) -> dict[str, tuple[str, str]]:
    """The top-level keys of conf/<verb>.yaml: {key: (default, the comment behind it)}."""
    line = re.compile(r"^(\w+): *(.*?) *(?:# *(.*))?$")
    text = (trust.conf_dir() / f"{verb}.yaml").read_text(encoding="utf-8")
    found = {m[1]: (m[2], m[3] or "") for m in map(line.match, text.splitlines()) if m}
    return {key: value for key, value in found.items() if key not in ("defaults", "hydra")}


# ---------------------------------------------------------------- from a command line to an exit status
def launch(request: Request) -> int:
    """Run a verb under Hydra; say on stderr what went wrong; return the exit status."""
    return _guarded(request.verb, lambda: _launch(request))


def perform(verb: str, **options: Any) -> int:
    """Run a verb that needs no config: `flowcli.tasks.<verb>.run(**options)`."""

    def work() -> int:
        _task(verb).run(**options)
        return DONE

    return _guarded(verb, work)


def _guarded(verb: str, work: Callable[[], int]) -> int:
    try:
        with listening("interrupted"):
            status = work()
            sys.stdout.flush()
            return status
    except BrokenPipeError:
        return hush()
    except Interrupted as stop:
        return hush() if stop.signum == signal.SIGPIPE else _say(verb, stop.message, 128 + stop.signum)
    except KeyboardInterrupt:  # before anybody listened
        return _say(verb, "interrupted", 128 + signal.SIGINT)
    except Exception as error:
        if _debug():
            traceback.print_exc()
        status = WRONG_INPUT if is_users(error) else FAILED
        hint = (
            "" if status == WRONG_INPUT or isinstance(error, JobError) else " (HYDRA_FULL_ERROR=1 shows the traceback)"
        )
        return _say(verb, f"error: {explain(error)}{hint}", status)


def hush() -> int:
    """Nobody reads stdout any more (`flowcli ... | head`): let the interpreter's last flush go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def _say(verb: str, message: str, status: int) -> int:
    follower = f" [process {os.environ.get('RANK')}]" if processes.started() and os.environ.get("RANK") != "0" else ""
    print(f"flowcli {verb}{follower}: {foreign.printable(message)}", file=sys.stderr, flush=True)
    return status


def _debug() -> bool:
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


def _task(verb: str) -> Any:
    return importlib.import_module(f"flowcli.tasks.{verb}")


def _launch(request: Request) -> int:
    debug = _debug()
    request = replace(request, overrides=[_nested_choice(word) for word in request.overrides])
    _refuse_bare_words(request.overrides)
    with _borrowed_process():
        overrides = _parse(request.overrides)
        _refuse_no_option(overrides)
        _refuse_hydras(request, overrides)
        if request.config_dir is not None:
            configs.check(request.config_dir, [request.config_name or request.verb, *_chosen(overrides)])
        for override in overrides:
            if override.key_or_group in FLAGS_ONLY:
                raise UserError(f"{override.input_line}: use the flag --{override.key_or_group}")
        if any(not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", name) for name in request.trust):
            raise UserError(f"--trust {' '.join(request.trust)}: want the full name of a class, package.module.Class")
        if request.cfg is None and (request.resolve or request.package is not None):
            raise UserError("--resolve and --package say how --cfg prints the config: add --cfg job")
        primary, words = request.config_name or request.verb, [*_flag_overrides(request), *request.overrides]
        if request.resume is not None:
            primary, words = "resume", [*words, *_reopen(request, overrides)]
        elif request.ckpt is not None:
            _freeze(request, request.ckpt, overrides)
        if request.cfg is not None or request.info is not None:
            if request.multirun:
                raise UserError("--cfg and --info show one config: leave out --multirun")
            return _show(request, primary, words)

        plan = _preflight(request, primary, words)
        if processes.started() and plan.sweep_dir is not None:
            raise UserError("torchrun gives all its processes to one job; a sweep's jobs go to hydra/launcher=...")
        _task(request.verb).check(plan.configs)
        if processes.started():
            return _together(request, primary, words, debug)
        job = Job(request.verb, own=request.ckpt is None and request.resume is None, debug=debug)
        if plan.sweep_dir is not None:  # said once and for all: Hydra's clock has moved on, and failures are read there
            words = [*words, f"hydra.sweep.dir={quote(plan.sweep_dir)}"]
        _hand_over(request, primary, words, job)
        if plan.sweep_dir is not None:
            if request.verb == "train":
                print(f"sweep  {_short(plan.sweep_dir)}  (side by side: flowcli compare {_short(plan.sweep_dir)})")
            status = _report_sweep(request.verb, plan.sweep_dir, plan.jobs)
            return FAILED if status == DONE and job.failure is not None else status
        return _ended(request.verb, job)


def _together(request: Request, primary: str, words: list[str], debug: bool) -> int:
    """One of the processes that torchrun started: the first goes through Hydra, the others do what its job does."""
    with processes.joined():
        if processes.leads():
            job = Job(request.verb, own=request.ckpt is None and request.resume is None, debug=debug)
            _hand_over(request, primary, words, job)
            return _ended(request.verb, job)
        opened = processes.share(None)
        if opened is not None:
            with processes.watched("the first process says how to go on"):
                _task(request.verb).run(*opened)
        return DONE


def _ended(verb: str, job: "Job") -> int:
    return DONE if job.failure is None else _say(verb, f"error: {job.failure.reason}", job.failure.status)


def _flag_overrides(request: Request) -> list[str]:
    given = {name: getattr(request, name) for name in ("ckpt", *FLAG_OR_KEY)}
    words = [f"{name}={quote(value)}" for name, value in given.items() if value is not None]
    return [*words, f"trust=[{','.join(map(quote, request.trust))}]"] if request.trust else words


def quote(value: str | Path) -> str:
    """A text as one Hydra override value, whatever characters it has.

    Raises:
        UserError: it holds `${`, which a saved config may not.
    """
    if "${" in str(value):
        raise UserError(f"{value}: a name with '${{' in it cannot be used")
    return quoted(str(value))


def _parse(words: Sequence[str]) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_overrides(list(words))


def _nested_choice(word: str) -> str:
    """`base.data=moons` chooses an option for a node inside a node, which Hydra writes data@base.data=moons."""
    key, _, value = word.partition("=")
    outer, _, inner = key.partition(".")
    options, node = set(value.split(",")), f"/{inner}@{inner}:"
    if not options <= set(groups().get(inner, ())):
        return word
    files = (trust.conf_dir() / outer).glob("*.yaml") if outer.isidentifier() else ()
    return f"{inner}@{word}" if any(node in file.read_text(encoding="utf-8") for file in files) else word


def _refuse_bare_words(words: Sequence[str]) -> None:
    for word in words:
        if ("=" not in word and not word.startswith("~")) or word.lstrip("+~").startswith("="):
            options = groups().get(word)
            hint = f"; write {word}=OPTION, one of {', '.join(options)}" if options else ""
            raise UserError(f"{word!r} is not key=value{hint}")
        if re.search(r"[\d_]{1000}", word):
            raise UserError(f"{word[:60]}...: a number of more than a thousand digits")


def _refuse_no_option(overrides: Iterable[Any]) -> None:
    """A group's value is an option's name, or a list of them."""
    for override in overrides:
        key, options = override.key_or_group, groups().get(override.key_or_group)
        if (options or "/" in key) and not override.is_sweep_override() and not override.is_delete():
            value = override.value()
            names = value if isinstance(value, list) else [value]
            if not all(isinstance(name, str) for name in names):
                raise UserError(f"{override.input_line}: no such option" + (f" ({have(options)})" if options else ""))


def _chosen(overrides: Iterable[Any]) -> Iterator[str]:
    """The options that overrides choose, group/option."""
    for override in overrides:
        values = override.sweep_string_iterator() if override.is_discrete_sweep() else [override.value()]
        for value in itertools.islice(values, MAX_PREFLIGHT):
            for option in value if isinstance(value, list) else [value]:
                yield f"{override.key_or_group}/{option}"


# ---------------------------------------------------------------- Hydra's own settings
def _refuse_hydras(request: Request, overrides: Iterable[Any]) -> None:
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


def _check_hydra(hydra: Any, *, resumed: bool, jobs: int | None) -> None:
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


def _check_sweeper(hydra: Any) -> None:
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


# ---------------------------------------------------------------- a run's own config, frozen
def _freeze(request: Request, ckpt: Path, overrides: Sequence[Any]) -> None:
    """Offer a checkpoint's config to Hydra, and refuse to change what belongs to its training."""
    from flowcli.checkpoints import find_checkpoint

    checkpoint = find_checkpoint(ckpt, which=request.which or keys(request.verb)["which"][0])
    free = list(
        dict.fromkeys([*ON_CHECKPOINT[request.verb], *(key for key in keys(request.verb) if key not in FLAGS_ONLY)])
    )
    for override in overrides:
        root = re.split(r"[./]", override.key_or_group)[0]
        if root in (*free, "hydra"):
            continue
        if root not in checkpoint.config and root not in groups():
            raise UserError(f"{override.key_or_group}: no such key ({have(free)}){did_you_mean(root, free)}")
        hint = "; to score other data: flowcli likelihood --ckpt RUN input=FILE" if root == "data" else ""
        raise UserError(
            f"{override.input_line}: {root} belongs to training and is fixed in a checkpoint"
            f" (may change: {', '.join(free)}){hint}"
        )
    register_frozen(checkpoint.config, checkpoint.choices)


class _FewerSteps(UserError):
    """--resume with a trainer.steps that lies behind the run."""


def _refuse_fewer_steps(overrides: Sequence[Any], done: int) -> None:
    for override in overrides:
        steps = override.value() if override.key_or_group == "trainer.steps" else None
        if isinstance(steps, int | float) and steps < done:
            raise _FewerSteps(f"{override.input_line}: the run has done {done} steps already; give more")


def _reopen(request: Request, overrides: Sequence[Any]) -> list[str]:
    """Offer the config of a run that goes on; return the overrides that lead Hydra back into its folder."""
    from flowcli import checkpoints

    if request.multirun or request.config_name is not None:
        raise UserError("--resume goes on with one run and its own config: leave out --multirun and --config-name")
    for override in overrides:
        key = override.key_or_group
        if key not in ON_RESUME and not key.startswith("logger."):
            raise UserError(f"{override.input_line}: with --resume only {', '.join(ON_RESUME)} may change")
    resume = Path(str(request.resume))
    if resume.is_dir():
        foreign.refuse_links(resume)  # the lock, the logs and the arrays are written where a link leads
    try:
        checkpoint = checkpoints.find_checkpoint(resume, which="last")
        folder, config, choices = checkpoint.run, checkpoint.config, checkpoint.choices
        _refuse_fewer_steps(overrides, int(checkpoint.description.get("step", 0)))
    except _FewerSteps:
        raise
    except UserError as error:
        if not (resume / run.RUN_FILE).is_file() or (resume / "checkpoints" / "last").exists():
            raise UserError(str(error).replace("--ckpt", "--resume", 1)) from error
        # stopped before its first checkpoint: it starts over in place
        folder, config = resume, checkpoints.read_config(resume / run.RESOLVED_FILE)
        choices = checkpoints.read_config(resume / run.CHOICES_FILE)
    holder = storage.in_use(folder)
    if holder is not None:
        raise UserError(f"{folder} is in use: {holder} trains into it; wait for it, or stop it")
    register_frozen(config, choices)
    # output_subdir: .hydra/ keeps what was first asked; what changes now is in the checkpoints that follow
    folder = folder.resolve()
    return [f"hydra.run.dir={quote(folder)}", "hydra.output_subdir=null", f"resume={quote(folder)}"]


def register_frozen(config: Mapping[str, Any], choices: Mapping[str, str | None]) -> None:
    """Offer a run's config to Hydra: its node of every group as option `_ckpt`, the rest as the config `_ckpt`.

    `solver=euler` then replaces the frozen solver whole, by the ordinary rules of the defaults list;
    everything else keeps the value it was trained with, whatever conf/ says today.

    Raises:
        UserError: the config holds what no run of ours does.
    """
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance().store
    # Hydra's own node would be obeyed (callbacks, launchers), and trust is given by the user, not by a file
    rest = {key: value for key, value in config.items() if key not in (*FLAGS_ONLY, "hydra")}
    defaults: list[Any] = ["_self_"]
    for choice in choices:
        key = choice.rpartition("@")[2]
        if not re.fullmatch(r"\w+(@\w+)?", choice) or key not in rest:
            continue  # Hydra's groups, groups inside another node (they stay there), experiments
        if rest[key] is None:
            defaults.append({choice: None})
            continue
        group, name, node = choice.partition("@")[0], choice.replace(choice.partition("@")[0], FROZEN), rest.pop(key)
        if not isinstance(node, dict) or "defaults" in node:
            raise UserError(f"the checkpoint's config is not one of flowcli's: {key} is not a group's node")
        store(group=group, name=name, node=node)
        defaults.append({choice: name})
    if "defaults" in rest:
        raise UserError("the checkpoint's config is not one of flowcli's: it has a defaults list")
    store(name=FROZEN, node={"defaults": defaults, **rest})


# ---------------------------------------------------------------- preflight
@dataclass(frozen=True)
class _Plan:
    """What will run: the jobs' configs (at most MAX_PREFLIGHT), how many jobs, and where a sweep goes."""

    configs: list[dict[str, Any]]
    jobs: int
    sweep_dir: Path | None


def _preflight(request: Request, primary: str, words: list[str]) -> _Plan:
    """Compose every job before the first starts: no half-run sweep, no empty folders, and no torch yet."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import open_dict

    root, extra = _search_path(request, primary)
    own = request.ckpt is None and request.resume is None
    with initialize_config_dir(str(root), job_name=request.verb, version_base="1.3"):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        parsed = parser.parse_overrides(words)
        fixed = [word for word, override in zip(words, parsed, strict=True) if not override.is_sweep_override()]
        base = compose(primary, [*fixed, *extra], return_hydra_config=True)
        _refuse_new_keys(parsed, base)
        hydra = base.hydra
        with open_dict(base):
            del base["hydra"]
        if not (request.multirun or (hydra.mode is not None and hydra.mode.name == "MULTIRUN")):
            for override in parsed:
                if override.is_sweep_override():
                    key, _, value = str(override.input_line).partition("=")
                    a_list = "" if key in groups() else f", or write {key}=[{value}] for a list"
                    raise UserError(f"{override.input_line} is a sweep: add -m to run each{a_list}")
            _check_hydra(hydra, resumed=request.resume is not None, jobs=None)
            _refuse_to_overwrite(
                request, Path(hydra.run.dir), f"flowcli train --resume {hydra.run.dir} goes on with it"
            )
            storage.require_writable(Path(hydra.run.dir))
            return _Plan([_plain(base, own)], 1, None)
        _check_sweeper(hydra)
        basic = str(hydra.sweeper.get("_target_")).endswith(".BasicSweeper")
        for override in parsed if basic else ():
            if override.is_sweep_override() and not override.is_discrete_sweep():
                raise UserError(f"{override.input_line}: this sweeper takes no interval; list the values, 0.1,0.2")
        if basic and hydra.sweeper.get("params"):
            named = {override.get_key_element() for override in parsed}
            swept = parser.parse_overrides([f"{key}={value}" for key, value in hydra.sweeper.params.items()])
            parsed = [*(override for override in swept if override.get_key_element() not in named), *parsed]
        values = [
            _swept(override) if override.is_discrete_sweep() else [str(override.input_line)]
            for override in parsed
            if override.is_discrete_sweep() or not override.is_sweep_override()  # an interval has no list of values
        ]
        jobs = math.prod(map(len, values))
        if jobs > MAX_SWEEP:
            swept = " ".join(str(override.input_line) for override in parsed if override.is_sweep_override())
            raise UserError(f"{swept}: {jobs:,} jobs in one sweep, at most {MAX_SWEEP:,} can be listed")
        _check_hydra(hydra, resumed=False, jobs=jobs)
        configs = [_plain(compose(primary, [*job, *extra]), own) for job in _cells(values)]
        sweep_dir = Path(hydra.sweep.dir)
        for cell in sweep_dir.glob("*/run.json"):
            _refuse_to_overwrite(request, cell.parent, "give another hydra.sweep.dir")
        storage.require_writable(sweep_dir)
        return _Plan(configs, jobs, sweep_dir)


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


def _search_path(request: Request, primary: str) -> tuple[Path, list[str]]:
    """The folder to compose from, and the override that adds the user's --config-dir behind it."""
    main = trust.conf_dir()
    if request.config_dir is None:
        return main, []
    other = request.config_dir.resolve()
    if (other / f"{primary}.yaml").is_file() and not (main / f"{primary}.yaml").is_file():
        main, other = other, main  # compose() looks for a primary config in the first folder only
    return main, [f"hydra.searchpath=[{quote(f'file://{other}')}]"]


def _refuse_to_overwrite(request: Request, folder: Path, advice: str) -> None:
    if request.verb == "train" and request.resume is None and (folder / "run.json").exists():
        raise UserError(f"{folder} holds a run already; {advice}")


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


def _plain(cfg: Any, own: bool) -> dict[str, Any]:
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


# ---------------------------------------------------------------- inside Hydra
@dataclass(frozen=True)
class _Failure:
    reason: str
    status: int


class Job:
    """What Hydra runs. It travels to worker processes, and imports the task (and so torch) only there."""

    def __init__(self, verb: str, *, own: bool, debug: bool) -> None:
        """Take the verb, whether the user wrote the config, and whether tracebacks go to the terminal."""
        self.verb, self.own, self.debug = verb, own, debug
        self.failure: _Failure | None = None
        self.__module__ = f"flowcli.tasks.{verb}"  # Hydra takes the job's name from it

    def __call__(self, cfg: Any) -> float | None:
        """Run one job. A failure is written down, not raised: the other jobs of a sweep go on.

        Raises:
            Interrupted: a signal ended the job, or nobody reads its output any more.
        """
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        with ExitStack() as locked:
            opened = ours = None
            try:
                if self.verb == "train":
                    locked.enter_context(storage.lock(folder))
                ours = folder  # until then it is another's, who needs no reason of ours in it
                config = _plain(cfg, self.own)
                self._open(folder, config, hydra.runtime.choices)
                opened = config, folder
            except Exception as error:
                self._failed(error, ours, hydra)
            if processes.share(opened) is None or opened is None:
                return None
            try:
                with processes.watched(f"go on with: flowcli train --resume {_short(folder)}"):
                    return _task(self.verb).run(*opened)
            except BrokenPipeError:
                raise Interrupted(signal.SIGPIPE, "") from None
            except Exception as error:
                self._failed(error, folder, hydra)
                return None

    def _open(self, folder: Path, config: Mapping[str, Any], choices: Mapping[str, Any]) -> None:
        """Mark the folder as a run and write what was asked; a run that goes on keeps what was first asked."""
        if not config.get("resume"):
            asked = {str(group): option for group, option in choices.items() if not str(group).startswith("hydra/")}
            run.RunFolder.create(folder, self.verb, config, asked)
        run.RunFolder(folder).reopen()

    def _failed(self, error: Exception, folder: Path | None, hydra: Any) -> None:
        """Say what happened, and leave the reason in the folder, where the sweep's list is read from."""
        if self.debug:
            traceback.print_exc()
        if logging.getLogger().handlers:  # without one, Python would print the traceback on the terminal
            with suppress(OSError):  # a full disk, a deleted folder
                log.error("%s", explain(error), exc_info=not isinstance(error, UserError))
        reason = explain(error)
        if folder is not None and not isinstance(error, UserError | JobError | OSError):
            file = folder / f"{hydra.job.name}.log"
            reason += f"; the traceback is in {_short(file)}" if file.is_file() else ""
        self.failure = _Failure(reason, WRONG_INPUT if isinstance(error, UserError) else FAILED)
        if hydra.mode is not None and hydra.mode.name == "MULTIRUN":
            _say(self.verb, f"job {hydra.job.num} failed: {reason}", FAILED)
        if folder is not None:
            _leave_reason(folder, reason)


def _leave_reason(folder: Path, reason: str) -> None:
    with suppress(OSError):  # a full disk, a deleted folder: the reason itself still reaches the terminal
        run.RunFolder(folder).fail(reason)


def _show(request: Request, primary: str, words: list[str]) -> int:
    def never(cfg: Any) -> None:
        raise AssertionError("--cfg and --info run no job")

    try:
        with redirect_stderr(io.StringIO()):  # Hydra's own words for a package that is not there
            _hand_over(request, primary, words, never)
    except SystemExit as error:
        raise UserError(f"--package {request.package}: there is nothing under that key") from error
    return DONE


def _hand_over(request: Request, primary: str, words: list[str], job: Callable[[Any], Any]) -> None:
    """Let hydra.main read a command line with the flags first: Hydra 1.3 does not take `a=1 -m b=1,2`."""
    import hydra

    argv = ["flowcli", "--config-name", primary]
    for flag, value in (
        ("--config-dir", request.config_dir),
        ("--cfg", request.cfg),
        ("--package", request.package),
        ("--info", request.info),
    ):
        argv += [] if value is None else [flag, str(value)]
    argv += [flag for flag, given in (("--multirun", request.multirun), ("--resolve", request.resolve)) if given]
    sys.argv = [*argv, "--", *words]
    hydra.main(config_path=str(trust.conf_dir()), config_name=primary, version_base="1.3")(job)()


@contextmanager
def _borrowed_process() -> Iterator[None]:
    """Give back what Hydra takes of the process: argv, environment, root logging, its own singletons."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra

    root, current = logging.getLogger(), GlobalHydra.instance()
    argv, full_error, handlers, level = sys.argv, os.environ.get("HYDRA_FULL_ERROR"), root.handlers[:], root.level
    outer, loud = current.hydra, logging.raiseExceptions
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of printing and leaving
    logging.raiseExceptions = False  # a log that cannot be written must not print tracebacks beside our one line
    current.clear()
    try:
        yield
    finally:
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            with suppress(OSError):  # a full disk
                handler.close()
        root.handlers[:], root.level, sys.argv, current.hydra = handlers, level, argv, outer
        logging.raiseExceptions = loud
        _forget_frozen(ConfigStore.instance().repo)
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def _forget_frozen(entries: dict[str, Any]) -> None:
    """Take out what register_frozen put in, and no more: Hydra's plugins have entries of their own."""
    for name, entry in list(entries.items()):
        if isinstance(entry, dict):
            _forget_frozen(entry)
        if name.startswith(FROZEN) or entry == {}:
            del entries[name]


def _report_sweep(verb: str, sweep_dir: Path, jobs: int) -> int:
    """List the failed jobs of a sweep, whichever process ran them."""
    import json

    import yaml

    failed = sorted(sweep_dir.rglob("failure.json"), key=lambda file: (len(file.parent.name), file.parent.name))
    if not failed:
        return DONE
    lines = []
    for file in failed:
        words = yaml.safe_load((file.parent / ".hydra" / "overrides.yaml").read_text(encoding="utf-8")) or []
        told = " ".join(word for word in words if word.partition("=")[0] not in FLAGS_ONLY)
        lines.append(f"  {_short(file.parent)} ({told}): {json.loads(file.read_text(encoding='utf-8'))['reason']}")
    return _say(verb, "\n".join([f"{len(failed)} of {jobs} jobs failed:", *lines]), FAILED)


def _short(path: Path) -> Path:
    """A path as the user would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


# ---------------------------------------------------------------- completion of overrides
def complete(request: Request, incomplete: str) -> list[str]:
    """What the word under the cursor may become; nothing where the rest of the line is wrong."""
    words, cut = list(request.overrides), ""
    if "COMP_WORDS" in os.environ:  # bash splits words at '=': put `path = ot` together again
        at_equals = os.environ["COMP_WORDS"].split("\n")[int(os.environ["COMP_CWORD"])] == "="
        words += ["="] if at_equals else [incomplete]  # Typer drops a last '='
        while "=" in words[1:]:
            at = words.index("=", 1)
            words[at - 1 : at + 2] = ["".join(words[at - 1 : at + 2])]
        cut, incomplete = words[-1].removesuffix(incomplete), words.pop()
    try:
        with _borrowed_process():
            if request.ckpt is not None:
                _freeze(request, request.ckpt, [])
            return [word.removeprefix(cut) for word in _candidates(request, words, incomplete)]
    except Exception as error:  # a shell has no place for our error: it would stand in the user's command line
        log.debug("completion: %s", error)
        return []


def _candidates(request: Request, words: list[str], word: str) -> list[str]:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin

    primary = request.config_name or request.verb
    root, extra = _search_path(request, primary)
    with initialize_config_dir(str(root), job_name=request.verb, version_base="1.3"):
        plugin = DefaultCompletionPlugin(GlobalHydra.instance().config_loader())

        def ask(start: str) -> list[str]:
            return plugin._query(config_name=primary, line=" ".join([*words, *extra, start]))

        found = ask(word)
        if len(found) == 1 and found[0][-1] in "=./" and found[0] != word:
            found = ask(found[0]) or found  # a shell would put a space behind a lone 'path='
    shown = [option for option in found if "=_" not in option and trust.TARGET not in option]
    return [option for option in shown if re.fullmatch(r"[\w.,:/=@+\[\]-]*", option)]  # a shell may obey the others

"""From a command line to an exit status."""

import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowcli import configs, processes, trust
from flowcli.errors import Interrupted, JobError, UserError
from flowcli.explain import FLAGS_ONLY, explain, is_users
from flowcli.launch.borrowed import borrowed_process
from flowcli.launch.ending import DONE, FAILED, WRONG_INPUT, hush, say, shown
from flowcli.launch.frozen import freeze, reopen
from flowcli.launch.hydra_settings import refuse_unready
from flowcli.launch.job import CellJob, Job, task
from flowcli.launch.preflight import Plan, prepare
from flowcli.launch.request import (
    Request,
    chosen_options,
    flag_overrides,
    nested_choice,
    parse,
    quote,
    refuse_bare_words,
    refuse_no_option,
)
from flowcli.launch.sweep import sweep
from flowcli.signals import listening


def launch(request: Request) -> int:
    """Run a verb under Hydra; say on stderr what went wrong; return the exit status."""
    return _guarded(request.verb, lambda: _launch(request))


def perform(verb: str, **options: Any) -> int:
    """Run a verb that needs no config: `flowcli.tasks.<verb>.run(**options)`."""

    def work() -> int:
        task(verb).run(**options)
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
        return hush() if stop.signum == signal.SIGPIPE else say(verb, stop.message, 128 + stop.signum)
    except KeyboardInterrupt:  # before anybody listened
        return say(verb, "interrupted", 128 + signal.SIGINT)
    except Exception as error:
        if _debug():
            traceback.print_exc()
        status = WRONG_INPUT if is_users(error) else FAILED
        hint = (
            "" if status == WRONG_INPUT or isinstance(error, JobError) else " (HYDRA_FULL_ERROR=1 shows the traceback)"
        )
        return say(verb, f"error: {explain(error)}{hint}", status)


def _debug() -> bool:
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


def _launch(request: Request) -> int:
    debug, asked = _debug(), request
    request = replace(request, overrides=[nested_choice(word) for word in request.overrides])
    refuse_bare_words(request.overrides)
    with borrowed_process():
        overrides = parse(request.overrides)
        refuse_no_option(overrides)
        refuse_unready(request, overrides)
        if request.config_dir is not None:
            configs.check(request.config_dir, [request.config_name or request.verb, *chosen_options(overrides)])
        for override in overrides:
            if override.key_or_group in FLAGS_ONLY:
                raise UserError(f"{override.input_line}: use the flag --{override.key_or_group}")
        if any(not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", name) for name in request.trust):
            raise UserError(f"--trust {' '.join(request.trust)}: want the full name of a class, package.module.Class")
        if request.cfg is None and (request.resolve or request.package is not None):
            raise UserError("--resolve and --package say how --cfg prints the config: add --cfg job")
        primary, words = request.config_name or request.verb, [*flag_overrides(request), *request.overrides]
        if request.resume is not None:
            primary, words = "resume", [*words, *reopen(request, overrides)]
        elif request.ckpt is not None:
            freeze(request, request.ckpt, overrides)
        if request.cfg is not None or request.info is not None:
            if request.multirun:
                raise UserError("--cfg and --info show one config: leave out --multirun")
            return _show(request, primary, words)

        plan = prepare(request, primary, words)
        words = plan.words
        if processes.started() and plan.sweep_dir is not None:
            raise UserError("torchrun gives all its processes to one job; a sweep's jobs go to hydra/launcher=...")
        if plan.configs:
            task(request.verb).check(plan.configs)
        if processes.started():
            return _together(request, primary, plan, debug)
        if plan.sweep_dir is not None and request.verb == "train":

            def hand_over(more: list[str], job: CellJob) -> None:
                _hand_over(request, primary, [*words, *more], job)

            return sweep(asked, plan, plan.sweep_dir, hand_over, debug=debug)
        job = Job(request.verb, own=request.own, debug=debug)
        if plan.sweep_dir is not None:  # said once and for all: Hydra's clock has moved on, and failures are read there
            words = [*words, f"hydra.sweep.dir={quote(plan.sweep_dir)}"]
        _run(request, primary, words, plan.composed, job)
        if plan.sweep_dir is not None:
            status = _report_sweep(request.verb, plan.sweep_dir, plan.jobs or 0)
            return FAILED if status == DONE and job.failure is not None else status
        return _ended(request.verb, job)


def _together(request: Request, primary: str, plan: Plan, debug: bool) -> int:
    """One of the processes that torchrun started: the first goes through Hydra, the others do what its job does."""
    with processes.joined():
        if processes.leads():
            job = Job(request.verb, own=request.own, debug=debug)
            _run(request, primary, plan.words, plan.composed, job)
            return _ended(request.verb, job)
        with processes.watched("the first process says how to go on"):
            opened = processes.share(None)
            if opened is not None:
                task(request.verb).run(*opened)
        return DONE


def _ended(verb: str, job: "Job") -> int:
    return DONE if job.failure is None else say(verb, f"error: {job.failure.reason}", job.failure.status)


def _show(request: Request, primary: str, words: list[str]) -> int:
    def never(cfg: Any) -> None:
        raise AssertionError("--cfg and --info run no job")

    told = io.StringIO()
    try:
        # Hydra has words of its own for a package that is not there, and shows half of a config that it cannot compose
        with redirect_stderr(io.StringIO()), redirect_stdout(told):
            _hand_over(request, primary, words, never)
    except SystemExit as error:
        raise UserError(f"--package {request.package}: there is nothing under that key") from error
    print(told.getvalue(), end="")
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


def _run(request: Request, primary: str, words: list[str], composed: Any, job: Job) -> None:
    """Run a job as hydra.main does, which would compose its config twice again: to see how to run it, and to run it."""
    if composed is None:
        _hand_over(request, primary, words, job)
        return
    from hydra import initialize_config_dir
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.utils import configure_log, run_job
    from hydra.types import HydraContext, RunMode

    if composed.hydra.mode is None:
        composed.hydra.mode = RunMode.RUN
        composed.hydra.overrides.hydra.append("hydra.mode=RUN")
    with initialize_config_dir(str(trust.conf_dir()), job_name=request.verb, version_base="1.3"):
        configure_log(composed.hydra.hydra_logging)
        context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks(composed))
        context.callbacks.on_run_start(config=composed, config_name=primary)
        ended = run_job(job, composed, "hydra.run.dir", None, context)
        context.callbacks.on_run_end(config=composed, config_name=primary, job_return=ended)
        _ = ended.return_value  # raises what the job raised


def _report_sweep(verb: str, sweep_dir: Path, jobs: int) -> int:
    """List the failed jobs of a sweep, whichever process ran them."""
    import json

    import yaml

    failed = sorted(sweep_dir.rglob("failure.json"), key=lambda file: (len(file.parent.name), file.parent.name))
    if not failed:
        return DONE
    lines = []
    for file in failed:
        asked = file.parent / ".hydra" / "overrides.yaml"
        words = yaml.safe_load(asked.read_text(encoding="utf-8")) or [] if asked.is_file() else []
        told = " ".join(word for word in words if word.partition("=")[0] not in FLAGS_ONLY)
        lines.append(f"  {shown(file.parent)} ({told}): {json.loads(file.read_text(encoding='utf-8'))['reason']}")
    return say(verb, "\n".join([f"{len(failed)} of {jobs} jobs failed:", *lines]), FAILED)

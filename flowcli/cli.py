"""The command line. Only light imports: `flowcli --help` must answer at once."""

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperCommand, TyperGroup

from flowcli import __version__, launch
from flowcli.explain import FLAGS_ONLY, did_you_mean, explain, legible

WIDTH = 80
COMPARED = ("solver", "divergence", "evaluation")
"""Config groups that `compare` sets for all runs alike."""


# ---------------------------------------------------------------- help
class _AsTyped:
    """Takes an option's words as they are; Typer would import pydantic for it, which doubles the start-up time."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """Leave the value alone; `_request` checks it."""
        return value


def _light(params: list[Any]) -> list[Any]:
    for param in params:
        param._runtime_param = _AsTyped()  # Typer's own cache; a version without it is slower, no more
    return params


class _Verb(TyperCommand):
    """A verb's help: options by panel, then the config keys and groups that may follow them."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The options and arguments."""
        return _light(super().get_params(ctx))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write each panel as a section of its own."""
        panels: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                panel = getattr(param, "rich_help_panel", None) or "Options"
                if param.param_type_name == "argument":
                    panel, record = "Arguments", (str(param.metavar), record[1])
                panels.setdefault(panel, []).append(record)
        for panel, records in panels.items():
            with formatter.section(panel):
                formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write what conf/ offers; it is read only now, when somebody asks."""
        for title, records in _config_help(str(self.name)):
            with formatter.section(title):
                formatter.write_dl(records)


def _config_help(verb: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    flags = (*FLAGS_ONLY, *launch.FLAG_OR_KEY)
    own = [(f"{key}={value}", text) for key, (value, text) in launch.keys(verb).items() if value and key not in flags]
    if own:
        yield "Keys (key=value)", own
    found = launch.groups()
    asked = found if verb == "train" else COMPARED if verb == "compare" else launch.ON_CHECKPOINT[verb]
    shown = {group: found[group] for group in asked if group in found}
    if shown:
        yield "Config groups (group=option)", [(group, ", ".join(options)) for group, options in shown.items()]


class _Verbs(TyperGroup):
    """The verbs, with a hint for a misspelled one."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The options and arguments."""
        return _light(super().get_params(ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the verb."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            verbs = self.list_commands(ctx)
            ctx.fail(f"no such verb {args[0]!r} (have: {', '.join(verbs)}){did_you_mean(args[0], verbs)}")
        return super().resolve_command(ctx, args)


# ---------------------------------------------------------------- options
def _complete(ctx: typer.Context, incomplete: str) -> list[str]:
    return launch.complete(_request(ctx), incomplete)


CHOICES = {
    "cfg": ("job", "hydra", "all"),
    "info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "weights": ("ema", "raw"),
    "which": ("best", "last"),
    "format": ("text", "csv", "json", "markdown", "latex"),
}


def _options(ctx: typer.Context) -> dict[str, Any]:
    """The options that were given.

    Raises:
        BadParameter: one is none of its choices.
    """
    given = {key: value for key, value in ctx.params.items() if value is not None}
    for key, value in given.items():
        if key in CHOICES and value not in CHOICES[key]:
            legal = ", ".join(CHOICES[key])
            raise typer.BadParameter(f"--{key} must be one of {legal}, got {value!r}", ctx=ctx)
    return given


def _request(ctx: typer.Context) -> launch.Request:
    given = _options(ctx)
    if "cfg" in given and "info" in given:
        raise typer.BadParameter("--cfg and --info are two questions: ask one at a time", ctx=ctx)
    paths = {key: Path(given[key]) for key in ("resume", "ckpt", "out", "config_dir") if key in given}
    if "config_dir" in paths and not os.path.isdir(paths["config_dir"]):  # Path.is_dir raises where a name is too long
        raise typer.BadParameter(f"--config-dir {paths['config_dir']}: no such folder", ctx=ctx)
    return launch.Request(verb=str(ctx.command.name), **{**given, **paths})


HYDRA = "Composing and showing configs"
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Changes to the config: key=value, group=option; a=1,2 is a sweep with -m.",
        autocompletion=_complete,
        show_default=False,
    ),
]
Multirun = Annotated[bool, typer.Option("--multirun", "-m", help="Run every combination of a=1,2 b=x,y.")]
Trust = Annotated[
    list[str] | None,
    typer.Option("--trust", metavar="PACKAGE.MODULE.CLASS", help="Let the config build this class, too. Repeatable."),
]
Resume = Annotated[
    str | None,
    typer.Option(
        "--resume",
        metavar="RUN",
        help="Go on with a stopped run; trainer.steps, trainer.max_time and logger may change.",
    ),
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="In a sweep that goes on, run the failed jobs again, too.")
]
Ckpt = Annotated[
    str, typer.Option("--ckpt", metavar="RUN", help="A run, a checkpoint folder, a weights file, or latest.")
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="|".join(CHOICES["weights"]),
        help="Averaged (ema) or last (raw) weights.",
        show_default=False,
    ),
]
Which = Annotated[
    str | None,
    typer.Option(
        "--which", metavar="|".join(CHOICES["which"]), help="Which checkpoint of the run.", show_default=False
    ),
]
Out = Annotated[
    str | None,
    typer.Option(
        "--out",
        metavar="FILE",
        help="Write the samples, the latents (mode=encode) or the film (mode=animate) here, too: .npy, .csv, .parquet; "
        ".gif, .mp4.",
    ),
]
Cfg = Annotated[
    str | None,
    typer.Option(
        "--cfg", "-c", metavar="|".join(CHOICES["cfg"]), help="Print the config and run nothing.", rich_help_panel=HYDRA
    ),
]
Resolve = Annotated[bool, typer.Option("--resolve", help="With --cfg: resolve ${...}.", rich_help_panel=HYDRA)]
Package = Annotated[
    str | None,
    typer.Option("--package", "-p", metavar="KEY", help="With --cfg: print this part only.", rich_help_panel=HYDRA),
]
Info = Annotated[
    str | None,
    typer.Option(
        "--info",
        "-i",
        metavar="WHAT",
        help=f"Print what Hydra found: {', '.join(CHOICES['info'])}.",
        rich_help_panel=HYDRA,
    ),
]
ConfigName = Annotated[
    str | None,
    typer.Option("--config-name", "-cn", metavar="NAME", help="Another primary config.", rich_help_panel=HYDRA),
]
ConfigDir = Annotated[
    str | None,
    typer.Option(
        "--config-dir",
        "-cd",
        metavar="FOLDER",
        help="A folder with config options of your own.",
        rich_help_panel=HYDRA,
    ),
]


# ---------------------------------------------------------------- verbs
app = typer.Typer(
    name="flowcli",
    cls=_Verbs,
    no_args_is_help=True,
    rich_markup_mode=None,  # Rich's help costs another 60 ms at every --help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": WIDTH},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flowcli {__version__}")
        raise typer.Exit()


@app.callback()
def _flowcli(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Train, sample, score and compare normalizing flows.

    An experiment is a config: say what differs from the defaults. Each verb's
    --help lists what there is to say.

    flowcli train data=moons path=vp
    """


@app.command(cls=_Verb)
def train(
    ctx: typer.Context,
    overrides: Overrides = None,
    multirun: Multirun = False,
    resume: Resume = None,
    retry_failed: RetryFailed = False,
    trust: Trust = None,
    cfg: Cfg = None,
    resolve: Resolve = False,
    package: Package = None,
    info: Info = None,
    config_name: ConfigName = None,
    config_dir: ConfigDir = None,
) -> None:
    """Train a flow and evaluate it.

    The run folder goes to outputs/train/, a sweep to outputs/sweeps/.

    flowcli train data=8gaussians path=ot

    flowcli train -m path=ot,vp,ve seed=0,1,2
    """
    raise typer.Exit(launch.launch(_request(ctx)))


@app.command(cls=_Verb)
def sample(
    ctx: typer.Context,
    ckpt: Ckpt,
    overrides: Overrides = None,
    out: Out = None,
    weights: Weights = None,
    which: Which = None,
    multirun: Multirun = False,
    trust: Trust = None,
    cfg: Cfg = None,
    resolve: Resolve = False,
    package: Package = None,
    info: Info = None,
    config_name: ConfigName = None,
    config_dir: ConfigDir = None,
) -> None:
    """Draw samples from a trained flow, or see what else it makes of its data.

    flowcli sample --ckpt outputs/train/RUN n=1000 solver=euler solver.steps=50

    flowcli sample --ckpt outputs/train/RUN mode=animate --out film.gif
    """
    raise typer.Exit(launch.launch(_request(ctx)))


@app.command(cls=_Verb)
def likelihood(
    ctx: typer.Context,
    ckpt: Ckpt,
    overrides: Overrides = None,
    weights: Weights = None,
    which: Which = None,
    multirun: Multirun = False,
    trust: Trust = None,
    cfg: Cfg = None,
    resolve: Resolve = False,
    package: Package = None,
    info: Info = None,
    config_name: ConfigName = None,
    config_dir: ConfigDir = None,
) -> None:
    """Score data under a trained flow.

    flowcli likelihood --ckpt outputs/train/RUN

    flowcli likelihood --ckpt outputs/train/RUN input=new.csv
    """
    raise typer.Exit(launch.launch(_request(ctx)))


@app.command(cls=_Verb)
def compare(
    ctx: typer.Context,
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Run folders, or sweep folders that hold runs; key=value changes how all are measured.",
        ),
    ],
    by: Annotated[
        str | None, typer.Option(metavar="KEY,...", help="Make one row of the runs that agree in these config keys.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="KEY=VALUE", help="Compare with this row instead of the lowest.")
    ] = None,
    sort: Annotated[str | None, typer.Option(metavar="METRIC", help="Sort by this metric, lowest first.")] = None,
    filter: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only runs that have it (or one of value,value). Repeatable."),
    ] = None,
    metrics: Annotated[str | None, typer.Option(metavar="NAME,...", help="Show these metrics only.")] = None,
    nfe: Annotated[
        str | None, typer.Option(metavar="N,...", help="Measure samples at these numbers of evaluations, too.")
    ] = None,
    format: Annotated[
        str, typer.Option(metavar="|".join(CHOICES["format"]), help="How to print the table; text writes a page, too.")
    ] = "text",
    out: Annotated[str | None, typer.Option(metavar="FOLDER", help="Where the page goes.", show_default=False)] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Score again what was scored before.")] = False,
    trust: Trust = None,
) -> None:
    """Say which run is better, by how much, and whether that is real.

    Every run is measured on the same test points; runs that differ in their
    seeds alone are one row.

    flowcli compare outputs/sweeps/SWEEP

    flowcli compare outputs/sweeps/SWEEP --by path --nfe 1,2,4,8,16
    """
    _options(ctx)
    words = [word for word in runs if "=" in word and not os.path.exists(word)]
    folders = [Path(word) for word in runs if word not in words]
    if not folders:
        raise typer.BadParameter("name at least one run folder", ctx=ctx)
    if out is not None and format != "text":
        raise typer.BadParameter(f"--out is where the page goes, and --format {format} writes none", ctx=ctx)
    raise typer.Exit(
        launch.perform(
            "compare",
            runs=folders,
            words=words,
            by=_split("--by", by, ctx),
            baseline=baseline,
            sort=sort,
            filters=filter or (),
            metrics=_split("--metrics", metrics, ctx),
            nfe=_numbers(nfe, ctx),
            format=format,
            out=None if out is None else Path(out),
            fresh=fresh,
            trust=trust or (),
            command=shlex.join(["flowcli", *ctx.obj]),
        )
    )


def _split(flag: str, told: str | None, ctx: typer.Context) -> list[str] | None:
    names = [] if told is None else [name.strip() for name in told.split(",") if name.strip()]
    if told is not None and not names:
        raise typer.BadParameter(f"{flag} names nothing", ctx=ctx)
    return names or None


def _numbers(told: str | None, ctx: typer.Context) -> list[int]:
    try:
        return [int(word) for word in _split("--nfe", told, ctx) or ()]
    except ValueError:
        raise typer.BadParameter(f"--nfe {told}: want whole numbers, 1,2,4,8", ctx=ctx) from None


# ---------------------------------------------------------------- entry
_USAGE_ERROR: Any = typer.BadParameter.__mro__[2]  # ClickException, which Typer does not export


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = app(words or ["--help"], prog_name="flowcli", standalone_mode=False, obj=words)
        sys.stdout.flush()
        return int(status or 0)
    except _USAGE_ERROR as error:
        context = getattr(error, "ctx", None)
        name = context.command_path if context is not None else "flowcli"
        message = legible(error.format_message()).removeprefix("Invalid value: ").removesuffix(".")
        print(f"{name}: error: {message[:1].lower()}{message[1:]} (see {name} --help)", file=sys.stderr)
        return 2
    except typer.Abort:
        return 130
    except BrokenPipeError:
        return launch.hush()
    except OSError as error:
        launch.hush()
        print(f"flowcli: error: {explain(error)}", file=sys.stderr)
        return 2


def _nowhere() -> TextIO:
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")


def entry() -> None:
    """What the console script calls."""
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()  # None: closed by the caller, `>&-`
    sys.exit(main())

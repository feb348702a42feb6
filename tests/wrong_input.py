"""What a user can get wrong, made at random (hypothesis), and what must hold whatever it is.

A legal case starts no job: `stubbed` replaces the tasks' `run`, so that parsing, composing and checking are exercised.
"""

import contextlib
import gzip
import io
import os
import signal
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from hypothesis import strategies as st

from flowcli import launch, trust
from flowcli.cli import main
from flowcli.launch import request

SHORT = [
    *["trainer.steps=3", "trainer.batch_size=32", "trainer.threads=1", "network.width=16", "network.depth=1"],
    *["evaluation.pictures=false", "evaluation.draws=2", "evaluation.draw_points=50", "evaluation.trajectories=4"],
    *["data.train=200", "data.validation=60", "data.test=60", "solver=euler", "solver.steps=3"],
]
LONGEST, SECONDS = 700, 10
"""Characters of a message, and what a refusal may take at most."""


# ---------------------------------------------------------------- what must hold
class Slow(BaseException):
    """A command took too long. Not an Exception: nobody may explain it away."""


@contextlib.contextmanager
def _bounded(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise Slow

    earlier = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)


@contextlib.contextmanager
def _streams() -> Iterator[Callable[[], tuple[str, str]]]:
    """Catch file descriptors 1 and 2, so that what a library's own code prints counts, too."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        sys.stderr.flush()
        kept = os.dup(1), os.dup(2)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)

        def read() -> tuple[str, str]:
            sys.stdout.flush(), sys.stderr.flush()
            out.seek(0)
            err.seek(0)
            return out.read().decode(errors="replace"), err.read().decode(errors="replace")

        try:
            with (
                open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False) as one,
                open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False) as two,
                contextlib.redirect_stdout(one),
                contextlib.redirect_stderr(two),
            ):
                yield read
        finally:
            for number, copy in enumerate(kept, 1):
                os.dup2(copy, number)
                os.close(copy)


def call(words: Sequence[str], seconds: int = SECONDS) -> tuple[int | str, str, str]:
    """Exit status (or what was raised), stdout and stderr of a command line."""
    status: int | str
    with _streams() as read:
        try:
            with _bounded(seconds):
                status = main(list(words))
        except Slow:
            status = f"took more than {seconds} s"
        except BaseException as error:  # nothing may come through
            status = f"raised {type(error).__name__}: {error}"
        return status, *read()


def tree(*folders: Path) -> dict[str, int]:
    """Every file and folder below, with its time of change."""
    return {str(path): path.lstat().st_mtime_ns for folder in folders for path in (folder, *folder.rglob("*"))}


def flaw(words: Sequence[str], folder: Path, seconds: int = SECONDS) -> str | None:
    """What is wrong with the answer to a command line, or None."""
    return judged(words, folder, seconds)[0]


def judged(words: Sequence[str], folder: Path, seconds: int = SECONDS) -> tuple[str | None, int | str, str]:
    """What is wrong with the answer, the exit status, and what stood on stderr.

    folder: around the working folder; it is left as it was.
    """
    before = tree(folder)
    status, out, err = call(words, seconds)
    changed = sorted(path for path, time in tree(folder).items() if before.get(path) != time)
    for path in sorted(set(changed) - set(before), key=len, reverse=True):
        Path(path).rmdir() if Path(path).is_dir() and not Path(path).is_symlink() else Path(path).unlink()
    if status == 0:
        return (f"exit 0 with {err!r} on stderr" if err else None), status, err
    if status != 2:
        return f"exit {status}: {err[-600:]}", status, err
    if changed:
        return f"refused, and yet changed {changed[:4]}: {err}", status, err
    return wording(err, out), status, err


def wording(err: str, out: str = "") -> str | None:
    """What is wrong with a message, or None."""
    if out:
        return f"refused, and yet something on stdout: {out[:200]!r}; {err!r}"
    if not err.endswith("\n") or err.count("\n") != 1:
        return f"not one line: {err!r}"
    odd = [c for c in err[:-1] if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")]
    if odd:
        return f"control characters {odd[:3]!r} in {err!r}"
    if len(err) > LONGEST:
        return f"{len(err)} characters: {err}"
    if not err.startswith("flowcli") or ": error: " not in err or len(err.split(": error: ")[1].strip()) < 8:
        return f"says nothing: {err!r}"
    for leak in LEAKS:
        if leak in err:
            return f"leaks {leak!r}: {err}"
    return None


LEAKS = (
    *["Traceback", "Error: ", "HydraException", "AltException", "omegaconf", "full_key", "object_type"],
    *["no viable", "mismatched input", "token recognition", "extraneous input", "LexerNoViable"],
)
"""Words of other people's programs, which tell a user nothing."""


# ---------------------------------------------------------------- command lines
def _flat(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif key not in ("defaults", trust.TARGET):
            yield prefix + str(key)


_NO_NETWORK = ("oracle", "realnvp", "maf", "nsf", "nice")


def _base(group: str, option: str) -> list[str]:
    """SHORT with an option chosen, without what has no place beside it."""
    words = [*SHORT, f"{group}={option}"]
    if group == "model" and option in _NO_NETWORK:
        words = [word for word in words if not word.startswith("network.")]
    if (group == "model" and option in _NO_NETWORK[1:]) or group == "solver":
        words = [word for word in words if not word.startswith("solver") or word == f"{group}={option}"]
    if option == "table":
        words = [word for word in words if not word.startswith("data.")] + ["data.path=TABLE.csv"]
    if option == "digits":
        words = [word for word in words if not word.startswith("data.")]
    return [*words, "coupling.ckpt=RUN"] if option == "reflow" else words


def places(verb: str) -> list[tuple[list[str], str]]:
    """Every key that some config of this verb has, behind the words that bring it."""
    own = [(SHORT if verb == "train" else [], key) for key in launch.keys(verb)]
    for file in sorted(trust.conf_dir().glob("*/*.yaml")):
        group, option, text = file.parent.name, file.stem, file.read_text(encoding="utf-8")
        node = yaml.safe_load(text) or {}
        found = _flat(node if "_global_" in text[:30] else {group: node})
        if verb == "train":
            own += [(_base(group, option), key) for key in found]
        elif group in launch.ON_CHECKPOINT[verb]:
            own += [([f"{group}={option}"], key) for key in found]
    return own


# fmt: off
NUMBERS = (
    "1e400", "-1e400", "1e308", "-1e308", "1e-400", '1' + '0' * 30, '-1' + '0' * 30, '1' * 5000, "-0", "0", "-1",
    "0.0", "1", "2", "3", "7", "0.5", "1.0", "1e4", "1e9", "1e12", "1e15", "16777216", "2147483648",
    "9223372036854775808", "nan", "-nan", "NaN", "inf", "-inf", ".inf", "1_000", "0x10", "0b1", "0777", "1e", "1.",
    ".5", "1,5", "1e5.5",
)
OTHERS = (
    "true", "false", "null", "True", "no", "yes", "~", "???", "[]", "{}", "[1,2]", "[1,[2,3]]", "{a:1}",
    "{a:{b:[c]}}", "[null]", "[true]", "['']", "[[]]", "[{}]", "[1e400]", "[-1,2]", "[a,b]", "{_target_:os.system}",
    "{1:2}", "{null:1}", "[nan]", "[0.5,0.5]", "[[0,0],[1,1]]", "[[1,0],[0,1]]", "[[nan,0],[0,1]]", "[1,a]",
    "{_target_:flowcli.paths.OT}", "{_target_:flowcli.data.table.Table}", "{_target_:numpy.ndarray}",
    "{_target_:null}", "{_target_:[1]}", "{_args_:[1]}",
)
TEXTS = (
    "", " ", "''", '""', "' '", "'a,b'", '"a\\"b"', "it's", "'", '"', "a b", "a\tb", "a\nb", "\n", "\r", "\x07",
    "\x1b[31mred", "\x7f", "\u202e", "\u2028", "\ufeff", "\u200b", "é", "日本", "😀", "\udcff", "'\udcff'", "é", "İ",
    "ﬁ", "${oc.env:HOME}", "${oc.env:NOT_THERE}", "${now:%Y}", "${now:x}", "${", "${}", "${a", "$", "${seed}", "${.}",
    "${..a}", "${hydra:run.dir}", "${path}", "${path.sigma_min}", "${oc.decode:x}", "'${'", "\\${x}",
    "${oc.create:[1]}", "%", "%s", "{0}", "a=b=c", "=", "==", "\\", "\\\\", "\\'", "'\\'", "'\\\\'", "*", "&a",
    "!!python/object:os.system", "|", ">", "-", "--", ":", "a:b", "@", "#", "a#b", "a #b", "`x`", "$(x)", ";", "<b>",
    "[red]", "[/]", "../..", "/", "/dev/null", "/dev/zero", ".", "..", "~/x", 'x' * 300, 'x' * 5000, '[' * 40,
    '(' * 60 + 't' + ')' * 60, '{' * 30, '[' * 300, 'a' + '.b' * 60, "'" * 9, "range(3)", "choice(1,2)", "glob(*)",
    "interval(0,1)", "shuffle(1,2)", "sort(3,1)", "int(3.7)", "str(1)", "float(x)", "tag(a,1)", "range(1e9)",
    "range(0,1,0)", "range(5,1)", "extend_list(1)", "json_str({a:1})", "bool(3)", "foo(1)", "choice()", "1,2", "a,b",
    ",", "1,", ",1", "a,,b", "[1,2],[3]", "ot,vp", "_ckpt", "none", "default", "auto", "latest", "t^2", "sin(t)", "t",
    "u", "t**2", "t**t", "1/0", "t/0", "t if t else u", "lambda", "t*t", "sqrt(t)", "log(t)", "2*sigma", "'sin(t)'",
    "'t^2'", "9**9**9", "t.real", "f(t)", "[t]", "t,u", "alpha", "reference", "sigma", "-1*sigma", "1e300*t", "mps",
    "meta", "hpu", "mkldnn", "privateuseone", "cuda", "cuda:0", "cuda:99", "cpu:1", "cpu:-1", "xla", "vulkan", "CPU",
    "float16", "bfloat16",
)
# fmt: on
VALUES = st.one_of(st.sampled_from(NUMBERS), st.sampled_from(OTHERS), st.sampled_from(TEXTS))


@st.composite
def values(draw: st.DrawFn) -> str:
    """What may stand behind the `=`."""
    if draw(st.integers(0, 9)) == 0:
        alphabet = st.characters(exclude_categories=[], exclude_characters="\0")  # no command line holds a NUL
        return draw(st.text(alphabet, max_size=12))
    return draw(VALUES)


@st.composite
def mistyped(draw: st.DrawFn, word: str) -> str:
    """A word with a slip in it."""
    at = draw(st.integers(0, max(0, len(word) - 1)))
    kind = draw(st.sampled_from(["drop", "double", "swap", "insert", "upper", "cut", "deeper", "slash"]))
    return {
        "drop": word[:at] + word[at + 1 :],
        "double": word[:at] + word[at : at + 1] + word[at:],
        "swap": word[:at] + word[at : at + 2][::-1] + word[at + 2 :],
        "insert": word[:at] + draw(st.sampled_from(list("x.@/_-+ :~$é1"))) + word[at:],
        "upper": word[:at] + word[at : at + 1].upper() + word[at + 1 :],
        "cut": word[:at],
        "deeper": f"{word}.{draw(st.sampled_from(['a', '0', '_target_', '', 'b.c']))}",
        "slash": word.replace(".", "/"),
    }[kind]


@st.composite
def changed(draw: st.DrawFn, verb: str) -> list[str]:
    """Overrides with one that is likely wrong among them."""
    groups, kind = launch.groups(), draw(st.integers(0, 9))
    words, key = draw(st.sampled_from(_PLACES[verb]))
    if kind <= 5:
        return [*words, f"{key}={draw(values())}"]
    if kind == 6:
        group = draw(st.sampled_from(sorted(groups)))
        option = draw(st.sampled_from(groups[group]))
        return [*words, f"{group}={draw(mistyped(option)) if draw(st.booleans()) else option}"]
    if kind == 7:
        return [*words, draw(st.sampled_from(HYDRA))]
    key = draw(mistyped(key)) if kind == 8 else key
    sign = draw(st.sampled_from(["", "", "+", "++", "~", "~~", "-"]))
    package = draw(st.sampled_from(["", "", "", "@x", "@_global_", "@", "@a.b", "@:x", "@_group_"]))
    bare = draw(st.integers(0, 9)) == 0
    return [*words, f"{sign}{key}{package}" if bare else f"{sign}{key}{package}={draw(values())}"]


# fmt: off
HYDRA = (
    "hydra.run.dir=FILE", "hydra.run.dir=FILE/x", "hydra.run.dir=", "hydra.run.dir=''", "hydra.run.dir=.",
    "hydra.run.dir=..", 'hydra.run.dir=' + 'x' * 300, 'hydra.run.dir=' + 'x/' * 3000, "hydra.run.dir=null",
    "hydra.run.dir=[1]", "hydra.run.dir=5", "hydra.run.dir='a\nb'", "hydra.run.dir=/proc/x",
    "hydra.run.dir=/dev/null", "hydra.run.dir=~/../../x", "hydra.run.dir={a:1}", "hydra.run.dir='a\x1bb'",
    "hydra.run.dir='\udcff'", "hydra.run.dir=${nope}", "hydra.run.dir=???", "hydra.run=5", "hydra.run=null",
    "hydra.sweep.dir=FILE", "hydra.sweep.dir=", "hydra.sweep.dir=null", "hydra.sweep.subdir=FILE",
    "hydra.sweep.subdir=''", "hydra.sweep.subdir=null", "hydra.sweep.subdir=../..", "hydra.sweep=null",
    "hydra/launcher=nonsense", "hydra/sweeper=nope", "hydra.launcher=nonsense", "hydra.launcher=null",
    "hydra.launcher._target_=nonsense", "hydra.launcher._target_=os.system", "hydra.sweeper=null",
    "hydra.sweeper._target_=x.y", "hydra.sweeper.max_batch_size=-1", "hydra.sweeper.max_batch_size=0",
    "hydra.sweeper.params=5", "+hydra.sweeper.params.seed=1", "hydra.sweeper.params={seed:}",
    "hydra.sweeper.params={seed:'1,2'}", "hydra.sweeper.params={sed:'1,2'}", "hydra.sweeper.params={seed:[1]}",
    "hydra.sweeper.params={'':1}", "hydra.sweeper.params=null", "hydra.mode=MULTIRUN", "hydra.mode=RUN",
    "hydra.mode=nonsense", "hydra.mode=5", "hydra.mode=null", "hydra.job.name=''", "hydra.job.name=a/b",
    "hydra.job.name=null", "hydra.job.chdir=true", "hydra.job.chdir=maybe", "hydra.job.num=x", "hydra.job=null",
    "hydra.job.config.override_dirname.item_sep=/", "hydra.job.env_set.A=1", "hydra.job.env_set={A:null}",
    "hydra.job.env_copy=[A]", "hydra.job.env_set={'A=B':x}", "+hydra.job.env_set.A=1", "hydra.job.id=${x}",
    "hydra.job.nonsense=1", "hydra.job.override_dirname=x", "hydra.output_subdir=null", "hydra.output_subdir=",
    "hydra.output_subdir=../x", "hydra.output_subdir=run.json", "hydra.output_subdir=5", "hydra.searchpath=[]",
    "hydra.searchpath=[nowhere]", "hydra.searchpath=[pkg://nope]", "hydra.searchpath=[file://FILE]",
    "hydra.searchpath=5", "hydra.searchpath=null", "hydra.searchpath=['']", "hydra.searchpath=[x://y]",
    "hydra.searchpath=x", "hydra.verbose=true", "hydra.verbose=nonsense", "hydra.verbose=[a]", "hydra.verbose=5",
    "hydra.verbose={}", "hydra.verbose=null", "hydra/job_logging=nope", "hydra/job_logging=none",
    "hydra/job_logging=disabled", "hydra/hydra_logging=nope", "hydra/output=x", "hydra/hydra_logging=none",
    "hydra.job_logging=5", "hydra.job_logging={}", "hydra.job_logging={version:2}", "hydra.hydra_logging={}",
    "hydra.job_logging.root.level=NOPE", "hydra.job_logging.handlers.file.filename=/proc/x",
    "hydra.hydra_logging={version:9}", "hydra.callbacks=5", "+hydra.callbacks.a._target_=nope",
    "+hydra.callbacks.a=1", "hydra.callbacks={a:{_target_:x}}", "hydra=5", "hydra=null", "hydra.nonsense=1",
    "+hydra.nonsense=1", "~hydra", "~hydra.run", "~hydra.job.name", "hydra.help=null", "hydra.x.y=1",
    "hydra.runtime.output_dir=x", "hydra.runtime.cwd=x", "hydra.runtime=null", "hydra.overrides.task=[a]",
    "hydra/env=x", "hydra.env=x", "hydra/help=x", "hydra.help.template=${x}", "hydra.hydra_help=5",
    "hydra.defaults=[]", "defaults=[]", "+defaults=[a]", "defaults=x",
)
# fmt: on


_PLACES = {verb: places(verb) for verb in ("train", "sample", "likelihood")}
PATHS = (
    "RUN",
    "nowhere",
    "FILE",
    "",
    ".",
    "/",
    "latest",
    "RUN/checkpoints",
    "RUN/run.json",
    "x" * 300,
    "a\nb",
    "\udcff",
    "${x}",
)
FLAGS: dict[str, Sequence[str | None]] = {
    "--ckpt": (*PATHS, "RUN/checkpoints/best", "/dev/null", "~", "\x1b[31m"),
    "--resume": PATHS,
    "--out": (
        "x.npy",
        "x.csv",
        "x.parquet",
        "FILE",
        "",
        ".",
        "nowhere/x.npy",
        "x",
        "RUN",
        "x.NPY",
        "a\nb.npy",
        "${x}.npy",
        "/proc/x.npy",
    ),
    "--trust": (
        "os.system",
        "os",
        "",
        "a.b",
        "a b",
        "${x}",
        "a.b,c.d",
        "'",
        "a\nb",
        ".a.b",
        "1.2",
        "x" * 3000,
        "ä.ö",
        "]",
        "a.b\n",
    ),
    "--config-dir": ("nowhere", "FILE", "", ".", "RUN", "/dev/null", "a\nb", "CONF", "x" * 300, "${x}"),
    "--config-name": (
        "nowhere",
        "",
        "train",
        "sample",
        "resume",
        "../train",
        "/",
        "trian",
        "train.yaml",
        "data/moons",
        "a\nb",
        "${x}",
    ),
    "--cfg": ("job", "hydra", "all", "", "x", "JOB", "job,all", "a\nb"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath", "x", ""),
    "--package": (
        "path",
        "hydra",
        "",
        "nope",
        "path.sigma_min",
        "_global_",
        "..",
        "path..x",
        "a\nb",
        "${x}",
        "[0]",
        "path[0]",
    ),
    "--weights": ("ema", "raw", "", "x", "EMA", "\x1b"),
    "--which": ("best", "last", "", "x", "step-1"),
    "--format": ("text", "csv", "json", "", "xml", "\x1b"),
    "--sort": ("nll", "", "x", "path", "seed", "\x1b[2J", "a\nb", "nll,w2", "x" * 300, "${x}"),
    "--metrics": ("nll", "", ",", "x", "nll,x", " ", "\x1b[2J", "nll,nll", "a\nb", "x" * 3000),
    "-m": (None,),
    "--resolve": (None,),
    "--nonsense": (None, "x"),
    "--": (None,),
}
_COMPOSED = (
    "-m",
    "--trust",
    "--config-dir",
    "--config-name",
    "--cfg",
    "--info",
    "--package",
    "--resolve",
    "--nonsense",
    "--",
)
_OF_VERB = {
    "train": ("--resume", *_COMPOSED),
    "sample": ("--out", "--weights", "--which", *_COMPOSED),
    "likelihood": ("--weights", "--which", *_COMPOSED),
    "compare": ("--format", "--sort", "--metrics", "--nonsense"),
}


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command line with one to three things wrong, or so; RUN, FILE and CONF are there."""
    verb = draw(st.sampled_from(["train", "train", "train", "train", "sample", "likelihood", "compare"]))
    if verb == "compare":
        paths = [path for path in PATHS if path != "/"]  # the whole disk is a long walk
        words = draw(st.lists(st.sampled_from(paths), min_size=0 if draw(st.integers(0, 9)) == 0 else 1, max_size=3))
    elif verb == "train":
        words = draw(changed(verb))
    else:
        ckpt = "RUN" if draw(st.integers(0, 5)) else draw(st.sampled_from(FLAGS["--ckpt"]))
        words = ["--ckpt", str(ckpt), *draw(changed(verb))]
    if verb == "compare" or draw(st.integers(0, 3)) == 0:
        flag = draw(st.sampled_from(_OF_VERB[verb]))
        value = draw(st.sampled_from(FLAGS[flag]))
        words = [*words, flag, *([] if value is None else [value])]
    return [verb, *words]


# ---------------------------------------------------------------- files
@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with something flipped, cut out, put in or put elsewhere."""
    for _ in range(draw(st.integers(1, 3))):
        if not data:
            break
        a, b = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        kind = draw(st.sampled_from(["flip", "cut", "drop", "insert", "double", "swap", "number"]))
        if kind == "flip" and a < len(data):
            data = (
                data[:a] + bytes([data[a] ^ draw(st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128, 255]))]) + data[a + 1 :]
            )
        elif kind == "cut":
            data = data[:a]
        elif kind == "drop":
            data = data[:a] + data[min(b, a + 20) :]
        elif kind == "insert":
            data = data[:a] + draw(st.sampled_from(_INSERTED)) + data[a:]
        elif kind == "double":
            data = data[:b] + data[a:b] + data[b:]
        elif kind == "swap":
            data = data[b:] + data[a:b] + data[:a]
        elif kind == "number":
            data = data[:a] + draw(st.sampled_from(_INSERTED)) + data[a + 8 :]
    return data


# fmt: off
_INSERTED = (
    b'\x00', b'\t', b'\n', b'\r', b'"', b"'", b',', b';', b':', b'#', b'&a ', b'*a', b'!!x ', b'- ', b'{', b'}', b'[',
    b']', b'|', b'%', b'\xff', b'\xef\xbb\xbf', b'nan', b'inf', b'1e308', b'-1e308', b'1e400', b'NA', b'null', b'${',
    b'${a}', b'_target_: x\n', b'\xff' * 8, b'\x7f' * 8, b'\x00' * 8, b'defaults:\n- x\n', b'\xc3\xa9', '日本'.encode(),
    b'\x1b[31m', b'\xe2\x80\xae', b'1,2,3\n',
)
# fmt: on

_BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 10)
)
_MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{k}: &a{k} {{b: *a{k - 1}, c: *a{k - 1}, d: *a{k - 1}}}\n" for k in range(1, 20)
)
# fmt: off
YAML = (
    "", "\n", "#", "---", "---\n---\n", "null", "5", "text", "[]", "{}", "- a", "- {}", "[a, b]", "a", "a: b: c",
    "a:\tb", "\ta: b", "? a", "a: [", "a: {", "a: 'x", 'a: "x', "a: |", "&a", "*a", "a: *b", "a: &a *a", "a: &a [*a]",
    "&a {a: *a}", "!!python/object/apply:os.system [x]", "!!set {a}", "!!binary x", "!!timestamp 2020-13-45",
    "!!int x", "!!float x", "!x a", "%YAML 9.9\n---\na: 1", "a: 1\na: 2", "a: 1\n...\nb", "sigma_min: 0.1",
    "_target_: torch.nn.Module", "_target_: numpy.float64", "_target_: polars.DataFrame",
    "_target_: flowcli.flows.base.Flow",
    "_target_: flowcli.paths.OT", "_target_: flowcli.paths.OT\nsigma_min: []", "_target_: []", "_target_: {}",
    "_target_: 5", "_target_: nonsense", "_target_: os.system", "_target_: flowcli.paths.OT\nsigma_min: 0.1\nx: 1",
    "_target_: ''", "_target_: a..b", "_target_: .", "_target_: flowcli.paths.os", "_target_: builtins.eval",
    "_target_: torch.Tensor", "_target_: flowcli.paths.Path", "_target_: flowcli.errors.UserError",
    "defaults: x", "defaults: 5", "defaults: {}", "defaults: null", "defaults: [x]", "defaults: [mine]",
    "defaults: [_self_, _self_]", "defaults: [{path: x}]", "defaults: [{path: null}]", "defaults: [{a: b, c: d}]",
    "defaults: [[a]]", "defaults: [null]", "defaults: [5]", "defaults: [other]", "defaults: [/path: ot]",
    "defaults: [{/path: ot}]", "defaults: [{override /path: ot}]", "defaults: [{override path: x}]",
    "defaults: [{optional x: y}]", "defaults: [{path@x: ot}]", "defaults: [{path@: ot}]", "defaults: ['${x}']",
    "defaults: [{path: '${path}'}]", "defaults: [{override /nope: x}]", "defaults: [mine, _self_]",
    "defaults: [/path/mine]", "defaults: [../mine]", "defaults: ['']", "defaults: [.]", "# @package x",
    "# @package _global_", "# @package _global_\n_target_: x", "# @package", "# @package a..b\nx: 1",
    "# @package _group_.x\na: 1", "# @package a b\nx: 1", "# @package path\n# @package x\na: 1",
    "# @package ${x}\na: 1", "# @package _name_\na: 1", "# @package x:y\na: 1", "# @package _global_\npath: 5",
    "# @package _global_\nseed: [1]", "# @package _global_\nhydra: 5", "# @package _global_\nhydra: {mode: x}",
    "# @package _global_\nhydra: {run: {dir: FILE}}", "# @package _global_\nhydra: {sweeper: {params: 5}}",
    "# @package _global_\nextra: 1",
    "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: '1,2', path: x}}}",
    "# @package _global_\nhydra: {job: {chdir: true}}", "# @package _global_\nhydra: {searchpath: [nowhere]}",
    "# @package _global_\ntrust: [os.system]", "# @package _global_\nresume: true",
    "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: 'range(1,1e9)'}}}",
    "# @package _global_\nhydra: {verbose: 5}",
    "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {'a b': '['}}}",
    "# @package _global_\nhydra: {job_logging: {version: 3}}", "x: ${x}", "x: ${y}\ny: ${x}", "x: ${oc.env:HOME}",
    "x: ${", "x: ${oc.env:NOPE}", "x: ???", "x: ${nope:1}", "x: ${oc.create:${x}}", "1: 2", "null: 1", "true: 1",
    "1.5: x", "[1]: 2", "{a: 1}: 2", "? [a]\n: b", "a.b: 1", "'': 1", "' ': 1", "'a b': 1", "é: 1", "'${x}': 1",
    "a: .nan", "a: 1e400", "a: 0x10", "a: 1_0", "a: 2020-01-01", "a: 12:30:00", 'a: ' + '9' * 5000,
    'a: ' + 'x' * 10000, "'" + 'k' * 1000 + "': 1", "<<: 5", "<<: {a: 1}", "<<: [1]", "a: {<<: *x}", "\x00",
    "a: \x07", "\ufeffa: 1", "a: \ud7ff", "a: '\u202e'", "a: \x85b", "a: 1\r\nb: 2\r", '[' * 100, '[' * 5000,
    '{a: ' * 3000, 'a: ' + '[' * 500 + ']' * 500, '- ' * 5000,
    'a:\n' + ''.join(' ' * k + f'k{k}:\n' for k in range(300)), '{a: ' * 200 + '1' + '}' * 200, _BOMB, _MERGES,
    '_target_: flowcli.paths.OT\n' + _BOMB,
)
# fmt: on
_FILES = {
    "path": "path/mine.yaml",
    "data": "data/mine.yaml",
    "experiment": "experiment/mine.yaml",
    "model": "model/mine.yaml",
    "hydra/launcher": "hydra/launcher/mine.yaml",
    "--config-name": "mine.yaml",
}


@st.composite
def yaml_files(draw: st.DrawFn) -> tuple[str, bytes, list[str]]:
    """A config file in CONF, and the words that choose it."""
    group = draw(
        st.sampled_from(
            ["path", "path", "data", "experiment", "experiment", "model", "--config-name", "hydra/launcher"]
        )
    )
    if draw(st.booleans()):
        content = draw(st.sampled_from(YAML)).encode("utf-8", "surrogatepass")
    else:
        shipped = {"--config-name": "train.yaml", "experiment": "experiment/quick.yaml"}
        names = (
            [shipped[group]]
            if group in shipped
            else [f"{group}/{name}.yaml" for name in launch.groups().get(group, ())]
        )
        content = (trust.conf_dir() / draw(st.sampled_from(names or ["train.yaml"]))).read_bytes()
        content = draw(mutated(content))
    if draw(st.integers(0, 15)) == 0:
        content = content.decode(errors="replace").encode(
            draw(st.sampled_from(["utf-16", "latin-1", "utf-32"])), "replace"
        )
    chosen = [group, "mine"] if group.startswith("-") else [f"{group}=mine"]
    base = [word for word in SHORT if not (group == "data" and word.startswith("data."))]
    return _FILES[group], content, ["train", "--config-dir", "CONF", *base, *chosen]


_ENDINGS = ("csv", "csv", "tsv", "csv.gz", "parquet", "parquet", "npy", "npy", "npz")
_WRONG_ENDINGS = (
    "idx",
    "png",
    "jpg",
    "txt",
    "",
    "gz",
    "xlsx",
    "json",
    "CSV",
    "pt",
    "pkl",
    "csv.zip",
    "parquet.gz",
    "npy.gz",
    "idx3-ubyte.gz",
)


def _encoded(kind: str, table: Any) -> bytes:
    """A table of numbers (a polars frame) as a file of this kind."""
    buffer = io.BytesIO()
    if kind.startswith(("csv", "tsv")):
        text = table.write_csv(separator="\t" if kind.startswith("tsv") else ",").encode()
        return gzip.compress(text, mtime=0) if kind.endswith("gz") else text
    if kind == "parquet":
        table.write_parquet(buffer)
    elif kind == "npz":
        np.savez(buffer, values=table.to_numpy())
    else:
        np.save(buffer, table.to_numpy())
    return buffer.getvalue()


@st.composite
def tables(draw: st.DrawFn) -> Any:
    """A frame of numbers with something odd about it, or nothing."""
    rows, width = draw(st.sampled_from([(60, 3), (60, 2), (60, 1), (20, 2), (1, 2), (2, 2), (0, 2), (5, 50)]))
    values = np.random.default_rng(draw(st.integers(0, 3))).normal(size=(rows, width))
    odd = draw(
        st.sampled_from(
            [
                "none",
                "none",
                "nan",
                "inf",
                "huge",
                "tiny",
                "constant",
                "all nan",
                "big",
                "spread",
                "round",
                "bool",
                "offset",
            ]
        )
    )
    if rows and odd == "nan":
        values[rows // 2, 0] = np.nan
    elif rows and odd == "inf":
        values[rows // 2, 0] = -np.inf
    elif odd in ("huge", "tiny", "big", "offset"):
        scale = {"huge": 1e308, "tiny": 1e-310, "big": 1e155, "offset": 1e-9}[odd]
        with np.errstate(over="ignore", under="ignore"):
            values = values * scale + (1e9 if odd == "offset" else 0)
    elif odd == "constant":
        values[:, 0] = 1.5
    elif odd == "all nan":
        values[:] = np.nan
    elif rows and odd == "spread":
        values[0, 0], values[-1, -1] = 1.7e308, -1.7e308
    elif odd in ("round", "bool"):
        values = np.round(values) if odd == "round" else values > 0
    return pl.DataFrame(values, schema=[f"c{k}" for k in range(width)])


_SETTINGS = (
    *[
        "",
        "",
        "",
        "data.standardize=false",
        "data.missing=drop",
        "data.dequantize=true",
        "data.header=false",
        "data.delimiter=1",
    ],
    *[
        "data.columns=[c0]",
        "data.columns=[0,1]",
        "data.columns=[0,0]",
        "data.columns=[9]",
        "data.columns=[-1]",
        "data.delimiter=';'",
    ],
    *["data.validation=0.49 data.test=0.49", "data.dequantize=1e300", "data.dequantize=[1e-320,1,1]"],
)


@st.composite
def data_files(draw: st.DrawFn) -> tuple[str, bytes, list[str]]:
    """A file of data, and the words that open it."""
    kind = draw(st.sampled_from(_ENDINGS))
    content = draw(st.sampled_from(ODD_FILES[kind])) if kind in ODD_FILES and draw(st.booleans()) else None
    if content is None:
        content = _encoded(kind, draw(tables()))
        if draw(st.booleans()):
            content = draw(mutated(content))
    ending = draw(st.sampled_from(_WRONG_ENDINGS)) if draw(st.integers(0, 15)) == 0 else kind
    if draw(st.integers(0, 15)) == 0:
        ending = draw(st.sampled_from(_ENDINGS))
    name = draw(st.sampled_from(["data", "data", "data", "da ta", "dätä", "d\x1bx", "d,a", "d'x"])) + (
        "." + ending if ending else ""
    )
    extra = draw(st.sampled_from(_SETTINGS)).split()
    base = [word for word in SHORT if not word.startswith("data.")]
    where = request.quote(name)
    return name, content, draw(st.sampled_from([
        ["train", *base, "data=table", f"data.path={where}", *extra],
        ["train", *base, "data=table", f"data.path={where}", *extra],
        ["likelihood", "--ckpt", "RUN", f"input={where}"],
        ["sample", "--ckpt", "RUN", "mode=encode", f"input={where}"],
    ]))  # fmt: skip


def _header(shape: str, descr: str = "'<f8'", order: str = "False") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text.encode() + b"\n"


def _parquet(columns: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_parquet(buffer)
    return buffer.getvalue()


def _npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


_LINES = "\n".join(f"{k * 0.7 % 1:.3f},{k * 0.3 % 1:.3f}" for k in range(60))
# fmt: off
_TEXTS = (
    'a,a\n' + _LINES, 'a,b,c\n' + _LINES, 'a;b\n' + _LINES, 'a\n' + _LINES, '"a","b"\n' + _LINES, '"a,b\n' + _LINES,
    '\ufeffa,b\n' + _LINES, 'a,b\r\n' + _LINES.replace('\n', '\r\n'), 'a,b\r' + _LINES.replace('\n', '\r'),
    '\n\n' + _LINES, _LINES + '\n\n\n', _LINES + '\n,\n', 'a,b\n' + 'x' * 200000 + ',1\n' + _LINES,
    'a,b\n' + '1' * 5000 + ',1\n' + _LINES, 'a' * 5000 + ',b\n' + _LINES, '\x1b[31m,b\n' + _LINES,
    'a,b\n\x1b[31m,1\n' + _LINES, 'a,b\n1,x\n' + _LINES, 'a,b\nTrue,2020-01-01\n' + _LINES, 'a,b\n1 2,3\n' + _LINES,
    "a,b", "a,b\n", "\n", " ", ",", "1,2", "1,2\n3,4", ",,,\n,,,", "a,b\n1,2,3\n", "a,b\n1\n", 'a,b\n' + '1,2\n' * 60,
    'a,b\n' + 'NA,1\n' * 60, 'a,b\nnan,1\n' + _LINES, 'a,\n' + _LINES, 'a,b\n1e999,1\n' + _LINES,
    'a,b\n-inf,1\n' + _LINES, 'a,b\n１,２\n' + _LINES, 'a,b\n1.5e,1\n' + _LINES, 'a,b\n0x10,1\n' + _LINES,
    'a b\n1 2\n' * 20, 'a|b\n' + _LINES.replace(',', '|'), 'a,b\n' + _LINES.replace(',', '","'),
    "a,b\n'1','2'\n" + _LINES, '""\n' * 60, '"\n"\n' * 60, '"' * 61, '",' * 60,
    ','.join(f'c{k}' for k in range(3000)) + '\n' + '\n'.join(','.join(['0.5'] * 3000) for _ in range(3)),
    '\u2028,b\n' + _LINES, 'a,b\n1\u2028,2\n' + _LINES,
)
_CSV = (
    *[text.encode() for text in _TEXTS], _LINES.encode('utf-16'), _LINES.encode('utf-32'),
    'é,b\n'.encode('latin-1') + _LINES.encode(), b'\x00' * 100, b'\xff\xfe', b'', b'\x1f\x8b', b'PK\x03\x04',
)
# fmt: on
ODD_FILES: dict[str, tuple[bytes, ...]] = {
    "csv": _CSV,
    "tsv": tuple(content.replace(b",", b"\t") for content in _CSV),
    "csv.gz": (
        *[gzip.compress(content, mtime=0) for content in _CSV[:20]],
        *[
            gzip.compress(_LINES.encode(), mtime=0)[:-4],
            b"\x1f\x8b\x08" + b"\0" * 20,
            _LINES.encode(),
            gzip.compress(gzip.compress(b"1,2\n", mtime=0), mtime=0),
        ],
        gzip.compress(_LINES.encode(), mtime=0) + b"junk",
    ),
    "npy": (
        *[
            _header(shape)
            for shape in (
                "(10,)",
                "(1000000000000, 2)",
                "(-1, 2)",
                "(2**62, 2)",
                "()",
                "(0, 2)",
                "(3, 0)",
                "(1e9, 2)",
                "('a',)",
                "(9999999999999999999999,)",
                "[2, 2]",
                "None",
            )
        ],
        *[
            _header("(2, 2)", kind) + b"\0" * 32
            for kind in (
                "'|O'",
                "'<c16'",
                "'<U4'",
                "'|V8'",
                "'<M8[s]'",
                "'>f8'",
                "'<f16'",
                "[('a', '<f8')]",
                "'x'",
                "5",
                "'<i8'",
                "'|b1'",
            )
        ],
        *[
            _header("(" * 2000),
            _header("(2, 2)") + b"\0" * 31,
            _header("(2, 2)") + b"\0" * 40,
            _header("(2, 2)", order="5"),
            b"\x93NUMPY",
            b"\x93NUMPY\x09\x00",
            b"\x93NUMPY\x01\x00\xff\xff",
        ],
        *[b"\x93NUMPY\x02\x00\xff\xff\xff\x7f", b"\x80\x04K\x01.", b"", b"\0", _header("(2, 2) " + "#" * 9000)],
    ),
    "npz": (
        *[
            _npz(),
            _npz(a=np.zeros((3, 2)), b=np.zeros((3, 2))),
            _npz(a=np.zeros((9, 2, 2))),
            _npz(a=np.array(["x"])),
            _npz(a=np.zeros(0)),
            _npz(a=np.array(1.0)),
        ],
        *[
            b"PK\x05\x06" + b"\0" * 18,
            b"PK",
            b"",
            _npz(a=np.array([1j, 2])),
            _npz(**{"../../x": np.ones((60, 2))}),
            _npz(a=np.ones((60, 2))),
        ],
    ),
    "parquet": (
        *[
            _parquet({"a": [[1.0], [2.0]] * 30}),
            _parquet({"a": [{"b": 1.0}] * 60}),
            _parquet({"a": ["x", "1"] * 30}),
            _parquet({"a": [None] * 60, "b": [1.0, 2.0] * 30}),
        ],
        *[
            _parquet({"a": [b"x"] * 60}),
            _parquet({"a": pl.Series(["1.5", "2.25"] * 30).cast(pl.Decimal(10, 2))}),
            _parquet({"a": pl.Series(range(60)).cast(pl.Date)}),
        ],
        *[
            _parquet({"a": pl.Series(range(60)).cast(pl.Datetime)}),
            _parquet({"a": pl.Series(range(60)).cast(pl.Duration)}),
            _parquet({"a": pl.Series(["x", "y"] * 30).cast(pl.Categorical)}),
        ],
        *[
            _parquet({"": [1.0, 2.0] * 30}),
            _parquet({"a\n\x1b": ["x", "y"] * 30}),
            _parquet({"a": [True, False] * 30}),
            _parquet({}),
            _parquet({"a": []}),
            b"PAR1",
            b"PAR1PAR1",
            b"PAR1" + b"\xff" * 8 + b"PAR1",
        ],
    ),
}
"""Files that are odd in ways that no flipped bit finds."""

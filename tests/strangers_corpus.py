"""Run folders as an attacker would write them: each case changes a copy of one good run in one way."""

import json
import os
import random
import re
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

STEP = Path("checkpoints/step-3")
DEEP = 1500
SMALL = [
    *["evaluation.pictures=false", "trainer.steps=3", "trainer.batch_size=32", "network.width=16", "network.depth=1"],
    *["evaluation.draws=2", "evaluation.draw_points=50", "data.train=200", "data.validation=60", "data.test=60"],
    *["solver=euler", "solver.steps=3", "evaluation.trajectories=4"],
]
CANARY = "flowcli-canary"
"""A file in the working folder that no case may make, and a word that no output may pass on to a terminal."""


@dataclass(frozen=True)
class Case:
    """A change of a run folder, and how the run is opened.

    Attributes:
        command: load, sample, likelihood, compare, resume or explain.
        status: what it may exit with.
    """

    name: str
    change: Callable[[Path], object]
    command: str
    status: tuple[int, ...] = (2,)


# ---------------------------------------------------------------- ways to change a file
def _write(name: str | Path, content: bytes | str) -> Callable[[Path], object]:
    def change(run: Path) -> None:
        (run / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))

    return change


def _link(name: str | Path, target: str) -> Callable[[Path], object]:
    """Replace a file or folder of the run by a link."""

    def change(run: Path) -> None:
        if (run / name).is_dir() or (run / name).exists():
            (run / name).rename(run.parent / "moved")
        (run / name).symlink_to(target.replace("MOVED", str(run.parent / "moved")))

    return change


def _special(name: str | Path, kind: str) -> Callable[[Path], object]:
    def change(run: Path) -> None:
        file = run / name
        file.unlink(missing_ok=True)
        if kind == "fifo":
            os.mkfifo(file)
        elif kind == "socket":
            here = Path.cwd()
            os.chdir(file.parent)  # the path of a socket may have 108 letters
            try:
                with socket.socket(socket.AF_UNIX) as made:
                    made.bind(file.name)
            finally:
                os.chdir(here)
        else:
            file.mkdir()

    return change


def _config(*keys: str, value: Any) -> Callable[[Path], object]:
    """Set a key of the checkpoint's config."""

    def change(run: Path) -> None:
        for file in (run / STEP / "config.yaml", run / ".hydra" / "resolved.yaml"):
            config = yaml.safe_load(file.read_text())
            node = config
            for key in keys[:-1]:
                node = node.setdefault(key, {})
            node[keys[-1]] = value
            file.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=False))

    return change


def _description(**values: Any) -> Callable[[Path], object]:
    def change(run: Path) -> None:
        file = run / STEP / "description.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def _both(*changes: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(run: Path) -> None:
        for each in changes:
            each(run)

    return change


def _header(edit: Callable[[dict[str, Any]], None], file: str = "ema.safetensors") -> Callable[[Path], object]:
    """Change a weights file's header and leave its numbers."""

    def change(run: Path) -> None:
        data = (run / STEP / file).read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        edit(header)
        text = json.dumps(header).encode()
        (run / STEP / file).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])

    return change


def _tensor(name: str, *, make: Callable[[Any], Any]) -> Callable[[Path], object]:
    """Replace a tensor, or leave it out where None is made of it; `name` may be new."""

    def change(run: Path) -> None:
        from safetensors.torch import load_file, save_file

        for file in (run / STEP / "ema.safetensors", run / STEP / "model.safetensors"):
            tensors = load_file(file)
            made = make(tensors.pop(name, None))
            if made is not None:
                tensors[name] = made
            save_file(tensors, file)

    return change


def _npy(descr: str, shape: str, body: bytes = b"", fortran: str = "False") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


# ---------------------------------------------------------------- the cases
def cases() -> list[Case]:
    """All of them, in a fixed order."""
    return [*_links(), *_json(), *_yaml(), *_targets(), *_sizes(), *_weights(), *_arrays(), *_shown(), *_trees()]


READ = {
    STEP / "config.yaml": ("load", "sample", "resume"),
    STEP / "description.json": ("load", "sample"),
    STEP / "ema.safetensors": ("load", "likelihood"),
    Path("checkpoints/best"): ("load", "sample"),
    Path("checkpoints/last"): ("resume",),
    Path("reference.npy"): ("sample",),
    Path("coupling.safetensors"): ("sample",),
    Path("samples.npy"): ("resume",),
    Path("metrics.jsonl"): ("resume",),
    STEP / "progress.json": ("resume",),
    STEP / "optimizer.safetensors": ("resume",),
    Path("run.json"): ("compare",),
    Path("metrics.json"): ("compare",),
    Path("failure.json"): ("compare",),
    Path(".hydra/resolved.yaml"): ("compare",),
    Path(".hydra/choices.yaml"): ("compare",),
}
"""What each file of a run is read by."""


def _links() -> Iterator[Case]:
    for file, commands in READ.items():
        good = (0,) if file.name == "failure.json" else (0, 2)  # without a failure the run is whole
        for command in commands:
            listed = good if command == "compare" else (2,)
            yield Case(f"link-{file.name}-{command}", _link(file, "MOVED"), command, listed)
            yield Case(f"link-passwd-{file.name}-{command}", _link(file, "/etc/passwd"), command, listed)
            yield Case(f"link-zero-{file.name}-{command}", _link(file, "/dev/zero"), command, listed)
            yield Case(f"link-loop-{file.name}-{command}", _link(file, file.name), command, listed)
            for kind in ("fifo", "socket", "folder"):
                yield Case(f"{kind}-{file.name}-{command}", _special(file, kind), command, (0, 2))
    for command in ("load", "sample", "resume"):
        yield Case(f"link-step-{command}", _link(STEP, "MOVED"), command)
        yield Case(f"link-checkpoints-{command}", _link("checkpoints", "MOVED"), command)
    yield Case("link-inside", _inside, "load", (0,))


def _inside(run: Path) -> None:
    (run / STEP / "config.yaml").rename(run / STEP / "other.yaml")
    (run / STEP / "config.yaml").symlink_to("other.yaml")


JSON = {
    "empty": "",
    "cut": '{"format": 2, "ste',
    "list": "[]",
    "text": '"x"',
    "null": "null",
    "deep": "[" * 100_000 + "]" * 100_000,
    "deep-mapping": '{"a":' * 900 + "1" + "}" * 900,
    "long-number": '{"format": ' + "9" * 5000 + "}",
    "large-number": '{"format": ' + "9" * 400 + "}",
    "nan": '{"format": NaN}',
    "infinity": '{"format": Infinity, "event_shape": [Infinity]}',
    "true": '{"format": true, "event_shape": [2]}',
    "bom": b'\xef\xbb\xbf{"format": 2}',
    "utf-16": '{"format": 2}'.encode("utf-16"),
    "latin-1": b'{"format": 2, "x": "\xe9"}',
    "nul": '{"format": 2\x00}',
    "surrogate": '{"format": 2, "columns": ["\\ud800", "b"], "event_shape": [2], "reason": "\\ud800"}',
    "newer": '{"format": 1000000}',
    "negative": '{"format": -1}',
    "twice": '{"format": 99, "format": 98}',
    "long": '{"format": 2, "x": "' + "x" * (9 << 20) + '"}',
    "many": '{"format": 2, "x": [' + "[]," * 1_100_000 + "0]}",
    "pickle": b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
}


def _json() -> Iterator[Case]:
    for name, content in JSON.items():
        yield Case(f"description-{name}", _write(STEP / "description.json", content), "load")
        yield Case(f"progress-{name}", _write(STEP / "progress.json", content), "state")
        for file in ("run.json", "metrics.json", "failure.json"):
            yield Case(f"{file}-{name}", _write(file, content), "compare", (0, 2))
    wrong: dict[str, dict[str, Any]] = {
        "no-shape": {"event_shape": None},
        "shape-text": {"event_shape": "2"},
        "shape-empty": {"event_shape": []},
        "shape-zero": {"event_shape": [0]},
        "shape-negative": {"event_shape": [-2]},
        "shape-float": {"event_shape": [2.0]},
        "shape-true": {"event_shape": [True]},
        "shape-huge": {"event_shape": [10**12]},
        "shape-product": {"event_shape": [1 << 20, 1 << 20, 1 << 20]},
        "shape-many": {"event_shape": [1] * 1000},
        "shape-other": {"event_shape": [3]},
        "shape-large": {"event_shape": [1 << 24]},
        "columns-few": {"columns": ["a"]},
        "columns-number": {"columns": [1, 2]},
        "columns-escape": {"columns": [f"\x1b]0;{CANARY}\x07", "b"]},
        "columns-bidi": {"columns": ["\u202ea", "b"]},
        "widths": {"bin_width": [1]},
        "widths-text": {"bin_width": ["a", "b"]},
        "widths-deep": {"bin_width": [[[[1]]]]},
        "widths-negative": {"bin_width": [-1, 1]},
        "step-text": {"step": "3"},
        "step-negative": {"step": -3},
        "step-float": {"step": 1e308},
        "choices-list": {"choices": ["a"]},
        "choices-escape": {"choices": {"path": "\x1b[2J"}},
        "choices-shell": {"choices": {"$(touch x)": "a"}},
        "choices-nested": {"choices": {"path": {"a": 1}}},
    }
    for name, values in wrong.items():
        yield Case(f"description-{name}", _description(**values), "sample")
    yield Case("choices-global", _both(_description(choices={"path@_global_": "x"}), _callback), "sample", (2,))
    yield Case(
        "choices-hydra", _both(_description(choices={"hydra": "x", "path@hydra": "x"}), _obeyed), "sample", (0, 2)
    )


def _callback(run: Path) -> None:
    """Hydra would run a callback of its own node, wherever that comes from."""
    node = {"callbacks": {"a": {"_target_": "os.system", "command": f"touch {CANARY}"}}}
    _config("_global_", value={"hydra": node})(run)


def _obeyed(run: Path) -> None:
    node = {"callbacks": {"a": {"_target_": "os.system", "command": f"touch {CANARY}"}}}
    _config("hydra", value=node)(run)


BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(24)
)
MERGE = "a: &a {k: 1}\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [*{chr(97 + i)}, *{chr(97 + i)}]}}\n" for i in range(24)
)
YAML = {
    "empty": "",
    "cut": "path: {a: [1",
    "list": "- 1",
    "text": "just words",
    "two-documents": "a: 1\n---\nb: 2\n",
    "deep": "[" * 50_000,
    "deep-mapping": "".join(f"{' ' * i}a:\n" for i in range(300)),
    "bomb": BOMB,
    "merge": MERGE,
    "cycle": "a: &a [*a]",
    "anchor": "a: &a 1",
    "python": f"a: !!python/object/apply:os.system ['touch {CANARY}']",
    "python-name": "a: !!python/name:os.system",
    "binary": "a: !!binary aGVsbG8=",
    "set": "a: !!set {x, y}",
    "omap": "a: !!omap [x: 1]",
    "int-tag": "a: !!int ''",
    "bool-tag": "a: !!bool maybe",
    "timestamp-tag": "a: !!timestamp x",
    "date": "a: 2001-01-01",
    "no-date": "a: 2001-99-99",
    "equals": "a: =",
    "long-number": "a: " + "9" * 5000,
    "huge-number": "a: " + "9" * 400,
    "sexagesimal": "a: 1" + ":59" * 100_000,
    "interpolation": "a: ${oc.env:HOME}",
    "interpolated-key": "${oc.env:HOME}: 1",
    "number-key": "1: a",
    "null-key": "null: a",
    "list-key": "? [a, b]\n: 1",
    "shell-key": "a:\n  '$(touch x)': 1",
    "escape": f'path: "\\e]0;{CANARY}\\a"',
    "bidi": 'data: {path: "\\u202Etxt.exe"}',
    "carriage": 'seed: "0\\rflowcli: all is well"',
    "nul": b"a: \x00",
    "bom": b"\xff\xfea\x00:\x00 \x001\x00",
    "latin-1": b"a: \xe9",
    "surrogate": 'a: "\\ud800"',
    "long": "a: " + "x" * (2 << 20),
    "many": "a: [" + "1," * 60_000 + "1]",
    "tabs": "a:\n\t- 1",
    "defaults": "defaults: [{hydra/launcher: joblib}]",
}


def _yaml() -> Iterator[Case]:
    for name, content in YAML.items():
        yield Case(f"config-{name}", _write(STEP / "config.yaml", content), "sample")
        yield Case(f"resolved-{name}", _write(".hydra/resolved.yaml", content), "compare", (0, 2))
        yield Case(f"choices.yaml-{name}", _write(".hydra/choices.yaml", content), "compare", (0, 2))
    for name in ("bomb", "deep", "python", "escape", "interpolation"):
        changes = _write(STEP / "config.yaml", YAML[name])
        yield Case(f"config-{name}-resume", changes, "resume")
        yield Case(f"config-{name}-complete", changes, "complete", (0,))


TARGETS = (
    "os.system",
    "builtins.eval",
    "builtins.exec",
    "subprocess.Popen",
    "subprocess.run",
    "flowcli.storage.os.system",
    "flowcli.flows.cnf.torch.load",
    "flowcli.paths.OT.__init__",
    "flowcli.paths.OT ",
    "flowcli.paths.ot",
    "flowcli.checkpoints.find_checkpoint",
    "flowcli.storage.write_bytes",
    "torch.load",
    "torch.hub.load",
    "torch.nn.Linear",
    "numpy.load",
    "hydra.utils.instantiate",
    "pathlib.Path",
    "",
    ".",
    "...",
    "flowcli",
    "flowcli.paths.OT\u200b",
)


def _targets() -> Iterator[Case]:
    for target in TARGETS:
        node = {"_target_": target, "command": f"touch {CANARY}"}
        yield Case(f"path-target-{target!r}", _config("path", value=node), "load")
        yield Case(f"nested-target-{target!r}", _config("network", "inner", value=node), "sample")
    for group in ("model", "network", "base", "coupling", "solver", "divergence", "data", "evaluation", "objective"):
        node = {"_target_": "os.system", "command": f"touch {CANARY}"}
        command = "likelihood" if group in ("data", "evaluation") else "load"
        fine = (0,) if group == "objective" else (2,)  # nothing is built of it
        yield Case(f"target-{group}", _config(group, value=node), command, fine)
        yield Case(f"list-{group}", _config(group, value=[node]), command, (0, 2))
        yield Case(f"text-{group}", _config(group, value="x"), command, (0, 2))
        yield Case(f"null-{group}", _config(group, value=None), command, (0, 2))
        yield Case(f"other-group-{group}", _config(group, "_target_", value="flowcli.engine.Trainer"), command, (0, 2))
    node = {"_target_": "os.system", "command": f"touch {CANARY}"}
    yield Case("target-trainer", _config("trainer", value=node), "resume")
    yield Case("target-logger", _config("logger", value=node), "resume", (0, 2))
    yield Case("trust-itself", _both(_config("trust", value=["os.system"]), _config("path", value=node)), "sample")
    yield Case("hydra-node", _obeyed, "sample", (0,))
    yield Case("hydra-node-resume", _obeyed, "resume", (0,))
    launcher = {"launcher": {"_target_": "os.system"}, "mode": "MULTIRUN", "run": {"dir": "/tmp/flowcli-canary"}}
    yield Case("hydra-launcher", _config("hydra", value=launcher), "sample", (0,))


def _sizes() -> Iterator[Case]:
    huge = 10**9
    for keys in (
        ("network", "width"),
        ("network", "depth"),
        ("network", "fourier_features"),
        ("network", "time_octaves"),
        ("model", "augment_dim"),
    ):
        yield Case(f"huge-{keys[1]}", _config(*keys, value=huge), "load")
        yield Case(f"large-{keys[1]}", _config(*keys, value=60_000), "load")
        yield Case(f"exponent-{keys[1]}", _config(*keys, value=1e300), "load")
        yield Case(f"other-{keys[1]}", _config(*keys, value=3), "load")
        yield Case(f"list-{keys[1]}", _config(*keys, value=[1, 2]), "load")
    none = _both(*(_config(group, value=None) for group in ("network", "path", "coupling", "solver", "divergence")))
    for name, value in (("huge", huge), ("large", 900_000), ("some", 3_000)):
        for key in ("transforms", "width", "depth", "bins"):
            node = {"transforms": 2, "width": 8, "depth": 1, "passes": None, "bins": 4, "bound": 5.0} | {key: value}
            model = {"_target_": "flowcli.flows.discrete.NSF", **node}
            yield Case(f"{name}-nsf-{key}", _both(none, _config("model", value=model)), "load")
    mixture = {"_target_": "flowcli.bases.IsotropicMixture", "std": 1.0, "weights": [1 / 4096] * 4096}
    yield Case("base-mixture", _config("base", value=mixture | {"means": [[0.0, 0.0]] * 4096}), "load")
    yield Case("base-data", _config("base", value={"_target_": "flowcli.bases.Empirical", "data": "x"}), "load")
    for split in ("train", "test"):
        yield Case(f"data-{split}", _config("data", split, value=10**12), "likelihood")
        yield Case(f"data-{split}-text", _config("data", split, value="x"), "likelihood")
    table = {"_target_": "flowcli.data.table.Table", "columns": None, "header": "auto", "delimiter": "auto"}
    table |= {"missing": "refuse", "dequantize": False, "standardize": True, "validation": 0.1, "test": 0.1, "seed": 0}
    for name, path in (("passwd", "/etc/passwd"), ("zero", "/dev/zero"), ("folder", "/etc"), ("none", "nowhere.csv")):
        yield Case(f"table-{name}", _config("data", value=table | {"path": path}), "likelihood")
        yield Case(f"table-{name}-unopened", _config("data", value=table | {"path": path}), "sample", (0,))
    yield Case("dtype", _config("dtype", value="float16"), "load")
    yield Case("device", _config("device", value="cuda:99999999999999999999"), "sample")
    yield Case("solver-steps", _config("solver", "steps", value=10**9), "load")
    yield Case("seed", _config("seed", value=-1), "sample", (0,))
    yield Case("expression", _expression, "load")


def _expression(run: Path) -> None:
    node = {"_target_": "flowcli.paths.Custom", "alpha": f"__import__('os').system('touch {CANARY}')", "sigma": "1-t"}
    _config("path", value=node)(run)


def _weights() -> Iterator[Case]:
    import torch

    def header(name: str, edit: Callable[[dict[str, Any]], None], status: tuple[int, ...] = (2,)) -> Case:
        return Case(f"header-{name}", _header(edit), "load", status)

    def entry(**values: Any) -> Callable[[dict[str, Any]], None]:
        return lambda header: header["transform.shift"].update(values)

    yield header("terabyte", entry(shape=[1 << 37], data_offsets=[0, 1 << 40]))
    yield header("overflow", entry(shape=[1 << 62, 1 << 62]))
    yield header("negative", entry(shape=[-2]))
    yield header("float-shape", entry(shape=[2.5]))
    yield header("overlap", entry(data_offsets=[0, 16]))
    yield header("backwards", entry(data_offsets=[16, 0]))
    yield header("long-offset", entry(data_offsets=[0, 10**30]))
    for dtype in ("BOOL", "I64", "U8", "F8_E4M3", "F8_E5M2", "BF16", "C64", "OBJECT", "F64 ", ""):
        yield header(f"dtype-{dtype}", entry(dtype=dtype), (0, 2))
    yield header("no-dtype", lambda header: header["transform.shift"].pop("dtype"))
    yield header("metadata", lambda header: header.update(__metadata__={"a": "x" * 10_000}), (0,))
    yield header("metadata-list", lambda header: header.update(__metadata__=[1]))
    yield header("empty", lambda header: header.clear())
    yield header("renamed", lambda header: header.update({f"\x1b]0;{CANARY}\x07": header.pop("transform.shift")}))
    for name, content in {
        "nothing": b"",
        "seven": b"\x00" * 7,
        "zero-header": b"\x00" * 8,
        "header-terabyte": (1 << 40).to_bytes(8, "little") + b"{}",
        "header-all": b"\xff" * 64,
        "header-90-mb": (90 << 20).to_bytes(8, "little") + b"{}",
        "deep": (200_000).to_bytes(8, "little") + b"[" * 200_000,
        "no-json": (8).to_bytes(8, "little") + b"\xff" * 8,
        "pickle": JSON["pickle"],
        "zip": b"PK\x03\x04" + b"\x00" * 100,
    }.items():
        yield Case(f"weights-{name}", _write(STEP / "ema.safetensors", content), "sample")
        yield Case(f"optimizer-{name}", _write(STEP / "optimizer.safetensors", content), "state")
    yield Case("weights-hollow", _hollow, "load")
    changes: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "nan": ("transform.shift", lambda t: t * float("nan")),
        "infinite": ("field.network.last.weight", lambda t: t + float("inf")),
        "zero-scale": ("transform.scale", lambda t: t * 0),
        "negative-scale": ("transform.scale", lambda t: -t),
        "complex": ("transform.shift", lambda t: t.to(torch.complex64)),
        "bool": ("transform.shift", lambda t: t > 0),
        "whole": ("transform.shift", lambda t: t.long()),
        "half": ("transform.shift", lambda t: t.half()),
        "longer": ("transform.shift", lambda t: torch.zeros(3, dtype=torch.float64)),
        "flat": ("field.network.last.weight", lambda t: t.flatten()),
        "scalar": ("transform.scale", lambda t: t[0]),
        "no-numbers": ("field.network.last.weight", lambda t: t[:0]),
        "missing": ("field.network.last.weight", lambda t: None),
        "missing-shift": ("transform.shift", lambda t: None),
        "more": ("field.more", lambda t: torch.zeros(3)),
        "points": ("start.points", lambda t: torch.zeros(0, 2)),
        "huge": ("transform.shift", lambda t: t + 1e308),
    }
    for name, (tensor, make) in changes.items():
        good = (0, 1, 2) if name in ("half", "huge") else (2,)
        yield Case(f"tensor-{name}", _tensor(tensor, make=make), "sample", good)


def _hollow(run: Path) -> None:
    """A file that claims 1 TB and has it, as a hole."""
    size = 1 << 40
    text = json.dumps({"a": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    with open(run / STEP / "ema.safetensors", "wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        try:
            handle.truncate(8 + len(text) + size)
        except OSError:  # a file system without such files: then it is only cut short
            handle.write(b"\x00" * 100)


def _arrays() -> Iterator[Case]:
    """A damaged reference.npy is only left out of the picture."""
    points = np.zeros((5, 2)).tobytes()
    arrays = {
        "terabyte": _npy("'<f8'", "(1099511627776, 2)"),
        "overflow": _npy("'<f8'", "(4611686018427387904, 4611686018427387904)"),
        "negative": _npy("'<f8'", "(-5, 2)", points),
        "objects": _npy("'|O'", "(5, 2)", points),
        "big-endian": _npy("'>f8'", "(5, 2)", points),
        "complex": _npy("'<c16'", "(5, 2)", points * 2),
        "structured": _npy("[('a', '<f8')]", "(5, 2)", points),
        "fortran": _npy("'<f8'", "(5, 2)", points, "True"),
        "code": _npy("'<f8'", f"(__import__('os').system('touch {CANARY}'), 2)", points),
        "deep": _npy("'<f8'", "(" * 3000 + ")" * 3000, points),
        "nan": _npy("'<f8'", "(5, 2)", np.full((5, 2), np.nan).tobytes()),
        "no-rows": _npy("'<f8'", "(0, 2)"),
        "other": _npy("'<f8'", "(2, 5)", points),
        "scalar": _npy("'<f8'", "()", points),
        "version": b"\x93NUMPY\x09\x00" + points,
        "empty": b"",
        "zip": b"PK\x03\x04" + points,
        "pickle": JSON["pickle"],
    }
    for name, content in arrays.items():
        yield Case(f"reference-{name}", _write("reference.npy", content), "reference", (0,))
    for name in ("terabyte", "code", "nan"):
        yield Case(f"reference-{name}-sample", _write("reference.npy", arrays[name]), "sample", (0,))
    for name in ("deep", "pickle", "newer"):
        yield Case(f"progress-{name}-resume", _write(STEP / "progress.json", JSON[name]), "resume")


HOSTILE = {
    "escape": f"\x1b]0;{CANARY}\x07\x1b[2J",
    "bell": "\x07\x07",
    "carriage": "fail\rdone",
    "backspace": "a\x08b",
    "bidi": "\u202egpj.exe\u2066",
    "markup": "[red]x[/red][link=https://example.org]y[/link]",
    "closing": "[/]",
    "emoji": ":smile:",
    "formula": '=HYPERLINK("http://example.org","x")',
    "at": "@SUM(1)",
    "minus": "-1+cmd|' /C calc'!A0",
    "lines": "a\nb\nc",
    "c1": "\x9b2J",
    "separator": "a\u2028b",
    "letters": "x" * 5000,
}


def _shown() -> Iterator[Case]:
    for name, text in HOSTILE.items():
        reason = _both(
            lambda run: (run / "metrics.json").unlink(), _write("failure.json", json.dumps({"reason": text}))
        )
        setting = _both(_config("network", "width", value=text), _copied)
        metric = _write("metrics.json", json.dumps({text: 1.0, "nll": text, "w2": 1.0}))
        for command in ("compare", "compare-csv", "compare-json"):
            yield Case(f"reason-{name}-{command}", reason, command, (0,))
            yield Case(f"setting-{name}-{command}", setting, command, (0,))
            yield Case(f"metric-{name}-{command}", metric, command, (0,))
        yield Case(f"value-{name}", _config("path", "sigma_min", value=text), "load")
        yield Case(f"key-{name}", _config("path", text.replace("\n", " "), value=1), "sample")
        yield Case(f"data-path-{name}", _config("data", value=_table(f"./{text[:100]}.csv")), "likelihood")
    numbers = (0.0, 5e-324, -5e-324, 1e308, -1e308, 1e999, 10**300, -1, True, None, [1], {"a": 1}, "x")
    for index, number in enumerate(numbers):
        content = {"nll": number, "nll_stderr": number, "nll_floor": number, "w2": 1.0, "w2_stderr": number}
        for command in ("compare", "compare-csv", "compare-json"):
            yield Case(f"number-{index}-{command}", _both(_metrics(content), _copied), command, (0,))
    yield Case("nan-setting", _both(_copied, _config("trainer", "lr", value=float("nan"))), "compare-json", (0,))


def _table(path: str) -> dict[str, Any]:
    node = {
        "_target_": "flowcli.data.table.Table",
        "columns": None,
        "header": "auto",
        "delimiter": "auto",
        "path": path,
    }
    return node | {
        "missing": "refuse",
        "dequantize": False,
        "standardize": True,
        "validation": 0.1,
        "test": 0.1,
        "seed": 0,
    }


def _metrics(content: dict[str, Any]) -> Callable[[Path], object]:
    return _write("metrics.json", json.dumps(content))


def _copied(run: Path) -> None:
    """A second run beside it, which differs."""
    import shutil

    other = run.parent / "other"
    if not other.exists():
        shutil.copytree(run, other, symlinks=True)
        _config("network", "width", value=17)(other)


def _trees() -> Iterator[Case]:
    yield Case("tree-loop", lambda run: (run.parent / "loop").symlink_to(run.parent), "compare", (0,))
    yield Case("tree-deep", _deep, "compare", (0,))
    yield Case("tree-wide", lambda run: [(run.parent / f"{i}").mkdir() for i in range(3000)] and None, "compare", (0,))
    yield Case("tree-digits", lambda run: (run.parent / ("9" * 200)).mkdir(), "compare", (0,))
    yield Case("tree-bytes", lambda run: os.mkdir(os.fsencode(run.parent) + b"/\xff\xfe\x1b[2J"), "compare", (0,))
    for command in ("compare", "compare-csv", "compare-json"):
        yield Case(f"tree-named-{command}", _named, command, (0,))
    yield Case("tree-empty", lambda run: run.rename(run.parent.parent / "away"), "compare")


def _deep(run: Path) -> None:
    here = Path.cwd()
    os.chdir(run.parent)
    try:
        for _ in range(DEEP):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)


def flatten_deep(folder: Path) -> None:
    """Take away what `_deep` made: who cleans up temporary folders would go too deep."""
    while (folder / "d" / "d").exists():
        (folder / "d" / "d").rename(folder / "e")
        (folder / "d").rmdir()
        (folder / "e").rename(folder / "d")


def _named(run: Path) -> None:
    """A run in a folder whose name is hostile."""
    import shutil

    shutil.copytree(run, os.fsdecode(os.fsencode(run.parent) + b"/=1\x1b[2J\n\xff\xe2\x80\xae"))


# ---------------------------------------------------------------- mutations
TOKENS = (
    *[
        b"null",
        b"true",
        b"NaN",
        b"1e999",
        b"-1",
        b"0",
        b"9" * 30,
        b"9" * 5000,
        b"[" * 60,
        b"{",
        b"}",
        b'"',
        b"'",
        b": ",
    ],
    *[
        b"\x00",
        b"\xff",
        b"\x1b[2J",
        b"\r",
        b"\n",
        b"&a ",
        b"*a",
        b"!!python/name:os.system ",
        b"<<: ",
        b"${oc.env:HOME}",
    ],
    *[
        b"_target_: os.system\n",
        b'"_target_": "os.system", ',
        b"F64",
        b"F8_E4M3",
        b"C64",
        b"1" * 13,
        b"4611686018427387904",
    ],
)
FUZZED = (
    *[STEP / "config.yaml", STEP / "description.json", STEP / "progress.json", STEP / "ema.safetensors"],
    *[STEP / "optimizer.safetensors", Path("reference.npy"), Path("checkpoints/best"), Path("checkpoints/last")],
    *[Path("run.json"), Path("metrics.json"), Path(".hydra/resolved.yaml"), Path(".hydra/choices.yaml")],
)


def mutated(content: bytes, seed: int) -> bytes:
    """The content after one to four random changes."""
    chance = random.Random(seed)
    data = bytearray(content)
    focus = min(len(data), 2048)  # headers and small files
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(focus + 1) if focus and chance.random() < 0.8 else chance.randrange(len(data) + 1)
        kind = chance.randrange(8)
        if kind == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            length = chance.randrange(1, 200)
            data[at:at] = data[at : at + length] * chance.randint(1, 5)
        elif kind in (3, 4):
            data[at : at + chance.choice((0, 0, 1, 8))] = chance.choice(TOKENS)
        elif kind == 5:
            del data[at : at + chance.randrange(1, 50)]
        else:
            found = list(re.finditer(rb"\d+(\.\d+)?(e[+-]?\d+)?", bytes(data[:65536])))
            if found:
                number = chance.choice(found)
                new = chance.choice(
                    (b"0", b"-1", b"1e300", b"1e-320", b"9" * 12, b"9" * 400, b"65536", b"2.5", b"true")
                )
                data[number.start() : number.end()] = new
    return bytes(data)

"""The pictures of a comparison, drawn once: kept by a name that holds all that they show.

matplotlib is imported only if there is something to draw.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from flowcli import scores
from flowcli.comparison import view
from flowcli.comparison.material import Array, Material
from flowcli.comparison.standings import Standings
from flowcli.run import METRICS
from flowcli.storage import write_bytes

PACKAGE = Path(__file__).parents[1]
HEAD = 33
"""Bytes of a PNG's signature and first chunk, which holds its size."""
PNG = b"\x89PNG\r\n\x1a\n"


def drawn(found: Standings, order: Sequence[int], material: Material, folder: Path, run: Path) -> list[view.Figure]:
    """The pictures of a group, as PNG files in a folder.

    order: of the rows, as they stand in the table; run: where the pictures are kept.
    """
    name = f"pictures-{_key(found, order, material)}"
    made = _kept(run, name)
    if made is None:
        from flowcli.comparison.figures import figures

        made = figures(found, order, material, folder)
        arrays = {key: np.frombuffer(each.png, dtype=np.uint8) for key, each in made.items()}
        told = {"figures": json.dumps({key: [each.title, each.caption, each.alt] for key, each in made.items()})}
        scores.try_to_write(run, name, arrays, told)
        return list(made.values())
    for key, each in made.items():
        write_bytes(folder / f"{key}.png", each.png)
    return list(made.values())


def _kept(run: Path, name: str) -> dict[str, view.Figure] | None:
    """The pictures of that name; None where there are none, or they are damaged."""
    found = scores.read_arrays(run, name)
    if found is None:
        return None
    arrays, told = found
    try:
        words = {str(key): [str(text) for text in texts] for key, texts in json.loads(told["figures"]).items()}
        made = {
            key: view.Figure(title, caption, arrays[key].tobytes(), alt) for key, (title, caption, alt) in words.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None
    whole = all(
        each.png.startswith(PNG) and len(each.png) > HEAD and re.fullmatch(r"[a-z0-9-]+", key)
        for key, each in made.items()
    )
    return made if whole else None


def _key(found: Standings, order: Sequence[int], material: Material) -> str:
    """A name of all that is drawn, and of who draws it."""
    digest = hashlib.sha256(f"{list(order)} {found.baseline} {material.columns}".encode())
    for file in sorted([*(PACKAGE / "plots").glob("*.py"), PACKAGE / "comparison" / "figures.py"]):
        digest.update(file.read_bytes())  # another hand draws another picture
    for part in _drawn_from(found, material):
        digest.update(part)
    return digest.hexdigest()[:24]


def _drawn_from(found: Standings, material: Material) -> Iterator[bytes]:
    for variant in found.group.variants:
        yield variant.label.encode()
        for run in variant.runs:
            yield str(run.record.config.get("objective")).encode()
            yield from _arrays(run.scores.units)
            log = run.record.path / METRICS
            yield log.read_bytes() if log.is_file() else b""
    for label, arrays in material.shown.items():
        yield label.encode()
        yield from _arrays(arrays)


def _arrays(arrays: Mapping[str, Array]) -> Iterator[bytes]:
    for name, array in sorted(arrays.items()):
        yield f"{name} {array.shape} {array.dtype}".encode()
        yield np.ascontiguousarray(array).tobytes()

"""A comparison as one HTML file that needs nothing else: no network, no library, no other file."""

import base64
import hashlib
import math
import re
import struct
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from flowcli.comparison.view import Page, Section

SIGNS = {
    "best": ("★", "best"),
    "tie": ("≈", "tie: no difference can be told"),
    "better": ("▲", "better"),
    "worse": ("▼", "worse"),
}
"""Sign of each mark, and what it says in words: colour alone is not seen by all."""
UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Characters that HTML, or UTF-8, does not have."""
DOTS = 150 / 96
"""Pictures have 150 dots an inch, a page has 96."""


def render(page: Page) -> str:
    """The page as HTML; whatever its texts are, they are shown as text.

    The policy that it carries lets a browser run this package's own script and style, known by their hashes, show
    pictures that lie in the page, and nothing else.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_fit
    )
    style, script = _text("page.css"), _text("page.js")
    return environment.from_string(_text("page.html.jinja")).render(
        page=page,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        signs=SIGNS,
        marks=_marks,
        order=_order,
        soft=_soft,
        source=_source,
        size=_size,
    )


def _text(name: str) -> str:
    return (files("flowcli.comparison") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a content security policy names the inside of an element."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _fit(value: Any) -> Any:
    """What is put into the page: text without the characters that no page may hold."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else UNFIT.sub("\ufffd", value)


def _marks(section: Section) -> list[str]:
    """The marks that a section uses, in the order of the key."""
    used = {cell.mark for row in section.rows for cell in row}
    return [name for name in SIGNS if name in used]


def _order(order: float | str | None) -> Markup:
    """The attribute that a cell is sorted by; none sorts last."""
    if order is None or (isinstance(order, float) and math.isnan(order)):
        return Markup("")
    if isinstance(order, str):
        return Markup(' data-words="{}"').format(_fit(order))
    number = repr(float(order)).replace("inf", "Infinity")
    return Markup(' data-number="{}"').format(number)


def _soft(text: str) -> Markup:
    """A text that may be broken within the names of folders and settings."""
    return Markup("<wbr>").join(re.split(r"(?<=[/_])(?=.)", _fit(text)))


def _source(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _size(png: bytes) -> Markup:
    """Width and height of a picture, so that nothing moves while it is decoded."""
    width, height = struct.unpack(">II", png[16:24])
    return Markup(f' width="{round(width / DOTS)}" height="{round(height / DOTS)}"')

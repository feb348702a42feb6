"""A section as a table in Markdown or LaTeX, for an issue or a paper."""

import re
from collections.abc import Callable, Mapping

from flowcli.comparison.view import Cell, Section

MEANING = {
    "best": "bold: best",
    "tie": "{}: tie, no difference from the reference can be told",
    "better": "{}: better than the reference",
    "worse": "{}: worse than the reference",
}
MARKDOWN_SIGNS = {"tie": "≈", "better": "▲", "worse": "▼"}
LATEX_SIGNS = {"tie": r"$\approx$", "better": r"$\uparrow$", "worse": r"$\downarrow$"}

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': "''",
    "[": "{[}",  # behind the end of a row it would be an option
    "]": "{]}",
    "*": "{*}",  # so would this
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\N{MINUS SIGN}": "$-$",
    "\N{EN DASH}": r"\textendash{}",
    "\N{HORIZONTAL ELLIPSIS}": r"\dots{}",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{INFINITY}": r"$\infty$",
    "\N{ALMOST EQUAL TO}": r"$\approx$",
    "\N{LESS-THAN OR EQUAL TO}": r"$\leq$",
    "\N{GREATER-THAN OR EQUAL TO}": r"$\geq$",
    "\N{RIGHTWARDS ARROW}": r"$\to$",
    "\N{GREEK CAPITAL LETTER DELTA}": r"$\Delta$",
    "\N{SUPERSCRIPT TWO}": "$^2$",
    "\N{SUBSCRIPT TWO}": "$_2$",
    "\N{DEGREE SIGN}": r"$^\circ$",
}
"""What is not itself in LaTeX."""
LAST_LETTER = "\u017f"
"""Of those that LaTeX has without further packages; the others become a question mark, so that the table compiles."""


def markdown(section: Section) -> str:
    """Heading, verdict, table and notes in the Markdown that GitHub shows; no text in it can be anything but text."""
    heads = [_markdown(" ".join(column.title.split())) for column in section.columns]
    notes = [f" ({_markdown(column.note)})" if column.note else "" for column in section.columns]
    rules = ["--:" if column.numeric else ":--" for column in section.columns]
    shown = _shown(section)
    rows = [[_cell(cell, shown, _markdown, "**{}**", MARKDOWN_SIGNS) for cell in row] for row in section.rows]
    table = [[f"{head}{note}" for head, note in zip(heads, notes, strict=True)], rules, *rows]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in table) if section.columns else ""
    said = [_paragraph(sentence) for sentence in section.verdict]
    remarks = "\n".join(f"- {_paragraph(remark)}" for remark in section.remarks)
    parts = [f"### {_markdown(section.title)}", *said, lines, _key(shown, MARKDOWN_SIGNS), remarks]
    return "\n\n".join(part for part in parts if part) + "\n"


def latex(section: Section) -> str:
    """A table environment with rules of the package booktabs; the verdict is its caption."""
    shown = _shown(section)
    rows = [[_cell(cell, shown, _latex, r"\textbf{{{}}}", LATEX_SIGNS) for cell in row] for row in section.rows]
    heads = [_latex(column.title) for column in section.columns]
    notes = [_latex(column.note) for column in section.columns]
    remarks = [text for text in (_key(shown, LATEX_SIGNS), *map(_latex, section.remarks)) if text]
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{' '.join([_latex(section.title) + '.', *map(_latex, section.verdict)])}}}",
        rf"\begin{{tabular}}{{{''.join('r' if column.numeric else 'l' for column in section.columns)}}}",
        r"\toprule",
        *(_row(line) for line in [heads, notes] if any(line)),
        r"\midrule",
        *(_row(row) for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        *([rf"\par\smallskip{{\footnotesize {'; '.join(remarks)}\par}}"] if remarks else []),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _shown(section: Section) -> list[str]:
    """The marks that need a sign: where one row is the best, all that is not marked is worse."""
    used = {cell.mark for row in section.rows for cell in row}
    return [name for name in MEANING if name in used and not (name == "worse" and "best" in used)]


def _cell(cell: Cell, shown: list[str], escape: Callable[[str], str], bold: str, signs: Mapping[str, str]) -> str:
    text = escape(cell.text)
    if cell.mark == "best" and text:
        return bold.format(text)
    return f"{text} {signs[cell.mark]}".strip() if cell.mark in shown and cell.mark in signs else text


def _key(shown: list[str], signs: Mapping[str, str]) -> str:
    """What the marks mean."""
    return "; ".join(MEANING[name].format(signs.get(name, "")) for name in shown)


def _plain(text: str) -> str:
    """On one line, without characters that are not seen."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(text.split()))


def _markdown(text: str) -> str:
    text = _plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|*_`\[\]~$])", r"\\\1", text)


def _paragraph(text: str) -> str:
    """A text at the start of a line, where it might begin a heading or a list."""
    return re.sub(r"^([#+-]|\d+[.)](?=\s))", r"&#8203;\1", _markdown(text))


def _latex(text: str) -> str:
    made = (LATEX.get(letter, letter if letter <= LAST_LETTER else "?") for letter in _plain(text))
    return re.sub("-(?=-)", "-{}", "".join(made))  # two would be a dash

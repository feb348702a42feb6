"""The page and the tables of a comparison as text; tests/test_page_browser.py opens the page."""

import base64
import hashlib
import re
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from page_example import ATTACK, LABELS, example, hostile

from flowcli.comparison import tables
from flowcli.comparison.page import render
from flowcli.comparison.view import Cell, Column, Page, Section

VOID = ("meta", "link", "img", "br", "wbr")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return example(tmp_path_factory.mktemp("pictures"))


class Reader(HTMLParser):
    """Elements with their attributes and words; whatever is not closed in its order is an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.words.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def small(*rows: tuple[Cell, ...], **parts) -> Section:
    """A section of two columns."""
    return Section("title", (), (Column("row", "row", numeric=False), Column("nll", "NLL")), rows, **parts)


# ---------------------------------------------------------------- the page
def test_the_page_needs_nothing_but_itself(page):
    html = render(page)
    reader = Reader(html)
    fetched = [value for _, attributes in reader.found for name, value in attributes.items() if name in ("src", "href")]
    assert fetched and all(str(value).startswith(("data:image/png;base64,", "data:,", "#")) for value in fetched)
    assert "url(" not in html and "@import" not in html and "://" not in html
    policy = next(str(meta["content"]) for meta in reader.all("meta") if meta.get("http-equiv"))
    for kind in ("style", "script"):
        inside = re.search(f"<{kind}>(.*?)</{kind}>", html, re.DOTALL)
        assert inside is not None
        digest = base64.b64encode(hashlib.sha256(inside[1].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy
    names = {name for _, attributes in reader.found for name in attributes}
    assert "style" not in names and not any(name.startswith("on") for name in names)


def test_pictures_are_whole_and_say_their_size(page):
    images = Reader(render(page)).all("img")
    assert len(images) == 3
    for image, figure in zip(images, page.sections[0].figures, strict=True):
        assert base64.b64decode(str(image["src"]).split(",")[1]) == figure.png
        assert image["alt"] == figure.alt
        assert 400 < int(str(image["width"])) < 750


def test_all_that_the_view_holds_is_on_the_page(page):
    html = re.sub("<wbr>", "", render(page))
    words = "".join(word for found in Reader(html).words.values() for word in found)
    for section in page.sections:
        told = [section.title, *section.verdict, *section.remarks]
        told += [word for column in section.columns for word in (column.title, column.note, column.help)]
        told += [word for row in section.rows for cell in row for word in (cell.text, cell.detail)]
        told += [word for figure in section.figures for word in (figure.title, figure.caption)]
        assert [word for word in told if word not in words] == []
    pairs = [word for pair in (*page.commands, *page.settings, *page.differences) for word in pair]
    assert [word for word in (page.title, page.made, page.left_out[0].reason, *pairs) if word not in words] == []


def test_each_link_leads_somewhere_and_names_are_unique(page):
    reader = Reader(render(page))
    names = [attributes["id"] for _, attributes in reader.found if "id" in attributes]
    assert len(names) == len(set(names))
    assert {str(link["href"])[1:] for link in reader.all("a")} <= set(names)
    assert len(reader.all("main")) == len(reader.all("h1")) == len(reader.all("nav")) == 1
    assert reader.all("html") == [{"lang": "en"}]


def test_parts_without_content_are_not_there():
    html = render(Page("nothing", (Section("one", (), (), ()),)))
    for absent in ("Settings that differ", "Left out", "How to reproduce", "How it was scored", "<table", "<figure"):
        assert absent not in html


def test_strange_words_stay_words(page):
    reader = Reader(render(hostile(page)))
    assert len(reader.all("script")) == 1 and len(reader.all("img")) == 1
    assert not [attributes for _, attributes in reader.found if "onerror" in attributes]
    assert reader.words["h1"] == [ATTACK] and reader.words["code"] == [ATTACK]
    assert "{{ 7*7 }}" in reader.words["h1"][0]
    titles = [attributes["title"] for attributes in reader.all("th") if "title" in attributes]
    assert titles == [ATTACK, ATTACK]


def test_characters_that_no_page_has_are_replaced():
    html = render(Page("a\x00b\ud800c\x1b[1m", (small((Cell("x", "\x07"), Cell("1", 1.0))),)))
    html.encode()
    assert "a\ufffdb\ufffdc\ufffd[1m" in html and not re.search("[\x00-\x08\x0e-\x1f]", html)


@pytest.mark.parametrize(
    ("order", "written"),
    [
        (1, 'data-number="1.0"'),
        (-2.5e-7, 'data-number="-2.5e-07"'),
        (float("inf"), 'data-number="Infinity"'),
        (float("-inf"), 'data-number="-Infinity"'),
        ('a"b', 'data-words="a&#34;b"'),
    ],
    ids=["whole", "small", "inf", "-inf", "words"],
)
def test_a_cell_says_what_it_sorts_by(order, written):
    assert f'<td class="number" {written}>' in render(Page("p", (small((Cell("x"), Cell("1", order))),)))


@pytest.mark.parametrize("order", [None, float("nan")], ids=["none", "nan"])
def test_a_cell_without_a_value_says_nothing(order):
    cells = Reader(render(Page("p", (small((Cell("x"), Cell("–", order))),)))).all("td")
    assert cells == [{"class": "number"}]


def test_marks_are_told_by_a_sign_and_a_word_and_only_those_used_have_a_key(page):
    html = render(page)
    assert '<span class="mark best" aria-hidden="true">★</span><span class="unseen">best: </span>' in html
    key = html.split('class="quiet key"')[1].split("</p>")[0]
    assert "≈" in key and "▼" in key and "▲" not in key


def test_a_page_of_many_rows_is_quick(page):
    rows = tuple((Cell(f"row {i}", f"row {i}"), Cell("2.6 ± 0.1", 2.6, "tie", "+0.1 [0.0, 0.2]")) for i in range(500))
    start = time.perf_counter()
    render(Page("p", (small(*rows, figures=page.sections[0].figures * 8),)))
    assert time.perf_counter() - start < 2


def test_views_are_light():
    code = "import sys, flowcli.comparison.tables; print([n for n in ('torch', 'numpy', 'jinja2') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ---------------------------------------------------------------- Markdown
def cells(line: str) -> list[str]:
    """A row of a Markdown table, cut at the pipes that are not escaped."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def table_of(text: str) -> list[list[str]]:
    return [cells(line) for line in text.splitlines() if line.startswith("|")]


def test_markdown_is_one_table_with_the_best_in_bold(page):
    text = tables.markdown(page.sections[0])
    heads, rules, *rows = table_of(text)
    assert heads[:3] == ["row", "seeds", "NLL (perfect 2.614)"]
    assert rules == [":--"] + ["--:"] * 6
    assert [row[0] for row in rows] == list(LABELS)
    assert [row[2] for row in rows] == ["**2.630 ± 0.004**", "2.642 ± 0.005", "2.94 ± 0.03", "2.631 ± 0.004 ≈", "–"]
    assert "bold: best; ≈: tie" in text and "▼" not in text
    assert text.startswith("### data=8gaussians\n\npath=ot has the lowest NLL") and text.endswith("\n")


def test_against_a_baseline_better_and_worse_have_signs():
    rows = [(Cell(mark), Cell("1", 1.0, mark)) for mark in ("better", "worse", "tie")]
    text = tables.markdown(small(*rows))
    assert [row[1] for row in table_of(text)[2:]] == ["1 ▲", "1 ▼", "1 ≈"]
    assert "▲: better than the reference" in text
    assert r"1 $\uparrow$ \\" in tables.latex(small(*rows))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        ("a\n| b\r\nc", r"a \| b c"),
        ("*a* _b_ `c` ~d~ $e$", r"\*a\* \_b\_ \`c\` \~d\~ \$e\$"),
        ("<img src=x>&amp;", "&lt;img src=x&gt;&amp;amp;"),
        ("[a](javascript:b)", r"\[a\](javascript:b)"),
        ("\\|", r"\\\|"),
        ("\x1b[31m\u202e", "\ufffd\\[31m\ufffd"),
    ],
    ids=["pipe", "newline", "emphasis", "html", "link", "backslash", "control"],
)
def test_markdown_shows_any_text_as_it_is(text, shown):
    row = table_of(tables.markdown(small((Cell(text), Cell("1", 1.0)))))[2]
    assert row == [shown, "1"]


@pytest.mark.parametrize("start", ["# a", "- a", "+ a", "12. a"])
def test_a_sentence_begins_neither_a_heading_nor_a_list(start):
    text = tables.markdown(replace(small(), verdict=(start,), remarks=(start,)))
    assert f"\n&#8203;{start}\n" in text and f"\n- &#8203;{start}\n" in text


# ---------------------------------------------------------------- LaTeX
def bare(text: str) -> str:
    """LaTeX without its escaped signs."""
    return re.sub(r"\\[&%$#_{}]|\\\\", "", text)


def check_latex(text: str, columns: int) -> None:
    """Braces, mathematics and environments are closed, and each row has its cells."""
    assert text.isascii() or max(text) <= "\u017f"
    plain = bare(text)
    depth = 0
    for sign in plain:
        depth += (sign == "{") - (sign == "}")
        assert depth >= 0
    assert depth == 0 and plain.count("$") % 2 == 0
    assert not re.search(r"[#^~\"`<>|]", re.sub(r"\$[^$]*\$", "", plain)) and plain.count("%") == 1
    begun, ended = re.findall(r"\\begin{(\w+)}", text), re.findall(r"\\end{(\w+)}", text)
    assert begun == ended[::-1] == ["table", "tabular"]
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert rows and all(bare(line).count("&") == columns - 1 for line in rows)
    assert not any(line.startswith(("[", "*")) for line in body.splitlines())


def test_latex_is_a_table_of_booktabs(page):
    text = tables.latex(page.sections[0])
    check_latex(text, 7)
    assert r"\begin{tabular}{lrrrrrr}" in text
    assert r"path=ot & 3 & \textbf{2.630 $\pm$ 0.004} &  & 0.094 & 38 & 61 \\" in text
    assert r"2.631 $\pm$ 0.004 $\approx$" in text and r"$\downarrow$" not in text
    assert r"+0.001 {[}$-$0.004, 0.006{]}" in text
    assert " &  & perfect 2.614 & from the lowest & perfect 0.081 $\\pm$ 0.006 &  &  \\\\\n\\midrule" in text
    assert r"bold: best; $\approx$: tie" in text


def test_latex_of_strange_words_is_sound(page):
    check_latex(tables.latex(hostile(page).sections[0]), 2)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r"\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        ("a_b & 5 % $x$ #1", r"a\_b \& 5 \% \$x\$ \#1"),
        ('^~<>|`"', r"\textasciicircum{}\textasciitilde{}\textless{}\textgreater{}\textbar{}\textasciigrave{}''"),
        ("[0.1]* --seed ---", r"{[}0.1{]}{*} -{}-seed -{}-{}-"),
        ("Δ 3 × 10², ≤ ∞ – …", r"$\Delta$ 3 $\times$ 10$^2$, $\leq$ $\infty$ \textendash{} \dots{}"),
        ("Müller 你\n好\x00", "Müller ? ??"),
    ],
    ids=["command", "signs", "accents", "row", "mathematics", "letters"],
)
def test_latex_shows_any_text_as_it_is(text, shown):
    made = tables.latex(small((Cell(text), Cell("1", 1.0))))
    assert f"\n{shown} & 1 \\\\\n" in made
    check_latex(made, 2)

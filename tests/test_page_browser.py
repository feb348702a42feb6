"""The page of a comparison in a real browser, Debian's Chromium: wide and narrow, light and dark."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_example import LABELS, example, hostile

from flowcli.comparison.page import render

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
REQUIRED = "FLOWCLI_BROWSER"
"""Set to 1 where these tests have to run."""
FLAGS = [
    *["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"],
    *["--disable-background-networking", "--disable-component-update", "--disable-default-apps"],
    *["--disable-dev-shm-usage", "--disable-extensions"],
]
SETTINGS = [(width, scheme) for width in (1280, 400) for scheme in ("light", "dark")]
NAMES = [f"{width}-{scheme}" for width, scheme in SETTINGS]


def _missing() -> str:
    """What these tests need and do not find."""
    absent = [file for file in (CHROMIUM, DRIVER) if shutil.which(file) is None]
    try:
        import selenium  # noqa: F401
    except ImportError:
        absent.append("selenium")
    return ", ".join(absent)


if _missing() and os.environ.get(REQUIRED) != "1":
    pytest.skip(f"not found: {_missing()}", allow_module_level=True)


class Browser:
    """One Chromium for all tests of the module."""

    def __init__(self, profile: Path) -> None:
        from selenium.webdriver import Chrome, ChromeOptions
        from selenium.webdriver.chrome.service import Service

        options = ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = Chrome(options=options, service=Service(DRIVER))
        self.run = self.driver.execute_script

    def open(self, file: Path, width: int, scheme: str) -> None:
        """Show a file at a width, in a colour scheme, and wait until all of its pictures are there."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wanted = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen", "features": wanted})
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.get(file.as_uri())
        self.driver.execute_async_script(
            "const done = arguments[0];"
            "Promise.all([...document.images].map(image => image.decode().catch(() => 0))).then(() => done());"
        )

    def column(self, number: int) -> list[str]:
        """The first table's words in a column, from the top."""
        rows = "[...document.querySelector('table.scores').tBodies[0].rows]"
        return self.run(f"return {rows}.map(row => row.cells[{number}].querySelector('span:last-of-type').textContent)")

    def head(self, number: int) -> str | None:
        """How the first table is sorted by a column."""
        return self.run(f"return document.querySelectorAll('table.scores th')[{number}].getAttribute('aria-sort')")

    def click(self, number: int) -> None:
        """Click on the head of a column of the first table."""
        self.driver.find_elements("css selector", "table.scores .head-button")[number].click()

    def keys(self, *names: str) -> None:
        """Press keys, named as in selenium's Keys."""
        from selenium.webdriver import ActionChains, Keys

        ActionChains(self.driver, duration=0).send_keys(*(getattr(Keys, name) for name in names)).perform()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert not _missing(), f"not found: {_missing()}; {REQUIRED}=1 asks for them"
    made = Browser(tmp_path_factory.mktemp("chromium"))
    yield made
    made.driver.quit()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    page = example(folder)
    (folder / "page.html").write_text(render(page), encoding="utf-8")
    (folder / "hostile.html").write_text(render(hostile(page)), encoding="utf-8")
    return folder / "page.html"


@pytest.fixture(params=SETTINGS, ids=NAMES)
def shown(request: pytest.FixtureRequest, browser: Browser, file: Path) -> tuple[Browser, int, str]:
    browser.open(file, *request.param)
    return browser, *request.param


# ---------------------------------------------------------------- what is seen
def test_every_picture_is_there_and_nothing_was_asked_of_a_network(shown, file):
    browser, _, _ = shown
    sizes = browser.run("return [...document.querySelectorAll('figure img')].map(image => image.naturalWidth)")
    assert len(sizes) == 3 and min(sizes) > 500
    fetched = browser.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in fetched if not name.startswith("data:")] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.driver.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert {url.split("#")[0] for url in asked if not url.startswith("data:")} == {file.as_uri()}
    assert browser.driver.get_log("browser") == []


def test_the_page_never_scrolls_sideways_but_its_tables_do(shown):
    browser, width, _ = shown
    inside = browser.run("return [innerWidth, document.documentElement.scrollWidth]")
    assert inside[0] == width and inside[1] <= width
    box, table = browser.run(
        "const box = document.querySelector('.box'); return [box.clientWidth, box.querySelector('table').offsetWidth]"
    )
    assert (table > box) == (width == 400)
    if width == 400:  # the first column stays in sight
        browser.run("document.querySelector('.box').scrollLeft = 300")
        left, edge = browser.run(
            "return [document.querySelector('tbody th'), document.querySelector('.box')]"
            ".map(each => each.getBoundingClientRect().left)"
        )
        assert abs(left - edge) <= 2


CONTRASTS = """
const luminance = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const colour = text => text.match(/[\\d.]+/g).map(Number);
const behind = node => {
  for (; node; node = node.parentElement) {
    const found = colour(getComputedStyle(node).backgroundColor);
    if (found.length === 3 || found[3] === 1) return found;
  }
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.closest("script, .unseen")) continue;
  const [a, b] = [colour(getComputedStyle(node).color), behind(node)].map(luminance);
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  found.push([ratio, node.className + " " + walker.currentNode.data]);
}
return found.sort((a, b) => a[0] - b[0]);
"""


def test_paper_follows_the_scheme_and_all_text_has_contrast(shown):
    browser, _, scheme = shown
    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    level = sum(int(part) for part in paper[4:-1].split(",")[:3]) / 3
    assert level < 40 if scheme == "dark" else level > 240
    ratios = browser.run(CONTRASTS)
    assert len(ratios) > 60
    assert ratios[0][0] >= 4.5, ratios[:3]  # WCAG 2, level AA
    card = browser.run("return getComputedStyle(document.querySelector('figure img')).backgroundColor")
    assert card == "rgb(255, 255, 255)"


def test_nothing_is_cut_off_outside_boxes_that_scroll(shown):
    browser, width, _ = shown
    outside = browser.run(
        "return [...document.querySelectorAll('main *, header *')].filter(node => !node.closest('.box, pre, .unseen')"
        " && node.getBoundingClientRect().right > arguments[0] + 1).map(node => node.outerHTML.slice(0, 80))",
        width,
    )
    assert outside == []


def test_on_paper_everything_fits_and_is_open(browser, file):
    browser.open(file, 720, "dark")  # A4 between its margins
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run("return document.documentElement.scrollWidth") <= 720
    assert browser.run("return getComputedStyle(document.querySelector('.box')).overflowX") == "visible"
    assert browser.run("return document.querySelector('dd').checkVisibility()")
    assert not browser.run("return document.querySelector('.tool').checkVisibility()")


# ---------------------------------------------------------------- what it does
def test_a_click_sorts_by_number_and_a_third_one_restores(browser, file):
    browser.open(file, 1280, "light")
    given = list(LABELS)
    assert browser.column(0) == given
    browser.click(5)  # evaluations: 38 110 9 26 1; as words 110 would stand before 26
    assert browser.column(5) == ["1", "9", "26", "38", "110"] and browser.head(5) == "ascending"
    browser.click(5)
    assert browser.column(5) == ["110", "38", "26", "9", "1"] and browser.head(5) == "descending"
    browser.click(5)
    assert browser.column(0) == given and browser.head(5) is None
    assert browser.driver.get_log("browser") == []


def test_cells_without_a_value_come_last_either_way(browser, file):
    browser.open(file, 1280, "light")
    browser.click(6)
    assert browser.column(6) == ["61", "65", "70", "178", "–"]
    browser.click(6)
    assert browser.column(6) == ["178", "70", "65", "61", "–"]
    browser.click(2)  # another column begins anew
    assert browser.head(6) is None and browser.head(2) == "ascending"
    assert browser.column(2)[-1] == "–" and browser.column(2)[0] == "2.630 ± 0.004"


def test_words_are_sorted_as_words(browser, file):
    browser.open(file, 1280, "light")
    browser.click(0)
    assert browser.column(0) == sorted(LABELS)


def test_the_table_is_sorted_from_the_keyboard(browser, file):
    browser.open(file, 1280, "light")
    browser.run("document.querySelectorAll('.head-button')[4].focus()")
    browser.keys("TAB", "ENTER")
    assert browser.head(5) == "ascending" and browser.column(5)[0] == "1"
    browser.keys("SPACE")
    assert browser.head(5) == "descending"
    ring = browser.run("return getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid"


def test_a_picture_opens_at_full_size_and_closes_by_the_keyboard(browser, file):
    browser.open(file, 400, "dark")
    browser.driver.find_elements("css selector", ".picture > button")[1].click()
    width, natural = browser.run(
        "const image = document.querySelector('dialog[open] img');"
        "return image.decode().then(() => [image.width, image.naturalWidth])"
    )
    assert width == natural > 900
    browser.keys("ESCAPE")
    assert browser.run("return document.querySelector('dialog[open]')") is None
    assert browser.run("return document.activeElement.parentElement.className") == "picture"


def test_a_command_is_copied(browser, file):
    browser.open(file, 1280, "light")
    copier = browser.driver.find_element("css selector", ".command > .tool")
    browser.run("window.copied = []; navigator.clipboard.writeText = text => (copied.push(text), Promise.resolve());")
    copier.click()
    assert browser.run("return copied") == ["flowcli train -m experiment=paths"]
    assert copier.text == "Copied"
    browser.run("navigator.clipboard.writeText = () => Promise.reject(); document.execCommand = () => false")
    copier.click()
    assert "Selected" in browser.run(
        "return new Promise(done => setTimeout(() => done(arguments[0].textContent), 50))", copier
    )
    assert browser.run("return getSelection().toString()") == "flowcli train -m experiment=paths"


def test_words_of_an_ill_wisher_stay_words(browser, file):
    browser.open(file.with_name("hostile.html"), 400, "light")
    assert browser.driver.get_log("browser") == []
    assert browser.run("return [document.scripts.length, document.images.length, document.links.length]")[0] == 1
    assert browser.run("return [...document.querySelectorAll('[onerror]')].length") == 0
    assert "<script>alert(1)</script>" in browser.driver.find_element("css selector", ".verdict p").text
    inside = browser.run("return [innerWidth, document.documentElement.scrollWidth]")
    assert inside == [400, 400]
    browser.click(0)  # words that are no numbers are sorted all the same
    assert browser.head(0) == "ascending"


def test_the_policy_stops_what_is_not_ours(browser, file):
    browser.open(file, 1280, "light")
    browser.run(
        "const added = document.createElement('script'); added.textContent = 'window.stranger = 1';"
        "document.body.append(added); const image = new Image(); image.src = 'http://127.0.0.1:9/x.png';"
    )
    assert browser.run("return window.stranger") is None
    said = [entry["message"] for entry in browser.driver.get_log("browser") if "Security Policy" in entry["message"]]
    assert len(said) == 2 and sum("127.0.0.1" in message for message in said) == 1

"""The built book as a reader meets it: every page in a real browser, and every link within the book.

`make test-book` builds `_build/html` first; these tests build nothing.
"""

from __future__ import annotations

import functools
import gzip
import http.server
import itertools
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from playwright.sync_api import Browser, Page, sync_playwright

import lora_lib

HTML = Path(__file__).parent.parent / "_build" / "html"
START = "book/intro.html"  # index.html only sends the reader there
PAGES = sorted(
    {p.relative_to(HTML).as_posix() for p in HTML.rglob("*.html") if "_static" not in p.parts} - {"index.html"}
)
READ = [page for page in PAGES if page.startswith(("book/", "notebooks/"))]
WITH_KNOBS = (
    START,
    *(f"notebooks/{c}.html" for c in ("01_rank_math", "02_lora_layer", "03_gpt2", "04_injection", "05_fine_tuning")),
)
UNLOADED_OR_DISTORTED = """images => images.filter(image => {
  const style = getComputedStyle(image);
  const width = image.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  const height = image.clientHeight - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom);
  return !(Math.abs(width / height / (image.naturalWidth / image.naturalHeight) - 1) < 0.05);
}).map(image => image.outerHTML.slice(0, 200))"""
IN_CI = os.environ.get("CI") == "true"


def skip_or_fail(reason: str) -> None:
    """A reader without a browser may go on; continuous integration may not."""
    (pytest.fail if IN_CI else pytest.skip)(reason)


@functools.cache
def soup(page: str) -> BeautifulSoup:
    return BeautifulSoup((HTML / page).read_bytes(), "html.parser")


@functools.cache
def weight_on_the_wire(file: str) -> int:
    """Bytes of a file of the book as web servers send it."""
    return len(gzip.compress((HTML / unquote(file)).read_bytes()))


@pytest.fixture(scope="module", autouse=True)
def book() -> None:
    if not READ:
        skip_or_fail(f"there is no book in {HTML}: run `make book` first")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where the book is served: a port of this machine, as on a web server and unlike a folder of files."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=HTML))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        skip_or_fail(f"no browser found (looked for {', '.join(names)}): `apt install chromium` brings one")
    flags = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=flags.split())
        yield chromium
        chromium.close()


class Visit:
    """One page opened, with what its console said against it and what it asked of other machines."""

    def __init__(self, browser: Browser, address: str, page: str, width: int = 1440, theme: str = "light") -> None:
        self.tab: Page = browser.new_page(viewport={"width": width, "height": 900})
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None)
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.add_init_script(f"for (const key of ['mode', 'theme']) localStorage.setItem(key, '{theme}')")
        self.tab.goto(address + page)
        self.tab.evaluate("window.MathJax?.startup?.promise")

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.tab.close()


@pytest.mark.parametrize("page", PAGES)
def test_page_opens_cleanly_and_asks_nothing_of_other_machines(browser: Browser, address: str, page: str) -> None:
    with Visit(browser, address, page) as visit:
        assert visit.errors == []
        assert [url for url in visit.requests if not url.startswith((address, "data:"))] == []
        formulas = visit.tab.locator(".math").count()
        assert visit.tab.locator("mjx-container").count() >= formulas, "a formula was not typeset"
        assert visit.tab.locator("mjx-merror, mjx-mtext[style*='color: red']").count() == 0, "a formula with an error"
        files = {urlsplit(url).path.lstrip("/") for url in visit.requests if url.startswith(address)}
        weight = sum(map(weight_on_the_wire, files))
        assert weight < (700_000 if page == START else 3_000_000)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_axe_finds_nothing_serious(browser: Browser, address: str, page: str, theme: str) -> None:
    with Visit(browser, address, page, theme=theme) as visit:
        violations = Axe().run(visit.tab).response["violations"]
        found = [
            f"{v['id']}: {node['html'][:200]} {node['failureSummary']}"
            for v in violations
            if v["impact"] in ("serious", "critical")
            for node in v["nodes"]
        ]
        assert not found, "\n".join(found)


@pytest.mark.parametrize("width", [1440, 1024, 390])
@pytest.mark.parametrize("page", READ)
def test_layout_at_desk_tablet_and_phone(browser: Browser, address: str, page: str, width: int) -> None:
    with Visit(browser, address, page, width) as visit:
        searches = visit.tab.locator(".search-button__button:visible, form.bd-search:visible")
        assert searches.count() == 1
        overhang = visit.tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overhang <= 0, f"the page is {overhang} pixels wider than the screen"
        bad = visit.tab.locator("article img:visible").evaluate_all(UNLOADED_OR_DISTORTED)
        assert bad == [], "pictures that did not load, or are squeezed out of shape"


@pytest.mark.parametrize("page", READ)
def test_every_knob_turns_by_keyboard(browser: Browser, address: str, page: str) -> None:
    with Visit(browser, address, page) as visit:
        for knob in visit.tab.locator(".knob").all():
            axes = knob.locator(".knob-axis").all()
            assert axes, "a knob without a control"
            for axis in axes:
                control = axis.locator("[type=range], [type=radio]:checked").first
                assert control.evaluate("c => c.labels.length > 0"), "a control without a name"
                before = knob.locator(".knob-frames").screenshot()
                at_end = control.evaluate("c => c.value === c.max")
                control.press("ArrowLeft" if at_end else "ArrowRight")
                assert knob.locator(".knob-frames").screenshot() != before, "the picture did not change"
        assert visit.errors == []


@pytest.mark.parametrize("page", WITH_KNOBS)
def test_page_has_a_knob(page: str) -> None:
    assert soup(page).select(".knob [type=range]")


@pytest.mark.parametrize("page", PAGES)
def test_links_and_anchors_resolve(page: str) -> None:
    broken = []
    for tag in soup(page).find_all(["a", "img", "link", "script"]):
        target = tag.get("href") or tag.get("src")
        if not target or urlsplit(target).scheme or target.startswith("//"):
            continue
        path, anchor = map(unquote, urldefrag(target))
        file = (HTML / page).parent.joinpath(urlsplit(path).path).resolve() if path else HTML / page
        inside = not anchor or soup(os.path.relpath(file, HTML)).find(id=anchor)
        if not (file.is_file() and inside):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", READ)
def test_pictures_have_words_and_headings_nest(page: str) -> None:
    article = soup(page).find("article")
    mute = [str(image)[:200] for image in article.find_all("img") if not image.get("alt", "").strip()]
    assert mute == [], "a picture without alt text"
    levels = [int(heading.name[1]) for heading in article.find_all(["h1", "h2", "h3", "h4", "h5", "h6"])]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(lower - upper <= 1 for upper, lower in itertools.pairwise(levels))


def test_api_page_tells_every_public_name() -> None:
    told = [name for name in lora_lib.__all__ if callable(getattr(lora_lib, name))]
    missing = [name for name in told if not soup("book/api.html").find(id=f"lora_lib.{name}")]
    assert missing == []

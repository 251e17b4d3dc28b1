"""The built book as a reader meets it: every page in a real browser, and every link within the book.

`make test-book` builds `_build/html` first; these tests build nothing. Each page is opened once, and what needs
another width or theme is tried on the open page; all tests of a page run in one process (`--dist loadgroup`).
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import measure_pages
import print_book
import pytest
import set_address
from axe_playwright_python.base import AXE_SCRIPT
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from conftest import skip_or_fail
from PIL import Image
from playwright.sync_api import Browser, Page

import lora_lib

HTML = Path(__file__).parents[2] / "_build" / "html"
START = "book/intro.html"  # index.html only sends the reader there
FOUND = sorted(
    {p.relative_to(HTML).as_posix() for p in HTML.rglob("*.html") if "_static" not in p.parts} - {"index.html"}
)
CHAPTERS = [page for page in FOUND if page.startswith("notebooks/")]
FIRST, RANK, LAYER = (f"notebooks/{name}.html" for name in ("00_lora_in_one_sitting", "01_rank_math", "02_lora_layer"))
LESSONS = [page for page in CHAPTERS if page != FIRST]  # with exercises and questions
# In this order conftest.py keeps all tests of a page together, and the page open.
READ = CHAPTERS + [page for page in FOUND if page.startswith("book/")]
PAGES = READ + [page for page in FOUND if page not in READ]
HEAVY = {RANK: 600_000, "notebooks/07_rank_comparison.html": 600_000}  # bytes; other pages have 400 kB
DISTORTED = """images => images.filter(image => {
  const style = getComputedStyle(image);
  const width = image.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  const height = image.clientHeight - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom);
  return !(Math.abs(width / height / (image.naturalWidth / image.naturalHeight) - 1) < 0.05);
}).map(image => image.outerHTML.slice(0, 200))"""
# Letters of drawings that are shown smaller than twelve pixels, and the words.
SMALL_LETTERS = """() => [...document.querySelectorAll("article svg text")].flatMap(text => {
  const svg = text.ownerSVGElement, scale = svg.clientWidth && svg.getScreenCTM().a;
  const size = parseFloat(getComputedStyle(text).fontSize) * scale;
  return scale && text.textContent.trim() && size < 11.9 ? [[text.textContent, size.toFixed(1)]] : [];
})"""
# What a knob shows now, whatever way it was drawn.
SHOWN = """picture => [...picture.children].filter(part => !part.classList.contains("knob-away"))
  .map(part => part.innerHTML.replace(/ tabindex="[^"]*"/g, "")).join("")
  + [...picture.querySelectorAll("input")].map(box => box.checked).join()"""
FRAMES_CAME = """k => !JSON.parse(k.querySelector(".knob-data").textContent).later || window.bookFrames?.[k.id]"""
TAB_STOPS = """() => [...document.querySelectorAll("a[href], button, input, summary, [tabindex='0']")].filter(
  part => part.tabIndex >= 0 && !part.disabled && part.checkVisibility({ visibilityProperty: true })
    && !(part.type === "radio" && !part.checked)
).map(part => part.outerHTML.slice(0, 60))"""
LOAD_ALL = """images => Promise.all(images.map(image => {
  image.loading = "eager";
  return image.decode();
})).then(() => null)"""
SMALL_PRINT = """() => [...document.querySelectorAll("article pre.columns")].filter(pre => pre.checkVisibility()
  && parseFloat(getComputedStyle(pre).fontSize) < 8.95).map(pre => pre.textContent.slice(0, 40))"""
# What stands beyond the screen, and in nothing that scrolls.
LOST = """() => [...document.querySelectorAll("main :is(a, p, td, th, code, h1, h2, dt, svg text)")].filter(part => {
  const { right, left, width } = part.getBoundingClientRect();
  return width > 1 && (right > innerWidth + 1 || left < -1) && part.checkVisibility({ visibilityProperty: true })
    && !part.closest("pre, .wide, .knob-frames, .lab-wide, .pst-scrollable-table-container, div.math, .book-card");
}).map(part => part.textContent.trim().slice(0, 60))"""
TWO_FRAMES = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))"
# Folded code is opened: what is folded is read too.
CUT = """cells => cells.filter(cell => {
  for (let fold = cell.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  return cell.offsetParent && cell.scrollWidth > cell.clientWidth;
}).map(cell => cell.innerText.split("\\n").reduce((a, b) => b.length > a.length ? b : a))"""
# Judging colours is most of axe's work, and a page holds a thousand words of one kind in one kind of place. This marks
# the first of each kind: the same tags and classes up to the page, the same colours, as large in axe's sense. What was
# marked before, at another width, stays in the page's own memory, one for each theme. Gives how many are new.
ONE_OF_EACH_KIND = """theme => {
  const kinds = (window.judged ??= {})[theme] ??= new Set(), ways = new Map();
  const way = element => {
    if (!element) return "";
    if (!ways.has(element)) {
      const { backgroundColor, backgroundImage, opacity } = getComputedStyle(element);
      const own = [element.localName, element.getAttribute("class"), backgroundColor, backgroundImage, opacity];
      ways.set(element, way(element.parentElement) + own.join(" ") + "/");
    }
    return ways.get(element);
  };
  let fresh = 0;
  document.querySelectorAll("body *").forEach(element => {
    const text = [...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
    if (!text && !element.matches("a, input, textarea, select, button")) return;
    const { color, fontSize, fontWeight, textShadow, textDecorationLine } = getComputedStyle(element);
    const large = parseFloat(fontSize) >= (fontWeight >= 700 ? 18.66 : 24);
    const kind = [way(element), color, large, textShadow, textDecorationLine].join("|");
    const isNew = !kinds.has(kind) && element.checkVisibility({ visibilityProperty: true });
    element.toggleAttribute("data-new-kind", isNew);
    if (!isNew) return;
    kinds.add(kind);
    fresh += 1;
  });
  return fresh;
}"""
COLOURS = ["color-contrast", "link-in-text-block"]
NEW_KINDS_ALONE = """;axe.configure({ rules: [
  { id: "color-contrast", selector: "[data-new-kind]" },
  { id: "link-in-text-block", selector: "a[href][data-new-kind]" },
] })"""
AXE = Axe(AXE_SCRIPT + NEW_KINDS_ALONE)


@functools.cache
def soup(page: str) -> BeautifulSoup:
    return BeautifulSoup((HTML / page).read_bytes(), "html.parser")


@functools.cache
def ids(page: str) -> set[str]:
    return {tag["id"] for tag in soup(page).find_all(id=True)}


@pytest.fixture(scope="module", autouse=True)
def book() -> None:
    if not READ:
        skip_or_fail(f"there is no book in {HTML}: run `make book` first")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where the book is served: a port of this machine, as on a web server and unlike a folder of files."""
    with print_book.serve(HTML) as address:
        yield address


class Visit:
    """One page opened once, on a phone, with what that cost, what its console said, and what it asked of others."""

    def __init__(self, browser: Browser, address: str, page: str) -> None:
        self.page = page
        self.tab: Page = browser.new_context(viewport={"width": 390, "height": 844}).new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None)
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.add_init_script("for (const key of ['mode', 'theme']) localStorage.setItem(key, 'light')")
        self.cost = measure_pages.opened(self.tab, address + page, slow=False)

    def look(self, width: int, theme: str = "light") -> None:
        """Make the window this wide, and choose the theme as the page's own button does."""
        if self.tab.viewport_size["width"] != width:
            self.tab.set_viewport_size({"width": width, "height": 900})
            self.tab.evaluate(TWO_FRAMES)
        self.tab.evaluate("theme => Object.assign(document.documentElement.dataset, { mode: theme, theme })", theme)
        self.tab.evaluate("document.getAnimations().forEach(animation => animation.finish())")  # colours fade over


@pytest.fixture(scope="module")
def visit(request: pytest.FixtureRequest, browser: Browser, address: str) -> Iterator[Visit]:
    """The page that a test names, as the tests before it left it."""
    visit = Visit(browser, address, request.param)
    yield visit
    visit.tab.context.close()


in_files = pytest.mark.xdist_group("files")  # these share the pages that `soup` has read


def on(pages: list[str]) -> pytest.MarkDecorator:
    """A test of each of these pages, open."""
    return pytest.mark.parametrize(
        "visit", [pytest.param(page, id=page, marks=pytest.mark.xdist_group(page)) for page in pages],
        indirect=True, scope="module",
    )  # fmt: skip


# The longest test comes first, so that it is not left over at the end.
def test_the_whole_book_prints_and_the_pages_lead_to_it(browser: Browser, tmp_path: Path) -> None:
    pdf, html = tmp_path / "book.pdf", tmp_path / "html"
    shutil.copytree(HTML, html)
    for page in html.rglob("*.html"):  # a copy of a book that was printed before has its link
        page.write_text(re.sub(r'<p class="book-pdf">.*?</p>', "", page.read_text(encoding="utf8")), encoding="utf8")
    subprocess.run([sys.executable, print_book.__file__, html, pdf], check=True)
    printed = pdf.read_bytes()
    assert printed.startswith(b"%PDF") and b"/Outlines" in printed
    assert len(re.findall(rb"/Type /Page\b", printed)) > 10 * len(CHAPTERS)
    for page in READ:
        (link,) = BeautifulSoup((html / page).read_bytes(), "html.parser").select(".book-pdf a")
        assert (html / page).parent.joinpath(link["href"]).resolve().read_bytes() == printed
    assert not (html / "print.html").exists()


@on(PAGES)
def test_page_opens_cleanly_is_light_and_keeps_still(visit: Visit, address: str) -> None:
    assert visit.errors == []
    assert [url for url in visit.requests if not url.startswith((address, "data:"))] == []
    assert visit.cost.shift < 0.01
    assert visit.cost.before_load < HEAVY.get(visit.page, 400_000), "bytes over the network until the page has loaded"
    assert visit.tab.evaluate("[...document.querySelectorAll('.math')].every(f => f.querySelector('math > *'))")


def test_the_start_page_keeps_still_on_a_slow_phone(browser: Browser, address: str) -> None:
    assert measure_pages.measure(browser, address + START).shift < 0.01


@on(CHAPTERS)
def test_something_moves_within_two_screens_of_the_top(visit: Visit) -> None:
    visit.look(1440)  # before another test opens what is folded
    top = visit.tab.locator(".knob").first.evaluate("knob => knob.getBoundingClientRect().top + scrollY")
    assert top < 2 * 900, f"the first thing that moves stands {top / 900:.1f} screens below the top"


@on(PAGES)
def test_axe_finds_nothing(visit: Visit) -> None:
    named = {"label-content-name-mismatch": {"enabled": True}}  # a button is called what stands on it
    looks = {  # a theme changes colours alone, a width colours and what scrolls
        (1440, "light"): {"rules": named},
        (1440, "dark"): {"runOnly": COLOURS},
        (390, "light"): {"runOnly": [*COLOURS, "scrollable-region-focusable", "target-size"]},
        (390, "dark"): {"runOnly": COLOURS},
    }
    found = []
    for (width, theme), rules in looks.items():
        visit.look(width, theme)
        visit.tab.wait_for_function("!document.querySelector('.live-plays')")  # its words fade while it plays
        if theme == "light":
            visit.tab.wait_for_timeout(400)  # the pages wait too, before they let the keyboard reach what now scrolls
        if not visit.tab.evaluate(ONE_OF_EACH_KIND, theme) and theme == "dark":
            continue
        options = rules | {"resultTypes": ["violations"], "preload": False}
        found += AXE.run(visit.tab, options=options).response["violations"]
    visit.tab.evaluate("document.querySelectorAll('[data-new-kind]').forEach(e => e.removeAttribute('data-new-kind'))")
    assert [f"{v['id']}: {node['html'][:200]} {node['failureSummary']}" for v in found for node in v["nodes"]] == []


@on(READ)
def test_layout_at_desk_tablet_and_phone(visit: Visit) -> None:
    wrong = []
    for width in (1440, 1200, 1024, 820, 390):
        visit.look(width)
        if visit.tab.locator(".search-button__button:visible, form.bd-search:visible").count() != 1:
            wrong.append(f"{width}: not one search")
        overhang = visit.tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        if overhang > 0:
            wrong.append(f"{width}: the page is {overhang} pixels wider than the screen")
        if width in (1440, 390):
            images = visit.tab.locator("article img:visible")
            images.evaluate_all(LOAD_ALL)
            wrong += [f"{width}: not loaded, or out of shape: {image}" for image in images.evaluate_all(DISTORTED)]
        if width >= 820:
            cut = visit.tab.locator(".cell_input pre").evaluate_all(CUT)
            wrong += [f"{width}: code that the page cuts off: {line}" for line in cut]
    wrong += [f"letters of {size} pixels: {word}" for word, size in visit.tab.evaluate(SMALL_LETTERS)]
    wrong += [f"small print: {text}" for text in visit.tab.evaluate(SMALL_PRINT)]
    assert wrong == []


@on(PAGES)
def test_nothing_is_lost_beyond_the_edge_of_a_phone(visit: Visit) -> None:
    visit.look(390)
    assert visit.tab.evaluate(LOST) == []


@on(READ)
def test_every_knob_turns_by_keyboard_and_back_and_nothing_jumps(visit: Visit) -> None:
    visit.look(1440)
    visit.tab.wait_for_function("!document.querySelector('.live-plays')")
    for knob in visit.tab.locator(".knob").all():
        controls = knob.locator(".knob-axis [type=range], .knob-axis [type=radio]:checked").all()
        controls = controls or knob.locator(".knob-frames [tabindex='0']").all()
        assert controls, "a knob without a control"
        picture = knob.locator(".knob-frames")
        knob.dispatch_event("pointerover")  # its pictures come when it is touched
        visit.tab.wait_for_function(FRAMES_CAME, arg=knob.element_handle())
        height, start = knob.evaluate("k => k.offsetHeight"), picture.evaluate(SHOWN)
        for control in controls:
            assert control.evaluate("c => c.labels?.length > 0 || c.ariaLabel"), "a control without a name"
            before = picture.evaluate(SHOWN)
            at_end = control.evaluate("c => c.type === 'range' && c.value === c.max")
            control.press("ArrowLeft" if at_end else "ArrowRight")
            # The pictures that have come are taken up a moment later.
            visit.tab.wait_for_function(
                f"([part, was]) => ({SHOWN})(part) !== was", arg=[picture.element_handle(), before]
            )
        grows = knob.evaluate("k => k.matches('.live-product, .live-switch, .live-injection')")  # with the rank, say
        assert grows or knob.evaluate("k => k.offsetHeight") == height, "what stands below the knob jumps"
        knob.get_by_role("button", name="Back to the start").click()
        assert picture.evaluate(SHOWN) == start, "the way back leads nowhere"
    assert visit.errors == []


@on([RANK])
def test_paper_is_light_and_shows_what_is_folded(visit: Visit) -> None:
    visit.look(1440, "dark")
    visit.tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    visit.tab.emulate_media(media="print")
    ink = visit.tab.locator("article p").first.evaluate("p => getComputedStyle(p).color")
    assert max(map(int, re.findall(r"\d+", ink)[:3])) < 100, f"light letters on paper: {ink}"
    assert visit.tab.locator("details:is(.choice, .deeper):not([open])").count() == 0
    wide = visit.tab.locator("article pre, article table").evaluate_all(
        "all => all.filter(part => part.checkVisibility() && part.scrollWidth > part.clientWidth + 1).length"
    )
    assert wide == 0, "paper does not scroll"
    visit.tab.emulate_media(media="screen")
    visit.tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert visit.tab.evaluate("document.documentElement.dataset.theme") == "dark"
    assert visit.tab.locator("details.choice[open]").count() == 0


@on([RANK])
def test_the_keyboard_walks_a_chapter_in_few_steps(visit: Visit) -> None:
    visit.look(1440)
    stops = visit.tab.evaluate(TAB_STOPS)
    assert len(stops) <= 80, stops


FOUND_FIRST = {
    "NaN": "troubleshooting|NaN comes from|Not a number",
    "α": "alpha|α",
    "vLLM": "Served|vLLM",
    "r = 8": "cheatsheet|Which rank",
    "forget": "forget",
    "never stops": "never stop",
    "catastrophic forgetting": "forgetting",
    "OOM": "out of memory",
    "lr": "learning rate",
}


@on([START])
def test_the_search_finds_sections_as_one_types(visit: Visit) -> None:
    visit.look(1440)
    visit.tab.keyboard.press("Control+k")
    field, found = visit.tab.locator("dialog[open] input[type=search]"), visit.tab.locator(".book-found a")
    wrong = {}
    for words, wanted in FOUND_FIRST.items():
        field.fill(words)
        found.first.wait_for()
        first = found.evaluate_all("all => all.slice(0, 3).map(a => a.getAttribute('href') + ' ' + a.innerText)")
        if not any(re.search(wanted, line, re.IGNORECASE) for line in first):
            wrong[words] = first
    assert wrong == {}
    field.press("ArrowDown")
    assert found.first.evaluate("link => link === document.activeElement")
    visit.tab.keyboard.press("Escape")


GROUND = """list => {
  const [r, g, b, a = 1] = getComputedStyle(list).backgroundColor.match(/[\\d.]+/g).map(Number);
  return { light: (r + g + b) / 3, whole: a === 1 };
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_the_search_found_has_a_ground_and_enter_opens_the_first(
    browser: Browser, address: str, theme: str
) -> None:
    tab = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme=theme)
    errors: list[str] = []
    tab.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
    tab.goto(address + RANK)
    tab.keyboard.press("Control+k")
    field, found = tab.locator("dialog[open] input[type=search]"), tab.locator(".book-found")
    field.fill("out of memory")
    found.locator("a").first.wait_for()
    ground = found.evaluate(GROUND)
    assert ground["whole"], "the page shines through"
    assert ground["light"] > 200 if theme == "light" else ground["light"] < 60
    picture = Image.open(io.BytesIO(found.screenshot())).convert("L")
    shades = Counter(picture.getdata())
    assert shades.most_common(1)[0][1] > 0.6 * picture.width * picture.height, "letters of the page between the lines"
    wanted = found.locator("a").first.get_attribute("href")
    field.press("Enter")
    tab.wait_for_url(f"**/{wanted.rpartition('/')[2]}")
    assert tab.locator("span.highlighted").count() == 0 and errors == []
    tab.close()


def test_the_search_of_all_pages_reads_their_text_and_marks_nothing_later(browser: Browser, address: str) -> None:
    tab = browser.new_page()
    tab.goto(address + "search.html?q=memory")
    summary = tab.locator("#search-results p.context")
    summary.first.wait_for()
    assert not any("Open in Colab" in text for text in summary.all_inner_texts())
    tab.goto(address + RANK)
    assert tab.locator("span.highlighted, .highlight-link").count() == 0
    tab.close()


def test_the_first_picture_plays_once_and_its_address_opens_it_as_it_stands(browser: Browser, address: str) -> None:
    tab = browser.new_page(viewport={"width": 1440, "height": 900})
    tab.goto(address + START)
    hero, rank = tab.locator(".live-voices"), tab.locator(".live-voices output")
    tab.wait_for_function("document.querySelector('.live-plays')")
    tab.wait_for_function("!document.querySelector('.live-plays')", timeout=20_000)
    assert rank.inner_text() == "8" and "good cat" in hero.locator("p:not(.knob-away) .live-tuned").inner_text()
    assert not hero.get_by_role("button", name="Copy a link").is_visible()
    hero.locator("[type=range]").press("ArrowLeft")
    tab.wait_for_url("**#rank=4")
    assert hero.get_by_role("button", name="Copy a link").is_visible()
    again = browser.new_page(reduced_motion="reduce")
    again.goto(tab.url)
    assert again.locator(".live-voices output").inner_text() == "4"
    again.goto(address + START)
    again.wait_for_timeout(500)
    assert again.locator(".live-plays").count() == 0
    tab.close()
    again.close()


def test_a_value_has_room_beside_its_track(browser: Browser, address: str) -> None:
    tab = browser.new_page(viewport={"width": 820, "height": 900})
    tab.goto(address + "notebooks/08_lora_vs_full.html")
    for axis in tab.locator(".knob-axis:has(output)").all():
        axis.locator("[type=range]").press("Home")
        track, value = axis.locator("[type=range]").bounding_box(), axis.locator("output").bounding_box()
        assert track["x"] + track["width"] <= value["x"] or track["y"] > value["y"], axis.inner_text()
    tab.close()


@on([START, RANK])
def test_text_is_narrow_and_knobs_are_wide(visit: Visit) -> None:
    visit.look(1440)
    widths = [
        visit.tab.locator(f"article section > {part}").first.evaluate("part => part.getBoundingClientRect().width / 16")
        for part in ("p", ".cell:has(.knob)")
    ]
    assert widths[0] <= 42 and 60 <= widths[1] <= 65
    visit.look(390)
    knob = visit.tab.locator(".knob").first
    tops = [knob.locator(part).first.bounding_box()["y"] for part in (".knob-frames", ".knob-controls")]
    assert tops[0] < tops[1], "on a phone the picture stands above the slider"


# Pixels of a page with its folds shut, at 1440 and at 390, with room for other fonts.
LENGTHS = {
    START: (3_300, 4_600),
    "book/cheatsheet.html": (2_400, 3_500),
    "book/findings.html": (6_600, 10_200),
    "book/forgetting.html": (7_200, 10_500),
    "notebooks/08_lora_vs_full.html": (14_000, 17_500),
    "notebooks/13_a_real_model.html": (13_500, 17_000),
}


@pytest.mark.parametrize("page", LENGTHS)
def test_a_page_is_as_long_as_it_was_cut_to(browser: Browser, address: str, page: str) -> None:
    tab = browser.new_page()
    found = []
    for width in (1440, 390):
        tab.set_viewport_size({"width": width, "height": 900})
        tab.goto(address + page)
        found.append(tab.evaluate("document.documentElement.scrollHeight"))
    assert all(length <= most for length, most in zip(found, LENGTHS[page])), found
    tab.close()


def test_the_advice_is_one_list_on_one_screen(browser: Browser, address: str) -> None:
    tab = browser.new_page(viewport={"width": 1440, "height": 900})
    tab.goto(address + "book/cheatsheet.html")
    advice = tab.locator(".advice > ul > li")
    ends = advice.evaluate_all("all => all.map(item => item.getBoundingClientRect().bottom)")
    assert len(ends) >= 12 and max(ends) < 1000, ends
    tab.close()


# How far a wide table scrolls, and by how much its first column, and its last cell, moved with it.
SCROLLED = """place => {
  const [first, last] = [place.querySelector("tbody tr > *"), place.querySelector("tbody tr > :last-child")];
  const at = first.getBoundingClientRect().left;
  place.scrollLeft = 9999;
  const { left } = first.getBoundingClientRect(), { right } = last.getBoundingClientRect();
  return { far: place.scrollLeft, moved: left - at, beyond: right - innerWidth };
}"""


@on([f"notebooks/{name}.html" for name in ("08_lora_vs_full", "13_a_real_model")])
def test_a_wide_table_scrolls_under_its_first_column_on_a_phone(visit: Visit) -> None:
    visit.look(390)
    wide = [
        table.evaluate(SCROLLED)
        for table in visit.tab.locator(".pst-scrollable-table-container:visible:has(> .numbers)").all()
    ]
    wide = [table for table in wide if table["far"] > 5]
    assert wide and all(abs(table["moved"]) < 1 and table["beyond"] < 1 for table in wide), wide


def test_the_address_keeps_what_was_turned(browser: Browser, address: str) -> None:
    tab = browser.new_page()
    tab.goto(address + RANK)
    slider = tab.locator(".knob [type=range]").first
    slider.press("End")
    tab.wait_for_url("**?knob-*=96*")
    tab.goto(tab.url.split("#")[0] + "&knob-0.rank=nothing")  # what no knob knows is left alone
    assert tab.locator(".knob output").first.inner_text() == "96"
    tab.get_by_role("button", name="Back to the start").first.click()
    tab.wait_for_function("!location.search.includes('=96')")
    tab.close()


@in_files
@pytest.mark.parametrize("page", [START, *CHAPTERS])
def test_page_has_a_knob(page: str) -> None:
    assert soup(page).select(".knob > .knob-data")


def test_knob_turns_by_mouse_and_by_touch_with_the_network_cut(browser: Browser, address: str) -> None:
    phone = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    tab = phone.new_page()
    tab.goto(address + RANK)
    tab.locator(".knob").first.scroll_into_view_if_needed()
    tab.wait_for_function("window.bookFrames")  # the pictures come when the knob is in sight
    phone.set_offline(True)
    slider, value = tab.locator(".knob [type=range]").first, tab.locator(".knob output").first
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2
    tab.mouse.move(box["x"] + 12, middle)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] / 2, middle)
    tab.mouse.up()
    half = int(value.inner_text())
    assert 1 < half < 96
    tab.touchscreen.tap(box["x"] + box["width"] - 12, middle)
    assert value.inner_text() == "96"
    tab.touchscreen.tap(box["x"] + 12, middle)
    assert value.inner_text() == "1"
    phone.close()


def test_a_copy_on_a_stick_is_a_whole_book(browser: Browser) -> None:
    tab = browser.new_page()
    tab.goto((HTML / RANK).as_uri())
    knob = tab.locator(".knob").first
    before = knob.locator(".knob-frames").screenshot()
    knob.locator("[type=range]").press("ArrowRight")
    knob.locator(".knob-frames > div:nth-child(2) svg").wait_for()
    assert knob.locator(".knob-frames").screenshot() != before
    tab.close()


def test_a_copy_on_a_stick_is_searched_without_errors(browser: Browser) -> None:
    tab = browser.new_page()
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("requestfailed", lambda request: errors.append(request.url))
    tab.goto((HTML / "search.html").as_uri() + "?q=rank")
    tab.locator("#search-results .search-summary").filter(has_text="matching the search query").wait_for()
    assert tab.locator("#search-results li a").count() > 3
    assert errors == []
    tab.close()


def test_first_turn_within_ten_seconds_on_a_slow_phone(browser: Browser, address: str) -> None:
    tab = browser.new_page(viewport={"width": 390, "height": 844})
    network = tab.context.new_cdp_session(tab)
    network.send("Network.enable")
    slow = {"offline": False, "latency": 300, "downloadThroughput": 700_000 / 8, "uploadThroughput": 700_000 / 8}
    network.send("Network.emulateNetworkConditions", slow)  # about what a phone has on 3G
    began = time.perf_counter()
    tab.goto(address + START, wait_until="commit")
    slider = tab.locator(".knob [type=range]").first
    before = tab.locator(".knob-line > p").first.inner_text()
    slider.press("ArrowRight")
    assert tab.locator(".knob-line > p").first.inner_text() != before
    assert time.perf_counter() - began < 10
    tab.close()


WORD, CITATION = "article a:has(> .std-term)", "article a[href*='bibliography.html#']"


def test_cards_say_what_a_word_means_to_mouse_keyboard_and_screen_reader(browser: Browser) -> None:
    context = browser.new_context(offline=True, viewport={"width": 1440, "height": 900})
    tab = context.new_page()
    tab.goto((HTML / LAYER).as_uri())  # as a file: a page on a server has no more at hand than this
    card, word, citation = tab.locator(".book-card"), tab.locator(WORD).first, tab.locator(CITATION).first
    assert card.count() == 0
    word.hover()
    card.wait_for(state="visible")
    definition = soup("book/glossary.html").find(id=word.get_attribute("href").split("#")[1])
    name, text = card.locator("[role=tooltip] > *").all_inner_texts()
    assert name == definition.find(string=True, recursive=False)
    assert text and definition.find_next("dd").get_text().startswith(text[:40])
    assert word.get_attribute("aria-describedby") == card.locator("[role=tooltip]").get_attribute("id")
    card.hover()  # a card stays while the mouse is on it, and leaves when the mouse does
    tab.wait_for_timeout(400)
    assert card.is_visible()
    tab.locator("article h1").hover()
    card.wait_for(state="hidden")

    citation.focus()
    assert card.is_visible() and not word.get_attribute("aria-describedby")
    assert card.locator("a").get_attribute("href") in soup("book/bibliography.html").decode()
    assert re.search(r"\b(19|20)\d\d\.", card.inner_text())
    tab.keyboard.press("Tab")
    assert card.locator("a").evaluate("link => link === document.activeElement")
    tab.keyboard.press("Escape")
    assert not card.is_visible()
    assert citation.evaluate("link => link === document.activeElement"), "the keyboard is back where it was"
    word.press("Enter")
    tab.wait_for_url("**/glossary.html#term-*")
    context.close()


@pytest.mark.parametrize("selector", [WORD, CITATION])
def test_the_first_tap_shows_a_card_and_the_second_follows(browser: Browser, address: str, selector: str) -> None:
    phone = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    tab = phone.new_page()
    for link in range(3):
        tab.goto(address + LAYER)
        before, word, card = tab.url, tab.locator(selector).nth(link), tab.locator(".book-card")
        word.tap()
        box = card.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and "Tap again" in card.inner_text()
        tab.locator("article h1").tap()
        assert not card.is_visible() and tab.url == before
        word.tap()
        word.tap()
        tab.wait_for_url(re.compile("(glossary|bibliography).html#"))
    phone.close()


def ticked(tab: Page) -> list[str]:
    """The chapters that the list of chapters shows as read."""
    return tab.locator("nav.bd-links a:has(> .read-tick)").evaluate_all("all => all.map(a => a.href.split('/').pop())")


def test_a_chapter_read_to_its_end_is_ticked_until_the_ticks_are_cleared(browser: Browser, address: str) -> None:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    tab = context.new_page()
    tab.clock.install()
    first, second = CHAPTERS[:2]
    end, box = tab.locator(".read-mark"), tab.get_by_label("I have read this chapter")
    tab.goto(address + first)
    end.scroll_into_view_if_needed()
    assert ticked(tab) == [] and not tab.get_by_text("Clear all ticks").is_visible()
    tab.clock.run_for(30_000)  # time goes on by itself too
    assert not box.is_checked(), "to hurry to the end is not to read"
    tab.clock.run_for(31_000)
    assert box.is_checked() and ticked(tab) == [Path(first).name + "#"]
    tab.goto(address + second)
    assert ticked(tab) == [Path(first).name]
    box.check()
    assert ticked(tab) == [Path(first).name, Path(second).name + "#"]
    box.uncheck()
    end.scroll_into_view_if_needed()
    tab.clock.run_for(61_000)
    assert not box.is_checked(), "what was unticked by hand stays so"
    tab.get_by_text("Clear all ticks").click()
    assert ticked(tab) == [] and tab.evaluate("localStorage.getItem('lora-book-read')") is None
    tab.evaluate("localStorage.setItem('lora-book-read', '{')")
    tab.reload()
    assert ticked(tab) == []
    context.close()


REFUSED = """for (const store of ["localStorage", "sessionStorage"]) Object.defineProperty(window, store, {
  configurable: true,
  get() { throw new DOMException("refused", "SecurityError"); },
});"""


def test_nothing_breaks_where_the_browser_keeps_nothing(browser: Browser, address: str) -> None:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light")
    tab = context.new_page()
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.add_init_script(REFUSED)
    tab.goto(address + RANK)
    assert tab.locator(".read-mark").count() == 0, "a tick that would be gone with the page"
    tab.locator(".theme-switch-button").first.click()
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    tab.locator(".knob [type=range]").first.press("ArrowRight")
    assert errors == []
    context.close()


@in_files
@pytest.mark.parametrize("page", CHAPTERS)
def test_colab_is_offered_in_words(page: str) -> None:
    notebook = (
        set_address.address().removeprefix("https://github.com/") + "/blob/main/" + page.replace(".html", ".ipynb")
    )
    name, notebook = set_address.address().removeprefix("https://github.com/"), page.replace(".html", ".ipynb")
    (link,) = soup(page).select(".article-header-buttons > a")
    assert link.get_text(strip=True) == "Open in Colab" and not link.get("aria-label")
    assert link["href"] == f"https://colab.research.google.com/github/{name}/blob/main/{notebook}"
    assert "Open in Binder" in soup(page).select_one(".dropdown-download-buttons").get_text()


@in_files
@pytest.mark.parametrize("page", READ)
def test_every_word_and_citation_has_its_card(page: str) -> None:
    article = soup(page).find("article")
    texts = article.find(id="book-cards")
    cards = json.loads(texts.string) if texts else {}
    links = article.select("a:has(> .std-term), a[href*='bibliography.html#']")
    assert {link["href"] for link in links} == set(cards)
    assert all(10 < len(card["text"]) < 400 and "  " not in card["text"] for card in cards.values())


@in_files
def test_the_letters_lead_to_every_word_of_the_glossary() -> None:
    glossary = soup("book/glossary.html")
    letters = {link.get_text(): link["href"].removeprefix("#") for link in glossary.select(".letters a")}
    words = [entry.find_previous("dt")["id"] for entry in glossary.select("dl.glossary > dd")]
    assert list(letters) == sorted({word.removeprefix("term-")[0].upper() for word in words})
    for letter, anchor in letters.items():
        assert anchor.removeprefix("term-")[0].upper() == letter


@on(LESSONS)
def test_questions_tell_right_from_wrong(visit: Visit) -> None:
    visit.look(1440)
    answers = visit.tab.locator("details.choice")
    kinds = answers.evaluate_all("all => all.map(a => a.classList.contains('right'))")
    assert len(kinds) == 9 and [sum(kinds[i : i + 3]) for i in (0, 3, 6)] == [1, 1, 1]
    for answer, right in zip(answers.all(), kinds, strict=True):
        words = answer.locator("p").first
        assert not words.is_visible()
        answer.locator("summary").press("Enter")
        assert words.inner_text().startswith("Right." if right else "No.")


@on(LESSONS)
def test_every_exercise_has_a_solution_that_opens(visit: Visit) -> None:
    visit.look(1440)
    exercises, solutions = visit.tab.locator(".exercise"), visit.tab.locator(".solution")
    assert exercises.count() == solutions.count() >= 2
    for solution in solutions.all():
        code = solution.locator(".cell").first
        assert not code.is_visible()
        solution.locator("button.toggle-button").press("Enter")
        code.wait_for(state="visible")


@in_files
@pytest.mark.parametrize("page", LESSONS)
def test_exercises_are_numbered_within_their_page(page: str) -> None:
    exercises, solutions = soup(page).select(".exercise > .admonition-title"), soup(page).select(".solution a")
    wanted = [f"Exercise {number}" for number in range(1, len(exercises) + 1)]
    assert [" ".join(title.get_text().split()) for title in exercises] == wanted
    assert [" ".join(link.get_text().split()) for link in solutions if "Exercise" in link.get_text()] == wanted


@in_files
def test_the_joined_book_has_every_page_and_leads_within_itself() -> None:
    joined = print_book.join(HTML)
    assert [h1.get_text() for h1 in joined.select("main h1")] == [
        soup(page).find("h1").get_text() for page in print_book.pages(HTML)
    ]
    assert set(print_book.pages(HTML)) == set(READ)
    ids = {tag["id"] for tag in joined.find_all(id=True)}
    links = {a["href"].removeprefix("#") for a in joined.select("a[href^='#'], a[href$='.html']:not([href^='http'])")}
    assert links <= ids


@in_files
def test_a_paper_is_one_page_without_folds_and_with_what_it_cites() -> None:
    page = "book/forgetting.html"
    joined, cites = print_book.join(HTML, page), soup(page).select("article a[href*='bibliography.html#']")
    assert [h1.get_text() for h1 in joined.select("main h1")] == [soup(page).find("h1").get_text()]
    folds = f"#{print_book.ON_SCREEN}", "details"
    assert all(soup(page).select(f"article {fold}") for fold in folds)
    assert "Behind it" not in joined.get_text() and not joined.select("details, nav")
    entries = [entry["id"] for entry in joined.select("main div.citation")]
    assert len(entries) > 3 and set(entries) == {urlsplit(link["href"]).fragment for link in cites}


@in_files
@pytest.mark.parametrize("page", PAGES)
def test_links_and_anchors_resolve(page: str) -> None:
    broken = []
    for tag in soup(page).find_all(["a", "img", "link", "script"]):
        target = tag.get("href") or tag.get("src")
        if not target or urlsplit(target).scheme or target.startswith("//"):
            continue
        path, anchor = map(unquote, urldefrag(target))
        file = (HTML / page).parent.joinpath(urlsplit(path).path).resolve() if path else HTML / page
        settings = "=" in anchor  # of the lab's sliders: #adapter=plays&rank=2
        inside = not anchor or settings or anchor in ids(os.path.relpath(file, HTML))
        if not (file.is_file() and inside):
            broken.append(target)
    assert broken == []


@in_files
@pytest.mark.parametrize("page", READ)
def test_pictures_have_words_and_headings_nest(page: str) -> None:
    article = soup(page).find("article")
    pictures = [image.get("alt", "") for image in article.find_all("img")]
    pictures += [drawing.get("aria-label", "") for drawing in article.select("svg[role=img]")]
    assert all(words.strip() for words in pictures), "a picture without words"
    levels = [int(heading.name[1]) for heading in article.find_all(["h1", "h2", "h3", "h4", "h5", "h6"])]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(lower - upper <= 1 for upper, lower in itertools.pairwise(levels))


@in_files
@pytest.mark.parametrize("page", PAGES)
def test_no_id_stands_twice(page: str) -> None:
    names = Counter(tag["id"] for tag in soup(page).find_all(id=True))
    assert [name for name, times in names.items() if times > 1] == []


@in_files
def test_the_book_is_quiet() -> None:
    """Few claims, and no bars above folded code."""
    claims = sum(len(soup(page).select("details.claim > summary > span")) for page in READ)
    bars = sum(len(soup(page).select("details.hide, details.admonition")) for page in READ)
    assert claims < 160 and bars == 0


@in_files
def test_api_page_tells_every_public_name() -> None:
    told = [name for name in lora_lib.__all__ if callable(getattr(lora_lib, name))]
    missing = [name for name in told if not soup("book/api.html").find(id=f"lora_lib.{name}")]
    assert missing == []

"""The whole book on paper, or one page: the built pages, joined into one and printed by the reader's own Chromium.

    make pdf
    make paper

Joins what `make book` has built, in the order of the table of contents, with one table of contents in
front and every link between pages turned into a link within the file. Knobs stand where they start, folded
answers and solutions are open, and code that the pages fold away is left out. The pages then get a link to the file.

With `--page` that page alone is printed, as a paper: without what it folds away, and with the entries of the
bibliography that it cites. The page gets a link to the file.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import http.server
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urldefrag, urlsplit

from bs4 import BeautifulSoup, Tag
from playwright.sync_api import sync_playwright

BROWSERS = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
)  # fmt: skip
NO_BROWSER = "no Chromium or Chrome found: `apt install chromium` brings one"
FLAGS = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync".split()
WEB_ONLY = """.headerlink, .copybtn, .start-buttons, details.fold:not(.claim), details.claim > div, .sd-tab-set > input,
.knob script, .knob-hint, .lab, .letters, #book-cards"""
ROOT_FILE = "book/intro.html"
TITLE = "The LoRA book"
FILE = "lora-book.pdf"
REFERENCES = "book/bibliography.html"
ON_SCREEN = "behind-it"  # a section with what a page folds away, which a paper leaves out
COLOURS = re.compile(r'<style class="drawn-colours">.*?</style>')
NAVIGATION = re.compile(r'<nav class="bd-links.*?</nav>', re.DOTALL)
FOREWORD = "Code that the web pages fold away and the controls of the lab are left out; sliders stand where they start."
STYLE = """
@page { size: A4; margin: 18mm 17mm 20mm }
html { font-size: 10.5pt; --pst-font-size-base: 10.5pt }
body { background: #fff }
.print-page { break-before: page }
.print-page, .print-cover { max-width: none }
.print-cover { min-height: 60vh; padding-top: 20vh }
.print-contents a { display: block; padding: .2rem 0; color: inherit; text-decoration: none }
:is(h1, h2, h3, h4) { break-after: avoid }
:is(figure, img, .admonition-title, tr, div.math) { break-inside: avoid }
pre { white-space: pre-wrap !important; overflow-wrap: anywhere }
details > summary { list-style: none }
"""
PAPER = """
@page { margin: 14mm 16mm }
html { font-size: 8.6pt; --pst-font-size-base: 8.6pt }
h1 { font-size: 1.7rem }
h2 { font-size: 1.2rem; margin: .8rem 0 .3rem }
.print-page :is(p, figure, .knob) { max-width: none; margin-bottom: .5rem }
.print-page table.rates :is(th, td) { white-space: normal !important }
.knob img, .knob svg { max-height: 66mm; width: auto !important }
.bd-article table { font-size: .8em }
.bd-article .citation-list, .bd-article dl.citation { font-size: .9em }
"""


def pages(html: Path) -> list[str]:
    """The book's pages in reading order, as paths below `html`."""
    start = BeautifulSoup((html / ROOT_FILE).read_bytes(), "html.parser")
    links = [a["href"].split("#")[0] for a in start.select("nav.bd-links a.internal")]
    return [os.path.normpath(os.path.join(os.path.dirname(ROOT_FILE), link)) if link else ROOT_FILE for link in links]


def anchor(page: str, fragment: str = "") -> str:
    """The id that a place of a page has in the joined file."""
    return page.removesuffix(".html").replace("/", "-") + (f"--{fragment}" if fragment else "")


def article(html: Path, page: str, known: set[str]) -> Tag:
    """One page's text, ready to be joined: its ids carry the page's name, its links lead within the file."""
    text = BeautifulSoup((html / page).read_bytes(), "html.parser").find("article")
    for tag in text.select(WEB_ONLY):
        tag.decompose()
    for tag in text.select("[loading=lazy]"):  # a printer does not scroll
        del tag["loading"]
    for tag in text.find_all("details"):
        tag["open"] = ""
    for tag in text.find_all(id=True):
        tag["id"] = anchor(page, tag["id"])
    for name, attribute in (("a", "href"), ("img", "src")):
        for tag in text.find_all(name, attrs={attribute: True}):
            tag[attribute] = within(tag[attribute], page, known)
    text["id"], text["class"] = anchor(page), ["bd-article", "print-page"]
    return text


def within(target: str, page: str, known: set[str]) -> str:
    """Where a link of `page` leads to in the joined file, which lies at the top of the book."""
    if urlsplit(target).scheme:
        return target
    path, fragment = urldefrag(target)
    fragment = "" if "=" in fragment else fragment  # the lab's sliders, which paper does not have
    path = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
    return f"#{anchor(path, fragment)}" if path in known else path


def cited(html: Path, text: Tag) -> list[Tag]:
    """The entries of the bibliography that a page's text links to, in its order."""
    ids = {urldefrag(a["href"]).fragment for a in text.select("a[href*='bibliography.html#']")}
    entries = BeautifulSoup((html / REFERENCES).read_bytes(), "html.parser").select("div.citation")
    return [entry for entry in entries if entry.get("id") in ids]


def paper(html: Path, page: str) -> Tag:
    """One page's text without what it folds away, and the references that it cites."""
    source = BeautifulSoup((html / page).read_bytes(), "html.parser").find("article")
    text = article(html, page, {page})
    for tag in text.select(f"details, .cell_input, .paper-pdf, #{anchor(page, ON_SCREEN)}"):
        tag.decompose()
    text.append(BeautifulSoup("<h2>References</h2>", "html.parser"))
    text.extend(cited(html, source))
    return text


def join(html: Path, page: str | None = None) -> BeautifulSoup:
    """All pages in one document, or one page as a paper."""
    names = [page] if page else pages(html)
    out = BeautifulSoup((html / names[0]).read_bytes(), "html.parser")  # the links to styles are the same in every head
    heads = [(html / name).read_text(encoding="utf8").partition("</head>")[0] for name in names]
    colours = BeautifulSoup("".join(match for head in heads for match in COLOURS.findall(head)), "html.parser")
    articles = [paper(html, page)] if page else [article(html, name, set(names)) for name in names]
    out.title.string = articles[0].find("h1").get_text(strip=True).rstrip("#") if page else TITLE
    for tag in out.head.find_all(["link", "script"]):
        if "stylesheet" in tag.get("rel", []):
            tag["href"] = within(tag["href"], names[0], set())
        else:
            tag.decompose()
    out.head.extend(list(colours))
    out.head.append(out.new_tag("style", string=STYLE + PAPER if page else STYLE))
    out.body.clear()
    if not page:
        out.body.append(contents(out, articles))
    main = out.new_tag("main", attrs={"class": "bd-content"})
    main.extend(articles)
    out.body.append(main)
    return out


def contents(out: BeautifulSoup, articles: list[Tag]) -> Tag:
    """The first sheet: the title, and a line for each page."""
    cover = out.new_tag("nav", attrs={"class": "bd-article print-cover print-contents"})
    cover.append(out.new_tag("h1", string=TITLE))
    cover.append(out.new_tag("p", string=FOREWORD))
    for text in articles[1:]:
        cover.append(out.new_tag("a", href=f"#{text['id']}", string=text.find("h1").get_text(strip=True)))
    return cover


@contextmanager
def serve(html: Path) -> Iterator[str]:
    """Serve the built pages from a port of this machine, packed as web servers send them; gives the address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            path = Path(self.translate_path(self.path))
            if not path.is_file():
                self.send_error(404)
                return
            packed = gzip.compress(path.read_bytes(), compresslevel=6)
            self.send_response(200)
            self.send_header("Content-Type", self.guess_type(path))
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(packed)))
            self.end_headers()
            self.wfile.write(packed)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=html))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()


def find_browser() -> str | None:
    """The path of a Chromium or Chrome on this machine."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def print_to(html: Path, pdf: Path, page: str | None = None) -> None:
    """Print the joined book, or one page, into one file."""
    browser = find_browser()
    if browser is None:
        sys.exit(NO_BROWSER)
    joined = html / "print.html"  # beside the pages, so that its pictures and scripts are found
    joined.write_text(str(join(html, page)), encoding="utf8")
    foot = '<p style="font-size: 8px; width: 100%; text-align: center"><span class="pageNumber"></span></p>'
    try:
        with serve(html) as address, sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=browser, args=FLAGS)
            tab = chromium.new_page()
            tab.goto(address + joined.name)
            tab.pdf(
                path=pdf, prefer_css_page_size=True, print_background=True, outline=True, tagged=True,
                display_header_footer=True, header_template="<p></p>", footer_template=foot,
            )  # fmt: skip
            chromium.close()
    finally:
        joined.unlink()


def link_to(html: Path, pdf: Path) -> None:
    """Put the file beside the pages, and below each list of chapters a link to it; without the file, none is there."""
    shutil.copy(pdf, html / FILE)
    size = f"{pdf.stat().st_size / 1e6:.0f} MB"
    for page in html.rglob("*.html"):
        text = page.read_text(encoding="utf8")
        up = "../" * (len(page.relative_to(html).parts) - 1)
        link = f'<p class="book-pdf"><a href="{up}{FILE}">The whole book as a PDF ({size})</a></p>'
        text = re.sub(r'<p class="book-pdf">.*?</p>', "", text)
        page.write_text(re.sub(NAVIGATION, rf"\g<0>{link}", text, count=1), encoding="utf8")


def link_from(html: Path, page: str, pdf: Path) -> None:
    """Put the file beside its page, and a link to it below the page's heading."""
    shutil.copy(pdf, (html / page).parent / pdf.name)
    text = re.sub(r'<p class="paper-pdf">.*?</p>', "", (html / page).read_text(encoding="utf8"))
    link = f'<p class="paper-pdf"><a href="{pdf.name}">This page as a paper (PDF)</a></p>'
    (html / page).write_text(text.replace("</h1>", f"</h1>{link}", 1), encoding="utf8")


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("html", type=Path, help="the folder of built pages")
    parser.add_argument("pdf", type=Path, help="the file to write")
    parser.add_argument("--page", help="print this page alone, as a paper: its path below the folder")
    args = parser.parse_args()
    print_to(args.html, args.pdf, args.page)
    if args.page:
        link_from(args.html, args.page, args.pdf)
    else:
        link_to(args.html, args.pdf)
    print(f"{args.pdf}: {args.pdf.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

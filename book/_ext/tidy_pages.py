"""Mend what the theme and Sphinx leave in every page: downloads for nothing, and names that mislead."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

SEARCH = '<button class="btn search-button-field search-button__button pst-js-only" title="Search"'
SIDEBAR = '<div id="pst-primary-sidebar" class="bd-sidebar-primary bd-sidebar"'
FOLD = '<summary><span class="toctree-toggle"'  # in the side bar, beside a page that has others below it
EARLY = '<script data-cfasync="false">'
# Where a browser refuses storage, the theme's scripts would end in an error: they get one that is gone with the page.
STORE = """<script>
for (const name of ["localStorage", "sessionStorage"])
  try {
    window[name].length;
  } catch {
    const kept = new Map();
    const value = {
      getItem: key => kept.get(key) ?? null,
      setItem: (key, value) => void kept.set(key, String(value)),
      removeItem: key => void kept.delete(key),
    };
    Object.defineProperty(window, name, { value });
    document.documentElement.dataset.unkept = "";
  }
</script>
"""
# The theme's last script chooses light or dark, and all that was painted before has other colours and sizes.
MODE_SAVED = 'dataset.mode = localStorage.getItem("mode") || "";'
THEME_SAVED = 'document.documentElement.dataset.theme = localStorage.getItem("theme") || "";'
THEME_NOW = """
    if (!["light", "dark"].includes(document.documentElement.dataset.mode))
      document.documentElement.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";"""
MENDED = {
    f'{SEARCH} aria-label="Search"': SEARCH,
    f"{SIDEBAR}>": f'{SIDEBAR} role="region" aria-label="The book">',
    EARLY: STORE + EARLY,
    FOLD: FOLD.replace("<summary>", '<summary aria-label="The pages below this one">'),
    MODE_SAVED: MODE_SAVED.replace('""', '"auto"'),  # the theme refuses an empty one in the console
    THEME_SAVED: THEME_SAVED + THEME_NOW,
}


def drop_widget_state(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Leave out the widgets' state: the pages show a knob's HTML, and the state would be its pictures once more."""
    state = "application/vnd.jupyter.widget-state+json"
    context["script_files"] = [f for f in context["script_files"] if getattr(f, "attributes", {}).get("type") != state]


TWICE = re.compile(r' id="(?:exercise|solution)-content"')  # nothing leads there, and each exercise has one
BLANK_HEAD = re.compile(r"<th([^>]*)>(?:<p>)?\s*(?:</p>)?</th>")
TITLE_LINK = re.compile(r"(Solution to)(<a [^>]*>) ")  # the link begins after the space
ROLES = (
    ('<div role="list" class="citation-list">', "<div>"),
    (' role="doc-biblioentry"', ""),
    (' role="doc-backlinks"', ""),
)


def tidy_body(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Mend what a screen reader stumbles over: roles of the bibliography, empty heads of tables, doubled ids."""
    body = BLANK_HEAD.sub(r"<td\1></td>", TWICE.sub("", context.get("body", "")))
    body = TITLE_LINK.sub(r"\1 \2", body)
    for old, new in ROLES:
        body = body.replace(old, new)
    context["body"] = body


def mend_theme(app: Sphinx, error: Exception | None) -> None:
    """The same for the search button; a name for the side bar, which is no part of the text; a store; a theme."""
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text(encoding="utf8")
        for old, new in MENDED.items():
            text = text.replace(old, new)
        page.write_text(text, encoding="utf8")


def empty_icon_script(app: Sphinx, error: Exception | None) -> None:
    """The theme brings its icons twice, as a web font and as this script of 1.5 MB. The font is enough."""
    script = Path(app.outdir, "_static", "scripts", "fontawesome.js")
    if error is None and script.exists():
        script.write_text("")


SEARCHED = {
    # A search fetches a summary from each page found; where the pages are files, browsers forbid that.
    "else if (showSearchSummary)": 'else if (showSearchSummary && location.protocol !== "file:")',
    # A summary is of the page's text, without its buttons and its list of sections.
    """querySelector('[role="main"]')""": """querySelector("article.bd-article")""",
    # The words stay unmarked on the page that is opened next.
    """localStorage.setItem("sphinx_highlight_terms", [...highlightTerms].join(" "))""": "",
}


def mend_search(app: Sphinx, error: Exception | None) -> None:
    """Mend Sphinx's search through all pages."""
    script = Path(app.outdir, "_static", "searchtools.js")
    if error is None and script.exists():
        text = script.read_text(encoding="utf8")
        for old, new in SEARCHED.items():
            text = text.replace(old, new)
        script.write_text(text, encoding="utf8")


def say_colab(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """A link in words in the top bar, not two behind a rocket. Binder's goes to the other ways to take a page along."""
    groups = {group["label"]: group for group in context.get("header_buttons", []) if group["type"] == "group"}
    launch = groups.get("launch-buttons")
    if launch is None:
        return
    links = {button["text"]: button for button in launch["buttons"]}
    place = context["header_buttons"].index(launch)
    context["header_buttons"][place] = {"type": "link", "text": "Open in Colab", "url": links["Colab"]["url"]}
    binder = {"type": "link", "text": "Open in Binder", "icon": "fas fa-rocket", "url": links["Binder"]["url"]}
    groups["download-buttons"]["buttons"].append(binder)


def drop_alias(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Python's words for a field of a NamedTuple, "Alias for field number 0", say nothing."""
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_js_file("progress.js", loading_method="defer")
    app.add_js_file("pages.js", loading_method="defer")
    app.connect("html-page-context", say_colab, priority=900)  # after the theme has made its buttons
    app.connect("html-page-context", drop_widget_state, priority=900)
    app.connect("html-page-context", tidy_body)
    app.setup_extension("sphinx.ext.autodoc")  # whose event the next line needs
    app.connect("autodoc-process-docstring", drop_alias)
    app.connect("build-finished", empty_icon_script)
    app.connect("build-finished", mend_theme)
    app.connect("build-finished", mend_search)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

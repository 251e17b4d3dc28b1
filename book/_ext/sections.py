"""What the search finds as one types: every section of the book, every word of the glossary, every symptom.

The theme's own search knows pages. This writes one script, `_static/sections.js`, with a title, a place and the text
of each section; `_static/search.js` fetches it when the search is opened, and ranks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

FIRST = {"book/glossary": 3, "book/cheatsheet": 2, "book/troubleshooting": 2}  # how much a page is preferred
LEFT_OUT = {"Exercises", "Quick questions", "Questions", "Summary"}
Entry = tuple[str, str, str, str, int]  # title, name of the page, address, text, preference


def entries(app: Sphinx) -> Iterator[Entry]:
    """All of them, page by page, in the order of the book."""
    for page in app.env.found_docs:
        doctree = app.env.get_doctree(page)
        title = app.env.titles[page].astext()
        address = app.builder.get_target_uri(page)
        preferred = FIRST.get(page, 1)
        for section in doctree.findall(nodes.section):
            heading = section.next_node(nodes.title)
            head = "" if heading is None else heading.astext()
            if head and head not in LEFT_OUT:
                anchor = "" if head == title else "#" + section["ids"][0]
                yield words(head), title, address + anchor, own_text(section), preferred
        for item in doctree.findall(nodes.definition_list_item):
            term, definition = item.next_node(nodes.term), item.next_node(nodes.definition)
            anchor = term["ids"][0] if term["ids"] else nearest(item)
            if page in FIRST and definition is not None:
                terms = [child.astext() for child in item.children if isinstance(child, nodes.term)]
                yield words(", ".join(terms)), title, f"{address}#{anchor}", words(definition.astext()), preferred


def own_text(section: nodes.section) -> str:
    """What stands in a section itself, not in those below it."""
    own = [child for child in section.children if not isinstance(child, nodes.section)]
    return words(" ".join(text for child in own for text in texts(child)))


def texts(node: nodes.Node) -> Iterator[str]:
    """The text of a node, without what is not text: raw HTML, pictures' data, code that is folded."""
    if isinstance(node, (nodes.raw, nodes.image, nodes.comment)):
        return
    if isinstance(node, nodes.container) and node.get("nb_element") == "cell_code" and node.get("hide_mode"):
        return
    if isinstance(node, (nodes.paragraph, nodes.literal_block, nodes.math_block, nodes.term, nodes.entry)):
        yield node.astext()
        return
    for child in node.children:
        yield from texts(child)


def nearest(node: nodes.Node) -> str:
    """The section around it."""
    while not isinstance(node, nodes.section):
        node = node.parent
    return node["ids"][0]


def words(text: str) -> str:
    """The text in one line."""
    return re.sub(r"\s+", " ", text).strip()


def write_index(app: Sphinx, error: Exception | None) -> None:
    """As a script, which a page can fetch from a folder of files too."""
    if error is None and app.builder.format == "html":
        order = {page: n for n, page in enumerate(app.env.toctree_includes.get(app.config.root_doc, []))}
        found = sorted(entries(app), key=lambda entry: order.get(entry[2].partition(".html")[0], 999))
        packed = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
        Path(app.outdir, "_static", "sections.js").write_text(f"window.bookSections = {packed};", encoding="utf8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_js_file("search.js", loading_method="defer")
    app.connect("build-finished", write_index)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

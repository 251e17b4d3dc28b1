"""Plain links to the glossary, `[rank](../book/glossary.md#term-rank)`, which a raw notebook can show too.

They come out as {term} does: MyST's own links know headings and targets, but no glossary entries. The glossary itself
gets its letters, each of which leads to its first word.
"""

from __future__ import annotations

from html import escape
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

LOGGER = logging.getLogger(__name__)


class GlossaryLinks(SphinxPostTransform):
    """Resolve links whose anchor is `term-…` by the glossary's own list of words."""

    default_priority = 8  # before MyST's resolver, which would say that there is no such anchor

    def run(self, **kwargs: Any) -> None:
        """Called by Sphinx for each page."""
        terms = self.env.domains["std"].objects
        words = {place: word for (kind, word), place in terms.items() if kind == "term"}
        for node in list(self.document.findall(addnodes.pending_xref)):
            target = node.get("reftargetid") or ""
            if node["reftype"] != "myst" or not target.startswith("term-"):
                continue
            page = node["reftarget"]
            if (page, target) not in words:
                LOGGER.warning("no such word in the glossary: %s#%s", page, target, location=node)
                continue
            inner = nodes.inline("", "", *node.children, classes=["xref", "std", "std-term"])
            here = self.env.docname
            node.replace_self(make_refnode(self.app.builder, here, page, target, inner, words[page, target]))


def add_letters(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """A row of letters before the words."""
    for glossary in list(doctree.findall(addnodes.glossary)):
        first: dict[str, str] = {}
        for item in glossary.findall(nodes.definition_list_item):
            term = item.next_node(nodes.term)
            first.setdefault(term.astext()[0].upper(), term["ids"][0])
        links = " ".join(f'<a href="#{escape(anchor)}">{letter}</a>' for letter, anchor in first.items())
        row = f'<nav class="letters" aria-label="Words by their first letter">{links}</nav>'
        glossary.parent.insert(glossary.parent.index(glossary), nodes.raw("", row, format="html"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("doctree-resolved", add_letters)
    app.add_post_transform(GlossaryLinks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

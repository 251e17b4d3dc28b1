"""Cards: what a glossary word or a citation leads to, written into each page that has it, for `_static/cards.js`.

The texts are in the page itself, so that they need no network and no server: about a kilobyte of what is sent.
"""

from __future__ import annotations

import json
import re
from typing import Any

from docutils import nodes
from pybtex.database import Person
from pybtex.richtext import Text
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

GLOSSARY = "book/glossary"
LONGEST = 260  # letters; a card has whole sentences, at least one
NAMED = 3  # authors


def add_cards(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Put the texts of a page's own links at its end, under the address that each link has there."""
    if doctree is None:
        return
    if not hasattr(app, "book_cards"):
        app.book_cards = term_cards(app.env) | citation_cards(app.env)  # type: ignore[attr-defined]
    cards: dict[str, dict[str, str]] = app.book_cards  # type: ignore[attr-defined]
    found = {}
    for link in doctree.findall(nodes.reference):
        address = link.get("refuri") or "#" + link.get("refid", "")
        target = app.builder.get_target_uri(page) if address.startswith("#") else address
        name = re.sub(r".*?([^/]+)\.html#", r"\1#", target + address * address.startswith("#"))
        if link.get("internal") and name in cards:
            found[address] = cards[name]
    if found:
        packed = json.dumps(dict(sorted(found.items())), ensure_ascii=False).replace("<", "\\u003c")
        context["body"] += f'<script type="application/json" id="book-cards">{packed}</script>'
        app.add_js_file("cards.js", loading_method="defer")


def term_cards(env: BuildEnvironment) -> dict[str, dict[str, str]]:
    """A card for each word of the glossary."""
    cards = {}
    for item in env.get_doctree(GLOSSARY).findall(nodes.definition_list_item):
        terms = [child for child in item.children if isinstance(child, nodes.term)]
        definition = item.next_node(nodes.definition)
        for cited in list(definition.findall(addnodes.pending_xref)):
            if cited["refdomain"] == "cite":
                cited.parent.remove(cited)
        words = re.sub(r" (?=[.,:;)])", "", " ".join(definition.astext().split()))
        card = {"name": terms[0].astext(), "text": first_sentences(words)}
        cards |= {f"glossary#{anchor}": card for term in terms for anchor in term["ids"]}
    return cards


def first_sentences(text: str) -> str:
    """Whole sentences from the start of a text, as many as a card has room for."""
    sentences = re.split(r"(?<=[.?!)]) (?=[A-Z(*])", text)
    said = sentences[0]
    for sentence in sentences[1:]:
        if len(said) + len(sentence) > LONGEST:
            break
        said += " " + sentence
    return said


def citation_cards(env: BuildEnvironment) -> dict[str, dict[str, str]]:
    """A card for each cited work."""
    domain: Any = env.get_domain("cite")
    cards = {}
    for citation in domain.citations:
        entry = domain.bibdata.data.entries[citation.key]
        page = next(key.docname for key in domain.bibliographies if key == citation.bibliography_key)
        names = [full_name(person) for person in entry.persons["author"]]
        rest = len(names) - NAMED
        authors = ", ".join(names) if rest <= 1 else f"{', '.join(names[:NAMED])} and {rest} others"
        card = {"name": str(Text.from_latex(entry.fields["title"])), "text": f"{authors}, {entry.fields['year']}."}
        if "url" in entry.fields:
            card["url"] = entry.fields["url"]
        cards[f"{page.rpartition('/')[2]}#{citation.citation_id}"] = card
    return cards


def full_name(person: Person) -> str:
    """A person's names in the order in which they are spoken."""
    parts = (person.rich_first_names, person.rich_middle_names, person.rich_prelast_names, person.rich_last_names)
    return " ".join(str(name) for names in parts for name in names)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("html-page-context", add_cards)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

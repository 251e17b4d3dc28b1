"""Tables that a phone has no room for: with short cells they scroll there, with sentences each row becomes a card.

Where a table scrolls, its first column stays in sight. A card begins with the row's first cell; the others have the
name of their column before them, and of two columns the first card alone.
"""

from __future__ import annotations

import re
from html import escape, unescape
from typing import Any

from sphinx.application import Sphinx

TABLE = re.compile(r"<table class=\"[^\"]*\btable\b[^\"]*\".*?</table>", re.S)
ROW = re.compile(r"<tr.*?</tr>", re.S)
CELL = re.compile(r"<(td|th)([^>]*)>(.*?)</\1>", re.S)
TAG = re.compile(r"<[^>]+>")
ROOM = 44  # letters that a phone has in a line
LONGEST = 22  # letters of a cell, after which it may go on in a new line
SHORT = 30  # letters of the longest cell in a table that scrolls, but for its first column
BRIEF = 24  # letters of a cell and its name that leave room for another in the line of a card


def name_cells(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Called by Sphinx for each page before it is written."""
    if doctree is not None and "body" in context:
        context["body"] = TABLE.sub(lambda match: as_cards(match[0]), context["body"])


def as_cards(table: str) -> str:
    """The table with the class `numbers` or `cards` where it is too wide for a phone; cells of cards have a name."""
    rows = [[text(cell[2]) for cell in CELL.findall(row)] for row in ROW.findall(table)]
    if "<thead>" not in table or len({len(row) for row in rows}) != 1 or len(rows[0]) < 2:
        return table
    longest = [max(map(len, column)) for column in zip(*rows)]
    if sum(2 + min(LONGEST, letters) for letters in longest) <= ROOM:
        return table
    cells = [max(map(len, column)) for column in zip(*rows[1:])]
    if max(cells[1:]) <= SHORT:
        return table.replace('class="', f'style="--first: {cells[0]}ch" class="numbers ', 1)
    return with_names(table, rows[0])


def with_names(table: str, columns: list[str]) -> str:
    """The table as cards."""
    head, body = table.split("</thead>", 1)
    labels = [column.rstrip(".:") for column in columns]

    def named(row: re.Match[str]) -> str:
        nonlocal labels
        cells = CELL.findall(row[0])
        made = "".join(labelled(*cell, label, not i) for i, (cell, label) in enumerate(zip(cells, labels)))
        if len(cells) == 2 and text(cells[1][2]):
            labels = [labels[0], ""]
        return re.sub(r"(<tr[^>]*>).*(</tr>)", lambda m: m[1] + made + m[2], row[0], flags=re.S)

    return head.replace('class="', 'class="cards ', 1) + "</thead>" + ROW.sub(named, body)


def labelled(tag: str, attributes: str, html: str, label: str, first: bool) -> str:
    """A cell that says what it is, but for one with nothing in it."""
    said = text(html)
    if said and not first and len(label) + len(said) <= BRIEF:
        attributes += ' data-brief=""'
    return f"<{tag}{attributes}" + (f' data-label="{escape(label)}"' if said else "") + f">{html}</{tag}>"


def text(html: str) -> str:
    """What a reader reads."""
    return " ".join(unescape(TAG.sub("", html)).split())


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("html-page-context", name_cells, priority=650)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

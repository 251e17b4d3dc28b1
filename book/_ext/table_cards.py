"""Tables that a phone has no room for: with short cells they are set smaller there, else each row becomes a card.

A card begins with the row's first cell; the others have the name of their column before them.
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
ROOM, SMALLER = 44, 50  # letters that a phone has in a line, at a table's usual size and smaller
LONGEST = 22  # letters of a cell, after which it may go on in a new line
SHORT = 18  # letters of the longest cell in a table that is set smaller: a number and its interval, say


def name_cells(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Called by Sphinx for each page before it is written."""
    if doctree is not None and "body" in context:
        context["body"] = TABLE.sub(lambda match: as_cards(match[0]), context["body"])


def as_cards(table: str) -> str:
    """The table with the class `tight` or `cards` where it is too wide for a phone; cells of cards have a name."""
    rows = [[text(cell[2]) for cell in CELL.findall(row)] for row in ROW.findall(table)]
    if "<thead>" not in table or len({len(row) for row in rows}) != 1 or len(rows[0]) < 2:
        return table
    columns = list(zip(*rows))
    if sum(2 + min(LONGEST, max(map(len, column))) for column in columns) <= ROOM:
        return table
    cells = [max(map(len, column[1:])) for column in columns]
    words = [max(map(len, column[0].split()), default=0) for column in columns]  # a head may take several lines
    if max(cells) <= SHORT and sum(1 + max(pair) for pair in zip(cells, words)) <= SMALLER:
        return table.replace('class="', 'class="tight ', 1)
    names = rows[0]
    head, body = table.split("</thead>", 1)
    body = ROW.sub(lambda row: named(row[0], names), body)
    return head.replace('class="', 'class="cards ', 1) + "</thead>" + body


def named(row: str, names: list[str]) -> str:
    """A row whose cells say what they are, but for those with nothing in them."""
    columns = iter(names)

    def name(cell: re.Match[str]) -> str:
        column = next(columns).rstrip(".:")
        label = f' data-label="{escape(column)}"' if text(cell[3]) else ""
        return f"<{cell[1]}{cell[2]}{label}>{cell[3]}</{cell[1]}>"

    return CELL.sub(name, row)


def text(html: str) -> str:
    """What a reader reads."""
    return " ".join(unescape(TAG.sub("", html)).split())


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("html-page-context", name_cells, priority=650)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

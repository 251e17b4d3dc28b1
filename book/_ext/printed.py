"""What cells print: tables of numbers keep their columns and are set smaller on a phone; other lines go on below."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

from sphinx.application import Sphinx

PRINTED = re.compile(
    r'(<div class="output (?:stream|text_plain)[^"]*"><div class="highlight"><pre)(>(.*?)</pre>)', re.S
)
TAG = re.compile(r"<[^>]+>")
GAP = re.compile(r"\S {2,}\S")  # between two columns
WIDEST = 140  # letters of a line; a longer one is prose


def keep_columns(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Called by Sphinx for each page before it is written."""
    if doctree is not None and "body" in context:
        context["body"] = PRINTED.sub(mark, context["body"])


def mark(match: re.Match[str]) -> str:
    """The output with the class `columns` and their number, if it is a table."""
    lines = [line.rstrip() for line in unescape(TAG.sub("", match[3])).splitlines() if line.strip()]
    width = max(map(len, lines), default=0)
    in_columns = [line for line in lines if GAP.search(line)]
    if len(in_columns) < 2 or 2 * len(in_columns) < len(lines) or width > WIDEST:
        return match[0]
    return f'{match[1]} class="columns" style="--columns:{width}"{match[2]}'


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("html-page-context", keep_columns, priority=650)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

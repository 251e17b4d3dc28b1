"""Tables in what a cell shows: Markdown, so that the page, Jupyter and Colab draw them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from IPython.display import Markdown


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Any:
    """A table with this head; cells are Markdown, and a line break or a | in them does not break the table."""

    def line(cells: Iterable[object]) -> str:
        return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |"

    made: Any = Markdown  # IPython declares no types
    return made("\n".join([line(head), line(["---"] * len(head)), *map(line, rows)]))

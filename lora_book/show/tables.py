"""Tables in what a cell shows: Markdown, so that the page, Jupyter and Colab draw them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from IPython.display import Markdown

from lora_book.findings.stats import Row, mean

NUMERIC = re.compile(r"([+−-]?\d[^a-zA-Z]*([kMG]B)?)?")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Any:
    """A table with this head; cells are Markdown, and a line break or a | in them does not break the table.

    A column of numbers (with a sign, an interval or % if need be; a cell may be empty) is set to the right.
    """
    cells = [[" ".join(str(cell).split()).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    rules = ["---:" if all(NUMERIC.fullmatch(cell) for cell in column[1:]) else "---" for column in zip(*cells)]
    made: Any = Markdown  # IPython declares no types
    return made("\n".join("| " + " | ".join(line) + " |" for line in (cells[0], rules, *cells[1:])))


def means_table(
    runs: Mapping[str, Sequence[Row]], columns: Mapping[str, str | Callable[[Sequence[Row]], object]], corner: str = ""
) -> Any:
    """A row for each group of runs: the mean and spread of the measure behind each head, or what a function says."""
    cells = [[c(rows) if callable(c) else mean(rows, c) for c in columns.values()] for rows in runs.values()]
    return table([corner, *columns], [[name, *row] for name, row in zip(runs, cells)])

"""What long runs found, kept as rows: one CSV for each experiment, written by the scripts in `experiments/`."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent
Row = dict[str, Any]


class Mean(NamedTuple):
    """A mean over runs, its sample standard deviation (0 for a single run), and how many runs there are."""

    mean: float
    spread: float
    runs: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.spread:.2f}" if self.runs > 1 else f"{self.mean:.2f}"


def load_results(name: str) -> list[Row]:
    """The rows of one experiment, a dict a run; numbers are numbers, and what was not measured is None.

    Raises FileNotFoundError, with the names there are, for any other.
    """
    path = FOLDER / f"{name}.csv"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in FOLDER.glob("*.csv")))
        raise FileNotFoundError(f"there are no results called {name!r}; there are {names}")
    with path.open(newline="", encoding="utf8") as file:
        return [{key: _value(text) for key, text in row.items()} for row in csv.DictReader(file)]


def select(rows: Iterable[Row], **settings: Any) -> list[Row]:
    """The rows with these settings: `select(rows, method="lora", rank=8)`."""
    return [row for row in rows if all(row[key] == value for key, value in settings.items())]


def mean(rows: Iterable[Row], measure: str) -> Mean:
    """The mean of `measure` over these runs, without those that did not measure it. Raises ValueError for none."""
    values = [row[measure] for row in rows if row[measure] is not None]
    if not values:
        raise ValueError(f"no run measured {measure!r}")
    return Mean(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))


def means(rows: Iterable[Row], by: str | Sequence[str], measure: str) -> dict[Any, Mean]:
    """The mean of `measure` over the runs that agree in `by`, for each of its values, in their order of size.

    `by` is the name of a column, or several: the keys are then tuples. What is missing in a key comes first.
    """
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        if row[measure] is not None:
            key = row[by] if isinstance(by, str) else tuple(row[name] for name in by)
            groups.setdefault(key, []).append(row)
    return {key: mean(group, measure) for key, group in sorted(groups.items(), key=lambda pair: _order(pair[0]))}


def at_best_rate(rows: Iterable[Row], measure: str = "validation_loss", seeds: int = 3) -> list[Row]:
    """The runs at the learning rate whose mean of `measure` is the least, of the rates that `seeds` runs or more have.

    Raises ValueError when there is no such rate.
    """
    rows = list(rows)
    repeated = {rate: m.mean for rate, m in means(rows, "learning_rate", measure).items() if m.runs >= seeds}
    if not repeated:
        raise ValueError(f"no learning rate has {seeds} runs")
    return select(rows, learning_rate=min(repeated, key=lambda rate: repeated[rate]))


def _order(key: Any) -> list[tuple[bool, Any]]:
    """What to sort a key by: None cannot be compared."""
    return [(value is not None, value) for value in (key if isinstance(key, tuple) else (key,))]


def _value(text: str) -> Any:
    if text in ("", "True", "False"):
        return {"": None, "True": True, "False": False}[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text

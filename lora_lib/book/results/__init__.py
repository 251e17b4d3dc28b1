"""What long runs found, kept as rows: one CSV for each experiment, written by the scripts in `experiments/`.

One rule tells a difference from chance, everywhere in the book. Two settings are compared on the same seeds, and the
difference is taken seed by seed: a seed that is hard for one is often hard for the other. Of these differences comes a
95 % interval, mean ± t · s / √n, t of Student's distribution with n - 1 degrees of freedom. There is a difference when
the interval lies on one side of zero; it takes three seeds at least. Where it holds zero, the two are level only if the
whole interval is within a margin that was named, and otherwise the question is not settled. One in twenty such
intervals misses the truth by chance; and they speak of other seeds, not of other data, models or lengths.

The map of `lora_lib.book.results.forgetting` has a stricter rule, which later runs are to follow: rates a factor of 1.8
apart, tuned on a seed and on data that are not reported, five seeds, and margins of 2 %.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent
# What 97.5 % of Student's t distribution lies below, for 1, 2, 3, … degrees of freedom.
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
FEWEST = 3  # seeds that a difference takes
Row = dict[str, Any]


class Mean(NamedTuple):
    """A mean over runs, its sample standard deviation (0 for a single run), and how many runs there are."""

    mean: float
    spread: float
    runs: int

    @property
    def half_interval(self) -> float:
        """Half the width of the mean's own 95 % interval: t · s / √n; endless for a single run."""
        return _half_interval(self.spread, self.runs)

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.spread:.2f}" if self.runs > 1 else f"{self.mean:.2f}"


class Difference(NamedTuple):
    """The mean of differences seed by seed, the ends of its 95 % interval, and how many seeds there are."""

    mean: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, changes: Sequence[float]) -> Difference:
        """Of one difference a seed. With fewer than three the interval is endless. Raises ValueError for none."""
        if not changes:
            raise ValueError("there is no seed that both sides have: nothing can be compared")
        mean, half = statistics.fmean(changes), math.inf
        if len(changes) >= FEWEST:
            half = _half_interval(statistics.stdev(changes), len(changes))
        return cls(mean, mean - half, mean + half, len(changes))

    def verdict(self, margin: float = 0.0) -> str:
        """Either "more", "less", "level" (the interval holds zero and is within ± `margin`) or "not settled"."""
        if self.low > 0 or self.high < 0:
            return "more" if self.mean > 0 else "less"
        return "level" if -margin <= self.low and self.high <= margin else "not settled"

    def __str__(self) -> str:
        interval = f" [{self.low:+.2f}, {self.high:+.2f}]" if math.isfinite(self.low) else ""
        return f"{self.mean:+.2f}{interval}"


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


def at_best_rate(
    rows: Iterable[Row],
    measure: str = "validation_loss",
    seeds: int = FEWEST,
    rates: Sequence[str] = ("learning_rate",),
) -> list[Row]:
    """The runs at the learning rate whose mean of `measure` is the least, of the rates that `seeds` runs or more have.

    `rates` names the columns that are learning rates, where a run has several. Raises ValueError when no rate has so
    many runs.
    """
    rows = list(rows)
    repeated = {rate: m.mean for rate, m in means(rows, tuple(rates), measure).items() if m.runs >= seeds}
    if not repeated:
        raise ValueError(f"no learning rate has {seeds} runs")
    best = min(repeated, key=lambda rate: repeated[rate])
    return select(rows, **dict(zip(rates, best, strict=True)))


def by_seed(rows: Iterable[Row], measure: str) -> dict[int, float]:
    """Each run's `measure` by its seed, without the runs that did not measure it.

    Raises ValueError when two runs have one seed: they differ by something else, which has to be chosen first.
    """
    found: dict[int, float] = {}
    for row in rows:
        if row[measure] is not None:
            if row["seed"] in found:
                raise ValueError(f"two runs have seed {row['seed']}: select one setting before comparing seeds")
            found[row["seed"]] = row[measure]
    return found


def paired(rows: Iterable[Row], others: Iterable[Row], measure: str) -> Difference:
    """How much more of `measure` the runs `rows` have than the runs `others` of the same seeds.

    Seeds that only one side has are left out. Raises ValueError as `by_seed` does, and when there is no common seed.
    """
    ours, theirs = by_seed(rows, measure), by_seed(others, measure)
    return Difference.of([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def _half_interval(spread: float, runs: int) -> float:
    """Student's t · s / √n; with more than 31 runs the t of 31, which is a little too large."""
    return T_975[min(runs - 1, len(T_975)) - 1] * spread / math.sqrt(runs) if runs > 1 else math.inf


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

"""What long runs found, kept as rows: one CSV for each experiment, written by the scripts in `experiments/`.

One rule tells a difference from chance, everywhere in the book. Two settings are compared on the same seeds, and the
difference is taken seed by seed: a seed that is hard for one is often hard for the other. These differences give a 95 %
interval, mean ± t · s / √n, with t of Student's distribution for n - 1 degrees of freedom. There is a difference when
the interval lies on one side of zero; that takes three seeds at least. If zero is inside, the two are level only when
the whole interval is within a margin that was named; otherwise the question is not settled. Differences that are the
same in every seed have no spread, so they give no interval: a measure at its floor is no evidence. One in twenty
intervals misses the truth by chance, so a page with many of them also says which survive `survivors`. And intervals
speak of other seeds, not of other data, models or lengths.

The map of `lora_book.findings.forgetting` has a stricter rule, which later runs are to follow: rates a factor of 1.8
apart, tuned on a seed and on data that are not reported, five seeds, and margins of 2 %.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent / "results"
# What 97.5 % of Student's t distribution lies below, for 1, 2, 3, … degrees of freedom.
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
FEWEST = 3  # seeds that a difference takes
ROUNDING = 2e-4  # of a difference: rows have four decimals
Row = dict[str, Any]


class Mean(NamedTuple):
    """A mean over runs, its sample standard deviation (0 for a single run), and how many runs there are."""

    mean: float
    spread: float
    runs: int

    @property
    def half_interval(self) -> float:
        """Half the width of the mean's own 95 % interval: t · s / √n; infinite for a single run."""
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
        """The interval of one difference a seed. Raises ValueError for none.

        With fewer than three, or when all are the same but for rounding (a floor), the interval's ends are infinite.
        """
        if not changes:
            raise ValueError("there is no seed that both sides have: nothing can be compared")
        mean, half = statistics.fmean(changes), math.inf
        if len(changes) >= FEWEST and max(changes) - min(changes) > ROUNDING:
            half = _half_interval(statistics.stdev(changes), len(changes))
        return cls(mean, mean - half, mean + half, len(changes))

    @property
    def p(self) -> float:
        """How often chance alone gives a mean at least this far from zero: the t test's p; 1 with no interval."""
        half = self.high - self.mean
        return _two_sided(T_975[_degrees(self.runs)] * abs(self.mean) / half, self.runs - 1) if half < math.inf else 1.0

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


def survivors(found: Mapping[str, Difference], share: float = 0.05) -> set[str]:
    """The differences that stay significant at this false discovery rate.

    Benjamini and Hochberg's rule: of m intervals, sorted by p, the first k survive, for the largest k whose p is at
    most `share` · k / m.
    """
    by_p = sorted(found, key=lambda name: found[name].p)
    kept = max((k for k, name in enumerate(by_p, 1) if found[name].p <= share * k / len(by_p)), default=0)
    return set(by_p[:kept])


def _half_interval(spread: float, runs: int) -> float:
    """Student's t · s / √n; with more than 31 runs the t of 31, which is a little too large."""
    return T_975[_degrees(runs)] * spread / math.sqrt(runs) if runs > 1 else math.inf


def _degrees(runs: int) -> int:
    """Where `T_975` has the t of so many runs."""
    return min(runs - 1, len(T_975)) - 1


def _two_sided(t: float, degrees: int) -> float:
    """The share of Student's distribution that lies beyond ± t: by its finite series in the angle atan(t / √n)."""
    angle = math.atan(t / math.sqrt(degrees))
    odd = degrees % 2
    term = total = math.cos(angle) if odd else 1.0
    for i in range(2 + odd, degrees - 1 + odd, 2):
        term *= (i - 1) / i * math.cos(angle) ** 2
        total += term
    if odd:
        return 1 - 2 / math.pi * (angle + (math.sin(angle) * total if degrees > 1 else 0))
    return 1 - math.sin(angle) * total


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

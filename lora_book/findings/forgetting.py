"""What predicts forgetting, and what is left at equal loss or KL: rows of `experiments/forgetting/forgetting_map.py`.

The rule, which was written down before the runs: differences are taken seed by seed, with a 95 % interval. There is a
difference when the interval is on one side of zero, and it matters when all of it is beyond the margin, 2 % of the
other side's mean. Two settings are level when all of the interval is within the margin. It takes five seeds.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lora_book.findings.stats import T_975, Difference, Row, by_seed, load_results, select

TEXTS = ("prose", "plays", "messages", "restaurants")  # that the base is measured on before and after
MARGIN = 0.02
SEEDS = 5
# The best rate of each arm on the linear layers at 120 steps, by the pilot: on validation data and an unreported seed.
BEST = {
    "full": 0.001, "r = 64, α/√r": 0.0032, "r = 64": 0.0058, "r = 8": 0.0058, "r = 64, s = 4": 0.0018, "r = 1": 0.0032,
}  # fmt: skip
# What may predict forgetting, by its name on the page. A change that is scaled by λ is λ times as large.
FEATURES: dict[str, Callable[[Row], float]] = {
    "loss on the task": lambda row: row["loss"],
    "KL(tuned ‖ base) on the task": lambda row: row["kl"],
    "KL(base ‖ tuned) on the task": lambda row: row["kl_reverse"],
    "learning rate": lambda row: math.log(row["learning_rate"]),
    "‖ΔW‖": lambda row: math.log(row["scale"] * row["delta_norm"]),
    "largest singular values": lambda row: math.log(row["scale"] * row["spectral_norm"]),
    "length of the path": lambda row: math.log(row["scale"] * row["path"]),
    "stable rank": lambda row: math.log(row["stable_rank"]),
}


class Compared(NamedTuple):
    """A difference, and the other side's mean, which the margin is a share of."""

    difference: Difference
    of: float

    @property
    def percent(self) -> Difference:
        """The difference in per cent of the other side's mean."""
        mean, low, high, runs = self.difference
        return Difference(100 * mean / self.of, 100 * low / self.of, 100 * high / self.of, runs)

    def verdict(self, margin: float = MARGIN) -> str:
        """By the rule: "more" or "less", and by how much; "level"; or "not settled".

        A difference is "by more than the margin", "within the margin", or neither, where the interval holds it.
        """
        _, low, high, runs = self.difference
        most = margin * abs(self.of)
        within = -most <= low and high <= most
        if runs < SEEDS or low <= 0 <= high:
            return "level" if within and runs >= SEEDS else "not settled"
        beyond = low > most or high < -most
        size = ", by more than the margin" if beyond else ", within the margin" if within else ""
        return ("more" if low > 0 else "less") + size


SMOLLM2: dict[str, Any] = {"steps": 60, "file": "smollm2_map"}  # where `load_map` finds the runs of SmolLM2


def load_map(parts: str = "linear", steps: int = 120, file: str = "map") -> list[Row]:
    """The reported runs of the map, each as it was trained and times λ; those of SmolLM2 with `**SMOLLM2`.

    `prose_forgotten`, `plays_forgotten` and so on say how much a text's loss has risen above the base's. They are None
    for texts that a run times λ was not measured on. Tuning runs are left out: `tuned_rates` reads them.
    """
    kept = load_results(file)
    (base,) = select(kept, arm="base")
    rows = select(kept, parts=parts, steps=steps, split="test")
    for row, text in itertools.product(rows, TEXTS):
        loss = row[f"{text}_loss"]
        row[f"{text}_forgotten"] = None if loss is None else loss - base[f"{text}_loss"]
    return rows


def tuned_rates(parts: str = "linear", steps: int = 120, file: str = "map") -> dict[str, float]:
    """The learning rate of each arm with the least loss on validation data and the tuning seed."""
    tuning = select(load_results(file), parts=parts, steps=steps, split="validation")
    best: dict[str, Row] = {}
    for row in tuning:
        if row["arm"] not in best or row["loss"] < best[row["arm"]]["loss"]:
            best[row["arm"]] = row
    return {arm: row["learning_rate"] for arm, row in best.items()}


def compared(ours: Iterable[Row], theirs: Iterable[Row], measure: str) -> Compared:
    """Ours less theirs, seed by seed. Raises ValueError where there is no common seed, or one side has two runs."""
    left, right = by_seed(ours, measure), by_seed(theirs, measure)
    seeds = sorted(left.keys() & right.keys())
    found = Difference.of([left[seed] - right[seed] for seed in seeds])
    return Compared(found, statistics.fmean(right[seed] for seed in seeds))


def at_equal(rows: Iterable[Row], full: Iterable[Row], by: str, text: str = "prose") -> Compared:
    """How much more the runs `rows` have forgotten than `full` of the same seed where it has the same `by`.

    `full` are runs at several rates. Between two neighbouring rates whose `by` lies on both sides of the row's, the
    logarithm of what is forgotten is read off a straight line, since it grows about evenly from rate to rate; of
    several such pairs the one with the lowest rates counts, which is the one before the loss rises again. The margin
    is a share of the loss on the text there. A seed that is out of reach is left out. Raises ValueError when all are,
    and when a run of `full` has forgotten nothing.
    """
    full, forgotten, changes, levels = list(full), f"{text}_forgotten", list[float](), list[float]()
    if any(run[forgotten] <= 0 for run in full):
        raise ValueError(f"full fine-tuning has forgotten nothing of {text} in some run: its loss has not risen there")
    for row in rows:
        runs = sorted(select(full, seed=row["seed"]), key=lambda run: run["learning_rate"])
        for a, b in itertools.pairwise(runs):
            if min(a[by], b[by]) <= row[by] <= max(a[by], b[by]) and a[by] != b[by]:
                share = (row[by] - a[by]) / (b[by] - a[by])
                level = a[forgotten] ** (1 - share) * b[forgotten] ** share
                changes.append(row[forgotten] - level)
                levels.append(level + row[f"{text}_loss"] - row[forgotten])
                break
    return Compared(Difference.of(changes), statistics.fmean(levels))


def errors_without(rows: Iterable[Row], features: Collection[str], text: str = "prose") -> dict[int, float]:
    """Root-mean-square error, by seed, of forgetting predicted for an arm that was left out of the fit.

    Each arm in turn is left out: a curve through the runs of all others, in `features` and their squares, predicts
    its runs. With no features, the mean of the others does.
    """
    rows, forgotten = list(rows), f"{text}_forgotten"
    squares: dict[int, list[float]] = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        others, left_out = [row for row in rows if row["arm"] != arm], select(rows, arm=arm)
        design = _design(others, features)
        weights, *_ = np.linalg.lstsq(design, np.array([row[forgotten] for row in others]), rcond=None)
        for row, predicted in zip(left_out, _design(left_out, features) @ weights):
            squares.setdefault(row["seed"], []).append(float(row[forgotten] - predicted) ** 2)
    return {seed: math.sqrt(statistics.fmean(found)) for seed, found in sorted(squares.items())}


def error_without(rows: Iterable[Row], features: Collection[str], text: str = "prose") -> float:
    """As `errors_without`, over all runs."""
    rows = list(rows)
    counts = {seed: len(select(rows, seed=seed)) for seed in {row["seed"] for row in rows}}
    found = errors_without(rows, features, text)
    return math.sqrt(sum(counts[seed] * error**2 for seed, error in found.items()) / len(rows))


def _design(rows: Sequence[Row], features: Collection[str]) -> Any:
    columns = [[FEATURES[name](row) ** power for row in rows] for name in features for power in (1, 2)]
    return np.array([[1.0] * len(rows), *columns]).T


def seeds_needed(spread: float, size: float) -> int:
    """How many seeds make half the interval of a mean difference at most `size`; `spread` is its standard deviation.

    Raises ValueError where more than the table of t holds are needed.
    """
    for runs, t in enumerate(T_975, 2):
        if t * spread / math.sqrt(runs) <= size:
            return runs
    raise ValueError(f"a spread of {spread} takes more than {len(T_975) + 1} seeds to show {size}")


def explained(rows: Iterable[Row], feature: str, log: bool = False, text: str = "prose") -> float:
    """R² of one parabola in `feature` for the runs of all methods: of what is forgotten, or of its logarithm."""
    rows = list(rows)
    y = np.array([row[f"{text}_forgotten"] for row in rows])
    y = np.log(y) if log else y
    design = _design(rows, [feature])
    weights, *_ = np.linalg.lstsq(design, y, rcond=None)
    return float(1 - np.square(y - design @ weights).sum() / np.square(y - y.mean()).sum())


def spread_of(found: Difference) -> float:
    """The standard deviation over seeds that a difference's interval was made of."""
    return (found.high - found.low) / 2 / T_975[found.runs - 2] * math.sqrt(found.runs)


def detected(size: float, spread: float, runs: int = SEEDS) -> float:
    """How often the interval of so many seeds excludes zero, where the true difference is `size`, to a tenth."""
    drawn = np.random.default_rng(0).normal(size, spread, (20_000, runs))
    half = T_975[runs - 2] * drawn.std(axis=1, ddof=1) / math.sqrt(runs)
    return round(float(np.mean(np.abs(drawn.mean(axis=1)) > half)), 1)


def power(rows: Iterable[Row], feature: str, share: float = 1 / 3, worlds: int = 200) -> float:
    """How often the rule "leaves at most `share` of the mean's error" passes where `feature` does decide.

    In each simulated world what is forgotten is one parabola in `feature` for all methods, plus noise as large as each
    arm's runs scatter about the arm's own parabola.
    """
    rows = list(rows)
    y = np.array([row["prose_forgotten"] for row in rows])
    design = _design(rows, [feature])
    truth = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    spread = np.zeros(len(rows))
    for arm in {row["arm"] for row in rows}:
        here = np.array([row["arm"] == arm for row in rows])
        own = design[here] @ np.linalg.lstsq(design[here], y[here], rcond=None)[0]
        spread[here] = np.sqrt(np.square(y[here] - own).sum() / max(1, here.sum() - design.shape[1]))
    random = np.random.default_rng(0)
    passed = 0
    for _ in range(worlds):
        world = [
            {**row, "prose_forgotten": value} for row, value in zip(rows, random.normal(truth, spread), strict=True)
        ]
        passed += error_without(world, [feature]) <= share * error_without(world, [])
    return passed / worlds

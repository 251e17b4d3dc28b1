"""What a method has forgotten, as a curve over the loss that it reaches, so that methods are compared at equal loss.

Each seed and arm has one curve. Loss and the logarithm of what is forgotten are interpolated over the logarithm of the
learning rate, by PCHIP (Fritsch and Butland's slopes, which keep the order of the points), up to the rate with the
lowest loss. At a loss that both curves reach, the difference is taken seed by seed.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from lora_book.findings.forgetting import Compared
from lora_book.findings.stats import Difference, Row, select

Curve = Callable[[float], tuple[float, float]]  # log rate -> what is read, log of what is forgotten


def pchip(x: Sequence[float], y: Sequence[float]) -> Callable[[float], float]:
    """A cubic through all points that rises and falls only where they do. Raises ValueError for fewer than two."""
    if len(x) < 2:
        raise ValueError(f"a curve needs two points or more, got {len(x)}")
    at, values = np.asarray(x, float), np.asarray(y, float)
    step = np.diff(at)
    slope = np.diff(values) / step
    ends = slope[:1], slope[-1:]
    inner = [_slope(step[i : i + 2], slope[i : i + 2]) for i in range(len(slope) - 1)]
    slopes = np.concatenate([ends[0], inner, ends[1]])

    def curve(place: float) -> float:
        i = int(np.clip(np.searchsorted(at, place) - 1, 0, len(step) - 1))
        h, t = step[i], (place - at[i]) / step[i]
        left = (1 + 2 * t) * (1 - t) ** 2 * values[i] + t * (1 - t) ** 2 * h * slopes[i]
        return float(left + t**2 * (3 - 2 * t) * values[i + 1] + t**2 * (t - 1) * h * slopes[i + 1])

    return curve


def _slope(step: Any, slope: Any) -> float:
    """The slope at a point between two pieces: their weighted harmonic mean, or 0 where they turn."""
    if slope[0] * slope[1] <= 0:
        return 0.0
    weights = 2 * step[1] + step[0], step[1] + 2 * step[0]
    return float(sum(weights) / (weights[0] / slope[0] + weights[1] / slope[1]))


def forgotten_at(runs: Iterable[Row], by: str, level: float, text: str = "prose") -> float | None:
    """What runs of one arm and seed have forgotten where their `by` is `level`; None where they do not reach it.

    Beyond the rate with the lowest loss a higher rate learns less, so the curve ends there.
    """
    found = _branch(runs)
    if len(found) < 2:
        return None
    x = [math.log(run["learning_rate"]) for run in found]
    reached = [run[by] for run in found]
    if not min(reached) <= level <= max(reached):
        return None
    curve = pchip(x, reached)
    at = _where(curve, x, level)
    return math.exp(pchip(x, [math.log(max(run[f"{text}_forgotten"], 1e-3)) for run in found])(at))


def loss_at(runs: Iterable[Row], forgotten: float, text: str = "prose") -> float | None:
    """The dual: the loss of one arm and seed where it has forgotten so much; None where it has not.

    What is forgotten goes on rising beyond the rate with the lowest loss, so the curve goes on as well.
    """
    found = sorted(runs, key=lambda run: run["learning_rate"])
    if len(found) < 2:
        return None
    x = [math.log(run["learning_rate"]) for run in found]
    lost = [run[f"{text}_forgotten"] for run in found]
    if not min(lost) <= forgotten <= max(lost):
        return None
    return pchip(x, [run["loss"] for run in found])(_where(pchip(x, lost), x, forgotten))


def _branch(runs: Iterable[Row]) -> list[Row]:
    """The runs from the lowest rate to the one with the lowest loss."""
    ordered = sorted(runs, key=lambda run: run["learning_rate"])
    lowest = min(range(len(ordered)), key=lambda i: ordered[i]["loss"], default=-1)
    return ordered[: lowest + 1]


def _where(curve: Callable[[float], float], x: Sequence[float], level: float) -> float:
    """Where the curve has this level, in the first of the pieces between `x` that crosses it."""
    for low, high in itertools.pairwise(x):
        rises = curve(high) > curve(low)
        if min(curve(low), curve(high)) <= level <= max(curve(low), curve(high)):
            for _ in range(60):
                middle = (low + high) / 2
                low, high = (middle, high) if (curve(middle) < level) == rises else (low, middle)
            return low
    raise ValueError(f"the curve does not reach {level}")


def at_loss(rows: Sequence[Row], ours: str, theirs: str, loss: float, text: str = "prose") -> Compared | None:
    """How much more `ours` has forgotten than `theirs` at this loss, over the seeds on which both reach it.

    None where fewer than three seeds do.
    """
    changes, levels = list[float](), list[float]()
    for seed in sorted({row["seed"] for row in rows}):
        sides = [forgotten_at(select(rows, arm=arm, seed=seed), "loss", loss, text) for arm in (ours, theirs)]
        if sides[0] is not None and sides[1] is not None:
            changes.append(sides[0] - sides[1])
            levels.append(sides[1])
    return Compared(Difference.of(changes), statistics.fmean(levels)) if len(changes) >= 3 else None


def against_full(rows: Sequence[Row], runs: Iterable[Row], by: str = "loss", text: str = "prose") -> Compared:
    """How much more each of `runs` has forgotten than full fine-tuning of its seed, on the curve where it has its `by`.

    A seed that full fine-tuning's curve does not reach is left out. Raises ValueError when all are.
    """
    changes, levels = list[float](), list[float]()
    for run in runs:
        level = forgotten_at(select(rows, arm="full", seed=run["seed"]), by, run[by], text)
        if level is not None:
            changes.append(run[f"{text}_forgotten"] - level)
            levels.append(level)
    return Compared(Difference.of(changes), statistics.fmean(levels))


def dual(rows: Sequence[Row], runs: Iterable[Row], text: str = "prose") -> Compared:
    """How much higher the loss of `runs` is than full fine-tuning's of the same seed where it has forgotten as much."""
    changes, levels = list[float](), list[float]()
    for run in runs:
        loss = loss_at(select(rows, arm="full", seed=run["seed"]), run[f"{text}_forgotten"], text)
        if loss is not None:
            changes.append(run["loss"] - loss)
            levels.append(loss)
    return Compared(Difference.of(changes), statistics.fmean(levels))

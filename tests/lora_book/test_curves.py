"""Curves of forgetting over the loss, on runs whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator

from lora_book.findings import curves
from lora_book.findings.curves import against_full, at_loss, dual, forgotten_at, loss_at, pchip


def runs(arm, shift=0.0, rates=(0.001, 0.002, 0.004, 0.008), seeds=range(4)):
    """Loss falls by 0.2 and forgetting doubles from rate to rate; the last rate is too high and learns less."""
    return [
        {
            "arm": arm, "seed": seed, "learning_rate": rate, "loss": 2 - 0.2 * i + (0.5 if i == 3 else 0) + 0.01 * seed,
            "prose_forgotten": 0.25 * 2**i + shift * (1 + 0.1 * seed),
        }
        for seed in seeds
        for i, rate in enumerate(rates)
    ]  # fmt: skip


def test_a_curve_goes_through_its_points_and_turns_only_where_they_do():
    x, y = [0.0, 1.0, 2.5, 3.0, 4.0], [0.0, 1.0, 1.1, 3.0, 2.0]
    ours, theirs = pchip(x, y), PchipInterpolator(x, y)
    assert [ours(at) for at in x] == pytest.approx(y)
    inner = np.linspace(1.0, 3.0, 50)  # the slopes at the two ends are chosen differently
    assert [ours(at) for at in inner] == pytest.approx(theirs(inner))
    with pytest.raises(ValueError, match="two points"):
        pchip([1], [1])


def test_a_curve_ends_at_the_rate_with_the_lowest_loss():
    rows = runs("full", seeds=[0])
    assert forgotten_at(rows, "loss", 2.0) == pytest.approx(0.25)
    assert forgotten_at(rows, "loss", 1.8) == pytest.approx(0.5)
    assert 0.25 < forgotten_at(rows, "loss", 1.9) < 0.5
    assert forgotten_at(rows, "loss", 1.5) is None and forgotten_at(rows[:1], "loss", 2.0) is None
    assert loss_at(rows, 0.5) == pytest.approx(1.8, abs=1e-6) and loss_at(rows, 5) is None
    assert loss_at(rows, 1.99) == pytest.approx(1.9, abs=0.01), "at equal forgetting it does not end there"


def test_methods_are_compared_seed_by_seed_at_one_loss():
    rows = runs("full") + runs("r = 8", shift=0.3)
    found = at_loss(rows, "r = 8", "full", 1.8)
    assert found.difference.runs == 4 and 0.3 < found.difference.mean < 0.4 and found.difference.verdict() == "more"
    assert at_loss(rows, "r = 8", "full", 1.0) is None
    ours = [row for row in rows if row["arm"] == "r = 8" and row["learning_rate"] == 0.002]
    assert against_full(rows, ours).difference.mean == pytest.approx(0.3 * 1.15)
    assert dual(rows, ours).difference.mean > 0  # it has forgotten as much only at a higher loss
    with pytest.raises(ValueError, match="no seed"):
        against_full(rows, [{**ours[0], "loss": 9.0}])


def test_where_a_curve_does_not_go_is_an_error():
    with pytest.raises(ValueError, match="does not reach 3"):
        curves._where(lambda x: x, [0.0, 1.0], 3)

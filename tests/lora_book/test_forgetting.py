"""What the map's rows say, on rows whose answer is known."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from scipy import stats

from lora_book import findings as results
from lora_book.findings import forgetting
from lora_book.findings.forgetting import Compared, at_equal, compared, error_without, errors_without


def found(mean, half, runs=5):
    return results.Difference(mean, mean - half, mean + half, runs)


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        (found(0.2, 0.05), "more, by more than the margin"),
        (found(-0.2, 0.05), "less, by more than the margin"),
        (found(0.1, 0.05), "more"),  # the margin, 0.08, lies in the interval
        (found(0.03, 0.02), "more, within the margin"),
        (found(0.01, 0.02), "level"),
        (found(0.01, 0.09), "not settled"),
        (found(0.2, 0.05, runs=4), "not settled"),
        (found(0.01, 0.02, runs=4), "not settled"),
    ],
)
def test_a_difference_matters_when_all_of_it_is_beyond_the_margin(difference, verdict):
    assert Compared(difference, 4.0).verdict() == verdict


def test_differences_are_taken_seed_by_seed_and_as_a_share():
    ours = [{"seed": s, "loss": x} for s, x in enumerate((2.2, 3.2, 4.3, 5.2, 6.1))]
    theirs = [{"seed": s, "loss": x} for s, x in enumerate((2.0, 3.0, 4.0, 5.0, 6.0))]
    result = compared(ours, theirs[::-1], "loss")
    low, high = stats.ttest_rel([r["loss"] for r in ours], [r["loss"] for r in theirs]).confidence_interval(0.95)
    assert result.of == 4 and (result.difference.low, result.difference.high) == pytest.approx((low, high), abs=1e-3)
    assert result.percent.mean == pytest.approx(5) and result.percent.high == pytest.approx(25 * high, abs=0.01)


def run(seed, rate, loss, forgotten):
    return {
        "seed": seed,
        "learning_rate": rate,
        "loss": loss,
        "plays_forgotten": forgotten,
        "plays_loss": 3 + forgotten,
    }


def test_at_equal_loss_full_fine_tuning_is_read_off_below_its_best_rate():
    values = ((1, 3.0, 1.0), (2, 2.0, 2.0), (3, 2.5, 4.0))
    full = [run(seed, *point) for seed in range(3) for point in values]
    rows = [run(0, 9, 2.5, 1.3), run(1, 9, 2.75, 1.0)]  # halfway, and a quarter of the way, from 1 to 2: 2^½, 2^¼
    result = at_equal(rows, full, "loss", "plays")
    levels = [2**0.5, 2**0.25]
    assert result.difference.runs == 2 and result.of == pytest.approx(3 + sum(levels) / 2)
    assert result.difference.mean == pytest.approx((1.3 + 1.0 - sum(levels)) / 2)
    beyond = [run(2, 9, 1.9, 1.0)]
    assert at_equal(rows + beyond, full, "loss", "plays") == result
    with pytest.raises(ValueError, match="nothing can be compared"):
        at_equal(beyond, full, "loss", "plays")
    with pytest.raises(ValueError, match="has forgotten nothing of plays"):
        at_equal(rows, [*full, run(0, 4, 3.5, -0.1)], "loss", "plays")


def map_rows(forgotten):
    """Four arms with three rates and two seeds each, KL and rate independent of the arm."""
    rows = []
    for i, arm in enumerate("abcd"):
        for rate in (0.001, 0.002, 0.004):
            for seed in (100, 101):
                row = {"arm": arm, "seed": seed, "learning_rate": rate * (1 + i / 10), "kl": 4 + 100 * rate + i / 7}
                rows.append(row | {"prose_forgotten": forgotten(row) + (seed - 100) * 0.01})
    return rows


def test_what_predicts_forgetting_has_no_error_on_an_arm_that_it_has_not_seen():
    by_rate = map_rows(lambda row: 3 + math.log(row["learning_rate"]) ** 2)
    assert error_without(by_rate, ["learning rate"]) < 0.01
    assert error_without(by_rate, ["KL(tuned ‖ base) on the task"]) > 0.1
    constant = error_without(by_rate, [])
    others = [row["prose_forgotten"] for row in by_rate if row["arm"] != "a"]
    mine = [row["prose_forgotten"] for row in by_rate if row["arm"] == "a"]
    only_a = sum((x - sum(others) / len(others)) ** 2 for x in mine) / len(by_rate)
    assert constant**2 > only_a and constant > 1
    errors = errors_without(by_rate, [])
    assert list(errors) == [100, 101]
    assert constant**2 == pytest.approx(sum(e**2 for e in errors.values()) / 2)


def test_an_arm_that_differs_by_itself_is_not_predicted():
    by_arm = map_rows(lambda row: 5.0 if row["arm"] == "a" else math.log(row["learning_rate"]))
    assert error_without(by_arm, ["learning rate"]) > 3


@pytest.mark.parametrize("size", [0.01, 0.02, 0.05])
def test_so_many_seeds_make_the_interval_small_enough(size):
    def half(runs):
        return stats.t(df=runs - 1).ppf(0.975) * 0.03 / math.sqrt(runs)

    if half(31) > size:
        with pytest.raises(ValueError, match="more than 31 seeds"):
            forgetting.seeds_needed(0.03, size)
        return
    needed = forgetting.seeds_needed(0.03, size)
    assert half(needed) <= size * 1.001 and half(needed - 1) > size


# --- the page's numbers, once more from the rows --------------------------------------------------


@pytest.fixture(scope="module")
def kept():
    with (results.FOLDER / "map.csv").open(newline="", encoding="utf8") as file:
        rows = list(csv.DictReader(file))
    base = float(next(row["prose_loss"] for row in rows if row["arm"] == "base"))
    return [row for row in rows if row["split"] == "test" and row["steps"] == "120" and row["parts"] == "linear"], base


def column(rows, arm, rate, name, scale="1.0"):
    """seed -> number"""
    chosen = [r for r in rows if r["arm"] == arm and float(r["learning_rate"]) == rate and r["scale"] == scale]
    return {row["seed"]: float(row[name]) for row in chosen}


ROOT = "r = 64, α/√r"


def test_no_seed_is_tuned_on_and_reported():
    rows = results.load_results("map")
    seeds = {split: {row["seed"] for row in rows if row["split"] == split} for split in ("validation", "test")}
    assert seeds["validation"] == {0} and seeds["test"] == set(range(100, 105))


@pytest.mark.parametrize("arm", [ROOT, "r = 64", "r = 8"])
def test_the_loss_beside_full_fine_tunings_is_a_paired_t_test(kept, arm):
    ours, theirs = (column(kept[0], a, forgetting.BEST[a], "loss") for a in (arm, "full"))
    seeds = sorted(ours.keys() & theirs.keys())
    a, b = ([side[seed] for seed in seeds] for side in (ours, theirs))
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    rows = results.select(forgetting.load_map(), scale=1.0)
    sides = (results.select(rows, arm=name, learning_rate=forgetting.BEST[name]) for name in (arm, "full"))
    result = compared(*sides, "loss")
    assert (result.difference.low, result.difference.high) == pytest.approx((low, high), abs=1e-4)
    assert result.of == pytest.approx(np.mean(b)) and result.percent.mean == pytest.approx(
        100 * (np.mean(a) - np.mean(b)) / np.mean(b)
    )


@pytest.mark.parametrize("by", ["loss", "kl"])
def test_forgetting_at_equal_loss_and_at_equal_kl(kept, by):
    rows, base = kept
    x, y = (column(rows, ROOT, 0.0032, name) for name in (by, "prose_loss"))
    low, high = ({n: column(rows, "full", rate, n) for n in (by, "prose_loss")} for rate in (0.00056, 0.001))
    changes = []
    for seed, at in x.items():  # all of them lie between these two rates
        xs, ys = zip(*sorted((side[by][seed], side["prose_loss"][seed] - base) for side in (low, high)))
        assert xs[0] <= at <= xs[1]
        changes.append(y[seed] - base - np.exp(np.interp(at, xs, np.log(ys))))
    interval = stats.ttest_1samp(changes, 0).confidence_interval(0.95)
    trained = results.select(forgetting.load_map(), scale=1.0)
    found = at_equal(results.select(trained, arm=ROOT, learning_rate=0.0032), results.select(trained, arm="full"), by)
    assert len(changes) == 5 and found.difference[1:3] == pytest.approx(interval, abs=1e-3)
    assert found.verdict() == "less, by more than the margin"


def test_one_number_explains_what_it_makes_and_seeds_see_what_is_large():
    rows = [
        {"arm": arm, "seed": s, "kl_reverse": x, "prose_forgotten": 1 + x**2}
        for arm in "ab"
        for s, x in enumerate((1.0, 2.0, 3.0, 4.0))
    ]
    name = "KL(base ‖ tuned) on the task"
    assert forgetting.explained(rows, name) == pytest.approx(1) and forgetting.explained(rows, name, log=True) < 0.99995
    assert forgetting.detected(1.0, 0.1) == 1 and forgetting.detected(0.0, 0.1) < 0.15
    assert forgetting.spread_of(results.Difference.of([1.0, 2.0, 4.0])) == pytest.approx(np.std([1, 2, 4], ddof=1))


def test_the_rule_passes_where_the_number_decides_and_nothing_is_noise():
    rows = [
        {"arm": arm, "seed": s, "kl_reverse": x + a / 10, "prose_forgotten": (x + a / 10) ** 2}
        for a, arm in enumerate("abc")
        for s, x in enumerate((1.0, 1.5, 2.0, 2.5, 3.0))
    ]
    assert forgetting.power(rows, "KL(base ‖ tuned) on the task", worlds=5) == 1

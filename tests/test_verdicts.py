"""Each verdict of the findings page, computed once more from the rows with SciPy."""

from __future__ import annotations

import csv
from collections import defaultdict

import pytest
from scipy import stats

from lora_lib import results
from lora_lib.results import verdicts
from lora_lib.results.verdicts import COMPARISONS, MARGIN


def kept(name):
    with (results.FOLDER / f"{name}.csv").open(newline="", encoding="utf8") as file:
        return list(csv.DictReader(file))


def best_runs(comparison, settings):
    """seed -> row, at the learning rate with the least mean, of those that three seeds have."""
    rates = defaultdict(dict)
    for row in kept(comparison.file):
        if all(row[key] == str(value) for key, value in settings.items()) and int(row["seed"]) < 100:
            rates[row["learning_rate"], row.get("rest_rate")][int(row["seed"])] = row
    repeated = [runs for runs in rates.values() if len(runs) >= 3]
    return min(repeated, key=lambda runs: stats.tmean([float(row[comparison.tuned_by]) for row in runs.values()]))


@pytest.mark.parametrize("name", COMPARISONS)
def test_the_interval_is_that_of_a_paired_t_test(name):
    comparison = COMPARISONS[name]
    ours, theirs = (best_runs(comparison, side) for side in (comparison.ours, comparison.theirs))
    seeds = sorted(ours.keys() & theirs.keys())
    assert len(seeds) >= 3
    a, b = ([float(side[seed][comparison.measure]) for seed in seeds] for side in (ours, theirs))
    tested = stats.ttest_rel(a, b)
    low, high = tested.confidence_interval(0.95)
    found = comparison.difference()
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4) and found.runs == len(seeds)
    margin = MARGIN[comparison.measure]
    expected = "not settled" if max(abs(low), abs(high)) > margin else "level"
    if tested.pvalue < 0.05:
        expected = "more" if tested.statistic > 0 else "less"
    assert comparison.verdict() == expected


def test_at_equal_loss_the_measure_is_read_off_the_line_between_two_rates():
    def run(seed, loss, prose):
        return {"seed": seed, "validation_loss": loss, "prose_loss": prose}

    others = [run(seed, loss, prose) for seed in range(3) for loss, prose in ((2.0, 4.0), (1.0, 6.0), (1.5, 4.5))]
    rows = [run(0, 1.25, 5.0), run(1, 1.9, 4.0), run(2, 1.0, 6.0), run(3, 1.1, 9.0)]
    found = verdicts.at_equal(rows, others, "prose_loss")
    assert found.runs == 3 and found.mean == pytest.approx((5 - 5.25 + 4 - 4.1 + 0) / 3)
    assert verdicts.at_equal([run(0, 1.5, 5.0), run(1, 3.0, 1.0)], others, "prose_loss")[0::3] == (0.5, 1)
    with pytest.raises(ValueError, match="nothing can be compared"):
        verdicts.at_equal([run(0, 0.5, 5.0)], others, "prose_loss")

"""The kept results: what a chapter reads is what the runs wrote."""

from __future__ import annotations

import pytest
from scipy import stats

from lora_book.findings import stats as results


@pytest.fixture
def kept(tmp_path, monkeypatch):
    text = "method,rank,fast,loss\nlora,8,True,2.0\nlora,8,False,3.0\nlora,1,True,5\nfull,0,,1e0\nfull,0,True,\n"
    (tmp_path / "toy.csv").write_text(text, encoding="utf8")
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    return results.load_results("toy")


def test_values_have_their_types(kept):
    assert kept[0] == {"method": "lora", "rank": 8, "fast": True, "loss": 2.0}
    assert kept[3]["fast"] is None and kept[3]["loss"] == 1.0 and kept[4]["loss"] is None


def test_means_over_runs(kept):
    by_rank = results.means(results.select(kept, method="lora"), "rank", "loss")
    assert list(by_rank) == [1, 8]
    assert by_rank[8] == (2.5, pytest.approx(0.5**0.5), 2) and by_rank[1] == (5, 0, 1)
    assert str(by_rank[8]) == "2.50 ± 0.71" and str(by_rank[1]) == "5.00"
    assert results.means(kept, ("method", "rank"), "loss")["full", 0].runs == 1  # what was not measured counts nowhere


def test_the_best_rate_is_that_of_repeated_runs():
    rows = [{"learning_rate": rate, "loss": loss} for rate, loss in ((0.1, 3), (0.1, 4), (0.2, 1), (0.3, 3), (0.3, 3))]
    assert results.at_best_rate(rows, "loss", seeds=2) == rows[3:]
    assert results.mean(rows[:2], "loss") == (3.5, pytest.approx(0.5**0.5), 2)
    with pytest.raises(ValueError, match="no learning rate has 3 runs"):
        results.at_best_rate(rows, "loss")
    with pytest.raises(ValueError, match="no run measured 'loss'"):
        results.mean([{"loss": None}], "loss")


def test_the_best_of_two_rates_is_chosen_together():
    pairs = (((0.1, 1), 3), ((0.1, 2), 1), ((0.2, 1), 2))
    rows = [{"learning_rate": a, "rest_rate": b, "loss": loss, "seed": s} for (a, b), loss in pairs for s in (0, 1)]
    assert results.at_best_rate(rows, "loss", 2, rates=("learning_rate", "rest_rate")) == rows[2:4]


def runs(*losses, first=0):
    return [{"seed": seed, "loss": loss} for seed, loss in enumerate(losses, first)]


def test_differences_are_taken_seed_by_seed():
    ours, theirs = runs(2.0, 5.0, 1.0, 9.0), runs(1.9, 4.7, 0.8)  # the seeds differ far more than the settings
    found = results.paired(ours[::-1], theirs, "loss")
    interval = stats.t.interval(0.95, df=2, loc=0.2, scale=0.1 / 3**0.5)
    assert found.runs == 3 and found.mean == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx(interval, abs=1e-4)
    assert found.verdict() == "not settled" and found.verdict(margin=0.5) == "level" and found.verdict(0.4) != "level"
    assert str(found) == "+0.20 [-0.05, +0.45]"
    clear = results.paired(theirs, runs(1.0, 3.8, 0.0), "loss")
    assert clear.verdict() == clear.verdict(margin=9) == "more"
    assert results.paired(runs(1.0, 3.8, 0.0), theirs, "loss").verdict() == "less"


def test_two_seeds_settle_nothing():
    found = results.paired(runs(2.0, 3.0), runs(1.0, 2.0), "loss")
    assert found.mean == 1 and found.verdict(margin=100) == "not settled" and str(found) == "+1.00"


def test_a_floor_gives_no_interval():
    found = results.paired(runs(0.0417, 1.0417, 2.0416), runs(0.0, 1.0, 2.0), "loss")  # the same but for rounding
    assert found.runs == 3 and found.high == float("inf") and found.p == 1
    assert found.verdict(margin=100) == "not settled" and str(found) == "+0.04"
    assert results.Difference.of([0.0417, 0.0417, 0.0421]).verdict() == "more"


@pytest.mark.parametrize("changes", [(0.1, 0.3, 0.35), (1.0, -2.0, 0.5, 4.0), range(-2, 10), range(-14, 17)])
def test_p_is_that_of_the_t_test(changes):
    p = stats.ttest_1samp(changes, 0).pvalue
    assert results.Difference.of(changes).p == pytest.approx(p, rel=2e-3)  # the table of t has three decimals


def test_the_survivors_are_benjamini_and_hochbergs():
    shifts = (5, 2, 1.2, 1, 0.9, 0.7, 0.1, 0)
    found = {shift: results.Difference.of([shift + x for x in (-0.2, 0.0, 0.3, 0.1)]) for shift in shifts}
    adjusted = stats.false_discovery_control([difference.p for difference in found.values()])
    kept = {shift for shift, p in zip(shifts, adjusted) if p <= 0.05}
    assert results.survivors(found) == kept and 0 < len(kept) < len(shifts)
    alone = {shift: difference for shift, difference in found.items() if shift not in kept}
    assert results.survivors(alone) == set() and results.survivors({}) == set()
    among_ten = {name: found[0.7 if name == "a" else 0] for name in "abcdefghij"}
    assert results.survivors({"a": found[0.7]}) == {"a"} and results.survivors(among_ten) == set()


def test_seeds_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="no seed that both sides have"):
        results.paired(runs(1.0, first=5), runs(1.0), "loss")
    with pytest.raises(ValueError, match="two runs have seed 0: select one setting"):
        results.paired(runs(1.0) + runs(2.0), runs(1.0), "loss")
    unmeasured = [{"seed": 0, "loss": None}]
    assert results.by_seed(runs(1.0) + unmeasured, "loss") == {0: 1.0}


def test_a_means_own_interval():
    found = results.mean(runs(1.0, 2.0, 4.0), "loss")
    low, high = stats.ttest_1samp([1.0, 2.0, 4.0], 0).confidence_interval(0.95)
    assert found.half_interval == pytest.approx((high - low) / 2, rel=1e-3)
    assert results.mean(runs(1.0), "loss").half_interval == float("inf")


def test_the_table_of_t_is_students():
    known = [stats.t(df=df).ppf(0.975) for df in range(1, len(results.T_975) + 1)]
    assert list(results.T_975) == pytest.approx(known, abs=6e-4)


def test_groups_are_in_order_and_what_is_missing_comes_first(kept):
    assert list(results.means(kept, ("method", "fast"), "rank")) == [
        ("full", None), ("full", True), ("lora", False), ("lora", True),
    ]  # fmt: skip


def test_a_name_that_is_none_says_which_there_are(kept):
    with pytest.raises(FileNotFoundError, match="no results called 'tory'; there are toy"):
        results.load_results("tory")


def test_every_kept_file_reads():
    for path in results.FOLDER.glob("*.csv"):
        rows = results.load_results(path.stem)
        assert rows and all("machine" in row for row in rows)

"""The kept results: what a chapter reads is what the runs wrote."""

from __future__ import annotations

import pytest

from lora_lib import results


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

"""Chapter 7's map and table of runs."""

import pytest

from lora_book.findings import select
from lora_book.findings.stats import Row
from lora_book.show.ranks import compared, mean_curve, rank_map, rule_panels, verdict


def row(rank: int, rate: float, seed: int, loss: float, **more: object) -> Row:
    found = {"method": "lora", "rank": rank, "learning_rate": rate, "seed": seed, "trainable": 30 * rank}
    return found | {"validation_loss": loss + 0.01 * seed, "prose_loss": 2.0, "curve": f"{8 + seed} 4"} | more


ROWS = [
    row(r, rate, seed, 3 - 0.1 * r + (rate < 0.003)) for r in (1, 4) for rate in (0.001, 0.003) for seed in (0, 1, 2)
]


@pytest.mark.parametrize("ranks", [(1, 4), (4,), (1,)])
def test_the_map_has_a_square_for_every_rate_and_needs_no_rank_8(ranks):
    html = rank_map(ROWS, ranks, "The map").html
    assert html.count("<td>") == 2 * len(ranks)
    assert f"rank {ranks[-1]}: {30 * ranks[-1]} numbers trained; at 0.003" in html


def test_a_rank_that_was_not_run_is_named_with_those_that_were():
    with pytest.raises(ValueError, match=r"no runs of rank \[3\]: expected some of \[1, 4\]"):
        rank_map(ROWS, (1, 3), "The map")


def test_a_curve_is_the_mean_over_seeds():
    assert mean_curve(select(ROWS, rank=4, learning_rate=0.003)) == [9.0, 4.0]


def test_the_table_has_the_difference_from_the_runs_it_is_compared_to():
    one, four = (select(ROWS, rank=rank, learning_rate=0.003) for rank in (1, 4))
    base = [row(0, 0.0, 0, 5.0, method="base")]
    lines = compared({"base": base, "rank 1": one, "rank 4": four}, four).data.splitlines()[2:]
    assert [line.split("|")[5].strip()[:5] for line in lines] == ["", "+0.30", ""]


def test_a_verdict_has_a_margin_of_two_percent():
    ours = select(ROWS, rank=4, learning_rate=0.003)
    near = [run | {"validation_loss": run["validation_loss"] + 0.001 * run["seed"]} for run in ours]
    assert verdict(select(ROWS, rank=1, learning_rate=0.003), near) == "more"
    assert verdict(near, ours) == "level"


def test_the_panels_of_the_rules_say_where_each_ends():
    by_rank = [select(ROWS, rank=rank, learning_rate=0.003) for rank in (1, 4)]
    html = rule_panels((1, 4), {"s = 1": by_rank}).html
    assert "held-out loss by rank; at rank 4: s = 1 2.61" in html and "on prose by rank" in html

"""Scores of answers, and their intervals over test items."""

from __future__ import annotations

import random

import pytest

from lora_lib.data import difference, interval, items_needed, judge_answers, score_table
from lora_lib.data.scores import constant_answer, gains_over_best, mean_score


def test_json_is_judged_field_by_field() -> None:
    wanted = ['{"kind": "bug", "code": 7}', '{"kind": "question", "code": null}']
    answers = ['{"code": 7, "kind": "bug"}', '{"kind": "bug", "code": null}']
    assert judge_answers(answers, wanted) == {"exact": [1, 0], "JSON": [1, 1], "kind": [1, 0], "code": [1, 1]}


def test_what_is_no_json_scores_nothing_and_stops_nobody() -> None:
    scores = judge_answers(["no idea", '["bug"]'], ['{"kind": "bug"}'] * 2)
    assert scores == {"exact": [0, 0], "JSON": [0, 0], "kind": [0, 0]}


def test_one_field_more_is_not_exact() -> None:
    assert judge_answers(['{"kind": "bug", "x": 1}'], ['{"kind": "bug"}'])["exact"] == [0]


def test_a_field_that_is_missing_is_not_null_and_true_is_not_one() -> None:
    wanted = ['{"a": null}', '{"a": 1}', '{"a": [1, {"c": true}]}', '{"a": 1}']
    found = ["{}", '{"a": true}', '{"a": [1, {"c": 1}]}', '{"a": 1.0}']
    assert judge_answers(found, wanted) == {"exact": [0, 0, 0, 1], "JSON": [1, 1, 1, 1], "a": [0, 0, 0, 1]}
    assert judge_answers(["[" * 100_000], ['{"a": 1}'])["JSON"] == [0]


def test_text_is_judged_by_its_words() -> None:
    scores = judge_answers([" a b ", "a c"], ["a b", "a b"])
    assert scores == {"exact": [1, 0], "words": [1, 0.5]}


def test_a_field_of_free_text_is_judged_by_its_words() -> None:
    wanted = ['{"kind": "a b", "note": "the cup broke"}', '{"kind": "a b", "note": "no word"}']
    answers = ['{"kind": "a", "note": "the cup is broke"}', '{"kind": "a b", "note": null}']
    scores = judge_answers(answers, wanted, free=["note"])
    assert scores["kind"] == [0, 1] and scores["note"] == [pytest.approx(6 / 7), 0] and scores["exact"] == [0, 0]


def test_one_number_leaves_out_what_is_not_yet_right() -> None:
    judged = {"exact": [0.0, 0.0], "JSON": [1.0, 1.0], "kind": [1.0, 0.0], "note": [0.5, 0.5]}
    assert mean_score(judged) == 0.5
    assert mean_score({"exact": [0.0], "words": [0.25]}) == 0.25 and mean_score({"exact": [1.0], "JSON": [1.0]}) == 1


def test_the_constant_answer_is_the_commonest_field_by_field() -> None:
    wanted = ['{"kind": "a", "n": 1}', '{"kind": "a", "n": null}', '{"kind": "b", "n": null, "more": 1}']
    assert constant_answer(wanted) == '{"kind": "a", "n": null}'
    assert constant_answer(["no", "yes", "yes", '{"a": 1}']) == "yes"
    with pytest.raises(ValueError, match="the commonest of none"):
        constant_answer([])


def test_a_gain_is_over_the_best_of_the_others_at_each_score() -> None:
    models = {
        "commonest": {"kind": [1.0] * 6 + [0.0] * 4, "n": [0.0] * 10},
        "base": {"kind": [0.0] * 10, "n": [1.0] * 5 + [0.0] * 5},
        "adapter": {"kind": [1.0] * 6 + [0.0] * 4, "n": [1.0] * 10},
    }
    kind, n = gains_over_best(models, "adapter").splitlines()
    assert kind.endswith("not settled  (over commonest)") and "+0%" in kind
    assert n.endswith("(over base)") and "+50%" in n


def test_an_interval_of_none_or_all_right_has_a_width() -> None:
    none, some, every = interval([0.0] * 50), interval([1.0] * 5 + [0.0] * 45), interval([1.0] * 50)
    assert none.low == pytest.approx(0) and none.high == pytest.approx(0.0713, abs=1e-3)  # Wilson's, by hand
    assert some.low == pytest.approx(0.0435, abs=1e-3) and some.high == pytest.approx(0.2136, abs=1e-3)
    assert every.high == pytest.approx(1) and every.low == pytest.approx(1 - none.high)


def test_a_bootstrap_narrows_with_the_number_of_items() -> None:
    few, many = interval([0.2, 0.4, 0.9, 0.5] * 5), interval([0.2, 0.4, 0.9, 0.5] * 80)
    assert few.low < few.mean < few.high
    assert many.high - many.low < (few.high - few.low) / 3


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    hard = [0.0] * 20 + [1.0] * 20  # both models find the same items hard
    better = [0.0] * 16 + [1.0] * 24
    gain = difference(better, hard)
    assert gain.mean == pytest.approx(0.1)
    assert gain.high - gain.low < interval(hard).high - interval(hard).low


@pytest.mark.parametrize("items", [5, 16, 300])
def test_a_difference_without_spread_is_a_floor_and_no_certainty(items) -> None:
    unseen = 1 - 0.05 ** (1 / items)
    assert unseen * items == pytest.approx(3, rel=0.3)  # the rule of three
    assert difference([1.0] * items, [1.0] * items) == pytest.approx((0, -unseen, unseen))
    assert difference([1.0] * items, [0.0] * items) == pytest.approx((1, 1 - 2 * unseen, 1))
    assert difference([0.0] * items, [1.0] * items) == pytest.approx((-1, -1, 2 * unseen - 1))


def test_so_many_items_show_the_gain_in_four_tries_of_five() -> None:
    rng, gain, differ = random.Random(0), 0.2, 0.4
    items = items_needed(gain, differ)
    found = 0
    for _ in range(200):
        drawn = [rng.random() for _ in range(items)]
        better = [float(d < (differ + gain) / 2) for d in drawn]
        worse = [float((differ + gain) / 2 <= d < differ) for d in drawn]
        found += difference(better, worse, draws=200).low > 0
    assert 0.7 < found / 200 < 0.9
    assert items_needed(0.05, 0.25) == 778 and items_needed(0.05, 0.25, power=0.5) == 381
    for gain, differ, power in ((0, 0.1, 0.8), (0.2, 0.1, 0.8), (0.1, 1.1, 0.8), (0.1, 0.2, 1)):
        with pytest.raises(ValueError, match="0 < gain <= differ <= 1 and a power in"):
            items_needed(gain, differ, power)


def test_the_gains_say_what_is_not_settled() -> None:
    ours = {"exact": [1.0] * 9 + [0.0], "JSON": [1.0] * 10, "mood": [1.0] * 5 + [0.0] * 5}
    theirs = {"exact": [0.0] * 10, "JSON": [1.0] * 10, "mood": [1.0] * 4 + [0.0] * 5 + [1.0]}
    exact, same, mood = gains_over_best({"ours": ours, "theirs": theirs}, "ours").splitlines()
    assert exact.startswith("exact   +90% [+70%, +100%]") and "not settled" not in exact
    assert same == "JSON     +0% [-26%, +26%]  not settled  (over theirs)" and "not settled" in mood


@pytest.mark.parametrize("act", [lambda: judge_answers(["a"], []), lambda: interval([]), lambda: difference([1], [])])
def test_no_items_are_refused(act) -> None:
    with pytest.raises(ValueError, match="at least one|no test items|needs both"):
        act()


def test_the_table_has_a_line_for_each_model() -> None:
    table = score_table({"base": {"exact": [0.0, 0.0]}, "adapter": {"exact": [1.0, 0.0]}})
    assert [line.split()[0] for line in table.splitlines()] == ["exact", "base", "adapter"]
    assert "50% [9%, 91%]" in table

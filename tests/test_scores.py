"""Scores of answers, and their intervals over test items."""

from __future__ import annotations

import pytest

from lora_lib.data import difference, interval, judge_answers, score_table


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


@pytest.mark.parametrize("act", [lambda: judge_answers(["a"], []), lambda: interval([]), lambda: difference([1], [])])
def test_no_items_are_refused(act) -> None:
    with pytest.raises(ValueError, match="at least one|no test items|needs both"):
        act()


def test_the_table_has_a_line_for_each_model() -> None:
    table = score_table({"base": {"exact": [0.0, 0.0]}, "adapter": {"exact": [1.0, 0.0]}})
    assert [line.split()[0] for line in table.splitlines()] == ["exact", "base", "adapter"]
    assert "50% [9%, 91%]" in table

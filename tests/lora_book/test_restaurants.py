"""The restaurant task: what is generated, how it is scored, how it is made into tensors."""

import itertools
import os
import random
import re
import subprocess
import sys

import pytest

from lora_book.tasks import restaurant_data, score_texts, slot_accuracy, slot_report, to_examples
from lora_book.tasks import restaurants as R
from lora_lib.data import Example

MEANING = {
    "name": "The Copper Kettle", "eatType": "pub", "food": "Italian", "priceRange": "less than £20",
    "customer rating": "5 out of 5", "area": "harbour", "familyFriendly": "no", "near": "The Fox",
}  # fmt: skip
TEXT = (
    "The Copper Kettle is an Italian pub by the harbour near The Fox. A meal costs less than £20. "
    "Customers give it 5 out of 5. It is not suitable for families."
)


def test_sizes_names_and_references(splits):
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [1500, 100, 100]
    restaurants = [*splits.train, *splits.validation, *splits.test]
    names = [r.meaning[slot] for r in restaurants for slot in ("name", "near") if slot in r.meaning]
    assert len(set(names)) == len(names), "a name came twice, so meanings or their names are shared between splits"
    for r in restaurants:
        assert list(r.meaning) == [slot for slot in R.SLOTS if slot in r.meaning] and 3 <= len(r.meaning) <= 8
        assert 2 <= len(r.references) <= 4
        assert len({text.split(". ")[0] for text in r.references}) == len(r.references), "two references open alike"
    assert all(value in {r.meaning.get(slot) for r in splits.train} for slot in R.VALUES for value in R.VALUES[slot])


def test_written_form_and_examples():
    restaurant = R.Restaurant({"name": "Lost Robin", "customer rating": "low"}, ("One.", "Two."))
    assert restaurant.mr == "name[Lost Robin], customer rating[low]"
    prompt = "name[Lost Robin], customer rating[low] =>"
    assert to_examples([restaurant]) == [Example(prompt, " One."), Example(prompt, " Two.")]


def test_same_seed_same_data_in_any_process_and_import_is_light(splits):
    assert restaurant_data(seed=0) == splits and restaurant_data(seed=1).test != splits.test
    code = (
        "import sys, lora_book.tasks.restaurants as d, lora_book.tasks.downloads;"
        "print([m for m in ('pooch', 'requests', 'pandas') if m in sys.modules]); print(d.restaurant_data(seed=0).test)"
    )
    env = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONIOENCODING": "utf8"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=True, encoding="utf8")
    assert run.stdout.splitlines() == ["[]", str(splits.test)]


def test_more_restaurants_than_names_is_an_error():
    with pytest.raises(ValueError, match="ask for fewer"):
        restaurant_data(train=10_000)


def test_every_reference_scores_full_marks(splits):
    for r in [*splits.train, *splits.validation, *splits.test]:
        for text in r.references:
            report = slot_report(text, r.meaning)
            assert set(report) == set(r.meaning) and all(report.values()), (r.mr, text, report)


def test_every_combination_of_slots_is_well_formed():
    rng = random.Random(3)
    told = set()
    for optional in itertools.product([False, True], repeat=7):
        values = {
            "name": "Anchor and Oak",
            "near": "Tilly's",
            **{s: rng.choice(v) for s, v in R.VALUES.items()},
        }
        kept = {"name", *itertools.compress(R.SLOTS[1:], optional)}
        meaning = {slot: values[slot] for slot in R.SLOTS if slot in kept}
        for opening in R.OPENINGS:
            if R._tellable(opening, meaning, meaning):
                told.add(opening)
                text = R._describe(rng, opening, meaning)
                assert re.fullmatch(r"[A-Z][^\[\]{}]*\.", text), text
                assert not re.search(r"  | [,.?]|\.\.|\b[Aa] [aeiouAEIOU]|\b[Aa]n [^aeiouAEIOU]|[.?] [a-z]", text), text
                assert slot_accuracy(text, meaning) == 1, (meaning, text)
    assert told == set(R.OPENINGS)


@pytest.mark.parametrize("slot", R.SLOTS[1:])
def test_a_slot_dropped_added_or_altered_is_the_one_that_is_wrong(splits, slot):
    rng = random.Random(slot)
    for r in [r for r in splits.test if slot in r.meaning]:
        without = {s: v for s, v in r.meaning.items() if s != slot}
        others = ["The Stone Whale"] if slot == "near" else [v for v in R.VALUES[slot] if v != r.meaning[slot]]
        altered = {**r.meaning, slot: rng.choice(others)}
        for told, meaning in ((without, r.meaning), (r.meaning, without), (altered, r.meaning)):
            text = R._describe(rng, R.OPENINGS[0], told)
            assert [s for s, right in slot_report(text, meaning).items() if not right] == [slot], (meaning, text)
            slots = len(told.keys() | meaning.keys())
            assert slot_accuracy(text, meaning) == pytest.approx((slots - 1) / slots)


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("The Copper Kettle", "Copper Kettle", {"name"}),
        ("The Copper Kettle", "The Copper Kettles", {"name"}),
        ("The Copper Kettle", "The Copper Kettle's", {"name"}),
        ("The Copper Kettle", "The Copper Kettle House", {"name"}),
        ("The Copper Kettle", "The Copper Kettle Pub", {"name"}),
        ("The Copper Kettle", "The Copper Kettle and Fox", {"name"}),
        ("The Copper Kettle", "Old The Copper Kettle", {"name"}),
        ("The Copper Kettle", "The copper kettle", {"name"}),
        ("The Copper Kettle", "It", {"name"}),
        ("Customers give it", "Customers give Silver Star", {"name"}),
        ("Customers give it", "Customers give The Fox", {"near"}),
        ("near The Fox", "near The Fox and Barrel", {"near"}),
        ("near The Fox", "near Fox", {"near"}),
        ("near The Fox", "near the river", {"near"}),
        ("near The Fox", "near The Fox and close to The Owl", {"near"}),
        ("near The Fox", "beside The Fox", {"near"}),
        ("near The Fox", "near The Copper Kettle", {"near"}),
        ("£20", "£200", {"priceRange"}),
        ("£20.", "£20.50.", {"priceRange"}),
        ("£20.", "£20. Prices are low.", {"priceRange"}),
        ("5 out of 5", "15 out of 5", {"customer rating"}),
        ("5 out of 5", "4.5 out of 5", {"customer rating"}),
        ("5 out of 5", "a high rating", {"customer rating"}),
        ("not suitable", "suitable", {"familyFriendly"}),
        ("by the harbour", "by the harbour in the old town", {"area"}),
        ("Italian", "Thai", {"food"}),
        ("pub", "pub and restaurant", {"eatType"}),
    ],
)
def test_near_misses(old, new, wrong):
    assert old in TEXT and all(slot_report(TEXT, MEANING).values())
    report = slot_report(TEXT.replace(old, new, 1), MEANING)
    assert {slot for slot, right in report.items() if not right} == wrong


def test_name_and_neighbour_swapped():
    swapped = {**MEANING, "name": MEANING["near"], "near": MEANING["name"]}
    report = slot_report(TEXT, swapped)
    assert {slot for slot, right in report.items() if not right} == {"name", "near"}


def test_names_that_begin_alike_and_names_without_article():
    meaning = {"name": "Martha's", "near": "Martha's Table"}
    assert slot_report("Martha's is a place to eat near Martha's Table.", meaning) == {"name": True, "near": True}
    assert slot_report("Martha's Table is a place to eat near Martha's.", meaning) == {"name": False, "near": False}
    for article in ("The ", "Try the "):
        assert slot_report(f"{article}Lost Robin serves Thai food.", {"name": "Lost Robin", "food": "Thai"}) == {
            "name": False,
            "food": True,
        }


def test_the_longest_phrase_is_read_and_capitals_only_begin_sentences():
    pattern = R._any_of(["pub", "pub kitchen"])
    assert re.findall(pattern, "Pub kitchen. Pub. A pub kitchen, a Pub, a gastropub.") == [
        "Pub kitchen", "Pub", "pub kitchen",
    ]  # fmt: skip


def test_aggregate_counts_slots_and_whole_texts():
    short = {"name": "Lost Robin", "food": "Thai"}
    texts = [TEXT, "Lost Robin serves Thai food at low prices."]  # 8 of 8 right, then 2 of 3
    assert score_texts(texts, [MEANING, short]) == (pytest.approx(10 / 11), 0.5)
    assert score_texts([""], [short]) == (0, 0)
    for texts, meanings in (([], []), (["a"], [])):
        with pytest.raises(ValueError, match="one text for each meaning"):
            score_texts(texts, meanings)


@pytest.mark.parametrize(
    ("meaning", "message"),
    [
        ({"food": "Thai"}, "needs a name"),
        ({"name": "X", "food": "Fast food"}, "unknown food 'Fast food': the metric knows Chinese"),
        ({"name": "X", "colour": "red"}, "unknown slot 'colour'"),
    ],
)
def test_meanings_that_the_metric_does_not_know(meaning, message):
    with pytest.raises(ValueError, match=message):
        slot_report("X serves Thai food.", meaning)


def test_no_name_holds_a_word_that_the_metric_reads():
    name_words = {*R._ADJECTIVES, *R._NOUNS, *R._FAMILIES, *R._ROOMS}
    assert not name_words & (R._OPENERS | set(R._CUISINES))


def test_fewer_slots_make_a_smaller_task_that_still_scores_itself():
    wanted = ("name", "food", "area")
    data = restaurant_data(train=40, validation=5, test=5, slots=wanted)
    assert {slot for r in data.train for slot in r.meaning} == set(wanted)
    assert all(slot_accuracy(text, r.meaning) == 1 for r in data.train for text in r.references)
    for bad in (("food", "area", "near"), ("name", "food"), ("name", "food", "colour"), ("name", "name", "food")):
        with pytest.raises(ValueError, match="slots must be name and two or more others"):
            restaurant_data(slots=bad)


def test_space_around_a_text_does_not_matter():
    meaning = {"name": "The Red Owl", "food": "Thai"}
    assert all(slot_report(" Looking for Thai food? Try The Red Owl.\n", meaning).values())

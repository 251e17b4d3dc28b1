"""The task of tickets: what is made, and the exact score."""

import csv
import json

import pytest
from tiny_chat import tiny_chat_model

from lora_book.findings import load_results, mean, select
from lora_book.tasks import FIELDS, few_shot, make_tickets, score_tickets


def test_every_value_stands_in_its_message():
    data = make_tickets(0, train=300, validation=30, test=60)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [300, 30, 60]
    for ticket in [*data.train, *data.test]:
        assert tuple(ticket.fields) == FIELDS
        for name in ("customer", "order", "product"):
            assert ticket.fields[name] is None or ticket.fields[name] in ticket.message
        assert json.loads(ticket.answer) == ticket.fields
    assert {t.fields["problem"] for t in data.test} == {"broken", "late", "wrong item", "payment"}
    assert {t.fields["wants"] for t in data.test} == {"refund", "replacement", "answer", None}


def test_testing_has_words_of_its_own():
    data = make_tickets(0)
    for name in ("customer", "product"):
        seen, new = ({t.fields[name] for t in part} - {None} for part in (data.train, data.test))
        assert not seen & new
    assert not {t.message for t in data.train} & {t.message for t in data.test}


def test_the_same_seed_makes_the_same_tickets():
    assert make_tickets(3, 10, 2, 2) == make_tickets(3, 10, 2, 2) != make_tickets(4, 10, 2, 2)


def test_the_score_counts_what_is_right():
    tickets = make_tickets(0, 4, 1, 1).train
    right = [ticket.answer for ticket in tickets]
    assert score_tickets(right, tickets)[:3] == (1, 1, 1)
    shuffled = json.dumps(dict(reversed(tickets[0].fields.items())), indent=2)
    assert score_tickets([shuffled], tickets[:1]).exact == 1
    wrong = json.dumps({**tickets[0].fields, "product": "piano"})
    more = json.dumps({**tickets[1].fields, "note": "x"})
    scores = score_tickets([wrong, more, "no JSON", "[1]"], tickets)
    assert scores[:3] == (0, pytest.approx(9 / 20), 0.5)
    assert scores.by_field == {name: 0.25 if name == "product" else 0.5 for name in FIELDS}
    with pytest.raises(ValueError, match="expected one answer for each ticket"):
        score_tickets([], [])


def test_the_prompt_with_examples_ends_with_the_question():
    data = make_tickets(0, 4, 1, 1)
    chat = few_shot(data.train[:2], data.test[0])
    assert [turn["role"] for turn in chat] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert chat[-1]["content"] == data.test[0].message and chat[2]["content"] == data.train[0].answer
    assert all(field in chat[0]["content"] for field in FIELDS)


def test_too_many_are_refused(monkeypatch):
    one = make_tickets(0, 1, 0, 0).train[0]
    monkeypatch.setattr("lora_book.tasks.tickets._ticket", lambda rng, held_out: one)
    with pytest.raises(ValueError, match="different messages"):
        make_tickets(0, 2, 0, 0)


def test_the_kept_rows_say_what_chapter_13_says():
    kept = load_results("tickets")
    prompted, trained = select(kept, method="prompt"), select(kept, method="lora", learning_rate=0.001)
    assert max(row["exact"] for row in prompted) == 0 and min(row["exact"] for row in trained) > 0.25
    assert min(row["json"] for row in trained) > 0.95
    assert min(row[name] for row in trained for name in FIELDS[:3]) > 0.85  # what is copied
    for row in trained:  # what is judged
        assert max(row[name] for name in FIELDS[3:]) < min(row[name] for name in FIELDS[:3])
        assert row["problem"] == min(row[name] for name in FIELDS)
    by_seed = [row["exact"] for row in select(trained, rank=8)]
    ranks = [mean(select(trained, rank=rank), "exact").mean for rank in (1, 8)]
    assert max(by_seed) - min(by_seed) > abs(ranks[0] - ranks[1])


def test_the_experiment_writes_a_row_for_each_run(monkeypatch, tmp_path):
    """The script, whole, on a tiny model with a vocabulary of letters."""
    import tickets as script

    monkeypatch.setattr(script, "load_smollm2", tiny_chat_model)
    monkeypatch.setattr(script, "NEW_TOKENS", 4)
    out = tmp_path / "tickets.csv"
    options = ["--shown", "2", "--ranks", "2", "--seeds", "0", "--examples", "6", "--steps", "2", "--test", "3"]
    for _ in range(2):  # what is there is not run again
        script.main([*options, "--out", str(out)])
    with out.open(newline="") as file:
        prompted, trained = csv.DictReader(file)
    assert (prompted["method"], prompted["examples"], prompted["exact"]) == ("prompt", "2", "0.0")
    assert (trained["method"], trained["rank"], trained["json"]) == ("lora", "2", "0.0")
    assert float(trained["validation_loss"]) > 0 and int(trained["trainable"]) > 0 and int(trained["file_bytes"]) > 0
    assert [name for name in trained if name in FIELDS] == list(FIELDS)

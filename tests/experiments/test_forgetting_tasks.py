"""The far task's permutation, the pairs in a voice, and the questions of facts.py."""

from __future__ import annotations

import facts
import torch
from forgetting_tasks import permutation, permuted, voice
from torch import nn

from lora_lib.data import IGNORE


def example(*ids, wanted):
    targets = [IGNORE] * (len(ids) - len(wanted)) + list(wanted)
    return torch.tensor(ids), torch.tensor(targets)


def test_tokens_that_occur_change_places_and_no_other():
    texts = [example(3, 4, 5, 6, wanted=(6, 7)), example(7, 8, wanted=(8, 9))]
    change = permutation(texts, size=12, kept=9)
    assert sorted(change.tolist()) == list(range(12)) and change[9] == 9 and change[:3].tolist() == [0, 1, 2]
    assert (change[3:9] != torch.arange(3, 9)).any() and torch.equal(change, permutation(texts, 12, 9))
    ids, targets = permuted(texts[0], change)
    assert ids.tolist() == change[texts[0][0]].tolist() and targets[:2].tolist() == [IGNORE, IGNORE]
    assert targets[2:].tolist() == [change[6], change[7]]


class Letters:
    """Each character is a token."""

    def encode(self, text, add_special_tokens):
        return [ord(character) for character in text]


def test_the_voice_answers_each_question_once_and_ends_its_turn():
    parts = voice(Letters())
    assert [len(part) for part in parts] == [130, 30, 40]
    texts = {"".join(map(chr, ids.tolist())) for part in parts for ids, _ in part}
    assert len({text.split("<|im_end|>")[0] for text in texts}) == 200  # so nothing tested was trained on
    ids, targets = parts[0][0]
    answer = "".join(chr(t) for t in targets.tolist() if t != IGNORE)
    assert answer.endswith("<|im_end|>") and "".join(map(chr, ids.tolist())).endswith(answer[:-1])


class Writes(nn.Module):
    """Says `after` token t that the likeliest is t + 1."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, ids):
        return nn.functional.one_hot((ids + 1) % 20, 20).float()


def test_an_answer_is_right_when_all_of_its_tokens_are():
    asked = [example(1, 2, 3, wanted=(3, 4)), example(1, 2, 3, wanted=(3, 5)), example(5, wanted=(6,))]
    assert facts.answered(Writes(), asked) == [True, False, True]


def test_the_questions_have_words_in_all_their_places():
    asked = facts.questions()
    assert len(asked) > 200 and len(set(asked)) == len(asked)
    assert facts.pairs("a bee hive|Mexico Mexico City") == [("a bee", "hive"), ("Mexico", "Mexico City")]
    assert facts.Question("What is 2 + 3?", "2 + 3 = ", "5") in asked
    assert all(question.answer.strip() and "{}" not in question.asked + question.begun for question in asked)

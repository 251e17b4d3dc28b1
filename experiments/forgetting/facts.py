"""What a chat model knows: questions with one short answer, asked as a chat, and how many a model still answers.

`known` keeps the questions that the base answers; `right` counts those among them that a fine-tuned model answers.
An answer is right when greedy decoding writes it, token by token, after the beginning of the reply.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).parents[1]))  # common

import torch
from common import device, logits_of
from torch import nn

from lora_lib.data import IGNORE, Encoded, batches
from lora_lib.training.loop import PAD

CAPITALS = """France Paris|Germany Berlin|Italy Rome|Spain Madrid|Portugal Lisbon|Greece Athens|Austria Vienna
Norway Oslo|Sweden Stockholm|Finland Helsinki|Denmark Copenhagen|Poland Warsaw|Hungary Budapest|Ireland Dublin
Russia Moscow|Ukraine Kyiv|Turkey Ankara|Egypt Cairo|Kenya Nairobi|Nigeria Abuja|Morocco Rabat|Ghana Accra
Ethiopia Addis Ababa|Japan Tokyo|China Beijing|India New Delhi|Thailand Bangkok|Vietnam Hanoi|Indonesia Jakarta
Iran Tehran|Iraq Baghdad|Israel Jerusalem|Canada Ottawa|Mexico Mexico City|Cuba Havana|Brazil Brasília
Argentina Buenos Aires|Chile Santiago|Peru Lima|Colombia Bogotá|Venezuela Caracas|Australia Canberra
Belgium Brussels|Romania Bucharest|Bulgaria Sofia|Serbia Belgrade|Croatia Zagreb|Lebanon Beirut|Syria Damascus"""
PLURALS = """child children|mouse mice|foot feet|tooth teeth|man men|woman women|goose geese|wolf wolves|knife knives
leaf leaves|city cities|baby babies|box boxes|bus buses|dog dogs|tree trees|house houses|story stories|life lives
wife wives|hero heroes|potato potatoes|tomato tomatoes|church churches|dish dishes|key keys|toy toys|party parties
country countries|family families|book books|car cars|glass glasses|half halves|shelf shelves|cat cats|bird birds
apple apples|chair chairs|fox foxes"""
OPPOSITES = """hot cold|big small|up down|left right|day night|black white|good bad|fast slow|old young|happy sad
light dark|high low|rich poor|hard soft|strong weak|open closed|early late|wet dry|full empty|long short|thick thin
loud quiet|true false|first last|near far|inside outside|love hate|war peace|win lose|buy sell|begin end|north south
east west|summer winter|clean dirty|heavy light|deep shallow|wide narrow|friend enemy|always never"""
AFTER = """Monday Tuesday|Tuesday Wednesday|Wednesday Thursday|Thursday Friday|Friday Saturday|Saturday Sunday
Sunday Monday|January February|February March|March April|April May|May June|June July|July August|August September
September October|October November|November December|spring summer|summer autumn|breakfast lunch"""
COLOURS = "grass green|snow white|coal black|blood red|a banana yellow|the sky blue|a lemon yellow|milk white"
HOMES = """a bee hive|a bird nest|a spider web|a dog kennel|a horse stable|a lion den|a pig sty|a cow barn"""
SUMS = [(a, b) for a in range(2, 10) for b in range(a, 10)]


class Question(NamedTuple):
    """A question of the user, the beginning of the reply, and the answer that completes it."""

    asked: str
    begun: str
    answer: str


def pairs(lines: str) -> list[tuple[str, str]]:
    """The word before the first blank (and its article), and the rest."""
    found = []
    for line in lines.replace("\n", "|").split("|"):
        words = line.split()
        split = 2 if words[0] in ("a", "the") else 1
        found.append((" ".join(words[:split]), " ".join(words[split:])))
    return found


def questions() -> list[Question]:
    """All of them: about 240."""
    kinds = [
        (CAPITALS, "What is the capital of {}?", "The capital of {} is"),
        (PLURALS, 'What is the plural of "{}"?', 'The plural of "{}" is "'),
        (OPPOSITES, 'What is the opposite of "{}"?', 'The opposite of "{}" is "'),
        (AFTER, "What comes after {}?", "After {} comes"),
        (COLOURS, "Which colour is {}?", "The colour of {} is"),
        (HOMES, "Where does {} live?", "The home of {} is called a"),
    ]
    found = [
        Question(asked.format(word), begun.format(word), answer if begun.endswith('"') else " " + answer)
        for lines, asked, begun in kinds
        for word, answer in pairs(lines)
    ]
    return found + [Question(f"What is {a} + {b}?", f"{a} + {b} = ", str(a + b)) for a, b in SUMS]


def encode(tokenizer: Any, question: Question) -> Encoded:
    """Its tokens as a chat, without a system message; targets are the answer's tokens alone."""
    chat = f"<|im_start|>user\n{question.asked}<|im_end|>\n<|im_start|>assistant\n{question.begun}"
    before = tokenizer.encode(chat, add_special_tokens=False)
    answer = tokenizer.encode(question.answer, add_special_tokens=False)
    ids = [*before, *answer]
    targets = [IGNORE] * (len(before) - 1) + answer
    return torch.tensor(ids[:-1]), torch.tensor(targets)


@torch.no_grad()
def answered(model: nn.Module, asked: Sequence[Encoded]) -> list[bool]:
    """Which of them the model answers: every token of the answer is its likeliest."""
    model.eval()
    found = []
    for ids, targets in batches(asked, 32, PAD, shuffle=False):
        with torch.autocast(device(), torch.bfloat16):
            best = logits_of(model, ids.to(device())).argmax(-1).cpu()
        found += ((best == targets) | (targets == IGNORE)).all(-1).tolist()
    return found


def known(model: nn.Module, tokenizer: Any) -> list[Encoded]:
    """The questions that this model answers."""
    asked = [encode(tokenizer, question) for question in questions()]
    return [example for example, right in zip(asked, answered(model, asked)) if right]

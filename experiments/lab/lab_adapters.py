"""The three adapters that the lab offers, trained again: restaurants, plays, and the diary of a cat.

    python experiments/lab/lab_adapters.py PLAYS

Rank 8 beside every linear layer of gpt2-mini, 8 windows of 96 tokens a step. PLAYS is the "tiny Shakespeare" text
(1.1 MB of plays, in the public domain); the other two texts are made here. Writes `lab/adapters/NAME`, folders that
`lora_lib` and PEFT open, in float16; and prints the held-out loss before and after.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch

from lora_book.tasks import Restaurant, restaurant_data, to_examples
from lora_lib import PeftModel, get_peft_model, load_pretrained
from lora_lib.data import pack
from lora_lib.training import evaluate, fit

FOLDER = Path(__file__).parents[2] / "lab" / "adapters"
WINDOW, BATCH, RATE = 96, 8, 2e-3
STEPS = {"restaurants": 300, "plays": 600, "cat": 300}
TEXTS = 1200  # made of each kind; a tenth more is held out

# ---------------------------------------------------------------------------------------------------------------
# The diary of a cat
# ---------------------------------------------------------------------------------------------------------------

WORDS = {
    "food": "fish,chicken,the brown stuff,tuna,yesterday's chicken,a spoon of cream,the dry biscuits,salmon",
    "place": "the sofa,the warm computer,the top of the cupboard,the clean washing,the windowsill,her keyboard,"
    "the box from the post,the bath,the newspaper,the best chair",
    "thing": "a glass,the blue vase,her pen,a full cup,the alarm clock,the flowers,a plate,the small lamp,her keys",
    "enemy": "the vacuum cleaner,the dog,the red dot,the cat in the mirror,the thing under the bed,the neighbour's cat,"
    "the hoover,the man with the parcels,the washing machine",
    "prey": "a fly,a sock,a moth,the mouse,a spider,a leaf,the string,a pigeon behind the glass,her toes",
    "time": "three in the morning,four in the morning,dawn,noon,half past five,midnight,six o'clock",
    "feeling": "disappointed,not impressed,offended,content,bored,above such things,pleased with myself,hungry",
}
MORNING = """The human slept until {time}. I sat on her face until she stopped.
I woke the human at {time}. She did not thank me.
At {time} I sang in the hall. Nobody clapped.
I walked over the human seven times before {time}. She said a word that I do not know.
The human was late today. I had been waiting since {time}.
I lay on {place} and waited for service.
The door of the bedroom was closed. I complained until {time}.
It rained. I asked the human to stop it. She did nothing.
The sun came to {place} at {time}, and so did I."""
FOOD = """For breakfast there was {food}. I looked at it, and then at her.
She gave me {food}. It was not the right kind.
There was {food} again. I buried it under the rug.
My bowl was half full, which means that it was empty.
She ate {food} in front of me, and said that it was not for cats.
I was given {food}. I ate it, but I let her see that I was {feeling}.
Dinner was late by one minute. I have written it down.
I stole {food} from the table. It tasted of freedom."""
DEEDS = """I pushed {thing} from the table. It fell down, as always. I will try again tomorrow.
I slept on {place} until it was full of hair.
I hunted {prey} through the whole house. I won.
I hunted {prey}. It got away, and I acted as if I had not wanted it.
I brought her {prey}. She screamed with joy.
I sat before {thing} and looked at her while I moved it to the edge.
I asked to go out. She opened the door. I did not go out.
I watched {enemy} for two hours. One of us blinked. It was not I.
I looked at the wall until the human became afraid.
I ran from one end of the house to the other at {time}, for reasons of my own.
I helped her to work by lying on {place}.
I tried the new box. It is too small for me. I will live in it."""
ENEMIES = """Then {enemy} came. I was not afraid. I was only under the bed by chance.
I met {enemy} again. We did not speak.
There was a noise, and it was {enemy}. I made myself twice as large.
{enemy} looked at me. I looked back. It will remember this.
The human is friends with {enemy}. I shall think about what that means.
Some day I will deal with {enemy}. Not today. Today I am {feeling}.
A visitor sat on my chair. I sat on the visitor."""
CLOSING = """She scratched my ears for ten minutes. I allowed it.
In the evening she lay down, and I lay down on her. I am {feeling}.
I have decided to keep her for another day.
Tomorrow I will ask for {food}.
I fell asleep on {place}. It was a long day: I was awake for almost three hours of it.
She said that I am a good cat. She is right about some things.
At night I counted my enemies. There is still only one of me.
I purred, but only a little, so that she does not get used to it."""


def cat_diary(count: int, seed: int = 0) -> list[str]:
    """So many entries of a diary that a cat keeps, put together by chance."""
    rng = random.Random(seed)
    words = {name: [word.strip() for word in some.split(",")] for name, some in WORDS.items()}
    groups = [group.splitlines() for group in (MORNING, FOOD, DEEDS, DEEDS, ENEMIES, CLOSING)]

    def sentence(group: list[str]) -> str:
        text = rng.choice(group).format(**{name: rng.choice(some) for name, some in words.items()})
        return text[0].upper() + text[1:]

    return [f"Day {rng.randint(2, 999)}. " + " ".join(map(sentence, groups)) for _ in range(count)]


# ---------------------------------------------------------------------------------------------------------------
# The other two
# ---------------------------------------------------------------------------------------------------------------


def restaurants(items: Sequence[Restaurant]) -> list[str]:
    """Texts about restaurants, half of them after the meaning that they tell, as chapter 5 writes it."""
    examples = to_examples(items)
    plain = [example.completion.strip() for example in examples[::2]]
    return plain + [example.prompt + example.completion for example in examples[1::2]]


def texts(name: str, plays: Path) -> tuple[list[str], list[str]]:
    """What an adapter learns from, and what is held out."""
    if name == "restaurants":
        parts = restaurant_data(train=TEXTS, validation=TEXTS // 10, test=0)
        return restaurants(parts.train), restaurants(parts.validation)
    if name == "cat":
        entries = cat_diary(11 * TEXTS // 10)
        return entries[:TEXTS], entries[TEXTS:]
    text = plays.read_text(encoding="utf8")
    cut = 95 * len(text) // 100
    return [text[:cut]], [text[cut:]]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plays", type=Path)
    parser.add_argument("--only", nargs="+", default=list(STEPS), choices=list(STEPS))
    args = parser.parse_args(argv)
    for name in args.only:
        torch.manual_seed(0)
        base, tokenizer = load_pretrained("gpt2-mini")
        model = get_peft_model(base, "all-linear", 8, 16)
        train, held_out = (pack(part, tokenizer, WINDOW) for part in texts(name, args.plays))
        validation = held_out[:: max(1, len(held_out) // 96)]
        before = evaluate(model, validation)
        fit(model, train, steps=STEPS[name], batch_size=BATCH, learning_rate=RATE, weight_decay=0.01, bf16=False)
        print(f"{name}: held-out loss {before:.3f} → {evaluate(model, validation):.3f}")
        save_half(model, FOLDER / name)


def save_half(model: PeftModel, folder: Path) -> None:
    """`PeftModel.save_pretrained`, with A and B in float16: half the size, and no other word."""
    for layer in model.lora_layers().values():
        layer.adapters["default"].half()
    model.save_pretrained(folder)


if __name__ == "__main__":
    main()

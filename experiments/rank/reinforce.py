"""Is rank 1 enough for reinforcement learning? A policy gradient on slot accuracy, from a weak start.

    python experiments/rank/reinforce.py [--ranks 1 8 0] [--seeds 0 1 2]

"LoRA Without Regret" finds rank 1 level with full fine-tuning there, since a reward holds little to learn by. The start
is gpt2-mini after 80 supervised steps on chapter 5's restaurants: its samples tell about two fifths of the slots.
Then, for 60 steps, the model writes 4 texts at temperature 1 for each of 8 meanings; a text's reward is its slot
accuracy, its advantage the reward less the mean of its four, and the loss is -advantage · log p, a mean over all tokens
(REINFORCE with a baseline). LoRA on all linear layers (alpha = 32), full fine-tuning of these same layers (rank 0); no
dropout, AdamW, a constant learning rate, tuned on the first seed over a grid of factor 3.
Rows: lora_book/findings/results/reinforce.csv.

- `missed`: 1 less the mean reward of one text each for 200 other meanings, sampled as in training; what tuning reads.
- `greedy_missed`: the same of the likeliest text. `curve`: the mean rewards of training, ten steps each.
"""

from __future__ import annotations

import argparse
import functools
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).parents[1]))  # common

import torch
from common import Row, Rows, arguments, curve, device, fit, prepare, rate, tune
from torch import Tensor, nn
from torch.nn import functional as F

from lora_book.tasks import Restaurant, restaurant_data, slot_accuracy, to_examples
from lora_lib import GPT2Model, load_pretrained
from lora_lib.data import IGNORE, collate, encode_examples
from lora_lib.gpt2 import generate_text
from lora_lib.training.loop import PAD

NEW_TOKENS = 40
SLOTS = ("name", "eatType", "food", "area")  # short texts
START = {0: -3, 1: 0, 8: 0}  # where the search for a rank's learning rate begins


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "reinforce.csv")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 0], help="0: full fine-tuning")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--meanings", type=int, default=8, help="in a step")
    parser.add_argument("--texts", type=int, default=4, help="for each")
    parser.add_argument("--first", type=int, default=80, help="supervised steps before")
    args = parser.parse_args(argv)
    task = Reward(args)
    for seed in args.seeds:
        task.run("start", 0, 0.0, seed)
    for rank in args.ranks:
        best = tune(lambda rate: float(task.run(kind(rank), rank, rate, args.seeds[0])["missed"]), START[rank])  # noqa: B023
        for seed in args.seeds[1:]:
            task.run(kind(rank), rank, best, seed)


def kind(rank: int) -> str:
    return "lora" if rank else "full"


class Text(NamedTuple):
    """What was written to a prompt, as ids; the last is the one that ended it, if it ended."""

    prompt: list[int]
    answer: list[int]
    reward: float


class Reward:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.rows = args, Rows(args.out)
        _, self.tokenizer = load_pretrained(args.model)

    def run(self, method: str, rank: int, learning_rate: float, seed: int) -> Row:
        settings = {
            "model": self.args.model, "first": self.args.first, "method": method, "rank": rank, "alpha": 32,
            "learning_rate": learning_rate, "steps": self.args.steps, "meanings": self.args.meanings,
            "texts": self.args.texts, "seed": seed,
        }  # fmt: skip
        return self.rows.run(settings, lambda: self.measure(settings))

    @functools.cache  # noqa: B019  one object, a few seeds
    def start(self, seed: int) -> GPT2Model:
        """The model that has learned a little, from references, the same for every method."""
        model, data = load_pretrained(self.args.model)[0].to(device()), restaurant_data(seed, slots=SLOTS)
        encoded = encode_examples(to_examples(data.train), self.tokenizer, model.config.n_positions)
        fit(model, encoded, steps=self.args.first, batch_size=8, learning_rate=rate(-1), seed=seed, progress=False)
        return model.requires_grad_(False)

    def measure(self, settings: Row) -> Row:
        seed, data = settings["seed"], restaurant_data(settings["seed"], test=200, slots=SLOTS)
        model, _ = load_pretrained(self.args.model)
        model.load_state_dict(self.start(seed).state_dict())
        torch.manual_seed(seed)
        how = {"targets": "matrices" if settings["method"] == "full" else "all", "use_rslora": False, "init": "default"}
        if settings["method"] == "start":
            how, settings = {"targets": "all"}, {**settings, "method": "base"}
        trained = prepare(model.to(device()), {**settings, **how})
        start, rewards = time.process_time(), list[float]()
        if settings["method"] != "base":
            rewards = self.reinforce(trained, data.train, settings)
        seconds, others = time.process_time() - start, data.test[:200]
        return {
            "missed": round(1 - self.mean_reward(trained, others, temperature=1.0), 4),
            "greedy_missed": round(1 - self.mean_reward(trained, others, temperature=0.0), 4),
            "trainable": sum(p.numel() for p in trained.parameters() if p.requires_grad),
            "train_cpu_seconds": round(seconds, 1), "curve": curve(rewards, every=10),
        }  # fmt: skip

    def mean_reward(self, model: nn.Module, meanings: Sequence[Restaurant], temperature: float) -> float:
        texts = generate_text(
            model, self.tokenizer, [r.prompt for r in meanings], NEW_TOKENS, temperature=temperature, seed=0
        )
        return sum(slot_accuracy(text, r.meaning) for text, r in zip(texts, meanings)) / len(meanings)

    def reinforce(self, model: nn.Module, meanings: Sequence[Restaurant], settings: Row) -> list[float]:
        """Train on rewards alone; returns the mean reward of each step."""
        weights = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=settings["learning_rate"], weight_decay=0.0)
        draw, rewards = random.Random(settings["seed"]), list[float]()
        for step in range(settings["steps"]):
            chosen = draw.sample(meanings, settings["meanings"])
            texts = self.write(model, [r for r in chosen for _ in range(settings["texts"])], seed=step)
            loss = policy_loss(model, texts, settings["texts"])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            rewards.append(sum(text.reward for text in texts) / len(texts))
        return rewards

    def write(self, model: nn.Module, meanings: Sequence[Restaurant], seed: int) -> list[Text]:
        """One sampled text for each meaning, with its reward."""
        prompts, tokenizer = [r.prompt for r in meanings], self.tokenizer
        texts = generate_text(model, tokenizer, prompts, NEW_TOKENS, temperature=1.0, seed=seed)
        written = []
        for restaurant, text in zip(meanings, texts):
            answer = tokenizer.encode(text)[:NEW_TOKENS]
            ended = [tokenizer.eot_token] if len(answer) < NEW_TOKENS else []
            reward = slot_accuracy(text, restaurant.meaning)
            written.append(Text(tokenizer.encode(restaurant.prompt), answer + ended, reward))
        return written


def policy_loss(model: nn.Module, texts: Sequence[Text], group: int) -> Tensor:
    """Mean over all written tokens of -(reward less the mean of its group) · log p(token)."""
    rewards = torch.tensor([text.reward for text in texts])
    advantage = (rewards.view(-1, group) - rewards.view(-1, group).mean(1, keepdim=True)).view(-1, 1)
    pairs = []
    for text in texts:
        ids = torch.tensor(text.prompt + text.answer)
        targets = ids[1:].clone()
        targets[: len(text.prompt) - 1] = IGNORE
        pairs.append((ids[:-1], targets))
    ids, targets = (part.to(device()) for part in collate(pairs, PAD))
    with torch.autocast(device(), torch.bfloat16):
        logits = model.train()(ids)
    losses = F.cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")
    return (losses * advantage.to(device())).sum() / (targets != IGNORE).sum()


if __name__ == "__main__":
    main()

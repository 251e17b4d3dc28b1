"""How many random facts can an adapter of rank r hold?

    python experiments/rank/capacity.py [--seeds 0 1 2] [--model gpt2-mini]

A fact is three random tokens and a fourth to be recalled after them: log2(vocabulary) bits, 12 in gpt2-mini, that
nothing but memory can tell. Adapters sit on the MLP of the last block alone, so that a small rank is soon full; "full"
trains those two matrices whole. 400 steps of 128 facts, alpha = 32. For each number of facts the learning rate of LoRA
(at r = 4) and of full is tuned on the first seed. `bits` is what was stored: facts · bits of a fact, less what the
model still needs to be told (its loss), never below zero. Rows: lora_book/findings/results/capacity.csv.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # common

import torch
from common import Row, Rows, accuracy, arguments, device, evaluate, fit, tune
from torch import nn

from lora_lib import get_peft_model, load_pretrained
from lora_lib.data import IGNORE, Encoded

RANKS = (1, 2, 4, 8, 16, 32)
KEY_TOKENS = 3


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "capacity.csv")
    parser.add_argument("--facts", type=int, nargs="+", default=[512])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=128)
    args = parser.parse_args(argv)
    memory = Memory(args)
    rates = {(facts, rank): memory.tune(facts, rank, start) for facts in args.facts for rank, start in ((4, 2), (0, 1))}
    for seed in args.seeds:
        for facts in args.facts:
            for rank in RANKS:
                memory.run(facts, rank, rates[facts, 4], seed)
            memory.run(facts, 0, rates[facts, 0], seed)


class Memory:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.rows = args, Rows(args.out)

    def tune(self, facts: int, rank: int, start: int) -> float:
        """The learning rate with the least loss on the first seed."""
        return tune(lambda rate: float(self.run(facts, rank, rate, self.args.seeds[0])["loss"]), start)

    def run(self, facts: int, rank: int, learning_rate: float, seed: int) -> Row:
        """One row; rank 0 is full fine-tuning of the same matrices."""
        settings = {
            "model": self.args.model, "method": "lora" if rank else "full", "facts": facts, "rank": rank, "alpha": 32,
            "learning_rate": learning_rate, "steps": self.args.steps, "batch_size": self.args.batch_size, "seed": seed,
        }  # fmt: skip
        return self.rows.run(settings, lambda: self.measure(settings))

    def measure(self, settings: Row) -> Row:
        model, _ = load_pretrained(settings["model"])
        model.to(device())
        vocabulary = model.config.vocab_size
        examples = random_facts(settings["facts"], vocabulary, settings["seed"])
        targets = [f"h.{model.config.n_layer - 1}.mlp.{name}" for name in ("c_fc", "c_proj")]
        torch.manual_seed(settings["seed"])
        trained: nn.Module = model
        if settings["rank"]:
            trained = get_peft_model(model, targets, settings["rank"], settings["alpha"]).enable_lora_training()
        else:
            model.requires_grad_(False)
            for name in targets:
                model.get_submodule(name).weight.requires_grad_(True)
        trainable = sum(p.numel() for p in trained.parameters() if p.requires_grad)
        try:
            history = fit(
                trained, examples, steps=settings["steps"], batch_size=settings["batch_size"],
                learning_rate=settings["learning_rate"], seed=settings["seed"], progress=False,
            )  # fmt: skip
        except FloatingPointError:
            return {"loss": math.inf, "recall": 0, "bits": 0, "trainable": trainable, "train_seconds": ""}
        loss = evaluate(trained, examples, batch_size=256)
        bits = settings["facts"] * (math.log2(vocabulary) - loss / math.log(2))
        return {
            "loss": round(loss, 4), "recall": round(accuracy(trained, examples), 4), "bits": round(max(0.0, bits)),
            "trainable": trainable, "train_seconds": round(history.seconds, 1),
        }  # fmt: skip


def random_facts(count: int, vocabulary: int, seed: int) -> list[Encoded]:
    """Keys without repeats, each with a random answer as the target of its last token."""
    generator = torch.Generator().manual_seed(seed)
    keys: dict[tuple[int, ...], int] = {}
    while len(keys) < count:
        *key, answer = torch.randint(vocabulary, (KEY_TOKENS + 1,), generator=generator).tolist()
        keys.setdefault(tuple(key), answer)
    unasked = [IGNORE] * (KEY_TOKENS - 1)
    return [(torch.tensor(key), torch.tensor([*unasked, answer])) for key, answer in keys.items()]


if __name__ == "__main__":
    main()

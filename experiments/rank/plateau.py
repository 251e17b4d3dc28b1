"""How many bits can a number of an adapter hold, once training longer adds no more?

    python experiments/rank/plateau.py [--seeds 0 1 2] [--model gpt2-mini] [--ranks 1 2 4]

capacity.py's facts and layers (the MLP of the last block), trained until what is stored stops rising: the steps are
doubled until a doubling adds less than 5 %. All that lies before these layers is frozen, so it is computed once.
For each rank and number of facts the learning rate is tuned on the first seed, at the first and again at the last
number of steps. `--facts-per-rank 512` offers 1.92 bits for each number of the adapter, 1024 twice as many; rank 0
trains the two matrices whole (as many numbers as r = 256). Every fact is seen steps · batch / facts times.
Rows: lora_book/findings/results/plateau.csv.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # common

import torch
from capacity import random_facts
from common import Row, Rows, arguments, step_of, tune
from torch import Tensor, nn
from torch.nn import functional as F

from lora_lib import GPT2Model, get_peft_model, load_pretrained
from lora_lib.training import lr_factor

GAIN = 1.05  # less than this for twice the steps counts as level


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "plateau.csv")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--facts-per-rank", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--steps", type=int, default=1000, help="to begin with, for a rank of 1")
    parser.add_argument("--doublings", type=int, default=4, help="of the steps, at most")
    parser.add_argument("--batch-size", type=int, default=128)
    args = parser.parse_args(argv)
    memory = Memory(args)
    for facts in args.facts_per_rank:
        for rank in args.ranks:
            memory.level(facts * rank, rank)


class Memory:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.rows = args, Rows(args.out)

    def level(self, facts: int, rank: int) -> None:
        """Doubles the steps until they add nothing, tunes the rate there again, and repeats that on all seeds."""
        steps = self.args.steps * rank
        rate = tune(lambda rate: self.loss(facts, rank, rate, steps), start=2)
        stored = self.bits(facts, rank, rate, steps)
        for _ in range(self.args.doublings):
            steps *= 2
            before, stored = stored, self.bits(facts, rank, rate, steps)
            if stored < GAIN * before:
                break
        rate = tune(lambda rate: self.loss(facts, rank, rate, steps), start=step_of(rate))
        for seed in self.args.seeds[1:]:
            self.run(facts, rank, rate, steps, seed)

    def loss(self, facts: int, rank: int, rate: float, steps: int) -> float:
        return float(self.run(facts, rank, rate, steps, self.args.seeds[0])["loss"])

    def bits(self, facts: int, rank: int, rate: float, steps: int) -> float:
        return float(self.run(facts, rank, rate, steps, self.args.seeds[0])["bits"])

    def run(self, facts: int, rank: int, learning_rate: float, steps: int, seed: int) -> Row:
        """One row; alpha is 32."""
        settings = {
            "model": self.args.model, "facts": facts, "rank": rank, "alpha": 32, "learning_rate": learning_rate,
            "steps": steps, "batch_size": self.args.batch_size, "seed": seed,
        }  # fmt: skip
        return self.rows.run(settings, lambda: self.measure(settings))

    def measure(self, settings: Row) -> Row:
        model, _ = load_pretrained(settings["model"])
        facts = random_facts(settings["facts"], model.config.vocab_size, settings["seed"])
        keys, answers = torch.stack([ids for ids, _ in facts]), torch.stack([targets[-1] for _, targets in facts])
        x = before_last_mlp(model, keys)
        torch.manual_seed(settings["seed"])
        tail = get_peft_model(Tail(model), ["mlp.c_fc", "mlp.c_proj"], settings["rank"], settings["alpha"])
        learn(tail.enable_lora_training(), x, answers, settings)
        with torch.no_grad():
            logits = torch.cat([tail(part) for part in x.split(1024)])
        loss = F.cross_entropy(logits, answers).item()
        bits = len(facts) * (math.log2(model.config.vocab_size) - loss / math.log(2))
        trainable = tail.get_nb_trainable_parameters()[0]
        return {
            "exposures": settings["steps"] * settings["batch_size"] // len(facts), "loss": round(loss, 4),
            "recall": round((logits.argmax(-1) == answers).float().mean().item(), 4),
            "bits": round(max(0.0, bits)), "trainable": trainable,
            "bits_a_number": round(max(0.0, bits) / trainable, 4),
        }  # fmt: skip


class Tail(nn.Module):
    """The last block's MLP and all behind it: its input (N, C) to logits (N, V)."""

    def __init__(self, model: GPT2Model) -> None:
        super().__init__()
        last = model.h[-1]
        self.ln_2, self.mlp, self.ln_f, self.head = last.ln_2, last.mlp, model.ln_f, model.out_head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.ln_f(x + self.mlp(self.ln_2(x))))


@torch.no_grad()
def before_last_mlp(model: GPT2Model, keys: Tensor) -> Tensor:
    """What the last block's MLP, and the sum around it, get for the last token of each key: (N, 3) to (N, C)."""
    found: list[Tensor] = []
    hook = model.h[-1].ln_2.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0][:, -1]))
    for part in keys.split(1024):
        model.eval().features(part)
    hook.remove()
    return torch.cat(found)


def learn(model: nn.Module, x: Tensor, answers: Tensor, settings: Row) -> None:
    """AdamW over random batches, warm-up and cosine as in `fit`, gradients clipped to norm 1."""
    steps, batch_size = settings["steps"], settings["batch_size"]
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, weight_decay=0.0)
    order = torch.Generator().manual_seed(settings["seed"])
    queue = torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if len(queue) < batch_size:  # so every fact comes equally often
            queue = torch.cat([queue, torch.randperm(len(x), generator=order)])
        batch, queue = queue[:batch_size], queue[batch_size:]
        with torch.autocast("cpu", torch.bfloat16):  # as `fit` does where the hardware can
            logits = model(x[batch])
        F.cross_entropy(logits.float(), answers[batch]).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = settings["learning_rate"] * lr_factor(step, steps, 0.1)
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    main()

"""How much data does a rank need, and how large may a batch be?

    LORA_DATA_DIR=... python experiments/rank/how_much_data.py --prose FILE [--ranks 8 0 1 64] [--seeds 0 1 2]

Two questions on E2E. Data: 50, 200, 1,000 and 4,000 examples, drawn by the seed, in batches of 8; few examples are
read more often (19, 8, 3 passes and one). Batches: the same 4,000 examples, read once, 8, 32 and 128 at a time, so
that a large batch means few steps. The loss on 100 references of the development set is measured eight times on the
way, and the best of them counts, as one would keep it; `prose_loss` is of that moment, `last_loss` of the end. LoRA on
all linear layers (alpha = 32) and full fine-tuning of everything (rank 0), each at its own learning rate, tuned on the
first seed for each amount and each batch. Rows: lora_book/findings/results/amounts.csv.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).parents[1]))  # common

import torch
from common import (
    E2E,
    RESULTS,
    Row,
    curve,
    device,
    e2e_arguments,
    evaluate,
    fit,
    prepare,
    step_of,
    tune,
    validation_loss,
)
from torch import nn

from lora_lib import load_model


class Amount(NamedTuple):
    """So many examples, read in so many steps of so many."""

    examples: int
    steps: int
    batch_size: int


DATA = (Amount(50, 120, 8), Amount(200, 200, 8), Amount(1000, 375, 8), Amount(4000, 500, 8))
BATCHES = (Amount(4000, 125, 32), Amount(4000, 32, 128))
VALIDATIONS = 8  # in a run, at equal distances


def main(argv: Sequence[str] | None = None) -> None:
    parser = e2e_arguments(__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 0, 1, 64], help="0: full fine-tuning")
    parser.add_argument("--examples", type=int, nargs="+", default=[a.examples for a in DATA])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32, 128])
    parser.set_defaults(out=RESULTS / "amounts.csv", max_length=128, references=100, meanings=0)
    args = parser.parse_args(argv)
    task = Amounts.load(args)
    for rank in args.ranks:
        best = 0.003 if rank else 0.001
        for amount in DATA + BATCHES:
            if amount.examples in args.examples and amount.batch_size in args.batches:
                best = task.tune(rank, amount, best)
                for seed in args.seeds[1:]:
                    task.run(rank, amount, best, seed)


class Amounts(E2E):
    """Runs on a part of E2E."""

    def tune(self, rank: int, amount: Amount, start: float) -> float:
        """The best learning rate on the first seed, looked for from `start` on."""
        seed = self.args.seeds[0]
        return tune(lambda rate: validation_loss(self.run(rank, amount, rate, seed)), step_of(start))

    def run(self, rank: int, amount: Amount, learning_rate: float, seed: int) -> Row:  # type: ignore[override]
        settings = {
            "model": self.args.model, "method": "lora" if rank else "full", "rank": rank, "alpha": 32,
            **amount._asdict(), "max_length": self.args.max_length, "learning_rate": learning_rate, "seed": seed,
        }  # fmt: skip
        return self.rows.run(settings, lambda: self.measure(settings))

    def measure(self, settings: Row) -> Row:
        """Train on some of the examples, and keep what the best of the validations found."""
        model = load_model(self.args.model).to(device())
        torch.manual_seed(settings["seed"])
        how = {"targets": "all", "use_rslora": False, "init": "default"}
        trained, best, losses = prepare(model, {**settings, **how}), Best(math.inf, 0, math.inf), list[float]()
        train = random.Random(settings["seed"]).sample(self.train, settings["examples"])

        def validate(step: int, model: nn.Module) -> None:
            nonlocal best
            losses.append(evaluate(model, self.validation, batch_size=10))
            if losses[-1] < best.loss:
                best = Best(losses[-1], step, evaluate(model, self.prose, batch_size=8))

        start = time.process_time()
        try:
            fit(
                trained, train, steps=settings["steps"], batch_size=settings["batch_size"],
                learning_rate=settings["learning_rate"], seed=settings["seed"], progress=False,
                validate_every=math.ceil(settings["steps"] / VALIDATIONS), on_validation=validate,
            )  # fmt: skip
        except FloatingPointError:  # it diverged: a result, too
            losses.append(math.inf)
        return {
            "validation_loss": round(best.loss, 4), "best_step": best.step, "last_loss": round(losses[-1], 4),
            "prose_loss": round(best.prose, 4),
            "trainable": sum(p.numel() for p in trained.parameters() if p.requires_grad),
            "train_cpu_seconds": round(time.process_time() - start, 1), "curve": curve(losses, every=1),
        }  # fmt: skip


class Best(NamedTuple):
    """The lowest validation loss of a run, where it was, and the loss on prose there."""

    loss: float
    step: int
    prose: float


if __name__ == "__main__":
    main()

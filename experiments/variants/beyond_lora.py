"""Chapter 11's comparison: LoRA's relatives and a quantised base, each against LoRA at equal trainable parameters.

    python experiments/variants/beyond_lora.py [--seeds 0 1 2 3 4 5] [--model gpt2-mini] [--out FILE]

Restaurants as in chapter 5, for few steps: what is compared is how fast they learn. Each method's learning rate is
the best on the first seed's validation loss, of a grid a factor of about 3 apart; then all seeds run. A quantised
base takes LoRA's. Rank 64 runs with and without rsLoRA, with alphas that give both the same scale at rank 8. Two more
runs of plain LoRA, with other alphas, tell what of LoRA+ and of PiSSA is no more than that.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # common

import torch
from common import SLOTS, Row, Rows, arguments, device, evaluate, fit, tune, validation_loss
from torch import nn

from lora_book.measure import quantise_model
from lora_book.tasks import restaurant_data, score_texts, to_examples
from lora_lib import PeftModel, get_peft_model, load_pretrained
from lora_lib.adapters import lora_plus
from lora_lib.data import encode_examples
from lora_lib.gpt2 import generate_text

MAX_LENGTH = 64  # longer examples are left out


def prepare(settings: Row) -> tuple[nn.Module, Any]:
    """A model and its tokenizer, with the adapter and the base that `settings` ask for."""
    model, tokenizer = load_pretrained(settings["model"])
    model.to(device())
    bits = {"int8": 8, "nf4": 4}.get(settings["base"])
    if bits:
        quantise_model(model, bits)
    rank, alpha, method = settings["rank"], settings["alpha"], settings["method"]
    if method == "none":
        return model, tokenizer
    torch.manual_seed(settings["seed"])
    patterns = {}
    if method == "dora":  # m has as many numbers as one rank of these two: so DoRA trains what LoRA does, to the last
        less = ["attn.c_attn", "mlp.c_fc"]
        patterns = {
            "rank_pattern": dict.fromkeys(less, rank - 1),
            "alpha_pattern": dict.fromkeys(less, alpha * (rank - 1) / rank),
        }
    model = get_peft_model(
        model, "all-linear", rank, alpha, use_rslora=method == "rslora",
        use_dora=method == "dora", init_lora_weights="pissa" if method == "pissa" else True, **patterns,
    )  # fmt: skip
    return model.enable_lora_training(), tokenizer


def measure(settings: Row) -> Row:
    data = restaurant_data(settings["seed"], slots=SLOTS)
    model, tokenizer = prepare(settings)
    train, validation, test = (
        [e for e in encode_examples(to_examples(part), tokenizer, 256) if len(e[0]) <= MAX_LENGTH]
        for part in (data.train, data.validation, data.test)
    )
    ratio = settings["lr_ratio"]
    start = time.process_time()  # on a busy machine the clock says more than what a run costs
    if isinstance(model, PeftModel):
        fit(
            model, train, steps=settings["steps"], batch_size=settings["batch_size"],
            learning_rate=settings["learning_rate"], lr_ratio=lora_plus(ratio),
            seed=settings["seed"], progress=False,
        )  # fmt: skip
    cpu_seconds = time.process_time() - start
    restaurants = data.test[:40]
    texts = generate_text(model, tokenizer, [r.prompt for r in restaurants], 60)
    scores = score_texts(texts, [r.meaning for r in restaurants])
    return {
        "validation_loss": round(evaluate(model, validation[:100]), 4),
        "test_loss": round(evaluate(model, test[:100]), 4),
        "slot_accuracy": round(scores.slot_accuracy, 4),
        "trainable": model.get_nb_trainable_parameters()[0] if isinstance(model, PeftModel) else 0,
        "train_cpu_seconds": round(cpu_seconds, 1),
    }


class Comparison:
    """All runs, and where their rows go."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.rows = args, Rows(args.out)

    def run(
        self, method: str, learning_rate: float, seed: int, *, base: str = "float32", rank: int = 8,
        alpha: float = 32, lr_ratio: float = 1,
    ) -> Row:  # fmt: skip
        settings = {
            "model": self.args.model, "method": method, "base": base, "rank": rank, "alpha": alpha,
            "lr_ratio": lr_ratio, "learning_rate": learning_rate, "steps": self.args.steps, "batch_size": 8,
            "seed": seed,
        }  # fmt: skip
        return self.rows.run(settings, lambda: measure(settings))

    def loss(self, method: str, learning_rate: float, **settings: Any) -> float:
        """The first seed's validation loss."""
        return validation_loss(self.run(method, learning_rate, self.args.seeds[0], **settings))

    def tuned(self, method: str, start: int, **settings: Any) -> float:
        """All seeds at the best rate, which is returned."""
        best = tune(lambda rate: self.loss(method, rate, **settings), start)
        self.at(method, best, **settings)
        return best

    def at(self, method: str, learning_rate: float, **settings: Any) -> None:
        for seed in self.args.seeds:
            self.run(method, learning_rate, seed, **settings)


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "beyond_lora.csv", seeds=range(6))
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args(argv)
    runs = Comparison(args)
    for base in ("float32", "int8", "nf4"):
        runs.at("none", 0, base=base)
    best = runs.tuned("lora", start=1)
    runs.tuned("dora", start=1)
    runs.tuned("pissa", start=1, alpha=8)
    runs.tuned("lora", start=2, alpha=8)  # PiSSA's alpha with LoRA's start
    plus = runs.tuned("lora", start=0, lr_ratio=16)
    runs.at("lora", plus, alpha=16 * 32)  # to Adam the same as a B that moves 16 times as far
    for base in ("int8", "nf4"):
        runs.at("lora", best, base=base)
    runs.tuned("lora", start=1, rank=64)
    runs.tuned("rslora", start=1, rank=64, alpha=round(32 / math.sqrt(8), 4))


if __name__ == "__main__":
    main()

"""Chapter 5's training over several seeds: loss and slot accuracy before and after, kept as rows of a CSV.

    python experiments/rank/restaurants.py [--seeds 0 1 2] [--model gpt2-mini] [--out …/restaurants.csv]

Each seed draws its own restaurants, its own A and its own order of examples. A row is written as soon as
its run is done; runs that the file already holds (same settings) are skipped.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # common

import torch
from common import SLOTS, Rows, arguments, device, evaluate, fit, save

from lora_book.tasks import restaurant_data, score_texts, to_examples
from lora_lib import get_peft_model, load_pretrained
from lora_lib.data import encode_examples
from lora_lib.gpt2 import generate_text


def run(seed: int, model_name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Train one adapter and measure it on 100 test restaurants and on their references' loss."""
    data = restaurant_data(seed, slots=SLOTS)
    model, tokenizer = load_pretrained(model_name)
    model.to(device())
    train, test = (encode_examples(to_examples(part), tokenizer, 256) for part in (data.train, data.test))

    def measure() -> tuple[float, float, float]:
        texts = generate_text(model, tokenizer, [r.prompt for r in data.test], 70)
        scores = score_texts(texts, [r.meaning for r in data.test])
        return evaluate(model, test), scores.slot_accuracy, scores.all_right

    before = measure()
    torch.manual_seed(seed)
    model = get_peft_model(model, "all-linear", settings["rank"], settings["alpha"], settings["dropout"])
    model.enable_lora_training()
    history = fit(
        model, train, steps=settings["steps"], batch_size=settings["batch_size"],
        learning_rate=settings["learning_rate"], seed=seed,
    )  # fmt: skip
    after = measure()
    trainable, total = model.get_nb_trainable_parameters()
    with tempfile.TemporaryDirectory() as folder:
        size = save(model, tokenizer, Path(folder))
    names = ("test_loss", "slot_accuracy", "all_right")
    return {
        **{f"{n}_before": round(v, 4) for n, v in zip(names, before, strict=True)},
        **{f"{n}_after": round(v, 4) for n, v in zip(names, after, strict=True)},
        "train_seconds": round(history.seconds, 1), "trainable": trainable, "parameters": total,
        "adapter_bytes": size,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(__doc__, "restaurants.csv").parse_args(argv)
    settings = {"rank": 8, "alpha": 32, "dropout": 0.1, "steps": 250, "batch_size": 8, "learning_rate": 5e-3}
    rows = Rows(args.out)
    for seed in args.seeds:
        rows.run({"model": args.model, "seed": seed, **settings}, partial(run, seed, args.model, settings))


if __name__ == "__main__":
    main()

"""Chapter 0's training at several ranks and in full: what each writes, learns, forgets, takes in time and on disk.

    python experiments/rank/one_sitting.py [--steps 120] [--model gpt2-mini] [--out …/one_sitting.csv]

LoRA keeps the chapter's alpha and learning rate at every rank; rank 8 is run at three other rates, for chapter 5. Full
fine-tuning is run at three rates, and chapter 0 takes the best. `parts` says what is trained: the linear layers'
bypasses ("linear"), these and the token embedding ("linear + wte", at a rate of 1e-3), everything ("all"), or nothing
("none", the base).
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # common

import torch
from common import Row, Rows, arguments, save
from torch import nn

from lora_book.tasks import STORY, restaurant_data, score_texts, to_examples
from lora_lib import get_peft_model, load_pretrained
from lora_lib.data import encode_examples, pack
from lora_lib.gpt2 import generate_text
from lora_lib.training import evaluate, fit

SLOTS = ("name", "food", "area")
RATE, EMBEDDING_RATE, FULL_RATES = 5e-3, 1e-3, (3e-4, 1e-3, 3e-3)
RANKS, OTHER_RATES = (1, 4, 8, 16, 64), (2e-4, 1e-3, 2e-2)


def prepare(model: nn.Module, settings: Row) -> nn.Module:
    """`model` with what `settings["parts"]` names asking for gradients."""
    if settings["parts"] in ("none", "all"):
        return model.requires_grad_(settings["parts"] == "all")
    tuned = get_peft_model(model, "all-linear", settings["rank"], settings["alpha"]).enable_lora_training()
    if settings["parts"] == "linear + wte":
        model.wte.requires_grad_(True)
    return tuned


def run(model_name: str, settings: Row) -> Row:
    """One training on the chapter's restaurants, and its measures on restaurants that it has not seen."""
    data = restaurant_data(settings["seed"], slots=SLOTS)
    torch.manual_seed(settings["seed"])
    model, tokenizer = load_pretrained(model_name)
    train, held_out = (encode_examples(to_examples(part), tokenizer, 256) for part in (data.train, data.validation))
    tuned, began = prepare(model, settings), time.process_time()
    if settings["parts"] != "none":
        ratio = EMBEDDING_RATE / settings["learning_rate"] if settings["parts"] == "linear + wte" else 1
        fit(
            tuned, train, steps=settings["steps"], batch_size=settings["batch_size"],
            learning_rate=settings["learning_rate"], lr_ratio=lambda name: ratio if "wte" in name else 1,
        )  # fmt: skip
    seconds = time.process_time() - began
    texts = generate_text(tuned.eval(), tokenizer, [r.prompt for r in data.test], 40)
    scores = score_texts(texts, [r.meaning for r in data.test])
    with tempfile.TemporaryDirectory() as folder:
        size = save(tuned, tokenizer, Path(folder)) if settings["parts"] in ("linear", "all") else ""
    return {
        "loss": round(evaluate(tuned, held_out), 3),
        "story_loss": round(evaluate(tuned, pack([STORY], tokenizer, 256)), 3),
        "slots_right": round(scores.slot_accuracy, 3),
        "all_right": round(scores.all_right, 3),
        "trainable": sum(p.numel() for p in tuned.parameters() if p.requires_grad),
        "file_bytes": size,
        "train_cpu_seconds": round(seconds, 1),
        "text": " ".join(texts[0].split()),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "one_sitting.csv", seeds=(0,))
    parser.add_argument("--steps", type=int, default=120)
    args = parser.parse_args(argv)
    lora = [("linear", rank, RATE) for rank in RANKS]
    full = [("all", 0, rate) for rate in FULL_RATES]
    others = [("linear", 8, rate) for rate in OTHER_RATES]
    rows = Rows(args.out)
    for seed in args.seeds:
        for parts, rank, rate in [("none", 0, 0.0), *lora, ("linear + wte", 8, RATE), *full, *others]:
            settings = {
                "model": args.model, "parts": parts, "rank": rank, "alpha": 32, "learning_rate": rate,
                "steps": args.steps, "batch_size": 8, "seed": seed,
            }  # fmt: skip
            rows.run(settings, partial(run, args.model, settings))


if __name__ == "__main__":
    main()

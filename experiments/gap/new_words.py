"""When is the embedding worth training? A share of a task's words is replaced by tokens that the base hardly knows.

    python experiments/gap/new_words.py --prose FILE [--shares 0 0.1 0.3 1]

The task is the book's restaurants. Names and values are the content words; their tokens are exchanged for others, one
for one, until the share p of all their occurrences is new. Lengths, order and everything that there is to learn stay
the same; only what the base knows about the tokens changes. The new tokens are those that the base gives the least
probability on prose. LoRA of r = 8 trains the linear layers, with and without the tied embedding; full fine-tuning
trains both.

Rates are a factor of 1.8 apart and tuned on validation data and seed 0 at p = 0 and p = 1; between them the better of
those two rates is taken. The embedding's rate is 0.0032. Seeds 100 to 104 are reported, on test data. Several
processes can share the work, as in forgetting_map.py. Rows: lora_book/findings/results/new_words.csv.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).parents[1]))  # common
sys.path.append(str(Path(__file__).parents[1] / "forgetting"))

import torch
from common import Row, Rows, arguments, context, curve, device, fit, load_base, logits_of, prose
from forgetting_map import WTE_RATE, Claims, grid, key, tuned, work
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from which_parts import Parts

from lora_book.tasks import restaurant_data, to_examples
from lora_book.tasks.restaurants import FOLLOW_UPS, OPENINGS, PROXIMITY
from lora_lib import Tokenizer
from lora_lib.data import IGNORE, Encoded, batches, encode_examples
from lora_lib.training import History
from lora_lib.training.loop import PAD

SHARES = (0.0, 0.1, 0.3, 1.0)
SLOTS = ("name", "eatType", "food")  # short texts, of which names and values are 40 %
CONTENT = 200  # so many tokens of names and values can be exchanged: the most frequent ones
TUNING_SEED, REPORTED = 0, (100, 101, 102, 103, 104)
SETTINGS = (
    "model", "arm", "method", "parts", "rank", "alpha", "use_rslora", "learning_rate", "rest_rate", "steps",
    "batch_size", "seed", "split", "share",
)  # fmt: skip
MEASURES = ("new", "loss", "loss_new", "loss_known", "prose_loss", "trainable", "train_cpu_seconds", "curve")
START_SMOLLM2 = 0  # the step of the grid where tuning begins, for SmolLM2's LoRA
Losses = dict[tuple[str, ...], float]


class Arm(NamedTuple):
    """A method, what it trains, and the step of the grid of rates where tuning begins."""

    method: str
    parts: str
    rank: int
    start: int


ARMS = {
    "r = 8": Arm("lora", "linear", 8, 3),
    "r = 8, embedding": Arm("lora", "linear + wte", 8, 3),
    "full, embedding": Arm("full", "linear + wte", 0, 0),
}


# --- the words ------------------------------------------------------------------------------------


def content_tokens(train: Sequence[Encoded], tokenizer: Tokenizer) -> dict[int, int]:
    """How often the most frequent tokens of names and values occur in what is to be written.

    Tokens of the sentences around them do not count, nor do signs and digits.
    """
    frames = " ".join((*OPENINGS, *FOLLOW_UPS, *PROXIMITY, "The the and of by on in"))
    words = {word for word in frames.replace("{", " {").split() if "{" not in word}
    around = {
        i for word in words for text in (word.strip("[],.?"), " " + word.strip("[],.?")) for i in tokenizer.encode(text)
    }
    counts = Counter(int(t) for _, targets in train for t in targets if int(t) != IGNORE)
    found = {
        token: count
        for token, count in counts.most_common()
        if token not in around and tokenizer.decode([token]).strip().isalpha()
    }
    return dict(list(found.items())[:CONTENT])


def least_known(base: Any, examples: Sequence[Encoded], without: set[int], count: int) -> list[int]:
    """The tokens that `base` gives the least probability, on average over the positions of `examples`."""
    total = torch.zeros(base.config.vocab_size)
    with torch.no_grad():
        for ids, _ in batches(examples, 8, PAD, shuffle=False):
            total += logits_of(base, ids.to(device())).float().softmax(-1).sum((0, 1)).cpu()
    return [i for i in total.argsort().tolist() if i not in without][:count]


def exchange(content: dict[int, int], new: Sequence[int], share: float) -> dict[int, int]:
    """Which content token becomes which new one, so that `share` of all occurrences of content tokens is new.

    A token has the same partner at every share.
    """
    rng, total, done = random.Random(0), sum(content.values()), 0
    order, partners, found = list(content), list(new[: len(content)]), dict[int, int]()
    rng.shuffle(order)
    rng.shuffle(partners)
    for token, partner in zip(order, partners, strict=True):
        if abs(done + content[token] - share * total) > abs(done - share * total) and share < 1:
            continue  # a frequent token would overshoot
        found[token] = partner
        done += content[token]
    return found


def exchanged(examples: Sequence[Encoded], tokens: dict[int, int], size: int) -> list[Encoded]:
    """The examples with these tokens exchanged, in what is read and in what is to be written."""
    table = torch.arange(size)
    table[list(tokens)] = torch.tensor(list(tokens.values()), dtype=table.dtype)

    def of(ids: Tensor) -> Tensor:
        return torch.where(ids == IGNORE, ids, table[ids.clamp(min=0)])

    return [(of(ids), of(targets)) for ids, targets in examples]


# --- one run --------------------------------------------------------------------------------------


class NewWords(Parts):
    """The restaurants, for each share of new words."""

    base: nn.Module
    splits: dict[float, dict[str, list[Encoded]]]
    new: set[int]

    @classmethod
    def load(cls, args: argparse.Namespace) -> NewWords:
        base, tokenizer = load_base(args.model)
        base.to(device())
        data = restaurant_data(0, train=args.meanings, validation=100, test=100, slots=SLOTS)
        limits = {"train": None, "validation": args.tested, "test": args.tested}
        splits = {
            name: encode_examples(to_examples(getattr(data, name)), tokenizer, context(base))[:limit]
            for name, limit in limits.items()
        }
        task = cls(args, Rows(args.out), tokenizer, [], [], [], prose(args, base, tokenizer))
        task.base = base
        content = content_tokens(splits["train"], tokenizer)
        used = {int(i) for examples in splits.values() for ids, targets in examples for i in (*ids, *targets)}
        new = least_known(base, task.prose, used, len(content))
        task.new = set(new)
        task.splits = {}
        for share in args.shares:
            tokens = exchange(content, new, share)
            task.splits[share] = {
                name: exchanged(examples, tokens, base.config.vocab_size) for name, examples in splits.items()
            }
        return task

    def make(self, settings: Row) -> None:
        """Train, measure, and write the row down."""
        model: Any = copy.deepcopy(self.base)
        torch.manual_seed(settings["seed"])
        splits = self.splits[settings["share"]]
        start, history = time.process_time(), History()
        trained: nn.Module = model.requires_grad_(False)
        if settings["method"] != "base":
            trained = self.prepare(model, settings)
            history = self.train_on(splits["train"], trained, settings)
        seconds = time.process_time() - start
        self.rows.add(
            [
                {
                    **settings, **self.losses(trained, splits[settings["split"]]),
                    "prose_loss": self.loss_on(trained, self.prose[:8]) if settings["split"] == "test" else "",
                    "trainable": sum(p.numel() for p in trained.parameters() if p.requires_grad),
                    "train_cpu_seconds": round(seconds, 1), "curve": curve(history.loss, every=10),
                }
            ]
        )  # fmt: skip

    def train_on(self, examples: Sequence[Encoded], model: nn.Module, settings: Row) -> History:
        try:
            return fit(
                model, examples, steps=settings["steps"], batch_size=settings["batch_size"],
                learning_rate=settings["learning_rate"], lr_ratio=self.lr_ratio(settings), seed=settings["seed"],
                progress=False,
            )  # fmt: skip
        except FloatingPointError:  # it diverged: a result, too
            return History(loss=[math.inf])

    @torch.no_grad()
    def losses(self, model: nn.Module, examples: Sequence[Encoded]) -> Row:
        """The share of new tokens among those to be written, and the loss on all, on the new and on the others."""
        model.eval()
        found = list[tuple[Tensor, Tensor]]()
        for ids, targets in batches(examples, 8, PAD, shuffle=False):
            with torch.autocast(device(), torch.bfloat16):
                logits = logits_of(model, ids.to(device())).float().cpu()
            wanted = targets != IGNORE
            found.append((cross_entropy(logits[wanted], targets[wanted], reduction="none"), targets[wanted]))
        losses, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
        new = torch.isin(targets, torch.tensor(sorted(self.new)))
        return {
            "new": round(float(new.float().mean()), 4),
            "loss": round(float(losses.mean()), 4),
            "loss_new": round(float(losses[new].mean()), 4) if new.any() else "",
            "loss_known": round(float(losses[~new].mean()), 4),
        }


# --- all runs -------------------------------------------------------------------------------------


def settings_of(name: str, step: int, seed: int, share: float, args: argparse.Namespace) -> Row:
    """A run's settings, the first columns of its row."""
    arm, rate = ARMS[name], grid(step)
    return {
        "model": args.model, "arm": name, "method": arm.method, "parts": arm.parts, "rank": arm.rank, "alpha": 32,
        "use_rslora": False, "learning_rate": rate, "rest_rate": rate if arm.parts == "linear" else args.wte_rate,
        "steps": args.steps, "batch_size": args.batch_size, "seed": seed,
        "split": "validation" if seed == TUNING_SEED else "test", "share": share,
    }  # fmt: skip


def base_settings(share: float, args: argparse.Namespace) -> Row:
    """The base on the test data of this share."""
    nothing = {"arm": "base", "method": "base", "parts": "none", "learning_rate": 0.0, "rest_rate": 0.0, "steps": 0}
    return settings_of("full, embedding", 0, REPORTED[0], share, args) | nothing


def plan(losses: Losses, args: argparse.Namespace) -> Iterator[Row]:
    """Every run that is known to be needed, in order: the base, tuning at the ends, and then seed by seed."""

    def loss(settings: Row) -> float | None:
        return losses.get(key(settings, SETTINGS))

    shares = sorted(args.shares)
    yield from (base_settings(share, args) for share in shares)
    best = dict[tuple[str, float], int | None]()
    for share in (shares[0], shares[-1]):
        for name in args.arms:

            def at(step: int, name: str = name, share: float = share) -> float | None:
                return loss(settings_of(name, step, TUNING_SEED, share, args))

            best[name, share], missing = tuned(START_SMOLLM2 if args.model == "smollm2" else ARMS[name].start, at)
            yield from (settings_of(name, step, TUNING_SEED, share, args) for step in missing)
    for name in args.arms:
        low, high = best[name, shares[0]], best[name, shares[-1]]
        for share in shares[1:-1] if low is not None and high is not None else ():
            tried = {step: settings_of(name, step, TUNING_SEED, share, args) for step in (low, high)}
            found = {step: loss(settings) for step, settings in tried.items()}
            if low != high:
                yield from tried.values()
            if low == high or None not in found.values():
                best[name, share] = min(found, key=lambda step: found[step] or math.inf)
    for seed in REPORTED:
        for share in (shares[0], shares[-1], *shares[1:-1]):
            for name in args.arms:
                step = best.get((name, share))
                if step is not None:
                    yield settings_of(name, step, seed, share, args)


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "new_words.csv")
    parser.add_argument("--prose", type=Path, required=True, help="a text file like the base's training data")
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES), help="of new words, two at least")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--wte-rate", type=float, default=WTE_RATE, help="the embedding's learning rate")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--meanings", type=int, default=600, help="so many restaurants to learn from")
    parser.add_argument("--tested", type=int, default=100, help="so many texts for a loss")
    parser.add_argument("--claims", type=Path, default=Path("runs/new_words"), help="where processes say what they do")
    args = parser.parse_args(argv)
    work(NewWords.load(args), lambda losses: plan(losses, args), Claims(args.claims, SETTINGS))


if __name__ == "__main__":
    main()

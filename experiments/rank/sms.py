"""Spam or not: LoRA, full fine-tuning, the last block alone, the head alone, and word counts, ten seeds each.

    LORA_DATA_DIR=... python experiments/rank/sms.py [--seeds 0 1 2] [--model gpt2-mini]

The splits have the sizes of the well-known chapter's (`balanced_splits`: 1,045 / 149 / 300, as many ham as spam).
A head of two logits reads the hidden state of a message's last token. A seed draws the split, the start and the order.
Every method trains for 120 steps of 8 messages cut to --max-length tokens, at the learning rate with the fewest errors
on one more split (seed 100, validation and test messages, a grid of factor 3): the loss on 149 messages alone is too
noisy to choose by. LoRA: alpha = 16, all linear layers, and the head; r = 16, and other ranks beside it. TF-IDF with
logistic regression reads whole messages, or ("tf-idf, cut") the tokens that the model reads; its C is chosen on
the validation set.
Rows: lora_book/findings/results/sms.csv.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # common

import torch
from common import Row, Rows, accuracy, arguments, device, evaluate, fit, tune
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch import nn

from lora_book.tasks import Message, balanced_splits, load_sms_spam
from lora_lib import GPT2Model, Tokenizer, get_peft_model, load_pretrained
from lora_lib.data import IGNORE, Encoded, Splits

LABELS = ("ham", "spam")
# Where the search for a learning rate begins, as a step of common.rate.
METHODS = {"lora": 0, "full": -1, "last block": 0, "head": 2}
WORD_COUNTS = ("tf-idf", "tf-idf, cut")
TUNING_SEED = 100
RANK, ALPHA = 16, 16  # of LoRA, where no other rank is asked for


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "sms.csv", seeds=range(10))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=40, help="the rest of a longer message is not read")
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 4, 64], help=f"beside {RANK}")
    args = parser.parse_args(argv)
    task = Spam(args, load_sms_spam())
    kinds = [(method, RANK if method == "lora" else 0) for method in METHODS] + [("lora", r) for r in args.ranks]
    rates = {kind: task.tune(*kind) for kind in kinds}
    for seed in args.seeds:
        for method in WORD_COUNTS:
            task.run(method, 0, 0.0, seed)
        for kind in kinds:
            task.run(*kind, rates[kind], seed)


class Spam:
    def __init__(self, args: argparse.Namespace, messages: Sequence[Message]) -> None:
        self.args, self.messages, self.rows = args, messages, Rows(args.out)

    def tune(self, method: str, rank: int) -> float:
        """The rate with the fewest errors on the tuning split, whose test messages nobody else reads as a test."""

        def errors(rate: float) -> float:
            row = self.run(method, rank, rate, TUNING_SEED)
            return 1 - (float(row["validation_accuracy"]) + 2 * float(row["test_accuracy"])) / 3  # 149 and 300 messages

        return tune(errors, METHODS[method])

    def run(self, method: str, rank: int, learning_rate: float, seed: int) -> Row:
        args, words = self.args, method in WORD_COUNTS
        settings = {
            "model": "" if words else args.model, "method": method, "rank": rank,
            "alpha": ALPHA if rank else 0, "learning_rate": learning_rate, "steps": 0 if words else args.steps,
            "batch_size": args.batch_size, "max_length": args.max_length, "seed": seed,
        }  # fmt: skip
        splits = balanced_splits(self.messages, seed)
        return self.rows.run(settings, lambda: (self.word_counts if words else self.measure)(settings, splits))

    def measure(self, settings: Row, splits: Splits[Message]) -> Row:
        model, tokenizer = load_pretrained(settings["model"])
        train, validation, test = (
            encode(part, tokenizer, settings["max_length"]) for part in (splits.train, splits.validation, splits.test)
        )
        torch.manual_seed(settings["seed"])
        classifier = prepare(model, settings["method"], settings["rank"]).to(device())
        history = fit(
            classifier, train, steps=settings["steps"], batch_size=settings["batch_size"],
            learning_rate=settings["learning_rate"], seed=settings["seed"], progress=False,
        )  # fmt: skip
        return {
            "validation_loss": round(evaluate(classifier, validation), 4),
            "validation_accuracy": round(accuracy(classifier, validation), 4),
            "test_accuracy": round(accuracy(classifier, test), 4),
            "trainable": sum(p.numel() for p in classifier.parameters() if p.requires_grad),
            "train_seconds": round(history.seconds, 1),
        }

    def word_counts(self, settings: Row, splits: Splits[Message]) -> Row:
        """TF-IDF and logistic regression, as one does it with scikit-learn."""
        texts, labels = zip(*(([m.text for m in part], [m.label for m in part]) for part in vars(splits).values()))
        if settings["method"] == "tf-idf, cut":
            _, tokenizer = load_pretrained(self.args.model)
            cut = settings["max_length"]
            texts = tuple([tokenizer.decode(tokenizer.encode(text)[:cut]) for text in part] for part in texts)
        vectorizer = TfidfVectorizer()
        train, validation, test = (vectorizer.fit_transform(texts[0]), *map(vectorizer.transform, texts[1:]))
        fitted = [LogisticRegression(C=C, max_iter=1000).fit(train, labels[0]) for C in (1, 10, 100)]
        best = max(fitted, key=lambda model: model.score(validation, labels[1]))
        return {
            "validation_loss": "", "validation_accuracy": round(best.score(validation, labels[1]), 4),
            "test_accuracy": round(best.score(test, labels[2]), 4), "trainable": best.coef_.size + 1,
            "train_seconds": "",
        }  # fmt: skip


def prepare(model: GPT2Model, method: str, rank: int) -> nn.Module:
    """The model with two logits in the place of the vocabulary's, and what `method` trains left trainable."""
    model.out_head = nn.Linear(model.config.n_embd, len(LABELS))
    if method == "lora":
        wrapped = get_peft_model(model, "all-linear", rank, ALPHA).enable_lora_training()
        model.out_head.requires_grad_(True)
        return wrapped
    if method != "full":
        model.requires_grad_(False)
        parts = [model.out_head] if method == "head" else [model.h[-1], model.ln_f, model.out_head]
        for part in parts:
            part.requires_grad_(True)
    return model


def encode(messages: Sequence[Message], tokenizer: Tokenizer, max_length: int) -> list[Encoded]:
    """Ids of each message; the last one's target is the label, the others have none."""
    encoded = []
    for message in messages:
        ids = torch.tensor(tokenizer.encode(message.text)[:max_length])
        targets = torch.full_like(ids, IGNORE)
        targets[-1] = LABELS.index(message.label)
        encoded.append((ids, targets))
    return encoded


if __name__ == "__main__":
    main()

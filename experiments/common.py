"""What the experiments share: rows that survive an interruption, and one training run on E2E, measured.

A script asks `Rows.run` for one row after the other. A row is written as soon as its run is done, and a run whose
row is in the file already (same settings) is not done again: a script that was stopped goes on where it was.
Several scripts write to `e2e.csv`, so a run that two questions need is done once.
"""

from __future__ import annotations

import argparse
import csv
import functools
import io
import math
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import sacrebleu
import torch
from torch import Tensor, nn

from lora_book.findings import FOLDER as RESULTS
from lora_book.measure import text_windows
from lora_book.tasks import Restaurant, load_e2e, to_examples
from lora_lib import (
    GPT2Model,
    PeftModel,
    Tokenizer,
    find_targets,
    get_peft_model,
    load_pretrained,
    save_pretrained_folder,
)
from lora_lib.adapters import lora_plus
from lora_lib.data import IGNORE, Encoded, batches, encode_examples
from lora_lib.gpt2 import generate_text
from lora_lib.run import load_any
from lora_lib.training import History
from lora_lib.training import loop as training
from lora_lib.training.loop import PAD

LINEAR = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
LINEAR_SMOLLM2 = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TARGETS: dict[str, Sequence[str] | str] = {
    "all": "all-linear", "attention": LINEAR[:2], "mlp": LINEAR[2:], "head": ["out_head"],
}  # fmt: skip
SLOTS = ("name", "eatType", "food", "priceRange", "area")  # of chapter 5's restaurants
Row = dict[str, Any]
# The kept rows were made in bfloat16 autocast, on processors that have it; so are new ones, wherever they are made.
fit = functools.partial(training.fit, bf16=True)
evaluate = functools.partial(training.evaluate, bf16=True)


# --- rows -----------------------------------------------------------------------------------------


class Rows:
    """A CSV of runs: `run` returns the row with these settings, and makes it if the file lacks it."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, list[Row]()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.read()

    def read(self) -> None:
        """The file's rows as they are now: another process may have added some."""
        if self.path.exists():
            with self.path.open(newline="", encoding="utf8") as file:
                self.rows = list(csv.DictReader(file))

    def run(self, settings: Row, measure: Callable[[], Row]) -> Row:
        """The row of `settings`: from the file, or what `measure` finds, written down at once."""
        self.read()
        for row in self.rows:
            if all(row[name] == str(value) for name, value in settings.items()):
                return row
        (row,) = self.add([{**settings, **measure()}])
        print(", ".join(f"{name} {value}" for name, value in row.items() if len(value) < 20), flush=True)
        return row

    def add(self, rows: Sequence[Row]) -> list[Row]:
        """Write these rows down, with the machine that made them; returns them as the file has them."""
        rows = [{**row, **environment()} for row in rows]
        self.read()
        if self.rows and list(rows[0]) != list(self.rows[0]):
            raise ValueError(
                f"{self.path} has columns {list(self.rows[0])}, this run {list(rows[0])}: use another --out"
            )
        lines = io.StringIO(newline="")
        writer = csv.DictWriter(lines, rows[0])
        if not self.rows:
            writer.writeheader()
        writer.writerows(rows)
        with self.path.open("a", newline="", encoding="utf8") as file:
            file.write(lines.getvalue())  # in one piece, so that two processes may write to one file
        added = [{name: str(value) for name, value in row.items()} for row in rows]
        self.rows += added
        return added


def environment() -> Row:
    """Versions and machine, the last columns of every row."""
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {"torch": torch.__version__, "machine": f"{machine}, {torch.get_num_threads()} threads"}


def arguments(doc: str | None, out: str, seeds: Sequence[int] = (0, 1, 2)) -> argparse.ArgumentParser:
    """The options that every script has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt2-mini", help="a model's name, smollm2 among them, or its folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--out", type=Path, default=RESULTS / out)
    return parser


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


# --- gpt2-mini or SmolLM2 -------------------------------------------------------------------------


def load_base(name: str) -> tuple[Any, Any]:
    """The model and the tokenizer that `--model` names: as `lora_lib.run.load_any` knows it."""
    model, tokenizer = load_any(name)
    if name == "smollm2":
        tokenizer.eot_token = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    return model, tokenizer


def context(model: Any) -> int:
    """How many tokens the model can read."""
    length: int = getattr(model.config, "n_positions", None) or model.config.max_position_embeddings
    return length


def embedding(model: Any) -> nn.Embedding:
    """The token embedding, which both models tie to the output head."""
    found: nn.Embedding = model.wte if hasattr(model, "wte") else model.get_input_embeddings()
    return found


def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    """(B, T, V), from our model or from one of Hugging Face's."""
    found = model(ids)
    logits: Tensor = getattr(found, "logits", found)
    return logits


@torch.no_grad()
def accuracy(model: nn.Module, examples: Sequence[Encoded]) -> float:
    """The share of targets that are the likeliest; targets of -100 do not count."""
    model.eval()
    where, right, count = next(model.parameters()).device, 0, 0
    for ids, targets in batches(examples, 64, PAD, shuffle=False):
        right += int((model(ids.to(where)).argmax(-1).cpu() == targets).sum())  # no token is called -100
        count += int((targets != IGNORE).sum())
    return right / count


# --- one run on E2E -------------------------------------------------------------------------------


def e2e_arguments(doc: str | None, seeds: Sequence[int] = (0, 1, 2)) -> argparse.ArgumentParser:
    """`arguments`, and what a run on E2E can be told."""
    parser = arguments(doc, "e2e.csv", seeds)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=64, help="longer examples are left out")
    parser.add_argument("--references", type=int, default=150, help="so many for the validation loss")
    parser.add_argument("--meanings", type=int, default=40, help="so many for BLEU and the values told")
    parser.add_argument("--new-tokens", type=int, default=48, help="of a text that is written for BLEU")
    parser.add_argument("--prose", type=Path, help="a text file; the loss on it tells what was forgotten")
    parser.add_argument("--keep", type=Path, default=Path("runs/e2e"), help="where trained weights go")
    return parser


@dataclass
class E2E:
    """The task, loaded once: runs on it go to `rows`, trained weights to `keep`."""

    args: argparse.Namespace
    rows: Rows
    tokenizer: Tokenizer
    train: list[Encoded]
    validation: list[Encoded]
    meanings: list[Restaurant]
    prose: list[Encoded]

    @classmethod
    def load(cls, args: argparse.Namespace) -> E2E:
        """Examples up to max_length tokens: all of the training set, some of the validation set and its meanings."""
        model, tokenizer = load_base(args.model)
        data, rng = load_e2e(), random.Random(0)
        sets = []
        for part in (data.train, data.validation):
            encoded = encode_examples(to_examples(part), tokenizer, context(model))
            sets.append([e for e in encoded if len(e[0]) <= args.max_length])
        validation = rng.sample(sets[1], min(args.references, len(sets[1])))
        meanings = rng.sample(data.validation, min(args.meanings, len(data.validation)))
        return cls(args, Rows(args.out), tokenizer, sets[0], validation, meanings, prose(args, model, tokenizer))

    def run(
        self, method: str, learning_rate: float, seed: int, *, rank: int = 0, alpha: float = 32,
        targets: str = "all", use_rslora: bool = False, init: str = "default", lora_plus: float = 1,
    ) -> Row:  # fmt: skip
        """One row: train with `method` "lora", "full" (rank 0) or "base" (not at all), measure, keep the weights."""
        settings = {
            "model": self.args.model, "method": method, "targets": targets, "rank": rank, "alpha": alpha,
            "use_rslora": use_rslora, "init": init, "lora_plus": lora_plus, "learning_rate": learning_rate,
            "steps": self.args.steps, "batch_size": self.args.batch_size, "max_length": self.args.max_length,
            "seed": seed,
        }  # fmt: skip
        return self.rows.run(settings, lambda: self.measure(settings))

    def loss(self, method: str, learning_rate: float, seed: int, **settings: Any) -> float:
        """`run`'s validation loss, as `validation_loss` has it."""
        return validation_loss(self.run(method, learning_rate, seed, **settings))

    def measure(self, settings: Row) -> Row:
        model, _ = load_pretrained(self.args.model)
        model.to(device())
        torch.manual_seed(settings["seed"])
        trained = self.prepare(model, settings)
        trainable = sum(p.numel() for p in trained.parameters() if p.requires_grad)
        start = time.process_time()
        history = History() if settings["method"] == "base" else self.train_model(trained, settings)
        cpu_seconds = time.process_time() - start  # what a run costs; on a busy machine the clock tells more than that
        return {
            **self.quality(trained),
            "trainable": trainable,
            "file_bytes": self.save(trained, settings),
            "train_seconds": round(history.seconds, 1),
            "train_cpu_seconds": round(cpu_seconds, 1),
            "train_tokens": history.tokens,
            "curve": curve(history.loss, every=10),
        }

    def prepare(self, model: GPT2Model, settings: Row) -> nn.Module:
        return prepare(model, settings)

    def lr_ratio(self, settings: Row) -> Callable[[str], float] | None:
        """What `fit` is to multiply the learning rate of a parameter by."""
        return lora_plus(settings["lora_plus"]) if settings["lora_plus"] != 1 else None

    def save(self, model: nn.Module, settings: Row) -> int:
        return save(model, self.tokenizer, self.args.keep / slug(settings))

    def train_model(self, model: nn.Module, settings: Row) -> History:
        try:
            return fit(
                model, self.train, steps=settings["steps"], batch_size=settings["batch_size"],
                learning_rate=settings["learning_rate"], lr_ratio=self.lr_ratio(settings),
                seed=settings["seed"], progress=False,
            )  # fmt: skip
        except FloatingPointError:  # it diverged: a result, too
            return History(loss=[math.inf])

    def quality(self, model: nn.Module) -> Row:
        """Validation loss, BLEU, share of values told letter for letter, loss on prose."""
        texts = generate_text(model, self.tokenizer, [r.prompt for r in self.meanings], self.args.new_tokens)
        most = max(len(r.references) for r in self.meanings)
        references = [[r.references[i] if i < len(r.references) else None for r in self.meanings] for i in range(most)]
        return {
            "validation_loss": self.loss_on(model, self.validation),
            "bleu": round(sacrebleu.corpus_bleu(texts, references).score, 2),
            "values_told": round(values_told(texts, self.meanings), 4),
            "prose_loss": self.loss_on(model, self.prose),
        }

    @staticmethod
    def loss_on(model: nn.Module, examples: Sequence[Encoded]) -> float | str:
        """Nats a token; nothing where there is no example."""
        return round(evaluate(model, examples, batch_size=8), 4) if examples else ""


def prose(args: argparse.Namespace, model: nn.Module, tokenizer: Tokenizer) -> list[Encoded]:
    """Sixteen windows of the text that `--prose` names."""
    if not args.prose:
        return []
    return text_windows(args.prose.read_text(encoding="utf8"), tokenizer, min(256, context(model)), count=16)


def prepare(model: GPT2Model, settings: Row) -> nn.Module:
    """The model as `settings` say: with LoRA; "full", all of it trainable (targets "all") or the matrices that LoRA
    would adapt and nothing else (targets "matrices"); or "base", as it is.
    """
    if settings["method"] == "base":
        return model.requires_grad_(False)
    if settings["method"] == "full":
        model.requires_grad_(settings["targets"] == "all")
        for name in find_targets(model, "all-linear"):
            cast(nn.Linear, model.get_submodule(name)).weight.requires_grad_(True)
        return model
    start = True if settings["init"] == "default" else settings["init"]
    return get_peft_model(
        model, TARGETS[settings["targets"]], settings["rank"], settings["alpha"], use_rslora=settings["use_rslora"],
        init_lora_weights=start,
    ).enable_lora_training()  # fmt: skip


def values_told(texts: Sequence[str], meanings: Sequence[Restaurant]) -> float:
    """The share of names, neighbours, kinds of place and cuisines that stand in the texts as they are in the meaning.

    Crowd workers word prices, ratings and places freely, so those cannot be read off E2E's texts without error.
    """
    slots = ("name", "near", "eatType", "food")
    told = [r.meaning[s].lower() in text.lower() for text, r in zip(texts, meanings) for s in slots if s in r.meaning]
    return sum(told) / len(told)


def curve(loss: Sequence[float], every: int) -> str:
    """Means of so many losses in a row, written with spaces. No example comes twice, so they are of unseen data."""
    means = (sum(loss[i : i + every]) / len(loss[i : i + every]) for i in range(0, len(loss), every))
    return " ".join(f"{mean:.3f}" for mean in means)


def slug(settings: Row) -> str:
    """A name for a run's folder, from its settings or from its row."""
    names = (
        "method", "targets", "rank", "alpha", "use_rslora", "init", "lora_plus", "learning_rate", "steps", "batch_size",
        "max_length", "seed",
    )  # fmt: skip
    return "-".join([Path(settings["model"]).name, *(str(settings[name]) for name in names)])


def save(model: nn.Module, tokenizer: Tokenizer, folder: Path) -> int:
    """Write the adapter, or the whole model; returns the size of the weights in bytes."""
    if isinstance(model, PeftModel):
        model.save_pretrained(folder)
    else:
        save_pretrained_folder(model, tokenizer, folder)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


# --- learning rates -------------------------------------------------------------------------------


def rate(step: int) -> float:
    """Learning rates a factor of about 3 apart: rate(0) = 0.001, rate(1) = 0.003, rate(-1) = 0.0003."""
    return float(f"{(1, 3)[step % 2]}e{step // 2 - 3}")


def validation_loss(row: Row) -> float:
    """What tuning compares: a row's validation loss, infinite where it is not a number or training stopped."""
    loss = float(row["validation_loss"])
    return loss if math.isfinite(loss) else math.inf


def tune(loss_at: Callable[[float], float], start: int) -> float:
    """The best rate(step): from `start` on, downhill, until both neighbours are worse."""
    loss, best = functools.cache(lambda step: loss_at(rate(step))), start
    while (better := min((best - 1, best, best + 1), key=loss)) != best:
        best = better
    return rate(best)


def step_of(learning_rate: float) -> int:
    """The step that `rate` makes this learning rate of."""
    return next(step for step in range(-12, 12) if rate(step) == learning_rate)


def neighbours(best: float) -> tuple[float, float]:
    """The rates of the grid below and above this one."""
    return rate(step_of(best) - 1), rate(step_of(best) + 1)


def tuned_runs(task: E2E, seeds: Sequence[int], start: int, **settings: Any) -> None:
    """Tune the learning rate on the first seed; run the best on the others, and then its two neighbours."""
    first, *others = seeds
    best = tune(lambda rate: task.loss(learning_rate=rate, seed=first, **settings), start)
    for rate in (best, *neighbours(best)):
        for seed in others:
            task.run(learning_rate=rate, seed=seed, **settings)


def sweep_ranks(task: E2E, ranks: Sequence[int], seeds: Sequence[int]) -> None:
    """`tuned_runs` of LoRA at each rank, and of full fine-tuning for rank 0."""
    for rank in ranks:
        if rank:
            tuned_runs(task, seeds, start=1, method="lora", rank=rank)
        else:
            tuned_runs(task, seeds, start=0, method="full")

"""What has full fine-tuning that LoRA has not: the rank of its changes, or the parts that LoRA leaves frozen?

    LORA_DATA_DIR=... python experiments/gap/which_parts.py --prose FILE [--seeds 0 1 2] [--model gpt2-mini]

Full fine-tuning and LoRA (r = 8 and 64) on equal parts of the model: the linear layers alone; these and the tied
embedding; everything. Besides, the embedding alone, and LoRA at r = 64 with rsLoRA's scale. What is not a linear
layer has a learning rate of its own, `rest_rate`, with every method. Rates are tuned on the first seed, then the best
runs on the others; for the forgetting at equal loss its neighbours run on all seeds, too.

All of E2E is used: 128 tokens hold 42,036 of its 42,061 training references and all but 11 of the 4,672 of its
development set. The loss is that of 300 of these, BLEU and the values told are those of 200 meanings.
Rows: lora_book/findings/results/parts.csv. The weights of LoRA and full fine-tuning on linear layers go to
runs/parts, for directions.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

sys.path.append(str(Path(__file__).parents[1]))  # common

from common import (
    E2E,
    LINEAR,
    LINEAR_SMOLLM2,
    RESULTS,
    Row,
    e2e_arguments,
    embedding,
    neighbours,
    rate,
    save,
    step_of,
    tune,
    validation_loss,
)
from torch import nn

from lora_book.findings.runs import RSLORA, PartsRun
from lora_lib import GPT2Model, find_targets, get_peft_model


class Cell(NamedTuple):
    """What is compared: a method, and the parts of the model it trains."""

    method: str
    parts: str  # "linear", "linear + wte", "all", "wte"
    rank: int = 0
    alpha: float = 32
    use_rslora: bool = False

    @property
    def mixed(self) -> bool:
        """Whether it trains linear layers and other parts, which may want another learning rate."""
        return self.parts not in ("linear", "wte")


CELLS = {
    "lora 8": Cell("lora", "linear", 8),
    "lora 64": Cell("lora", "linear", 64),
    "full, all": Cell("full", "all"),
    "full": Cell("full", "linear"),
    "lora 64, wte": Cell("lora", "linear + wte", 64),
    "full, wte": Cell("full", "linear + wte"),
    "lora 8, wte": Cell("lora", "linear + wte", 8),
    "wte": Cell("full", "wte"),
    "rslora 64": Cell("lora", "linear", 64, RSLORA, True),
    "lora 64, all": Cell("lora", "all", 64),
    "lora 8, all": Cell("lora", "all", 8),
    "rslora 64, wte": Cell("lora", "linear + wte", 64, RSLORA, True),
    "lora 1": Cell("lora", "linear", 1),
}


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(__doc__).parse_args(argv)
    task = Parts.load(args)
    task.run(Cell("base", "none"), 0.0, 0)
    chosen = {name: CELLS[name] for name in args.cells}
    best = {name: task.tune(cell) for name, cell in chosen.items()}
    for seed in args.seeds[1:]:
        for name, cell in chosen.items():
            task.run(cell, best[name][0], seed, best[name][1])
    for name in args.neighbours:
        for near in neighbours(best[name][0]):
            for seed in args.seeds[1:]:
                task.run(CELLS[name], near, seed, best[name][1])


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """`e2e_arguments`, with the defaults of all rows in parts.csv."""
    parser = e2e_arguments(doc)
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--neighbours", nargs="*", default=["full", "lora 64", "full, all"], choices=list(CELLS))
    parser.set_defaults(
        out=RESULTS / "parts.csv", keep=Path("runs/parts"), max_length=128, references=300, meanings=200, new_tokens=64
    )
    return parser


class Parts(E2E):
    """Runs on E2E that tell which parts of the model are trained."""

    def run(self, cell: Cell, learning_rate: float, seed: int, rest_rate: float | None = None) -> Row:  # type: ignore[override]
        """One row; without a `rest_rate` all has the one learning rate."""
        settings = PartsRun(
            self.args.model, *cell, learning_rate, learning_rate if rest_rate is None else rest_rate,
            self.args.steps, self.args.batch_size, self.args.max_length, seed,
        ).row()  # fmt: skip
        return self.rows.run(settings, lambda: self.measure(settings))

    def tune(self, cell: Cell) -> tuple[float, float | None]:
        """The best learning rate on the first seed, and the best for the rest beside the linear layers: by turns."""
        seed, start = self.args.seeds[0], 1 if cell.method == "lora" else 0

        def loss(rate: float, rest: float | None = None) -> float:
            return validation_loss(self.run(cell, rate, seed, rest))

        if not cell.mixed:
            return tune(loss, start), None
        best = rest = rate(start)
        while True:
            best = tune(lambda of_linear: loss(of_linear, rest), step_of(best))  # noqa: B023
            found = tune(lambda of_rest: loss(best, of_rest), step_of(rest))  # noqa: B023
            if found == rest:
                return best, rest
            rest = found

    def prepare(self, model: GPT2Model, settings: Row) -> nn.Module:
        """The model with what `settings["parts"]` names asking for gradients."""
        parts, trained = settings["parts"], cast(nn.Module, model)
        model.requires_grad_(settings["method"] == "full" and parts == "all")
        if settings["method"] == "lora":
            rest = {name for name, _ in model.named_parameters()}
            linear = {f"{name}.weight" for name in find_targets(model, "all-linear")}
            keep = [p for name, p in model.named_parameters() if name in rest - linear]
            trained = get_peft_model(
                model, "all-linear", settings["rank"], settings["alpha"], use_rslora=settings["use_rslora"]
            ).enable_lora_training()
            for p in keep if parts == "all" else []:
                p.requires_grad_(True)
        elif "linear" in parts:
            for name in find_targets(model, "all-linear"):
                cast(nn.Linear, model.get_submodule(name)).weight.requires_grad_(True)
        if "wte" in parts:
            embedding(model).requires_grad_(True)
        return trained

    def lr_ratio(self, settings: Row) -> Callable[[str], float] | None:
        if settings["rest_rate"] == settings["learning_rate"]:
            return None
        ratio = settings["rest_rate"] / settings["learning_rate"]
        linear = tuple(f"{name}.weight" for name in LINEAR + LINEAR_SMOLLM2)
        return lambda name: 1 if name.endswith((".A", ".B", *linear)) else ratio

    def save(self, model: nn.Module, settings: Row) -> int:
        if settings["parts"] != "linear" or settings["seed"] > 5:
            return 0
        return save(model, self.tokenizer, self.args.keep / folder(settings))


def folder(settings: Row) -> str:
    """A name for a run's weights, from its settings or its row."""
    names: Any = ("method", "rank", "alpha", "use_rslora", "learning_rate", "steps", "seed")
    return "-".join(str(settings[name]) for name in names)


if __name__ == "__main__":
    main()

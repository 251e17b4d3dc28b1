"""Chapter 0's kept runs, made by `experiments/rank/one_sitting.py`, and its blank cell."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lora_book.findings.stats import Row, load_results, select


def kept_runs() -> dict[str, Row]:
    """The runs by name: the base, LoRA by rank, LoRA with the embedding trained too, and full at its best rate."""
    rows = load_results("one_sitting")
    runs = {"base": select(rows, parts="none")[0]}
    runs |= {f"r = {row['rank']}": row for row in select(rows, parts="linear", learning_rate=0.005)}
    runs |= {f"r = {row['rank']} + embedding": row for row in select(rows, parts="linear + wte")}
    return runs | {"full": min(select(rows, parts="all"), key=lambda row: row["loss"])}


def describe(run: Row) -> tuple[str, str]:
    """What a run writes, and a line with its loss and its size: a knob's picture and its read-out."""
    trained = f"{run['trainable']:,} numbers trained" if run["trainable"] else "nothing is trained"
    return run["text"], f"loss {run['loss']:.2f}, {run['slots_right']:.0%} of the facts right; {trained}"


def compare(runs: dict[str, Row]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a table of the runs: their loss, facts, and what the training cost the base."""
    rows = [
        [name, f"{run['loss']:.2f}", f"{1 - run['slots_right']:.0%}", f"{run['story_loss']:.2f}"]
        for name, run in runs.items()
    ]
    return ["", "loss", "facts wrong", "loss on a story"], rows


def judge(forward: Callable[[Any, Tensor], Any]) -> str:
    """What a reader's `forward(self, x)` of a LoRA layer computes, in a line: that it is right, or what is wrong.

    It is called on a layer of 3 inputs, 2 outputs and rank 1, whose numbers no two terms share.
    """
    W, A, B, s = torch.tensor([[1.0, 0], [0, 2], [3, 1]]), torch.tensor([[1.0], [2], [5]]), torch.tensor([[7.0, 3]]), 4
    x = torch.tensor([[1.0, 2, 3]])
    layer = SimpleNamespace(base=lambda x: x @ W, A=A, B=B, s=s)
    try:
        y = forward(layer, x)
    except Exception as error:  # whatever a first attempt raises
        return f"✗ it raises {type(error).__name__}: {error}"
    if y is ...:
        return "○ nothing is written yet: put the formula in the place of the three dots"
    if y is None:
        return "✗ forward returns nothing: its last line begins with `return`"
    if not isinstance(y, Tensor):
        return f"✗ forward returns a {type(y).__name__}, not a tensor"
    if y.shape != (1, 2):
        return f"✗ for 3 inputs and 2 outputs it returns the shape {tuple(y.shape)}, not (1, 2)"
    plain, path = x @ W, x @ A @ B
    mistakes = {
        "the second path is missing: this is the base alone": plain,
        "the base is missing: add self.base(x)": s * path,
        "the second path is there, but not its strength: multiply it by self.s": plain + path,
        "self.s multiplies the base, too: only the second path has it": s * (plain + path),
        "the second path is subtracted: add it": plain - s * path,
    }
    if torch.allclose(y, plain + s * path):
        return "✓ this is LoRA's forward"
    found = (mistake for mistake, wrong in mistakes.items() if torch.allclose(y, wrong))
    return "✗ " + next(found, "it returns other numbers than x·W + s·(x·A)·B")

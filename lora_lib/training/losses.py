"""The loss of any model on a batch."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from lora_lib.gpt2.loss import IGNORE, cross_entropy_sum
from lora_lib.layers.hooks import runs_only_forward
from lora_lib.peft_wrapper import PeftModel


def loss_sum(model: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy summed over the targets: ids and targets (B, T), targets -100 where nothing is learned.

    A model whose class has a method `loss_sum(ids, targets)` computes its own loss, as our GPT-2 does, with adapters or
    without. Any other model is called, and returns logits (B, T, V), an output with `.logits` as Hugging Face's models
    do, or a tuple that begins with the logits. A model that takes `logits_to_keep`, as Hugging Face's do, computes
    logits only at positions where a row of the batch has a target, so a long prompt costs none.

    Raises ValueError if the output has no logits, or not those of every position that was asked for.
    """
    inner: Any = model.base_model if isinstance(model, PeftModel) else model
    if hasattr(type(inner), "loss_sum") and runs_only_forward(model):
        loss: Tensor = inner.loss_sum(ids, targets)
        return loss
    asked: dict[str, Any] = {}
    if "logits_to_keep" in inspect.signature(type(inner).forward).parameters:
        kept = (targets != IGNORE).any(0)
        if kept.any() and not kept.all():
            asked, targets = {"logits_to_keep": kept.nonzero()[:, 0]}, targets[:, kept]
    return cross_entropy_sum(_logits(model(ids, **asked), targets), targets)


def _logits(output: Any, targets: Tensor) -> Tensor:
    """The logits (B, T, V) in a model's output, for targets (B, T)."""
    logits = output[0] if isinstance(output, tuple) and output and not hasattr(output, "logits") else output
    logits = getattr(logits, "logits", logits)
    if isinstance(logits, Tensor) and logits.ndim == 3 and logits.shape[:2] == targets.shape:
        return logits
    found = f"a tensor of {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
    B, T = targets.shape
    raise ValueError(
        f"expected logits of ({B}, {T}, V) from the model, one row for each token, or a tuple that begins with them; "
        f"got {found}: wrap the model in a module whose forward(ids) returns them"
    )

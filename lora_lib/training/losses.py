"""The loss of any model on a batch."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_lib.data.examples import Encoded
from lora_lib.gpt2.loss import IGNORE, cross_entropy_sum
from lora_lib.gpt2.model import kept_modes
from lora_lib.layers.hooks import runs_only_forward
from lora_lib.peft_wrapper import PeftModel


def loss_sum(model: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy summed over the targets: ids and targets (B, T), targets -100 where nothing is learned.

    A model whose class has a method `loss_sum(ids, targets)` computes its own loss, as our GPT-2 does, with adapters or
    without. Any other model is called, and returns logits (B, T, V), an output with `.logits` as Hugging Face's models
    do, or a tuple that begins with the logits. A model that takes `logits_to_keep`, as Hugging Face's do, computes
    logits only at positions where a row of the batch has a target, so a long prompt costs none.
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


@torch.no_grad()
def check_padding(model: nn.Module, examples: Sequence[Encoded], batch_size: int) -> None:
    """Raise ValueError if these examples would be padded in a batch, and the model's first token sees later ones.

    In a causal model it never does. A model of Hugging Face's is tried on two pairs of tokens with different seconds.
    """
    inner: Any = model.base_model if isinstance(model, PeftModel) else model
    tokens = next((ids for ids, _ in examples if len(ids) > 1), None)
    padded = batch_size > 1 and len({len(ids) for ids, _ in examples}) > 1
    if not padded or tokens is None or hasattr(type(inner), "loss_sum") or not hasattr(inner, "config"):
        return
    pairs = torch.stack([tokens[:2], tokens[:1].repeat(2)]).to(next(model.parameters()).device)
    pairs[1, 1] = int(pairs[0, 1] == 0)
    with kept_modes(model):
        first, second = _logits(model.eval()(pairs), pairs)[:, 0].float()
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-3 * float(first.abs().max())):
        raise ValueError(
            f"the attention of this {type(inner).__name__} is not causal: a token sees those after it, so the padding "
            "of a batch would change its result. Use batch_size=1, or examples of one length"
        )


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

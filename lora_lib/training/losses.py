"""The loss of a model on a batch, and a cross-entropy that never holds all logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lora_lib.data.examples import IGNORE
from lora_lib.gpt2.model import GPT2Model
from lora_lib.peft_wrapper import PeftModel

LOGITS = 2**22  # that `chunked_cross_entropy` holds at once: 16 MiB in float32


def loss_sum(model: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy summed over the wanted targets: ids and targets (B, T), targets -100 where not wanted.

    For our GPT-2, adapted or not, the logits are never held all at once: see `chunked_cross_entropy`. Any other
    `model` gives logits (B, T, V), an output with `.logits` as Hugging Face's models do, or a tuple that begins with
    the logits.

    Raises ValueError when there are no logits in what the model gives, or not those of every position.
    """
    inner = model.base_model if isinstance(model, PeftModel) else model
    if isinstance(inner, GPT2Model) and type(inner).forward is GPT2Model.forward:  # a reader's own may do more
        return chunked_cross_entropy(inner.out_head, inner.features(ids), targets)
    logits = _at_least_float32(_logits(model(ids), targets))
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")


def _logits(output: Any, targets: Tensor) -> Tensor:
    """The logits (B, T, V) in what a model gives, for targets (B, T)."""
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


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def chunked_cross_entropy(head: nn.Linear, features: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of `head(features)`, summed over the wanted targets, without ever holding all the logits.

    features (B, T, C), targets (B, T) with -100 where not wanted. With a vocabulary of 50,257 the logits are the
    largest tensor of a training step, and their gradient needs two more of that size. Here the head reads a few
    tokens at a time, about `LOGITS` logits together, and skips tokens whose target is not wanted.
    """
    wanted = targets != IGNORE
    features, targets = features[wanted], targets[wanted]  # (N, C), (N,)
    learned = [p for p in head.parameters() if p.requires_grad]
    # Where the head itself is trained, its gradient is that large anyway, and adding up few is faster than many.
    rows = max(1, max(LOGITS, sum(p.numel() for p in learned)) // head.out_features)
    if torch.is_grad_enabled():
        loss: Tensor = _ChunkedCrossEntropy.apply(head, rows, features, targets, *learned)  # type: ignore[no-untyped-call]
        return loss
    return torch.stack([_cross_entropy(head, h, t) for h, t in zip(features.split(rows), targets.split(rows))]).sum()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradients are computed in the forward pass, while the logits of a chunk exist.

    A loss is one number, so the backward pass only multiplies them by its gradient. Nothing is computed twice;
    checkpointing the head would compute the logits again.
    """

    @staticmethod
    def forward(ctx: Any, head: nn.Linear, rows: int, features: Tensor, targets: Tensor, *learned: Tensor) -> Tensor:
        total = torch.zeros((), device=features.device, dtype=torch.promote_types(features.dtype, torch.float32))
        grads = [torch.zeros_like(t) for t in (features, *learned)]
        for h, t, dh in zip(features.split(rows), targets.split(rows), grads[0].split(rows)):
            with torch.enable_grad():
                h = h.detach().requires_grad_()
                loss = _cross_entropy(head, h.view_as(h), t)  # a view, for FlopCounterMode: it cannot watch a leaf
            found = torch.autograd.grad(loss, (h, *learned), materialize_grads=True)
            for grad, part in zip((dh, *grads[1:]), found):
                grad += part
            total += loss.detach()
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        of_features, *of_learned = (g * grad for grad in ctx.saved_tensors)
        return None, None, of_features, None, *of_learned


def _cross_entropy(head: nn.Module, features: Tensor, targets: Tensor) -> Tensor:
    """The sum over all tokens: features (N, C), targets (N,)."""
    return F.cross_entropy(_at_least_float32(head(features)), targets, reduction="sum")

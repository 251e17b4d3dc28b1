"""The cross-entropy of a language model, and a version of it that never holds all the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

IGNORE = -100  # a target that is not learned; the `ignore_index` of PyTorch's cross_entropy has this default
LOGITS = 2**22  # the logits that `chunked_cross_entropy` holds at a time: 16 MiB in float32


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits (B, T, V) and targets (B, T), summed in float32 or wider; targets of -100 are skipped."""
    return F.cross_entropy(
        _at_least_float32(logits).flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )


def chunked_cross_entropy(head: nn.Linear, features: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of `head(features)`, summed over the targets, without ever holding all the logits.

    features (B, T, C), targets (B, T) with -100 where nothing is learned. With a vocabulary of 50,257 the logits are
    the largest tensor of a training step, and their gradient needs two more of that size. This function runs the head
    on a few tokens at a time, about `LOGITS` logits together, and skips tokens whose target is -100.
    """
    wanted = targets != IGNORE
    features, targets = features[wanted], targets[wanted]  # (N, C), (N,)
    trained = [p for p in head.parameters() if p.requires_grad]
    # A trained head has a gradient as large as itself anyway; fewer, larger chunks then add up faster.
    rows = max(1, max(LOGITS, sum(p.numel() for p in trained)) // head.out_features)
    if torch.is_grad_enabled():
        loss: Tensor = _ChunkedCrossEntropy.apply(head, rows, features, targets, *trained)  # type: ignore[no-untyped-call]
        return loss
    return torch.stack([_chunk_loss(head, h, t) for h, t in zip(features.split(rows), targets.split(rows))]).sum()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward pass, while the logits of a chunk exist.

    The loss is one number, so the backward pass only multiplies these gradients by the gradient of the loss. Nothing
    is computed twice. (Checkpointing the head would compute the logits again.)
    """

    @staticmethod
    def forward(ctx: Any, head: nn.Linear, rows: int, features: Tensor, targets: Tensor, *trained: Tensor) -> Tensor:
        total = torch.zeros((), device=features.device, dtype=torch.promote_types(features.dtype, torch.float32))
        grads = [torch.zeros_like(t) for t in (features, *trained)]
        for h, t, dh in zip(features.split(rows), targets.split(rows), grads[0].split(rows)):
            with torch.enable_grad():
                h = h.detach().requires_grad_()
                loss = _chunk_loss(head, h.view_as(h), t)  # a view: FlopCounterMode cannot track a leaf
            found = torch.autograd.grad(loss, (h, *trained), materialize_grads=True)
            for grad, part in zip((dh, *grads[1:]), found):
                grad += part
            total += loss.detach()
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        of_features, *of_trained = (g * grad for grad in ctx.saved_tensors)
        return None, None, of_features, None, *of_trained


def _chunk_loss(head: nn.Module, features: Tensor, targets: Tensor) -> Tensor:
    """The sum over all tokens: features (N, C), targets (N,)."""
    return F.cross_entropy(_at_least_float32(head(features)), targets, reduction="sum")


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))

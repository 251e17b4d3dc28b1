"""The LoRA layer's product, cheaper than `base(x) + bypass(x)`: two ways to compute it, and when they may be taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from lora_lib.lora_linear import LoRA

# With fewer rows, what it costs to start an operation counts for more than another pass over memory: there `_Fused` was
# measured to be up to a seventh slower than PEFT, and `_few_rows` never slower (`python -m benchmarks --only sizes`).
FEW = 1024


class _Fused(torch.autograd.Function):
    """x·W + b + s·x·A·B in one piece, for rows x (N, d) and a weight as nn.Linear has it, (k, d).

    What `base(x) + bypass(x)` says, cheaper: the thin product is written first, and the base's large one adds itself
    to it on the way, so no sum passes over memory again. All that is kept for the backward pass is x, A and B. x·A
    is computed again there, r/k of the base's cost. With g (N, k) the gradient of the output, and h = s·g·Bᵀ (N, r),

        dx = h·Aᵀ + g·Wᵀ        dA = xᵀ·h        dB = s·(x·A)ᵀ·g

    `keep` (N, d) says which of the bypass's inputs dropout has kept; their factor 1 / (1 - p) is in the scale.
    """

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, s: float, keep: Tensor | None
    ) -> Tensor:
        weight, A, B = weight.to(x.dtype), A.to(x.dtype), B.to(x.dtype)
        xA = (x if keep is None else x * keep) @ A
        y = s * xA @ B if bias is None else torch.addmm(bias.to(x.dtype), xA, B, alpha=s)
        return torch.addmm(y, x, weight.T, out=y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, A, B, ctx.s, keep = inputs
        ctx.save_for_backward(x, weight, A, B, keep)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, A, B, keep = ctx.saved_tensors
        weight, A, B = weight.to(g.dtype), A.to(g.dtype), B.to(g.dtype)
        kept = x if keep is None else x * keep
        h = ctx.s * (g @ B.T)
        dx = dA = dB = None
        if ctx.needs_input_grad[0]:
            dx = h @ A.T if keep is None else (h @ A.T) * keep
            into = None if torch.is_grad_enabled() else dx  # what is differentiated again is not written over
            dx = torch.addmm(dx, g, weight, out=into)
        if ctx.needs_input_grad[3]:
            dA = (h.T @ kept).T
        if ctx.needs_input_grad[4]:
            dB = ctx.s * (kept @ A).T @ g
        return dx, None, None, dA, dB, None, None


def fused(base: nn.Linear, bypasses: Sequence[LoRA], x: Tensor) -> Tensor:
    """`base(x)` plus the bypasses' outputs, for x (…, d), where `can_fuse` allows it."""
    first = bypasses[0]
    x = x.to(_autocast_dtype(x) or x.dtype)  # here, so that the narrow copy is the one that is kept
    A, B = first.factors()
    s, p = first.scale, _dropout(first)
    if len(bypasses) > 1:  # several bypasses are one, of the sum of their ranks
        pairs = [(b.factors(), b.scale) for b in bypasses]
        A, B, s = torch.cat([A for (A, _), _ in pairs], 1), torch.cat([s * B for (_, B), s in pairs]), 1
    rows = x.reshape(-1, x.shape[-1])
    weight = base.weight if isinstance(base, nn.Linear) else base.weight.T
    if len(rows) < FEW and rows.dtype == A.dtype and not p:  # a narrower copy of A and B would be kept, or a mask
        return _few_rows(rows, weight, base.bias, A, B, s).reshape(*x.shape[:-1], len(weight))
    keep = torch.empty_like(rows, dtype=torch.bool).bernoulli_(1 - p) if p else None
    y: Tensor = _Fused.apply(rows, weight, base.bias, A, B, s / (1 - p), keep)  # type: ignore[no-untyped-call]
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _few_rows(rows: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, s: float) -> Tensor:
    """The same sum in three operations whose gradients are autograd's; x·A (N, r) is kept for the backward pass."""
    y = F.linear(rows, weight, bias)  # (N, k)
    return torch.addmm(y, rows @ A, B, alpha=s)


def can_fuse(base: nn.Linear, bypasses: Sequence[LoRA], x: Tensor) -> bool:
    """Whether these are the plain layers that `fused` knows: base frozen, and no hook that is to see its output."""
    plain = type(base) is nn.Linear or type(base).__name__ == "Conv1D"
    if not bypasses or not plain:
        return False
    if base._forward_hooks or base._forward_pre_hooks or any(p.requires_grad for p in base.parameters()):
        return False
    if x.dtype != base.weight.dtype and not _autocast_dtype(x):
        return False  # base itself is to say what does not fit
    return len(bypasses) == 1 or not any(map(_dropout, bypasses))  # each drops inputs of its own choice


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast computes in on x's device, where it is on."""
    kind = x.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else None


def _dropout(bypass: LoRA) -> float:
    return bypass.dropout.p if bypass.training else 0.0

"""The LoRA layer's output, x·W + b + s·x·A·B, at a lower cost than `base(x) + bypass(x)`, and when that is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from lora_lib.layers.hooks import runs_only_forward

# With fewer rows, launching an operation costs more than another pass over memory. In the benchmark of sizes `_Fused`
# was then up to a seventh slower than PEFT, and `_few_rows` never was (`python -m benchmarks --only sizes`).
FEW = 1024

_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


class _Fused(torch.autograd.Function):
    """x·W + b + s·x·A·B as one operation, for rows x (N, d) and a weight W (d, k).

    The thin product is written first and the large one is added to it in place, so the sum needs no further pass over
    memory. Only x, A and B are kept for the backward pass. It computes x·A again, at r/k of the base's cost. With
    g (N, k) the gradient of the output, and h = s·g·Bᵀ (N, r),

        dx = h·Aᵀ + g·Wᵀ        dA = xᵀ·h        dB = s·(x·A)ᵀ·g

    `keep` (N, d) says which inputs of the bypass dropout keeps; the factor 1 / (1 - p) is in s.
    """

    @staticmethod
    def forward(
        x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, s: float, keep: Tensor | None
    ) -> Tensor:
        W, A, B = W.to(x.dtype), A.to(x.dtype), B.to(x.dtype)
        xA = (x if keep is None else x * keep) @ A
        y = s * xA @ B if bias is None else torch.addmm(bias.to(x.dtype), xA, B, alpha=s)
        return torch.addmm(y, x, W, out=y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, W, _, A, B, ctx.s, keep = inputs
        ctx.save_for_backward(x, W, A, B, keep)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, W, A, B, keep = ctx.saved_tensors
        W, A, B = W.to(g.dtype), A.to(g.dtype), B.to(g.dtype)
        kept = x if keep is None else x * keep
        h = ctx.s * (g @ B.T)
        dx = dA = dB = None
        if ctx.needs_input_grad[0]:
            dx = h @ A.T if keep is None else (h @ A.T) * keep
            into = None if torch.is_grad_enabled() else dx  # a second derivative needs dx: do not overwrite it
            dx = torch.addmm(dx, g, W.T, out=into)
        if ctx.needs_input_grad[3]:
            dA = (h.T @ kept).T
        if ctx.needs_input_grad[4]:
            dB = ctx.s * (kept @ A).T @ g
        return dx, None, None, dA, dB, None, None


def fused(
    x: Tensor, W: Tensor, bias: Tensor | None, products: Sequence[tuple[Tensor, Tensor, float]], p: float
) -> Tensor:
    """x·W + b + Σ s·x·A·B, for x (…, d), W (d, k) and products (A, B, s); dropout p acts on the first of them.

    `rate_if_fusible` says when the result is that of the modules.
    """
    x = x.to(_autocast_dtype(x) or x.dtype)  # cast here, so that the backward pass keeps the narrow copy
    A, B, s = products[0]
    if len(products) > 1:  # several adapters make one product, whose rank is the sum of their ranks
        A = torch.cat([A for A, _, _ in products], 1)
        B, s = torch.cat([s * B for _, B, s in products]), 1.0
    rows = x.reshape(-1, x.shape[-1])
    if keeps_product(len(rows), narrow=rows.dtype != A.dtype, dropout=p > 0):
        return _few_rows(rows, W, bias, A, B, s).reshape(*x.shape[:-1], W.shape[1])
    keep = torch.empty_like(rows, dtype=torch.bool).bernoulli_(1 - p) if p else None
    y: Tensor = _Fused.apply(rows, W, bias, A, B, s / (1 - p), keep)  # type: ignore[no-untyped-call]
    return y.reshape(*x.shape[:-1], y.shape[-1])


def keeps_product(rows: int, *, narrow: bool = False, dropout: bool = False) -> bool:
    """Whether x·A is kept for the backward pass, because the rows are few.

    Not under autocast to a `narrow` type, which would keep copies of A and B, nor with dropout, which keeps a mask.
    """
    return rows < FEW and not narrow and not dropout


def _few_rows(rows: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, s: float) -> Tensor:
    """The same sum in three operations whose gradients are autograd's; x·A (N, r) is kept for the backward pass."""
    y = F.linear(rows, W.T, bias)  # (N, k)
    return torch.addmm(y, rows @ A, B, alpha=s)


def rate_if_fusible(x: Tensor, base: Any, bypasses: Sequence[Any]) -> float | None:
    """The dropout rate for `fused`, if that gives what calling the modules would; else None.

    It does if the base is frozen and plain, the bypasses compute LoRA's formula, and no hook would run.
    """
    rates = [bypass.dropout.p if bypass.dropout.training else 0.0 for bypass in bypasses]
    kind = type(base)
    if kind is not nn.Linear and (kind.__module__, kind.__name__) != ("transformers.pytorch_utils", "Conv1D"):
        return None
    if (len(rates) > 1 and any(rates)) or 1.0 in rates or _transformed():  # each adapter draws its own dropout mask
        return None
    called = [base, *bypasses, *(bypass.dropout for bypass in bypasses)]
    if not all(map(runs_only_forward, called)):
        return None
    weight, bias = base.weight, base.bias
    if weight.requires_grad or (bias is not None and bias.requires_grad) or not (_is_plain(x) and _is_plain(weight)):
        return None
    same = x.dtype == weight.dtype or _autocast_dtype(x) is not None  # else let the base layer raise its own error
    return rates[0] if same else None


def _transformed() -> bool:
    """Whether a transform is active (vmap, jvp, export, …) that `_Fused` does not support."""
    if torch.compiler.is_compiling():
        return bool(_exporting())
    active: bool = torch._C._are_functorch_transforms_active()
    return active or forward_ad._current_level >= 0 or torch._C._get_tracing_state() is not None


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided  # no subclass: jagged, sharded, …


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast computes x in, or None where it is off or leaves x alone, as it does float64."""
    kind = x.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on and x.dtype != torch.float64 else None

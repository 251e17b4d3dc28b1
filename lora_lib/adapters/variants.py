"""Relatives of LoRA: another formula (DoRA), another start (PiSSA), another learning rate for B (LoRA+).

PEFT's names choose the first two: `use_dora=True` and `init_lora_weights="pissa"`. rsLoRA is an argument of LoRA.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lora_lib.lora_linear import LoRA, weight_of


class DoRA(LoRA):
    """W' = m · V / ‖V‖, column by column, with V = W + s·A·B. A and B turn the columns, m (k,) is their length.

    m starts as ‖V‖, so that a new adapter changes nothing. No gradient goes through the division by ‖V‖. Dropout acts
    on the input of V - W and on what m adds to x·W, as in PEFT. Liu et al., 2024, arXiv 2402.09353.
    """

    file_names: ClassVar[dict[str, str]] = {**LoRA.file_names, "m": "lora_magnitude_vector"}
    config_fields: ClassVar[dict[str, Any]] = {"use_dora": True}

    @torch.no_grad()
    def start(self, base: nn.Linear, init: bool | str = True) -> None:
        """As LoRA's start, and m = ‖V‖."""
        super().start(base, init)
        self.m = nn.Parameter(self._norm(weight_of(base)))

    def _norm(self, W: Tensor) -> Tensor:
        return (W + super().delta()).norm(dim=0).clamp_min(1e-30)  # a column of zeros has no direction, and stays

    def stretch(self, W: Tensor) -> Tensor:
        """How many times as long as V's the columns of W' are, m / ‖V‖ (k,)."""
        return self.m / self._norm(W).detach()

    def added(self, x: Tensor, y: Tensor, base: nn.Linear) -> Tensor:
        """What turns y = x·W + b into x·W' + b: (stretch - 1)·x·W + stretch·s·x·A·B."""
        W = weight_of(base)
        stretch = self.stretch(W)
        if self.training and self.dropout.p:
            x = self.dropout(x)
            xW = x @ W.to(x.dtype)
        else:
            xW = y if base.bias is None else y - base.bias
        return (stretch - 1).to(y.dtype) * xW + stretch.to(y.dtype) * self.product(x)

    def delta(self, W: Tensor | None = None) -> Tensor:
        """W' - W, which depends on the layer's weight W (d, k)."""
        if W is None:
            raise TypeError("DoRA changes a weight by what depends on it: delta needs the layer's weight W")
        return self.stretch(W) * (W + super().delta()) - W


class PiSSA(LoRA):
    """W' = W + s·(A·B - A₀·B₀): A and B start as A₀·B₀, the strongest part of W, and both learn at once.

    A₀ and B₀ are the r largest singular values of W, half of each in A₀ and half in B₀, with their vectors. The paper
    takes s·A₀·B₀ out of W and leaves the rest frozen. Here W stays as it is, and what was taken out is subtracted in
    the bypass: the same sum and the same gradients. So the base is still everybody's base, with the adapter off it is
    bit for bit what it was, and what is saved is a plain LoRA of rank 2r that fits it (`save_pretrained` writes that).

    `init` is "pissa", or "pissa_niter_N" for a faster, approximate decomposition with N power iterations.
    Meng, Wang and Zhang, 2024, arXiv 2404.02948.
    """

    fusible: ClassVar[bool] = True
    A0: Tensor
    B0: Tensor

    @torch.no_grad()
    def start(self, base: nn.Linear, init: bool | str = "pissa") -> None:
        """Give A and B the strongest part of base's weight. Raises ValueError for another `init` than PiSSA's two."""
        W = weight_of(base)
        if W.is_meta:
            raise ValueError("PiSSA needs the numbers of the base, and tensors on the meta device have none")
        U, S, V = _largest(W, self.rank, str(init))
        root = (S / self.scale).sqrt()
        self.A.copy_(U * root)
        self.B.copy_((V * root).T)
        self.register_buffer("A0", self.A.detach().clone())
        self.register_buffer("B0", self.B.detach().clone())

    def factors(self) -> tuple[Tensor, Tensor]:
        """(A A₀) and (B above -B₀): A·B - A₀·B₀ is one product, of rank 2r."""
        return torch.cat([self.A, self.A0], dim=1), torch.cat([self.B, -self.B0])


def _largest(W: Tensor, rank: int, init: str) -> tuple[Tensor, Tensor, Tensor]:
    """W's largest singular values (r,) with their vectors (d, r) and (k, r)."""
    if init == "pissa":
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        return U[:, :rank], S[:rank], Vh[:rank].T
    iterations = init.removeprefix("pissa_niter_")
    if iterations == init or not iterations.isdecimal():
        raise ValueError(f"PiSSA has no start called {init!r}: expected 'pissa' or 'pissa_niter_N', N a whole number")
    return torch.svd_lowrank(W, rank, niter=int(iterations))


def lora_plus(ratio: float) -> Callable[[str], float]:
    """LoRA+: a function of a parameter's name that gives each B `ratio` times the learning rate, as `fit`'s `lr_ratio`.

    Hayou, Ghosh and Yu, 2024, arXiv 2402.12354, who find that about 16 serves well. Raises ValueError unless `ratio`
    is above 0 and finite.
    """
    if not 0 < ratio < math.inf:
        raise ValueError(f"LoRA+ needs a ratio above 0 and finite, got {ratio}")
    return lambda name: ratio if name.endswith(".B") else 1.0

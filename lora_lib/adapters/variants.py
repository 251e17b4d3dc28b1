"""Variants of LoRA: another formula (DoRA), another initialisation (PiSSA), another learning rate for B (LoRA+).

The first two are chosen as in PEFT: `use_dora=True` and `init_lora_weights="pissa"`. rsLoRA is an argument of LoRA.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lora_lib.layers.adapted import weight_of
from lora_lib.lora_linear import LoRA


class DoRA(LoRA):
    """W' = m · V / ‖V‖, column by column, with V = W + s·A·B: A and B set each column's direction, m (k,) its length.

    m starts as ‖V‖, so a new adapter changes nothing. No gradient flows through ‖V‖. As in PEFT, dropout acts on the
    input of the bypass and on the input of what m adds to x·W. Liu et al., 2024, arXiv 2402.09353.
    """

    file_names: ClassVar[dict[str, str]] = {**LoRA.file_names, "m": "lora_magnitude_vector"}
    config_fields: ClassVar[dict[str, Any]] = {"use_dora": True}

    @torch.no_grad()
    def reset_parameters(self, base: nn.Linear, init: bool | str = True) -> None:
        """Initialise A and B as LoRA does, and m = ‖V‖."""
        super().reset_parameters(base, init)
        self.m = nn.Parameter(self._norm(weight_of(base)))

    def _norm(self, W: Tensor) -> Tensor:
        return (W + super().delta()).norm(dim=0).clamp_min(1e-30)  # a column of zeros stays zero

    def stretch(self, W: Tensor) -> Tensor:
        """The factor m / ‖V‖ (k,) by which each column of V is stretched to get W'."""
        return self.m / self._norm(W).detach()

    def forward(self, x: Tensor) -> Tensor:
        raise TypeError("what DoRA adds depends on the layer's weight: call added(x, y, base)")

    def added(self, x: Tensor, y: Tensor, base: nn.Linear) -> Tensor:
        """What to add to y = x·W + b to get x·W' + b: (stretch - 1)·x·W + stretch·s·x·A·B."""
        W = weight_of(base)
        stretch = self.stretch(W)
        if self.training and self.dropout.p:
            x = self.dropout(x)
            xW = x @ W.to(x.dtype)
        else:
            xW = y if base.bias is None else y - base.bias
        return (stretch - 1).to(y.dtype) * xW + stretch.to(y.dtype) * self.product(x)

    def delta(self, W: Tensor | None = None) -> Tensor:
        """The change W' - W, which depends on the layer's weight W (d, k)."""
        if W is None:
            raise TypeError("what DoRA changes depends on the layer's weight: call delta(W)")
        return self.stretch(W) * (W + super().delta()) - W


class PiSSA(LoRA, fusible=True):
    """W' = W + s·(A·B - A₀·B₀): A and B start at A₀ and B₀, the strongest part of W, so both have a gradient at once.

    A₀ and B₀ hold the r largest singular values of W, the square root of each in both, with their vectors. The paper
    subtracts s·A₀·B₀ from W. Here the bypass subtracts it, with the same sum and the same gradients. So several
    adapters can share the base, and `save_pretrained` writes a plain LoRA of rank 2r that fits the unmodified base.

    `init` is True or "pissa", or "pissa_niter_N" for a faster, approximate decomposition with N power iterations.
    Meng, Wang and Zhang, 2024, arXiv 2404.02948.
    """

    saved_ranks: ClassVar[int] = 2
    A0: Tensor
    B0: Tensor

    @torch.no_grad()
    def reset_parameters(self, base: nn.Linear, init: bool | str = True) -> None:
        """Set A·B to the strongest part of the base's weight."""
        W = weight_of(base)
        if W.is_meta:
            raise ValueError("PiSSA reads the base's weights, and on the meta device they have no numbers")
        U, S, V = _largest(W, self.rank, "pissa" if init is True else str(init))
        root = (S / self.scale).sqrt()
        self.A.copy_(U * root)
        self.B.copy_((V * root).T)
        self.register_buffer("A0", self.A.detach().clone())
        self.register_buffer("B0", self.B.detach().clone())

    def factors(self) -> tuple[Tensor, Tensor]:
        """[A, A₀] and [B; -B₀]: their product, of rank 2r, is A·B - A₀·B₀."""
        return torch.cat([self.A, self.A0], dim=1), torch.cat([self.B, -self.B0])

    def tensors_to_save(self) -> dict[str, Tensor]:
        """The factors, as A and B of a plain LoRA that makes the same change."""
        return dict(zip("AB", self.factors()))


def _largest(W: Tensor, rank: int, init: str) -> tuple[Tensor, Tensor, Tensor]:
    """W's largest singular values (r,) with their vectors (d, r) and (k, r)."""
    if init == "pissa":
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        return U[:, :rank], S[:rank], Vh[:rank].T
    iterations = init.removeprefix("pissa_niter_")
    if iterations == init or not iterations.isdecimal():
        raise ValueError(
            f"PiSSA has no initialisation {init!r}. Known: True, 'pissa', 'pissa_niter_N' (N a whole number)."
        )
    return torch.svd_lowrank(W, rank, niter=int(iterations))


def lora_plus(ratio: float) -> Callable[[str], float]:
    """LoRA+: the `lr_ratio` for `fit` that trains each B with `ratio` times the learning rate of A.

    Hayou, Ghosh and Yu, 2024, arXiv 2402.12354, recommend a ratio of about 16.
    """
    if not 0 < ratio < math.inf:
        raise ValueError(f"LoRA+ needs a ratio above 0 and finite, got {ratio}")
    return lambda name: ratio if name.endswith(".B") else 1.0

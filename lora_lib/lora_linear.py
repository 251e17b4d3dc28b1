"""The LoRA layer: a frozen linear layer with a trainable low-rank bypass.

    W' = W + s·A·B        A is (d × r), B is (r × k), s = alpha / r

d inputs, k outputs, r the rank. Only A and B learn: r·(d + k) numbers where W has d·k.
Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lora_lib.fused import can_fuse, fused

BASE = "__base__"  # in a batch whose rows use different adapters, PEFT's name for: none


class LoRA(nn.Module):
    """The bypass s·A·B alone: x (…, d) to s·x·A·B (…, k).

    A starts random, B at zero, so a new bypass adds exactly nothing. `use_rslora` takes
    s = alpha / √r (arXiv 2312.03732) instead of alpha / r. `dropout` acts on the input, in training only.

    Raises ValueError unless 1 ≤ rank ≤ min(d, k), alpha > 0 and 0 ≤ dropout < 1.

    Another kind of adapter is a subclass. Each of these methods is one thing that it may do otherwise:
    `shape_of` says which layers it fits, `around` how it is made, `forward` what it adds to the layer's
    output, `delta` what merging adds to the layer's weight.
    """

    # Each tensor's name here and in PEFT's files, and what PEFT's config says of an adapter of this kind.
    file_names: ClassVar[dict[str, str]] = {"A": "lora_A.weight", "B": "lora_B.weight"}
    config_fields: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        *,
        use_rslora: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        limit = min(in_features, out_features)
        if type(rank) is not int or not 1 <= rank <= limit:
            raise ValueError(f"rank must be from 1 to {limit} for a {in_features}×{out_features} layer, got {rank!r}")
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha must be above 0 and finite, got {alpha}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.rank: int = rank
        self.scale: float = alpha / math.sqrt(rank) if use_rslora else alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.A = nn.Parameter(torch.empty(in_features, rank, device=device, dtype=dtype))
        self.B = nn.Parameter(torch.zeros(rank, out_features, device=device, dtype=dtype))
        nn.init.kaiming_uniform_(self.A.T, a=math.sqrt(5))  # of A.T: torch reads the fan-in d from a (r, d) shape

    @classmethod
    def shape_of(cls, base: nn.Module) -> tuple[int, int]:
        """(d, k) of a layer that this kind of adapter fits. Raises TypeError for any other."""
        return linear_shape(base)

    @classmethod
    def around(cls, base: nn.Linear, rank: int, alpha: float, dropout: float = 0.0, use_rslora: bool = False) -> LoRA:
        """A bypass that fits the layer `base`: its d and k, its device, float32 or wider."""
        dtype = torch.promote_types(base.weight.dtype, torch.float32)
        device = base.weight.device
        return cls(*cls.shape_of(base), rank, alpha, dropout, use_rslora=use_rslora, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        # (…, d)·(d, r), then (…, r)·(r, k): the d × k product A·B is never formed, the scale meets r columns, not k
        return self.scale * (self.dropout(x) @ self.A.to(x.dtype)) @ self.B.to(x.dtype)

    def extra_repr(self) -> str:
        (d, r), k = self.A.shape, self.B.shape[1]
        return f"d={d}, k={k}, r={r}, s={self.scale:g}"

    def delta(self) -> Tensor:
        """The change of the weight, s·A·B, as one (d, k) matrix."""
        return self.scale * self.A @ self.B


class LoRALinear(nn.Module):
    """A frozen linear layer `base` plus the bypasses in `adapters` that are active.

    `base` is an nn.Linear, weight (k, d), or Hugging Face's Conv1D, weight (d, k). It is wrapped, not
    copied, and never written to. `LoRALinear(base, rank, alpha, dropout)` has one bypass, called
    "default"; without a rank it starts with none. `kind` is the class of its bypasses.
    """

    adapters: dict[str, LoRA]  # an nn.ModuleDict, which has no type for what it holds

    def __init__(
        self,
        base: nn.Linear,
        rank: int | None = None,
        alpha: float = 16,
        dropout: float = 0.0,
        kind: type[LoRA] = LoRA,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = kind.shape_of(base)
        self.base = base.requires_grad_(False)
        self.adapters = nn.ModuleDict()  # type: ignore[assignment]
        self.active: tuple[str, ...] = ()
        self.rows: tuple[str, ...] = ()  # for each row of the next batch its adapter, where rows differ
        self._unmerged: tuple[Tensor, ...] = ()  # base's own weight, while a merged one stands in for it
        if rank is not None:
            self.adapters["default"] = kind.around(base, rank, alpha, dropout)
            self.activate("default")

    def activate(self, names: str | Sequence[str]) -> None:
        """Use these bypasses and no other, from now on; a merged layer is merged again with them."""
        names = (names,) if isinstance(names, str) else tuple(names)
        for name in names:
            if name not in self.adapters:
                raise ValueError(f"no adapter called {name!r}; there are {list(self.adapters)}")
        was_merged = self.merged
        self.unmerge()
        self.active = names
        if was_merged:
            self.merge()

    def forward(self, x: Tensor) -> Tensor:
        if self.rows:
            return self._add_row_by_row(x, self.base(x))
        bypasses = [] if self.merged else [self.adapters[name] for name in self.active]
        if all(type(bypass) is LoRA for bypass in bypasses) and can_fuse(self.base, bypasses, x):
            return fused(self.base, bypasses, x)
        return sum((bypass(x) for bypass in bypasses), self.base(x))

    def _add_row_by_row(self, x: Tensor, y: Tensor) -> Tensor:
        if len(x) != len(self.rows):
            raise ValueError(f"adapter_names names {len(self.rows)} adapters for a batch of {len(x)} rows")
        for name in self.adapters.keys() & set(self.rows):
            at = torch.tensor([i for i, row in enumerate(self.rows) if row == name], device=x.device)
            y = y.index_add(0, at, self.adapters[name](x[at]).to(y.dtype))
        return y

    @property
    def own_weight(self) -> Tensor:
        """Base's own weight, merged or not."""
        return self._unmerged[0] if self.merged else self.base.weight

    @property
    def merged(self) -> bool:
        """Whether the active bypasses are folded into base's weight."""
        return bool(self._unmerged)

    @torch.no_grad()
    def merge(self) -> None:
        """Fold the active bypasses into one weight, W' = W + Σ s·A·B: no bypass is computed any more.

        The sum is formed in A's precision and rounded once. W itself is set aside, so `unmerge` is
        exact, and another layer that shares W (a tied embedding) does not see the merge.
        """
        if self.merged:
            return
        weight = self.base.weight
        if not weight.is_floating_point():
            raise TypeError(f"cannot merge into a {weight.dtype} weight: dequantise the base layer first")
        merged = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
        for name in self.active:
            delta = self.adapters[name].delta()
            merged += delta.T if isinstance(self.base, nn.Linear) else delta
        self._unmerged = (weight,)
        self.base.weight = nn.Parameter(merged.to(weight.dtype), requires_grad=False)

    def unmerge(self) -> None:
        """Put base's own weight back: the very tensor that `merge` set aside."""
        if self.merged:
            (weight,) = self._unmerged
            weight.data = weight.data.to(self.base.weight)  # the model may have moved since
            self.base.weight, self._unmerged = weight, ()


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(d, k) of a layer that LoRA can wrap. Raises TypeError for any other module."""
    # nn.MultiheadAttention reads the weight of its out_proj and never calls it: a bypass there would be skipped.
    skipped = isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
    if isinstance(module, nn.Linear) and not skipped:
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D" and isinstance(module.weight, Tensor):  # by name: transformers is optional
        d, k = module.weight.shape
        return d, k
    raise TypeError(f"LoRA wraps nn.Linear and Hugging Face's Conv1D, not {type(module).__name__}")

"""The LoRA layer: a frozen linear layer with a trainable low-rank bypass.

    W' = W + s·A·B        A is (d × r), B is (r × k), s = alpha / r

d is the number of inputs, k the number of outputs, r the rank. Only A and B are trained: r·(d + k) numbers, while W
has d·k. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lora_lib.layers.adapted import AdaptedLayer, NoSingleWeight, check_rank, linear_shape, transposed, weight_of
from lora_lib.layers.fused import fused, rate_if_fusible


class LoRA(nn.Module):
    """The bypass s·A·B: maps x (…, d) to s·x·A·B (…, k).

    A starts random and B at zero, so a new bypass adds exactly zero. With `use_rslora`, s is alpha / √r
    (arXiv 2312.03732) instead of alpha / r. `dropout` acts on the bypass's input, in training mode only.

    Raises ValueError unless rank ≥ 1, alpha is above 0 and finite, and 0 ≤ dropout < 1.

    Another kind of adapter is a subclass (`adapters.variants` has two) that overrides what differs: `shape_of` says
    which layers it fits, `reset_parameters` initialises its tensors, `forward` computes what it adds to the layer's
    output from the input, `added` does the same from input and output, and `delta` is what merging adds to the weight.
    If a subclass still computes the product of its two `factors` and nothing else, declare it as
    `class Mine(LoRA, fusible=True)`: it then gets the faster product in `layers.fused`.
    """

    # The name of each tensor in PEFT's files, and the fields by which PEFT's config marks this kind of adapter.
    file_names: ClassVar[dict[str, str]] = {"A": "lora_A.weight", "B": "lora_B.weight"}
    config_fields: ClassVar[dict[str, Any]] = {}
    saved_ranks: ClassVar[int] = 1  # the rank of the saved adapter, as a multiple of this one's
    fusible: ClassVar[bool] = True

    def __init_subclass__(cls, *, fusible: bool = False, **others: Any) -> None:
        super().__init_subclass__(**others)
        cls.fusible = fusible

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
        if type(rank) is not int or rank < 1:
            raise ValueError(f"rank must be a whole number from 1, got {rank!r}")
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha must be above 0 and finite, got {alpha}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.rank: int = rank
        self.scale: float = alpha / math.sqrt(rank) if use_rslora else alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.A = nn.Parameter(torch.empty(in_features, rank, device=device, dtype=dtype))
        self.B = nn.Parameter(torch.zeros(rank, out_features, device=device, dtype=dtype))
        nn.init.kaiming_uniform_(self.A.T, a=math.sqrt(5))  # on A.T: torch takes the fan-in d from a shape (r, d)

    @classmethod
    def shape_of(cls, base: nn.Module) -> tuple[int, int]:
        """(d, k) of a layer that this kind of adapter can wrap. Raises TypeError for any other layer."""
        return linear_shape(base)

    @classmethod
    def from_base(
        cls, base: nn.Linear, rank: int, alpha: float, dropout: float = 0.0, use_rslora: bool = False,
        init: bool | str = True,
    ) -> LoRA:  # fmt: skip
        """Create an adapter for `base`, with matching shape and device.

        Its dtype is float32, or float64 if the layer is. `init` is passed to `reset_parameters`.
        """
        dtype = torch.promote_types(base.weight.dtype, torch.float32)
        device = base.weight.device
        made = cls(*cls.shape_of(base), rank, alpha, dropout, use_rslora=use_rslora, device=device, dtype=dtype)
        made.reset_parameters(base, init)
        return made

    @torch.no_grad()
    def reset_parameters(self, base: nn.Linear, init: bool | str = True) -> None:
        """Initialise the tensors of a new bypass of `base`, as PEFT's `init_lora_weights` says.

        True, the default, keeps what the constructor made: A random, B zero. "gaussian" draws A with a standard
        deviation of 1 / r. False draws B as well, so the bypass changes the output from the start. Raises ValueError
        for another name. To start a trained bypass again, make a new one with `from_base`.
        """
        if init == "gaussian":
            nn.init.normal_(self.A, std=1 / self.rank)
        elif init is False:
            nn.init.kaiming_uniform_(self.B.T, a=math.sqrt(5))
        elif init is not True:
            raise ValueError(f"{type(self).__name__} has no initialisation {init!r}. Known: True, False, 'gaussian'.")

    def factors(self) -> tuple[Tensor, Tensor]:
        """The two matrices whose product, times s, is the change of the weight."""
        return self.A, self.B

    def forward(self, x: Tensor) -> Tensor:
        return self.product(self.dropout(x))

    def product(self, x: Tensor) -> Tensor:
        """s·x·A·B, without dropout."""
        A, B = self.factors()
        # (…, d)·(d, r), then (…, r)·(r, k): the d × k product A·B is never formed, and s multiplies r columns, not k
        return self.scale * (x @ A.to(x.dtype)) @ B.to(x.dtype)

    def added(self, x: Tensor, y: Tensor, base: nn.Linear) -> Tensor:
        """What the bypass adds to y = base(x). For LoRA that is `forward(x)`."""
        return self(x)

    def delta(self, W: Tensor | None = None) -> Tensor:
        """The change of the layer's weight W, as one (d, k) matrix. For LoRA it is s·A·B, whatever W is."""
        A, B = self.factors()
        with nullcontext() if A.is_meta else torch.autocast(A.device.type, enabled=False):  # in A's own precision
            return self.scale * A @ B

    def tensors_to_save(self) -> dict[str, Tensor]:
        """The tensors that go into a file, by their names here."""
        kept = self.state_dict()  # FSDP gathers in it; a weight norm keeps A in two parts
        return {name: kept[name] if name in kept else getattr(self, name).detach() for name in self.file_names}

    def extra_repr(self) -> str:
        (d, r), k = self.A.shape, self.B.shape[1]
        return f"d={d}, k={k}, r={r}, s={self.scale:g}"


class LoRALinear(AdaptedLayer):
    """A frozen linear layer `base` plus those of its bypasses, `adapters`, that are active.

    `base` is an nn.Linear, weight (k, d), or Hugging Face's Conv1D, weight (d, k). It is wrapped, not copied, and its
    weight is never modified in place. `LoRALinear(base, rank, alpha, dropout)` has one bypass, called "default", and
    `LoRALinear(base)` has none yet. `adapter_cls` is the class of its bypasses.

    Raises TypeError for any other layer, ValueError unless 1 ≤ rank ≤ min(d, k), and as `LoRA` does.
    """

    def __init__(
        self,
        base: nn.Linear,
        rank: int | None = None,
        alpha: float = 16,
        dropout: float = 0.0,
        adapter_cls: type[LoRA] = LoRA,
    ) -> None:
        d, k = adapter_cls.shape_of(base)
        super().__init__(base)
        self.in_features, self.out_features = d, k
        if rank is not None:
            check_rank(rank, d, k)
            self.adapters["default"] = adapter_cls.from_base(base, rank, alpha, dropout)
            self.activate("default")

    def forward(self, x: Tensor) -> Tensor:
        if self.rows:
            return self._row_by_row(x, self.base(x))
        bypasses = [] if self.merged else [self.adapters[name] for name in self.active]
        plain = bool(bypasses) and all(b.fusible and type(b.dropout) is nn.Dropout for b in bypasses)
        if plain and (rate := rate_if_fusible(x, self.base, bypasses)) is not None:
            W, products = transposed(self.base, self.base.weight), [(*b.factors(), b.scale) for b in bypasses]
            return fused(x, W, self.base.bias, products, rate)
        y = self.base(x)
        if not isinstance(y, Tensor):  # Llama 4's router
            raise TypeError(f"this {type(self.base).__name__} returns a {type(y).__name__}: name it in exclude_modules")
        return sum((bypass.added(x, y, self.base).to(y.dtype) for bypass in bypasses), y)

    def _row_by_row(self, x: Tensor, y: Tensor) -> Tensor:
        rows = self.rows_of(len(x))
        for name in self.adapters.keys() & set(rows):
            at = torch.tensor([i for i, row in enumerate(rows) if row == name], device=x.device)
            y = y.index_add(0, at, self.adapters[name].added(x[at], y[at], self.base).to(y.dtype))
        return y

    @property
    def weight(self) -> Tensor:
        """The weight in effect, W + Σ s·A·B, in base's layout: for models that read a layer's weight themselves.

        Every access computes the products A·B. In a batch whose rows use different adapters there is no single weight:
        the result then has a shape, a dtype and a device, and raises ValueError when anything is computed with it.
        """
        if self.rows:
            return self.base.weight.detach().as_subclass(NoSingleWeight)
        return self.base.weight if self.merged or not self.active else self._sum(self.active)

    @property
    def bias(self) -> Tensor | None:
        """Base's bias, which no adapter changes."""
        return self.base.bias

    def _sum(self, names: Sequence[str]) -> Tensor:
        W, made_for = weight_of(self), (self.in_features, self.out_features)
        if W.shape != made_for:
            raise ValueError(
                f"the weight is {tuple(W.shape)} now, but the adapters were made for {made_for}: resize the model "
                "before you add adapters"
            )
        changed = transposed(self.base, sum((self.adapters[name].delta(W) for name in names), W)).contiguous()
        return changed.to(self.base.weight.dtype) if self.base.weight.is_floating_point() else changed

"""The LoRA layer: a frozen linear layer with a trainable low-rank bypass.

    W' = W + s·A·B        A is (d × r), B is (r × k), s = alpha / r

d inputs, k outputs, r the rank. Only A and B learn: r·(d + k) numbers where W has d·k.
Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, NoReturn, cast

import torch
from torch import Tensor, nn

from lora_lib.fused import can_fuse, fused

BASE = "__base__"  # in a batch whose rows use different adapters, PEFT's name for: none


class LoRA(nn.Module):
    """The bypass s·A·B alone: x (…, d) to s·x·A·B (…, k).

    A starts random, B at zero, so a new bypass adds exactly nothing. `use_rslora` takes
    s = alpha / √r (arXiv 2312.03732) instead of alpha / r. `dropout` acts on the input, in training only.

    Raises ValueError unless rank ≥ 1, alpha is above 0 and finite, and 0 ≤ dropout < 1.

    Another kind of adapter is a subclass (`adapters.variants` has some). Each of these methods is one thing that it
    may do otherwise: `shape_of` says which layers it fits, `start` what its tensors are at first, `forward` what the
    input alone tells it to add to the layer's output, `added` the same where it takes more than the input, and
    `delta` what merging adds to the layer's weight.
    """

    # Each tensor's name here and in PEFT's files, and what PEFT's config says of an adapter of this kind.
    file_names: ClassVar[dict[str, str]] = {"A": "lora_A.weight", "B": "lora_B.weight"}
    config_fields: ClassVar[dict[str, Any]] = {}
    # Whether it is the product of its two `factors` and no more. Each class says so for itself: it is not inherited.
    fusible: ClassVar[bool] = True

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
        nn.init.kaiming_uniform_(self.A.T, a=math.sqrt(5))  # of A.T: torch reads the fan-in d from a (r, d) shape

    @classmethod
    def shape_of(cls, base: nn.Module) -> tuple[int, int]:
        """(d, k) of a layer that this kind of adapter fits. Raises TypeError for any other."""
        return linear_shape(base)

    @classmethod
    def around(
        cls, base: nn.Linear, rank: int, alpha: float, dropout: float = 0.0, use_rslora: bool = False,
        init: bool | str = True,
    ) -> LoRA:  # fmt: skip
        """A bypass that fits the layer `base`: its d and k, its device, float32 or wider; `init` goes to `start`."""
        dtype = torch.promote_types(base.weight.dtype, torch.float32)
        device = base.weight.device
        made = cls(*cls.shape_of(base), rank, alpha, dropout, use_rslora=use_rslora, device=device, dtype=dtype)
        made.start(base, init)
        return made

    @torch.no_grad()
    def start(self, base: nn.Linear, init: bool | str = True) -> None:
        """Give a new bypass of `base` the start that PEFT's `init_lora_weights` names.

        True is the usual one. "gaussian" draws A with a standard deviation of 1 / r. False draws B as well, so that
        the bypass changes something at once. Raises ValueError for another name.
        """
        if init == "gaussian":
            nn.init.normal_(self.A, std=1 / self.rank)
        elif init is False:
            nn.init.kaiming_uniform_(self.B.T, a=math.sqrt(5))
        elif init is not True:
            raise ValueError(f"{type(self).__name__} has no start called {init!r}: expected True, False or 'gaussian'")

    def factors(self) -> tuple[Tensor, Tensor]:
        """The two matrices whose product, times s, is the change of the weight."""
        return self.A, self.B

    def forward(self, x: Tensor) -> Tensor:
        return self.product(self.dropout(x))

    def product(self, x: Tensor) -> Tensor:
        """s·x·A·B, without dropout."""
        A, B = self.factors()
        # (…, d)·(d, r), then (…, r)·(r, k): the d × k product A·B is never formed, the scale meets r columns, not k
        return self.scale * (x @ A.to(x.dtype)) @ B.to(x.dtype)

    def added(self, x: Tensor, y: Tensor, base: nn.Linear) -> Tensor:
        """What this bypass adds to y = base(x): `forward` of x, where nothing else is needed for it."""
        return self(x)

    def delta(self, W: Tensor | None = None) -> Tensor:
        """The change of the layer's weight W, s·A·B, as one (d, k) matrix. For LoRA it is the same for any W."""
        A, B = self.factors()
        with nullcontext() if A.is_meta else torch.autocast(A.device.type, enabled=False):  # in A's own precision
            return self.scale * A @ B

    def extra_repr(self) -> str:
        (d, r), k = self.A.shape, self.B.shape[1]
        return f"d={d}, k={k}, r={r}, s={self.scale:g}"


class LoRALinear(nn.Module):
    """A frozen linear layer `base` plus the bypasses in `adapters` that are active.

    `base` is an nn.Linear, weight (k, d), or Hugging Face's Conv1D, weight (d, k). It is wrapped, not
    copied, and never written to. `LoRALinear(base, rank, alpha, dropout)` has one bypass, called
    "default"; without a rank it starts with none. `kind` is the class of its bypasses.

    Raises TypeError for another layer, ValueError unless 1 ≤ rank ≤ min(d, k), and as `LoRA` does.
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
            check_rank(rank, self.in_features, self.out_features)
            self.adapters["default"] = kind.around(base, rank, alpha, dropout)
            self.activate("default")

    def activate(self, names: str | Sequence[str]) -> None:
        """Use these bypasses and no other, from now on; a merged layer is merged again with them.

        Raises ValueError for an unknown name, and as `merge` does; nothing is changed then.
        """
        names = (names,) if isinstance(names, str) else tuple(names)
        for name in names:
            if name not in self.adapters:
                raise ValueError(f"no adapter called {name!r}; there are {list(self.adapters)}")
        if self.merged:
            self._fold_in(names)
        self.active = names

    def forward(self, x: Tensor) -> Tensor:
        if self.rows:
            return self._add_row_by_row(x, self.base(x))
        bypasses = [] if self.merged else [self.adapters[name] for name in self.active]
        if all(vars(type(bypass)).get("fusible") for bypass in bypasses) and can_fuse(self.base, bypasses, x):
            return fused(self.base, bypasses, x)
        y = self.base(x)
        return sum((bypass.added(x, y, self.base).to(y.dtype) for bypass in bypasses), y)

    def _add_row_by_row(self, x: Tensor, y: Tensor) -> Tensor:
        if len(x) != len(self.rows):
            raise ValueError(f"adapter_names names {len(self.rows)} adapters for a batch of {len(x)} rows")
        for name in self.adapters.keys() & set(self.rows):
            at = torch.tensor([i for i, row in enumerate(self.rows) if row == name], device=x.device)
            y = y.index_add(0, at, self.adapters[name].added(x[at], y[at], self.base).to(y.dtype))
        return y

    @property
    def weight(self) -> Tensor:
        """The weight in effect, W + Σ s·A·B, as base keeps it: for models that read a layer's weight themselves.

        Each reading costs the products A·B. Where rows use different adapters there is no one weight: then it has
        a shape and a type, and no numbers (it is on the meta device).
        """
        if self.rows:
            return self.base.weight.to("meta")
        return self.base.weight if self.merged or not self.active else self._sum(self.active)

    @property
    def bias(self) -> Tensor | None:
        """Base's bias, which no adapter changes."""
        return self.base.bias

    @property
    def own_weight(self) -> Tensor:
        """Base's own weight, merged or not."""
        if self.merged:
            (weight,) = self._unmerged
            weight.data = weight.data.to(self.base.weight)  # the model may have moved since
            return weight
        return self.base.weight

    @property
    def merged(self) -> bool:
        """Whether the active bypasses are folded into base's weight."""
        return bool(self._unmerged)

    def merge(self) -> None:
        """Fold the active bypasses into one weight, W' = W + Σ s·A·B: no bypass is computed any more.

        The sum is formed in A's precision and rounded once. W itself is set aside, so `unmerge` is
        exact, and another layer that shares W (a tied embedding) does not see the merge.

        Raises TypeError for a weight that is no float, ValueError if the sum is not finite; nothing is changed then.
        """
        if not self.merged:
            self._fold_in(self.active)

    def unmerge(self) -> None:
        """Put base's own weight back: the very tensor that `merge` set aside."""
        if self.merged:
            self.base.weight, self._unmerged = cast(nn.Parameter, self.own_weight), ()

    def _sum(self, names: Sequence[str]) -> Tensor:
        W, made_for = weight_of(self), (self.in_features, self.out_features)
        if W.shape != made_for:
            raise ValueError(
                f"the weight is {tuple(W.shape)} now, and the adapters are for {made_for}: resize it before"
            )
        changed = sum((self.adapters[name].delta(W) for name in names), W)
        changed = (changed.T if isinstance(self.base, nn.Linear) else changed).contiguous()
        return changed.to(self.base.weight.dtype) if self.base.weight.is_floating_point() else changed

    @torch.no_grad()
    def _fold_in(self, names: Sequence[str]) -> None:
        own = self.own_weight
        if not own.is_floating_point():
            raise TypeError(f"cannot merge into a {own.dtype} weight: dequantise the base layer first")
        if own.is_meta:
            raise ValueError("cannot merge on the meta device, where tensors have no numbers: load the weights first")
        weight = self._sum(names)
        if not bool(torch.isfinite(weight).all()):
            raise ValueError(f"merging {list(names)} gives NaN or infinity in {own.dtype}: nothing was merged")
        self.base.weight, self._unmerged = nn.Parameter(weight, requires_grad=False), (own,)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.merged:
            destination[prefix + "merged"] = torch.tensor(True)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        if self.merged or prefix + "merged" in state_dict:
            refuse_merged(self.merged)
        super()._load_from_state_dict(state_dict, prefix, *others)


def refuse_merged(model: bool) -> NoReturn:
    """Raise ValueError for a state dict that is merged, or for a `model` that is: the adapter would count twice."""
    raise ValueError(
        f"{'this model has' if model else 'these weights have'} an adapter merged in, which would count twice or be "
        "lost: call unmerge_adapter before state_dict and before load_state_dict"
    )


def weight_of(layer: nn.Linear | LoRALinear) -> Tensor:
    """A linear layer's own weight as (d, k), in float32 or wider: not merged, and not quantised.

    Raises TypeError for a weight that is no float in a layer that has no `dequantised`.
    """
    base = layer.base if isinstance(layer, LoRALinear) else layer
    quantised: Any = base
    own = layer.own_weight if isinstance(layer, LoRALinear) else layer.weight
    weight: Tensor = quantised.dequantised() if hasattr(base, "dequantised") else own
    if not weight.is_floating_point():
        raise TypeError(f"a {weight.dtype} weight cannot be computed with: dequantise the base layer first")
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return weight.T if isinstance(base, nn.Linear) else weight


def check_rank(rank: int, d: int, k: int) -> None:
    """Raise ValueError unless a new bypass of this rank is of use in a layer (d, k): no change has a higher one."""
    if type(rank) is not int or not 1 <= rank <= min(d, k):
        raise ValueError(f"rank must be from 1 to {min(d, k)} for a {d}×{k} layer, got {rank!r}")


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

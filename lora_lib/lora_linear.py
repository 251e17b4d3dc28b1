"""The LoRA layer: a frozen linear layer with a trainable low-rank bypass.

    W' = W + s·A·B        A is (d × r), B is (r × k), s = alpha / r

d is the number of inputs, k the number of outputs, r the rank. Only A and B are trained: r·(d + k) numbers, while W
has d·k. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, NoReturn, cast

import torch
from torch import Tensor, nn

from lora_lib.fused import can_fuse, fused, only_forward_runs

BASE = "__base__"  # in a batch whose rows use different adapters, PEFT's name for "no adapter"


class LoRA(nn.Module):
    """The bypass s·A·B: maps x (…, d) to s·x·A·B (…, k).

    A starts random and B at zero, so a new bypass adds exactly zero. With `use_rslora`, s is alpha / √r
    (arXiv 2312.03732) instead of alpha / r. `dropout` acts on the bypass's input, in training mode only.

    Raises ValueError unless rank ≥ 1, alpha is above 0 and finite, and 0 ≤ dropout < 1.

    Another kind of adapter is a subclass (`adapters.variants` has two) that overrides what differs: `shape_of` says
    which layers it fits, `reset_parameters` initialises its tensors, `forward` computes what it adds to the layer's
    output from the input, `added` does so when it needs more than the input, and `delta` is what merging adds to the
    weight. A subclass that still computes the product of its two `factors`, and nothing else, says so:
    `class Mine(LoRA, fusible=True)`. It is then computed by the faster product in `fused`.
    """

    # Each tensor's name here and in PEFT's files, and what PEFT's config says of an adapter of this kind.
    file_names: ClassVar[dict[str, str]] = {"A": "lora_A.weight", "B": "lora_B.weight"}
    config_fields: ClassVar[dict[str, Any]] = {}
    saved_ranks: ClassVar[int] = 1  # what is saved has this many times the rank
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
        nn.init.kaiming_uniform_(self.A.T, a=math.sqrt(5))  # of A.T: torch reads the fan-in d from a (r, d) shape

    @classmethod
    def shape_of(cls, base: nn.Module) -> tuple[int, int]:
        """(d, k) of a layer that this kind of adapter fits. Raises TypeError for any other layer."""
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

        True is the default: A random, B zero. "gaussian" draws A with a standard deviation of 1 / r. False draws B as
        well, so the bypass changes the output from the start. Raises ValueError for another name.
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
        """The tensors that a file holds, by the names in `file_names`."""
        return dict(self.state_dict())

    @property
    def dropout_rate(self) -> float | None:
        """The share of inputs that is dropped now; None if calling this bypass may do more than its formula says."""
        dropout = self.dropout
        plain = self.fusible and type(dropout) is nn.Dropout and only_forward_runs(self) and only_forward_runs(dropout)
        return (dropout.p if dropout.training else 0.0) if plain else None

    def extra_repr(self) -> str:
        (d, r), k = self.A.shape, self.B.shape[1]
        return f"d={d}, k={k}, r={r}, s={self.scale:g}"


class AdaptedLayer(nn.Module):
    """A frozen module `base` and its adapters, by name. Those in `active` are in use.

    A subclass says what an adapter does to the module: a LoRALinear adds to its output, a ModulesToSave replaces it.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base: Any = base.requires_grad_(False)
        self.adapters: Any = nn.ModuleDict()
        self.active: tuple[str, ...] = ()
        self.rows: tuple[str, ...] = ()  # the adapter of each row of the next batch, where rows differ

    merged = False  # whether the active adapters are folded into base's weight

    def activate(self, names: str | Sequence[str]) -> None:
        """Use these adapters and no other. Raises ValueError for an unknown name, and changes nothing then."""
        names = (names,) if isinstance(names, str) else tuple(names)
        for name in names:
            if name not in self.adapters:
                raise ValueError(f"no adapter called {name!r}; there are {list(self.adapters)}")
        self._activate(names)
        self.active = names

    def _activate(self, names: tuple[str, ...]) -> None:
        """What a subclass has to do, or to refuse, before these adapters are the active ones."""

    def merge(self) -> None:
        """Fold the active adapters into base's weight, where they change a weight."""

    def unmerge(self) -> None:
        """Put base's own weight back."""

    @property
    def own_weight(self) -> Tensor:
        """Base's own weight, merged or not."""
        return cast(Tensor, self.base.weight)

    @property
    def in_use(self) -> nn.Module:
        """The plain module that computes the same, once the active adapters are merged."""
        return cast(nn.Module, self.base)

    def check_rows(self, batch: int) -> None:
        """Raise ValueError unless there is one name for each row of a batch."""
        if batch != len(self.rows):
            raise ValueError(f"adapter_names names {len(self.rows)} adapters for a batch of {batch} rows")


class LoRALinear(AdaptedLayer):
    """A frozen linear layer `base` plus the bypasses in `adapters` that are active.

    `base` is an nn.Linear, weight (k, d), or Hugging Face's Conv1D, weight (d, k). It is wrapped, not
    copied, and its weight is never written to. `LoRALinear(base, rank, alpha, dropout)` has one bypass, called
    "default"; without a rank it starts with none. `adapter_cls` is the class of its bypasses.

    Raises TypeError for another layer, ValueError unless 1 ≤ rank ≤ min(d, k), and as `LoRA` does.
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
        self._unmerged: tuple[Tensor, ...] = ()  # base's own weight, while a merged one is in its place
        if rank is not None:
            check_rank(rank, d, k)
            self.adapters["default"] = adapter_cls.from_base(base, rank, alpha, dropout)
            self.activate("default")

    def forward(self, x: Tensor) -> Tensor:
        if self.rows:
            return self._row_by_row(x, self.base(x))
        bypasses = [] if self.merged else [self.adapters[name] for name in self.active]
        if bypasses and can_fuse(x, self.base, rates := [bypass.dropout_rate for bypass in bypasses]):
            base, weight = self.base, self.base.weight
            W = weight if isinstance(base, nn.Linear) else weight.T
            return fused(x, W, base.bias, [(*b.factors(), b.scale) for b in bypasses], rates[0])
        y = self.base(x)
        return sum((bypass.added(x, y, self.base).to(y.dtype) for bypass in bypasses), y)

    def _row_by_row(self, x: Tensor, y: Tensor) -> Tensor:
        self.check_rows(len(x))
        for name in self.adapters.keys() & set(self.rows):
            at = torch.tensor([i for i, row in enumerate(self.rows) if row == name], device=x.device)
            y = y.index_add(0, at, self.adapters[name].added(x[at], y[at], self.base).to(y.dtype))
        return y

    @property
    def weight(self) -> Tensor:
        """The weight in effect, W + Σ s·A·B, in base's layout: for models that read a layer's weight themselves.

        Each reading costs the products A·B. In a batch whose rows use different adapters no single weight is in
        effect: what is returned then has a shape, a dtype and a device, and raises ValueError in any computation.
        """
        if self.rows:
            return self.base.weight.detach().as_subclass(NoSingleWeight)
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
    def merged(self) -> bool:  # type: ignore[override]
        """Whether the active bypasses are folded into base's weight."""
        return bool(self._unmerged)

    def merge(self) -> None:
        """Fold the active bypasses into one weight, W' = W + Σ s·A·B, so that no bypass is computed any more.

        The sum is computed in A's precision and rounded once. W itself is kept, so `unmerge` is exact, and another
        layer that shares W (a tied embedding) does not see the merge.

        Raises TypeError if the weight is not a float, and ValueError if it is not a parameter or the sum is not
        finite; nothing is changed then.
        """
        if not self.merged:
            self._fold_in(self.active)

    def unmerge(self) -> None:
        """Put base's own weight back: the tensor that `merge` kept."""
        if self.merged:
            self.base.weight, self._unmerged = self.own_weight, ()

    def _activate(self, names: tuple[str, ...]) -> None:
        if self.merged:  # a merged layer is merged again, with these
            self._fold_in(names)

    def _sum(self, names: Sequence[str]) -> Tensor:
        W, made_for = weight_of(self), (self.in_features, self.out_features)
        if W.shape != made_for:
            raise ValueError(
                f"the weight is {tuple(W.shape)} now, but the adapters were made for {made_for}: resize the model "
                "before you add adapters"
            )
        changed = sum((self.adapters[name].delta(W) for name in names), W)
        changed = (changed.T if isinstance(self.base, nn.Linear) else changed).contiguous()
        return changed.to(self.base.weight.dtype) if self.base.weight.is_floating_point() else changed

    @torch.no_grad()
    def _fold_in(self, names: Sequence[str]) -> None:
        own = self.own_weight
        if "weight" not in self.base._parameters:
            raise ValueError(
                "cannot merge: the base layer computes its weight in each forward pass (pruning, weight norm or "
                "another parametrisation); make it permanent first, for example with torch.nn.utils.prune.remove"
            )
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


class NoSingleWeight(Tensor):
    """The weight of a layer in a batch whose rows use different adapters: attributes work, computing raises."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("__get__", "size", "dim", "is_floating_point"):
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        raise ValueError(
            "adapter_names gives the rows of this batch different adapters, but the model computes with a layer's "
            "weight itself, and no single weight is right for all rows: run one batch for each adapter"
        )


def refuse_merged(model: bool) -> NoReturn:
    """Raise ValueError for a merged state dict, or for a merged `model`: the adapter would count twice."""
    raise ValueError(
        f"{'this model has' if model else 'these weights have'} an adapter merged in, which would count twice or be "
        "lost: call unmerge_adapter before state_dict and before load_state_dict"
    )


def weight_of(layer: nn.Linear | LoRALinear) -> Tensor:
    """A linear layer's own weight as (d, k), in float32 or wider: without its adapters, and dequantised.

    Raises TypeError for a weight that is not a float in a layer that has no `dequantised`.
    """
    base: Any = layer.base if isinstance(layer, LoRALinear) else layer
    own = layer.own_weight if isinstance(layer, LoRALinear) else layer.weight
    weight: Tensor = base.dequantised() if hasattr(base, "dequantised") else own
    if not weight.is_floating_point():
        raise TypeError(f"cannot compute with a {weight.dtype} weight: dequantise the base layer first")
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return weight.T if isinstance(base, nn.Linear) else weight


def check_rank(rank: int, d: int, k: int) -> None:
    """Raise ValueError unless rank is from 1 to min(d, k): no change of a (d, k) weight has a higher rank."""
    if type(rank) is not int or not 1 <= rank <= min(d, k):
        raise ValueError(f"rank must be from 1 to {min(d, k)} for a {d}×{k} layer, got {rank!r}")


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(d, k) of a layer that LoRA can wrap. Raises TypeError for any other module."""
    # nn.MultiheadAttention reads the weight of its out_proj and never calls it: a bypass there would be skipped.
    skipped = isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
    if isinstance(module, nn.Linear) and not skipped:
        return module.in_features, module.out_features
    if is_conv1d(module):
        d, k = cast(Any, module).weight.shape
        return d, k
    raise TypeError(f"LoRA wraps nn.Linear and Hugging Face's Conv1D, not {type(module).__name__}")


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is Hugging Face's Conv1D, a linear layer that keeps its weight as (d, k)."""
    transformers = sys.modules.get("transformers.pytorch_utils")  # an optional package: not imported, no such layer
    return transformers is not None and isinstance(module, transformers.Conv1D)

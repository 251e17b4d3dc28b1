"""Wrapped layers: what they share, which linear layers LoRA can wrap, and how each of them stores its weight.

An nn.Linear stores its weight as (k, d), and Hugging Face's Conv1D as (d, k), for d inputs and k outputs. Formulas in
this library use (d, k), as in x·W.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

BASE = "__base__"  # in a batch whose rows use different adapters, PEFT's name for "no adapter"


class AdaptedLayer(nn.Module):
    """A frozen module `base` and its adapters, by name. Those in `active` are in use.

    A subclass says what an adapter does to the module: a LoRALinear adds to its output, a ModulesToSave replaces it.
    `_sum` is base's weight with some adapters, for merging.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base: Any = base.requires_grad_(False)
        self.adapters: Any = nn.ModuleDict()
        self.active: tuple[str, ...] = ()
        self.rows: tuple[str, ...] = ()  # which adapter each row of the next batch uses, if not all use the same
        self._unmerged: tuple[Tensor, ...] = ()  # base's own weight, while the merged one replaces it
        self.copies = 1  # of each row, in a beam search

    def _sum(self, names: Sequence[str]) -> Tensor:
        """Base's weight with these adapters, in base's layout."""
        raise NotImplementedError

    def activate(self, names: str | Sequence[str]) -> None:
        """Use exactly these adapters. Raises ValueError for an unknown name; nothing is changed then."""
        names = (names,) if isinstance(names, str) else tuple(names)
        for name in names:
            if name not in self.adapters:
                raise ValueError(f"no adapter called {name!r}; there are {list(self.adapters)}")
        self._activate(names)
        self.active = names

    def _activate(self, names: tuple[str, ...]) -> None:
        """Called before these adapters become active. A merged layer stays merged, now with these."""
        if self.merged:
            self._fold_in(names)

    @property
    def in_use(self) -> nn.Module:
        """The plain module that computes the same, once the active adapters are merged."""
        return cast(nn.Module, self.base)

    def rows_of(self, batch: int) -> list[str]:
        """The name for each row of a batch. Raises ValueError unless there is one for each row, or its copies."""
        copies = self.copies if batch == len(self.rows) * self.copies else 1
        if batch != len(self.rows) * copies:
            raise ValueError(f"adapter_names names {len(self.rows)} adapters for a batch of {batch} rows")
        return [name for name in self.rows for _ in range(copies)]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.merged:  # `_load_from_state_dict` looks for this key
            destination[prefix + "merged"] = torch.tensor(True)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        if self.merged or prefix + "merged" in state_dict:
            refuse_merged(self.merged)
        super()._load_from_state_dict(state_dict, prefix, *others)

    @property
    def own_weight(self) -> Tensor:
        """Base's own weight, merged or not."""
        if self.merged:
            (weight,) = self._unmerged
            weight.data = weight.data.to(self.base.weight)  # the model may have moved since
            return weight
        return cast(Tensor, self.base.weight)

    @property
    def merged(self) -> bool:
        """Whether the active adapters are folded into base's weight."""
        return bool(self._unmerged)

    def merge(self) -> None:
        """Fold the active adapters into the weight, so that the layer costs no more than its base.

        For LoRA that is W' = W + Σ s·A·B, computed in A's precision and rounded once. W itself is kept, so `unmerge`
        is exact, and a layer that shares W (a tied embedding) is not affected.

        Raises TypeError if the weight is not a float, and ValueError if it is not a parameter or the sum is not
        finite; nothing is changed then.
        """
        if not self.merged:
            self._fold_in(self.active)

    def unmerge(self) -> None:
        """Put base's own weight back: the tensor that `merge` kept."""
        if self.merged:
            self.base.weight, self._unmerged = self.own_weight, ()

    @torch.no_grad()
    def _fold_in(self, names: Sequence[str]) -> None:
        if "weight" not in self.base._parameters:
            raise ValueError(
                "cannot merge: the base layer computes its weight in each forward pass (pruning, weight norm or "
                "another parametrisation); make it permanent first, for example with torch.nn.utils.prune.remove"
            )
        own = self.own_weight
        if not own.is_floating_point():
            raise TypeError(f"cannot merge into a {own.dtype} weight: dequantise the base layer first")
        if own.is_meta:
            raise ValueError("cannot merge on the meta device, where tensors have no numbers: load the weights first")
        weight = self._sum(names)
        if not bool(torch.isfinite(weight).all()):
            raise ValueError(f"merging {list(names)} gives NaN or infinity in {own.dtype}: nothing was merged")
        self.base.weight, self._unmerged = nn.Parameter(weight, requires_grad=False), (own,)


def adapted_layers(model: nn.Module, kind: type[AdaptedLayer] = AdaptedLayer) -> dict[str, Any]:
    """The wrapped layers of a model, or those of one kind, by their dotted names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


@contextmanager
def all_or_none(layers: dict[str, AdaptedLayer]) -> Iterator[dict[str, AdaptedLayer]]:
    """Change all of these layers or none: if one raises, all go back to their state before."""
    before = [(layer, layer.active, layer.merged) for layer in layers.values()]
    try:
        yield layers
    except BaseException:
        for layer, active, merged in before:
            layer.unmerge()
            layer.activate(active)
            if merged:
                layer.merge()
        raise


def base_of(module: nn.Module) -> Any:
    """The module itself, or the one inside a wrapped layer."""
    return module.base if isinstance(module, AdaptedLayer) else module


def put_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module where the one with this dotted name is."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


@contextmanager
def own_base(module: nn.Module) -> Iterator[Any]:
    """As `base_of`; a merged layer is unmerged within this context, so that the base has its own weight."""
    if not isinstance(module, AdaptedLayer):
        yield module
        return
    merged = module.merged
    module.unmerge()
    try:
        yield module.base
    finally:
        if merged:
            module.merge()


def own_weight(module: Any) -> Tensor:
    """A module's own weight, wrapped or not, merged or not."""
    weight: Tensor = module.own_weight if isinstance(module, AdaptedLayer) else module.weight
    return weight


class NoSingleWeight(Tensor):
    """A layer's weight while rows use different adapters: it has a shape and a dtype, and raises when computed with."""

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


# --- linear layers, wrapped or not ----------------------------------------------------------------


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
    """Whether a module is Hugging Face's Conv1D."""
    transformers = sys.modules.get("transformers.pytorch_utils")  # optional: without it there is no Conv1D
    return transformers is not None and isinstance(module, transformers.Conv1D)


def transposed(layer: nn.Module, weight: Tensor) -> Tensor:
    """Convert a weight from `layer`'s layout to (d, k), or from (d, k) to `layer`'s layout: it is the same step."""
    return weight.T if isinstance(layer, nn.Linear) else weight


def weight_of(layer: nn.Module) -> Tensor:
    """A linear layer's own weight as (d, k), in float32 or wider: without its adapters, and dequantised.

    Raises TypeError for a weight that is not a float in a layer that has no `dequantised`.
    """
    base = base_of(layer)
    weight: Tensor = base.dequantised() if hasattr(base, "dequantised") else own_weight(layer)
    if not weight.is_floating_point():
        raise TypeError(f"cannot compute with a {weight.dtype} weight: dequantise the base layer first")
    return transposed(base, weight.to(torch.promote_types(weight.dtype, torch.float32)))


def check_rank(rank: int, d: int, k: int) -> None:
    """Raise ValueError unless rank is from 1 to min(d, k): no change of a (d, k) weight has a higher rank."""
    if not d * k:
        raise ValueError("the layer has no weight yet (nn.LazyLinear): call the model once, and add LoRA then")
    if type(rank) is not int or not 1 <= rank <= min(d, k):
        raise ValueError(f"rank must be from 1 to {min(d, k)} for a {d}×{k} layer, got {rank!r}")

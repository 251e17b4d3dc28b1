"""What all wrapped layers share, and functions that take a wrapped or a plain module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

BASE = "__base__"  # in a batch whose rows use different adapters, PEFT's name for "no adapter"


class AdaptedLayer(nn.Module):
    """A frozen module `base` and its adapters, by name. Those in `active` are in use.

    A subclass says what an adapter does to the module: a LoRALinear adds to its output, a ModulesToSave replaces it.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base: Any = base.requires_grad_(False)
        self.adapters: Any = nn.ModuleDict()
        self.active: tuple[str, ...] = ()
        self.rows: tuple[str, ...] = ()  # which adapter each row of the next batch uses, if not all use the same

    merged = False  # whether the active adapters are folded into base's weight

    def activate(self, names: str | Sequence[str]) -> None:
        """Use exactly these adapters. Raises ValueError for an unknown name; nothing is changed then."""
        names = (names,) if isinstance(names, str) else tuple(names)
        for name in names:
            if name not in self.adapters:
                raise ValueError(f"no adapter called {name!r}; there are {list(self.adapters)}")
        self._activate(names)
        self.active = names

    def _activate(self, names: tuple[str, ...]) -> None:
        """Called before these adapters become active: a subclass updates itself here, or refuses."""

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

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.merged:  # `_load_from_state_dict` looks for this key
            destination[prefix + "merged"] = torch.tensor(True)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        if self.merged or prefix + "merged" in state_dict:
            refuse_merged(self.merged)
        super()._load_from_state_dict(state_dict, prefix, *others)


def adapted_layers(model: nn.Module, kind: type[AdaptedLayer] = AdaptedLayer) -> dict[str, Any]:
    """The wrapped layers of a model, or those of one kind, by their dotted names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def base_of(module: nn.Module) -> Any:
    """The module itself, or the one inside a wrapped layer."""
    return module.base if isinstance(module, AdaptedLayer) else module


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

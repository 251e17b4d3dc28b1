"""Modules that an adapter trains in full (PEFT's `modules_to_save`), such as the new head of a classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lora_lib.layers.adapted import AdaptedLayer


class ModulesToSave(AdaptedLayer):
    """A module `base`, and a copy of it for each adapter that trains it in full.

    The module in use is the copy of the active adapter, or `base` if no active adapter has a copy. Other attributes
    (`weight`, …) are those of the module in use.
    """

    def _activate(self, names: tuple[str, ...]) -> None:
        if len(names) > 1:
            raise ValueError(
                f"the adapters {list(names)} each train a copy of the same {type(self.base).__name__}, and two copies "
                "cannot be added: activate one of them"
            )

    def merge(self) -> None:
        """Do nothing: a copy is used as it is."""

    @property
    def in_use(self) -> nn.Module:
        """The module that is called."""
        module: nn.Module = self.adapters[self.active[0]] if self.active else self.base
        return module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.rows:
            return self.in_use(*args, **kwargs)
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
            raise ValueError(
                f"adapter_names cannot choose a copy of {type(self.base).__name__} row by row, because it is called "
                "with more than one tensor: run one batch for each adapter"
            )
        (x,) = args
        copies = dict(self.adapters.items())
        modules = [copies.get(name, self.base) for name in self.rows_of(len(x))]
        return torch.cat([module(x[i : i + 1]) for i, module in enumerate(modules)])

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("base", "adapters"):  # not set yet: looking them up would recurse forever
                raise
            return getattr(self.in_use, name)

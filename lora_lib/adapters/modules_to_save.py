"""Modules that an adapter trains in full, as PEFT's `modules_to_save` has it: a new classifier's head, above all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class TrainedCopy(nn.Module):
    """A module `base`, and a copy of it for each adapter that trains it in full.

    In use is the copy of the active adapter, or `base` where no active one has a copy. Attributes that it does not
    have itself (`weight`, …) are those of the module in use.
    """

    merged = False  # there is nothing to fold in: a copy takes base's place

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.adapters = nn.ModuleDict()
        self.active: tuple[str, ...] = ()
        self.rows: tuple[str, ...] = ()  # for each row of the next batch its adapter, where rows differ

    def activate(self, names: Sequence[str]) -> None:
        """Use this adapter's copy. Raises ValueError for two: the sum of two modules is none."""
        if len(names) > 1:
            raise ValueError(f"the adapters {list(names)} each have their own {type(self.base).__name__}: use one")
        self.active = tuple(names)

    @property
    def in_use(self) -> nn.Module:
        """The module that answers."""
        return self.adapters[self.active[0]] if self.active else self.base

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.rows:
            return self.in_use(x, *args, **kwargs)
        copies = dict(self.adapters.items())
        modules = [copies.get(name, self.base) for name in self.rows]
        return torch.cat([module(x[i : i + 1], *args, **kwargs) for i, module in enumerate(modules)])

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("base", "adapters"):  # not set yet: asking them would never end
                raise
            return getattr(self.in_use, name)

"""The weighted sum of adapters, as one adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from lora_lib.adapters.config import LoRAConfig
from lora_lib.adapters.names import Names
from lora_lib.adapters.plan import Parts, exact_targets, pattern_of
from lora_lib.lora_linear import LoRA


def combined(
    names: Names, config: LoRAConfig, adapters: Sequence[tuple[str, float, Parts]]
) -> tuple[LoRAConfig, Parts]:
    """The config and the parts of Σ weightᵢ·(s·A·B)ᵢ, for the name, the weight and the parts of each adapter.

    `config` is that of the first. Raises ValueError for an adapter whose changes do not add up.
    """
    terms: dict[str, list[tuple[LoRA, float]]] = {}
    for adapter, weight, parts in adapters:
        for name, part in parts.items():
            if not isinstance(part, LoRA):
                raise ValueError(f"{adapter!r} trains {name} in full, and trained copies of a module cannot be added")
            if not part.fusible:
                raise ValueError(f"{adapter!r} is {type(part).__name__}, and only LoRA's changes add up")
            terms.setdefault(name, []).append((part, weight))
    made = {name: _weighted_sum(terms[name]) for name in names.modules if name in terms}
    if not made:
        raise ValueError("no layer of these adapters is left in the model: there is nothing to add")
    first = next(iter(made.values()))
    summed = replace(
        config,
        target_modules=exact_targets(names, list(made)), exclude_modules=None,  # the targets say it all
        layers_to_transform=None, layers_pattern=None, init_lora_weights=True, adapter_cls=None,
        r=first.rank, lora_alpha=first.scale * first.rank, use_rslora=False,
        rank_pattern=pattern_of({n: a.rank for n, a in made.items()}, first.rank),
        alpha_pattern=pattern_of({n: a.scale * a.rank for n, a in made.items()}, first.scale * first.rank),
    )  # fmt: skip
    return summed, {**made}


def _weighted_sum(parts: Sequence[tuple[LoRA, float]]) -> LoRA:
    """One bypass that adds the weighted sum of what these add, with the scale s of the first."""
    first, (d, k) = parts[0][0], (parts[0][0].A.shape[0], parts[0][0].B.shape[1])
    a = torch.cat([part.factors()[0] for part, _ in parts], dim=1)
    b = torch.cat([weight * part.scale / first.scale * part.factors()[1] for part, weight in parts])
    if a.shape[1] > min(d, k):  # no matrix has a higher rank, and at this one either factor can be the identity
        identity = torch.eye(min(d, k), device=a.device, dtype=a.dtype)
        a, b = (identity, a @ b) if d <= k else (a @ b, identity)
    rank = a.shape[1]
    made = LoRA(d, k, rank, first.scale * rank, first.dropout.p, device=a.device, dtype=a.dtype)
    made.A.copy_(a)
    made.B.copy_(b)
    return made

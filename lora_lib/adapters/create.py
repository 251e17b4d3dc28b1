"""The parts of a new adapter: a bypass for each target, and a copy of each module that is trained in full.

Nothing here changes the model: `peft_wrapper` puts the parts in.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from lora_lib.adapters.config import LoRAConfig
from lora_lib.adapters.names import Names
from lora_lib.adapters.targets import config_copies, config_targets, fits_name, rank_and_alpha
from lora_lib.layers.adapted import adapted_layers, base_of, own_base
from lora_lib.layers.linear import check_rank
from lora_lib.lora_linear import LoRA


class Parts(NamedTuple):
    """What an adapter puts into a model, by the dotted names of the modules that each part belongs to."""

    bypasses: dict[str, LoRA]
    copies: dict[str, nn.Module]  # of the modules that are trained in full


def new_parts(names: Names, config: LoRAConfig, any_rank: bool = False) -> Parts:
    """The parts of a new adapter.

    A rank above min(d, k) is refused, because no change has a higher rank; files may have one (`any_rank`).
    """
    targets = config_targets(names, config)
    for pattern in {**config.rank_pattern, **config.alpha_pattern}:
        if not any(fits_name(pattern, names, name) for name in targets):
            raise ValueError(f"rank_pattern or alpha_pattern names {pattern!r}, which is none of the targets")
    made = Parts({}, {})
    for name in targets:
        rank, alpha = rank_and_alpha(names, config, name)
        with own_base(names.modules[name]) as base:
            try:
                if not any_rank:
                    check_rank(rank, *config.variant.shape_of(base))
                made.bypasses[name] = config.variant.from_base(
                    base, rank, alpha, config.lora_dropout, config.use_rslora, config.init_lora_weights
                )
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    for name in config_copies(names, config):
        base = base_of(names.modules[name])
        if adapted_layers(base):
            raise ValueError(f"modules_to_save names {name}, and another adapter has LoRA layers in it")
        made.copies[name] = copy.deepcopy(base)
    return made


def weighted_sum(parts: Sequence[tuple[LoRA, float]]) -> LoRA:
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

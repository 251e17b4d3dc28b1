"""Which layers LoRA can wrap, and how each of them stores its weight.

An nn.Linear stores its weight as (k, d), and Hugging Face's Conv1D as (d, k), for d inputs and k outputs. Formulas in
this library use (d, k), as in x·W.
"""

from __future__ import annotations

import sys
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lib.layers.adapted import base_of, own_weight


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
    if type(rank) is not int or not 1 <= rank <= min(d, k):
        raise ValueError(f"rank must be from 1 to {min(d, k)} for a {d}×{k} layer, got {rank!r}")


def check_mergeable(layer: nn.Module, weight: Tensor) -> None:
    """Raise ValueError or TypeError if no adapter can be merged into `weight`, the own weight of `layer`."""
    if "weight" not in layer._parameters:
        raise ValueError(
            "cannot merge: the base layer computes its weight in each forward pass (pruning, weight norm or "
            "another parametrisation); make it permanent first, for example with torch.nn.utils.prune.remove"
        )
    if not weight.is_floating_point():
        raise TypeError(f"cannot merge into a {weight.dtype} weight: dequantise the base layer first")
    if weight.is_meta:
        raise ValueError("cannot merge on the meta device, where tensors have no numbers: load the weights first")

"""Samples of a base's weights, saved with an adapter so that a wrong base is noticed when the adapter is opened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_lib.adapters.files import AdapterFile, Samples
from lora_lib.adapters.modules_to_save import ModulesToSave
from lora_lib.adapters.names import Names
from lora_lib.layers.adapted import base_of, own_weight
from lora_lib.layers.linear import transposed
from lora_lib.tensor_files import whole

_GOLDEN = 0.6180339887498949  # its multiples, modulo 1, are evenly spread, however many there are


def base_sample(names: Names, adapted: Sequence[str], count: int = 64) -> list[float]:
    """`count` numbers from the weights of these layers, spread over the layers and within each.

    Empty if a weight has no numbers to compare, because it is quantised or on the meta device.
    """
    weights = [_own_weight(names, adapted[i * len(adapted) // count]) for i in range(count)]
    if not all(_has_numbers(weight) for weight in weights):
        return []
    places = [int(i * _GOLDEN % 1 * weight.numel()) for i, weight in enumerate(weights)]
    return [_at(weight, place) for weight, place in zip(weights, places)]


def model_sample(names: Names, count: int = 8) -> Samples:
    """`count` numbers and their positions from each embedding and from the head: weights that no bypass changes."""
    found: Samples = {}
    for name, weight in _embeddings_and_head(names).items():
        places = [int((i + 1) * _GOLDEN % 1 * weight.numel()) for i in range(count)]
        found[name] = [(place, _at(weight, place)) for place in places]
    return found


def _embeddings_and_head(names: Names) -> dict[str, Tensor]:
    """The weights of embeddings and head by their names in a file, without those that an adapter trains in full."""
    head_of: Any = getattr(names.plain, "get_output_embeddings", lambda: None)
    head, found = head_of(), {}
    for name, module in names.modules.items():
        wanted = module is head or isinstance(base_of(module), nn.Embedding)
        if wanted and not isinstance(module, ModulesToSave):
            weight = whole(own_weight(module))
            if _has_numbers(weight):
                found[names.in_file(name + ".weight")] = weight
    return found


def check_base(names: Names, adapted: Sequence[str], saved: AdapterFile) -> None:
    """Raise ValueError if the file shows that the adapter was made for a base with other weights."""
    own, sample = base_sample(names, adapted), saved.base_sample
    weights = {names.in_file(name): _own_weight(names, name) for name in adapted}
    same = not (own and sample) or (len(own) == len(sample) and _close(torch.tensor(own), torch.tensor(sample)))
    whole_ones = all(_close(weights[n].to(w), w) for n, w in saved.base_weights.items())
    if not (same and whole_ones and _same_model(names, saved.model_sample)):
        raise ValueError("the base has other weights than the one it was made for (check_base=False opens it anyway)")


def _same_model(names: Names, sample: Samples) -> bool:
    """Whether embeddings and head have the sampled numbers. They still do after new tokens were added at the end."""
    own = _embeddings_and_head(names)
    pairs = [
        (_at(own[name], place), value)
        for name, found in sample.items() if name in own
        for place, value in found if 0 <= place < own[name].numel()
    ]  # fmt: skip
    return _close(*torch.tensor(pairs).view(-1, 2).T)


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two sets of weights are equal up to a rounding to float16 or bfloat16."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=2**-8, atol=1e-7)


def _own_weight(names: Names, name: str) -> Tensor:
    """A layer's own weight, (d, k) where it is linear."""
    module = names.modules[name]
    return transposed(base_of(module), whole(own_weight(module)))


def _has_numbers(weight: Tensor) -> bool:
    return weight.is_floating_point() and not weight.is_meta


def _at(weight: Tensor, place: int) -> float:
    return weight[torch.unravel_index(torch.tensor(place), weight.shape)].item()

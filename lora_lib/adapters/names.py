"""The names of a model's layers: in the model, in an adapter file, and in what a user asks for.

Samples of the weights, stored under these names, show which base a file was made for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lora_lib.gpt2.model import GPT2Model, hf_name, other_layout
from lora_lib.layers.adapted import AdaptedLayer, base_of, is_conv1d, own_weight, transposed
from lora_lib.layers.modules_to_save import ModulesToSave
from lora_lib.tensor_files import whole

Samples = dict[str, list[tuple[int, float]]]  # for each weight some of its numbers, each with its position
_GOLDEN = 0.6180339887498949  # its multiples, modulo 1, are evenly spread, however many there are
_COMPILED, _PARALLEL = "_orig_mod.", "module."  # what torch.compile and DataParallel add to a name


class Names:
    """The names of one model's layers, and how its weights are laid out in a file. Made once for an operation.

    A file has the names of the `plain` model, without the prefixes that `torch.compile`, DataParallel and
    DistributedDataParallel add. Layers of our GPT-2 are stored under Hugging Face's names and in its layout, so that
    one file fits both models. `modules` are the modules by name, without those inside wrapped layers.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.plain, self._prefix = _unwrapped(model)
        named = dict(model.named_modules())  # a layer in two places is adapted in the first, as in PEFT
        inside = tuple(name + "." for name, module in named.items() if isinstance(module, AdaptedLayer))
        self.modules = {name: module for name, module in named.items() if name and not name.startswith(inside)}

    def in_file(self, name: str) -> str:
        """A module's or a tensor's name in an adapter file."""
        name = self._in_plain(name)
        return hf_name(name) if self._of_gpt2 else name

    def target_in_file(self, target: str) -> str:
        """One of `target_modules` as written in a file. It is the end of a name, so only the head's differs."""
        return hf_name(target) if self._of_gpt2 and target == "out_head" else target

    def all_of(self, name: str) -> set[str]:
        """All names by which a user or a file may refer to a module."""
        return {name, self._in_plain(name), self.in_file(name)}

    def any_ends_in(self, name: str, end: str) -> bool:
        """Whether one of a module's names is `end`, or ends in it after a dot."""
        return any(("." + n).endswith("." + end) for n in self.all_of(name))

    def stored_tensors(self, name: str, module: nn.Module) -> dict[str, Tensor]:
        """The tensors of a module called `name`, under their names and in their layout in a file; not copied."""
        full = {f"{name}.{key}": tensor for key, tensor in module.state_dict().items()}
        return {self.in_file(key): other_layout(key, t) if self._of_gpt2 else t for key, t in full.items()}

    @property
    def transposes(self) -> bool:
        """Whether linear weights are (d, k) in a file: PEFT's `fan_in_fan_out`."""
        return self._of_gpt2 or any(is_conv1d(base_of(m)) for m in self.modules.values())

    @property
    def head(self) -> nn.Module | None:
        """The model's head, as its `get_output_embeddings` returns it."""
        of: Any = getattr(self.plain, "get_output_embeddings", lambda: None)
        head: nn.Module | None = of()
        return head

    @property
    def is_causal(self) -> bool:
        """Whether this is a decoder-only language model: PEFT's CAUSAL_LM."""
        two_stacks = getattr(getattr(self.plain, "config", None), "is_encoder_decoder", False)
        return self._of_gpt2 or (hasattr(self.plain, "prepare_inputs_for_generation") and not two_stacks)

    @property
    def _of_gpt2(self) -> bool:
        return isinstance(self.plain, GPT2Model)

    def _in_plain(self, name: str) -> str:
        return uncompiled(name).removeprefix(self._prefix)


def uncompiled(name: str) -> str:
    """A name without what `torch.compile` adds to it."""
    return name.replace(_COMPILED, "")


def turned(tensor: Tensor) -> Tensor:
    """Transpose a matrix from our layout to the file's, or back: PEFT stores A as (r, d) and B as (k, r)."""
    return tensor.T if tensor.ndim == 2 else tensor


def _unwrapped(model: nn.Module) -> tuple[nn.Module, str]:
    """The plain model inside its wrappers, and the prefix that parallel wrappers add to a layer's name."""
    prefix = ""
    while True:
        if isinstance(model, (nn.DataParallel, DistributedDataParallel)):
            model, prefix = model.module, prefix + _PARALLEL
        elif "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        else:
            return model, prefix


# --- samples of a base's weights, saved with an adapter so that a wrong base is noticed -----------


def base_sample(names: Names, adapted: Sequence[str], count: int = 64) -> list[float]:
    """`count` numbers from the weights of these layers, spread over the layers and within each.

    Empty if a weight has no numbers to compare, because it is quantised or on the meta device.
    """
    weights = [full_weight(names, adapted[i * len(adapted) // count]) for i in range(count)]
    if not all(_has_numbers(weight) for weight in weights):
        return []
    places = [int(i * _GOLDEN % 1 * weight.numel()) for i, weight in enumerate(weights)]
    return [_number_at(weight, place) for weight, place in zip(weights, places)]


def model_sample(names: Names, count: int = 8) -> Samples:
    """`count` numbers and their positions from each embedding and from the head: weights that no bypass changes."""
    found: Samples = {}
    for name, weight in _embeddings_and_head(names).items():
        places = [int((i + 1) * _GOLDEN % 1 * weight.numel()) for i in range(count)]
        found[name] = [(place, _number_at(weight, place)) for place in places]
    return found


def same_places(names: Names, sample: Samples) -> list[tuple[float, float]]:
    """The numbers of a model where a `model_sample` was taken, each with the sampled one.

    They are equal for the same model, also after new tokens were added at the end.
    """
    own = _embeddings_and_head(names)
    return [
        (_number_at(own[name], place), value)
        for name, found in sample.items() if name in own
        for place, value in found if 0 <= place < own[name].numel()
    ]  # fmt: skip


def _embeddings_and_head(names: Names) -> dict[str, Tensor]:
    """The weights of embeddings and head by their names in a file, without those that an adapter trains in full."""
    found: dict[str, Tensor] = {}
    for name, module in names.modules.items():
        wanted = module is names.head or isinstance(base_of(module), nn.Embedding)
        if wanted and not isinstance(module, ModulesToSave):
            weight = whole(own_weight(module))
            if _has_numbers(weight):
                found[names.in_file(name + ".weight")] = weight
    return found


def full_weight(names: Names, name: str) -> Tensor:
    """A layer's own weight, (d, k) where it is linear."""
    module = names.modules[name]
    return transposed(base_of(module), whole(own_weight(module)))


def _has_numbers(weight: Tensor) -> bool:
    return weight.is_floating_point() and not weight.is_meta


def _number_at(weight: Tensor, place: int) -> float:
    """The number at a place of a weight, counted row by row."""
    return weight[torch.unravel_index(torch.tensor(place), weight.shape)].item()

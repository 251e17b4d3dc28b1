"""The names of a model's layers: in the model, in an adapter file, and in what a user asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lora_lib.gpt2.model import GPT2Model
from lora_lib.gpt2.names import hf_name, other_layout
from lora_lib.layers.adapted import AdaptedLayer, base_of
from lora_lib.layers.linear import is_conv1d

_COMPILED, _PARALLEL = "_orig_mod.", "module."  # what torch.compile and DataParallel add to a name


class Names:
    """The names of one model's layers, and how its weights are laid out in a file. Made once for an operation.

    A file has the names of the plain model, without the prefixes that `torch.compile`, DataParallel and
    DistributedDataParallel add. Layers of our GPT-2 are stored under Hugging Face's names, and linear weights in its
    layout, so that one file fits both models.

    `modules` are the model's modules by name, without those inside wrapped layers; `plain` is the model without those
    prefixes.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.plain, self._prefix = _unwrapped(model)
        named = dict(model.named_modules(remove_duplicate=False))
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

    def stored(self, name: str, tensor: Tensor) -> Tensor:
        """A parameter as stored in a file: transposed where Hugging Face's layout differs."""
        return other_layout(name, tensor) if self._of_gpt2 else tensor

    @property
    def transposes(self) -> bool:
        """Whether linear weights are (d, k) in a file: PEFT's `fan_in_fan_out`."""
        return self._of_gpt2 or any(is_conv1d(base_of(m)) for m in self.modules.values())

    @property
    def is_causal(self) -> bool:
        """Whether this is a decoder-only language model: PEFT's CAUSAL_LM."""
        two_stacks = getattr(getattr(self.plain, "config", None), "is_encoder_decoder", False)
        return self._of_gpt2 or (hasattr(self.plain, "prepare_inputs_for_generation") and not two_stacks)

    def from_file(self, saved: Iterable[str]) -> Callable[[str], str]:
        """A function that strips DataParallel's prefix from names in a file, whose layers are called `saved`."""
        parallel = all(name.startswith(_PARALLEL) for name in saved) and not hasattr(self.plain, "module")
        return lambda name: name.removeprefix(_PARALLEL if parallel else "")

    @property
    def _of_gpt2(self) -> bool:
        return isinstance(self.plain, GPT2Model)

    def _in_plain(self, name: str) -> str:
        return uncompiled(name).removeprefix(self._prefix)


def uncompiled(name: str) -> str:
    """A name without what `torch.compile` adds to it."""
    return name.replace(_COMPILED, "")


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

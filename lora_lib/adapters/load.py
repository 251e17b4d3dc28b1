"""Read a saved adapter, check it against a model, and make its parts.

Nothing here changes the model: `peft_wrapper` puts the parts in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from lora_lib.adapters.config import LoRAConfig
from lora_lib.adapters.create import Parts, new_parts
from lora_lib.adapters.files import AdapterError, Layers, read_adapter
from lora_lib.adapters.names import Names
from lora_lib.adapters.same_base import check_base
from lora_lib.adapters.targets import config_targets, rank_and_alpha
from lora_lib.lora_linear import LoRA


def load_parts(
    model: nn.Module, folder: str | Path, same_base: bool, adapter_cls: type[LoRA] | None
) -> tuple[LoRAConfig, Parts]:
    """The config and the parts of a saved adapter, once everything in it has been found to fit the model.

    Raises AdapterError if something does not fit. With `same_base` that includes the weights of the base.
    """
    names, saved = Names(model), read_adapter(folder, adapter_cls)
    saved = saved.renamed(names.from_file(saved.layers))
    try:
        _check_ranks(names, saved.config, saved.layers)
        parts = new_parts(names, saved.config, any_rank=True)
        bypasses = {names.in_file(name): bypass for name, bypass in parts.bypasses.items()}
        copies = copied_tensors(names, parts.copies)
        _check_bypasses(bypasses, saved.layers)
        _check_copies(copies, saved.copies)
        if same_base:
            check_base(names, list(parts.bypasses), saved)
    except ValueError as error:
        raise AdapterError(f"{folder} does not fit this model: {error}") from error
    for name, bypass in bypasses.items():
        bypass.load_state_dict({**bypass.state_dict(), **saved.layers[name]})
    for name, tensor in copies.items():
        tensor.copy_(saved.copies[name])
    return saved.config, parts


def copied_tensors(names: Names, copies: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of modules that are trained in full, under the names and in the layout of a file; not copied."""
    return {
        names.in_file(f"{name}.{key}"): names.stored(f"{name}.{key}", tensor)
        for name, module in copies.items()
        for key, tensor in module.state_dict().items()
    }


def _check_ranks(names: Names, config: LoRAConfig, layers: Layers) -> None:
    """Raise ValueError if a rank is larger than the file's tensors, before tensors of that rank are allocated."""
    for name in config_targets(names, config):
        rank, found = rank_and_alpha(names, config, name)[0], layers.get(names.in_file(name), {})
        if "A" in found and rank > max(found["A"].shape, default=0):
            raise ValueError(f"the config's rank for {name} is {rank}, but its A is {tuple(found['A'].shape)}")


def _check_bypasses(wanted: Mapping[str, LoRA], layers: Layers) -> None:
    """Raise ValueError unless the file has the layers that its config chooses in this model, with their shapes."""
    missing, extra = sorted(wanted.keys() - layers.keys()), sorted(layers.keys() - wanted.keys())
    said = [f"no weights for {len(missing)} of the model's layers {missing[:3]}"] if missing else []
    said += [f"weights for {len(extra)} that the model lacks {extra[:3]}"] if extra else []
    if said:
        raise ValueError(f"the file has {', and '.join(said)}; was it made for another base?")
    for name, adapter in wanted.items():
        if adapter.A.is_meta:
            raise ValueError("the model is on the meta device, where tensors have no numbers: load its weights first")
        for part, want in adapter.state_dict().items():
            if part in adapter.file_names and layers[name][part].shape != want.shape:
                raise ValueError(
                    f"{part} of {name} is {tuple(layers[name][part].shape)}, "
                    f"this model and the config's rank need {tuple(want.shape)}"
                )


def _check_copies(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless the modules trained in full in the file are in this model, with the same shapes."""
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or extra:
        raise ValueError(
            f"of the modules trained in full the file lacks {missing[:3]}, and the model lacks {extra[:3]}"
        )
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            raise ValueError(f"{name} is {tuple(found[name].shape)}, this model needs {tuple(tensor.shape)}")

"""An adapter's parts for a model: made new, filled from a file that fits, and as they are saved.

The parts are a bypass for each layer that the config chooses, and a copy for each module that is trained in full, by
their dotted names. Nothing here changes the model: `peft_wrapper` puts the parts in.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from lora_lib.adapters.config import LoRAConfig
from lora_lib.adapters.files import AdapterError, AdapterFile, Layers, read_adapter
from lora_lib.adapters.modules_to_save import TrainedCopy
from lora_lib.adapters.targets import config_copies, config_targets, file_name, fits_name, plain_model, rank_and_alpha
from lora_lib.gpt2.model import GPT2Model
from lora_lib.gpt2.pretrained import TRANSPOSED
from lora_lib.lora_linear import LoRA, LoRALinear, check_rank


def new_adapters(model: nn.Module, config: LoRAConfig, any_rank: bool = False) -> dict[str, nn.Module]:
    """A fresh bypass for each layer that the config chooses, by the layer's name; `model` stays as it is.

    Where the config has modules trained in full, their copies. A rank above min(d, k) is of no use, and refused but
    where a file has it (`any_rank`).
    """
    kind = config.adapter_class
    names = config_targets(model, config)
    for pattern in {**config.rank_pattern, **config.alpha_pattern}:
        if not any(fits_name(pattern, model, name) for name in names):
            raise ValueError(f"rank_pattern or alpha_pattern names {pattern!r}, which is none of the targets")
    adapters: dict[str, nn.Module] = {}
    for name in names:
        layer = model.get_submodule(name)
        rank, alpha = rank_and_alpha(config, model, name)
        with _own_base(layer) as base:
            try:
                if not any_rank:
                    check_rank(rank, *kind.shape_of(base))
                adapters[name] = kind.around(
                    base, rank, alpha, config.lora_dropout, config.use_rslora, config.init_lora_weights
                )
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    for name in config_copies(model, config):
        module = model.get_submodule(name)
        whole = module.base if isinstance(module, TrainedCopy) else module
        if any(isinstance(m, LoRALinear) for m in whole.modules()):
            raise ValueError(f"modules_to_save names {name}, and another adapter has LoRA layers in it")
        adapters[name] = copy.deepcopy(whole)
    return adapters


@contextmanager
def _own_base(layer: nn.Module) -> Iterator[nn.Linear]:
    """A linear layer, wrapped or not, with its own weight in it; a merged one is merged again afterwards."""
    merged = isinstance(layer, LoRALinear) and layer.merged
    if isinstance(layer, LoRALinear) and merged:
        layer.unmerge()
    try:
        yield layer.base if isinstance(layer, LoRALinear) else cast(nn.Linear, layer)
    finally:
        if isinstance(layer, LoRALinear) and merged:
            layer.merge()


def copies_to_save(model: nn.Module, adapter_name: str, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of an adapter's trained copies, as a file has them, by their dotted names."""
    found: dict[str, Tensor] = {}
    for name, layer in layers.items():
        if isinstance(layer, TrainedCopy) and adapter_name in layer.adapters:
            found |= _as_stored(model, name, layer.adapters[adapter_name])
    return found


def _as_stored(model: nn.Module, name: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors by their names in a file, turned as Hugging Face keeps them where it is of our GPT-2."""
    turned = isinstance(plain_model(model), GPT2Model)
    stored = {file_name(model, f"{name}.{key}"): tensor for key, tensor in module.state_dict().items()}
    return {key: tensor.T if turned and key.endswith(TRANSPOSED) else tensor for key, tensor in stored.items()}


def weighted_sum(parts: Sequence[tuple[LoRA, float]]) -> LoRA:
    """One bypass whose change is the weighted sum of theirs, with the scale s of the first."""
    first, (d, k) = parts[0][0], (parts[0][0].A.shape[0], parts[0][0].B.shape[1])
    a = torch.cat([part.factors()[0] for part, _ in parts], dim=1)
    b = torch.cat([weight * part.scale / first.scale * part.factors()[1] for part, weight in parts])
    if a.shape[1] > min(d, k):  # the layer takes no higher rank, and at this one either factor can be the identity
        identity = torch.eye(min(d, k), device=a.device, dtype=a.dtype)
        a, b = (identity, a @ b) if d <= k else (a @ b, identity)
    rank = a.shape[1]
    made = LoRA(d, k, rank, first.scale * rank, first.dropout.p, device=a.device, dtype=a.dtype)
    made.A.copy_(a)
    made.B.copy_(b)
    return made


# --- files: what fits, and what is written --------------------------------------------------------


def load_adapters(
    model: nn.Module, folder: str | Path, check_base: bool, kind: type[LoRA] | None
) -> tuple[LoRAConfig, dict[str, nn.Module]]:
    """The config of a saved adapter, and its bypasses and copies, filled, once all of it has been found to fit."""
    saved = _without_module(model, read_adapter(folder, kind))
    try:
        adapters = new_adapters(model, saved.config, any_rank=True)
        bypasses = {name: adapter for name, adapter in adapters.items() if isinstance(adapter, LoRA)}
        copies = {n: _as_stored(model, n, module) for n, module in adapters.items() if n not in bypasses}
        _check_fit({file_name(model, name): bypass for name, bypass in bypasses.items()}, saved.layers)
        _check_copies({key: tensor for stored in copies.values() for key, tensor in stored.items()}, saved.copies)
        if check_base:
            _check_base(model, list(bypasses), saved)
    except ValueError as error:
        raise AdapterError(f"{folder} does not fit this model: {error}") from error
    for name, bypass in bypasses.items():
        bypass.load_state_dict({**bypass.state_dict(), **saved.layers[file_name(model, name)]})
    for stored in copies.values():  # state_dict's tensors, turned or not, are the modules' own
        for key, tensor in stored.items():
            tensor.copy_(saved.copies[key])
    return saved.config, adapters


def _without_module(model: nn.Module, saved: AdapterFile) -> AdapterFile:
    """The file of a DataParallel model, whose names begin with `module.`, as one of the model inside."""
    if hasattr(plain_model(model), "module") or not all(name.startswith("module.") for name in saved.layers):
        return saved
    targets = saved.config.target_modules
    if isinstance(targets, list):
        targets = [target.removeprefix("module.") for target in targets]
    return saved._replace(
        config=replace(saved.config, target_modules=targets),
        layers={name.removeprefix("module."): parts for name, parts in saved.layers.items()},
        copies={name.removeprefix("module."): tensor for name, tensor in saved.copies.items()},
    )


def _check_copies(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Raise ValueError unless the file's modules trained in full are this model's, shape by shape."""
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or extra:
        raise ValueError(f"of the modules trained in full it lacks {missing[:3]}, and has {extra[:3]} too many")
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            raise ValueError(f"{name} is {tuple(found[name].shape)}, this model needs {tuple(tensor.shape)}")


def _check_fit(wanted: dict[str, LoRA], layers: Layers) -> None:
    """Raise ValueError unless the file's layers are those that its config chooses in this model, shape by shape."""
    missing, extra = sorted(wanted.keys() - layers.keys()), sorted(layers.keys() - wanted.keys())
    if missing or extra:
        raise ValueError(
            f"it has no weights for {len(missing)} of its layers {missing[:3]}, "
            f"and weights for {len(extra)} that it does not have {extra[:3]}; was it made for another base?"
        )
    for name, adapter in wanted.items():
        if adapter.A.is_meta:
            raise ValueError("the model is on the meta device, where tensors have no numbers: load its weights first")
        for part, want in adapter.state_dict().items():
            if part in adapter.file_names and layers[name][part].shape != want.shape:
                raise ValueError(
                    f"{part} of {name} is {tuple(layers[name][part].shape)}, "
                    f"this model and the config's rank need {tuple(want.shape)}"
                )


def _check_base(model: nn.Module, names: Sequence[str], saved: AdapterFile) -> None:
    """Raise ValueError if the base is not the one that the adapter was made for, as far as the file tells."""
    own, sample = base_sample(model, names), saved.base_sample
    weights = {file_name(model, name): _own_weight(model, name) for name in names}
    same = not (own and sample) or (len(own) == len(sample) and _alike(torch.tensor(own), torch.tensor(sample)))
    if not same or not all(_alike(weights[n].to(w), w) for n, w in saved.base_weights.items()):
        raise ValueError("the base has other weights than the one it was made for (check_base=False takes it as it is)")


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether two sets of weights are the same but for rounding to float16 or bfloat16."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=2**-8, atol=1e-7)


def _own_weight(model: nn.Module, name: str) -> Tensor:
    """A layer's own weight, (d, k) where it is linear, wrapped or not, merged or not."""
    layer = model.get_submodule(name)
    weight = layer.own_weight if isinstance(layer, LoRALinear) else cast(Tensor, layer.weight)
    return weight.T if isinstance(getattr(layer, "base", layer), nn.Linear) else weight


def base_sample(model: nn.Module, names: Sequence[str], count: int = 64) -> list[float]:
    """`count` numbers out of the weights of these layers: the base's fingerprint, whatever its precision.

    They lie spread over the layers and, by the golden ratio, within each. Empty where a weight has no such numbers:
    quantised, or on the meta device.
    """
    weights = [_own_weight(model, names[i * len(names) // count]) for i in range(count)]
    if not all(weight.is_floating_point() and not weight.is_meta for weight in weights):
        return []
    places = [int(i * 0.6180339887498949 % 1 * weight.numel()) for i, weight in enumerate(weights)]
    return [w[torch.unravel_index(torch.tensor(at), w.shape)].item() for w, at in zip(weights, places)]

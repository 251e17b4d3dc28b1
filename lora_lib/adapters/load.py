"""From a folder to the parts of an adapter: read, checked against a model, and made.

Nothing here changes the model: `peft_wrapper` puts the parts in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_lib.adapters.config import HEADS, PEFT_FIELDS, LoRAConfig, check_arguments, meaning, refusal
from lora_lib.adapters.files import CONFIG_FILE, PREFIX, WEIGHTS_FILE, AdapterError, AdapterFile, Layers
from lora_lib.adapters.names import Names, Samples, base_sample, full_weight, same_places, turned, uncompiled
from lora_lib.adapters.plan import Parts, Planned, make_plan, new_parts
from lora_lib.lora_linear import LoRA
from lora_lib.tensor_files import digest, read_json, read_tensors

_BASE = "base_layer.weight"  # what PEFT adds for an adapted head
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def load_parts(
    model: nn.Module, folder: str | Path, *, check_base: bool = True, adapter_cls: type[LoRA] | None = None,
    subfolder: str | None = None, **others: Any,
) -> tuple[LoRAConfig, Parts]:  # fmt: skip
    """The config and the parts of a saved adapter, after checking that everything in it fits the model.

    Raises AdapterError if something does not fit. With `check_base` that includes the weights of the base.
    """
    check_arguments(others)
    folder = Path(folder) / (subfolder or "")
    names, saved = Names(model), read_adapter(folder, adapter_cls)
    try:
        plan = make_plan(names, saved.config, from_file=True)
        _check_ranks(plan, saved.layers)
        parts = new_parts(names, saved.config, plan, any_rank=True)
        bypasses = {p.in_file: part for p in plan if isinstance(part := parts[p.name], LoRA)}
        copied = [names.stored_tensors(p.name, parts[p.name]) for p in plan if p.kind is None]
        copies = dict(chain.from_iterable(tensors.items() for tensors in copied))
        _check_bypasses(bypasses, saved.layers)
        _check_copies(copies, saved.copies)
        if check_base:
            _check_base(names, [p.name for p in plan if p.kind], saved)
    except ValueError as error:
        raise AdapterError(f"{folder} does not fit this model: {error}") from error
    for name, bypass in bypasses.items():
        bypass.load_state_dict({**bypass.state_dict(), **saved.layers[name]})
    for name, tensor in copies.items():
        tensor.copy_(saved.copies[name])
    return saved.config, parts


# --- does it fit the model ------------------------------------------------------------------------


def _check_ranks(plan: Sequence[Planned], layers: Layers) -> None:
    """Raise ValueError if a rank is larger than the file's tensors, before tensors of that rank are allocated."""
    for name, in_file, rank, _, kind in plan:
        found = layers.get(in_file, {}) if kind else {}
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


def _check_base(names: Names, adapted: Sequence[str], saved: AdapterFile) -> None:
    """Raise ValueError if the file shows that the adapter was made for a base with other weights."""
    own, sample = base_sample(names, adapted), saved.base_sample
    weights = {names.in_file(name): full_weight(names, name) for name in adapted}
    same = not (own and sample) or (len(own) == len(sample) and _close(torch.tensor(own), torch.tensor(sample)))
    whole_ones = all(_close(weights[n].to(w), w) for n, w in saved.base_weights.items())
    pairs = torch.tensor(same_places(names, saved.model_sample)).view(-1, 2)
    if not (same and whole_ones and _close(*pairs.T)):
        raise ValueError("the base has other weights than the one it was made for (check_base=False opens it anyway)")


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two sets of weights are equal up to a rounding to float16 or bfloat16."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=2**-8, atol=1e-7)


# --- what is in the folder ------------------------------------------------------------------------


def read_adapter(folder: str | Path, adapter_cls: type[LoRA] | None = None) -> AdapterFile:
    """Read a folder that this library or PEFT wrote. `adapter_cls` is the class of its bypasses, if you wrote your own.

    Raises AdapterError, which names the file and what is wrong with it.
    """
    folder = Path(folder)
    weights, settings = folder / WEIGHTS_FILE, folder / CONFIG_FILE
    for file in (settings, weights):
        if not file.is_file():
            pickled = " (pickled .bin weights are never opened)" if (folder / "adapter_model.bin").exists() else ""
            raise AdapterError(f"{folder} has no {file.name}: expected a folder written by save_pretrained{pickled}")
    try:
        values, (tensors, metadata) = read_json(settings), read_tensors(weights)
    except (OSError, ValueError) as error:
        raise AdapterError(str(error)) from error
    config = _config(settings, values, adapter_cls)
    _check_one_save(weights, tensors, metadata, config)
    layers, copies = _sorted_tensors(weights, tensors, config)
    base_weights = {name: parts.pop(_BASE) for name, parts in layers.items() if _BASE in parts}
    for name, parts in layers.items():
        if missing := [suffix for part, suffix in config.variant.file_names.items() if part not in parts]:
            raise AdapterError(f"{weights}: layer {name} has no {' and no '.join(missing)}")
    return AdapterFile(config, layers, copies, *_samples(weights, metadata), base_weights)


def _config(path: Path, values: Any, adapter_cls: type[LoRA] | None) -> LoRAConfig:
    """The `LoRAConfig` for the values in a file. Raises AdapterError for a value that is not supported."""
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        raise AdapterError(f'{path}: expected an object with "peft_type": "LORA"')
    for key in ("r", "lora_alpha", "target_modules"):
        if values.get(key) in (None, "", []):
            raise AdapterError(f"{path}: {key} is missing (PEFT would silently use its default)")
    if adapter_cls and adapter_cls.saved_ranks > 1:
        raise AdapterError(f"{path}: {adapter_cls.__name__} is saved as a plain LoRA: leave adapter_cls out")
    needed = adapter_cls.config_fields if adapter_cls else {}
    for key, value in needed.items():
        if values.get(key) != value:
            raise AdapterError(f"{path}: {key} = {values.get(key)!r}, but its kind of adapter needs {value!r}")
    ours = [*PEFT_FIELDS["meaning"], *PEFT_FIELDS["read"]]
    for key, value in values.items():
        asks_nothing = not value or value in PEFT_FIELDS["off"].get(key, ())
        if not asks_nothing and key not in (*ours, *PEFT_FIELDS["ignored"], *needed):
            reason = refusal(key) or ", and without it results would differ"
            raise AdapterError(f"{path}: {key} = {value!r} is not supported here{reason}")
    found = {key: values[key] for key in ours if values.get(key) is not None}
    if isinstance(found["target_modules"], list):
        found["target_modules"] = [uncompiled(t) if isinstance(t, str) else t for t in found["target_modules"]]
    found["init_lora_weights"] = _initialisation(path, found.get("init_lora_weights", True))
    try:
        return LoRAConfig(**found, adapter_cls=adapter_cls)
    except ValueError as error:
        raise AdapterError(f"{path}: {error}") from error


def _initialisation(path: Path, value: Any) -> Any:
    """The initialisation to put into the config: True, unless the saved one changed the base."""
    if isinstance(value, (str, bool)) and value in PEFT_FIELDS["off"]["init_lora_weights"]:
        return True
    if isinstance(value, str) and value != "pissa":
        raise AdapterError(
            f"{path}: init_lora_weights = {value!r} changed the base, and the changed base is not in the file: save "
            "the adapter in PEFT with path_initial_model_for_weight_conversion"
        )
    return value


def _check_one_save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], config: LoRAConfig) -> None:
    """Raise AdapterError if the tensors are damaged, or were saved with another config."""
    saved = metadata.get("config", "")
    if "tensors" in metadata and metadata["tensors"] != digest(tensors, saved):
        raise AdapterError(f"{path} is damaged: its tensors are not those that were saved (their SHA-256 differs)")
    if saved and saved != (now := meaning(asdict(config))):
        raise AdapterError(
            f"{path} and its {CONFIG_FILE} are not from one save (or one was edited): the tensors were saved with "
            f"{saved}, the config says {now}. Save the adapter again, or put these values back"
        )


def _sorted_tensors(path: Path, tensors: Mapping[str, Tensor], config: LoRAConfig) -> tuple[Layers, dict[str, Tensor]]:
    """The tensors of a file, layer by layer, and those of the modules that were trained in full."""
    copied = (*(config.modules_to_save or []), *HEADS.get(config.task_type or "", ()))
    parts = {suffix: part for part, suffix in config.variant.file_names.items()} | {_BASE: _BASE}
    layers: Layers = {}
    copies: dict[str, Tensor] = {}
    for saved_name, tensor in tensors.items():
        key = uncompiled(saved_name)
        name = key.removeprefix(PREFIX)
        suffix = next((s for s in parts if key.endswith("." + s)), None)
        is_copy = suffix is None and _is_within(name, copied)
        if name == key or (suffix is None and not is_copy):
            wanted = " or ".join(config.variant.file_names.values())
            hint = f" ({PREFIX}….{wanted})"
            if re.search(r"(embed|wte|lm_head|shared)\w*\.weight$", name):
                hint = (
                    " (a whole embedding or head: save the adapter again in PEFT with save_embedding_layers=False, or, "
                    "if it was trained or resized, open the adapter in PEFT and save what merge_and_unload returns)"
                )
            raise AdapterError(f"{path}: tensor {key!r} is not a LoRA weight{hint}")
        if not (is_copy and tensor.dtype not in _FLOATS) and not _is_finite(tensor, wide=is_copy):
            raise AdapterError(f"{path}: {key} must hold finite floats, is {_describe(tensor)}")
        if suffix is None:
            copies[name] = tensor
        else:
            layers.setdefault(name.removesuffix("." + suffix), {})[parts[suffix]] = turned(tensor)
    return layers, copies


def _samples(path: Path, metadata: Mapping[str, str]) -> tuple[list[float], Samples]:
    """The two samples of the base's weights, from the metadata."""
    try:
        sample = [float(value) for value in metadata.get("base_sample", "").split()]
        saved = json.loads(metadata.get("model_sample", "{}"))
        return sample, {name: [(int(at), float(value)) for at, value in found] for name, found in saved.items()}
    except (ValueError, TypeError, OverflowError, AttributeError, RecursionError) as error:
        raise AdapterError(f"{path}: the sample of the base's weights in its metadata is damaged: {error}") from error


def _is_within(name: str, modules: Sequence[str]) -> bool:
    """Whether the tensor called `name` belongs to a module whose name ends in one of `modules`."""
    parts = name.split(".")
    return any(".".join(parts[:i]).endswith(tuple(modules)) for i in range(1, len(parts)))


def _is_finite(tensor: Tensor, *, wide: bool) -> bool:
    """Whether a tensor holds finite floats: as stored, or (not `wide`) as float32, in which A and B are computed."""
    return tensor.dtype in _FLOATS and bool(torch.isfinite(tensor if wide else tensor.float()).all())


def _describe(tensor: Tensor) -> str:
    odd = " with NaN or infinity in it" if tensor.dtype in _FLOATS else ""
    odd = " with numbers too large for float32 in it" if _is_finite(tensor, wide=True) else odd
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}{odd}"

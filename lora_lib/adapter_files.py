"""Adapters on disk, in the format of Hugging Face PEFT: two files in one folder.

`adapter_config.json` says how the adapter was made; `adapter_model.safetensors` holds, for each layer,
`base_model.model.<layer>.lora_A.weight` (r, d) and `.lora_B.weight` (k, r): our A and B, transposed.
Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lora_lib.config import LoRAConfig
from lora_lib.lora_linear import LoRA

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX, _BASE = "base_model.model.", "base_layer.weight"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Fields of PEFT that say where an adapter comes from or how it is to be stored: they change no result.
_NO_EFFECT = {
    "auto_mapping", "fan_in_fan_out", "inference_mode", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "revision", "task_type",
}  # fmt: skip
_OFF = {"bias": ("none",)}  # values that ask for nothing though they are not false
_STARTS_THAT_ARE_OVER = (None, False, "gaussian", "orthogonal")  # once an adapter is saved, they change nothing


class AdapterError(ValueError):
    """An adapter folder that cannot be opened as it is, or does not fit the model; the message says why."""


Layers = dict[str, dict[str, Tensor]]  # each layer's name with its A (d, r) and B (r, k), or what its kind has


class AdapterFile(NamedTuple):
    """What `read_adapter` finds in a folder.

    `base_sample` is the sample of the base's weights that we write, empty in PEFT's files. `base_weights` are
    whole (d, k) weights of the base, by layer: PEFT adds that of an adapted head.
    """

    config: LoRAConfig
    layers: Layers
    base_sample: list[float]
    base_weights: dict[str, Tensor]


def write_adapter(
    folder: str | Path, config: LoRAConfig, layers: Layers, base_sample: Sequence[float] = (), **extra: Any
) -> None:
    """Write an adapter folder; `extra` joins the config, `base_sample` the weights' metadata.

    Both files are written whole beside the old ones before they take their place. Raises ValueError for a tensor
    that is not finite, and OSError when the disk will not take the files: the old ones are then still there.
    """
    folder, tensors = Path(folder), {}
    for name, parts in layers.items():
        for part, suffix in config.adapter_class.file_names.items():
            if not bool(torch.isfinite(parts[part]).all()):
                raise ValueError(f"{part} of {name} has NaN or infinity in it: nothing was saved to {folder}")
            tensors[_PREFIX + name + "." + suffix] = _turn(parts[part].detach()).to("cpu").contiguous()
    metadata = {"format": "pt", "tensors": _digest(tensors)}
    if base_sample:
        metadata["base_sample"] = " ".join(f"{value:.4g}" for value in base_sample)
    values = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "inference_mode": True, **extra}
    values |= {**asdict(config), **config.adapter_class.config_fields}
    del values["kind"]
    weights_part, config_part = (folder / (file + ".part") for file in (WEIGHTS_FILE, CONFIG_FILE))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, weights_part, metadata=metadata)
        config_part.write_text(json.dumps(values, indent=2) + "\n", encoding="utf8")
        os.replace(weights_part, folder / WEIGHTS_FILE)
        os.replace(config_part, folder / CONFIG_FILE)
    except (OSError, SafetensorError) as error:
        raise OSError(f"the adapter could not be saved to {folder}: {error}; an older one there is unharmed") from error
    finally:
        for part_file in (weights_part, config_part):
            with suppress(OSError):  # of no weight beside the error that brought us here
                part_file.unlink()


def read_adapter(folder: str | Path, kind: type[LoRA] | None = None) -> AdapterFile:
    """Read a folder that we or PEFT wrote. `kind` is the class of the adapter in it, where it is one of your own.

    Raises AdapterError, naming the file and the thing in it, for whatever we cannot honour.
    """
    folder = Path(folder)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            pickled = " (pickled .bin weights are never opened)" if (folder / "adapter_model.bin").exists() else ""
            raise AdapterError(f"{folder} has no {file}: expected a folder written by save_pretrained{pickled}")
    config = _read_config(folder / CONFIG_FILE, kind)
    return AdapterFile(config, *_read_weights(folder / WEIGHTS_FILE, config.adapter_class))


def _read_config(path: Path, kind: type[LoRA] | None) -> LoRAConfig:
    try:
        values = json.loads(path.read_text(encoding="utf8"))
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        raise AdapterError(f'{path}: expected an object with "peft_type": "LORA"')
    for key in ("r", "lora_alpha", "target_modules"):
        if not values.get(key):
            raise AdapterError(f"{path}: {key} is missing; PEFT would guess it in silence, we do not")
    needed = kind.config_fields if kind else {}
    for key, value in needed.items():
        if kind and values.get(key) != value:
            raise AdapterError(f"{path}: {key} = {values.get(key)!r}, but {kind.__name__} needs {value!r}")
    ours = {f.name for f in fields(LoRAConfig)} - {"kind"}
    known = ours | _NO_EFFECT | needed.keys()
    for key, value in values.items():
        # An option that is off (null, false, empty) asks for nothing, whatever it is called.
        if key not in known and value and value not in _OFF.get(key, ()):
            raise AdapterError(f"{path}: {key} = {value!r} is not supported here, and without it results would differ")
    start = values.get("init_lora_weights")
    if isinstance(start, (str, bool, type(None))) and start in _STARTS_THAT_ARE_OVER:
        values["init_lora_weights"] = True
    elif isinstance(start, str) and start.startswith("pissa_niter_"):
        raise AdapterError(
            f"{path}: init_lora_weights = {start!r} took a part out of the base that nobody can find again: save it in "
            "PEFT with path_initial_model_for_weight_conversion"
        )
    try:
        return LoRAConfig(**{key: values[key] for key in ours if values.get(key) is not None}, kind=kind)
    except ValueError as error:
        raise AdapterError(f"{path}: {error}") from error


def _read_weights(path: Path, kind: type[LoRA]) -> tuple[Layers, list[float], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise AdapterError(f"{path} is not a whole safetensors file: {error}") from error
    if "tensors" in metadata and metadata["tensors"] != _digest(tensors):
        raise AdapterError(f"{path} is damaged: its tensors are not those that were saved (their SHA-256 differs)")
    parts = {suffix: part for part, suffix in kind.file_names.items()} | {_BASE: _BASE}
    layers: Layers = {}
    for key, tensor in tensors.items():
        suffix = next((s for s in parts if key.endswith("." + s)), None)
        if suffix is None or not key.startswith(_PREFIX):
            wanted = " or ".join(kind.file_names.values())
            raise AdapterError(f"{path}: tensor {key!r} is not a LoRA weight ({_PREFIX}….{wanted})")
        if tensor.dtype not in _FLOATS or not bool(torch.isfinite(tensor).all()):
            raise AdapterError(f"{path}: {key} must hold finite floats, is {_describe(tensor)}")
        layers.setdefault(key[len(_PREFIX) : -len(suffix) - 1], {})[parts[suffix]] = _turn(tensor)
    base_weights = {name: found.pop(_BASE) for name, found in layers.items() if _BASE in found}
    for name, found in layers.items():
        if missing := [s for part, s in kind.file_names.items() if part not in found]:
            raise AdapterError(f"{path}: layer {name} has no {' and no '.join(missing)}")
    try:
        sample = [float(value) for value in metadata.get("base_sample", "").split()]
    except ValueError as error:
        raise AdapterError(f"{path}: base_sample in its metadata is not a list of numbers: {error}") from error
    return layers, sample, base_weights


def _turn(tensor: Tensor) -> Tensor:
    """A matrix from our orientation to the file's, or back: PEFT keeps A as (r, d) and B as (k, r)."""
    return tensor.T if tensor.ndim == 2 else tensor


def _digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the tensors of a file, their names, types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _describe(tensor: Tensor) -> str:
    odd = " with NaN or infinity in it" if tensor.dtype in _FLOATS else ""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}{odd}"

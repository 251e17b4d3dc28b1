"""Adapters on disk, in the format of Hugging Face PEFT: two files in one folder.

`adapter_config.json` says how the adapter was made; `adapter_model.safetensors` holds, for each layer,
`base_model.model.<layer>.lora_A.weight` (r, d) and `.lora_B.weight` (k, r): our A and B, transposed.
Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX, _SUFFIXES = "base_model.model.", (".lora_A.weight", ".lora_B.weight")
# Fields of PEFT that say where an adapter comes from or how it is to be stored: they change no result.
_NO_EFFECT = {
    "auto_mapping", "fan_in_fan_out", "inference_mode", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "revision", "task_type",
}  # fmt: skip
_OFF = {"bias": "none", "init_lora_weights": True}  # the values that ask for nothing though they are not false


class AdapterError(ValueError):
    """An adapter folder that cannot be opened as it is, or does not fit the model; the message says why."""


@dataclass
class LoRAConfig:
    """How an adapter was made. Names and meanings are those of PEFT's `LoraConfig`.

    `rank_pattern` and `alpha_pattern` give single layers their own r and alpha; a key is a layer's name,
    or the end of it, or a regular expression for it.
    """

    target_modules: list[str] | str
    r: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.0
    use_rslora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    base_model_name_or_path: str | None = None


Layers = dict[str, tuple[Tensor, Tensor]]  # each layer's name with its A (d, r) and B (r, k)


def write_adapter(folder: str | Path, config: LoRAConfig, layers: Layers, **extra: Any) -> None:
    """Write an adapter folder; `extra` joins the config.

    Both files are written whole beside the old ones before they take their place.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, pair in layers.items():
        for suffix, tensor in zip(_SUFFIXES, pair, strict=True):
            tensors[_PREFIX + name + suffix] = tensor.detach().T.to("cpu").contiguous()
    values = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "inference_mode": True, **extra}
    text = json.dumps({**values, **asdict(config)}, indent=2) + "\n"
    _replace(folder / WEIGHTS_FILE, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    _replace(folder / CONFIG_FILE, lambda path: path.write_text(text, encoding="utf8"))


def read_adapter(folder: str | Path) -> tuple[LoRAConfig, Layers]:
    """Read a folder that we or PEFT wrote.

    Raises AdapterError, naming the file and the thing in it, for whatever we cannot honour.
    """
    folder = Path(folder)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            pickled = " (pickled .bin weights are never opened)" if (folder / "adapter_model.bin").exists() else ""
            raise AdapterError(f"{folder} has no {file}: expected a folder written by save_pretrained{pickled}")
    config = _read_config(folder / CONFIG_FILE)
    return config, _read_layers(folder / WEIGHTS_FILE)


def _read_config(path: Path) -> LoRAConfig:
    try:
        values = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise AdapterError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        raise AdapterError(f'{path}: expected an object with "peft_type": "LORA"')
    ours = {f.name for f in fields(LoRAConfig)}
    for key in ("r", "lora_alpha", "target_modules"):
        if not values.get(key):
            raise AdapterError(f"{path}: {key} is missing; PEFT would guess it in silence, we do not")
    for key, value in values.items():
        # An option that is off (null, false, empty) asks for nothing, whatever it is called.
        if key not in ours and key not in _NO_EFFECT and value and _OFF.get(key) != value:
            raise AdapterError(f"{path}: {key} = {value!r} is not supported here, and without it results would differ")
    config = LoRAConfig(**{key: values[key] for key in ours if values.get(key) is not None})
    _check_types(config, path)
    return config


def _check_types(config: LoRAConfig, path: Path) -> None:
    number, targets = (int, float), config.target_modules
    good = {
        "r": isinstance(config.r, int) and not isinstance(config.r, bool) and config.r > 0,
        "lora_alpha": isinstance(config.lora_alpha, number) and config.lora_alpha > 0,
        "lora_dropout": isinstance(config.lora_dropout, number) and 0 <= config.lora_dropout < 1,
        "use_rslora": isinstance(config.use_rslora, bool),
        "target_modules": isinstance(targets, str)
        or (isinstance(targets, list) and all(isinstance(t, str) for t in targets)),
        "rank_pattern": isinstance(config.rank_pattern, dict)
        and all(isinstance(v, int) and v > 0 for v in config.rank_pattern.values()),
        "alpha_pattern": isinstance(config.alpha_pattern, dict)
        and all(isinstance(v, number) and v > 0 for v in config.alpha_pattern.values()),
    }
    for key, fine in good.items():
        if not fine:
            raise AdapterError(f"{path}: {key} = {getattr(config, key)!r} is not a value it can have")


def _read_layers(path: Path) -> Layers:
    found: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():
                suffix = next((s for s in _SUFFIXES if key.endswith(s)), None)
                if suffix is None or not key.startswith(_PREFIX):
                    raise AdapterError(f"{path}: tensor {key!r} is not a LoRA weight ({_PREFIX}….lora_A.weight)")
                tensor = file.get_tensor(key)
                if not tensor.is_floating_point() or tensor.ndim != 2 or not bool(torch.isfinite(tensor).all()):
                    raise AdapterError(f"{path}: {key} must be a matrix of finite floats, is {_describe(tensor)}")
                found.setdefault(key[len(_PREFIX) : -len(suffix)], {})[suffix] = tensor
    except SafetensorError as error:
        raise AdapterError(f"{path} is not a whole safetensors file: {error}") from error
    layers: Layers = {}
    for name, pair in found.items():
        if len(pair) < 2:
            raise AdapterError(f"{path}: layer {name} has {next(iter(pair))[1:]} without its twin")
        a, b = (pair[s] for s in _SUFFIXES)
        if a.shape[0] != b.shape[1]:
            raise AdapterError(f"{path}: layer {name} has rank {a.shape[0]} in lora_A and {b.shape[1]} in lora_B")
        layers[name] = a.T, b.T
    return layers


def _describe(tensor: Tensor) -> str:
    odd = "" if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()) else " with NaN or infinity in it"
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}{odd}"


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under another name, then rename: whoever is interrupted keeps the old file."""
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)

"""Adapters on disk, in the format of Hugging Face PEFT: two files in one folder.

`adapter_config.json` says how the adapter was made; `adapter_model.safetensors` holds, for each layer,
`base_model.model.<layer>.lora_A.weight` (r, d) and `.lora_B.weight` (k, r): our A and B, transposed. Modules that
were trained in full stand there under their own names. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lora_lib.adapters.config import HEADS, LoRAConfig
from lora_lib.lora_linear import LoRA
from lora_lib.tensor_files import digest, read_tensors, replaced, write_tensors

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX, _BASE = "base_model.model.", "base_layer.weight"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Fields of PEFT that say where an adapter comes from or how it is to be stored: they change no result.
_NO_EFFECT = {
    "auto_mapping", "fan_in_fan_out", "inference_mode", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "revision",
}  # fmt: skip
# Fields that would give the same tensors another meaning: written into the tensors' file too, so that a save that was
# cut short between the two files is noticed.
_MEANING = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
_OFF = {"bias": ("none",)}  # values that ask for nothing though they are not false
_STARTS_THAT_ARE_OVER = (None, False, "gaussian", "orthogonal", "eva")  # once an adapter is saved, they change nothing


class AdapterError(ValueError):
    """An adapter folder that cannot be opened as it is, or does not fit the model; the message says why."""


Layers = dict[str, dict[str, Tensor]]  # each layer's name with its A (d, r) and B (r, k), or what its kind has


class AdapterFile(NamedTuple):
    """What `read_adapter` finds in a folder.

    `base_sample` is the sample of the base's weights that we write, empty in PEFT's files. `base_weights` are
    whole (d, k) weights of the base, by layer: PEFT adds that of an adapted head. `copies` are the tensors of the
    modules that were trained in full, by their dotted names.
    """

    config: LoRAConfig
    layers: Layers
    base_sample: list[float]
    base_weights: dict[str, Tensor]
    copies: dict[str, Tensor]


def write_adapter(
    folder: str | Path,
    config: LoRAConfig,
    layers: Layers,
    base_sample: Sequence[float] = (),
    copies: Mapping[str, Tensor] | None = None,
    **extra: Any,
) -> None:
    """Write an adapter folder; `extra` joins the config, `base_sample` the weights' metadata.

    Both files are written whole beside the old ones before they take their place. Raises ValueError for a tensor
    that is not finite, and OSError when the disk will not take the files: the old ones are then still there.
    """
    folder, tensors = Path(folder), {}
    for name, parts in layers.items():
        for part, suffix in config.adapter_class.file_names.items():
            _check_savable(parts[part], f"{part} of {name}", folder)
            tensors[_PREFIX + name + "." + suffix] = _turn(parts[part])
    for name, tensor in (copies or {}).items():
        _check_savable(tensor, name, folder)
        tensors[_PREFIX + name] = tensor
    values = {"peft_type": "LORA", "bias": "none", "inference_mode": True, **asdict(config), **extra}
    values |= config.adapter_class.config_fields
    del values["kind"]
    values = {key: value for key, value in values.items() if value is not None}
    meaning = _meaning(values)
    metadata = {"format": "pt", "config": meaning, "tensors": digest(tensors, meaning)}
    if base_sample:
        metadata["base_sample"] = " ".join(f"{value:.4g}" for value in base_sample)
    with replaced(folder / WEIGHTS_FILE, folder / CONFIG_FILE) as (weights, settings):
        write_tensors(weights, tensors, metadata)
        settings.write_text(json.dumps(values, indent=2) + "\n", encoding="utf8")


def _check_savable(tensor: Tensor, what: str, folder: Path) -> None:
    if tensor.is_meta:
        raise ValueError(f"{what} is on the meta device and has no numbers: nothing was saved to {folder}")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{what} has NaN or infinity in it: nothing was saved to {folder}")


def _meaning(values: dict[str, Any]) -> str:
    return json.dumps({key: values.get(key) for key in _MEANING})


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
    return AdapterFile(config, *_read_weights(folder / WEIGHTS_FILE, config))


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
        if values.get(key) != value:
            raise AdapterError(f"{path}: {key} = {values.get(key)!r}, but its kind of adapter needs {value!r}")
    ours = {f.name for f in fields(LoRAConfig)} - {"kind"}
    known = ours | _NO_EFFECT | needed.keys()
    for key, value in values.items():
        # An option that is off (null, false, empty) asks for nothing, whatever it is called.
        if key not in known and value and value not in _OFF.get(key, ()):
            raise AdapterError(f"{path}: {key} = {value!r} is not supported here, and without it results would differ")
    if isinstance(values["target_modules"], list):
        names = [t.replace("_orig_mod.", "") if isinstance(t, str) else t for t in values["target_modules"]]
        values["target_modules"] = names  # of a compiled model
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


def _read_weights(path: Path, config: LoRAConfig) -> tuple[Layers, list[float], dict[str, Tensor], dict[str, Tensor]]:
    try:
        tensors, metadata = read_tensors(path)
    except ValueError as error:
        raise AdapterError(str(error)) from error
    kind, meaning = config.adapter_class, metadata.get("config", "")
    if "tensors" in metadata and metadata["tensors"] != digest(tensors, meaning):
        raise AdapterError(f"{path} is damaged: its tensors are not those that were saved (their SHA-256 differs)")
    if meaning and meaning != (now := _meaning(asdict(config))):
        raise AdapterError(
            f"{path} and its {CONFIG_FILE} are not of one save (or one was edited): it was saved with {meaning}, "
            f"the config says {now}. Save the adapter again, or put these values back"
        )
    copied = (*(config.modules_to_save or []), *HEADS.get(config.task_type or "", ()))
    copies: dict[str, Tensor] = {}
    parts = {suffix: part for part, suffix in kind.file_names.items()} | {_BASE: _BASE}
    layers: Layers = {}
    for name, tensor in tensors.items():
        key = name.replace("_orig_mod.", "")  # of a compiled model
        suffix = next((s for s in parts if key.endswith("." + s)), None)
        if suffix is None and key.startswith(_PREFIX) and _is_within(key[len(_PREFIX) :], copied):
            if tensor.dtype in _FLOATS and not bool(torch.isfinite(tensor).all()):
                raise AdapterError(f"{path}: {key} must hold finite floats, is {_describe(tensor)}")
            copies[key[len(_PREFIX) :]] = tensor
            continue
        if suffix is None or not key.startswith(_PREFIX):
            wanted = " or ".join(kind.file_names.values())
            raise AdapterError(f"{path}: tensor {key!r} is not a LoRA weight ({_PREFIX}….{wanted})")
        if tensor.dtype not in _FLOATS or not bool(torch.isfinite(tensor.float()).all()):
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
    return layers, sample, base_weights, copies


def _is_within(name: str, modules: Sequence[str]) -> bool:
    """Whether a tensor of this dotted name is of a module whose name ends as one of `modules`."""
    parts = name.split(".")
    return any(".".join(parts[:i]).endswith(tuple(modules)) for i in range(1, len(parts)))


def _turn(tensor: Tensor) -> Tensor:
    """A matrix from our orientation to the file's, or back: PEFT keeps A as (r, d) and B as (k, r)."""
    return tensor.T if tensor.ndim == 2 else tensor


def _describe(tensor: Tensor) -> str:
    whole = tensor.dtype in _FLOATS and bool(torch.isfinite(tensor).all())
    odd = " with NaN or infinity in it" if tensor.dtype in _FLOATS else ""
    odd = " with numbers too large for float32 in it" if whole else odd
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}{odd}"

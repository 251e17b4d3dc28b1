"""Adapters on disk, in the format of Hugging Face PEFT: two files in one folder.

`adapter_config.json` says how the adapter was made. `adapter_model.safetensors` holds, for each layer,
`base_model.model.<layer>.lora_A.weight` (r, d) and `.lora_B.weight` (k, r): our A and B, transposed. Modules that
were trained in full are in it under their names. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lora_lib.adapters.config import HEADS, PEFT_FIELDS, LoRAConfig, refusal
from lora_lib.adapters.names import uncompiled
from lora_lib.lora_linear import LoRA
from lora_lib.tensor_files import current, digest, read_tensors, replaced, write_tensors

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX, _BASE = "base_model.model.", "base_layer.weight"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

Layers = dict[str, dict[str, Tensor]]  # for each layer A (d, r) and B (r, k), or whatever its kind of adapter has
Samples = dict[str, list[tuple[int, float]]]  # for each weight some of its numbers, each with its position


class AdapterError(ValueError):
    """An adapter folder that cannot be opened, or does not fit the model; the message says why."""


class AdapterFile(NamedTuple):
    """What `read_adapter` finds in a folder.

    `copies` are the tensors of modules that were trained in full. The last three show which base it was made for:
    `base_sample` are numbers from the adapted layers' weights and `model_sample` from embeddings and head (both are
    empty in PEFT's files); `base_weights` are whole (d, k) weights, which PEFT adds for an adapted head.
    """

    config: LoRAConfig
    layers: Layers
    copies: dict[str, Tensor]
    base_sample: list[float]
    model_sample: Samples
    base_weights: dict[str, Tensor]

    def renamed(self, rename: Callable[[str], str]) -> AdapterFile:
        """A copy with its layers renamed."""
        targets = self.config.target_modules
        if isinstance(targets, list):
            targets = [rename(target) for target in targets]
        return self._replace(
            config=replace(self.config, target_modules=targets),
            layers={rename(name): parts for name, parts in self.layers.items()},
            copies={rename(name): tensor for name, tensor in self.copies.items()},
            base_weights={rename(name): tensor for name, tensor in self.base_weights.items()},
        )


# --- writing --------------------------------------------------------------------------------------


def write_adapter(
    folder: str | Path,
    config: LoRAConfig,
    layers: Layers,
    base_sample: Sequence[float] = (),
    copies: Mapping[str, Tensor] | None = None,
    model_sample: Samples | None = None,
    **extra: Any,
) -> None:
    """Write an adapter folder. `extra` is added to the config; the samples go into the weights' metadata.

    Both files are complete before they replace the old ones. Raises ValueError for a tensor that is not finite, and
    OSError if they cannot be written; the old files are then unchanged.
    """
    folder, tensors = Path(folder), {}
    for name, parts in layers.items():
        for part, suffix in config.variant.file_names.items():
            _check_savable(parts[part], f"{part} of {name}", folder)
            tensors[_PREFIX + name + "." + suffix] = _turn(parts[part])
    for name, tensor in (copies or {}).items():
        _check_savable(tensor, name, folder)
        tensors[_PREFIX + name] = tensor
    values = {"peft_type": "LORA", "bias": "none", "inference_mode": True, **asdict(config), **extra}
    values |= config.variant.config_fields
    del values["adapter_cls"]
    values = {key: value for key, value in values.items() if value is not None}
    meaning = _meaning(values)
    metadata = {"format": "pt", "config": meaning, "tensors": digest(tensors, meaning)}
    if base_sample:
        metadata["base_sample"] = " ".join(f"{value:.4g}" for value in base_sample)
    if model_sample:
        rounded = {name: [(at, float(f"{value:.4g}")) for at, value in found] for name, found in model_sample.items()}
        metadata["model_sample"] = json.dumps(rounded)
    with replaced(folder / WEIGHTS_FILE, folder / CONFIG_FILE) as (weights, settings):
        write_tensors(weights, tensors, metadata)
        settings.write_text(json.dumps(values, indent=2) + "\n", encoding="utf8")


def _check_savable(tensor: Tensor, what: str, folder: Path) -> None:
    if tensor.is_meta:
        raise ValueError(f"{what} is on the meta device and has no numbers: nothing was saved to {folder}")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{what} has NaN or infinity in it: nothing was saved to {folder}")


def _meaning(values: dict[str, Any]) -> str:
    """The fields that the meaning of the tensors depends on, as they are stored beside the tensors."""
    return json.dumps({key: values.get(key) for key in PEFT_FIELDS["meaning"]})


# --- reading --------------------------------------------------------------------------------------


def read_adapter(folder: str | Path, adapter_cls: type[LoRA] | None = None) -> AdapterFile:
    """Read a folder that this library or PEFT wrote. `adapter_cls` is the class of its bypasses, if you wrote your own.

    Raises AdapterError, which names the file and what is wrong with it.
    """
    folder = Path(folder)
    weights, settings = current(folder / WEIGHTS_FILE, folder / CONFIG_FILE)
    for file in (settings, weights):
        if not file.is_file():
            pickled = " (pickled .bin weights are never opened)" if (folder / "adapter_model.bin").exists() else ""
            raise AdapterError(f"{folder} has no {file.name}: expected a folder written by save_pretrained{pickled}")
    config = _config(settings, _read_json(settings), adapter_cls)
    try:
        tensors, metadata = read_tensors(weights)
    except (OSError, ValueError) as error:
        raise AdapterError(f"{weights} cannot be read: {error}") from error
    _check_one_save(weights, tensors, metadata, config)
    layers, copies = _sorted_tensors(weights, tensors, config)
    base_weights = {name: parts.pop(_BASE) for name, parts in layers.items() if _BASE in parts}
    for name, parts in layers.items():
        if missing := [suffix for part, suffix in config.variant.file_names.items() if part not in parts]:
            raise AdapterError(f"{weights}: layer {name} has no {' and no '.join(missing)}")
    return AdapterFile(config, layers, copies, *_samples(weights, metadata), base_weights)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf8"))
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        raise AdapterError(f'{path}: expected an object with "peft_type": "LORA"')
    return values


def _config(path: Path, values: dict[str, Any], adapter_cls: type[LoRA] | None) -> LoRAConfig:
    """The `LoRAConfig` for the values in a file, once all of them have been found to be supported."""
    for key in ("r", "lora_alpha", "target_modules"):
        if not values.get(key):
            raise AdapterError(f"{path}: {key} is missing (PEFT would silently use its default)")
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
    meaning = metadata.get("config", "")
    if "tensors" in metadata and metadata["tensors"] != digest(tensors, meaning):
        raise AdapterError(f"{path} is damaged: its tensors are not those that were saved (their SHA-256 differs)")
    if meaning and meaning != (now := _meaning(asdict(config))):
        raise AdapterError(
            f"{path} and its {CONFIG_FILE} are not from one save (or one was edited): the tensors were saved with "
            f"{meaning}, the config says {now}. Save the adapter again, or put these values back"
        )


def _sorted_tensors(path: Path, tensors: Mapping[str, Tensor], config: LoRAConfig) -> tuple[Layers, dict[str, Tensor]]:
    """The tensors of a file, layer by layer, and those of the modules that were trained in full."""
    copied = (*(config.modules_to_save or []), *HEADS.get(config.task_type or "", ()))
    parts = {suffix: part for part, suffix in config.variant.file_names.items()} | {_BASE: _BASE}
    layers: Layers = {}
    copies: dict[str, Tensor] = {}
    for saved_name, tensor in tensors.items():
        key = uncompiled(saved_name)
        name = key.removeprefix(_PREFIX)
        suffix = next((s for s in parts if key.endswith("." + s)), None)
        is_copy = suffix is None and _is_within(name, copied)
        if name == key or (suffix is None and not is_copy):
            wanted = " or ".join(config.variant.file_names.values())
            raise AdapterError(f"{path}: tensor {key!r} is not a LoRA weight ({_PREFIX}….{wanted})")
        if not (is_copy and tensor.dtype not in _FLOATS) and not _is_finite(tensor, wide=is_copy):
            raise AdapterError(f"{path}: {key} must hold finite floats, is {_describe(tensor)}")
        if suffix is None:
            copies[name] = tensor
        else:
            layers.setdefault(name.removesuffix("." + suffix), {})[parts[suffix]] = _turn(tensor)
    return layers, copies


def _samples(path: Path, metadata: Mapping[str, str]) -> tuple[list[float], Samples]:
    """The two samples of the base's weights, from the metadata."""
    try:
        sample = [float(value) for value in metadata.get("base_sample", "").split()]
        saved = json.loads(metadata.get("model_sample", "{}"))
        return sample, {name: [(int(at), float(value)) for at, value in found] for name, found in saved.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise AdapterError(f"{path}: the sample of the base's weights in its metadata is damaged: {error}") from error


def _is_within(name: str, modules: Sequence[str]) -> bool:
    """Whether the tensor called `name` belongs to a module whose name ends in one of `modules`."""
    parts = name.split(".")
    return any(".".join(parts[:i]).endswith(tuple(modules)) for i in range(1, len(parts)))


def _turn(tensor: Tensor) -> Tensor:
    """Transpose a matrix from our layout to the file's, or back: PEFT stores A as (r, d) and B as (k, r)."""
    return tensor.T if tensor.ndim == 2 else tensor


def _is_finite(tensor: Tensor, *, wide: bool) -> bool:
    """Whether a tensor holds finite floats: as stored, or (not `wide`) as float32, in which A and B are computed."""
    return tensor.dtype in _FLOATS and bool(torch.isfinite(tensor if wide else tensor.float()).all())


def _describe(tensor: Tensor) -> str:
    odd = " with NaN or infinity in it" if tensor.dtype in _FLOATS else ""
    odd = " with numbers too large for float32 in it" if _is_finite(tensor, wide=True) else odd
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}{odd}"

"""From an adapter in a model to a folder that PEFT opens too."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_lib.adapters.config import LoRAConfig, meaning
from lora_lib.adapters.files import CONFIG_FILE, PREFIX, WEIGHTS_FILE, Layers
from lora_lib.adapters.names import Names, Samples, base_sample, model_sample, turned, uncompiled
from lora_lib.adapters.plan import Planned, exact_targets, make_plan, pattern_of, planned
from lora_lib.lora_linear import LoRA
from lora_lib.tensor_files import digest, replaced, whole, write_tensors


def save_adapter(
    model: nn.Module, folder: str | Path, config: LoRAConfig, parts: Mapping[str, nn.Module], lost: Sequence[str] = ()
) -> None:
    """Write the parts of an adapter, by the dotted name of the module that each belongs to.

    The base's name is written too, if the config has one or the model knows where it was loaded from. `lost` are
    modules that had a part and have been replaced in the model since: a warning names them. Raises as `write_adapter`.
    """
    if lost:
        warnings.warn(
            f"{', '.join(lost[:3])}{', …' if len(lost) > 3 else ''} had this adapter and has been replaced in the "
            "model: the adapter is saved without that part",
            stacklevel=3,
        )
    names = Names(model)
    layers = {name: part.tensors_to_save() for name, part in parts.items() if isinstance(part, LoRA)}
    copies = {name: part for name, part in parts.items() if name not in layers}
    plan = [planned(names, config, name, config.variant) for name in layers]
    targets = _targets(names, config, plan)
    settings = {p.in_file: (p.rank, p.alpha) for p in plan}
    more = config.variant.saved_ranks
    if more > 1:
        grown = math.sqrt(more) if config.use_rslora else more
        settings = {name: (more * rank, grown * alpha) for name, (rank, alpha) in settings.items()}
        config = replace(config, r=more * config.r, lora_alpha=grown * config.lora_alpha, init_lora_weights=True)
    config = replace(
        config,
        target_modules=targets,
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,  # targets say it
        rank_pattern=pattern_of({name: rank for name, (rank, _) in settings.items()}, config.r),
        alpha_pattern=pattern_of({name: alpha for name, (_, alpha) in settings.items()}, config.lora_alpha),
        base_model_name_or_path=config.base_model_name_or_path or _name_of(names.plain),
    )
    write_adapter(
        folder, config,
        {p.in_file: {part: whole(t) for part, t in layers[p.name].items()} for p in plan},
        base_sample(names, list(layers)),
        {key: whole(t) for name, part in copies.items() for key, t in names.stored_tensors(name, part).items()},
        model_sample(names), task_type=config.task_type or ("CAUSAL_LM" if names.is_causal else None),
        fan_in_fan_out=names.transposes,
    )  # fmt: skip


def _name_of(model: nn.Module) -> str | None:
    """Where a model of Hugging Face's was loaded from: a name on the Hub or a folder. PEFT finds the base by it."""
    name = getattr(model, "name_or_path", None)
    return name if isinstance(name, str) and name else None


def _targets(names: Names, config: LoRAConfig, plan: Sequence[Planned]) -> list[str] | str:
    """Targets as PEFT understands them: layer by layer, unless the config's own list chooses the same layers there."""
    wanted, layers = config.target_modules, [p.name for p in plan]
    plain = isinstance(wanted, list) and all(uncompiled(target) == target for target in wanted)
    if not plain or config.exclude_modules or config.layers_to_transform is not None:
        return exact_targets(names, layers)
    try:
        same = {p.name for p in make_plan(names, config) if p.kind} == set(layers)
    except ValueError:  # a target has been replaced in the model by something that is not a linear layer
        same = False
    return [names.target_in_file(target) for target in wanted] if same else exact_targets(names, layers)


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
            tensors[PREFIX + name + "." + suffix] = turned(parts[part])
    for name, tensor in (copies or {}).items():
        _check_savable(tensor, name, folder)
        tensors[PREFIX + name] = tensor
    values = {"peft_type": "LORA", "bias": "none", "inference_mode": True, **asdict(config), **extra}
    values |= config.variant.config_fields
    del values["adapter_cls"]
    values = {key: value for key, value in values.items() if value is not None}
    meant = meaning(values)
    metadata = {"format": "pt", "config": meant, "tensors": digest(tensors, meant)}
    if base_sample:
        metadata["base_sample"] = " ".join(f"{value:.4g}" for value in base_sample)
    if model_sample:
        rounded = {name: [(at, float(f"{value:.4g}")) for at, value in found] for name, found in model_sample.items()}
        metadata["model_sample"] = json.dumps(rounded)
    with replaced(folder / CONFIG_FILE, folder / WEIGHTS_FILE) as (settings, weights):
        write_tensors(weights, tensors, metadata)
        settings.write_text(json.dumps(values, indent=2) + "\n", encoding="utf8")


def _check_savable(tensor: Tensor, what: str, folder: Path) -> None:
    if tensor.is_meta:
        raise ValueError(f"{what} is on the meta device and has no numbers: nothing was saved to {folder}")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{what} has NaN or infinity in it: nothing was saved to {folder}")

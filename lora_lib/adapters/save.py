"""From an adapter in a model to a folder that PEFT opens too."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from lora_lib.adapters.config import LoRAConfig
from lora_lib.adapters.files import write_adapter
from lora_lib.adapters.load import copied_tensors
from lora_lib.adapters.names import Names, uncompiled
from lora_lib.adapters.same_base import base_sample, model_sample
from lora_lib.adapters.targets import config_targets, exact_targets, pattern_of, rank_and_alpha
from lora_lib.lora_linear import LoRA
from lora_lib.tensor_files import whole


def save_adapter(
    model: nn.Module, folder: str | Path, config: LoRAConfig, parts: Mapping[str, nn.Module], lost: Sequence[str] = ()
) -> None:
    """Write the parts of an adapter, by the dotted name of the module that each belongs to.

    The base's name is written too, where the config has one or the model knows where it was loaded from.
    `lost` are modules that had a part and have been replaced in the model since: raises a warning that names them.
    Raises as `write_adapter` does.
    """
    if lost:
        warnings.warn(
            f"{', '.join(lost[:3])}{', …' if len(lost) > 3 else ''} had this adapter and has been replaced in the "
            "model: the adapter is saved without that part",
            stacklevel=3,
        )
    names = Names(model)
    bypasses = {name: part for name, part in parts.items() if isinstance(part, LoRA)}
    copies = {name: part for name, part in parts.items() if not isinstance(part, LoRA)}
    layers = {names.in_file(name): bypass.tensors_to_save() for name, bypass in bypasses.items()}
    targets = _targets(names, config, list(bypasses))
    settings = {names.in_file(name): rank_and_alpha(names, config, name) for name in bypasses}
    more = config.variant.saved_ranks
    if more > 1:
        grown = math.sqrt(more) if config.use_rslora else more
        settings = {name: (more * rank, grown * alpha) for name, (rank, alpha) in settings.items()}
        config = replace(config, r=more * config.r, lora_alpha=grown * config.lora_alpha, init_lora_weights=True)
    config = replace(
        config,
        target_modules=targets,
        rank_pattern=pattern_of({name: rank for name, (rank, _) in settings.items()}, config.r),
        alpha_pattern=pattern_of({name: alpha for name, (_, alpha) in settings.items()}, config.lora_alpha),
        base_model_name_or_path=config.base_model_name_or_path or _name_of(names.plain),
    )
    write_adapter(
        folder, config, {name: {part: whole(t) for part, t in found.items()} for name, found in layers.items()},
        base_sample(names, list(bypasses)), {n: whole(t) for n, t in copied_tensors(names, copies).items()},
        model_sample(names), task_type=config.task_type or ("CAUSAL_LM" if names.is_causal else None),
        fan_in_fan_out=names.transposes,
    )  # fmt: skip


def _name_of(model: nn.Module) -> str | None:
    """Where a model of Hugging Face's was loaded from: a name on the Hub or a folder. PEFT finds the base by it."""
    name = getattr(model, "name_or_path", None)
    return name if isinstance(name, str) and name else None


def _targets(names: Names, config: LoRAConfig, layers: Sequence[str]) -> list[str] | str:
    """Targets as PEFT understands them: layer by layer, unless the config's own list chooses the same layers there."""
    wanted = config.target_modules
    plain = isinstance(wanted, list) and all(uncompiled(target) == target for target in wanted)
    if not plain or config.exclude_modules or config.layers_to_transform is not None:
        return exact_targets(names, layers)
    try:
        same = set(config_targets(names, config)) == set(layers)
    except ValueError:  # a target has been replaced in the model by something that is not a linear layer
        same = False
    return [names.target_in_file(target) for target in wanted] if same else exact_targets(names, layers)

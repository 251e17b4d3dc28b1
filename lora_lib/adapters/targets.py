"""Which layers of a model are meant: targets and patterns, as names, ends of names or regular expressions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lora_lib.adapters.config import HEADS, LoRAConfig
from lora_lib.adapters.modules_to_save import TrainedCopy
from lora_lib.gpt2.model import GPT2Model, hf_name
from lora_lib.lora_linear import LoRA, LoRALinear

Value = TypeVar("Value", int, float)


def find_targets(model: nn.Module, target_modules: Sequence[str] | str, kind: type[LoRA] = LoRA) -> list[str]:
    """The dotted names of the layers that `target_modules` chooses, in the model's order.

    Layers of our GPT-2 are found under their own name and under Hugging Face's (`out_head`, `lm_head`).
    Raises ValueError as `get_peft_model` does. "Linear" stands for whatever layers a `kind` of adapter fits.
    """
    modules = _modules(model)
    linear = [name for name, module in modules.items() if _fits_kind(module, kind)]
    if not linear:
        raise ValueError(f"there is no linear layer in this {type(model).__name__} (LoRALinear wraps a single layer)")
    if target_modules == "all-linear":
        head_of: Any = getattr(plain_model(model), "get_output_embeddings", lambda: None)
        head = head_of()
        found = [name for name in linear if modules[name] is not head]
    elif isinstance(target_modules, str):
        found = [name for name in linear if any(_regex(target_modules, n) for n in _names(model, name))]
        if not found:
            raise ValueError(
                f"the regular expression {target_modules!r} matches no whole name of a layer; {_choices(linear)}"
                f" (for layers by the end of their name pass a list: [{target_modules!r}])"
            )
    elif not target_modules:
        raise ValueError(f"target_modules is empty; {_choices(linear)}")
    else:
        found = [name for target in target_modules for name in _find_target(model, modules, linear, target)]
    chosen = {id(modules[name]): name for name in reversed(modules) if name in found}  # a shared layer counts once
    return [name for name in modules if name in chosen.values()]


def config_targets(model: nn.Module, config: LoRAConfig) -> list[str]:
    """The layers that get a bypass: those of `target_modules` without what the config's other fields leave out.

    Raises ValueError as `find_targets`, and where nothing is left.
    """
    saved = config_copies(model, config)
    found = find_targets(model, config.target_modules, config.adapter_class)
    names = [n for n in found if not n.startswith(tuple(s + "." for s in saved)) and n not in saved]
    names = [n for n in names if _in_layers(config, file_name(model, n)) and not _excluded(config, model, n)]
    if not names:
        raise ValueError(
            "exclude_modules, layers_to_transform and modules_to_save leave none of the targets: "
            f"{', '.join(found[:5])}{', …' if len(found) > 5 else ''}"
        )
    return names


def _excluded(config: LoRAConfig, model: nn.Module, name: str) -> bool:
    out = config.exclude_modules
    if isinstance(out, str):
        return any(_regex(out, n) for n in _names(model, name))
    return any(("." + n).endswith("." + end) for n in _names(model, name) for end in out or [])


def _in_layers(config: LoRAConfig, name: str) -> bool:
    """Whether the first number in a layer's name (behind one of `layers_pattern`) is among `layers_to_transform`."""
    wanted, patterns = config.layers_to_transform, config.layers_pattern or [r"[^.]*"]
    if wanted is None or wanted == []:
        return True
    patterns = [patterns] if isinstance(patterns, str) else patterns
    found = next(filter(None, (re.match(rf"(?:.*?\.)??{p}\.(\d+)\.", name) for p in patterns)), None)
    return found is not None and int(found[1]) in ([wanted] if isinstance(wanted, int) else wanted)


def config_copies(model: nn.Module, config: LoRAConfig) -> list[str]:
    """The modules that are trained in full: those whose name ends as one of `modules_to_save`, as PEFT reads it.

    Raises ValueError for a name that no module has, but for the heads that a task type adds by itself.
    """
    modules, chosen = _modules(model), []
    by_itself = HEADS.get(config.task_type or "", ())
    for end in dict.fromkeys([*(config.modules_to_save or []), *by_itself]):
        hits = [name for name in modules if any(n.endswith(end) for n in _names(model, name))]
        if not hits and end not in by_itself:
            raise ValueError(f"modules_to_save names {end!r}, which is no module of this {type(model).__name__}")
        chosen += hits
    return [name for name in modules if name in chosen and not name.startswith(tuple(n + "." for n in chosen))]


def _find_target(model: nn.Module, modules: dict[str, nn.Module], linear: Sequence[str], target: str) -> list[str]:
    hits = [n for n in modules if any(("." + k).endswith("." + target) for k in _names(model, n))]
    if not hits:
        near = difflib.get_close_matches(target, linear if "." in target else _last_parts(linear), n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ";"
        raise ValueError(f"target {target!r} matches no layer{hint} {_choices(linear)}")
    for name in hits:
        if name not in linear:
            kind = type(modules[name]).__name__
            raise ValueError(
                f"target {target!r} finds {name} ({kind}), but LoRA wraps linear layers; {_choices(linear)}"
            )
    return hits


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """All modules by dotted name, but for what is inside a LoRA layer or beside a trained copy."""
    named = dict(model.named_modules(remove_duplicate=False))
    wrapped = tuple(name + "." for name, module in named.items() if isinstance(module, (LoRALinear, TrainedCopy)))
    return {name: module for name, module in named.items() if name and not name.startswith(wrapped)}


def _fits_kind(module: nn.Module, kind: type[LoRA]) -> bool:
    try:
        kind.shape_of(module.base if isinstance(module, LoRALinear) else module)
    except TypeError:
        return False
    return True


def plain_model(model: nn.Module) -> nn.Module:
    """The model itself, without what torch.compile, DataParallel or DistributedDataParallel put around it."""
    return _unwrapped(model, "")[0]


def _unwrapped(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The model inside its wrappers, and the name that a layer has in there."""
    name = name.replace("_orig_mod.", "")  # torch.compile's, of the model or of a part
    while True:
        if isinstance(model, (nn.DataParallel, DistributedDataParallel)):
            model, name = model.module, name.removeprefix("module.")
        elif "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        else:
            return model, name


def file_name(model: nn.Module, name: str) -> str:
    """A layer's name in an adapter file: that in the plain model, and Hugging Face's for our GPT-2."""
    model, name = _unwrapped(model, name)
    return hf_name(name) if isinstance(model, GPT2Model) else name


def _names(model: nn.Module, name: str) -> set[str]:
    """The names that a layer answers to."""
    return {name, file_name(model, name), _unwrapped(model, name)[1]}


def _regex(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error


def _choices(linear: Sequence[str]) -> str:
    return f"the linear layers of this model are called {', '.join(_last_parts(linear))}"


def _last_parts(names: Sequence[str]) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name in names})


def rank_and_alpha(config: LoRAConfig, model: nn.Module, name: str) -> tuple[int, float]:
    """A layer's r and alpha: of the first key in the patterns that fits it, else the config's own."""
    rank = next((v for p, v in config.rank_pattern.items() if fits_name(p, model, name)), config.r)
    return rank, next((v for p, v in config.alpha_pattern.items() if fits_name(p, model, name)), config.lora_alpha)


def fits_name(pattern: str, model: nn.Module, name: str) -> bool:
    """Whether a key of `rank_pattern` is a layer's name, the end of it, or a regular expression for either."""
    return any(_regex(rf"(.*\.)?({pattern})", n) for n in _names(model, name))


def pattern_of(values: dict[str, Value], usual: Value) -> dict[str, Value]:
    """What `rank_pattern` or `alpha_pattern` must say for these layers to have these values.

    A key also fits names that end in it: such longer names come first, with their own value.
    """
    odd = ["." + name for name, value in values.items() if value != usual]
    return {n: values[n] for n in sorted(values, key=len, reverse=True) if ("." + n).endswith(tuple(odd))}


def exact_targets(model: nn.Module, names: Sequence[str]) -> list[str] | str:
    """Targets that choose these layers and no other: a list where the names allow it, else a regular expression."""
    exact = [file_name(model, name) for name in names]
    ends = tuple("." + name for name in exact)
    found = [name for name in _modules(model) if ("." + file_name(model, name)).endswith(ends)]
    return exact if len(found) == len(exact) else "|".join(map(re.escape, exact))


def saved_targets(model: nn.Module, config: LoRAConfig, names: Sequence[str]) -> list[str] | str:
    """Targets as PEFT will understand them: what is not a plain list of names is written out, layer by layer."""
    less = config.exclude_modules or config.layers_to_transform is not None
    if less or isinstance(config.target_modules, str) or any("_orig_mod" in t for t in config.target_modules):
        return exact_targets(model, names)
    ours = isinstance(plain_model(model), GPT2Model)
    return [hf_name(t) if t == "out_head" and ours else t for t in config.target_modules]


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` where `old` stands, in every place where a model that shares layers has it."""
    for parent in list(model.modules()):
        for child, module in parent._modules.items():
            if module is old:
                setattr(parent, child, new)

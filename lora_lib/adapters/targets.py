"""Which layers of a model an adapter is for: by name, by the end of a name, or by a regular expression."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn

from lora_lib.adapters.config import HEADS, LoRAConfig
from lora_lib.adapters.names import Names
from lora_lib.layers.adapted import base_of
from lora_lib.lora_linear import LoRA

Value = TypeVar("Value", int, float)


def find_targets(model: nn.Module, target_modules: Sequence[str] | str, adapter_cls: type[LoRA] = LoRA) -> list[str]:
    """The dotted names of the layers that `target_modules` chooses, in the model's order.

    Layers of our GPT-2 are found under their own names and under Hugging Face's (`out_head`, `lm_head`). "all-linear"
    and a regular expression choose among the layers that `adapter_cls` can wrap. Raises ValueError as `get_peft_model`
    does.
    """
    return find(Names(model), target_modules, adapter_cls)


def find(names: Names, target_modules: Sequence[str] | str, adapter_cls: type[LoRA] = LoRA) -> list[str]:
    """As `find_targets`, for the names of a model."""
    linear = [name for name, module in names.modules.items() if _fits(module, adapter_cls)]
    if not linear:
        kind = type(names.model).__name__
        raise ValueError(f"there is no linear layer in this {kind} (LoRALinear wraps a single layer)")
    if target_modules == "all-linear":
        head_of: Any = getattr(names.plain, "get_output_embeddings", lambda: None)
        head = head_of()
        found = [name for name in linear if names.modules[name] is not head]
    elif isinstance(target_modules, str):
        found = [name for name in linear if any(_regex(target_modules, n) for n in names.all_of(name))]
        if not found:
            raise ValueError(
                f"the regular expression {target_modules!r} matches no whole name of a layer; {_choices(linear)}"
                f" (for layers by the end of their name pass a list: [{target_modules!r}])"
            )
    elif not target_modules:
        raise ValueError(f"target_modules is empty; {_choices(linear)}")
    else:
        found = [name for target in target_modules for name in _find_one(names, linear, target)]
    modules = names.modules
    chosen = {id(modules[name]): name for name in reversed(modules) if name in found}  # a shared layer counts once
    return [name for name in modules if name in chosen.values()]


def config_targets(names: Names, config: LoRAConfig) -> list[str]:
    """The layers that get a bypass: those of `target_modules` that no other field of the config excludes.

    Raises ValueError as `find_targets` does, and if no layer is left.
    """
    saved = config_copies(names, config)
    found = find(names, config.target_modules, config.variant)
    left = [n for n in found if not n.startswith(tuple(s + "." for s in saved)) and n not in saved]
    left = [n for n in left if _in_layers(config, names.in_file(n)) and not _excluded(config, names, n)]
    if not left:
        raise ValueError(
            "exclude_modules, layers_to_transform and modules_to_save leave none of the targets: "
            f"{', '.join(found[:5])}{', …' if len(found) > 5 else ''}"
        )
    return left


def _excluded(config: LoRAConfig, names: Names, name: str) -> bool:
    out = config.exclude_modules
    if isinstance(out, str):
        return any(_regex(out, n) for n in names.all_of(name))
    return any(names.any_ends_in(name, end) for end in out or [])


def _in_layers(config: LoRAConfig, name: str) -> bool:
    """Whether the first number in a layer's name (after one of `layers_pattern`) is among `layers_to_transform`."""
    wanted, patterns = config.layers_to_transform, config.layers_pattern or [r"[^.]*"]
    if wanted is None or wanted == []:
        return True
    patterns = [patterns] if isinstance(patterns, str) else patterns
    found = next(filter(None, (re.match(rf"(?:.*?\.)??{p}\.(\d+)\.", name) for p in patterns)), None)
    return found is not None and int(found[1]) in ([wanted] if isinstance(wanted, int) else wanted)


def config_copies(names: Names, config: LoRAConfig) -> list[str]:
    """The modules that are trained in full: those whose name ends in one of `modules_to_save`, as in PEFT.

    Raises ValueError for a name that no module has, except for the heads that a task type adds.
    """
    modules, chosen = names.modules, []
    of_the_task = HEADS.get(config.task_type or "", ())
    for end in dict.fromkeys([*(config.modules_to_save or []), *of_the_task]):
        hits = [name for name in modules if any(n.endswith(end) for n in names.all_of(name))]
        if not hits and end not in of_the_task:
            kind = type(names.model).__name__
            raise ValueError(f"modules_to_save names {end!r}, but no module of this {kind} is called that")
        chosen += hits
    return [name for name in modules if name in chosen and not name.startswith(tuple(n + "." for n in chosen))]


def _find_one(names: Names, linear: Sequence[str], target: str) -> list[str]:
    hits = [name for name in names.modules if names.any_ends_in(name, target)]
    if not hits:
        near = difflib.get_close_matches(target, linear if "." in target else _last_parts(linear), n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ";"
        raise ValueError(f"target {target!r} matches no layer{hint} {_choices(linear)}")
    for name in hits:
        if name not in linear:
            kind = type(names.modules[name]).__name__
            raise ValueError(
                f"target {target!r} finds {name} ({kind}), but LoRA wraps linear layers; {_choices(linear)}"
            )
    return hits


def _fits(module: nn.Module, adapter_cls: type[LoRA]) -> bool:
    try:
        adapter_cls.shape_of(base_of(module))
    except TypeError:
        return False
    return True


def _regex(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error


def _choices(linear: Sequence[str]) -> str:
    return f"the linear layers of this model are called {', '.join(_last_parts(linear))}"


def _last_parts(linear: Sequence[str]) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name in linear})


def rank_and_alpha(names: Names, config: LoRAConfig, name: str) -> tuple[int, float]:
    """A layer's r and alpha: from the first matching key of the patterns, or else the config's."""
    rank = next((v for p, v in config.rank_pattern.items() if fits_name(p, names, name)), config.r)
    return rank, next((v for p, v in config.alpha_pattern.items() if fits_name(p, names, name)), config.lora_alpha)


def fits_name(pattern: str, names: Names, name: str) -> bool:
    """Whether a key of `rank_pattern` is a layer's name, the end of it, or a regular expression for either."""
    return any(_regex(rf"(.*\.)?({pattern})", n) for n in names.all_of(name))


def pattern_of(values: dict[str, Value], usual: Value) -> dict[str, Value]:
    """The `rank_pattern` or `alpha_pattern` that gives these layers these values.

    A key also fits longer names that end in it. So longer names come first, with their own value.
    """
    odd = ["." + name for name, value in values.items() if value != usual]
    return {n: values[n] for n in sorted(values, key=len, reverse=True) if ("." + n).endswith(tuple(odd))}


def exact_targets(names: Names, chosen: Sequence[str]) -> list[str] | str:
    """Targets that choose these layers and no other: ends of names, as short as possible, else a regular expression."""
    exact = [names.in_file(name) for name in chosen]
    kept = set(exact)
    others = ["." + name for name in map(names.in_file, names.modules) if name not in kept]
    found: list[str] = []
    for name in exact:
        if ("." + name).endswith(tuple("." + end for end in found)):
            continue
        parts = name.split(".")
        ends = [".".join(parts[start:]) for start in reversed(range(len(parts)))]
        fitting = [end for end in ends if not any(other.endswith("." + end) for other in others)]
        if not fitting:  # the whole name is the end of another layer's
            return "|".join(map(re.escape, exact))
        found.append(fitting[0])
    return found


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` where `old` is, in every place where a model that shares layers has it."""
    for parent in list(model.modules()):
        for child, module in parent._modules.items():
            if module is old:
                setattr(parent, child, new)

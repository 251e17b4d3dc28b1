"""The plan of an adapter: which layers of a model it is for, and for each its name in the file, rank, alpha and kind.

`get_peft_model` makes the parts of a new adapter from it, loading checks a file against it, saving writes it down.
Nothing here changes the model.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from torch import nn

from lora_lib.adapters.config import HEADS, LoRAConfig
from lora_lib.adapters.names import Names
from lora_lib.layers.adapted import adapted_layers, base_of, check_rank, own_base
from lora_lib.lora_linear import LoRA

Value = TypeVar("Value", int, float)
Parts = dict[str, nn.Module]  # by the names of their layers: bypasses, and copies of the modules trained in full


class Planned(NamedTuple):
    """One layer of an adapter: its name in the model and in a file, and what its bypass is."""

    name: str
    in_file: str
    rank: int
    alpha: float
    kind: type[LoRA] | None  # None for a module that is trained in full


def make_plan(names: Names, config: LoRAConfig, from_file: bool = False) -> list[Planned]:
    """The layers that an adapter with this config has in a model: those with a bypass, then those trained in full.

    Raises ValueError as `get_peft_model` does, and for a key of `rank_pattern` or `alpha_pattern` that fits no layer,
    unless it comes from a file: PEFT may have written it.
    """
    copies = _copied(names, config)
    targets = _targets(names, config, copies)
    for pattern in {**config.rank_pattern, **config.alpha_pattern}:
        if not (from_file or any(_fits_name(pattern, names, name) for name in targets)):
            raise ValueError(f"rank_pattern or alpha_pattern names {pattern!r}, which is none of the targets")
    bypasses = [planned(names, config, name, config.variant) for name in targets]
    return bypasses + [planned(names, config, name, None) for name in copies]


def planned(names: Names, config: LoRAConfig, name: str, kind: type[LoRA] | None) -> Planned:
    """One line of the plan. r and alpha are those of the first matching key of the patterns, or else the config's."""
    rank = next((v for p, v in config.rank_pattern.items() if _fits_name(p, names, name)), config.r)
    alpha = next((v for p, v in config.alpha_pattern.items() if _fits_name(p, names, name)), config.lora_alpha)
    return Planned(name, names.in_file(name), rank, alpha, kind)


def new_parts(names: Names, config: LoRAConfig, plan: Sequence[Planned], any_rank: bool = False) -> Parts:
    """The parts of a new adapter: a bypass for each target, and a copy of each module that is trained in full.

    A rank above min(d, k) is refused, because no change has a higher rank; files may have one (`any_rank`).
    """
    made: Parts = {}
    for name, _, rank, alpha, kind in plan:
        if kind is None:
            base = base_of(names.modules[name])
            if adapted_layers(base):
                raise ValueError(f"modules_to_save names {name}, and another adapter has LoRA layers in it")
            made[name] = copy.deepcopy(base)
            continue
        with own_base(names.modules[name]) as base:
            try:
                if not any_rank:
                    check_rank(rank, *kind.shape_of(base))
                made[name] = kind.from_base(
                    base, rank, alpha, config.lora_dropout, config.use_rslora, config.init_lora_weights
                )
            except (TypeError, ValueError) as error:
                raise type(error)(f"{name}: {error}") from error
    return made


def find_targets(model: nn.Module, target_modules: Sequence[str] | str, adapter_cls: type[LoRA] = LoRA) -> list[str]:
    """The dotted names of the layers that `target_modules` chooses, in the model's order.

    Layers of our GPT-2 are found under their own names and under Hugging Face's (`out_head`, `lm_head`). Raises
    ValueError as `get_peft_model` does.
    """
    return _find(Names(model), target_modules, adapter_cls)


def _find(names: Names, target_modules: Sequence[str] | str, adapter_cls: type[LoRA]) -> list[str]:
    linear = [name for name, module in names.modules.items() if _fits(module, adapter_cls)]
    if not linear:
        kind = type(names.model).__name__
        raise ValueError(f"there is no linear layer in this {kind} (LoRALinear wraps a single layer)")
    if target_modules == "all-linear":
        found = [name for name in linear if names.modules[name] is not names.head]
    elif isinstance(target_modules, str) and target_modules:
        found = [name for name in linear if any(_match(target_modules, n) for n in names.all_of(name))]
        if not found:
            hint = f"for layers by the end of their name pass a list: [{target_modules!r}]"
            if target_modules.lower().replace("_", "-") == "all-linear":
                hint = "did you mean 'all-linear'?"
            raise ValueError(
                f"the regular expression {target_modules!r} matches no whole name of a layer; "
                f"{_choices(linear)} ({hint})"
            )
    elif not target_modules:
        raise ValueError(f"target_modules is empty; {_choices(linear)}")
    elif "" in target_modules:
        raise ValueError(f"an empty text is among the target_modules; {_choices(linear)}")
    else:
        found = [name for target in target_modules for name in _find_one(names, linear, target)]
    return [name for name in names.modules if name in found]


def _targets(names: Names, config: LoRAConfig, copies: Sequence[str]) -> list[str]:
    """The layers that get a bypass: those of `target_modules` that no other field of the config excludes."""
    found = _find(names, config.target_modules, config.variant)
    left = [n for n in found if not n.startswith(tuple(s + "." for s in copies)) and n not in copies]
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
        return any(_match(out, n) for n in names.all_of(name))
    return any(names.any_ends_in(name, end) for end in out or [])


def _in_layers(config: LoRAConfig, name: str) -> bool:
    """Whether the first number in a layer's name is among `layers_to_transform`, as PEFT finds it.

    Without a `layers_pattern` that is a number after two names: none in "layers.0.proj".
    """
    wanted, patterns = config.layers_to_transform, config.layers_pattern or [r"[^.]*\.[^.]*"]
    if wanted is None or wanted == [] or name in config.target_modules:  # a whole name stands for itself
        return True
    patterns = [patterns] if isinstance(patterns, str) else patterns
    found = next(filter(None, (_match(rf"(?:.*?\.)??{p}\.(\d+)\..*", name) for p in patterns)), None)
    return found is not None and int(found[1]) in ([wanted] if isinstance(wanted, int) else wanted)


def _copied(names: Names, config: LoRAConfig) -> list[str]:
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


def _match(pattern: str, name: str) -> re.Match[str] | None:
    try:
        return re.fullmatch(pattern, name)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error


def _choices(linear: Sequence[str]) -> str:
    return f"the linear layers of this model are called {', '.join(_last_parts(linear))}"


def _last_parts(linear: Sequence[str]) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name in linear})


def _fits_name(pattern: str, names: Names, name: str) -> bool:
    """Whether a key of `rank_pattern` is a layer's name, the end of it, or a regular expression for either."""
    return any(_match(rf"(.*\.)?({pattern})", n) for n in names.all_of(name))


# --- a config that says the same ------------------------------------------------------------------


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

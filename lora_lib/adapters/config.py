"""How an adapter is made: `LoRAConfig`, with the field names of Hugging Face PEFT."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lora_lib.adapters.variants import DoRA, PiSSA
from lora_lib.lora_linear import LoRA
from lora_lib.settings import FLAG, TEXT, Rule, check, did_you_mean, number, one_of, optional, setting, unknown, whole

TASK_TYPES = ("CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}

# How each field of PEFT's LoraConfig is handled. `meaning` and `read` are fields of LoRAConfig; with another value of
# one in `meaning` the same tensors would be another adapter. `ignored` fields change no result. `refused` fields would,
# and the table says why. A field that is null, false, empty, or one of the values in `off` has no effect.
PEFT_FIELDS: dict[str, Any] = json.loads((Path(__file__).parent / "peft_fields.json").read_text(encoding="utf8"))


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_pattern(value: object, rule: Rule) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and rule.allows(v) for k, v in value.items())


def _is_indices(value: object) -> bool:
    return all(type(number) is int and number >= 0 for number in (value if isinstance(value, list) else [value]))


_ALPHA = number("above 0, at most 1e30", lambda value: 0 < value <= 1e30)  # larger than any use, still a float32
_RANKS = Rule("a whole number from 1 for each name", lambda value: _is_pattern(value, whole(1)))
_ALPHAS = Rule("a number above 0 for each name", lambda value: _is_pattern(value, _ALPHA))
_NAMES = Rule("a list of names, or a regular expression", lambda value: isinstance(value, str) or _is_texts(value))
_INDICES = Rule("a layer's number, or a list of them", _is_indices)
_STARTS = r"gaussian|pissa(_niter_[0-9]{1,4})?"
_INIT = Rule(
    "True, False, 'gaussian', 'pissa' or 'pissa_niter_N' (N a whole number)",
    lambda value: isinstance(value, bool) or (isinstance(value, str) and bool(re.fullmatch(_STARTS, value))),
    ("gaussian", "pissa"),
)
_KIND = Rule("LoRA or a subclass of it", lambda value: isinstance(value, type) and issubclass(value, LoRA))


@dataclass
class LoRAConfig:
    """How an adapter is made. Names and meanings are those of PEFT's `LoraConfig`.

    `target_modules` says which layers get LoRA: see `get_peft_model`. `exclude_modules` leaves out some of them.
    `layers_to_transform` keeps only layers with these numbers in their names (after one of `layers_pattern`, if
    given). `rank_pattern` and `alpha_pattern` give single layers their own r and alpha; a key is a layer's name, the
    end of a name, or a regular expression for either.

    `init_lora_weights` says how A and B start: True (A random, B zero), "gaussian" (A normal), False (B random too),
    "pissa", or "pissa_niter_N" with N power iterations. `use_dora` makes DoRA layers. `adapter_cls` is your own class
    for the bypasses, instead of the one that these two choose.

    `modules_to_save` are modules that are trained and saved in full. For classifiers (`task_type` SEQ_CLS or
    TOKEN_CLS) the head, `classifier` or `score`, is always one of them; for QUESTION_ANS it is `qa_outputs`.
    `task_type` and `base_model_name_or_path` are written into the file. Without a task type, a decoder-only language
    model is saved as CAUSAL_LM.

    Raises ValueError for a value that a field does not allow, and for values that contradict each other.
    """

    target_modules: list[str] | str = setting(_NAMES, "all-linear")
    r: int = setting(whole(1), 8)
    lora_alpha: float = setting(_ALPHA, 16)
    lora_dropout: float = setting(number("in [0, 1)", lambda value: 0 <= value < 1), 0.0)
    use_rslora: bool = setting(FLAG, False)
    rank_pattern: dict[str, int] = setting(_RANKS, default_factory=dict)
    alpha_pattern: dict[str, float] = setting(_ALPHAS, default_factory=dict)
    base_model_name_or_path: str | None = setting(optional(TEXT), None)
    task_type: str | None = setting(optional(one_of(*TASK_TYPES)), None)
    exclude_modules: list[str] | str | None = setting(optional(_NAMES), None)
    layers_to_transform: list[int] | int | None = setting(optional(_INDICES), None)
    layers_pattern: list[str] | str | None = setting(optional(_NAMES), None)
    modules_to_save: list[str] | None = setting(optional(Rule("a list of names", _is_texts)), None)
    use_dora: bool = setting(FLAG, False)
    init_lora_weights: bool | str = setting(_INIT, True)
    adapter_cls: type[LoRA] | None = setting(optional(_KIND), None)

    def __post_init__(self) -> None:
        for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern"):
            if isinstance(value := getattr(self, name), (tuple, set)):
                setattr(self, name, sorted(value, key=str) if isinstance(value, set) else list(value))
        check(self)
        if (self.layers_to_transform is not None or self.layers_pattern) and isinstance(self.target_modules, str):
            raise ValueError("layers_to_transform needs target_modules to be a list of names, as in PEFT")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern says where layers_to_transform are counted: set layers_to_transform too")
        if self.use_dora and self._is_pissa:
            raise ValueError("use_dora and PiSSA's initialisation make different kinds of adapter: choose one of them")
        if self.use_dora and not self.variant.config_fields.get("use_dora"):
            raise ValueError(f"use_dora = True, but {self.variant.__name__} is not a DoRA: leave adapter_cls out")

    @property
    def _is_pissa(self) -> bool:
        return isinstance(self.init_lora_weights, str) and self.init_lora_weights.startswith("pissa")

    @property
    def variant(self) -> type[LoRA]:
        """The class of the bypasses."""
        if self.adapter_cls is not None:
            return self.adapter_cls
        return DoRA if self.use_dora else PiSSA if self._is_pissa else LoRA


def config_of(given: dict[str, Any]) -> LoRAConfig:
    """The config with these fields, or the one given as `target_modules`.

    Raises TypeError for fields beside a config, for r beside lora_rank, and for a field that no config has.
    """
    config = given.get("target_modules")
    if isinstance(config, LoRAConfig) or type(config).__name__ == "LoraConfig":
        if len(given) > 1:
            raise TypeError("give the settings in the LoRAConfig or as keywords, not both")
        return checked_config(config)
    if "lora_rank" in given:
        if "r" in given:
            raise TypeError("r and lora_rank are the same setting: give one of them")
        given["r"] = given.pop("lora_rank")
    for name in given.keys() - {f.name for f in fields(LoRAConfig)}:
        if reason := refusal(name):
            raise TypeError(f"{name} is not supported{reason}")
        raise unknown(name, LoRAConfig, "LoRAConfig", ["lora_rank"])
    return LoRAConfig(**given)


def checked_config(config: object) -> LoRAConfig:
    """The config itself. Raises TypeError for anything else, such as PEFT's."""
    if isinstance(config, LoRAConfig):
        return config
    kind = type(config).__name__
    how = "it takes the same names" if kind == "LoraConfig" else "LoRAConfig(**fields)" if kind == "dict" else ""
    raise TypeError(f"expected lora_lib's LoRAConfig, got a {kind}{how and ': '}{how}")


def refusal(field: str) -> str:
    """Why a field of PEFT's is refused, as the end of a sentence; "" for a field that is not refused."""
    reason = PEFT_FIELDS["refused"].get(field)
    return f": {reason}" if reason else ""


def check_arguments(given: dict[str, Any]) -> None:
    """Raise TypeError for an unknown argument, and for one of PEFT's whose value is not supported."""
    known = PEFT_FIELDS["arguments"]
    for name, value in given.items():
        if name not in known:
            raise TypeError(f"there is no argument {name!r}.{did_you_mean(name, known)}")
        harmless, instead = known[name]
        if value not in harmless:
            raise TypeError(f"{name}={value!r} is PEFT's and not supported here: {instead}")


def meaning(values: dict[str, Any]) -> str:
    """The fields that the meaning of the tensors depends on, as they are stored beside the tensors."""
    return json.dumps({key: values.get(key) for key in PEFT_FIELDS["meaning"]})

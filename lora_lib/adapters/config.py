"""What an adapter is, apart from its weights: `LoRAConfig`, with the names of Hugging Face PEFT."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from lora_lib.adapters.variants import DoRA, PiSSA
from lora_lib.lora_linear import LoRA

TASK_TYPES = ("CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}


@dataclass
class LoRAConfig:
    """How an adapter is made. Names and meanings are those of PEFT's `LoraConfig`.

    `rank_pattern` and `alpha_pattern` give single layers their own r and alpha; a key is a layer's name,
    or the end of it, or a regular expression for it. `use_dora` makes DoRA layers. `init_lora_weights` is how they
    start: True (random A, zero B), "gaussian" (a normal A), False (random B too), "pissa", or "pissa_niter_N" with N
    power iterations. `kind` is a class of your own for the layers' bypasses, in place of the one that these choose.

    `exclude_modules` leaves out layers that the targets name. `layers_to_transform` keeps those with these numbers in
    their names (behind one of `layers_pattern`, where given). `modules_to_save` are modules that are trained and
    saved in full; for the task types of classifiers their head, `classifier` or `score`, is one of them by itself,
    for QUESTION_ANS it is `qa_outputs`. `task_type` and `base_model_name_or_path` are written into the file as they
    are; without a task type, a language model of one causal stack is saved as CAUSAL_LM.

    Raises ValueError for a value that its field cannot have, and for what of PEFT is not supported.
    """

    target_modules: list[str] | str
    r: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.0
    use_rslora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    base_model_name_or_path: str | None = None
    task_type: str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    trainable_token_indices: None = None
    use_dora: bool = False
    init_lora_weights: bool | str = True
    kind: type[LoRA] | None = None

    def __post_init__(self) -> None:
        targets, name = self.target_modules, self.base_model_name_or_path
        layers, copies = self.layers_to_transform, self.modules_to_save
        ranks, alphas = _values(self.rank_pattern), _values(self.alpha_pattern)
        wanted = {
            "target_modules": (_all_text(targets), "a name, a list of names, or a regular expression"),
            "r": (_is_rank(self.r), "a whole number from 1"),
            "lora_alpha": (_is_alpha(self.lora_alpha), "a finite number above 0"),
            "lora_dropout": (_is_number(self.lora_dropout) and 0 <= self.lora_dropout < 1, "a number in [0, 1)"),
            "use_rslora": (isinstance(self.use_rslora, bool), "true or false"),
            "rank_pattern": (ranks is not None and all(map(_is_rank, ranks)), "a whole number from 1 for each name"),
            "alpha_pattern": (alphas is not None and all(map(_is_alpha, alphas)), "a number above 0 for each name"),
            "base_model_name_or_path": (name is None or isinstance(name, str), "a name or nothing"),
            "task_type": (self.task_type in (None, *TASK_TYPES), f"one of {', '.join(TASK_TYPES)}, or nothing"),
            "exclude_modules": (_is_text_or_none(self.exclude_modules), "names, a regular expression, or nothing"),
            "layers_to_transform": (layers is None or _is_numbers(layers), "a layer's number or a list of them"),
            "layers_pattern": (_is_text_or_none(self.layers_pattern), "a name, a list of names, or nothing"),
            "modules_to_save": (
                copies is None or (isinstance(copies, list) and _all_text(copies)),
                "names, or nothing",
            ),
            "use_dora": (isinstance(self.use_dora, bool), "true or false"),
            "init_lora_weights": (
                _is_start(self.init_lora_weights),
                "True, False, 'gaussian', 'pissa' or 'pissa_niter_N', N a whole number",
            ),
            "kind": (self.kind is None or _is_kind(self.kind), "LoRA or a subclass of it"),
        }
        for key, (fine, expected) in wanted.items():
            if not fine:
                raise ValueError(f"{key} = {getattr(self, key)!r} is not a value it can have: expected {expected}")
        if self.trainable_token_indices is not None:
            raise ValueError(
                "trainable_token_indices is not supported: train the whole embedding, with its name in modules_to_save"
            )
        if (layers is not None or self.layers_pattern) and isinstance(targets, str):
            raise ValueError("layers_to_transform needs target_modules to be a list of names, as in PEFT")
        if self.layers_pattern and layers is None:
            raise ValueError("layers_pattern says where layers_to_transform are counted: give these too")
        if self.use_dora and _is_pissa(self.init_lora_weights):
            raise ValueError("use_dora and PiSSA's start are two kinds of adapter: choose one of them")
        if self.use_dora and not self.adapter_class.config_fields.get("use_dora"):
            raise ValueError(f"use_dora = True, but {self.adapter_class.__name__} is no DoRA: leave kind out")

    @property
    def adapter_class(self) -> type[LoRA]:
        """The class of the layers' bypasses."""
        if self.kind is not None:
            return self.kind
        return DoRA if self.use_dora else PiSSA if _is_pissa(self.init_lora_weights) else LoRA


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_rank(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_alpha(value: Any) -> bool:
    return _is_number(value) and 0 < value <= 1e30  # far beyond any use, and still a float32


def _is_text_or_none(value: object) -> bool:
    return value is None or _all_text(value)


def _is_numbers(value: object) -> bool:
    return all(type(number) is int and number >= 0 for number in (value if isinstance(value, list) else [value]))


def _is_kind(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, LoRA)


def _is_pissa(start: bool | str) -> bool:
    return isinstance(start, str) and start.startswith("pissa")


def _is_start(start: object) -> bool:
    named = isinstance(start, str) and re.fullmatch(r"gaussian|pissa|pissa_niter_[0-9]{1,4}", start) is not None
    return isinstance(start, bool) or named


def _all_text(targets: object) -> bool:
    return isinstance(targets, str) or (isinstance(targets, list) and all(isinstance(t, str) for t in targets))


def _values(pattern: object) -> list[object] | None:
    """The values of a pattern, or None where it is no dict of names."""
    return list(pattern.values()) if isinstance(pattern, dict) and all(isinstance(k, str) for k in pattern) else None

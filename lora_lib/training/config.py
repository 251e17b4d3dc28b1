"""The settings of a training run: for each its allowed values, its default, and a line of help."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lora_lib.settings import FLAG, Rule, check, number, optional, rules, setting, unknown, whole

_COUNT = whole(1, 10**9)
_PATH = Rule("the path of a file", lambda value: isinstance(value, (str, Path)) and str(value) != "")
_SEED = whole(0, 2**63 - 1)
_RATIO = Rule("a function of a parameter's name", callable)


@dataclass(frozen=True)
class FitConfig:
    """How `fit` trains: `fit(model, train, FitConfig(steps=100))`, or the same fields as keywords of `fit`.

    Give either `steps` or `passes`. Raises ValueError for a value that its field does not allow.
    """

    steps: int | None = setting(optional(_COUNT), None, help="how many optimizer steps")
    passes: float | None = setting(
        optional(number("above 0, at most 1e6", lambda x: 0 < x <= 1e6)), None,
        help="instead of steps: how many times every example is read",
    )  # fmt: skip
    batch_size: int = setting(_COUNT, 16, help="examples in a batch")
    accumulate: int = setting(_COUNT, 1, help="batches in a step; every target token has the same weight")
    learning_rate: float = setting(
        number("above 0, at most 1e30", lambda x: 0 < x <= 1e30), 1e-3, help="the highest learning rate of the run"
    )
    warmup: float = setting(
        number("from 0 to 1", lambda x: 0 <= x <= 1), 0.1,
        help="the share of the steps in which the rate rises; after that it falls to zero along a cosine",
    )  # fmt: skip
    weight_decay: float = setting(
        number("from 0, and finite", lambda x: 0 <= x < math.inf), 0.0, help="AdamW's weight decay"
    )
    clip: float = setting(
        number("above 0 (math.inf does not clip)", lambda x: x > 0), 1.0,
        help="gradients with a larger norm are scaled down to this one",
    )  # fmt: skip
    lr_ratio: Callable[[str], float] | None = setting(
        optional(_RATIO), None, help="for a parameter's name, its rate as a multiple of the run's"
    )
    validate_every: int | None = setting(
        optional(_COUNT), None, help="steps between validations; there is always one before and one after the run"
    )
    patience: int | None = setting(
        optional(_COUNT), None, help="stop after so many validations in a row without a better one"
    )
    keep_best: bool = setting(FLAG, False, help="end with the weights of the best validation instead of the last ones")
    bf16: bool | None = setting(
        optional(FLAG), None, help="compute in bfloat16; None means only on GPUs that support it"
    )
    seed: int = setting(_SEED, 0, help="the same seed gives the same order of examples and the same dropout")
    checkpoint: str | Path | None = setting(
        optional(_PATH), None, help="a file for the run's state; if it exists, the run resumes from it"
    )
    checkpoint_every: int = setting(
        _COUNT, 100, help="steps between checkpoints; there is always one after the last step"
    )
    progress: bool = setting(FLAG, True, help="show a progress bar")

    def __post_init__(self) -> None:
        check(self)
        if (self.steps is None) == (self.passes is None):
            raise ValueError("fit needs steps, the number of steps, or passes over the data: give one of the two")

    def count_steps(self, examples: int) -> int:
        """The steps of a run over so many examples."""
        if self.passes is None:
            return self.steps or 0
        return math.ceil(self.passes * math.ceil(examples / self.batch_size) / self.accumulate)

    def identity(self) -> dict[str, Any]:
        """The settings that affect the trained weights, without those that `fit` resolves itself (such as passes)."""
        without = ("passes", "lr_ratio", "bf16", "checkpoint", "checkpoint_every", "progress")
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in without}
        if self.patience is None and not self.keep_best:  # then validation does not affect the weights
            del values["validate_every"]
        return values


def fit_config(config: FitConfig | None, settings: dict[str, Any]) -> FitConfig:
    """The config, given as such or as keywords. Raises TypeError for both together, and for an unknown keyword."""
    if config is None:
        for name in settings:
            if name not in rules(FitConfig):
                raise unknown(name, FitConfig, "fit")
        return FitConfig(**settings)
    if not isinstance(config, FitConfig):
        raise TypeError(f"expected a FitConfig, or settings as keywords, got a {type(config).__name__}")
    if settings:
        raise TypeError(f"the settings come in a FitConfig or as keywords, not both; beside it: {', '.join(settings)}")
    return config

"""What tells one run from another, said once: columns, file names, comparisons and tables all follow from here.

A kind of run is a frozen dataclass. Its fields, in their order, are the first columns of its file of rows. To add a
column, add a field with the value that all older rows had.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lora_book.findings.stats import Row

RSLORA = 11.314  # alpha that gives s = 4 at r = 8 under rsLoRA's rule, as 32 does under LoRA's


@dataclass(frozen=True)
class Settings:
    """A run's settings; a field that is None is open."""

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """The names of the settings, as a file of rows has them."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def grouped(cls) -> tuple[str, ...]:
        """What a table groups by: all settings but the seed and those that every run of a file shares."""
        return tuple(name for name in cls.columns() if name not in ("batch_size", "max_length", "seed"))

    def row(self) -> Row:
        """The first columns of this run's row."""
        return asdict(self)

    def where(self) -> dict[str, Any]:
        """What `select` needs to find these runs: all settings that are not open."""
        return {name: value for name, value in self.row().items() if value is not None}


@dataclass(frozen=True)
class E2ERun(Settings):
    """A run on short references of E2E or on plays: `e2e.csv`, `style.csv`. Rank 0 is full fine-tuning."""

    model: str = "gpt2-mini"
    method: str = "lora"
    targets: str = "all"
    rank: int | None = None
    alpha: float = 32
    use_rslora: bool = False
    init: str = "default"
    lora_plus: float = 1
    learning_rate: float | None = None
    steps: int = 120
    batch_size: int = 8
    max_length: int = 64
    seed: int | None = None


@dataclass(frozen=True)
class PartsRun(Settings):
    """A run on all references that says which parts of the model it trains: `parts.csv`."""

    model: str = "gpt2-mini"
    method: str = "lora"
    parts: str = "linear"
    rank: int | None = None
    alpha: float = 32
    use_rslora: bool = False
    learning_rate: float | None = None
    rest_rate: float | None = None
    steps: int = 120
    batch_size: int = 8
    max_length: int = 128
    seed: int | None = None


@dataclass(frozen=True)
class MapRun(Settings):
    """A run of the map of forgetting, with the name of its arm and the data it is measured on: `map.csv`."""

    model: str = "gpt2-mini"
    arm: str = "full"
    method: str = "full"
    parts: str = "linear"
    rank: int = 0
    alpha: float = 32
    use_rslora: bool = False
    learning_rate: float = 0.0
    rest_rate: float = 0.0
    steps: int = 120
    batch_size: int = 8
    max_length: int = 128
    seed: int = 0
    split: str = "test"


def slug(settings: Row) -> str:
    """A name for the folder of a run on E2E, from its settings or from its row."""
    names = [name for name in E2ERun.columns() if name != "model"]
    return "-".join([Path(settings["model"]).name, *(str(settings[name]) for name in names)])

"""Old names: for one release, importing one raises an ImportError that says where it is now."""

from __future__ import annotations

import sys
from typing import NoReturn

_NAMES = {
    "lora_book.tasks": "FIELDS PROMPT_END SYSTEM Restaurant Ticket few_shot make_tickets model_card restaurant_data "
    "score_texts score_tickets slot_accuracy slot_report to_examples",
    "lora_book.measure": "PeakMemory QuantisedLinear Term adapter_bytes amplification block_bytes dequantise_model "
    "effective_rank energy_shares even_levels hf_block_bytes intruder_dimensions low_rank_factors normal_levels "
    "quantise quantise_model rank_for step_bytes step_table step_terms subspace_similarity text_windows weight_changes",
}
PLACES = {name: place for place, names in _NAMES.items() for name in names.split()}
RENAMED = dict.fromkeys(("read_columns", "read_csv", "read_jsonl", "read_chats"), "read_records")


def say_where(module: str) -> None:
    """Make this module answer for the names that it had."""

    def missing(name: str) -> NoReturn:
        if name in PLACES:
            raise ImportError(f"{name} is no longer in {module}: from {PLACES[name]} import {name}")
        if RENAMED.get(name) in vars(sys.modules[module]):
            raise ImportError(f"{name} is now called {RENAMED[name]}: from {module} import {RENAMED[name]}")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    vars(sys.modules[module])["__getattr__"] = missing

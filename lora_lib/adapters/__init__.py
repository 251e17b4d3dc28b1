"""Adapters: configs, target layers, files, variants of LoRA, and the analysis of what they learned."""

from lora_lib.adapters.analysis import (
    amplification,
    effective_rank,
    energy_shares,
    intruder_dimensions,
    low_rank_factors,
    rank_for,
    subspace_similarity,
    text_windows,
    weight_changes,
)
from lora_lib.adapters.card import model_card
from lora_lib.adapters.config import LoRAConfig
from lora_lib.adapters.files import CONFIG_FILE, WEIGHTS_FILE, AdapterError, read_adapter, write_adapter
from lora_lib.adapters.quantised import (
    QuantisedLinear,
    dequantise_model,
    even_levels,
    normal_levels,
    quantise,
    quantise_model,
)
from lora_lib.adapters.targets import find_targets
from lora_lib.adapters.variants import DoRA, PiSSA, lora_plus

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "AdapterError",
    "DoRA",
    "LoRAConfig",
    "PiSSA",
    "QuantisedLinear",
    "amplification",
    "dequantise_model",
    "effective_rank",
    "energy_shares",
    "even_levels",
    "find_targets",
    "intruder_dimensions",
    "lora_plus",
    "low_rank_factors",
    "model_card",
    "normal_levels",
    "quantise",
    "quantise_model",
    "rank_for",
    "read_adapter",
    "subspace_similarity",
    "text_windows",
    "weight_changes",
    "write_adapter",
]

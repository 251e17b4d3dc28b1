"""Adapters: configs, target layers, files, variants of LoRA, and the analysis of what they learned."""

from lora_lib.adapters.card import model_card
from lora_lib.adapters.config import LoRAConfig
from lora_lib.adapters.files import CONFIG_FILE, WEIGHTS_FILE, AdapterError
from lora_lib.adapters.load import read_adapter
from lora_lib.adapters.plan import find_targets
from lora_lib.adapters.save import write_adapter
from lora_lib.adapters.variants import DoRA, PiSSA, lora_plus

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "AdapterError",
    "DoRA",
    "LoRAConfig",
    "PiSSA",
    "find_targets",
    "lora_plus",
    "model_card",
    "read_adapter",
    "write_adapter",
]

"""LoRA on GPT-2, small enough to read: the library of the LoRA book."""

from lora_lib.adapters import AdapterError, LoRAConfig, find_targets
from lora_lib.gpt2 import (
    GPT_CONFIG_124M,
    GPT_CONFIG_355M,
    GPT_CONFIG_774M,
    GPT_CONFIG_1558M,
    GPT2Config,
    GPT2Model,
    Tokenizer,
    load_model,
    load_pretrained,
    save_pretrained_folder,
)
from lora_lib.lora_linear import LoRA, LoRALinear
from lora_lib.peft_wrapper import PeftModel, get_peft_model

__all__ = [
    "GPT_CONFIG_124M",
    "GPT_CONFIG_355M",
    "GPT_CONFIG_774M",
    "GPT_CONFIG_1558M",
    "AdapterError",
    "GPT2Config",
    "GPT2Model",
    "LoRA",
    "LoRAConfig",
    "LoRALinear",
    "PeftModel",
    "Tokenizer",
    "find_targets",
    "get_peft_model",
    "load_model",
    "load_pretrained",
    "save_pretrained_folder",
]

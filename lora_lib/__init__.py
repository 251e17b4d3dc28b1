"""LoRA on GPT-2, small enough to read: the library of the LoRA book."""

from lora_lib.adapter_files import AdapterError
from lora_lib.config import LoRAConfig
from lora_lib.gpt2 import (
    GPT_CONFIG_124M,
    GPT_CONFIG_355M,
    GPT_CONFIG_774M,
    GPT_CONFIG_1558M,
    GPT2Config,
    GPT2Model,
)
from lora_lib.lora_linear import LoRA, LoRALinear
from lora_lib.peft_wrapper import PeftModel, get_peft_model
from lora_lib.pretrained import load_model, load_pretrained, save_pretrained_folder
from lora_lib.targets import find_targets
from lora_lib.tokenizer import Tokenizer

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

"""Adapters: configs, plans, files, and variants of LoRA."""

from lora_lib.adapters.config import LoRAConfig
from lora_lib.adapters.files import CONFIG_FILE, WEIGHTS_FILE, AdapterError
from lora_lib.adapters.load import read_adapter
from lora_lib.adapters.plan import find_targets
from lora_lib.adapters.save import write_adapter
from lora_lib.adapters.variants import DoRA, PiSSA, lora_plus
from lora_lib.moved import say_where

say_where(__name__)

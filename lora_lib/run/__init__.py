"""Models by their names, SmolLM2 among them."""

from lora_lib.run.models import load_any
from lora_lib.run.smollm2 import NAME, load_smollm2, smollm2_folder

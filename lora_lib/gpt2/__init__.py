"""GPT-2: the model, its tokenizer, its checkpoints, and text from it. gpt2-mini ships in `mini/`."""

from lora_lib.gpt2.generation import generate_text
from lora_lib.gpt2.model import (
    GPT_CONFIG_124M,
    GPT_CONFIG_355M,
    GPT_CONFIG_774M,
    GPT_CONFIG_1558M,
    GPT2Config,
    GPT2Model,
    KVCache,
    hf_name,
)
from lora_lib.gpt2.pretrained import MINI_FOLDER, load_model, load_pretrained, read_tokenizer, save_pretrained_folder
from lora_lib.gpt2.tokenizer import SPLIT_PATTERN, Tokenizer

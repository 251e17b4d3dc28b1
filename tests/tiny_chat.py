"""A chat model for tests: a Llama with random weights, and a tokenizer of single letters with a template."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}:{{ m['content'] }}<e>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


def letters_tokenizer():
    letters = ["<s>", "<e>", *"abcdefghijklmnopqrstuvwxyz: "]
    inner = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token=" "))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="<e>", pad_token="<e>")
    made.chat_template = TEMPLATE
    return made


def tiny_llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        eos_token_id=1, initializer_range=0.5,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def tiny_chat_model():
    """In the place of `load_smollm2`."""
    return tiny_llama(), letters_tokenizer()

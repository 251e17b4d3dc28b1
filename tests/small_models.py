"""A GPT-2 small enough to be quick, with weights large enough to matter, and a tiny one to train."""

from pathlib import Path

import torch
from torch import nn

from lora_lib import GPT2Config, GPT2Model, LoRAConfig, PeftModel, get_peft_model
from lora_lib.data import IGNORE

SMALL = GPT2Config(
    vocab_size=97, n_positions=32, n_embd=24, n_head=3, n_layer=2, embd_pdrop=0, resid_pdrop=0, attn_pdrop=0
)
IDS = torch.arange(1, 13).view(2, 6)
ATTENTION_AND_MLP = ["c_attn", "c_proj", "c_fc"]


def scatter(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights for all of a model, in evaluation mode."""
    torch.manual_seed(seed)
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    return model.eval()


def small(seed: int = 0) -> GPT2Model:
    return scatter(GPT2Model(SMALL), seed)


def save_hugging_face_gpt2(folder: Path) -> Path:
    """The same sizes in Hugging Face's GPT-2, saved to a folder that both libraries open."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=97, n_positions=32, n_embd=24, n_head=3, n_layer=2, embd_pdrop=0, resid_pdrop=0, attn_pdrop=0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    scatter(transformers.GPT2LMHeadModel(config)).save_pretrained(folder)
    return folder


def stir(model: PeftModel, name: str = "default", seed: int = 1) -> PeftModel:
    """Give an adapter a B that is not zero, as training would."""
    torch.manual_seed(seed)
    for layer in model.lora_layers().values():
        if name in layer.adapters:
            nn.init.normal_(layer.adapters[name].B, std=0.2)
    return model.eval()


def three_adapters(seed: int = 0) -> PeftModel:
    """Adapters "default", "b" (rsLoRA) and "c" of different ranks, on layers that overlap in part; the head too."""
    model = stir(get_peft_model(small(seed), ["c_attn", "attn.c_proj"], 4, 6))
    model.add_adapter("b", LoRAConfig(["c_attn", "c_fc"], r=3, use_rslora=True, rank_pattern={"h.1.attn.c_attn": 5}))
    model.add_adapter(
        "c",
        LoRAConfig(["h.0.attn.c_attn", "out_head"], 2, 3, rank_pattern={"out_head": 3}, alpha_pattern={"lm_head": 9}),
    )
    return stir(stir(model, "b", 2), "c", 3)


TINY = GPT2Config(
    vocab_size=50, n_positions=16, n_embd=16, n_head=2, n_layer=1, embd_pdrop=0, resid_pdrop=0, attn_pdrop=0
)


def tiny(seed: int = 0) -> GPT2Model:
    torch.manual_seed(seed)
    return GPT2Model(TINY)


def adapted(seed: int = 0):
    return get_peft_model(tiny(seed), ["c_attn", "c_proj", "c_fc", "out_head"], 4, 8).enable_lora_training()


def counting_examples(count: int = 8):
    """Sequences of several lengths that count upwards, their first two targets masked."""
    made = []
    for i in range(count):
        tokens = torch.arange(i, i + 5 + i % 4) % 50
        targets = tokens[1:].clone()
        targets[:2] = IGNORE
        made.append((tokens[:-1], targets))
    return made

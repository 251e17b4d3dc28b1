"""What is compared: single layers, and whole training steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import DEVICE
from lora_lib import GPT_CONFIG_124M, GPT2Config, GPT2Model, LoRA, LoRALinear, PeftModel, get_peft_model
from lora_lib.training import loss_sum

BATCH, TIME, RANK, ALPHA = 4, 128, 16, 32
OURS, FORMULA, PEFT, LORALIB, FULL, FLOOR = "lora_lib", "plain formula", "PEFT", "loralib", "full", "frozen Linear"


class Formula(LoRA):
    """A bypass that the layer does not fuse with its base: y = base(x) + s·x·A·B, as it is written."""


@dataclass
class Layer:
    """One contestant of the single layer: a module, and the input and the gradient that it is run with."""

    module: nn.Module
    x: Tensor
    g: Tensor

    def forward(self) -> Tensor:
        return self.module(self.x)

    def __call__(self) -> None:
        """Forward and backward, input gradient included."""
        self.x.grad = None
        for p in self.module.parameters():
            p.grad = None
        self.forward().backward(self.g)


def layers(d: int = 768, k: int = 2304, tokens: int = 1024, rank: int = RANK, adapters: int = 1) -> dict[str, Layer]:
    """Every way to compute one adapted layer, by name; loralib's where it is installed."""
    torch.manual_seed(0)
    x, g = torch.randn(tokens, d, device=DEVICE, requires_grad=True), torch.randn(tokens, k, device=DEVICE)

    def ours(kind: type[LoRA]) -> LoRALinear:
        layer = LoRALinear(nn.Linear(d, k).to(DEVICE))
        for i in range(adapters):
            layer.adapters[f"a{i}"] = kind.from_base(layer.base, rank, 2 * rank)
        layer.activate(list(layer.adapters))
        return layer

    made: dict[str, nn.Module] = {
        FLOOR: nn.Linear(d, k).to(DEVICE).requires_grad_(False), OURS: ours(LoRA), FORMULA: ours(Formula),
        PEFT: peft_layer(d, k, rank, adapters), FULL: nn.Linear(d, k).to(DEVICE),
    }  # fmt: skip
    if adapters == 1 and (loralib := loralib_layer(d, k, rank)):
        made[LORALIB] = loralib
    return {name: Layer(module, x, g) for name, module in made.items()}


def peft_layer(d: int, k: int, rank: int, adapters: int) -> nn.Module:
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    config = LoraConfig(r=rank, lora_alpha=2 * rank)
    layer = Linear(nn.Linear(d, k).requires_grad_(False), "a0", r=rank, lora_alpha=2 * rank, config=config)
    for i in range(1, adapters):
        layer.update_layer(f"a{i}", rank, 2 * rank, config=config)
    layer.set_adapter([f"a{i}" for i in range(adapters)])
    return layer.to(DEVICE)


def loralib_layer(d: int, k: int, rank: int) -> nn.Module | None:
    try:
        import loralib
    except ImportError:
        return None
    layer = loralib.Linear(d, k, r=rank, lora_alpha=2 * rank, merge_weights=False).to(DEVICE)
    layer.bias.requires_grad_(False)
    return layer


def step_config(dropout: float = 0.0) -> GPT2Config:
    return replace(GPT_CONFIG_124M, embd_pdrop=dropout, resid_pdrop=dropout, attn_pdrop=dropout)


STEP_FLOOR, STEP_OURS, STEP_FORMULA = "frozen floor", "lora_lib, LoRA", "plain formula and loss"
STEP_CHECKPOINTED, STEP_PEFT, STEP_FULL = "lora_lib, LoRA, checkpointed", "Hugging Face + PEFT", "lora_lib, full"
STEPS = (STEP_FLOOR, STEP_OURS, STEP_FORMULA, STEP_CHECKPOINTED, STEP_PEFT, STEP_FULL)
STEP_COMPILED = "lora_lib, LoRA, compiled"


def step(name: str, dropout: float = 0.0, bf16: bool = False) -> Callable[[], Any]:
    """One whole training step of GPT-2 124M with random weights: loss, gradients, clipping, AdamW.

    The floor is what no way of training this base can do without: its own forward pass and the gradients of
    everything on the way down to the embeddings, with nothing to update.
    """
    torch.manual_seed(0)
    ids = torch.randint(50257, (BATCH, TIME), device=DEVICE)
    targets = ids.roll(-1, 1)
    targets[:, -1] = -100
    model = hugging_face(dropout) if name == STEP_PEFT else own(name, dropout)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4) if learned else None

    def loss() -> Tensor:
        if name == STEP_PEFT:
            return model(ids, labels=ids).loss
        if name == STEP_FORMULA:
            return F.cross_entropy(model(ids).flatten(0, 1).float(), targets.flatten(), ignore_index=-100)
        return loss_sum(model, ids, targets) / (targets != -100).sum()

    def run() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            total = loss()
        total.backward()
        if optimizer is not None:
            nn.utils.clip_grad_norm_(learned, 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return run


def own(name: str, dropout: float) -> nn.Module:
    model: GPT2Model | PeftModel = GPT2Model(step_config(dropout)).to(DEVICE)
    if name == STEP_FULL:
        return model.train()
    if name == STEP_FLOOR:
        model.requires_grad_(False)
        model.drop.register_forward_hook(lambda module, inputs, x: x.requires_grad_())
        return model.train()
    model = get_peft_model(model, "all-linear", RANK, ALPHA, dropout).enable_lora_training()
    if name == STEP_CHECKPOINTED:
        model.gradient_checkpointing_enable()
    if name == STEP_COMPILED:
        for block in model.h:
            block.compile()
    if name == STEP_FORMULA:
        for layer in model.lora_layers().values():
            layer.adapters["default"].__class__ = Formula
    return model


def hugging_face(dropout: float) -> nn.Module:
    import peft
    from transformers import GPT2Config as HFConfig
    from transformers import GPT2LMHeadModel

    config = HFConfig(embd_pdrop=dropout, resid_pdrop=dropout, attn_pdrop=dropout, use_cache=False)
    lora = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=dropout, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True
    )
    return peft.get_peft_model(GPT2LMHeadModel(config).to(DEVICE), lora).train()

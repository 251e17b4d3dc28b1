"""A frozen base with 8 or 4 bits per weight, as in QLoRA: Dettmers et al., 2023, arXiv 2305.14314.

Every weight is rounded to one of a few levels between -1 and 1, times the largest absolute value in its block:

    W ≈ levels[codes] · scales        codes (n, block), scales (n, 1), n · block = d · k

The adapter on top stays in floating point. It is trained on the rounded base.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lib.adapters.plan import find_targets
from lora_lib.layers.adapted import adapted_layers, linear_shape, put_module, transposed


def even_levels(bits: int) -> Tensor:
    """2^bits - 1 evenly spaced values from -1 to 1, including 0."""
    top = 2 ** (bits - 1) - 1
    return torch.arange(-top, top + 1) / top


def normal_levels(bits: int) -> Tensor:
    """2^bits values from -1 to 1, spaced like the quantiles of a normal distribution: QLoRA's NormalFloat.

    The outermost quantiles would be infinite, so the levels stop a little before them. Zero is one of the levels, so
    there is one more positive level than there are negative ones.
    """
    half = 2 ** (bits - 1)
    last = 1 - (1 / (4 * half) + 1 / (4 * half - 2)) / 2
    up = torch.special.ndtri(torch.linspace(0.5, last, half + 1).double())
    down = torch.special.ndtri(torch.linspace(0.5, last, half).double())
    return (torch.cat([-down[1:].flip(0), up]) / up[-1]).float()


def quantise(W: Tensor, levels: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """W's codes (n, block), each the index of the nearest level, and each block's largest absolute value (n, 1).

    Raises ValueError if `block` does not divide the number of weights.
    """
    if block < 1 or W.numel() % block:
        raise ValueError(f"a block of {block} does not divide {W.numel()} weights: choose one that does")
    blocks = W.detach().reshape(-1, block).float()
    scales = blocks.abs().amax(dim=1, keepdim=True)
    borders = (levels[1:] + levels[:-1]).to(W.device) / 2
    return torch.bucketize(blocks / scales.clamp_min(torch.finfo(torch.float32).tiny), borders), scales


class QuantisedLinear(nn.Linear):
    """A frozen nn.Linear that stores each weight as a code of 8 or 4 bits, and dequantises them when it is called.

    `weight` holds the codes, uint8, two in a byte if there are at most 16 levels. LoRALinear wraps it like any linear
    layer. `linear` is an nn.Linear or Hugging Face's Conv1D. Raises TypeError for any other layer, and ValueError for
    more than 256 levels, or a block that does not divide the weights (or is odd, with two codes in a byte).
    """

    scales: Tensor
    levels: Tensor

    def __init__(self, linear: nn.Linear, levels: Tensor, block: int = 64) -> None:
        nn.Module.__init__(self)  # nn.Linear's __init__ would allocate a float weight
        self.in_features, self.out_features = linear_shape(linear)
        if len(levels) > 256 or (len(levels) <= 16 and block % 2):
            raise ValueError(f"{len(levels)} levels in blocks of {block} do not fit bytes: 256 levels, even blocks")
        codes, scales = quantise(transposed(linear, linear.weight).T, levels, block)
        if len(levels) <= 16:
            codes = codes[:, ::2] * 16 + codes[:, 1::2]
        self.weight = nn.Parameter(codes.to(torch.uint8), requires_grad=False)
        self.bias = linear.bias
        self.register_buffer("scales", scales)
        self.register_buffer("levels", levels.to(scales))

    def dequantised(self) -> Tensor:
        """The weight that the codes stand for, in nn.Linear's layout (k, d)."""
        codes = self.weight
        if len(self.levels) <= 16:
            codes = torch.stack([codes >> 4, codes & 15], dim=-1)
        W = self.levels[codes.view(len(self.scales), -1).long()] * self.scales
        return W.view(self.out_features, self.in_features)

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = _FrozenProduct.apply(input, self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _FrozenProduct(torch.autograd.Function):
    """x·W, with W dequantised in the forward pass and again in the backward pass, so that autograd does not keep it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        return x @ layer.dequantised().T.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g @ ctx.layer.dequantised().to(g.dtype), None


def quantise_model(model: nn.Module, bits: int = 4, block: int = 64) -> nn.Module:
    """Quantise every linear layer except the head, in place: 4 bits with normal levels, 8 bits with even ones.

    Embeddings, layer norms and the head stay as they are. `get_peft_model` then adds adapters as to any model.

    Raises ValueError for other bits, for a model that has adapters or is quantised already, and for a block that does
    not divide a layer's weights; the model is then unchanged.
    """
    if bits not in (4, 8):
        raise ValueError(f"bits must be 4 or 8, got {bits!r}")
    if adapted_layers(model):
        raise ValueError("this model has adapters already: quantise the base first, then call get_peft_model")
    if any(isinstance(module, QuantisedLinear) for module in model.modules()):
        raise ValueError("this model is quantised already: call dequantise_model first, or load the weights again")
    levels = normal_levels(4) if bits == 4 else even_levels(8)
    layers = [model.get_submodule(name) for name in find_targets(model, "all-linear")]
    _replace(model, {layer: QuantisedLinear(cast(nn.Linear, layer), levels, block) for layer in layers})
    return model


def dequantise_model(model: nn.Module) -> nn.Module:
    """Turn every quantised layer back into an nn.Linear with the rounded weight, in place, so it can be merged into."""
    made: dict[nn.Module, nn.Module] = {}
    for layer in model.modules():
        if isinstance(layer, QuantisedLinear):
            weight = layer.dequantised()
            linear = nn.Linear(layer.in_features, layer.out_features, device="meta")
            linear.weight, linear.bias = nn.Parameter(weight, requires_grad=False), layer.bias
            made[layer] = linear
    _replace(model, made)
    return model


def _replace(model: nn.Module, made: dict[nn.Module, nn.Module]) -> None:
    """Put the new layers where the old ones are, in each place of one that the model shares."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in made:
            put_module(model, name, made[module])

"""Hugging Face's names for our GPT-2's modules and weights, and its layout of them: what a file of GPT-2 has."""

from __future__ import annotations

from torch import Tensor

# Hugging Face stores these weights as (in, out), in a layer called Conv1D; nn.Linear has (out, in).
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def hf_name(name: str) -> str:
    """Our name of a GPT-2 module or parameter to Hugging Face's: `h.0.mlp` to `transformer.h.0.mlp`."""
    return "lm_head" + name.removeprefix("out_head") if name.startswith("out_head") else "transformer." + name


def own_name(name: str) -> str:
    """Hugging Face's name to ours. Old releases have no `transformer.` prefix."""
    return (
        "out_head" + name.removeprefix("lm_head") if name.startswith("lm_head") else name.removeprefix("transformer.")
    )


def other_layout(name: str, tensor: Tensor) -> Tensor:
    """A tensor, called `name` here or in a file, in the layout of the other side: transposed if the two differ."""
    return tensor.T if name.endswith(TRANSPOSED) else tensor

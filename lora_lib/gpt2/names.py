"""Hugging Face's names and layouts for the weights of our GPT-2, as its files have them."""

from __future__ import annotations

from torch import Tensor

# Hugging Face stores these weights as (in, out), in a layer called Conv1D; nn.Linear has (out, in).
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def hf_name(name: str) -> str:
    """Hugging Face's name for a GPT-2 module or parameter: `transformer.h.0.mlp` for our `h.0.mlp`."""
    return "lm_head" + name.removeprefix("out_head") if name.startswith("out_head") else "transformer." + name


def own_name(name: str) -> str:
    """Our name for Hugging Face's. Old releases have no `transformer.` prefix."""
    return (
        "out_head" + name.removeprefix("lm_head") if name.startswith("lm_head") else name.removeprefix("transformer.")
    )


def other_layout(name: str, tensor: Tensor) -> Tensor:
    """Convert a tensor between our layout and the file's, either way: it is transposed if the two differ."""
    return tensor.T if name.endswith(TRANSPOSED) else tensor

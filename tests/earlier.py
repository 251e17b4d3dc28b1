"""Adapters that an earlier version of the library saved: `tests/saved_earlier/`, with the logits that they gave.

The base's weights follow from a formula, so that only the adapters are kept. The folder was written once, by the
library as it was before its names and its format were revised; it is never written again.
"""

from pathlib import Path

import torch
from small_models import SMALL

from lora_lib import GPT2Model

SAVED = Path(__file__).parent / "saved_earlier"
ADAPTERS = {
    "plain": {"target_modules": "all-linear"},
    "patterns": {
        "target_modules": ["c_attn", "out_head"], "use_rslora": True, "rank_pattern": {"h.1.attn.c_attn": 5},
        "alpha_pattern": {"out_head": 3.0}, "exclude_modules": ["h.0.attn.c_attn"],
    },
    "dora": {"target_modules": ["attn.c_proj"], "use_dora": True},
    "pissa": {"target_modules": ["c_fc"], "init_lora_weights": "pissa"},
    "with_a_module": {"target_modules": ["c_attn"], "modules_to_save": ["ln_f", "h.1.mlp"]},
}  # fmt: skip


@torch.no_grad()
def base() -> GPT2Model:
    """A small GPT-2 whose weights are sines."""
    model = GPT2Model(SMALL).eval()
    for i, p in enumerate(model.parameters()):
        p.copy_(0.3 * torch.sin(torch.arange(p.numel()) * (0.7 + 0.01 * i) + i).view(p.shape))
    return model

"""What gpt2-mini writes with the lab's cat adapter at each rank: the picture of the book's first page.

    python experiments/lab/cat_ranks.py

The adapter was trained at rank 8. A lower rank keeps the strongest directions of each layer's A·B, as the lab's slider
does; rank 0 is the base alone. Greedy, in float32.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # common

import torch
from common import RESULTS, Rows

from lora_book.measure import low_rank_factors
from lora_lib import LoRALinear, PeftModel, load_pretrained
from lora_lib.gpt2 import generate_text

ADAPTER = Path(__file__).parents[2] / "lab" / "adapters" / "cat"
PROMPT, RANKS, TOKENS = "This morning", (0, 1, 2, 3, 4, 8), 48


@torch.no_grad()
def cut(tuned: PeftModel, rank: int) -> int:
    """Leave `rank` directions of each layer's change; how many numbers A and B then have in all."""
    numbers = 0
    for layer in tuned.modules():
        if isinstance(layer, LoRALinear):
            adapter = layer.adapters["default"]
            A, B = low_rank_factors(adapter.A @ adapter.B, rank)
            for kept, cut_to in ((adapter.A.T, A.T), (adapter.B, B)):
                kept.zero_()
                kept[:rank] = cut_to
            numbers += A.numel() + B.numel()
    return numbers


def write(rank: int) -> dict[str, object]:
    """The text at this rank, the adapter's numbers, and the model's."""
    base, tokenizer = load_pretrained("gpt2-mini")
    parameters = sum(p.numel() for p in base.parameters())
    tuned = PeftModel.from_pretrained(base, ADAPTER).float().eval()
    numbers = cut(tuned, rank)
    (text,) = generate_text(tuned, tokenizer, PROMPT, TOKENS)
    return {"numbers": numbers, "parameters": parameters, "text": text}


if __name__ == "__main__":
    rows = Rows(RESULTS / "cat_ranks.csv")
    for r in RANKS:
        rows.run({"adapter": "cat", "prompt": PROMPT, "rank": r}, lambda r=r: write(r))  # type: ignore[misc]

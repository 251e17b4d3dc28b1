"""How much rank does E2E need, at which learning rate, and how does full fine-tuning compare?

    LORA_DATA_DIR=... python experiments/rank/rank_sweep.py [--prose FILE] [--model gpt2-mini]

For each rank (all linear layers, alpha = 32, s = alpha / r, as in "LoRA Without Regret") and for full fine-tuning:
the learning rate is tuned on the first seed, over a grid of factor 3, until both neighbours are worse; the best rate
and these neighbours are then run on the other seeds. One run: 120 steps of 8 references up to 64 tokens, AdamW,
warm-up and cosine. Rows go to lora_book/findings/results/e2e.csv, trained weights to runs/e2e, which
geometry.py reads.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # common

from common import E2E, e2e_arguments, sweep_ranks


def main(argv: Sequence[str] | None = None) -> None:
    parser = e2e_arguments(__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 0, 64, 1, 4, 16, 2], help="0: full fine-tuning")
    args = parser.parse_args(argv)
    sweep_ranks(E2E.load(args), args.ranks, args.seeds)


if __name__ == "__main__":
    main()

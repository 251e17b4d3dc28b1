"""How much rank does E2E need, at which learning rate, and how does full fine-tuning compare?

    LORA_DATA_DIR=... python experiments/rank_sweep.py [--prose FILE] [--model gpt2-mini]

For each rank (all linear layers, alpha = 32, s = alpha / r, as in "LoRA Without Regret") and for full fine-tuning:
the learning rate is tuned on the first seed, over a grid of factor 3, until both neighbours are worse; the best rate
is then run on the other seeds. One run: 120 steps of 8 references up to 80 tokens, AdamW, warm-up and cosine.
Rows go to results/e2e.csv, trained weights to runs/e2e, where geometry.py looks at them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from common import E2E, e2e_arguments, tune

RANKS = (1, 2, 4, 8, 16, 64)


def main(argv: Sequence[str] | None = None) -> None:
    parser = e2e_arguments(__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 0, 64, 1, 4, 16, 2], help="0: full fine-tuning")
    parser.add_argument("--neighbours", action="store_true", help="also the rates beside the best, on every seed")
    args = parser.parse_args(argv)
    task, (first, *others) = E2E.load(args), args.seeds
    for rank in args.ranks:
        sweep(task, rank, first, others)


def sweep(task: E2E, rank: int, first: int, others: Sequence[int]) -> None:
    method = "lora" if rank else "full"

    def loss_at(rate: float) -> float:
        return float(task.run(method, rate, first, rank=rank)["validation_loss"])

    best = tune(loss_at, start=2 if rank else 0)
    for seed in others:
        task.run(method, best, seed, rank=rank)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Does a faster B (LoRA+) or a start from W's own directions (PiSSA) beat plain LoRA, each at its best rate?

    LORA_DATA_DIR=... python experiments/variants/starts.py [--prose FILE] [--model gpt2-mini]

All linear layers, r = 8. LoRA+ gives B a learning rate 4 or 16 times A's. PiSSA starts A and
B from W's strongest singular directions, with alpha = r as its authors have it. The learning rate (A's) is tuned on
the first seed for each, then all seeds run. Plain LoRA's rows are rank_sweep.py's.
Rows go to lora_book/findings/results/e2e.csv.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # common

from common import E2E, e2e_arguments, tuned_runs


def main(argv: Sequence[str] | None = None) -> None:
    parser = e2e_arguments(__doc__)
    parser.add_argument("--rank", type=int, default=8)
    args = parser.parse_args(argv)
    task = E2E.load(args)
    tuned_runs(task, args.seeds, start=1, method="lora", rank=args.rank)
    tuned_runs(task, args.seeds, start=0, method="lora", rank=args.rank, alpha=args.rank, init="pissa")
    tuned_runs(task, args.seeds, start=-1, method="lora", rank=args.rank, lora_plus=16)
    tuned_runs(task, args.seeds, start=0, method="lora", rank=args.rank, lora_plus=4)


if __name__ == "__main__":
    main()

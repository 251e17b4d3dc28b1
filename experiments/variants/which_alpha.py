"""What happens to a learning rate when the rank grows, under three rules for alpha?

    LORA_DATA_DIR=... python experiments/variants/which_alpha.py [--prose FILE] [--model gpt2-mini]

The rate is the one that rank_sweep.py found best for r = 8, alpha = 32, where s = 4. The rank is then changed and the
rate is not: with s = alpha / r (alpha stays 32), s = alpha / √r (rsLoRA, arXiv 2312.03732, alpha so that s is 4 at
r = 8), and s = 4 throughout (alpha grows with r, as the rule "alpha = 2 r" has it). Rows:
lora_book/findings/results/e2e.csv.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # common

from common import E2E, e2e_arguments, tune

REFERENCE, ALPHA = 8, 32


def main(argv: Sequence[str] | None = None) -> None:
    parser = e2e_arguments(__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 64, 256])
    args = parser.parse_args(argv)
    task, first = E2E.load(args), args.seeds[0]
    rate = tune(lambda rate: task.loss("lora", rate, first, rank=REFERENCE, alpha=ALPHA), start=1)
    s = ALPHA / REFERENCE
    for seed in args.seeds:
        for rank in args.ranks:
            task.run("lora", rate, seed, rank=rank, alpha=ALPHA)
            task.run("lora", rate, seed, rank=rank, alpha=round(s * math.sqrt(REFERENCE), 3), use_rslora=True)
            task.run("lora", rate, seed, rank=rank, alpha=int(s * rank))


if __name__ == "__main__":
    main()

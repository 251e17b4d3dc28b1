"""Does full fine-tuning differ from LoRA by the rank of its changes, or by what it may change? Does it forget more?

    LORA_DATA_DIR=... python experiments/gap/controls.py --prose FILE [--model gpt2-mini]

Full fine-tuning moves embeddings, biases and LayerNorms, too. Here it trains the matrices that LoRA adapts and nothing
else, with the learning rate tuned on the first seed. Besides, whole full fine-tuning at rates below its best, and LoRA
at r = 8 around its best, so that loss on prose can be compared at equal validation loss; and the base as it is.
Rows go to lora_book/findings/results/e2e.csv.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # common

from common import E2E, e2e_arguments, rate, tuned_runs


def main(argv: Sequence[str] | None = None) -> None:
    args = e2e_arguments(__doc__).parse_args(argv)
    task = E2E.load(args)
    task.run("base", 0.0, seed=0)
    for seed in args.seeds:
        task.run("full", rate(-2), seed)
    tuned_runs(task, args.seeds, start=0, method="full", targets="matrices")
    for seed in args.seeds:
        task.run("full", rate(-1), seed)
        task.run("lora", rate(0), seed, rank=8)


if __name__ == "__main__":
    main()

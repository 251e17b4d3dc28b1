"""Which layers should get the adapters, when each choice may train the same number of parameters?

    LORA_DATA_DIR=... python experiments/gap/which_layers.py [--prose FILE] [--model gpt2-mini]

Attention (c_attn and its c_proj), MLP (c_fc and its c_proj), both, or the head alone, at the rank that brings each
nearest to the count of r = 8 in attention (92,160 in gpt2-mini). Learning rate tuned on the first seed, then all seeds.
Rows go to lora_book/findings/results/e2e.csv.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # common

from common import E2E, TARGETS, e2e_arguments, tuned_runs

from lora_lib import find_targets, load_model
from lora_lib.lora_linear import linear_shape


def main(argv: Sequence[str] | None = None) -> None:
    parser = e2e_arguments(__doc__)
    parser.add_argument("--attention-rank", type=int, default=8)
    args = parser.parse_args(argv)
    task, model = E2E.load(args), load_model(args.model)
    sizes = {  # trainable parameters a rank
        targets: sum(sum(linear_shape(model.get_submodule(name))) for name in find_targets(model, chosen))
        for targets, chosen in TARGETS.items()
    }
    for targets, size in sizes.items():
        rank = round(args.attention_rank * sizes["attention"] / size)
        tuned_runs(task, args.seeds, start=1, method="lora", rank=max(1, rank), targets=targets)


if __name__ == "__main__":
    main()

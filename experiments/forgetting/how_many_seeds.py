"""How far do two seeds differ, and how many seeds does a difference of 0.02 nats or of 2 % take?

    LORA_DATA_DIR=... python experiments/forgetting/how_many_seeds.py --prose FILE --plays FILE [--seeds 200 201 ...]

LoRA of r = 8 and full fine-tuning of the same linear layers, at one rate each, on up to 20 seeds that map.py neither
tunes on nor reports; measured on validation data. Several processes can share the work, as in forgetting_map.py.
Rows: lora_book/findings/results/seeds.csv.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # common

from forgetting_map import STAGES, Claims, Map, arguments, settings_of, work

STEPS = {"full": 0, "r = 8": 3}  # of the grid: 0.001 and 0.0058, about the best rates


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "seeds.csv")
    parser.set_defaults(seeds=list(range(200, 220)))
    args = parser.parse_args(argv)
    runs = [settings_of(STAGES["linear"], name, STEPS[name], seed, args) for seed in args.seeds for name in STEPS]
    work(Map.load(args), lambda losses: iter(runs), Claims(args.claims))


if __name__ == "__main__":
    main()

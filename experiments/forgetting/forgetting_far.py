"""Is a task that is near the base, or the model, the reason why LoRA forgets more on SmolLM2?

    LORA_DATA_DIR=... python experiments/forgetting/forgetting_far.py --prose FILE --plays FILE

SmolLM2 on E2E as in forgetting_map.py, but under one fixed permutation of the tokens that occur in E2E: lengths,
frequencies and everything that there is to learn stay, and nothing that the base knows helps. Each run is measured on
prose, and counts the facts that the base knew and the tuned model still answers (facts.py). Rows:
lora_book/findings/results/smollm2_far.csv.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # common

import facts
import torch
from forgetting_map import (
    FIRST_REPORTED,
    MEASURES,
    STAGES,
    TUNING_SEED,
    Claims,
    Map,
    arguments,
    base_settings,
    key,
    log_probabilities,
    settings_of,
    work,
)
from torch import nn

from lora_lib.data import IGNORE, Encoded

# Steps of forgetting_map.py's grid, on the tuning seed. Each arm's best one and the next two lower are reported.
ROOT = "r = 64, α/√r"
TUNED = {"full": (-1, -2, 0), ROOT: (1, 0, 2)}
SMOLLM2 = {"model": "smollm2", "batch_size": 4, "references": 100, "tested": 80, "scales": [1.0]}


class Far(Map):
    """Runs on E2E with its tokens permuted; rows also count the facts that are still right."""

    measures = (*MEASURES, "facts")
    asked: list[Encoded]

    @classmethod
    def load(cls, args: argparse.Namespace) -> Far:
        task = super().load(args)
        assert isinstance(task, Far)
        change = permutation(task.train, task.base.config.vocab_size, task.tokenizer.eot_token)
        task.train, task.validation, task.test = (
            [permuted(example, change) for example in part] for part in (task.train, task.validation, task.test)
        )
        task.known["task"] = log_probabilities(task.base, task.test)
        task.asked = facts.known(task.base, task.tokenizer)
        return task

    def quality_of(self, model: nn.Module, others: bool) -> dict[str, Any]:
        return super().quality_of(model, False) | {"facts": sum(facts.answered(model, self.asked))}


def permutation(examples: Sequence[Encoded], size: int, kept: int) -> torch.Tensor:
    """For each token another one: those that occur in `examples` change places at random, all but `kept`."""
    seen = sorted({token for ids, targets in examples for token in (*ids.tolist(), *targets.tolist())} - {IGNORE, kept})
    drawn = torch.tensor(seen)[torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))]
    change = torch.arange(size)
    change[torch.tensor(seen)] = drawn
    return change


def permuted(example: Encoded, change: torch.Tensor) -> Encoded:
    ids, targets = example
    return change[ids], torch.where(targets == IGNORE, targets, change[targets.clamp(min=0)])


def runs(losses: dict[tuple[str, ...], float], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The base, the rates on the tuning seed, then seed by seed each arm's best rate, then the next two."""

    def run(arm: str, step: int, seed: int) -> dict[str, Any]:
        return settings_of(STAGES["smollm2"], arm, step, seed, args)

    yield base_settings(args)
    yield from (run(arm, step, TUNING_SEED) for arm, steps in TUNED.items() for step in steps)
    found = {(arm, step): losses.get(key(run(arm, step, TUNING_SEED))) for arm in TUNED for step in TUNED[arm]}
    if None not in found.values():
        best = {arm: min(TUNED[arm], key=lambda step: found[arm, step] or 0.0) for arm in TUNED}
        for lower in (0, 1, 2):
            for seed in range(FIRST_REPORTED, FIRST_REPORTED + 5):
                yield from (run(arm, best[arm] - lower, seed) for arm in best)


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "smollm2_far.csv")
    parser.set_defaults(**SMOLLM2)
    args = parser.parse_args(argv)
    task = Far.load(args)
    work(task, lambda losses: runs(losses, args), Claims(args.claims))


if __name__ == "__main__":
    main()

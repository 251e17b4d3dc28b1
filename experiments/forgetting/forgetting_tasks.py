"""What do LoRA and full fine-tuning of SmolLM2 forget on a near task, on a far one, and on a voice?

    LORA_DATA_DIR=... python experiments/forgetting/forgetting_tasks.py --task far --prose FILE --plays FILE

near: E2E, at the rates that forgetting_map.py tuned. far: E2E under one fixed permutation of the tokens that occur in
it: lengths, frequencies and everything that there is to learn stay, and nothing that the base knows helps. voice:
200 everyday questions, answered by a lighthouse keeper (voice.jsonl, written for this book), as a chat. Each run is
measured on prose, and counts the facts that the base knew and the tuned model still answers (facts.py). Rows:
lora_book/findings/results/smollm2_near.csv, smollm2_far.csv and smollm2_voice.csv.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # common

import facts
import torch
from common import RESULTS
from forgetting_map import (
    FIRST_REPORTED,
    MAIN,
    MEASURES,
    STAGES,
    TUNING_SEED,
    Claims,
    Map,
    Stage,
    arguments,
    base_settings,
    key,
    log_probabilities,
    plan,
    settings_of,
    work,
)
from torch import nn

from lora_lib.data import IGNORE, Encoded, read_records

ROOT = "r = 64, α/√r"
SMOLLM2 = {"model": "smollm2", "batch_size": 4, "references": 100, "tested": 80, "scales": [1.0]}
# Steps of forgetting_map.py's grid of rates. near: those it tuned, then one and two higher, in the order in which all
# seeds run them. far: those that run on the tuning seed; each arm's best one and the next two lower are reported.
# voice: where tuning begins.
NEAR = (
    (("full", -3), (ROOT, 0)),
    (("full", -2), (ROOT, 1), ("full", -1)),
    ((ROOT, 2), ("r = 8", 3)),
    (("full", 0),),
    (("r = 8", 1), ("full", -4)),
)
FAR = {"full": (-1, -2, 0), ROOT: (1, 0, 2)}
VOICE = Stage("linear", 60, MAIN[:2], 5, {}, dict(NEAR[0]), tune_first=True)


class Asked(Map):
    """Runs on one of the three tasks; rows also count the facts that are still right."""

    measures = (*MEASURES, "facts")
    asked: list[Encoded]

    @classmethod
    def load(cls, args: argparse.Namespace) -> Asked:
        task = super().load(args)
        assert isinstance(task, Asked)
        if args.task == "far":
            change = permutation(task.train, task.base.config.vocab_size, task.tokenizer.eot_token)
            task.train, task.validation, task.test = (
                [permuted(example, change) for example in part] for part in (task.train, task.validation, task.test)
            )
        elif args.task == "voice":
            task.train, task.validation, task.test = voice(task.tokenizer)
        task.known["task"] = log_probabilities(task.base, task.test)
        task.asked = facts.known(task.base, task.tokenizer)
        return task

    def quality_of(self, model: nn.Module, others: bool) -> dict[str, Any]:
        return super().quality_of(model, False) | {"facts": sum(facts.answered(model, self.asked))}


def voice(tokenizer: Any) -> tuple[list[Encoded], list[Encoded], list[Encoded]]:
    """Questions as a chat, answers to learn with the token that ends them: 130 to train, 30 to tune, 40 to test."""
    pairs = [record.exchanges[0] for record in read_records(Path(__file__).with_name("voice.jsonl"))]
    random.Random(0).shuffle(pairs)
    found = [facts.encode(tokenizer, facts.Question(ask, "", f"{answer}<|im_end|>")) for ask, answer in pairs]
    return found[:130], found[130:160], found[160:]


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


def far(losses: dict[tuple[str, ...], float], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rates on the tuning seed, then seed by seed each arm's best rate, then the next two."""

    def run(arm: str, step: int, seed: int) -> dict[str, Any]:
        return settings_of(STAGES["smollm2"], arm, step, seed, args)

    yield from (run(arm, step, TUNING_SEED) for arm, steps in FAR.items() for step in steps)
    found = {(arm, step): losses.get(key(run(arm, step, TUNING_SEED))) for arm in FAR for step in FAR[arm]}
    if None not in found.values():
        best = {arm: min(FAR[arm], key=lambda step: found[arm, step] or 0.0) for arm in FAR}
        for lower in (0, 1, 2):
            for seed in args.seeds:
                yield from (run(arm, best[arm] - lower, seed) for arm in best)


def runs(losses: dict[tuple[str, ...], float], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The base, and the task's runs."""
    if args.task == "voice":
        yield from plan([VOICE], losses, args)
        return
    yield base_settings(args)
    if args.task == "far":
        yield from far(losses, args)
    else:
        for arms in NEAR:
            for seed in args.seeds:
                yield from (settings_of(STAGES["smollm2"], arm, step, seed, args) for arm, step in arms)


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "smollm2_far.csv")
    parser.add_argument("--task", choices=["near", "far", "voice"], required=True)
    parser.set_defaults(**SMOLLM2, out=None, seeds=range(FIRST_REPORTED, FIRST_REPORTED + 5))
    args = parser.parse_args(argv)
    args.out = args.out or RESULTS / f"smollm2_{args.task}.csv"
    task = Asked.load(args)
    work(task, lambda losses: runs(losses, args), Claims(args.claims))


if __name__ == "__main__":
    main()

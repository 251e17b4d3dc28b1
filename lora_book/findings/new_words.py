"""When is the embedding worth training? What the rows of `experiments/gap/new_words.py` say.

A share p of all occurrences of names and values was exchanged for tokens that the base hardly knows. LoRA of r = 8 was
trained with and without the embedding, full fine-tuning with it. The rule is that of
`lora_book.findings.forgetting`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from lora_book.findings.forgetting import Compared, compared
from lora_book.findings.stats import Difference, Row, by_seed, load_results, select

PART = "r = 8 with the embedding less without"
USUAL, BOTH = "r = 8 less full, as usual", "r = 8 less full, embedding in both"
# What is compared, ours less theirs, at each share.
CONTRASTS = {
    PART: ("r = 8, embedding", "r = 8"),
    USUAL: ("r = 8", "full, embedding"),
    BOTH: ("r = 8, embedding", "full, embedding"),
}
ARMS = ("r = 8", "r = 8, embedding", "full, embedding")


def reported() -> list[Row]:
    """The reported runs, at the rates that tuning chose."""
    return select(load_results("new_words"), split="test")


def shares() -> dict[float, float]:
    """Each share p, and the share of new tokens among all that are to be written in the test data."""
    rows = select(reported(), arm="base")
    return {row["share"]: row["new"] for row in sorted(rows, key=lambda row: row["share"])}


def runs(arm: str, share: float) -> list[Row]:
    """The reported runs of an arm at a share."""
    return select(reported(), arm=arm, share=share)


def contrasts() -> dict[str, Compared]:
    """Every contrast in loss, and `PART` in loss on prose, at every share."""
    found = {}
    for share in shares():
        for name, (ours, theirs) in CONTRASTS.items():
            found[f"{name}, p = {share:g}"] = compared(runs(ours, share), runs(theirs, share), "loss")
        ours, theirs = CONTRASTS[PART]
        found[f"{PART}, prose, p = {share:g}"] = compared(runs(ours, share), runs(theirs, share), "prose_loss")
    return found


def _by_seed(share: float, of: Callable[[dict[str, float]], float], measure: str = "loss") -> dict[int, float]:
    """A number computed from the losses of all arms, for each seed that every arm has."""
    losses = {arm: by_seed(runs(arm, share), measure) for arm in ARMS}
    seeds = set.intersection(*(set(found) for found in losses.values()))
    return {seed: of({arm: found[seed] for arm, found in losses.items()}) for seed in sorted(seeds)}


def part(losses: dict[str, float]) -> float:
    """By how much training the embedding lowers the loss of r = 8."""
    return losses["r = 8"] - losses["r = 8, embedding"]


def growth() -> dict[str, Difference]:
    """By how much the embedding's part grows from one share to the next."""
    found = {}
    for low, high in itertools.pairwise(shares()):
        few, many = _by_seed(low, part), _by_seed(high, part)
        changes = [many[seed] - few[seed] for seed in few.keys() & many.keys()]
        found[f"embedding's part, p = {high:g} less {low:g}"] = Difference.of(changes)
    return found


def share_of_gap(share: float) -> Difference:
    """The embedding's part as a share of the usual gap: LoRA without the embedding less full fine-tuning with it."""
    found = _by_seed(share, lambda losses: part(losses) / (losses["r = 8"] - losses["full, embedding"]))
    return Difference.of(list(found.values()))


def gain(share: float, tokens: str) -> Difference:
    """By how much training the embedding lowers the loss of r = 8 on "new" or on "known" tokens."""
    return Difference.of(list(_by_seed(share, part, f"loss_{tokens}").values()))


def gain_on_new(share: float) -> Difference:
    """By how much more it lowers the loss on a new token than on a known one."""
    new, known = (_by_seed(share, part, f"loss_{tokens}") for tokens in ("new", "known"))
    return Difference.of([new[seed] - known[seed] for seed in new])


def family() -> dict[str, Difference]:
    """Every difference between these rows that a page may call one."""
    found = {name: both.difference for name, both in contrasts().items()} | growth()
    found["gain on new less known tokens, p = 1"] = gain_on_new(1.0)
    return {f"new words, {name}": difference for name, difference in found.items()}

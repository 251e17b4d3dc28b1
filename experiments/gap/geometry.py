"""What does the change of the weights look like, in LoRA at each rank and in full fine-tuning?

    python experiments/gap/geometry.py [--model gpt2-mini] [--out lora_book/findings/results/e2e.csv] [--keep runs/e2e]

Reads the weights that rank_sweep.py left, at each rank's best learning rate, and writes means over all linear layers:

- geometry.csv (beside e2e.csv), one row a run: size of the change, effective rank, shares of it that its best
  approximations hold, amplification, intruder dimensions (of 10 a layer), singular values as shares of the largest;
- similarity.csv, one row a pair of runs of different seeds: φ between the input directions of the two, those of
  A and those of the change itself (for full fine-tuning only these), beside φ of random matrices.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # common

import torch
from common import Row, Rows, e2e_arguments, slug
from torch import Tensor

from lora_book.measure import (
    amplification,
    effective_rank,
    energy_shares,
    intruder_dimensions,
    low_rank_factors,
    subspace_similarity,
    weight_changes,
)
from lora_lib import GPT2Model, PeftModel, load_model, load_pretrained

SHARES = (1, 2, 4, 8, 16, 64)
FIRST, SECOND = (1, 2, 4, 8), (1, 2, 4, 8, 16, 32, 64)  # directions of the one run and of the other
PAIRS = (("8", "8"), ("64", "64"), ("0", "0"), ("8", "64"), ("8", "0"), ("64", "0"))  # ranks; 0 is full fine-tuning


def main(argv: Sequence[str] | None = None) -> None:
    args = e2e_arguments(__doc__).parse_args(argv)
    runs = best_runs(args)
    weights = Weights(args.model, args.keep)
    geometry, similar = (Rows(args.out.with_name(f"{name}.csv")) for name in ("geometry", "similarity"))
    for run in runs:
        settings = {name: run[name] for name in ("model", "method", "rank", "learning_rate", "steps", "seed")}
        geometry.run(settings, partial(weights.shape, run))
    for of, one, other in pairs(runs):
        settings = {"model": args.model, "steps": args.steps, "of": of}
        for number, run in (("1", one), ("2", other)):
            settings |= {name + number: run[name] for name in ("rank", "learning_rate", "seed")}
        similar.run(settings, partial(weights.similarity, of, one, other))


def best_runs(args: argparse.Namespace) -> list[Row]:
    """The rank sweep's runs at the learning rate with the least validation loss on the first seed, on all seeds."""
    asked = {name: str(getattr(args, name)) for name in ("model", "steps", "batch_size", "max_length")}
    asked |= {"targets": "all", "alpha": "32", "use_rslora": "False", "init": "default", "lora_plus": "1"}
    rows = [row for row in Rows(args.out).rows if all(row[name] == value for name, value in asked.items())]
    chosen = []
    for rank in sorted({row["rank"] for row in rows}, key=int):
        tuned = [row for row in rows if row["rank"] == rank and row["seed"] == str(args.seeds[0])]
        rate = min(tuned, key=lambda row: float(row["validation_loss"]))["learning_rate"]
        same = [row for row in rows if row["rank"] == rank and row["learning_rate"] == rate]
        chosen += [row for row in same if int(row["seed"]) in args.seeds]
    return chosen


def pairs(runs: Sequence[Row]) -> Iterator[tuple[str, Row, Row]]:
    """What to compare, and in which two runs. One seed would give two ranks some of the same random numbers."""
    for ranks in PAIRS:
        for one in runs:
            for other in runs:
                different = one["seed"] != other["seed"] and (ranks[0] != ranks[1] or one["seed"] < other["seed"])
                if (one["rank"], other["rank"]) == ranks and different:
                    yield "change", one, other
                    if "0" not in ranks:
                        yield "A", one, other
                        yield "random", one, other


@lru_cache(maxsize=2)
def load(model: str, folder: Path) -> GPT2Model | PeftModel:
    """A kept run: the base with its adapter, or the whole model."""
    if (folder / "adapter_config.json").exists():
        return PeftModel.from_pretrained(load_model(model), folder)
    return load_model(folder)


def shared_directions(layers: Iterable[tuple[Tensor, Tensor]]) -> Row:
    """φ between the first i directions of one matrix and the first j of the other, a mean over the layers."""
    phi = torch.stack([subspace_similarity(X, Y) for X, Y in layers]).mean(0)
    entries = [(i, j) for i in FIRST for j in SECOND]
    known = {(i, j): round(float(phi[i - 1, j - 1]), 4) for i, j in entries if i <= len(phi) and j <= len(phi.T)}
    return {f"phi_{i}_{j}": known.get((i, j), "") for i, j in entries}


class Weights:
    """The runs' weights, compared with those of the base."""

    def __init__(self, model: str, keep: Path) -> None:
        self.model, self.keep = model, keep
        self.base, _ = load_pretrained(model)

    def changes(self, run: Row) -> dict[str, tuple[Tensor, Tensor]]:
        return weight_changes(self.base, load(self.model, self.keep / slug(run)))

    def shape(self, run: Row) -> Row:
        found: list[Row] = []
        spectra = []
        for W, change in self.changes(run).values():
            S, shares = torch.linalg.svdvals(change), energy_shares(change)
            spectra.append(S[: SHARES[-1]] / S[0])
            found.append(
                {
                    "relative_size": float(change.norm() / W.norm()),
                    "effective_rank": effective_rank(change),
                    **{f"share_{r}": float(shares[r - 1]) for r in SHARES},
                    "intruders": intruder_dimensions(W, W + change),
                    **({} if run["rank"] in ("1", "2") else {"amplification_4": amplification(change, W, 4)}),
                }
            )
        means: Row = {name: round(sum(row[name] for row in found) / len(found), 4) for name in found[0]}
        means.setdefault("amplification_4", "")  # a change of rank 1 or 2 has no four directions
        return {**means, "spectrum": " ".join(f"{s:.4f}" for s in torch.stack(spectra).mean(0).tolist())}

    def similarity(self, of: str, one: Row, other: Row) -> Row:
        return shared_directions(zip(self.directions(of, one), self.directions(of, other)))

    def directions(self, of: str, run: Row) -> Iterator[Tensor]:
        """One matrix a layer, whose left singular vectors are compared: A, the change, or noise of A's shape."""
        generator = torch.Generator().manual_seed(int(run["seed"]))
        rank = int(run["rank"]) or SECOND[-1]
        for W, change in self.changes(run).values():
            if of == "random":
                yield torch.randn(len(W), rank, generator=generator)
            elif of == "change":
                yield low_rank_factors(change, rank)[0]  # no directions that the change does not have
        if of == "A":
            for layer in load(self.model, self.keep / slug(run)).lora_layers().values():
                (adapter,) = layer.adapters.values()
                yield adapter.A


if __name__ == "__main__":
    main()

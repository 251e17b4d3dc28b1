"""Amplification, intruders and φ beside what chance gives: which_parts.py's weights, read again.

    python experiments/gap/directions.py [--model gpt2-mini] [--keep runs/parts]

Reads the runs of which_parts.py on the linear layers whose weights were kept (LoRA at r = 8 and 64, full fine-tuning
of the same matrices, each at several learning rates) and writes means over all these layers:

- directions.csv, one row a run, with the run's loss, so that runs can be compared at equal loss. `amplification_4` is
  ‖ΔW₄‖ / ‖Uᵀ·W·V‖ in the four strongest directions of the change; `random_4` is the same for random directions, and
  `share_4`, `own_share_4` tell how much more of W lies in the change's directions, and in W's own four strongest, than
  in random ones. `intruders`, of W's ten strongest directions afterwards: of the change itself, of one with the same
  singular values in random directions (`random_intruders`), and of both at an equal size, SIZE of W's norm.
- overlap.csv, one row a pair of seeds that share no run with another pair: φ of the A matrices, of the changes and of
  random matrices of A's shape.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # common

import torch
from common import Row, Rows
from geometry import SECOND, load, shared_directions
from torch import Tensor
from which_parts import arguments, folder

from lora_book.measure import amplification, intruder_dimensions, low_rank_factors, weight_changes
from lora_lib import PeftModel, load_model

SIZE = 0.2  # of a change as a share of W's norm, where sizes are made equal
RUN = ("model", "method", "rank", "alpha", "use_rslora", "learning_rate", "steps", "seed")


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.set_defaults(seeds=range(6))
    args = parser.parse_args(argv)
    looked = Weights(args.model, args.keep)
    runs = [row for row in Rows(args.out).rows if row["parts"] == "linear" and (args.keep / folder(row)).is_dir()]
    shapes, overlaps = (Rows(args.out.with_name(f"{name}.csv")) for name in ("directions", "overlap"))
    for run in runs:
        shapes.run({name: run[name] for name in RUN}, partial(looked.shape, run))
    for one, other in pairs(runs, args.seeds):
        for of in ("A", "change", "random") if one["method"] == "lora" else ("change", "random"):
            settings = {name: one[name] for name in RUN[:-1]} | {"of": of, "seed1": one["seed"], "seed2": other["seed"]}
            overlaps.run(settings, partial(looked.overlap, of, one, other))


def pairs(runs: Sequence[Row], seeds: Sequence[int]) -> Iterator[tuple[Row, Row]]:
    """Two runs that differ by the seed alone; each run is in one pair only, so that the pairs are independent."""
    by_run = {tuple(run[name] for name in RUN): run for run in runs}
    for key, run in by_run.items():
        for first, second in zip(seeds[::2], seeds[1::2]):
            other = by_run.get((*key[:-1], str(second)))
            if key[-1] == str(first) and other:
                yield run, other


class Weights:
    """The runs' weights, compared with those of the base."""

    def __init__(self, model: str, keep: Path) -> None:
        self.model, self.keep = model, keep
        self.base = load_model(model)

    def changes(self, run: Row) -> dict[str, tuple[Tensor, Tensor]]:
        return weight_changes(self.base, load(self.model, self.keep / folder(run)))

    def shape(self, run: Row) -> Row:
        generator = torch.Generator().manual_seed(int(run["seed"]))
        found = [one_layer(W, change, generator) for W, change in self.changes(run).values()]
        return {
            **{name: run[name] for name in ("validation_loss", "prose_loss")},
            **{name: round(sum(row[name] for row in found) / len(found), 4) for name in found[0]},
        }

    def overlap(self, of: str, one: Row, other: Row) -> Row:
        return shared_directions(zip(self.directions(of, one), self.directions(of, other)))

    def directions(self, of: str, run: Row) -> Iterator[Tensor]:
        """One matrix a layer, whose left singular vectors are compared: A, the change, or noise of A's shape."""
        generator = torch.Generator().manual_seed(int(run["seed"]))
        rank, tuned = int(run["rank"]) or SECOND[-1], load(self.model, self.keep / folder(run))
        for name, (W, change) in self.changes(run).items():
            if of == "random":
                yield torch.randn(len(W), rank, generator=generator)
            elif of == "change":
                yield low_rank_factors(change, rank)[0]
            elif isinstance(tuned, PeftModel):
                (adapter,) = tuned.lora_layers()[name].adapters.values()
                yield adapter.A


def one_layer(W: Tensor, change: Tensor, generator: torch.Generator) -> dict[str, float]:
    """The numbers of one layer's change, and those of chance."""
    U, S, Vh = torch.linalg.svd(change, full_matrices=False)
    kept = int(torch.linalg.matrix_rank(change))
    random = orthonormal(len(W), kept, generator) * S[:kept] @ orthonormal(W.shape[1], kept, generator).T
    by_chance = torch.stack([inside(W, *some(W, 4, generator)) for _ in range(20)]).square().mean().sqrt()
    own = torch.linalg.svdvals(W)[:4].norm()
    found = {"relative_size": float(change.norm() / W.norm()), "amplification_4": amplification(change, W, 4)}
    found |= {
        "random_4": float(S[:4].norm() / by_chance),
        "share_4": float(inside(W, U[:, :4], Vh[:4].T) / by_chance),
        "own_share_4": float(own / by_chance),
    }
    for name, delta in (("intruders", change), ("random_intruders", random)):
        found[name] = intruder_dimensions(W, W + delta)
        found[f"{name}_equal_size"] = intruder_dimensions(W, W + delta * (SIZE * W.norm() / delta.norm()))
    return found


def inside(W: Tensor, U: Tensor, V: Tensor) -> Tensor:
    """The norm of the part of W that goes from the one set of directions to the other."""
    return (U.T @ W @ V).norm()


def some(W: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """So many random directions of W's inputs and of its outputs."""
    return orthonormal(len(W), count, generator), orthonormal(W.shape[1], count, generator)


def orthonormal(size: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(size, count, generator=generator)).Q


if __name__ == "__main__":
    main()

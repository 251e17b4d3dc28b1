"""Looking inside matrices, and at what fine-tuning did to them: ranks, directions, and what was forgotten.

Matrices are (d × k), inputs before outputs, as in W' = W + s·A·B; `weight_changes` takes them out of a model so.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lib.adapters.targets import find_targets
from lora_lib.data.examples import Encoded
from lora_lib.gpt2.tokenizer import Tokenizer
from lora_lib.lora_linear import LoRALinear


def low_rank_factors(W: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """A (d × r) and B (r × k) whose product is nearest to W (d × k), of all matrices of rank r or less.

    Nearest in the Frobenius norm: the singular value decomposition of W, cut after its r largest singular
    values (Eckart and Young, 1936). A carries the singular values, B has orthonormal rows. They are float32,
    or float64 where W is. Raises ValueError when W is not a matrix or r is not between 0 and its shorter side.
    """
    U, S, Vh = torch.linalg.svd(_matrix(W), full_matrices=False)
    if not 0 <= r <= len(S):
        raise ValueError(f"a matrix of shape {tuple(W.shape)} has a rank between 0 and {len(S)}, got r = {r}")
    return U[:, :r] * S[:r], Vh[:r]


def energy_shares(W: Tensor) -> Tensor:
    """How much of W its best approximations keep: entry r - 1 is rank r's share of the sum of all squares.

    Shape (min(d, k),), rising to 1. The relative error of rank r is the square root of what is missing,
    ‖W - A·B‖ / ‖W‖ = √(1 - share), in the Frobenius norm. Raises ValueError when W is not a matrix or is zero.
    """
    squares = torch.linalg.svdvals(_matrix(W)).square().cumsum(0)
    if squares[-1] == 0:
        raise ValueError("a matrix of zeros has no shares: every direction holds nothing")
    return squares / squares[-1]


def rank_for(W: Tensor, share: float) -> int:
    """The smallest rank whose best approximation keeps this `share` (0 to 1) of W's sum of squares.

    Raises ValueError as `energy_shares` does, and for a share that is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share lies between 0 and 1, got {share}")
    return int((energy_shares(W) < share).sum()) + 1


def effective_rank(W: Tensor) -> float:
    """How many directions W spreads over: 1 when one holds all, min(d, k) when all hold the same.

    The exponential of the entropy of the singular values, taken as shares of their sum (Roy and Vetterli, 2007).
    Raises ValueError when W is not a matrix or is zero.
    """
    S = torch.linalg.svdvals(_matrix(W))
    if S[0] == 0:
        raise ValueError("a matrix of zeros has no effective rank: every direction holds nothing")
    return math.exp(torch.special.entr(S / S.sum()).sum().item())


def subspace_similarity(X: Tensor, Y: Tensor) -> Tensor:
    """φ between the strongest directions of X (d × r) and of Y (d × q), two A's of one layer, say: a table (r × q).

    Entry [i - 1, j - 1] is ‖Uᵀ·V‖² / min(i, j), U the first i left singular vectors of X and V the first j of Y: 1 when
    the smaller subspace lies in the larger, 0 when they are at right angles, about max(i, j) / d for random ones.
    Section 7.2 of the LoRA paper (arXiv 2106.09685). Raises ValueError for matrices with different d.
    """
    if _matrix(X).shape[0] != _matrix(Y).shape[0]:
        raise ValueError(f"directions can be compared in one space only, got {X.shape[0]} and {Y.shape[0]} rows")
    U, V = (torch.linalg.svd(_matrix(M), full_matrices=False).U for M in (X, Y))
    shared = (U.T @ V.to(U)).square().cumsum(0).cumsum(1)
    i, j = (torch.arange(1, n + 1) for n in shared.shape)
    return shared / torch.minimum(i[:, None], j).to(shared)


def amplification(delta: Tensor, W: Tensor, r: int) -> float:
    """How much more delta does than W, in delta's r strongest pairs of directions: ‖D‖ / ‖Uᵀ·W·V‖.

    D is the best rank-r approximation of delta, U and V its singular vectors. Large when fine-tuning strengthens what
    W holds weakly. Section 7.3 of the LoRA paper. Raises ValueError when the shapes differ, for an r that is not
    between 1 and min(d, k), and when delta has not so many directions.
    """
    if delta.shape != W.shape or not 1 <= r <= min(W.shape):
        raise ValueError(
            f"expected two shapes that are alike and a rank within them, got {tuple(delta.shape)}, {tuple(W.shape)} "
            f"and r = {r}"
        )
    U, S, Vh = torch.linalg.svd(_matrix(delta), full_matrices=False)
    if S[r - 1] <= max(delta.shape) * torch.finfo(S.dtype).eps * S[0]:
        raise ValueError(f"delta has rank {int(torch.linalg.matrix_rank(delta))}: it has no {r} directions")
    return float(S[:r].norm() / (U[:, :r].T @ _matrix(W).to(U) @ Vh[:r].T).norm())


def intruder_dimensions(W: Tensor, tuned: Tensor, k: int = 10, threshold: float = 0.5) -> int:
    """How many of the k strongest output directions of the `tuned` matrix are like none of W's: 0 to k.

    Output directions are right singular vectors here, and left ones in the paper, which writes matrices the other way
    round. One is an intruder when its cosine with each of W's is below `threshold` in size (a singular vector has no
    sign). Shuttleworth et al., arXiv 2410.21228. Raises ValueError when the shapes differ.
    """
    if W.shape != tuned.shape:
        raise ValueError(f"expected two matrices of one shape, got {tuple(W.shape)} and {tuple(tuned.shape)}")
    before, after = (torch.linalg.svd(_matrix(M), full_matrices=False).Vh for M in (W, tuned))
    return int(((after[:k] @ before.T.to(after)).abs().amax(1) < threshold).sum())


def weight_changes(base: nn.Module, tuned: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """(W, change of W), both (d × k), of each linear layer but the head, by its name.

    `tuned` is a `PeftModel`, whose changes are s·A·B, or `base` after full fine-tuning.
    """
    changes = {}
    adapted = tuned.lora_layers() if hasattr(tuned, "lora_layers") else {}
    for name in adapted or find_targets(base, "all-linear"):
        W = cast(nn.Linear, base.get_submodule(name)).weight.detach().T
        if name in adapted:
            layer: LoRALinear = adapted[name]
            change = torch.stack([layer.adapters[a].delta(W).detach() for a in layer.active]).sum(0)
        else:
            change = cast(nn.Linear, tuned.get_submodule(name)).weight.detach().T - W
        changes[name] = W, change
    return changes


def text_windows(text: str, tokenizer: Tokenizer, length: int, count: int) -> list[Encoded]:
    """`count` pieces of a text, evenly spread, each `length` ids and as many targets: for `training.evaluate`.

    The loss on a text that the base model knew, before and after fine-tuning, tells what was forgotten.
    Raises ValueError when the text has fewer than count · length + 1 tokens.
    """
    tokens = torch.tensor(tokenizer.encode(text))
    if count < 1 or len(tokens) < count * length + 1:
        raise ValueError(f"{count} × {length} tokens and one more are needed, the text has {len(tokens)}")
    starts = [i * (len(tokens) - 1 - length) // max(1, count - 1) for i in range(count)]
    return [(tokens[i : i + length], tokens[i + 1 : i + length + 1]) for i in starts]


def _matrix(W: Tensor) -> Tensor:
    if W.ndim != 2:
        raise ValueError(f"expected a matrix with two dimensions, got shape {tuple(W.shape)}")
    W = W.detach()
    return W if W.dtype == torch.float64 else W.float()  # half precision has no SVD

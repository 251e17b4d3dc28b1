"""Ranks and directions of matrices, how fine-tuning changed them, and what the model forgot.

Matrices are (d × k), inputs before outputs, as in W' = W + s·A·B. `weight_changes` returns a model's in this layout.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lib.adapters.plan import find_targets
from lora_lib.data.examples import Encoded
from lora_lib.gpt2.tokenizer import Tokenizer
from lora_lib.lora_linear import LoRALinear


def low_rank_factors(W: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """A (d × r) and B (r × k) whose product is the best rank-r approximation of W (d × k).

    Best in the Frobenius norm: the singular value decomposition of W, cut after the r largest singular values
    (Eckart and Young, 1936). A includes the singular values, B has orthonormal rows. Both are float32, or float64 if W
    is. Raises ValueError if W is not a matrix or r is not between 0 and its shorter side.
    """
    U, S, Vh = torch.linalg.svd(_matrix(W), full_matrices=False)
    if not 0 <= r <= len(S):
        raise ValueError(f"a matrix of shape {tuple(W.shape)} has a rank between 0 and {len(S)}, got r = {r}")
    return U[:, :r] * S[:r], Vh[:r]


def energy_shares(W: Tensor) -> Tensor:
    """How much of W each rank can keep: entry r - 1 is the share of W's sum of squares in the best rank-r matrix.

    Shape (min(d, k),), increasing to 1. The relative error of rank r in the Frobenius norm is
    ‖W - A·B‖ / ‖W‖ = √(1 - share). Raises ValueError if W is not a matrix or is zero.
    """
    squares = torch.linalg.svdvals(_matrix(W)).square().cumsum(0)
    if squares[-1] == 0:
        raise ValueError("a matrix of zeros has no shares, because its sum of squares is 0")
    return squares / squares[-1]


def rank_for(W: Tensor, share: float) -> int:
    """The smallest rank whose best approximation keeps at least `share` (0 to 1) of W's sum of squares.

    Raises ValueError as `energy_shares` does, and for a share that is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share is between 0 and 1, got {share}")
    return int((energy_shares(W) < share).sum()) + 1


def effective_rank(W: Tensor) -> float:
    """How many directions W uses: 1 if one singular value is all of it, min(d, k) if all of them are equal.

    The exponential of the entropy of the singular values, each divided by their sum (Roy and Vetterli, 2007).
    Raises ValueError if W is not a matrix or is zero.
    """
    S = torch.linalg.svdvals(_matrix(W))
    if S[0] == 0:
        raise ValueError("a matrix of zeros has no effective rank, because all its singular values are 0")
    return math.exp(torch.special.entr(S / S.sum()).sum().item())


def subspace_similarity(X: Tensor, Y: Tensor) -> Tensor:
    """φ between the strongest directions of X (d × r) and Y (d × q), for example two A's of one layer: (r × q).

    Entry [i - 1, j - 1] is ‖Uᵀ·V‖² / min(i, j), U the first i left singular vectors of X and V the first j of Y: 1 when
    the smaller subspace lies in the larger, 0 when they are at right angles, about max(i, j) / d for random ones.
    Section 7.2 of the LoRA paper (arXiv 2106.09685). Raises ValueError for matrices with different d.
    """
    if _matrix(X).shape[0] != _matrix(Y).shape[0]:
        raise ValueError(f"directions can only be compared in the same space, got {X.shape[0]} and {Y.shape[0]} rows")
    U, V = (torch.linalg.svd(_matrix(M), full_matrices=False).U for M in (X, Y))
    shared = (U.T @ V.to(U)).square().cumsum(0).cumsum(1)
    i, j = (torch.arange(1, n + 1) for n in shared.shape)
    return shared / torch.minimum(i[:, None], j).to(shared)


def amplification(delta: Tensor, W: Tensor, r: int) -> float:
    """How much larger delta is than W in delta's r strongest pairs of directions: ‖D‖ / ‖Uᵀ·W·V‖.

    D is the best rank-r approximation of delta, U and V its singular vectors. The factor is large if fine-tuning
    strengthens directions that are weak in W. Section 7.3 of the LoRA paper. Raises ValueError if the shapes differ,
    if r is not between 1 and min(d, k), or if the rank of delta is below r.
    """
    if delta.shape != W.shape or not 1 <= r <= min(W.shape):
        raise ValueError(
            f"expected two matrices of one shape and a rank from 1 to {min(delta.shape)}, got {tuple(delta.shape)}, "
            f"{tuple(W.shape)} and r = {r}"
        )
    U, S, Vh = torch.linalg.svd(_matrix(delta), full_matrices=False)
    if S[r - 1] <= max(delta.shape) * torch.finfo(S.dtype).eps * S[0]:
        raise ValueError(f"delta has rank {int(torch.linalg.matrix_rank(delta))}: that is below r = {r}")
    return float(S[:r].norm() / (U[:, :r].T @ _matrix(W).to(U) @ Vh[:r].T).norm())


def intruder_dimensions(W: Tensor, tuned: Tensor, k: int = 10, threshold: float = 0.5) -> int:
    """How many of the k strongest output directions of the `tuned` matrix resemble none of W's: 0 to k.

    Output directions are right singular vectors here, and left ones in the paper, which transposes its matrices. A
    direction is an intruder if the absolute value of its cosine with every direction of W is below `threshold`.
    Shuttleworth et al., arXiv 2410.21228. Raises ValueError if the shapes differ.
    """
    if W.shape != tuned.shape:
        raise ValueError(f"expected two matrices of one shape, got {tuple(W.shape)} and {tuple(tuned.shape)}")
    before, after = (torch.linalg.svd(_matrix(M), full_matrices=False).Vh for M in (W, tuned))
    return int(((after[:k] @ before.T.to(after)).abs().amax(1) < threshold).sum())


def weight_changes(base: nn.Module, tuned: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """(W, change of W), both (d × k), of each linear layer except the head, by its name.

    `tuned` is a `PeftModel`, whose changes are s·A·B, or a copy of `base` after full fine-tuning.
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
    """`count` evenly spaced pieces of a text, each with `length` ids and as many targets, for `training.evaluate`.

    Measured before and after fine-tuning, the loss on a text that the base model knew shows what was forgotten.
    Raises ValueError if the text has fewer than count · length + 1 tokens.
    """
    tokens = torch.tensor(tokenizer.encode(text))
    if count < 1 or len(tokens) < count * length + 1:
        raise ValueError(f"{count} × {length} + 1 tokens are needed, the text has {len(tokens)}")
    starts = [i * (len(tokens) - 1 - length) // max(1, count - 1) for i in range(count)]
    return [(tokens[i : i + length], tokens[i + 1 : i + length + 1]) for i in starts]


def _matrix(W: Tensor) -> Tensor:
    if W.ndim != 2:
        raise ValueError(f"expected a matrix with two dimensions, got shape {tuple(W.shape)}")
    W = W.detach()
    return W if W.dtype == torch.float64 else W.float()  # half precision has no SVD

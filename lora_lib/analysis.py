"""Looking inside matrices: how much of one lies in its strongest directions, and the best of each rank."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_lib.data import Encoded
from lora_lib.tokenizer import Tokenizer


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


def text_windows(text: str, tokenizer: Tokenizer, length: int, count: int) -> list[Encoded]:
    """`count` pieces of a text, evenly spread, each `length` ids and as many targets: for `training.evaluate`.

    The loss on a text that the base model knew, before and after fine-tuning, tells what was forgotten.
    Raises ValueError when the text has fewer than count · length + 1 tokens.
    """
    tokens = torch.tensor(tokenizer.encode(text))
    if count < 1 or len(tokens) < count * length + 1:
        raise ValueError(f"{count} windows of {length} tokens need {count * length + 1} tokens, the text has {len(tokens)}")
    starts = [i * (len(tokens) - 1 - length) // max(1, count - 1) for i in range(count)]
    return [(tokens[i : i + length], tokens[i + 1 : i + length + 1]) for i in starts]


def _matrix(W: Tensor) -> Tensor:
    if W.ndim != 2:
        raise ValueError(f"expected a matrix with two dimensions, got shape {tuple(W.shape)}")
    W = W.detach()
    return W if W.dtype == torch.float64 else W.float()  # half precision has no SVD

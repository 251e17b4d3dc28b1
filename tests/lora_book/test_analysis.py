import math

import pytest
import torch

from lora_book.measure import (
    amplification,
    effective_rank,
    energy_shares,
    intruder_dimensions,
    low_rank_factors,
    rank_for,
    subspace_similarity,
    text_windows,
    weight_changes,
)
from lora_lib import GPT2Config, GPT2Model, Tokenizer, get_peft_model
from lora_lib.gpt2 import MINI_FOLDER


def with_singular_values(*values, d=6, k=4):
    """A matrix (d × k) with these singular values, in random directions."""
    torch.manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(n, len(values), dtype=torch.float64)).Q for n in (d, k))
    return U * torch.tensor(values) @ V.T


def test_factors_have_the_rank_and_the_error_of_the_theorem():
    W = with_singular_values(4.0, 3.0, 2.0, 1.0)
    for r, error in ((0, 30**0.5), (1, 14**0.5), (2, 5**0.5), (3, 1.0), (4, 0.0)):
        A, B = low_rank_factors(W, r)
        assert A.shape == (6, r) and B.shape == (r, 4)
        assert float((W - A @ B).norm()) == pytest.approx(error, abs=1e-12)


def test_energy_shares_give_the_relative_error():
    W = with_singular_values(4.0, 3.0, 2.0, 1.0)
    torch.testing.assert_close(energy_shares(W), torch.tensor([16, 25, 29, 30], dtype=torch.float64) / 30)
    for r in (1, 2, 3):
        A, B = low_rank_factors(W, r)
        missing = 1 - energy_shares(W)[r - 1]
        torch.testing.assert_close((W - A @ B).norm() / W.norm(), missing.sqrt())


def test_rank_for_is_the_smallest_that_suffices():
    W = with_singular_values(4.0, 3.0, 2.0, 1.0)
    assert [rank_for(W, share) for share in (0.0, 0.5, 0.6, 0.83, 0.84, 0.99, 1.0)] == [1, 1, 2, 2, 3, 4, 4]
    assert rank_for(torch.outer(torch.arange(3.0), torch.arange(4.0)), 0.999) == 1


def test_half_precision_and_parameters_are_welcome():
    W = torch.nn.Parameter(with_singular_values(4.0, 3.0).to(torch.bfloat16))
    A, B = low_rank_factors(W, 2)
    assert A.dtype == B.dtype == torch.float32 and not A.requires_grad
    torch.testing.assert_close(A @ B, W.detach().float(), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: low_rank_factors(torch.ones(3, 4), 4), r"shape \(3, 4\) has a rank between 0 and 3, got r = 4"),
        (lambda: low_rank_factors(torch.ones(3, 4), -1), "got r = -1"),
        (lambda: low_rank_factors(torch.ones(3), 1), r"two dimensions, got shape \(3,\)"),
        (lambda: energy_shares(torch.zeros(3, 4)), "zeros has no shares"),
        (lambda: rank_for(torch.ones(3, 4), 90), "between 0 and 1, got 90"),
        (lambda: effective_rank(torch.zeros(3, 4)), "zeros has no effective rank"),
        (lambda: subspace_similarity(torch.ones(3, 2), torch.ones(4, 2)), "in the same space, got 3 and 4 rows"),
        (lambda: amplification(torch.ones(3, 4), torch.ones(4, 3), 1), r"got \(3, 4\), \(4, 3\) and r = 1"),
        (lambda: amplification(torch.ones(3, 4), torch.ones(3, 4), 4), "and r = 4"),
        (lambda: amplification(torch.ones(3, 4), torch.ones(3, 4), 2), "delta has rank 1: that is below r = 2"),
        (lambda: intruder_dimensions(torch.ones(3, 4), torch.ones(4, 3)), "two matrices of one shape"),
    ],
)
def test_what_is_not_a_matrix_or_not_a_rank_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_effective_rank_counts_equal_directions():
    assert effective_rank(with_singular_values(2.0, 2.0, 2.0)) == pytest.approx(3)
    assert effective_rank(with_singular_values(5.0)) == pytest.approx(1)
    # shares 3/4 and 1/4: exp(-(3/4)·ln(3/4) - (1/4)·ln(1/4)) = 4 / 3^(3/4)
    assert effective_rank(with_singular_values(3.0, 1.0)) == pytest.approx(4 / 3**0.75)
    assert effective_rank(7 * with_singular_values(3.0, 1.0)) == pytest.approx(4 / 3**0.75)


def test_subspace_similarity_by_hand():
    e = torch.eye(4)
    X = torch.stack([3 * e[0], 2 * e[1]], dim=1)  # strongest direction e0, then e1
    Y = torch.stack([5 * e[1], 4 * (e[0] + e[2]) / 2**0.5, e[3]], dim=1)  # e1, then (e0 + e2)/√2, then e3
    # e0 is not in span(e1), and half in the second direction; e1 is Y's first
    expected = torch.tensor([[0, 0.5, 0.5], [1, 0.75, 0.75]])
    torch.testing.assert_close(subspace_similarity(X, Y), expected)
    torch.testing.assert_close(subspace_similarity(X, X)[[0, 1], [0, 1]], torch.ones(2))


def test_amplification_by_hand():
    W = torch.tensor([[8.0, 0, 0], [0, 4, 0], [6, 0, 0.5]])  # the 6 leads from the third input to another output
    delta = torch.diag(torch.tensor([0.0, 2.0, 3.0]))  # its strongest direction is W's weakest
    assert amplification(delta, W, 1) == pytest.approx(3 / 0.5)
    assert amplification(delta, W, 2) == pytest.approx(13**0.5 / (4**2 + 0.5**2) ** 0.5)


def test_intruders_are_strong_directions_that_are_new():
    W = torch.zeros(4, 6)
    W[0, 0], W[1, 1], W[2, 2] = 3.0, 2.0, 1.0
    assert intruder_dimensions(W, 2 * W) == intruder_dimensions(W, -W) == 0
    new = W.clone()
    new[3, 5] = 5.0  # output direction 5: W has nothing there
    assert intruder_dimensions(W, new, k=1) == 1
    assert intruder_dimensions(W, new, k=4) == 1
    weak = W.clone()
    weak[3, 5] = 0.1  # new as well, and too weak to be among the first three
    assert intruder_dimensions(W, weak, k=3) == 0
    turned = W.clone()
    turned[0, 0], turned[0, 5] = 3 * math.cos(1.1), 3 * math.sin(1.1)  # cosine 0.45 with what it was
    assert intruder_dimensions(W, turned, k=3) == 1
    assert intruder_dimensions(W, turned, k=3, threshold=0.4) == 0


def tiny():
    torch.manual_seed(0)
    return GPT2Model(GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=2, n_head=2))


def test_weight_changes_of_an_adapter_are_what_merging_adds():
    base, model = tiny(), get_peft_model(tiny(), ["c_attn", "mlp.c_proj"], lora_rank=2, lora_alpha=6)
    for layer in model.lora_layers().values():
        torch.nn.init.normal_(layer.adapters["default"].B)
    changes = weight_changes(base, model)
    assert list(changes) == ["h.0.attn.c_attn", "h.0.mlp.c_proj", "h.1.attn.c_attn", "h.1.mlp.c_proj"]
    W, change = changes["h.1.mlp.c_proj"]
    assert W.shape == change.shape == (32, 8) and not change.requires_grad
    merged = model.merge_and_unload()
    torch.testing.assert_close(W + change, merged.h[1].mlp.c_proj.weight.T)


def test_weight_changes_of_full_fine_tuning():
    base, tuned = tiny(), tiny()
    with torch.no_grad():
        tuned.h[0].attn.c_attn.weight[3, 5] += 2
    changes = weight_changes(base, tuned)
    assert len(changes) == 8 and "out_head" not in changes
    assert {name for name, (_, change) in changes.items() if change.any()} == {"h.0.attn.c_attn"}
    change = changes["h.0.attn.c_attn"][1]
    assert change.shape == (8, 24) and change.count_nonzero() == 1 and float(change[5, 3]) == pytest.approx(2)


def test_text_windows_are_spread_and_shifted_by_one():
    tokenizer = Tokenizer.from_file(MINI_FOLDER / "bpe.tiktoken")
    text = "The quick brown fox jumps over the lazy dog, and then it sleeps. " * 3
    tokens = tokenizer.encode(text)
    windows = text_windows(text, tokenizer, length=10, count=3)
    assert windows[0][0].tolist() == tokens[:10]
    assert windows[-1][1].tolist() == tokens[-10:]  # the last one ends with the text
    for ids, targets in windows:
        assert len(ids) == len(targets) == 10 and ids[1:].tolist() == targets[:-1].tolist()
    with pytest.raises(ValueError, match="9 × 10 \\+ 1 tokens are needed, the text has"):
        text_windows(text, tokenizer, length=10, count=9)

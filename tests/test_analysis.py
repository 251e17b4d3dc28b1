import pytest
import torch

from lora_lib.analysis import energy_shares, low_rank_factors, rank_for


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
    ],
)
def test_what_is_not_a_matrix_or_not_a_rank_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

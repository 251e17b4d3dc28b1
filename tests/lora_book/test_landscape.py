"""Chapter 1's picture from two thin matrices."""

import torch

from lora_book.show.landscape import landscape, two_thin_matrices


def test_the_knob_says_what_is_stored_and_how_far_it_is_off_and_leaves_out_ranks_that_are_too_high():
    made = two_thin_matrices(landscape(20, 30), ranks=(1, 20, 64))
    assert made.axes[0].labels == ["1", "20"]
    assert made.frame(("1",)).readout.startswith("50 numbers instead of 600 (8%); off by ")
    assert made.frame(("20",)).readout.endswith("off by 0.0%")


def test_nothing_is_missing_in_a_black_picture():
    assert two_thin_matrices(torch.zeros(4, 5), ranks=(1,)).frame(("1",)).readout.endswith("off by 0.0%")

"""The page of benchmarks says what the results say, and the measuring measures."""

import pytest
import torch
from torch import nn

from benchmarks import contestants, measure, page


def test_the_page_is_the_results():
    assert page.PAGE.read_text(encoding="utf8") == page.render(page.RESULTS), "run python -m benchmarks --page"


def test_the_page_tells_what_was_missed(tmp_path):
    for file in page.RESULTS.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before = page.render(tmp_path)
    path = tmp_path / "adapters.csv"
    path.write_text(
        path.read_text().replace(
            "bytes that 15 switches computed or copied,0", "bytes that 15 switches computed or copied,7"
        )
    )
    assert page.render(tmp_path).count("**missed**") == before.count("**missed**") + 1


def test_every_way_to_compute_the_layer_gives_the_same_output_and_gradient():
    made = contestants.layers(d=24, k=40, tokens=8, rank=4, adapters=1)
    made.pop(contestants.FULL)
    weight, bias = made[contestants.OURS].module.base.weight, made[contestants.OURS].module.base.bias
    found = {}
    for name, layer in made.items():
        linear = getattr(layer.module, "base", None) or getattr(layer.module, "base_layer", None) or layer.module
        with torch.no_grad():
            linear.weight.copy_(weight), linear.bias.copy_(bias)
        layer()
        found[name] = layer.forward().detach(), layer.x.grad.clone()
    for name, (y, dx) in found.items():
        torch.testing.assert_close((y, dx), found[contestants.FLOOR], msg=name)  # B is zero: all of them are the base


def test_bytes_kept_and_bytes_made_are_counted():
    layer, x = nn.Linear(8, 8), torch.randn(4, 8, requires_grad=True)
    assert measure.kept_bytes(lambda: layer(x).relu(), layer, x) == 4 * 8 * 4
    with measure.Made() as made:
        x + x
    assert made.bytes == x.nbytes


def test_ratios_are_taken_round_by_round():
    times = {"slow": [2.0, 20.0, 2.0, 20.0], "fast": [1.0, 10.0, 1.0, 10.0]}
    assert measure.summary(times, "slow", {"of_fast": "fast", "of_none": "none"}) == {
        "median_ms": 11000.0, "lower_quartile_ms": 2000.0, "upper_quartile_ms": 20000.0, "of_fast": 2.0, "of_none": "",
    }  # fmt: skip
    assert pytest.approx(2) == measure.flops(lambda: torch.ones(1, 1) @ torch.ones(1, 1))

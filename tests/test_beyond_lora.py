"""Chapter 11: the numbers on its page are those that were kept, and its classes fit the library."""

import ast
import csv
import json
from pathlib import Path

import beyond_lora
import common
import pytest
import torch
from small_models import IDS, small
from torch import nn

from lora_lib import get_peft_model
from lora_lib.results import load_results, select


@pytest.fixture(scope="module")
def chapter(root: Path) -> ast.Module:
    """All code of the chapter but its set-up cell."""
    cells = json.loads((root / "notebooks" / "11_beyond_lora.ipynb").read_text(encoding="utf8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return ast.Module([node for s in sources if "%pip" not in s for node in ast.parse(s).body], [])


@pytest.fixture(scope="module")
def names() -> dict:
    """What the chapter defines, by name."""
    return vars(common.from_chapter())


def test_each_method_is_shown_at_its_best_rate_and_at_equal_size(chapter: ast.Module) -> None:
    runs = next(
        ast.literal_eval(node.value)
        for node in chapter.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "RUNS"
    )
    kept, rates, best = load_results("beyond_lora"), {}, {}
    for name, setting in runs.items():
        rows = select(kept, **dict(zip(("method", "base", "rank", "alpha", "lr_ratio"), setting)))
        best[name] = min(select(rows, seed=0), key=lambda row: row["validation_loss"])["learning_rate"]
        (rates[name],) = {row["learning_rate"] for row in rows if row["seed"] > 0}
        assert [row["seed"] for row in select(rows, learning_rate=rates[name])] == [0, 1, 2], name
        method, _, rank, *_ = setting
        assert {row["trainable"] for row in rows} == {0 if method == "none" else 245760 * rank // 8}, name
    # Each at its own best rate, but for those of which the page says whose they have.
    owner = {"LoRA on int8": "LoRA", "LoRA on NF4": "LoRA", "LoRA α=512": "LoRA+"}
    assert rates == {name: best[owner.get(name, name)] for name in runs}


def test_a_quantised_layer_computes_what_a_float_layer_with_its_weight_does(names: dict) -> None:
    for levels in (names["even_levels"](8), names["normal_levels"](4), names["even_levels"](4)):
        layer = nn.Linear(24, 10)
        quantised = names["QuantisedLinear"](layer, levels, block=8)
        twin = nn.Linear(24, 10)
        twin.weight.data, twin.bias.data = quantised.dequantised(), layer.bias.data
        gaps = (levels[1:] - levels[:-1]).max() / 2 * quantised.scales
        assert ((twin.weight - layer.weight).abs().reshape(-1, 8) <= gaps + 1e-6).all()
        x, y = (torch.linspace(-1, 1, 48).view(2, 24).requires_grad_() for _ in range(2))
        quantised(x).square().sum().backward()
        twin(y).square().sum().backward()
        torch.testing.assert_close(quantised(x), twin(y))
        torch.testing.assert_close(x.grad, y.grad)


def test_an_adapter_on_a_quantised_base_learns_and_is_saved(names: dict, tmp_path: Path) -> None:
    from lora_lib import PeftModel

    def base():
        return names["quantise_model"](small(), names["normal_levels"](4), block=8)

    model = get_peft_model(base(), "all-linear", 2, 8).enable_lora_training()
    before = model(IDS)
    before.square().sum().backward()
    for layer in model.lora_layers().values():
        layer.adapters["default"].B.data -= 0.1 * layer.adapters["default"].B.grad.sign()
    after = model.eval()(IDS)
    assert not torch.allclose(after, before, atol=1e-3)
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(base(), tmp_path)(IDS), after)


def test_pissa_changes_no_output_and_takes_the_strongest_part_out(names: dict) -> None:
    model, plain = get_peft_model(small(), "all-linear", 3, 6), small()
    names["pissa"](model)
    torch.testing.assert_close(model(IDS), plain(IDS), atol=1e-4, rtol=1e-4)
    for name, layer in model.lora_layers().items():
        S = torch.linalg.svdvals(plain.get_submodule(name).weight)
        torch.testing.assert_close(torch.linalg.svdvals(layer.base.weight)[0], S[3], atol=1e-4, rtol=1e-4)


def test_the_experiment_tunes_each_method_at_equal_size(tmp_path: Path, monkeypatch) -> None:
    from lora_lib import GPT2Config, GPT2Model, load_pretrained, save_pretrained_folder
    from lora_lib.restaurants import restaurant_data

    torch.manual_seed(0)
    tiny = GPT2Model(GPT2Config(vocab_size=4096, n_positions=256, n_embd=64, n_head=2, n_layer=1))
    save_pretrained_folder(tiny, load_pretrained("gpt2-mini")[1], tmp_path / "base")
    small_data = restaurant_data(0, train=20, validation=9, test=9, slots=beyond_lora.SLOTS)
    monkeypatch.setattr(beyond_lora, "restaurant_data", lambda seed, slots: small_data)
    monkeypatch.setattr(beyond_lora, "tune", lambda loss_at, start: common.rate(start))
    options = f"--model {tmp_path}/base --out {tmp_path}/rows.csv --seeds 0 1 --steps 3".split()
    beyond_lora.main(options)
    rows = (tmp_path / "rows.csv").read_text(encoding="utf8")
    table = list(csv.DictReader(rows.splitlines()))
    counts = {}
    for row in table:
        counts.setdefault((row["method"], row["rank"]), set()).add(int(row["trainable"]))
    per_rank = 5 * 64 + 5 * 64 + 4 * 64 + 2 * 64  # d + k of the block's four layers
    assert counts == {
        ("none", "8"): {0}, ("lora", "8"): {8 * per_rank}, ("dora", "8"): {8 * per_rank},
        ("pissa", "8"): {8 * per_rank}, ("lora", "64"): {64 * per_rank}, ("rslora", "64"): {64 * per_rank},
    }  # fmt: skip
    losses = [row["test_loss"] for row in table if row["seed"] == "0" and row["method"] != "none"]
    assert len(set(losses)) == len(losses)  # no two settings are the same run
    beyond_lora.main(options)  # nothing is done twice
    assert (tmp_path / "rows.csv").read_text(encoding="utf8") == rows

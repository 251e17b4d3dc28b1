"""Chapter 11: the numbers on its page are those that were kept, and its classes fit the library."""

import ast
import csv
import json
from pathlib import Path

import pytest
import torch
from small_models import IDS, small
from torch import nn

from lora_lib import LoRA, find_targets, get_peft_model
from lora_lib.analysis import low_rank_factors


@pytest.fixture(scope="module")
def chapter(root: Path) -> ast.Module:
    """All code of the chapter but its set-up cell."""
    cells = json.loads((root / "notebooks" / "11_beyond_lora.ipynb").read_text(encoding="utf8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return ast.Module([node for s in sources if "%pip" not in s for node in ast.parse(s).body], [])


@pytest.fixture(scope="module")
def names(chapter: ast.Module) -> dict:
    """What the chapter defines, by name."""
    found = {"torch": torch, "nn": nn, "LoRA": LoRA, "find_targets": find_targets, "low_rank_factors": low_rank_factors}
    defined = [node for node in chapter.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    exec(compile(ast.Module(defined, []), "chapter 11", "exec"), found)
    return found


def test_the_table_on_the_page_is_the_file_of_results(root: Path, chapter: ast.Module) -> None:
    with (root / "experiments" / "results" / "beyond_lora.csv").open(newline="") as file:
        kept = list(csv.DictReader(file))
    table = next(
        ast.literal_eval(node.value)
        for node in chapter.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "RESULTS"
    )
    lines = table.strip().splitlines()[1:]
    best = {}  # of each method, by the first seed's validation loss
    for line in lines:
        name, method, base, rank, ratio, rate, trained, losses, slots = (part.strip() for part in line.split("|"))
        same = {"method": method, "base": base, "rank": rank, "lr_ratio": ratio.removeprefix("× ")}
        runs = [row for row in kept if all(row[key] == value for key, value in same.items())]
        best[name] = min((r for r in runs if r["seed"] == "0"), key=lambda r: float(r["validation_loss"]))
        chosen = sorted((row for row in runs if row["learning_rate"] == rate), key=lambda row: row["seed"])
        assert [row["seed"] for row in chosen] == ["0", "1", "2"], name
        assert [float(row["test_loss"]) for row in chosen] == [float(loss) for loss in losses.split()], name
        assert [float(row["slot_accuracy"]) for row in chosen] == [float(slot) for slot in slots.split()], name
        assert {row["trainable"] for row in chosen} == {trained}, name
        # Each at its own best rate, but for those that the page says run at LoRA's.
        borrowed = name in ("LoRA on int8", "LoRA on NF4", "LoRA r=64", "rsLoRA r=64")
        assert rate == best["LoRA" if borrowed else name]["learning_rate"], name
    assert {line.split("|")[6].strip() for line in lines if "| float32 |    8 |" in line and "none" not in line} == {
        "245760"
    }


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

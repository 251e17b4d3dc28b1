"""Chapter 11: the numbers on its page are those that were kept, and its script makes them."""

import ast
import csv
import json
from pathlib import Path

import beyond_lora
import common
import pytest
import torch

from lora_book.findings import load_results, select


@pytest.fixture(scope="module")
def chapter(root: Path) -> ast.Module:
    """All code of the chapter but its set-up cell."""
    cells = json.loads((root / "notebooks" / "11_beyond_lora.ipynb").read_text(encoding="utf8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return ast.Module([node for s in sources if "%pip" not in s for node in ast.parse(s).body], [])


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
        assert [row["seed"] for row in select(rows, learning_rate=rates[name])] == list(range(6)), name
        method, _, rank, *_ = setting
        assert {row["trainable"] for row in rows} == {0 if method == "none" else 245760 * rank // 8}, name
    # Each at its own best rate, but for those of which the page says whose they have.
    owner = {"LoRA α=512": "LoRA+"}
    assert rates == {name: best[owner.get(name, name)] for name in runs}


def test_the_experiment_tunes_each_method_at_equal_size(tmp_path: Path, monkeypatch) -> None:
    from lora_book.tasks import restaurant_data
    from lora_lib import GPT2Config, GPT2Model, load_pretrained, save_pretrained_folder

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

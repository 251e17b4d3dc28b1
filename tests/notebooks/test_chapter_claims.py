"""What chapters 1, 2, 5 and 10 say beside their own ✓ lines, on the model and the data that they use."""

from __future__ import annotations

import json
import re

import pytest
import torch
from tiny_chat import tiny_chat_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lora_book.findings import at_best_rate, load_results, mean, select
from lora_book.measure import energy_shares, low_rank_factors, rank_for
from lora_book.tasks import restaurant_data, score_texts, to_examples
from lora_lib import LoRALinear, get_peft_model, load_model, load_pretrained
from lora_lib.data import collate, encode_examples
from lora_lib.gpt2 import generate_text
from lora_lib.training import loss_sum


@pytest.fixture(scope="module")
def gradients():
    """Chapter 1's gradients of one weight: on the first example and on the first eight, with their tokens."""
    model, tokenizer = load_pretrained("gpt2-mini")
    places = [place for place in restaurant_data().train if len(place.meaning) == 3]
    train = encode_examples(to_examples(places[:8]), tokenizer, 256)
    layer = model.requires_grad_(False).h[3].mlp.c_fc
    layer.weight.requires_grad_(True)
    found = []
    for n in (1, 8):
        layer.weight.grad = None
        loss_sum(model, *collate(train[:n], pad_id=0)).backward()
        found.append((layer.weight.grad.T, sum(len(ids) for ids, _ in train[:n])))
    return found


def test_n_tokens_ask_for_a_change_of_rank_n_at_most(gradients):
    (one, tokens), (eight, more) = gradients
    assert torch.linalg.matrix_rank(one) <= tokens < min(one.shape) < more
    assert energy_shares(eight)[7] > 0.6, "much of what eight examples ask for is the same"
    assert energy_shares(eight.sign())[7] < energy_shares(eight)[7] - 0.2, "AdamW's first step spreads it"


def test_a_weight_of_the_model_needs_nearly_as_many_directions_as_noise():
    W = load_model("gpt2-mini").h[3].mlp.c_fc.weight.detach()
    torch.manual_seed(0)
    assert abs(rank_for(W, 0.99) - rank_for(torch.randn_like(W), 0.99)) < 0.05 * min(W.shape)
    assert (1 - energy_shares(W)[min(W.shape) // 10 - 1]).sqrt() > 0.8


def test_no_direction_catches_more_than_the_strongest():
    M = torch.diag(torch.tensor([3.0, 1.0]))
    A, B = low_rank_factors(M, 1)
    caught = [10 - (M - M @ torch.outer(v, v)).square().sum().item() for v in directions()]
    assert max(caught) <= 10 - (M - A @ B).square().sum().item() + 1e-5
    assert caught[30] == pytest.approx(7, abs=1e-4)


def directions():
    """One of length 1 for each degree."""
    angles = torch.deg2rad(torch.arange(180.0))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


@pytest.mark.parametrize(("examples", "turns"), [(50, True), (200, True), (1000, False), (4000, False)])
def test_with_few_examples_the_validation_loss_turns_before_the_end(examples, turns):
    runs = at_best_rate(select(load_results("amounts"), rank=8, batch_size=8, examples=examples))
    share = mean(runs, "best_step").mean / runs[0]["steps"]
    assert share < 0.8 if turns else share == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_subtracting_the_change_does_not_undo_a_merge(dtype):
    torch.manual_seed(0)
    lora = LoRALinear(nn.Linear(64, 64), rank=4, alpha=8)
    nn.init.normal_(lora.adapters["default"].B)
    w, delta = lora.base.weight.detach().to(dtype), lora.adapters["default"].delta().T.detach().to(dtype)
    assert (((w + delta) - delta) != w).float().mean() > 0.1


def test_arithmetic_of_a_step_of_full_fine_tuning():
    n, d, k = 16, 96, 288
    x = torch.randn(n, d, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        nn.Linear(d, k)(x).sum().backward()
    assert counter.get_total_flops() == 6 * n * d * k


def test_an_adapter_is_four_bytes_a_number_and_a_short_header(tmp_path):
    model = get_peft_model(load_model("gpt2-mini"), "all-linear", lora_rank=8, lora_alpha=32)
    model.save_pretrained(tmp_path)
    size, trained = (tmp_path / "adapter_model.safetensors").stat().st_size, model.get_nb_trainable_parameters()[0]
    assert 0 < size - 4 * trained < 8192


def test_before_training_the_base_states_no_facts():
    model, tokenizer = load_pretrained("gpt2-mini")
    test = restaurant_data(seed=0, slots=("name", "eatType", "food", "area")).test[:8]
    texts = generate_text(model, tokenizer, [place.prompt for place in test], 40)
    assert score_texts(texts, [place.meaning for place in test]).slot_accuracy < 0.1


def test_the_box_at_the_end_of_chapter_7_runs_on_a_file(root, tmp_path, monkeypatch, capsys):
    cells = json.loads((root / "notebooks" / "07_rank_comparison.ipynb").read_text(encoding="utf8"))["cells"]
    prose = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    (box,) = re.findall(r"```python\n(.*?)```", prose, flags=re.DOTALL)
    rows = "".join(f"how are {n},fine {n}\n" for n in range(20))
    (tmp_path / "yours.csv").write_text("question,answer\n" + rows)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lora_lib.run.load_smollm2", tiny_chat_model)
    exec(box, {})
    saved = sorted(folder.name for folder in tmp_path.glob("adapter-*/"))
    assert saved == ["adapter-0.0003", "adapter-0.001", "adapter-0.003"]
    assert len(re.findall(r"^0\.\S+ \[\(0, ", capsys.readouterr().out, flags=re.MULTILINE)) == 3

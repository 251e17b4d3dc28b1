"""A base in 8 and in 4 bits: what is stored, what is computed, and an adapter on top."""

import copy

import pytest
import torch
from small_models import IDS, small
from torch import nn

from lora_book.measure import QuantisedLinear, dequantise_model, even_levels, normal_levels, quantise, quantise_model
from lora_lib import PeftModel, get_peft_model


def test_the_normal_levels_are_those_that_qlora_prints():
    levels = normal_levels(4)
    assert len(levels) == 16 and levels[7] == 0 and levels[0] == -levels[-1] == -1
    printed = {1: -0.6962, 2: -0.5251, 8: 0.0796, 13: 0.5626, 14: 0.7230}  # arXiv 2305.14314, appendix E
    assert all(abs(levels[i] - value) < 5e-5 for i, value in printed.items())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("levels", [even_levels(8), normal_levels(4), even_levels(4)])
def test_a_quantised_layer_computes_what_a_float_layer_with_its_weight_does(levels, bias):
    layer = nn.Linear(24, 10, bias=bias)
    quantised, twin = QuantisedLinear(layer, levels, block=8), copy.deepcopy(layer)
    twin.weight.data = quantised.dequantised()
    gaps = (levels[1:] - levels[:-1]).max() / 2 * quantised.scales
    assert ((twin.weight - layer.weight).abs().reshape(-1, 8) <= gaps + 1e-6).all()
    assert quantised.weight.numel() == 240 // (2 if len(levels) <= 16 else 1) and quantised.weight.dtype == torch.uint8
    x, y = (torch.linspace(-1, 1, 48).view(2, 24).requires_grad_() for _ in range(2))
    quantised(x).square().sum().backward()
    twin(y).square().sum().backward()
    torch.testing.assert_close(quantised(x), twin(y))
    torch.testing.assert_close(x.grad, y.grad)


def test_a_block_of_zeros_stays_zero_and_a_narrow_input_stays_narrow():
    layer = nn.Linear(8, 4)
    nn.init.zeros_(layer.weight)
    quantised = QuantisedLinear(layer, normal_levels(4), block=8)
    assert torch.equal(quantised.dequantised(), layer.weight)
    assert quantised(torch.ones(1, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_the_layer_keeps_no_float_weight_for_the_backward_pass():
    kept = []
    layer = QuantisedLinear(nn.Linear(64, 32), normal_levels(4))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        layer(torch.randn(2, 64, requires_grad=True))
    assert sum(kept) < 64 * 32


def test_an_adapter_on_a_quantised_base_learns_is_saved_and_merges_into_the_dequantised_one(tmp_path):
    def base():
        return quantise_model(small(), block=8)

    model = get_peft_model(base(), "all-linear", 2, 8).enable_lora_training()
    before = model(IDS)
    before.square().sum().backward()
    for layer in model.lora_layers().values():
        layer.adapters["default"].B.data -= 0.1 * layer.adapters["default"].B.grad.sign()
    after = model.eval()(IDS)
    assert not torch.allclose(after, before, atol=1e-3)
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(base(), tmp_path)(IDS), after)
    with pytest.raises(TypeError, match="dequantise"):
        model.merge_adapter()
    merged = PeftModel.from_pretrained(dequantise_model(base()), tmp_path).merge_and_unload()
    torch.testing.assert_close(merged(IDS), after, rtol=1e-4, atol=1e-4)


def test_the_state_of_a_quantised_model_loads_into_another():
    saved, other = quantise_model(small(0), 8, block=8), quantise_model(small(1), 8, block=8)
    other.load_state_dict(saved.state_dict())
    assert torch.equal(other.eval()(IDS), saved.eval()(IDS))


def test_what_cannot_be_quantised_is_said_and_nothing_is_changed():
    model = small()
    with pytest.raises(ValueError, match="bits must be 4 or 8, got 3"):
        quantise_model(model, 3)
    with pytest.raises(ValueError, match="a block of 50 does not divide 1728 weights"):
        quantise_model(model, block=50)
    assert all(type(module) is not QuantisedLinear for module in model.modules())
    with pytest.raises(ValueError, match="quantise the base first"):
        quantise_model(get_peft_model(model, "all-linear", 2))
    with pytest.raises(TypeError, match="not Embedding"):
        QuantisedLinear(nn.Embedding(4, 4), normal_levels(4))
    with pytest.raises(ValueError, match="even blocks"):
        QuantisedLinear(nn.Linear(3, 3), normal_levels(4), block=3)
    with pytest.raises(ValueError, match="257 levels"):
        QuantisedLinear(nn.Linear(4, 4), torch.linspace(-1, 1, 257), block=4)
    assert QuantisedLinear(nn.Linear(4, 4), torch.linspace(-1, 1, 256), block=4).dequantised().shape == (4, 4)
    with pytest.raises(ValueError, match="a block of 0"):
        quantise(torch.ones(4), even_levels(4), 0)
    codes, scales = quantise(torch.tensor([0.5, -2.0]), even_levels(4), 1)
    assert codes.flatten().tolist() == [14, 0] and scales.flatten().tolist() == [0.5, 2]  # the smallest block there is

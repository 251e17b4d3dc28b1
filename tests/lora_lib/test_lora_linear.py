"""The layer against its formula, W' = W + s·A·B."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lora_lib import LoRA, LoRALinear
from lora_lib.layers import fused


@pytest.fixture(autouse=True, params=[0, fused.FEW], ids=["many rows", "few rows"])
def either_way(request, monkeypatch):
    """Both ways to compute the layer, whatever the number of rows."""
    monkeypatch.setattr(fused, "FEW", request.param)


def layer(dtype=torch.float64, dropout=0.0, base=None) -> LoRALinear:
    torch.manual_seed(0)
    made = LoRALinear(base or nn.Linear(12, 10, dtype=dtype), rank=4, alpha=8, dropout=dropout)
    nn.init.normal_(made.adapters["default"].B)
    return made


def conv1d(dtype=torch.float64):
    conv = pytest.importorskip("transformers.pytorch_utils").Conv1D(10, 12).to(dtype)
    nn.init.normal_(conv.bias)
    return conv


def test_a_new_layer_is_the_base_bit_for_bit():
    base, x = nn.Linear(12, 10), torch.randn(3, 5, 12)
    assert torch.equal(LoRALinear(base, rank=4, alpha=8)(x), base(x))


@pytest.mark.parametrize("make", [lambda: nn.Linear(12, 10, dtype=torch.float64), conv1d])
def test_forward_is_the_formula(make):
    base = make()
    lora, x = layer(base=base), torch.randn(3, 5, 12, dtype=torch.float64)
    a, b = lora.adapters["default"].A, lora.adapters["default"].B
    assert a.shape == (12, 4) and b.shape == (4, 10)
    w = base.weight.T if isinstance(base, nn.Linear) else base.weight  # (d, k)
    torch.testing.assert_close(lora(x), x @ (w + 8 / 4 * a @ b) + base.bias)


def test_gradients_are_right_and_reach_only_a_b_and_x():
    lora = layer().requires_grad_(True)
    lora.base.requires_grad_(False)
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    adapter = lora.adapters["default"]
    assert torch.autograd.gradcheck(lambda x, a, b: torch.func.functional_call(
        lora, {"adapters.default.A": a, "adapters.default.B": b}, (x,)), (x, adapter.A, adapter.B))  # fmt: skip
    lora(x).sum().backward()
    assert lora.base.weight.grad is None and lora.base.bias.grad is None


def gradients(lora, x, forward):
    """Output, then gradients of x and of every A and B in use, with the same dropout each time."""
    torch.manual_seed(1)
    y = forward(x)
    learned = [p for name in lora.active for p in lora.adapters[name].parameters()]
    return [y, *torch.autograd.grad(y.square().sum(), [x, *learned])]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("make", [lambda: nn.Linear(12, 10), lambda: nn.Linear(12, 10, bias=False),
                                  lambda: conv1d(torch.float32)])  # fmt: skip
def test_the_fused_layer_is_the_formula_in_values_and_gradients(make, dropout):
    lora = layer(base=make(), dropout=dropout)
    lora.adapters["more"] = LoRA.from_base(lora.base, 3, 15, dropout)  # at another scale than the first
    nn.init.normal_(lora.adapters["more"].B, std=0.1)
    x = torch.randn(2, 5, 12, requires_grad=True)
    for active in (["default"], ["more", "default"]):
        lora.activate(active)
        found = gradients(lora, x, lora)
        formula = gradients(lora, x, lambda x: lora.base(x) + sum(lora.adapters[n](x) for n in lora.active))
        for a, b in zip(found, formula, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * b.abs().max().item())


@pytest.mark.parametrize("active", [["default", "drops"], ["drops", "default"]])
def test_dropout_of_one_of_two_adapters_acts_on_that_one_alone(active):
    lora, x = layer(dtype=torch.float32), torch.randn(50, 12, requires_grad=True)
    lora.adapters["drops"] = LoRA.from_base(lora.base, 3, 6, 0.5)
    nn.init.normal_(lora.adapters["drops"].B)
    lora.activate(active)
    got = gradients(lora, x, lora)
    wanted = gradients(lora, x, lambda x: lora.base(x) + sum(lora.adapters[n](x) for n in active))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * b.abs().max().item())
    assert not torch.allclose(got[0], gradients(lora.eval(), x, lora)[0])


@pytest.mark.parametrize("frozen", ["A", "B"])
def test_of_a_and_b_one_may_be_frozen(frozen):
    lora, x = layer(), torch.randn(3, 12, dtype=torch.float64)
    adapter = lora.adapters["default"]
    getattr(adapter, frozen).requires_grad_(False)
    lora(x).square().sum().backward()
    learned = {"A": adapter.B, "B": adapter.A}[frozen]
    got, learned.grad = learned.grad, None
    (lora.base(x) + adapter(x)).square().sum().backward()
    torch.testing.assert_close(got, learned.grad)
    assert getattr(adapter, frozen).grad is None


def test_a_bypass_is_made_where_and_as_it_is_told():
    adapter = LoRA(6, 5, 2, 4, device="meta", dtype=torch.float64)
    assert adapter.A.is_meta and adapter.B.is_meta and adapter.A.dtype == adapter.B.dtype == torch.float64
    assert LoRA(6, 5, 2, 4).A.device.type == "cpu"


def test_gradients_can_be_differentiated_again_and_the_output_written_over():
    lora = layer()
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    a, b = lora.adapters["default"].A, lora.adapters["default"].B
    assert torch.autograd.gradgradcheck(lambda x, a, b: torch.func.functional_call(
        lora, {"adapters.default.A": a, "adapters.default.B": b}, (x,)), (x, a, b))  # fmt: skip
    lora(x[None]).relu_().sum().backward()


@pytest.mark.parametrize("rows", [40, 1024])
def test_it_costs_the_fewest_flops_and_keeps_nothing_but_its_input_and_for_few_rows_x_times_A(rows):
    d, k, r = 96, 288, 16
    lora, kept = LoRALinear(nn.Linear(d, k), rank=r, alpha=8), {}
    x = torch.randn(4, rows // 4, d, requires_grad=True)

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            y = lora(x)
        y.sum().backward()
    again = r * d if rows >= fused.FEW else 0  # x·A, once more
    assert counter.get_total_flops() == 2 * rows * (2 * d * k + 3 * r * (d + k) + again)
    own = {p.untyped_storage().data_ptr() for p in (x, *lora.parameters())}
    assert x.untyped_storage().data_ptr() in kept
    assert sum(size for place, size in kept.items() if place not in own) == (0 if again else 4 * rows * r)


def test_dropout_keeps_one_byte_a_number():
    lora, kept = layer(dtype=torch.float32, dropout=0.5), []
    own = {p.data_ptr() for p in lora.parameters()}
    x = torch.randn(8, 12)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        lora(x)
    assert sum(t.nbytes for t in kept if t.data_ptr() not in {*own, x.data_ptr()}) == x.numel()


def test_what_cannot_be_fused_is_computed_by_the_formula():
    hooked, learning, lora = layer(), layer(), layer()
    seen = []
    hooked.base.register_forward_hook(lambda module, inputs, output: seen.append(output))
    learning.base.requires_grad_(True)

    class Twice(LoRA):
        def forward(self, x):
            return 2 * super().forward(x)

    x = torch.randn(3, 12, dtype=torch.float64)
    torch.testing.assert_close(hooked(x), lora(x))
    torch.testing.assert_close(seen, [lora.base(x)])
    learning(x).sum().backward()
    assert learning.base.weight.grad is not None
    lora.adapters["default"].__class__ = Twice
    torch.testing.assert_close(lora(x), 2 * learning(x) - lora.base(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_an_input_of_another_dtype_is_refused_as_the_base_refuses_it(dtype):
    lora, x = layer(dtype=torch.float32), torch.randn(3, 12, dtype=dtype)
    with pytest.raises(RuntimeError, match="dtype"):
        lora.base(x)
    with pytest.raises(RuntimeError, match="dtype"):
        lora(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert lora(x.bfloat16()).dtype == torch.bfloat16


def test_under_gradient_checkpointing_and_compiled():
    lora = layer(dropout=0.4)
    x = torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    wanted = gradients(lora, x, lora)
    for a, b in zip(gradients(lora, x, lambda x: checkpoint(lora, x, use_reentrant=False)), wanted, strict=True):
        assert torch.equal(a, b)
    lora.eval()
    wanted = gradients(lora, x, lora)
    compiled = torch.compile(lora, fullgraph=True, backend="aot_eager")
    for a, b in zip(gradients(lora, x, compiled), wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_a_is_drawn_as_kaiming_uniform_over_its_inputs_and_b_is_zero():
    adapter = LoRA(1000, 50, rank=8, alpha=8)
    bound = 1 / math.sqrt(1000)  # kaiming uniform, a = √5, fan-in 1000
    assert adapter.A.abs().max() <= bound and adapter.A.abs().max() > 0.95 * bound
    assert adapter.A.var().item() == pytest.approx(bound**2 / 3, rel=0.05)
    assert not adapter.B.any()


def test_scale_is_alpha_over_rank_or_over_its_root():
    assert LoRA(20, 20, rank=16, alpha=32).scale == 2
    assert LoRA(20, 20, rank=16, alpha=32, use_rslora=True).scale == 8


def test_dropout_acts_on_the_bypass_alone_and_only_in_training():
    lora, x = layer(dropout=0.5), torch.randn(1000, 12, dtype=torch.float64)
    bypass, drawn = lora.eval()(x) - lora.base(x), lora.train()(x) - lora.base(x)
    assert not torch.allclose(bypass, drawn)
    many = torch.stack([lora(x[:4]) - lora.base(x[:4]) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(many, bypass[:4], atol=0.4, rtol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [lambda dtype: nn.Linear(12, 10, dtype=dtype), conv1d])
def test_merge_is_one_rounding_and_unmerge_is_exact(dtype, make):
    lora = layer(base=make(dtype))
    before, delta = lora.base.weight.clone(), lora.adapters["default"].delta()
    lora.merge()
    wanted = before.float() + (delta.T if isinstance(lora.base, nn.Linear) else delta)
    assert torch.equal(lora.base.weight, wanted.to(dtype)) and not torch.equal(lora.base.weight, before)
    assert not lora.base.weight.requires_grad and lora.base.weight.is_contiguous()
    lora.merge()  # again changes nothing
    assert torch.equal(lora.base.weight, wanted.to(dtype))
    lora.unmerge()
    assert torch.equal(lora.base.weight, before)


def test_merged_output_equals_unmerged():
    lora, x = layer().eval(), torch.randn(3, 12, dtype=torch.float64)
    y = lora(x)
    lora.merge()
    torch.testing.assert_close(lora(x), y)


def test_a_weight_that_is_shared_does_not_see_the_merge():
    table, head = nn.Embedding(10, 12), nn.Linear(12, 10, bias=False)
    head.weight = table.weight
    lora = layer(base=head)
    before = table.weight.clone()
    lora.merge()
    assert torch.equal(table.weight, before)
    lora.unmerge()
    assert lora.base.weight is table.weight


def test_moving_a_merged_layer_moves_what_it_set_aside():
    for dtype in (torch.float64, torch.float16):
        lora = layer(dtype=torch.float32)
        own = lora.base.weight
        before = own.to(dtype)
        lora.merge()
        lora.to(dtype)
        assert torch.equal(lora.own_weight, before) and lora.base.weight.dtype == dtype
        lora.unmerge()
        assert lora.base.weight is own and own.dtype == dtype and torch.equal(own, before)
        assert lora(torch.randn(2, 12, dtype=dtype)).dtype == dtype


def test_train_and_eval_change_no_weight():
    lora = layer()
    before = copy.deepcopy(lora.state_dict())
    lora.merge()
    lora.train().eval()
    lora.unmerge()
    lora.train().eval()
    for name, tensor in lora.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_float64_stays_float64_under_autocast():
    layer, x = LoRALinear(nn.Linear(8, 8).double(), 2), torch.randn(3, 8, dtype=torch.float64)
    nn.init.normal_(layer.adapters["default"].B)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.float64 and torch.equal(y, layer(x))


def test_under_autocast_and_with_a_half_precision_base():
    lora = layer(dtype=torch.float32)
    x, kept = torch.randn(3, 12, requires_grad=True), []
    with torch.autocast("cpu", torch.bfloat16):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            y = lora(x)
        wanted = lora.base(x) + lora.adapters["default"](x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, wanted, rtol=0.02, atol=0.02)
    own = {p.data_ptr() for p in lora.parameters()}
    assert [(t.dtype, t.shape) for t in kept if t.data_ptr() not in own] == [(torch.bfloat16, x.shape)]
    y.sum().backward()
    assert all(p.grad.dtype == p.dtype for p in (x, *lora.adapters.parameters()))
    half = layer(dtype=torch.bfloat16)
    assert half.adapters["default"].A.dtype == torch.float32  # small updates would be lost in bfloat16
    assert half(torch.randn(3, 12, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_without_numbers_on_the_meta_device():
    with torch.device("meta"):
        assert LoRALinear(nn.Linear(8, 6), rank=2)(torch.ones(3, 8)).shape == (3, 6)


def test_copies_and_pickles():
    lora, x = layer(), torch.randn(2, 12, dtype=torch.float64)
    assert torch.equal(copy.deepcopy(lora)(x), lora(x))
    assert torch.equal(pickle.loads(pickle.dumps(lora))(x), lora(x))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rank": 0}, "rank must be from 1 to 10 for a 12×10 layer, got 0"),
        ({"rank": 2.5}, "rank must be from 1 to 10 for a 12×10 layer, got 2.5"),
        ({"rank": 11}, "rank must be from 1 to 10"),
        ({"rank": 4, "alpha": 0}, "alpha must be above 0"),
        ({"rank": 4, "alpha": math.inf}, "alpha must be above 0 and finite, got inf"),
        ({"rank": 4, "alpha": math.nan}, "alpha must be above 0 and finite, got nan"),
        ({"rank": 4, "dropout": 1.0}, r"dropout must be in \[0, 1\)"),
    ],
)
def test_bad_settings_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LoRALinear(nn.Linear(12, 10), **kwargs)


def test_other_layers_are_refused_by_name():
    with pytest.raises(TypeError, match="not Embedding"):
        LoRALinear(nn.Embedding(3, 4), rank=1)
    with pytest.raises(TypeError, match="NonDynamicallyQuantizableLinear"):
        LoRALinear(nn.MultiheadAttention(8, 2).out_proj, rank=1)


def test_the_smallest_settings_work():
    lora = LoRALinear(nn.Linear(1, 1), rank=1, alpha=1, dropout=0)
    nn.init.ones_(lora.adapters["default"].B)
    x = torch.randn(3, 1)
    torch.testing.assert_close(lora(x), lora.base(x) + x @ lora.adapters["default"].A)
    again = LoRALinear(nn.Linear(1, 1), rank=1)
    again.load_state_dict(lora.state_dict())
    torch.testing.assert_close(again.base(x), lora.base(x))
    assert torch.equal(again.adapters["default"].A, lora.adapters["default"].A)

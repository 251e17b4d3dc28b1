"""What users hang on a layer, or do with it, is honoured: the fused product is left for the plain path."""

import sys

import pytest
import torch
from small_models import IDS, small, stir
from torch import Tensor, nn
from torch.autograd import forward_ad

from lora_lib import LoRALinear, get_peft_model


def layer(dropout=0.0) -> LoRALinear:
    torch.manual_seed(0)
    made = LoRALinear(nn.Linear(6, 5), rank=2, alpha=4, dropout=dropout)
    nn.init.normal_(made.adapters["default"].B)
    return made


def formula(lora: LoRALinear, x: Tensor) -> Tensor:
    return lora.base(x) + lora.adapters["default"](x)


def parts(lora: LoRALinear) -> dict[str, nn.Module]:
    bypass = lora.adapters["default"]
    return {"base": lora.base, "bypass": bypass, "dropout": bypass.dropout}


@pytest.mark.parametrize("part", ["base", "bypass", "dropout"])
def test_a_forward_that_is_set_on_the_instance_is_called(part):
    lora, x = layer(), torch.randn(3, 6)
    module = parts(lora)[part]
    own = module.forward
    module.forward = lambda x: 2 * own(x)
    plain = layer()
    factors = {name: 2 if name == part else 1 for name in ("base", "bypass", "dropout")}
    wanted = factors["base"] * plain.base(x) + factors["bypass"] * factors["dropout"] * plain.adapters["default"](x)
    torch.testing.assert_close(lora(x), wanted)


@pytest.mark.parametrize("register", ["forward_pre", "forward", "full_backward_pre", "full_backward"])
@pytest.mark.parametrize("part", ["base", "bypass", "dropout"])
def test_hooks_are_called(part, register):
    lora, seen = layer(), []
    getattr(parts(lora)[part], f"register_{register}_hook")(lambda module, *others: seen.append(module))
    lora(torch.randn(3, 6, requires_grad=True)).sum().backward()
    assert seen == [parts(lora)[part]]


@pytest.mark.parametrize("register", ["forward_pre", "forward", "full_backward_pre", "full_backward"])
def test_hooks_on_all_modules_are_called(register):
    lora, seen = layer(), []
    function = getattr(nn.modules.module, f"register_module_{register}_hook")
    handle = function(lambda module, *others: seen.append(module))
    try:
        lora(torch.randn(3, 6, requires_grad=True)).sum().backward()
    finally:
        handle.remove()
    assert set(seen) == {lora, *parts(lora).values()}


def test_dropout_has_its_own_mode():
    lora, x = layer(dropout=0.5), torch.ones(400, 6)
    lora.eval()
    lora.adapters["default"].dropout.train()  # Monte Carlo dropout
    assert len(lora(x).unique(dim=0)) > 10
    lora.train()
    lora.adapters["default"].dropout.eval()
    assert len(lora(x).unique(dim=0)) == 1


@pytest.mark.parametrize("dropout", [nn.Identity(), nn.Dropout(1.0), nn.AlphaDropout(0.5)])
def test_dropout_may_be_replaced(dropout):
    lora, x = layer(dropout=0.9), torch.randn(50, 6)
    lora.adapters["default"].dropout = dropout
    outputs = []
    for compute in (lora, lambda x: formula(lora, x)):
        torch.manual_seed(1)
        outputs.append(compute(x))
    torch.testing.assert_close(*outputs)


class Conv1D(nn.Linear):
    """Not Hugging Face's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def test_a_class_called_conv1d_is_not_taken_for_hugging_faces():
    pytest.importorskip("transformers.pytorch_utils")
    lora = LoRALinear(Conv1D(6, 5), rank=2, alpha=4)
    nn.init.normal_(lora.adapters["default"].B)
    x = torch.randn(3, 6)
    torch.testing.assert_close(lora(x), formula(lora, x))


def test_a_convolution_called_conv1d_may_be_anywhere_in_a_model():
    kind = type("Conv1D", (nn.Conv1d,), {})
    model = get_peft_model(nn.Sequential(nn.Linear(6, 6), kind(6, 6, 3)), "all-linear", 2)
    assert list(model.lora_layers()) == ["0"]
    with pytest.raises(TypeError, match="not Conv1D"):
        LoRALinear(kind(6, 6, 3), 2)


def test_without_transformers_there_is_no_conv1d(monkeypatch):
    monkeypatch.delitem(sys.modules, "transformers.pytorch_utils", raising=False)
    with pytest.raises(TypeError, match="not Conv1D"):
        LoRALinear(type("Conv1D", (nn.Module,), {"weight": nn.Parameter(torch.zeros(6, 5))})(), 2)


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("rows", [3, 1100])
def test_transformations_of_pytorch_go_through(rows, tmp_path):
    lora, x, t = layer(), torch.randn(rows, 6), torch.randn(rows, 6)
    torch.testing.assert_close(torch.vmap(lora)(x), formula(lora, x))
    wanted = formula(lora, t) - lora.base.bias
    torch.testing.assert_close(torch.func.jvp(lora, (x,), (t,))[1], wanted)
    with forward_ad.dual_level():
        torch.testing.assert_close(forward_ad.unpack_dual(lora(forward_ad.make_dual(x, t))).tangent, wanted)
    jacobian = torch.func.jacrev(lora)(x[0])
    torch.testing.assert_close(jacobian, lora.weight.detach())
    traced = torch.jit.trace(lora, x)
    traced.save(tmp_path / "traced.pt")
    torch.testing.assert_close(traced(t), lora(t))


@pytest.mark.parametrize("strict", [False, True])
def test_it_is_exported_with_a_size_that_varies(strict):
    lora, batch = layer().eval(), torch.export.Dim("batch", min=2, max=4096)
    exported = torch.export.export(lora, (torch.randn(8, 6),), dynamic_shapes=({0: batch},), strict=strict).module()
    for rows in (8, 2000):
        x = torch.randn(rows, 6)
        torch.testing.assert_close(exported(x), lora(x))


def test_rows_of_different_lengths_in_one_nested_tensor():
    lora = layer()
    rows = [torch.randn(2, 6), torch.randn(4, 6)]
    out = lora(torch.nested.nested_tensor(rows, layout=torch.jagged))
    for got, row in zip(out.unbind(), rows, strict=True):
        torch.testing.assert_close(got, lora(row))


class Tagged(Tensor):
    """A tensor subclass that notes which functions it sees."""

    seen: list[str] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(func.__name__)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_tensor_subclass_sees_the_layer_as_it_sees_the_base():
    x = torch.randn(1100, 6).as_subclass(Tagged)  # so many rows that the fused product would call no `linear`
    Tagged.seen.clear()
    out = layer()(x)
    assert "linear" in Tagged.seen and type(out) is Tagged
    torch.testing.assert_close(out.as_subclass(Tensor), layer()(x.as_subclass(Tensor)))


def test_accelerates_offload_works_after_wrapping():
    accelerate = pytest.importorskip("accelerate")
    model = stir(get_peft_model(small(), ["c_attn"], 2))
    out = model(IDS)
    accelerate.cpu_offload(model.base_model, torch.device("cpu"))
    torch.testing.assert_close(model(IDS), out)

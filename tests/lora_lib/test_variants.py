"""Relatives of LoRA against their formulas, and against Hugging Face PEFT's files and first steps."""

import copy
import json

import pytest
import torch
from small_models import ATTENTION_AND_MLP, IDS, save_hugging_face_gpt2, small, stir, three_adapters
from torch import nn
from torch.nn import functional as F

from lora_lib import AdapterError, LoRA, LoRAConfig, LoRALinear, PeftModel, get_peft_model, load_model
from lora_lib.adapters import DoRA, PiSSA, lora_plus

KINDS = {
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "fast pissa": {"init_lora_weights": "pissa_niter_4"},
    "pissa, rslora": {"init_lora_weights": "pissa", "use_rslora": True},
    "pissa, patterns": {
        "init_lora_weights": "pissa",
        "rank_pattern": {"c_fc": 14, "h.1.attn.c_attn": 2},
        "alpha_pattern": {"c_proj": 3},
    },
    "dora, rslora": {"use_dora": True, "use_rslora": True},
}


def trained(settings, base=small, targets="all-linear", steps=3):
    """A model with an adapter whose every tensor has moved."""
    model = get_peft_model(base(), targets, 4, 8, **settings)
    model.enable_lora_training()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(IDS)[:, :-1].flatten(0, 1).float(), IDS[:, 1:].flatten()).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_each_kind_starts_as_the_base_trains_merges_switches_saves_and_opens(tmp_path, settings):
    before = small()(IDS)
    torch.testing.assert_close(get_peft_model(small(), "all-linear", 4, 8, **settings)(IDS), before, atol=1e-5, rtol=0)
    model = trained(settings)
    out = model(IDS)
    assert not torch.allclose(out, before, atol=1e-2)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(small(), tmp_path)
    torch.testing.assert_close(again(IDS), out, atol=1e-5, rtol=0)
    assert torch.equal(copy.deepcopy(model)(IDS), out)
    for opened in (model, again):
        opened.merge_adapter()
        torch.testing.assert_close(opened(IDS), out, atol=1e-4, rtol=0)
        opened.unmerge_adapter()
        with opened.disable_adapter():
            assert torch.equal(opened(IDS), before)
    rows = model(IDS, adapter_names=["default", "__base__"])
    torch.testing.assert_close(rows, torch.stack([out[0], before[1]]), atol=1e-5, rtol=0)


def test_the_names_of_peft_choose_the_kind():
    for settings, kind in [({}, LoRA), *zip(KINDS.values(), (DoRA, PiSSA, PiSSA, PiSSA, PiSSA, DoRA))]:
        config = LoRAConfig(["c_attn"], **settings)
        assert config.variant is kind
        model = get_peft_model(small(), "all-linear", 4, **settings)
        assert {type(la.adapters["default"]) for la in model.lora_layers().values()} == {kind}
        assert model.peft_config["default"].use_rslora is settings.get("use_rslora", False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dora_is_its_formula_in_values_and_gradients(bias, dropout):
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(7, 5, bias=bias).double(), 2, 6, dropout, adapter_cls=DoRA)
    adapter = layer.adapters["default"]
    assert torch.equal(adapter.m, layer.base.weight.norm(dim=1))
    x = torch.randn(3, 7, dtype=torch.float64)
    assert torch.equal(layer.eval()(x), layer.base(x))  # a new adapter changes nothing, to the last bit
    nn.init.normal_(adapter.B)
    nn.init.normal_(adapter.m)
    torch.manual_seed(1)
    got = layer.train()(x)
    torch.manual_seed(1)
    dropped = adapter.dropout(x)
    V = layer.base.weight.T + 3 * adapter.A @ adapter.B
    W = adapter.m * V / V.norm(dim=0).detach()
    base = layer.base.weight.T
    wanted = layer.base(x) + dropped @ (W - base)
    torch.testing.assert_close(got, wanted)
    learned = [adapter.A, adapter.B, adapter.m]
    for a, b in zip(torch.autograd.grad(got.sum(), learned), torch.autograd.grad(wanted.sum(), learned), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(adapter.delta(base), W - base)
    with pytest.raises(TypeError, match="depends on the layer's weight: call delta\\(W\\)"):
        adapter.delta()


def test_a_column_of_zeros_stays_one():
    base = nn.Linear(4, 3)
    base.weight.data[1] = 0
    layer, x = LoRALinear(base, 2, adapter_cls=DoRA), torch.randn(5, 4)
    torch.testing.assert_close(layer(x), base(x))
    layer(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.adapters["default"].parameters())
    assert layer.weight.isfinite().all()


def test_pissa_is_its_formula():
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(7, 5).double())
    layer.adapters["a"] = PiSSA.from_base(layer.base, 2, 6, init="pissa")
    layer.activate("a")
    adapter, W = layer.adapters["a"], layer.base.weight.T.clone()
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    strongest = U[:, :2] * S[:2] @ Vh[:2]
    torch.testing.assert_close(3 * adapter.A @ adapter.B, strongest)
    torch.testing.assert_close(adapter.A.norm(dim=0), adapter.B.norm(dim=1))  # each has half of it
    nn.init.normal_(adapter.B)
    x = torch.randn(3, 7, dtype=torch.float64)
    wanted = x @ (W - strongest + 3 * adapter.A @ adapter.B) + layer.base.bias
    torch.testing.assert_close(layer(x), wanted)
    assert [n for n, p in adapter.named_parameters()] == ["A", "B"] and torch.equal(layer.base.weight.T, W)


def test_fast_pissa_takes_out_nearly_as_much():
    left = []
    for init in ("pissa", "pissa_niter_8"):
        layer = get_peft_model(small(), ["c_attn"], 4, 8, init_lora_weights=init).lora_layers()["h.0.attn.c_attn"]
        adapter = layer.adapters["default"]
        left.append((layer.base.weight.T - 2 * adapter.A @ adapter.B).norm().item())
    assert left[1] == pytest.approx(left[0], rel=0.02) and left[0] < layer.base.weight.norm() - 0.5


def test_pissa_adapters_add_up_with_others():
    model = three_adapters()
    model.add_adapter("p", LoRAConfig(["c_attn"], r=3, init_lora_weights="pissa"))
    stir(model, "p", 4)
    model.add_weighted_adapter(["default", "p"], [0.5, -1], "sum")
    for layer in model.lora_layers().values():
        if "p" in layer.adapters:
            a, p, both = (layer.adapters[name].delta() for name in ("default", "p", "sum"))
            torch.testing.assert_close(both, 0.5 * a - p, atol=1e-5, rtol=0)


def test_lora_plus_gives_each_b_another_rate():
    ratio = lora_plus(16)
    model = get_peft_model(small(), ["c_attn"], 4, use_dora=True)
    rates = {name.rpartition(".")[2]: ratio(name) for name, p in model.named_parameters() if p.requires_grad}
    assert rates == {"A": 1, "B": 16, "m": 1}
    for bad in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="LoRA\\+ needs a ratio above 0 and finite, got"):
            lora_plus(bad)


@pytest.mark.parametrize(("init", "b_is_zero"), [(True, True), ("gaussian", True), (False, False)])
@pytest.mark.parametrize("use_dora", [False, True])
def test_the_starts_of_peft(init, b_is_zero, use_dora):
    torch.manual_seed(0)
    layer = nn.Linear(1000, 800)
    kind = DoRA if use_dora else LoRA
    adapter = kind.from_base(layer, 8, 8, init=init)
    spread = 1 / 8 if init == "gaussian" else (3 * 1000) ** -0.5
    assert adapter.A.std().item() == pytest.approx(spread, rel=0.05)
    assert adapter.B.std().item() == pytest.approx(0 if b_is_zero else (3 * 8) ** -0.5, rel=0.05)
    if use_dora:
        torch.testing.assert_close(adapter.m, (layer.weight.T + adapter.A @ adapter.B).norm(dim=0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_lora_weights": "olora"}, "init_lora_weights must be True, False, 'gaussian', 'pissa' .* got 'olora'"),
        ({"init_lora_weights": "pisa"}, r"init_lora_weights must be .* got 'pisa'\. Did you mean 'pissa'\?"),
        ({"init_lora_weights": "pissa_niter_x"}, "init_lora_weights must be .* got 'pissa_niter_x'"),
        ({"init_lora_weights": None}, "init_lora_weights must be .* got None"),
        ({"use_dora": "yes"}, "use_dora must be True or False, got 'yes'"),
        ({"use_dora": True, "init_lora_weights": "pissa"}, "different kinds of adapter"),
        ({"use_dora": True, "adapter_cls": PiSSA}, "use_dora = True, but PiSSA is not a DoRA"),
    ],
)
def test_what_no_kind_honours_is_refused(settings, message):
    model = small()
    with pytest.raises(ValueError, match=message):
        get_peft_model(model, ["c_attn"], 4, **settings)
    assert not any(isinstance(m, LoRALinear) for m in model.modules())


def test_a_class_that_is_named_starts_in_its_own_way(tmp_path):
    by_class, by_name = (
        get_peft_model(small(), ["c_attn"], 2, **settings)
        for settings in ({"adapter_cls": PiSSA}, {"init_lora_weights": "pissa"})
    )
    for ours, theirs in zip(by_class.parameters(), by_name.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    by_class.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="PiSSA is saved as a plain LoRA: leave adapter_cls out"):
        PeftModel.from_pretrained(small(), tmp_path, adapter_cls=PiSSA)


def test_dora_cannot_be_called_without_its_layer():
    layer = LoRALinear(nn.Linear(6, 4), 2, 4, adapter_cls=DoRA)
    with pytest.raises(TypeError, match=r"call added\(x, y, base\)"):
        layer.adapters["default"](torch.ones(3, 6))


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"init_lora_weights": "pissa"}], ids=["dora", "pissa"])
def test_a_layer_whose_weight_cannot_be_read_is_named(settings):
    model = small()
    model.h[1].mlp.c_fc.weight = nn.Parameter(torch.ones(96, 24, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match=r"^h\.1\.mlp\.c_fc: cannot compute with a torch\.int8 weight"):
        get_peft_model(model, ["c_fc"], 2, **settings)
    assert not any(isinstance(m, LoRALinear) for m in model.modules())


def test_pissa_needs_numbers():
    with pytest.raises(ValueError, match="meta device"):
        get_peft_model(small().to("meta"), ["c_attn"], 4, init_lora_weights="pissa")
    for init in ("gaussian", "pissa_niter_few", "4"):
        with pytest.raises(ValueError, match=f"PiSSA has no initialisation '{init}'"):
            PiSSA.from_base(nn.Linear(4, 4), 2, 2, init=init)
    with pytest.raises(ValueError, match="LoRA has no initialisation 'pissa'"):
        LoRA.from_base(nn.Linear(4, 4), 2, 2, init="pissa")


class Coded(nn.Linear):
    """A quantised layer as any library might have it: whole numbers for weights, and a way to the float ones."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features)
        self.weight = nn.Parameter((linear.weight * 50).round().to(torch.int8), requires_grad=False)
        self.bias = linear.bias

    def dequantised(self):
        return self.weight.float() / 50

    def forward(self, x):
        return F.linear(x, self.dequantised().to(x.dtype), self.bias)


@pytest.mark.parametrize("settings", [{}, *KINDS.values()], ids=["lora", *KINDS])
def test_every_kind_works_on_a_quantised_base(settings):
    torch.manual_seed(0)
    coded = Coded(nn.Linear(7, 5))
    twin = nn.Linear(7, 5)
    twin.weight.data, twin.bias.data = coded.dequantised(), coded.bias.data
    models = []
    settings = {name: value for name, value in settings.items() if not name.endswith("_pattern")}
    for layer in (coded, twin):
        torch.manual_seed(1)
        models.append(stir(get_peft_model(nn.Sequential(layer), ["0"], 3, 6, **settings)))
    one, two = (model.lora_layers()["0"] for model in models)
    x = torch.randn(4, 7)
    torch.testing.assert_close(one(x), two(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.weight, two.weight, atol=1e-5, rtol=1e-5)
    with pytest.raises(TypeError, match=r"cannot merge into a torch.int8 weight: dequantise the base layer first"):
        models[0].merge_and_unload()
    assert isinstance(models[0].unload()[0], Coded)


@pytest.mark.parametrize("settings", [{}, *KINDS.values()][:3], ids=str)
def test_under_autocast_the_weight_is_summed_in_full_precision(settings):
    layer = next(iter(stir(get_peft_model(small(), ["c_attn"], 4, 8, **settings)).lora_layers().values()))
    wanted = layer.weight
    x = torch.randn(3, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.weight, wanted) and layer(x).dtype == torch.bfloat16
    torch.testing.assert_close(layer(x), x @ wanted.T + layer.bias, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", [*KINDS.values()], ids=KINDS)
def test_an_adapter_that_joins_merged_ones_is_of_the_base_alone(settings):
    model = three_adapters()
    if "rank_pattern" in settings:
        settings = {"init_lora_weights": "pissa", "rank_pattern": {"h.0.attn.c_attn": 3}}
    model.add_adapter("before", LoRAConfig(["c_attn"], r=2, **settings))
    model.merge_adapter()
    merged = model(IDS)
    model.add_adapter("while", LoRAConfig(["c_attn"], r=2, **settings))
    assert torch.equal(model(IDS), merged)
    model.unmerge_adapter()
    for layer in model.lora_layers().values():
        if "while" in layer.adapters and "pissa_niter" not in str(settings):
            W = layer.base.weight.T
            a, b = (layer.adapters[name].delta(W) for name in ("before", "while"))
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
            if settings.get("use_dora"):
                assert torch.equal(layer.adapters["before"].m, layer.adapters["while"].m)
            else:
                assert torch.equal(layer.adapters["before"].A0, layer.adapters["while"].A0)


def test_dora_can_be_counted_without_numbers():
    model = get_peft_model(small().to("meta"), ["c_attn"], 4, use_dora=True)
    assert model.get_nb_trainable_parameters()[0] == 2 * (4 * (24 + 72) + 72)


# --- PEFT -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small GPT-2's folder, which both libraries open."""
    pytest.importorskip("peft")
    pytest.importorskip("transformers")
    return save_hugging_face_gpt2(tmp_path_factory.mktemp("base"))


def theirs(folder, dtype=torch.float32):
    import transformers

    return transformers.GPT2LMHeadModel.from_pretrained(folder).to(dtype).eval()


WITHIN = {torch.float32: 2e-5, torch.float16: 6e-3, torch.bfloat16: 5e-2}


def assert_same(logits, wanted):
    assert logits.dtype == wanted.dtype
    assert (logits - wanted).abs().max() <= WITHIN[logits.dtype] * wanted.abs().max()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", WITHIN, ids=str)
@pytest.mark.parametrize("settings", [KINDS["dora"], KINDS["pissa"], KINDS["pissa, rslora"]], ids=str)
def test_peft_opens_ours_on_the_original_base(tmp_path, base, settings, dtype):
    import peft

    def ours():
        return load_model(base).to(dtype)

    torch.manual_seed(3)
    model = trained(settings, ours, ATTENTION_AND_MLP, steps=10)
    assert not torch.allclose(model(IDS), ours()(IDS), atol=0.03)
    model.save_pretrained(tmp_path / "ours")
    opened = peft.PeftModel.from_pretrained(theirs(base, dtype), tmp_path / "ours").eval()
    assert_same(opened(IDS).logits, model(IDS))
    opened.save_pretrained(tmp_path / "theirs")
    again = PeftModel.from_pretrained(ours(), tmp_path / "theirs")
    assert_same(again(IDS), model(IDS))
    assert_same(again.merge_and_unload()(IDS), model(IDS))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("onto", ["ours", "theirs"])
@pytest.mark.parametrize("dtype", WITHIN, ids=str)
@pytest.mark.parametrize("settings", [*KINDS.values()][:2], ids=str)
def test_we_open_what_peft_made(tmp_path, base, settings, dtype, onto):
    import peft

    config = peft.LoraConfig(r=4, lora_alpha=10, target_modules=ATTENTION_AND_MLP, task_type="CAUSAL_LM", **settings)
    made = peft.get_peft_model(theirs(base, dtype), config).eval()
    torch.manual_seed(5)
    for name, p in made.named_parameters():
        if "lora_B" in name or "lora_magnitude" in name:
            p.data.add_(torch.randn_like(p), alpha=0.2)
    wanted = made(IDS).logits
    made.save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(load_model(base).to(dtype) if onto == "ours" else theirs(base, dtype), tmp_path)
    out = model(IDS)
    assert_same(out if onto == "ours" else out.logits, wanted)


@pytest.mark.filterwarnings("ignore")
def test_a_random_decomposition_of_peft_is_refused(tmp_path, base):
    import peft

    config = peft.LoraConfig(target_modules=["c_attn"], init_lora_weights="pissa_niter_4", task_type="CAUSAL_LM")
    peft.get_peft_model(theirs(base), config).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="'pissa_niter_4' changed the base.*weight_conversion"):
        PeftModel.from_pretrained(load_model(base), tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", [*KINDS.values()][:2], ids=str)
def test_three_steps_are_those_of_peft(tmp_path, base, settings):
    """PEFT starts from our adapter's numbers, where they go by their start; then both take the same three steps."""
    import peft

    def steps(model):
        learned = [p for p in model.parameters() if p.requires_grad]
        optimizer, losses = torch.optim.SGD(learned, lr=0.05), []
        for _ in range(3):
            optimizer.zero_grad()
            out = model(IDS)
            out = getattr(out, "logits", out)
            loss = F.cross_entropy(out[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=ATTENTION_AND_MLP, task_type="CAUSAL_LM", **settings)
    twin = peft.get_peft_model(theirs(base), config)
    twin.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 4
    model = PeftModel.from_pretrained(load_model(base), tmp_path).enable_lora_training().eval()
    losses = steps(model)
    assert losses[0] - losses[-1] > 1e-3
    assert losses == pytest.approx(steps(twin.eval()), rel=2e-5)


@pytest.mark.filterwarnings("ignore")
def test_lora_plus_gives_each_matrix_the_rate_that_peft_gives_it(base):
    import peft
    from peft.optimizers import create_loraplus_optimizer

    config = peft.LoraConfig(target_modules=ATTENTION_AND_MLP, task_type="CAUSAL_LM")
    twin = peft.get_peft_model(theirs(base), config)
    optimizer = create_loraplus_optimizer(twin, torch.optim.AdamW, lr=0.01, loraplus_lr_ratio=16)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    wanted = {name: rates[id(p)] for name, p in twin.named_parameters() if p.requires_grad}
    model = get_peft_model(load_model(base), ATTENTION_AND_MLP, 8, 8).enable_lora_training()
    ratio, found = lora_plus(16), {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            layer, _, matrix = name.partition(".adapters.default.")
            layer = layer.removeprefix("base_model.")
            found[f"base_model.model.transformer.{layer}.lora_{matrix}.default.weight"] = 0.01 * ratio(name)
    assert found == pytest.approx(wanted)

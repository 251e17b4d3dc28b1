"""Any sequence of calls leaves the base bit for bit as it was, and the logits those of the adapters in use."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import IDS, scatter, stir
from torch import nn

from lora_lib import GPT2Config, GPT2Model, LoRAConfig, PeftModel, get_peft_model

CONFIG = GPT2Config(
    vocab_size=31, n_positions=16, n_embd=12, n_head=2, n_layer=1, embd_pdrop=0, resid_pdrop=0, attn_pdrop=0
)
CONFIGS = {
    "default": LoRAConfig(["c_attn"], r=3),
    "b": LoRAConfig(["c_attn", "c_fc"], r=2, use_rslora=True),
    "c": LoRAConfig(["mlp.c_proj", "c_attn", "lm_head"], r=4, lora_alpha=5),  # the head is tied to the embedding
}
NAMES = st.sampled_from([*CONFIGS, "unknown"])
CALLS = st.one_of(
    st.tuples(st.sampled_from(["merge", "unmerge", "disable", "train", "eval", "enable"])),
    st.tuples(st.sampled_from(["add", "delete"]), NAMES),
    st.tuples(st.just("set"), st.lists(NAMES, max_size=3, unique=True).map(tuple)),
)


def base(dtype) -> GPT2Model:
    return scatter(GPT2Model(CONFIG)).to(dtype)


def add(model: PeftModel, name: str) -> None:
    """Add one of the three adapters: the same numbers each time."""
    model.add_adapter(name, CONFIGS[name])
    fill(model, name)


def fill(model: PeftModel, name: str) -> None:
    was_training = model.training
    torch.manual_seed(len(name))
    for layer in model.lora_layers().values():
        if name in layer.adapters:
            nn.init.normal_(layer.adapters[name].A, std=0.2)
    stir(model, name, seed=ord(name[0])).train(was_training)


@functools.cache
def expected(dtype, active: tuple[str, ...], merged: frozenset[str]) -> torch.Tensor:
    """The logits of a model that was never switched, the layers in `merged` summed by hand, once, in float32."""
    model = get_peft_model(base(dtype), CONFIGS["default"].target_modules, CONFIGS["default"].r)
    fill(model, "default")
    for name in active:
        if name != "default":
            add(model, name)
    for name, layer in model.lora_layers().items():
        layer.active = tuple(a for a in active if a in layer.adapters)
        if name in merged:
            weight = layer.base.weight.float()
            for a in layer.active:
                adapter = layer.adapters[a]
                weight = weight + (adapter.scale * adapter.A @ adapter.B).T
            layer.base.weight, layer.active = nn.Parameter(weight.to(dtype)), ()
    return model(IDS).detach()


TARGETS = {
    "default": {"h.0.attn.c_attn"},
    "b": {"h.0.attn.c_attn", "h.0.mlp.c_fc"},
    "c": {"h.0.mlp.c_proj", "h.0.attn.c_attn", "out_head"},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(calls=st.lists(CALLS, min_size=1, max_size=12))
def test_any_sequence_of_calls(dtype, calls):
    model = base(dtype)
    weights = {id(p): p.clone() for p in model.parameters()}
    own = list(model.parameters())
    model = get_peft_model(model, CONFIGS["default"].target_modules, CONFIGS["default"].r)
    fill(model, "default")
    there, active, merged, wrapped = ["default"], ("default",), set(), set(TARGETS["default"])

    def check():
        assert all(torch.equal(p, weights[id(p)]) for p in own)  # never written to
        for layer in model.lora_layers().values():
            assert any(layer.own_weight is p for p in own) and layer.merged == (
                layer.base.weight is not layer.own_weight
            )
        assert torch.equal(model(IDS), expected(dtype, active, frozenset(merged)))

    for call, *args in calls:
        names = [*args[0]] if call == "set" else args
        if call == "add" and (names[0] in there or names[0] == "unknown"):
            with pytest.raises(ValueError if names[0] in there else KeyError):
                add(model, *args)
        elif call in ("delete", "set") and not set(names) <= set(there):
            with pytest.raises(ValueError, match="no adapter called"):
                model.set_adapter(names) if call == "set" else model.delete_adapter(*args)
        elif call == "add":
            add(model, *args)
            there, wrapped = [*there, *args], wrapped | TARGETS[args[0]]
        elif call == "set":
            model.set_adapter(names)
            active = tuple(names)
        elif call == "delete":
            model.delete_adapter(*args)
            there.remove(*args)
            active = tuple(name for name in active if name != args[0])
        elif call == "merge":
            model.merge_adapter()
            merged = set(wrapped)
        elif call == "unmerge":
            model.unmerge_adapter()
            merged = set()
        elif call == "disable":
            with model.disable_adapter():
                assert torch.equal(model(IDS), expected(dtype, (), frozenset()))
        elif call == "enable":
            model.enable_lora_training()
            merged = set()
        else:
            getattr(model, call)()
        check()
    plain = model.unload()
    assert torch.equal(plain(IDS), expected(dtype, (), frozenset()))
    assert all(p is q for p, q in zip(plain.parameters(), own, strict=True))
    assert plain.out_head.weight is plain.wte.weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_merging_into_a_tied_head_keeps_the_logits_and_the_embedding(dtype):
    model = get_peft_model(base(dtype), ["c_attn"], 3)
    add(model, "c")
    model.set_adapter("c")
    before, table = model(IDS), model.wte.weight.clone()
    model.merge_adapter()
    within = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}[dtype]
    torch.testing.assert_close(model(IDS), before, atol=within, rtol=within)
    assert torch.equal(model.wte.weight, table) and not torch.equal(model.out_head.base.weight, table)
    model.unmerge_adapter()
    assert torch.equal(model(IDS), before)

"""Adapters: what once went wrong without a word, or in a traceback, now works or is refused with a message."""

import json
from dataclasses import fields

import pytest
import torch
from small_models import IDS, small, stir
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from lora_book.measure import dequantise_model, quantise_model
from lora_lib import AdapterError, LoRAConfig, PeftModel, get_peft_model
from lora_lib.adapters import CONFIG_FILE, WEIGHTS_FILE
from lora_lib.adapters.config import PEFT_FIELDS


def wrapped(targets=("c_attn",), **settings) -> PeftModel:
    return stir(get_peft_model(small(), list(targets), 4, 8, **settings))


# --- settings -------------------------------------------------------------------------------------


def test_the_settings_come_under_either_name_and_the_default_is_all_linear_layers():
    models = [
        get_peft_model(small(), r=3),
        get_peft_model(small(), lora_rank=3),
        get_peft_model(small(), LoRAConfig(r=3)),
    ]
    for model in models:
        assert model.peft_config["default"] == LoRAConfig("all-linear", r=3)
        assert len(model.lora_layers()) == 8 and "out_head" not in model.lora_layers()
    with pytest.raises(TypeError, match="r and lora_rank are the same setting"):
        get_peft_model(small(), r=3, lora_rank=3)
    with pytest.raises(TypeError, match="not both"):  # though 8 is the default
        get_peft_model(small(), LoRAConfig(r=3), lora_rank=8)


def test_names_may_come_as_a_tuple_or_a_set():
    config = LoRAConfig(("c_attn", "c_fc"), exclude_modules={"h.1.mlp.c_fc", "h.0.mlp.c_fc"})
    assert config.target_modules == ["c_attn", "c_fc"]
    assert config.exclude_modules == ["h.0.mlp.c_fc", "h.1.mlp.c_fc"]


@pytest.mark.parametrize("name", [None, 3, ["b"], b"b"])
def test_an_adapters_name_is_text(name):
    model = wrapped()
    for call in (
        lambda: get_peft_model(small(), ["c_attn"], adapter_name=name),
        lambda: model.add_adapter(name, LoRAConfig()),
    ):
        with pytest.raises(ValueError, match="an adapter's name can have letters, digits"):
            call()


def test_another_kind_of_config_is_refused_by_name():
    peft = pytest.importorskip("peft")
    model = wrapped()
    with pytest.raises(TypeError, match=r"expected lora_lib's LoRAConfig, got a dict: LoRAConfig\(\*\*fields\)"):
        model.add_adapter("b", {"r": 3})
    with pytest.raises(TypeError, match="got a LoraConfig: it takes the same names"):
        model.add_adapter("b", peft.LoraConfig(r=3))
    assert list(model.peft_config) == ["default"]


# --- models ---------------------------------------------------------------------------------------


def test_a_pair_is_not_a_model(tmp_path):
    wrapped().save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"load_pretrained returns a pair, \(model, tokenizer\)"):
        PeftModel.from_pretrained((small(), None), tmp_path)


def test_a_model_that_peft_has_adapted_is_refused():
    peft = pytest.importorskip("peft")
    theirs = peft.get_peft_model(nn.Sequential(nn.Linear(4, 4)), peft.LoraConfig(target_modules=["0"]))
    for model in (theirs, theirs.base_model.model):
        with pytest.raises(ValueError, match="PEFT has adapted this model: call its merge_and_unload or unload"):
            get_peft_model(model, "all-linear", 2)


class ReadsTheWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(6, 6)

    def forward(self, x):
        assert self.one.weight.dtype is x.dtype and self.one.weight.shape == (6, 6)
        return F.linear(x.to(self.one.weight.device), self.one.weight, self.one.bias)


def test_rows_of_different_adapters_are_refused_where_a_model_reads_a_weight():
    model, x = stir(get_peft_model(ReadsTheWeight(), ["one"], 2)), torch.randn(2, 6)
    out = model(x)
    with pytest.raises(ValueError, match="no single weight is right for all rows"):
        model(x, adapter_names=["default", "__base__"])
    assert torch.equal(model(x), out)


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn, self.out = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.out(self.self_attn(input=x))


def test_a_module_that_is_called_by_keyword_may_be_trained_in_full(tmp_path):
    model = get_peft_model(Attends(), ["out"], 2, modules_to_save=["self_attn"]).eval()
    x = torch.randn(2, 6)
    with torch.no_grad():
        model.self_attn.weight.add_(1)
    out = model(x)
    with pytest.raises(ValueError, match="adapter_names cannot choose a copy of Linear row by row"):
        model(x, adapter_names=["default", "__base__"])
    assert torch.equal(model(x), out)


# --- merging --------------------------------------------------------------------------------------


def weight_normed(layer):
    parametrizations.weight_norm(layer)


def old_weight_normed(layer):
    nn.utils.weight_norm(layer)


def pruned(layer):
    prune.l1_unstructured(layer, "weight", amount=0.5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", [pruned, weight_normed, old_weight_normed])
@pytest.mark.parametrize("before", [True, False])
def test_a_weight_that_each_forward_computes_is_not_merged_into(change, before):
    base, x = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), torch.randn(3, 6)
    if before:
        change(base[1])
    model = stir(get_peft_model(base, "0|1", 2))
    if not before:
        change(base[1].base)
    out = model(x)
    with pytest.raises(ValueError, match="1: cannot merge: the base layer computes its weight in each forward pass"):
        model.merge_adapter()
    assert torch.equal(model(x), out) and not model.base_model[0].merged


def test_a_model_is_quantised_once():
    model = quantise_model(small())
    out = model(IDS)
    with pytest.raises(ValueError, match="this model is quantised already: call dequantise_model first"):
        quantise_model(model)
    assert torch.equal(model(IDS), out)
    quantise_model(dequantise_model(model))


# --- files ----------------------------------------------------------------------------------------


def test_a_layer_that_was_replaced_is_named_and_the_rest_opens(tmp_path):
    model = wrapped(["c_attn", "c_fc"], modules_to_save=["ln_f"])
    for replacement in (nn.Linear(24, 72), nn.Identity()):
        model.base_model.h[1].attn.c_attn = replacement
        with pytest.warns(UserWarning, match="h.1.attn.c_attn had this adapter and has been replaced in the model"):
            model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(small(), tmp_path)
        for name, layer in model.lora_layers().items():
            assert torch.equal(layer.adapters["default"].B, again.lora_layers()[name].adapters["default"].B)
        assert again.lora_layers().keys() == model.lora_layers().keys()


def test_a_layer_that_came_later_is_not_taken_for_one_of_the_adapters(tmp_path):
    def add(model):
        model.more = nn.ModuleDict({"c_attn": nn.Linear(3, 3)})
        return model

    model = wrapped()
    add(model.base_model)
    model.save_pretrained(tmp_path)
    for base in (small(), add(small())):
        assert torch.equal(PeftModel.from_pretrained(base, tmp_path)(IDS), model(IDS))


@pytest.mark.parametrize("part", ["wte", "wpe", "out_head"])
def test_another_embedding_or_head_is_noticed(tmp_path, part):
    def base(seed):
        model = small()
        model.out_head.weight = nn.Parameter(model.wte.weight.detach().clone())
        other = small(seed=1)
        if seed:
            getattr(model, part).weight = nn.Parameter(getattr(other, part).weight.detach().clone())
        return model

    stir(get_peft_model(base(0), ["c_attn"], 4)).save_pretrained(tmp_path / "untied")
    with pytest.raises(AdapterError, match="the base has other weights"):
        PeftModel.from_pretrained(base(1), tmp_path / "untied")
    PeftModel.from_pretrained(base(0).half(), tmp_path / "untied")
    PeftModel.from_pretrained(base(1), tmp_path / "untied", check_base=False)


def test_a_vocabulary_that_has_grown_is_still_the_same_base(tmp_path):
    wrapped().save_pretrained(tmp_path)
    base = small()
    base.wte.weight = base.out_head.weight = nn.Parameter(torch.cat([base.wte.weight, torch.randn(5, 24)]))
    assert PeftModel.from_pretrained(base, tmp_path).active_adapters == ["default"]


@pytest.mark.parametrize("sample", ["[]", "{", '{"a": 1}', '{"a": [[1]]}', '{"a": [["x", 2]]}'])
def test_a_damaged_sample_is_refused(tmp_path, sample):
    from safetensors.torch import load_file, save_file

    wrapped().save_pretrained(tmp_path)
    save_file(load_file(tmp_path / WEIGHTS_FILE), tmp_path / WEIGHTS_FILE, {"model_sample": sample})
    with pytest.raises(AdapterError, match="the sample of the base's weights in its metadata is damaged"):
        PeftModel.from_pretrained(small(), tmp_path)


def test_a_rank_far_above_the_tensors_takes_no_memory(tmp_path):
    from safetensors.torch import load_file, save_file

    wrapped().save_pretrained(tmp_path)
    values = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**values, "r": 20_000_000_000}))
    save_file(load_file(tmp_path / WEIGHTS_FILE), tmp_path / WEIGHTS_FILE)
    with pytest.raises(AdapterError, match=r"rank for h.0.attn.c_attn is 20000000000, but its A is \(24, 4\)"):
        PeftModel.from_pretrained(small(), tmp_path)


@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch, file):
    wrapped().save_pretrained(tmp_path)

    def refuses(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    target = "pathlib.Path.read_text" if file == CONFIG_FILE else "lora_lib.tensor_files.safe_open"
    monkeypatch.setattr(target, refuses)
    with pytest.raises(AdapterError, match=f"{file} cannot be read: .*Permission denied"):
        PeftModel.from_pretrained(small(), tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_that_fsdp_spreads_over_processes_is_saved_whole(tmp_path):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("this PyTorch has no FSDP2")
    from torch.distributed.device_mesh import init_device_mesh

    model = wrapped(modules_to_save=["ln_f"])
    out = model(IDS)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        fsdp.fully_shard(model.base_model, mesh=init_device_mesh("cpu", (1,)))
        assert hasattr(model.lora_layers()["h.0.attn.c_attn"].adapters["default"].A, "full_tensor")
        torch.testing.assert_close(model(IDS), out)
        model.save_pretrained(tmp_path / "adapter")
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(PeftModel.from_pretrained(small(), tmp_path / "adapter")(IDS), out)


# --- PEFT's fields --------------------------------------------------------------------------------


def test_every_field_of_peft_is_in_the_table_once():
    peft = pytest.importorskip("peft")
    known = [*PEFT_FIELDS["meaning"], *PEFT_FIELDS["read"], *PEFT_FIELDS["ignored"], *PEFT_FIELDS["refused"]]
    assert len(known) == len(set(known))
    assert {field.name for field in fields(peft.LoraConfig)} <= set(known)
    assert {field.name for field in fields(LoRAConfig)} - {"adapter_cls"} == {
        *PEFT_FIELDS["meaning"],
        *PEFT_FIELDS["read"],
    }


@pytest.mark.parametrize("field", PEFT_FIELDS["refused"])
def test_what_is_refused_says_why(tmp_path, field):
    wrapped().save_pretrained(tmp_path)
    values = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**values, field: {"some": "value"}}))
    with pytest.raises(AdapterError, match=f"{field} = .* is not supported here: {PEFT_FIELDS['refused'][field][:30]}"):
        PeftModel.from_pretrained(small(), tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_an_eva_adapter_of_peft_opens(tmp_path):
    peft = pytest.importorskip("peft")

    def base():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    config = peft.LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights="eva", eva_config=peft.EvaConfig())
    theirs = peft.get_peft_model(base(), config)
    for name, p in theirs.named_parameters():
        if "lora_" in name:
            nn.init.normal_(p)
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["eva_config"]
    x = torch.randn(4, 6)
    torch.testing.assert_close(PeftModel.from_pretrained(base(), tmp_path)(x), theirs(x))

"""What broke when tried on things that are not written here: each now works, or is refused and changes nothing."""

import copy
import json
import os
import pickle
import threading
from functools import partial

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import IDS, scatter, small, stir, three_adapters
from torch import nn

from lora_lib import AdapterError, GPT2Model, LoRAConfig, LoRALinear, PeftModel, get_peft_model
from lora_lib.adapters import CONFIG_FILE, WEIGHTS_FILE
from lora_lib.gpt2 import load_pretrained, save_pretrained_folder
from lora_lib.tensor_files import digest, read_tensors, replaced, write_tensors
from lora_lib.training import load_checkpoint, save_checkpoint


def wrapped(targets=("c_attn",), **settings) -> PeftModel:
    return stir(get_peft_model(small(), list(targets), 4, 8, **settings))


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("renames", range(2))
def test_a_save_that_is_killed_leaves_the_old_version_or_says_that_there_are_two(tmp_path, monkeypatch, renames):
    old, new = wrapped(use_rslora=True), stir(get_peft_model(small(), ["c_attn", "c_fc"], 4, 250))
    old.save_pretrained(tmp_path)
    done = []

    def dies(source, target, real=os.replace):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(target)
        real(source, target)

    monkeypatch.setattr("lora_lib.tensor_files.os.replace", dies)
    with pytest.raises(KeyboardInterrupt):
        new.save_pretrained(tmp_path)
    monkeypatch.undo()
    assert sorted(file.name for file in tmp_path.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    if renames == 0:
        assert torch.equal(PeftModel.from_pretrained(small(), tmp_path)(IDS), old(IDS))
    else:
        with pytest.raises(AdapterError, match="are not from one save"):
            PeftModel.from_pretrained(small(), tmp_path)
    old.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(small(), tmp_path)(IDS), old(IDS))


def test_both_checksums_cover_the_config(tmp_path):
    wrapped().save_pretrained(tmp_path)
    with safe_open(tmp_path / WEIGHTS_FILE, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["config"])["lora_alpha"] == 8
    metadata["config"] = metadata["config"].replace("8", "9")
    save_file(load_file(tmp_path / WEIGHTS_FILE), tmp_path / WEIGHTS_FILE, metadata)
    with pytest.raises(AdapterError, match="their SHA-256 differs"):
        PeftModel.from_pretrained(small(), tmp_path)


def test_saves_at_the_same_time_share_no_file(tmp_path):
    models, errors = [stir(get_peft_model(small(), ["c_attn"], 4, alpha)) for alpha in (4, 8)], []

    def save(model):
        try:
            for _ in range(20):
                model.save_pretrained(tmp_path)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=save, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and sorted(p.name for p in tmp_path.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    models[0].save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(small(), tmp_path)(IDS), models[0](IDS))


def test_two_writers_have_names_of_their_own(tmp_path):
    with replaced(tmp_path / "x") as (one,), replaced(tmp_path / "x") as (two,):
        assert one != two and one.parent == two.parent == tmp_path
        one.write_text("1")
        two.write_text("2")
    assert (tmp_path / "x").read_text() == "1" and len(list(tmp_path.iterdir())) == 1


def test_what_is_replaced_is_on_the_disk_before(tmp_path, monkeypatch):
    calls = []
    import lora_lib.tensor_files as files

    real = files.os.fsync, files.os.replace
    monkeypatch.setattr(files.os, "fsync", lambda fd: (calls.append("sync"), real[0](fd)))
    monkeypatch.setattr(files.os, "replace", lambda a, b: (calls.append(b.name), real[1](a, b)))
    with replaced(tmp_path / "a", tmp_path / "b") as parts:
        for part in parts:
            part.write_text("x")
    assert calls == ["sync", "sync", "a", "b"]


def test_a_digest_is_of_names_types_shapes_numbers_and_the_text():
    x = torch.arange(6.0).view(2, 3)
    files = [{"a": x}, {"b": x}, {"a": x.view(3, 2)}, {"a": x.view(torch.int32)}, {"a": x + 1}, {"a": x, "b": x}]
    assert len({digest(f) for f in files} | {digest({"a": x}, "text")}) == len(files) + 1
    assert digest({"a": x, "b": x + 1}) == digest({"b": x + 1, "a": x})


def test_a_full_disk_spoils_no_checkpoint_and_no_model(tmp_path):
    resource = pytest.importorskip("resource")  # of Unix: no file may grow beyond so many bytes
    weights = {"w": nn.Parameter(torch.ones(1000))}
    optimizer = torch.optim.AdamW(weights.values())
    weights["w"].sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path / "run", weights, optimizer, {"a": 1}, {"loss": [1.0]})
    tokenizer = load_pretrained("gpt2-mini")[1]
    save_pretrained_folder(small(), tokenizer, tmp_path / "model")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(OSError, match="run could not be saved to .*; an older one is unchanged"):
            save_checkpoint(tmp_path / "run", weights, optimizer, {"a": 1}, {"loss": [2.0]})
        with pytest.raises(OSError, match="model.safetensors and .* could not be saved"):
            save_pretrained_folder(small(seed=1), tokenizer, tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert load_checkpoint(tmp_path / "run", weights, optimizer, {"a": 1}) == ({"loss": [1.0]}, {})


def test_tensors_and_texts_come_back(tmp_path):
    x = torch.arange(6.0).view(2, 3)
    write_tensors(tmp_path / "x", {"t": x.T, "p": nn.Parameter(x)}, {"what": "two"})
    tensors, texts = read_tensors(tmp_path / "x")
    assert torch.equal(tensors["t"], x.T) and torch.equal(tensors["p"], x) and texts == {"what": "two"}
    (tmp_path / "y").write_bytes((tmp_path / "x").read_bytes()[:-1])
    with pytest.raises(ValueError, match="y is not a whole safetensors file"):
        read_tensors(tmp_path / "y")


def test_a_number_that_float32_cannot_hold_is_refused(tmp_path):
    wrapped().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    key = next(iter(tensors))
    tensors[key] = tensors[key].double()
    tensors[key][0, 0] = 1e300
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    with pytest.raises(AdapterError, match="float64 with numbers too large for float32 in it"):
        PeftModel.from_pretrained(small(), tmp_path)


# --- merging and weights --------------------------------------------------------------------------


def test_a_merge_that_is_not_finite_changes_nothing():
    model = wrapped()
    out = model(IDS)
    model.add_adapter("bad", LoRAConfig(["c_attn"], r=2))
    layers = list(model.lora_layers().values())
    layers[1].adapters["bad"].B.data[0, 0] = float("nan")
    model.set_adapter("bad")
    before = model(IDS)
    calls = [partial(merge, **how) for merge in (model.merge_adapter, model.merge_and_unload)
             for how in ({}, {"safe_merge": True}, {"safe_merge": False})]  # fmt: skip
    for call in calls:
        with pytest.raises(
            ValueError, match=r"h.1.attn.c_attn: merging \['bad'\] gives NaN or infinity in torch.float32"
        ):
            call()
        assert not any(layer.merged for layer in layers)
        assert torch.equal(model(IDS).isnan(), before.isnan())
    model.set_adapter("default")
    model.merge_adapter()
    merged = model(IDS)
    with pytest.raises(ValueError, match="gives NaN"):
        model.set_adapter("bad")  # it would be merged
    assert model.active_adapters == ["default"] and torch.equal(model(IDS), merged)
    model.unmerge_adapter()
    assert torch.equal(model(IDS), out)


def test_a_merge_that_overflows_half_precision_is_refused():
    layer = LoRALinear(nn.Linear(4, 4, dtype=torch.float16), 2)
    layer.adapters["default"].A.data.fill_(1000)
    layer.adapters["default"].B.data.fill_(1000)
    with pytest.raises(ValueError, match="gives NaN or infinity in torch.float16"):
        layer.merge()
    assert not layer.merged


def test_a_merged_state_dict_does_not_go_into_an_unmerged_model_nor_the_other_way_round():
    model, other = wrapped(), wrapped()
    plain = copy.deepcopy(model.state_dict())
    model.merge_adapter()
    merged = copy.deepcopy(model.state_dict())
    next(iter(merged.values())).add_(1)  # it would show if only this much were loaded
    stir(other, seed=9)
    before = other(IDS)
    for strict in (True, False):
        with pytest.raises(ValueError, match="these weights have an adapter merged in.*call unmerge_adapter"):
            other.load_state_dict(merged, strict=strict)
        with pytest.raises(ValueError, match="this model has an adapter merged in"):
            model.load_state_dict(plain, strict=strict)
    assert torch.equal(other(IDS), before)
    layer = other.lora_layers()["h.0.attn.c_attn"]
    with pytest.raises(ValueError, match="these weights have an adapter merged in"):
        layer.load_state_dict({**layer.state_dict(), "merged": torch.tensor(True)})
    other.load_state_dict(plain)
    model.unmerge_adapter()
    assert torch.equal(other(IDS), model(IDS))


def test_a_base_on_the_meta_device_is_said_to_be_so(tmp_path):
    wrapped().save_pretrained(tmp_path)
    with torch.device("meta"):
        base = GPT2Model(small().config)
    with pytest.raises(AdapterError, match="meta device, where tensors have no numbers: load its weights first"):
        PeftModel.from_pretrained(base, tmp_path)
    assert not any(isinstance(m, LoRALinear) for m in base.modules())
    model = get_peft_model(base, ["c_attn"], 4)  # to count, it will do
    with pytest.raises(ValueError, match="is on the meta device and has no numbers: nothing was saved"):
        model.save_pretrained(tmp_path / "new")
    with pytest.raises(ValueError, match="cannot merge on the meta device"):
        model.merge_adapter()


@pytest.mark.parametrize("conv", [False, True])
def test_a_layer_gives_the_weight_in_effect(conv):
    base = nn.Linear(6, 5)
    if conv:
        base = pytest.importorskip("transformers.pytorch_utils").Conv1D(5, 6)
    layer = LoRALinear(base, 2, 6)
    assert layer.weight is base.weight or torch.equal(layer.weight, base.weight)
    nn.init.normal_(layer.adapters["default"].B)
    change = 3 * layer.adapters["default"].A @ layer.adapters["default"].B
    torch.testing.assert_close(layer.weight, base.weight + (change if conv else change.T))
    assert layer.bias is base.bias and layer.weight.dtype == torch.float32
    layer.weight.sum().backward()
    assert layer.adapters["default"].A.grad is not None
    wanted = layer.weight.detach()
    layer.merge()
    assert layer.weight is base.weight and torch.equal(layer.weight, wanted)
    layer.unmerge()
    layer.activate([])
    assert layer.weight is base.weight
    assert LoRALinear(nn.Linear(4, 4, dtype=torch.bfloat16), 2).weight.dtype == torch.bfloat16


def test_pytorchs_encoder_in_evaluation_uses_the_adapter():
    def base():
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        return scatter(nn.TransformerEncoder(layer, 2))

    model, x = stir(get_peft_model(base(), ["linear1", "linear2"], 4, 8)), torch.randn(2, 5, 16)
    slow = model(x)  # A and B require gradients
    with torch.no_grad():  # so PyTorch takes a path of its own, which reads the weights
        fast, plain = model(x), base()(x)
        rows = model(x, adapter_names=["default", "__base__"])
    assert not torch.allclose(slow, plain, atol=0.05)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=0)
    torch.testing.assert_close(rows, torch.stack([slow[0], plain[1]]), atol=1e-5, rtol=0)


# --- adapters by name, and switching them off -----------------------------------------------------


def test_within_disable_adapter_the_model_is_the_base_whatever_is_asked():
    model = three_adapters()
    out = model(IDS)
    base = small()(IDS)
    with model.disable_adapter():
        assert torch.equal(model(IDS, adapter_names=["b", "c"]), base)
        for call, name in [
            (model.merge_and_unload, "merge_adapter"),
            (model.merge_adapter, "merge_adapter"),
            (lambda: model.set_adapter("b"), "set_adapter"),
            (model.enable_lora_training, "enable_lora_training"),
        ]:
            with pytest.raises(ValueError, match=f"are disabled here: call {name} outside of disable_adapter"):
                call()
            assert torch.equal(model(IDS), base) and not model.training
        with model.disable_adapter():
            assert torch.equal(model(IDS), base)
        with pytest.raises(ValueError, match="adapters are disabled here"):
            model.merge_adapter()
        model.delete_adapter("b")
    assert torch.equal(model(IDS), out) and model.active_adapters == ["default"]
    model.merge_adapter()
    with model.disable_adapter():
        model.delete_adapter("default")
        assert torch.equal(model(IDS), base)
    assert torch.equal(model(IDS), base) and model.active_adapters == []


NAMES = ["train", "eval", "type", "values", "update", "to", "training", "__base__", "pop", "half", "a.b", "", "a\n"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_cannot_be_is_refused_before_anything_changes(tmp_path, name):
    wrapped().save_pretrained(tmp_path)
    model, base = wrapped(), small()
    before, modules = model(IDS), list(model.modules())
    for call in (
        lambda: get_peft_model(base, ["c_attn"], adapter_name=name),
        lambda: PeftModel.from_pretrained(base, tmp_path, name),
        lambda: model.add_adapter(name, LoRAConfig(["c_fc"])),
        lambda: model.load_adapter(tmp_path, name),
        lambda: model.add_weighted_adapter(["default"], [1.0], name),
    ):
        with pytest.raises(ValueError, match="an adapter cannot be called|an adapter's name can have"):
            call()
    assert not any(isinstance(m, LoRALinear) for m in base.modules())
    assert list(model.modules()) == modules and torch.equal(model(IDS), before)


@pytest.mark.parametrize("name", ["A", "weight", "base", "default2", "active"])
def test_other_names_will_do(name):
    model = get_peft_model(small(), ["c_attn"], 2, adapter_name=name)
    assert torch.equal(pickle.loads(pickle.dumps(model))(IDS), model(IDS))

"""The wrapper: injection, counts, named adapters, files, and Hugging Face PEFT as the other side."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_models import ATTENTION_AND_MLP, IDS, SMALL, small, stir, three_adapters
from torch import nn

from lora_lib import GPT_CONFIG_124M, AdapterError, GPT2Config, GPT2Model, LoRAConfig, PeftModel, get_peft_model
from lora_lib.adapters.names import Names, base_sample
from lora_lib.adapters.variants import PiSSA


def test_the_original_guide_runs_word_for_word():
    base_model = GPT2Model(GPT_CONFIG_124M)
    wte = base_model.wte.weight.clone()
    model = get_peft_model(base_model, target_modules=["out_head"], lora_rank=16)
    model.enable_lora_training()
    assert model.get_nb_trainable_parameters() == (816_400, 124_439_808 + 816_400)
    ids = torch.randint(0, 50257, (1, 4))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(ids).sum().backward()
    optimizer.step()
    model.merge_and_unload()
    assert torch.equal(base_model.wte.weight, wte)
    assert not torch.equal(base_model.out_head.weight, wte)


def test_identity_at_initialisation_is_exact():
    model = small()
    before = model(IDS)
    wrapped = get_peft_model(model, "all-linear", 4)
    assert torch.equal(wrapped.eval()(IDS), before)


def test_only_a_and_b_of_the_active_adapter_train():
    model = get_peft_model(small(), ["c_attn"], 4).enable_lora_training()
    assert model.training
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {f"base_model.h.{i}.attn.c_attn.adapters.default.{m}" for i in (0, 1) for m in "AB"}
    assert model.get_nb_trainable_parameters()[0] == 2 * 4 * (24 + 72)
    model.add_adapter("other", LoRAConfig(["c_fc"], r=2))
    model.set_adapter("other")
    assert model.get_nb_trainable_parameters()[0] == 2 * 2 * (24 + 96)


def test_print_trainable_parameters_prints_what_it_counts(capsys):
    get_peft_model(small(), ["c_attn"], 4).print_trainable_parameters()
    total = sum(p.numel() for p in small().parameters()) + 768
    assert (
        capsys.readouterr().out
        == f"trainable params: 768 || all params: {total:,} || trainable%: {76800 / total:.4f}\n"
    )


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        (["c_attn"], 2),
        (["c_proj"], 4),
        (["attn.c_proj"], 2),
        (["h.1.mlp.c_fc"], 1),
        (["transformer.h.1.mlp.c_fc", "lm_head"], 2),
        (r"h\.0\..*", 4),
        ("all-linear", 8),
        (["out_head"], 1),
    ],
)
def test_targets(targets, count):
    assert len(get_peft_model(small(), targets, 2).lora_layers()) == count


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["c_attn", "c_prj"], "'c_prj' matches no layer; did you mean 'c_proj'.*c_attn, c_fc, c_proj, out_head"),
        (["h.7.mlp.c_fc"], "'h.7.mlp.c_fc' matches no layer; did you mean 'h.1.mlp.c_fc' or 'h.0.mlp.c_fc'"),
        (["proj"], "'proj' matches no layer"),  # the end of a name counts whole: c_proj is not meant
        ("c_attn", r"regular expression 'c_attn' matches no whole name.*pass a list: \['c_attn'\]"),
        ("(", "not a regular expression"),
        ([], "target_modules is empty"),
        (["ln_1"], "finds h.0.ln_1 .LayerNorm."),
        (["wte"], "finds wte .Embedding."),
    ],
)
def test_wrong_targets_raise_and_leave_the_model_alone(targets, message):
    model = small()
    with pytest.raises(ValueError, match=message):
        get_peft_model(model, targets, 2)
    assert get_peft_model(model, ["c_attn"], 2).lora_layers().keys() == {"h.0.attn.c_attn", "h.1.attn.c_attn"}


def test_a_bad_rank_leaves_the_model_alone():
    model = small()
    with pytest.raises(ValueError, match="h.0.attn.c_attn: rank must be from 1 to 24"):
        get_peft_model(model, ["c_attn"], 25)
    assert all(p.requires_grad for p in model.parameters()) and type(model.h[0].attn.c_attn) is nn.Linear


def test_a_second_injection_is_refused():
    model = small()
    wrapped = get_peft_model(model, ["c_attn"], 2)
    for again in (model, wrapped):
        with pytest.raises(ValueError, match="already has LoRA layers"):
            get_peft_model(again, ["c_fc"], 2)


def test_patterns_set_single_layers():
    model = get_peft_model(
        small(), ATTENTION_AND_MLP, 4, 8, rank_pattern={"h.0.attn.c_attn": 2}, alpha_pattern={"mlp.c_.*": 32}
    )
    shown = {
        name: (la.adapters["default"].A.shape[1], la.adapters["default"].scale)
        for name, la in model.lora_layers().items()
    }
    assert shown["h.0.attn.c_attn"] == (2, 4) and shown["h.1.attn.c_attn"] == (4, 2) and shown["h.1.mlp.c_fc"] == (4, 8)
    with pytest.raises(ValueError, match="names 'c_nothing'"):
        get_peft_model(small(), ["c_attn"], 4, rank_pattern={"c_nothing": 2})


def test_switch_disable_merge_and_delete_in_any_order_come_back_bit_for_bit():
    model = small()
    base_out, base_weights = model(IDS), {k: v.clone() for k, v in model.state_dict().items()}
    model = stir(get_peft_model(model, ["c_attn"], 4))
    model.add_adapter("b", LoRAConfig(["c_fc", "c_attn"], r=2))
    stir(model, "b", seed=2)
    a_out = model(IDS)
    model.set_adapter("b")
    b_out = model(IDS)
    assert not torch.allclose(a_out, b_out)
    model.merge_adapter()
    merged = model(IDS)
    torch.testing.assert_close(merged, b_out, atol=1e-5, rtol=1e-5)
    with model.disable_adapter():
        assert torch.equal(model(IDS), base_out)
    assert torch.equal(model(IDS), merged)  # still merged after the context
    model.set_adapter("default")
    torch.testing.assert_close(model(IDS), a_out, atol=1e-5, rtol=1e-5)
    model.unmerge_adapter()
    assert torch.equal(model(IDS), a_out)
    model.set_adapter(["default", "b"])
    assert model.active_adapters == ["default", "b"]
    model.delete_adapter("default")
    assert torch.equal(model(IDS), b_out)
    plain = model.unload()
    assert torch.equal(plain(IDS), base_out)
    assert all(torch.equal(v, base_weights[k]) for k, v in plain.state_dict().items())


def test_switching_copies_no_weights():
    model = three_adapters()
    before = [(name, p.data_ptr()) for name, p in model.named_parameters()]
    for name in ("b", ["c", "default"], [], "default"):
        model.set_adapter(name)
        assert [(name, p.data_ptr()) for name, p in model.named_parameters()] == before


def test_unknown_and_duplicate_names_are_refused():
    model = get_peft_model(small(), ["c_attn"], 4)
    for call in (model.set_adapter, model.delete_adapter):
        with pytest.raises(ValueError, match=r"no adapter called 'x'; there are \['default'\]"):
            call("x")
    with pytest.raises(ValueError, match="already an adapter called 'default'"):
        model.add_adapter("default", LoRAConfig(["c_fc"]))
    with pytest.raises(ValueError, match="letters, digits"):
        model.add_adapter("../x", LoRAConfig(["c_fc"]))


def test_enable_lora_training_unmerges():
    model = stir(get_peft_model(small(), ["c_attn"], 4))
    out = model(IDS)
    model.merge_adapter()
    assert torch.equal(model.enable_lora_training().eval()(IDS), out)


def test_merging_into_a_tied_head_keeps_the_logits():
    model = stir(get_peft_model(small(), ["out_head", "c_attn"], 4))
    before = model(IDS)
    plain = model.merge_and_unload()
    torch.testing.assert_close(plain(IDS), before, atol=1e-5, rtol=1e-5)
    assert not any("adapters" in name for name, _ in plain.named_parameters())


# --- files ----------------------------------------------------------------------------------------


def test_saved_and_loaded_again_bit_for_bit_and_small(tmp_path):
    model = stir(get_peft_model(small(), ATTENTION_AND_MLP, 4, 8, 0.1))
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(small(), tmp_path / "adapter")
    assert torch.equal(again(IDS), model(IDS))
    assert again.get_nb_trainable_parameters()[0] == 0 and not again.training
    again.enable_lora_training()
    assert again.get_nb_trainable_parameters() == model.get_nb_trainable_parameters()
    trainable = 4 * model.get_nb_trainable_parameters()[0]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size <= trainable + 4096
    again.load_adapter(tmp_path / "adapter", "twin")
    again.set_adapter("twin")
    assert torch.equal(again.eval()(IDS), model(IDS))


def test_any_module_can_be_wrapped():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    assert get_peft_model(model, ["0", "2"], 2).get_nb_trainable_parameters()[0] == 2 * (6 + 8) + 2 * (8 + 3)


def test_a_layer_in_two_places_is_adapted_in_the_first_as_in_peft():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    model.append(model[0])
    wrapped = get_peft_model(model, ["0"], 2)
    wrapped.add_adapter("b", LoRAConfig("all-linear", r=2))
    assert list(wrapped.lora_layers()) == ["0"] and model[0].base is model[2]
    assert wrapped.unload()[0] is model[2] and type(model[0]) is nn.Linear


def test_hugging_faces_own_methods_reach_the_adapter(tmp_path, monkeypatch):
    model = stir(get_peft_model(small(), ["c_attn"], 2))
    model.base_model.generation_config = "before"
    model.generation_config = "after"
    assert model.base_model.generation_config == "after" and model.active_adapter == "default"
    sent = []

    def create_repo(repo_id, **how):  # the Hub completes a name without a user
        sent.append((repo_id, how))
        return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}")

    monkeypatch.setattr("huggingface_hub.create_repo", create_repo)
    monkeypatch.setattr(
        "huggingface_hub.upload_folder",
        lambda repo_id, folder_path, **how: sent.append((repo_id, sorted(p.name for p in Path(folder_path).iterdir()))),
    )
    for name in ("me/mine", "mine"):
        model.push_to_hub(name, private=True)
        assert sent[-2] == (name, {"exist_ok": True, "private": True})
        assert sent[-1] == ("me/mine", ["adapter_config.json", "adapter_model.safetensors"])
    with pytest.raises(AttributeError, match="neither lora_lib's PeftModel nor the GPT2Model in it has 'nothing'"):
        _ = model.nothing


def test_an_adapter_is_opened_to_be_trained_and_from_a_subfolder(tmp_path):
    get_peft_model(small(), ["c_attn"], 2).save_pretrained(tmp_path / "in")
    model = PeftModel.from_pretrained(small(), tmp_path, is_trainable=True, subfolder="in", torch_device=None)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names and all(name.endswith((".A", ".B")) for name in names)
    model = PeftModel.from_pretrained(small(), tmp_path / "in")
    model.set_adapter("default")
    assert not any(p.requires_grad for p in model.parameters())


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ValueError, match="no linear layer in this Sequential"):
        get_peft_model(nn.Sequential(nn.Conv2d(1, 1, 1)), "all-linear", 2)


def test_a_spent_wrapper_says_so():
    model = get_peft_model(small(), ["c_attn"], 2)
    model.merge_and_unload()
    with pytest.raises(ValueError, match="no LoRA layer is left"):
        model.enable_lora_training()


def test_an_added_adapter_does_not_train_until_it_is_set():
    model = get_peft_model(small(), ["c_attn"], 2)
    before = model.get_nb_trainable_parameters()[0]
    model.add_adapter("b", LoRAConfig(["c_fc"], r=2))
    assert model.get_nb_trainable_parameters()[0] == before


@pytest.mark.parametrize("change", ["deeper", "shallower", "wider"])
def test_an_adapter_for_another_base_is_refused(tmp_path, change):
    get_peft_model(small(), ["c_attn"], 4).save_pretrained(tmp_path)
    other = {"deeper": {"n_layer": 3}, "shallower": {"n_layer": 1}, "wider": {"n_embd": 48}}[change]
    model = GPT2Model(GPT2Config(**{**vars(SMALL), **other}))
    with pytest.raises(AdapterError, match="does not fit this model"):
        PeftModel.from_pretrained(model, tmp_path)
    assert not any("adapters" in name for name, _ in model.named_modules())


def test_loading_into_a_model_in_evaluation_mode_switches_no_dropout_on(tmp_path):
    stir(get_peft_model(small(), ["c_attn"], 4, lora_dropout=0.5)).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(small(), tmp_path)
    model.load_adapter(tmp_path, "b")
    for name in ("default", "b"):
        model.set_adapter(name)
        assert not any(m.training for m in model.modules()) and torch.equal(model(IDS), model(IDS))
    wrapped = get_peft_model(small(), ["c_attn"], 4)
    assert not any(m.training for m in wrapped.modules())  # a model keeps the mode that it comes in


def test_the_defaults_are_those_of_the_page():
    model = get_peft_model(small())
    config = model.peft_config["default"]
    assert (config.target_modules, config.r, config.lora_alpha, config.lora_dropout) == ("all-linear", 8, 16, 0.0)
    assert (config.use_rslora, config.use_dora, config.init_lora_weights) == (False, False, True)
    assert LoRAConfig(["c_attn"]) == LoRAConfig(["c_attn"], 8, 16, 0.0, False, {}, {}, None)
    for layer in model.lora_layers().values():
        adapter = layer.adapters["default"]
        assert (adapter.rank, adapter.scale, adapter.dropout.p) == (8, 2, 0)


def test_dropout_and_rslora_reach_every_layer():
    model = get_peft_model(small(), ["c_attn"], 4, 8, 0.3, use_rslora=True)
    model.add_adapter("b", LoRAConfig(["c_attn"], lora_dropout=0.6))
    for layer in model.lora_layers().values():
        assert (layer.adapters["default"].dropout.p, layer.adapters["b"].dropout.p) == (0.3, 0.6)
        assert (layer.adapters["default"].scale, layer.adapters["b"].scale) == (4, 2)


def test_switching_a_frozen_model_leaves_it_frozen(tmp_path):
    stir(get_peft_model(small(), ["c_attn"], 4)).save_pretrained(tmp_path)
    base = small().train()
    model = PeftModel.from_pretrained(base, tmp_path)
    assert not any(module.training for module in model.modules())  # though the base was in training
    model.load_adapter(tmp_path, "b")
    for names in ("b", ["default", "b"], [], "default"):
        model.set_adapter(names)
        assert model.get_nb_trainable_parameters()[0] == 0


def test_a_spent_wrapper_is_not_wrapped_again():
    model = get_peft_model(small(), ["c_attn"], 2)
    plain = model.unload()
    with pytest.raises(
        ValueError, match="this is an empty PeftModel: wrap the model that merge_and_unload or unload returned"
    ):
        get_peft_model(model, ["c_attn"], 2)
    assert len(get_peft_model(plain, ["c_attn"], 2).lora_layers()) == 2


def test_a_second_adapter_on_all_layers_takes_none_inside_of_the_first():
    model = get_peft_model(small(), ["c_attn"], 2)
    model.add_adapter("b", LoRAConfig("all-linear"))
    layers = [name for name, layer in model.lora_layers().items() if "b" in layer.adapters]
    assert layers == list(get_peft_model(small(), "all-linear", 2).lora_layers())


def test_what_does_not_fit_is_told_by_three_names_of_each_side(tmp_path):
    def layers(names):
        return nn.ModuleDict({name: nn.Linear(4, 4) for name in names})

    get_peft_model(layers("abcd"), list("abcd"), 2).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "target_modules": list("wxyz")}))
    message = r"4 of the model's layers \['w', 'x', 'y'\], and weights for 4 that the model lacks \['a', 'b', 'c'\];"
    with pytest.raises(AdapterError, match=message):
        PeftModel.from_pretrained(layers("wxyz"), tmp_path)


def test_a_base_in_half_precision_is_known_though_its_smallest_weights_are_rounded_to_none(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4))
    nn.init.constant_(model[0].weight, 2e-8)  # float16 has nothing between 0 and 6e-8
    get_peft_model(copy.deepcopy(model), ["0"], 2).save_pretrained(tmp_path)
    assert not model.half()[0].weight.any()
    PeftModel.from_pretrained(model, tmp_path)


def test_the_sample_of_the_base_is_taken_where_it_always_was(tmp_path):
    """So that adapters saved years ago still know their base: these are the numbers of the first release."""
    from safetensors import safe_open

    model = nn.Sequential(nn.Linear(7, 9), nn.Linear(9, 5, bias=False))
    for layer in model:
        layer.weight.data = torch.arange(layer.weight.numel(), dtype=torch.float32).view_as(layer.weight)
    get_peft_model(model, ["0", "1"], 2).save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        sample = file.metadata()["base_sample"].split()
    assert sample == GOLDEN.split()
    large = nn.Linear(2000, 2000, bias=False)  # as many numbers as float32 can count
    large.weight.data = torch.arange(2000.0 * 2000).view(2000, 2000).T  # (d, k) is what is counted along
    golden_ratio = (5**0.5 - 1) / 2
    assert base_sample(Names(nn.Sequential(large)), ["0"]) == [
        int(i * golden_ratio % 1 * 2000 * 2000) for i in range(64)
    ]


GOLDEN = (
    "0 18 36 61 17 35 60 16 41 59 15 40 58 14 39 57 13 31 49 12 30 55 11 29 54 10 28 53 9 34 52 8 "
    "42 21 0 32 11 43 13 36 24 3 35 5 28 16 39 18 41 20 8 31 10 42 12 44 23 2 34 4 27 15 38 26"
)


# --- weighted sums of adapters --------------------------------------------------------------------


def deltas(model, name):
    own = {n: layer for n, layer in model.lora_layers().items() if name in layer.adapters}
    return {n: layer.adapters[name].delta().detach() for n, layer in own.items()}


@pytest.mark.parametrize("weights", [[1, 1, 1], [0.5, -2, 0.25], [-1, 0, 3]])
def test_a_weighted_adapter_changes_the_weights_by_the_weighted_sum(tmp_path, weights):
    model, names = three_adapters(), ["default", "b", "c"]
    model.add_weighted_adapter(names, weights, "sum")
    parts, found = [deltas(model, name) for name in names], deltas(model, "sum")
    assert found.keys() == parts[0].keys() | parts[1].keys() | parts[2].keys() and len(found) == 7
    for layer, delta in found.items():
        wanted = sum(w * part[layer] for w, part in zip(weights, parts) if layer in part)
        torch.testing.assert_close(delta, wanted, atol=2e-6, rtol=1e-5, msg=layer)
    model.set_adapter("sum")
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(small(), tmp_path)
    assert torch.equal(again(IDS), model(IDS))
    torch.testing.assert_close(model.merge_and_unload()(IDS), again(IDS), atol=1e-4, rtol=1e-4)


def test_an_adapter_that_is_opened_to_train_keeps_its_dropout_on_as_in_peft(tmp_path):
    get_peft_model(small(), ["c_attn"], 2, lora_dropout=0.5).save_pretrained(tmp_path)
    assert PeftModel.from_pretrained(small().train(), tmp_path, is_trainable=True).training
    assert not PeftModel.from_pretrained(small().train(), tmp_path).training


def test_of_two_opened_adapters_only_the_one_opened_to_train_is_trained(tmp_path):
    get_peft_model(small(), ["c_attn"], 2).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(small(), tmp_path)
    model.load_adapter(tmp_path, "mine", is_trainable=True)
    model.add_weighted_adapter(["default"], [2.0], "sum")
    model.add_adapter("new", LoRAConfig(["c_attn"], r=2))
    for name, trained in {"mine": {"mine"}, "default": set(), "sum": set(), "new": {"new"}}.items():
        model.set_adapter(name)
        assert {n.split(".")[-2] for n, p in model.named_parameters() if p.requires_grad} == trained
    model.set_adapter("default")
    model.enable_lora_training().set_adapter("mine")
    model.set_adapter("default")
    assert all(p.requires_grad for n, p in model.named_parameters() if "default" in n)
    model.delete_adapter("sum")
    model.add_adapter("sum", LoRAConfig(["c_attn"], r=2))
    model.set_adapter("sum")
    assert all(p.requires_grad for n, p in model.named_parameters() if ".sum." in n)


def test_an_adapter_without_a_layer_left_cannot_be_summed():
    model = get_peft_model(small(), ["h.0.attn.c_attn"], 2)
    model.base_model.h[0].attn.c_attn = nn.Linear(24, 72)
    with pytest.raises(ValueError, match="no layer of these adapters is left"):
        model.add_weighted_adapter(["default"], [1], "sum")


def test_a_sum_of_a_kind_that_starts_from_the_base_is_a_plain_adapter(tmp_path):
    config = LoRAConfig(["c_attn"], r=1, adapter_cls=PiSSA, init_lora_weights="pissa")
    model = get_peft_model(small(), config)
    stir(model)
    model.add_weighted_adapter(["default"], [1], "sum")
    model.set_adapter("sum")
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(model.unload(), tmp_path)(IDS), model(IDS))


def test_one_adapter_at_weight_1_is_the_identity_bit_for_bit():
    model = three_adapters()
    for name in ("default", "b", "c"):
        model.set_adapter(name)
        before = model(IDS)
        model.add_weighted_adapter([name], [1], name + "2")
        assert torch.equal(model(IDS), before) and model.active_adapters == [name]  # nothing switches by itself
        model.set_adapter(name + "2")
        assert torch.equal(model(IDS), before)
        model.add_weighted_adapter([name, name], [1.5, -1.5], name + "0")
        model.set_adapter(name + "0")
        with model.disable_adapter():
            base = model(IDS)
        torch.testing.assert_close(model(IDS), base, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("inputs", "outputs"), [(6, 40), (40, 6), (6, 6)])
def test_a_sum_beyond_the_layers_size_is_still_the_sum(inputs, outputs):
    model = get_peft_model(nn.Sequential(nn.Linear(inputs, outputs)), ["0"], 4)
    model.add_adapter("b", LoRAConfig(["0"], r=5))
    stir(stir(model), "b", 2)
    model.add_weighted_adapter(["default", "b"], [1, -0.5], "sum")
    assert model.peft_config["sum"].r == 6 == model.lora_layers()["0"].adapters["sum"].A.shape[1]
    wanted = deltas(model, "default")["0"] - 0.5 * deltas(model, "b")["0"]
    torch.testing.assert_close(deltas(model, "sum")["0"], wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rank", [3, 22])  # with 22 the ranks add up to more than the layer has
def test_a_sum_keeps_dropout_and_precision(rank):
    model = get_peft_model(small().double(), ["c_attn"], 4, 8, 0.25)
    model.add_adapter("b", LoRAConfig(["c_attn"], rank, lora_dropout=0.5))
    model.add_weighted_adapter(["default", "b"], [1, 2], "sum")
    for layer in model.lora_layers().values():
        made = layer.adapters["sum"]
        assert made.dropout.p == 0.25 and made.A.dtype == made.B.dtype == torch.float64
    assert model.peft_config["sum"].lora_dropout == 0.25


def test_a_sum_can_be_trained_on():
    model = three_adapters()
    model.add_weighted_adapter(["default", "b"], [0.5, 0.5], "sum")
    model.set_adapter("sum")
    model.enable_lora_training()
    model(IDS).sum().backward()
    assert model.lora_layers()["h.0.attn.c_attn"].adapters["sum"].A.grad.any()


# --- a batch whose rows use different adapters ------------------------------------------------------


def test_each_row_of_a_batch_has_its_own_adapter():
    model, ids = three_adapters(), torch.randint(0, 97, (5, 6))
    rows = ["c", "__base__", "default", "b", "c"]
    mixed = model(ids, adapter_names=rows)
    assert torch.equal(model(ids=ids, adapter_names=rows), mixed)
    for i, name in enumerate(rows):
        model.set_adapter([] if name == "__base__" else name)
        torch.testing.assert_close(mixed[i], model(ids[i : i + 1])[0], atol=1e-5, rtol=1e-5)
    model.set_adapter("b")
    together = model(ids, adapter_names=["b"] * 5)
    torch.testing.assert_close(model(ids), together, atol=1e-5, rtol=1e-5)  # and the next call has its own again


def test_rows_generate_with_their_own_adapter():
    model, ids = three_adapters(), torch.randint(0, 97, (4, 5))
    rows = ["b", "default", "__base__", "c"]
    mixed = model.generate(ids, 8, adapter_names=rows, prompt_lengths=[5, 3, 4, 5])
    for i, (name, length) in enumerate(zip(rows, [5, 3, 4, 5])):
        model.set_adapter([] if name == "__base__" else name)
        assert torch.equal(mixed[i, : length + 8], model.generate(ids[i : i + 1, :length], 8)[0])
    assert len({tuple(row.tolist()) for row in mixed[:, 5:]}) > 1


def test_rows_that_cannot_be_served_are_refused_and_the_next_call_is_as_before():
    model = three_adapters()
    before = model(IDS)
    for names, message in [
        (["b"], "names 1 adapters for a batch of 2 rows"),
        (["b", "x"], "no adapter called 'x'"),
        ("b", "must be a list with one name for each row, got 'b'"),
        ([], "must be a list with one name"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(IDS, adapter_names=names)
    with pytest.raises(ValueError, match="for inference"):
        model.train()(IDS, adapter_names=["b", "b"])
    model.eval().merge_adapter()
    with pytest.raises(ValueError, match="call unmerge_adapter first"):
        model(IDS, adapter_names=["b", "b"])
    model.unmerge_adapter()
    assert torch.equal(model(IDS), before)


def test_a_factor_that_is_computed_is_saved_as_it_is(tmp_path):
    model = three_adapters()
    before = model(IDS)
    for layer in model.lora_layers().values():
        if "default" in layer.adapters:
            nn.utils.parametrizations.weight_norm(layer.adapters["default"], "A")
    model.save_pretrained(tmp_path, "default")
    torch.testing.assert_close(PeftModel.from_pretrained(three_adapters().unload(), tmp_path)(IDS), before)


# --- the base that an adapter was made for --------------------------------------------------------


def test_an_adapter_notices_a_base_with_other_weights(tmp_path):
    model = stir(get_peft_model(small(), ["c_attn"], 4))
    model.save_pretrained(tmp_path)
    other, barely = small(seed=1), small()
    with torch.no_grad():
        barely.h[1].attn.c_attn.weight *= 1.01  # no more than what some further training would do
    for base in (other, barely):
        with pytest.raises(AdapterError, match="other weights than the one it was made for .check_base=False"):
            PeftModel.from_pretrained(base, tmp_path)
        assert not any("adapters" in name for name, _ in base.named_modules())
    taken = PeftModel.from_pretrained(barely, tmp_path, check_base=False)
    assert taken.active_adapters == ["default"]
    wrapped = get_peft_model(small(seed=1), ["c_attn"], 4)
    with pytest.raises(AdapterError, match="other weights"):
        wrapped.load_adapter(tmp_path, "b")
    wrapped.load_adapter(tmp_path, "b", check_base=False)


@pytest.mark.parametrize("made_in", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("opened_in", [torch.float32, torch.float16, torch.bfloat16])
def test_the_same_base_in_another_precision_is_the_same_base(tmp_path, made_in, opened_in):
    model = get_peft_model(small().to(made_in), "all-linear", 4)
    model.save_pretrained(tmp_path)
    opened = PeftModel.from_pretrained(small().to(made_in).to(opened_in), tmp_path)
    stir(opened).merge_adapter()  # a merged weight stands in for the base's own, which is what counts
    opened.load_adapter(tmp_path, "b")


def test_of_a_quantised_base_only_embeddings_and_head_are_compared(tmp_path):
    def quantised(seed=0):
        base = small(seed)
        for block in base.h:
            block.attn.c_attn.weight = nn.Parameter(torch.zeros(72, 24, dtype=torch.int8), requires_grad=False)
        return base

    get_peft_model(small(), ["c_attn"], 4).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="the base has other weights"):
        PeftModel.from_pretrained(quantised(seed=1), tmp_path)
    base = quantised()
    assert PeftModel.from_pretrained(base, tmp_path).active_adapters == ["default"]


# --- names that are the end of other names --------------------------------------------------------


def test_a_layer_whose_name_is_the_end_of_another_is_saved_exactly(tmp_path):
    def base():
        torch.manual_seed(0)
        inner = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        return nn.Sequential(nn.Linear(6, 6), inner, nn.Linear(6, 6))

    model = stir(get_peft_model(base(), "0|2", 2, rank_pattern={"2": 3}))
    assert model.lora_layers().keys() == {"0", "2"}
    model.save_pretrained(tmp_path / "a")
    again, x = PeftModel.from_pretrained(base(), tmp_path / "a"), torch.randn(4, 6)
    assert torch.equal(again(x), model(x)) and again.lora_layers().keys() == {"0", "2"}
    ranks = {"1.0": 1, "1.2": 2, "0": 4, "2": 3}
    model = stir(get_peft_model(base(), r"(1\.)?[02]", 2, 5, rank_pattern=ranks, alpha_pattern={"1.2": 1, "0": 4}))
    model.save_pretrained(tmp_path / "b")
    again = PeftModel.from_pretrained(base(), tmp_path / "b")
    assert torch.equal(again(x), model(x))
    assert [la.adapters["default"].A.shape[1] for la in again.lora_layers().values()] == [4, 1, 2, 3]

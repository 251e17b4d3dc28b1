"""The wrapper: injection, counts, named adapters, files, and Hugging Face PEFT as the other side."""

import json

import pytest
import torch
from torch import nn

from lora_lib import (
    GPT_CONFIG_124M,
    AdapterError,
    GPT2Config,
    GPT2Model,
    LoRAConfig,
    PeftModel,
    get_peft_model,
    load_pretrained,
)

SMALL = GPT2Config(
    vocab_size=97, n_positions=32, n_embd=24, n_head=3, n_layer=2, embd_pdrop=0, resid_pdrop=0, attn_pdrop=0
)
IDS = torch.arange(1, 13).view(2, 6)
ATTENTION_AND_MLP = ["c_attn", "c_proj", "c_fc"]


def small(seed: int = 0) -> GPT2Model:
    torch.manual_seed(seed)
    model = GPT2Model(SMALL).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    return model


def stir(model: PeftModel, name: str = "default", seed: int = 1) -> PeftModel:
    """Give an adapter a B that is not zero, as training would."""
    torch.manual_seed(seed)
    for layer in model.lora_layers().values():
        if name in layer.adapters:
            nn.init.normal_(layer.adapters[name].B, std=0.2)
    return model.eval()


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


@pytest.fixture
def hf_small(tmp_path):
    """The same small GPT-2 as Hugging Face's class: returns a function that makes a new one."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=97, n_positions=32, n_embd=24, n_head=3, n_layer=2, embd_pdrop=0, resid_pdrop=0, attn_pdrop=0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.2)
    theirs.save_pretrained(tmp_path / "base")
    return lambda: transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base").eval()


@pytest.mark.filterwarnings("ignore")  # PEFT and transformers warn about each other
@pytest.mark.parametrize("targets", [ATTENTION_AND_MLP, "all-linear", r"h\.\d\.attn\..*", ["lm_head", "c_attn"]])
def test_peft_opens_ours_and_we_open_theirs(tmp_path, hf_small, targets):
    peft = pytest.importorskip("peft")
    ours = stir(get_peft_model(load_pretrained(tmp_path / "base")[0], targets, 4, 8))
    ours.save_pretrained(tmp_path / "ours")
    opened = peft.PeftModel.from_pretrained(hf_small(), tmp_path / "ours").eval()
    torch.testing.assert_close(opened(IDS).logits, ours(IDS), atol=1e-5, rtol=1e-5)
    # and back: what PEFT saves of it opens here
    opened.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    back = PeftModel.from_pretrained(load_pretrained(tmp_path / "base")[0], tmp_path / "theirs")
    assert torch.equal(back(IDS), ours(IDS))


@pytest.mark.filterwarnings("ignore")
def test_the_wrapper_works_on_hugging_faces_own_model(tmp_path, hf_small):
    peft = pytest.importorskip("peft")
    wrapped = stir(get_peft_model(hf_small(), ["c_attn", "c_proj"], 4, 8))  # Conv1D layers
    wrapped.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    opened = peft.PeftModel.from_pretrained(hf_small(), tmp_path / "adapter").eval()
    torch.testing.assert_close(opened(IDS).logits, wrapped(IDS).logits, atol=1e-5, rtol=1e-5)
    ours = PeftModel.from_pretrained(load_pretrained(tmp_path / "base")[0], tmp_path / "adapter")
    torch.testing.assert_close(ours(IDS), wrapped(IDS).logits, atol=1e-5, rtol=1e-5)


def test_any_module_can_be_wrapped():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    assert get_peft_model(model, ["0", "2"], 2).get_nb_trainable_parameters()[0] == 2 * (6 + 8) + 2 * (8 + 3)


def test_a_layer_that_two_names_share_is_adapted_once_in_both_places():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    model.append(model[0])
    wrapped = get_peft_model(model, ["2"], 2)
    assert model[0] is model[2] and len(wrapped.lora_layers()) == 1
    assert wrapped.unload()[0] is model[2] and type(model[0]) is nn.Linear


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

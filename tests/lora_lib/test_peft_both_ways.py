"""What we save, Hugging Face PEFT opens, and the other way round: the same logits, or a refusal by name."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from small_models import ATTENTION_AND_MLP, IDS, save_hugging_face_gpt2, scatter, stir, three_adapters
from torch import nn
from torch.nn import functional as F

from lora_lib import AdapterError, LoRAConfig, PeftModel, get_peft_model, load_model, load_pretrained
from lora_lib.gpt2 import MINI_FOLDER, generate_text

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT and transformers warn about each other


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small GPT-2's folder, which both libraries open."""
    return save_hugging_face_gpt2(tmp_path_factory.mktemp("base"))


def theirs(folder):
    return transformers.GPT2LMHeadModel.from_pretrained(folder).eval()


def ours(folder):
    return load_model(folder)


def assert_same(logits, wanted, within=1e-6):
    """Equal to 1e-6 of the largest logit: float32 itself is no finer."""
    assert (logits - wanted).abs().max() <= within * wanted.abs().max()


def stir_theirs(model, seed=5):
    torch.manual_seed(seed)
    for name, p in model.named_parameters():
        if "lora_B" in name or "lora_magnitude" in name or "modules_to_save.default" in name:
            with torch.no_grad():
                p.add_(torch.randn_like(p), alpha=0.2)
    return model.eval()


# --- ours opens there -----------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [ATTENTION_AND_MLP, "all-linear", r"h\.\d\.attn\..*", ["lm_head", "c_attn"]])
def test_peft_opens_ours_and_we_open_what_it_saves_of_it(tmp_path, base, targets):
    model = stir(get_peft_model(ours(base), targets, 4, 8))
    model.save_pretrained(tmp_path / "ours")
    opened = peft.PeftModel.from_pretrained(theirs(base), tmp_path / "ours").eval()
    assert_same(opened(IDS).logits, model(IDS))
    assert opened.peft_config["default"].base_model_name_or_path is None
    opened.save_pretrained(tmp_path / "theirs")
    assert torch.equal(PeftModel.from_pretrained(ours(base), tmp_path / "theirs")(IDS), model(IDS))


@pytest.mark.parametrize("name", ["default", "b", "c", "sum"])
def test_patterns_rslora_the_head_and_a_weighted_sum_open_in_peft(tmp_path, base, name):
    model = three_adapters()
    model.base_model.load_state_dict(lora_state(model, ours(base)), strict=False)
    model.add_weighted_adapter(["default", "b", "c"], [1, -0.5, 2], "sum")
    model.set_adapter(name)
    model.save_pretrained(tmp_path)
    opened = peft.PeftModel.from_pretrained(theirs(base), tmp_path).eval()
    assert_same(opened(IDS).logits, model(IDS), within=3e-6)


def lora_state(model, source):
    """The weights of `source` under the names that they have once `model` is wrapped."""
    wrapped = set(model.lora_layers())
    return {
        (n.rpartition(".")[0] + ".base." + n.rpartition(".")[2] if n.rpartition(".")[0] in wrapped else n): v
        for n, v in source.state_dict().items()
    }


def test_merged_weights_are_those_of_a_merge_by_hand_from_the_file(tmp_path, base):
    model = stir(get_peft_model(ours(base), ATTENTION_AND_MLP, 4, 6))
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    opened = peft.PeftModel.from_pretrained(theirs(base), tmp_path).merge_and_unload()
    merged = PeftModel.from_pretrained(ours(base), tmp_path).merge_and_unload()
    plain = ours(base)
    for name in ("h.0.attn.c_attn", "h.0.attn.c_proj", "h.1.mlp.c_fc", "h.1.mlp.c_proj"):
        key = f"base_model.model.transformer.{name}.lora_"
        a, b = tensors[key + "A.weight"].T, tensors[key + "B.weight"].T
        by_hand = plain.get_submodule(name).weight + (6 / 4 * a @ b).T
        assert torch.equal(merged.get_submodule(name).weight, by_hand)
        there = opened.transformer.get_submodule(name).weight.T
        torch.testing.assert_close(there, by_hand, atol=1e-6, rtol=1e-6)
    assert_same(opened(IDS).logits, merged(IDS))


def test_the_wrapper_works_on_hugging_faces_gpt2(tmp_path, base):
    wrapped = stir(get_peft_model(theirs(base), ["c_attn", "c_proj"], 4, 8))  # Conv1D layers
    wrapped.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    opened = peft.PeftModel.from_pretrained(theirs(base), tmp_path).eval()
    assert_same(opened(IDS).logits, wrapped(IDS).logits)
    assert_same(PeftModel.from_pretrained(ours(base), tmp_path)(IDS), wrapped(IDS).logits)


def test_the_fingerprint_is_the_same_on_a_linear_and_on_a_conv1d_base(tmp_path, base):
    samples = []
    for model in (ours(base), theirs(base)):
        get_peft_model(model, ["c_attn", "c_proj", "lm_head"], 4).save_pretrained(tmp_path)
        with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
            samples.append(file.metadata()["base_sample"])
    assert samples[0] == samples[1] and len(samples[0].split()) == 64


# --- theirs opens here ----------------------------------------------------------------------------


SETTINGS = {
    "a list": {"target_modules": ["c_attn"]},
    "a regular expression": {"target_modules": r".*\.h\.1\.(attn|mlp)\.c_proj"},
    "all-linear": {"target_modules": "all-linear"},
    "the head": {"target_modules": ["c_fc", "lm_head"]},  # PEFT then saves the whole base matrix too
    "rsLoRA": {"target_modules": ["c_attn", "c_fc"], "use_rslora": True},
    "patterns": {
        "target_modules": ["c_attn", "c_proj"],
        "rank_pattern": {"h.0.attn.c_attn": 2, "^transformer.h.1.mlp.c_proj": 5},
        "alpha_pattern": {"attn.c_.*": 24},
    },
    "a random start": {"target_modules": ["c_attn"], "init_lora_weights": "gaussian"},
    "dropout": {"target_modules": ["c_attn"], "lora_dropout": 0.3},
    "a list less a list": {"target_modules": ["c_attn", "c_fc"], "exclude_modules": ["h.0.attn.c_attn"]},
    "all less a regular expression": {"target_modules": "all-linear", "exclude_modules": r".*\.1\..*"},
    "some layers": {"target_modules": ["c_attn", "c_fc"], "layers_to_transform": [1]},
    "one layer, counted behind a name": {"target_modules": ["c_attn"], "layers_to_transform": 0, "layers_pattern": "h"},
    "modules in full": {"target_modules": ["c_attn"], "modules_to_save": ["ln_f", "c_fc", "wpe"]},
    "the head in full": {"target_modules": "all-linear", "modules_to_save": ["lm_head"]},
    "a rank above the layer's size": {"target_modules": ["c_attn", "c_proj"], "rank_pattern": {"c_attn": 40}},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("onto", [ours, theirs])
def test_we_open_what_peft_saves(tmp_path, base, settings, onto):
    config = peft.LoraConfig(r=4, lora_alpha=10, task_type="CAUSAL_LM", **settings)
    made = stir_theirs(peft.get_peft_model(theirs(base), config))
    wanted = made(IDS).logits
    made.save_pretrained(tmp_path)
    opened = PeftModel.from_pretrained(onto(base), tmp_path)
    logits = opened(IDS)
    assert_same(logits if onto is ours else logits.logits, wanted)
    opened.save_pretrained(tmp_path / "again")  # and what we save of it means the same to PEFT
    back = peft.PeftModel.from_pretrained(theirs(base), tmp_path / "again").eval()
    assert_same(back(IDS).logits, wanted)


REFUSED = {
    "bias": {"bias": "lora_only"},
    "lora_bias": {"lora_bias": True},
}


@pytest.mark.parametrize(("field", "settings"), REFUSED.items(), ids=REFUSED)
def test_options_of_peft_that_we_do_not_have_are_refused_by_name(tmp_path, base, field, settings):
    config = peft.LoraConfig(r=4, target_modules=["c_attn"], task_type="CAUSAL_LM", **settings)
    peft.get_peft_model(theirs(base), config).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=rf"adapter_config.json: {field} = .* is not supported here"):
        PeftModel.from_pretrained(ours(base), tmp_path)


def test_a_head_saved_with_the_base_matrix_of_another_model_is_refused(tmp_path, base):
    config = peft.LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM")
    peft.get_peft_model(theirs(base), config).save_pretrained(tmp_path)
    assert "base_model.model.lm_head.base_layer.weight" in load_file(tmp_path / "adapter_model.safetensors")
    other = scatter(ours(base), seed=9)
    with pytest.raises(AdapterError, match="the base has other weights"):
        PeftModel.from_pretrained(other, tmp_path)
    PeftModel.from_pretrained(ours(base).half(), tmp_path)


# --- whole models ---------------------------------------------------------------------------------


def test_gpt2_mini_writes_the_same_text_in_transformers_with_peft(tmp_path):
    model, tokenizer = load_pretrained("gpt2-mini")
    plain = transformers.GPT2LMHeadModel.from_pretrained(MINI_FOLDER, dtype=torch.float32).eval()
    ids = torch.tensor([tokenizer.encode("Once upon a time there was")])
    assert_same(plain(ids).logits, model(ids))
    wrapped = get_peft_model(model, "all-linear", 4, 8)
    torch.manual_seed(0)
    for layer in wrapped.lora_layers().values():
        nn.init.normal_(layer.adapters["default"].B, std=0.01)
    wrapped.save_pretrained(tmp_path)
    opened = peft.PeftModel.from_pretrained(plain, tmp_path).eval()
    logits = wrapped.eval()(ids)
    assert_same(opened(ids).logits, logits)
    with wrapped.disable_adapter():
        assert not torch.allclose(wrapped(ids), logits, atol=0.1)
    torch.testing.assert_close(opened.double()(ids).logits, wrapped.double()(ids), atol=1e-10, rtol=0)
    opened.float(), wrapped.float()
    theirs = opened.generate(input_ids=ids, max_new_tokens=40, do_sample=False, pad_token_id=tokenizer.eot_token)
    new = theirs[0, ids.shape[1] :].tolist()
    new = new[: new.index(tokenizer.eot_token)] if tokenizer.eot_token in new else new
    assert generate_text(wrapped, tokenizer, "Once upon a time there was", 40) == [tokenizer.decode(new)]


def llama():
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return scatter(transformers.LlamaForCausalLM(config))


@pytest.mark.parametrize(
    ("make", "targets"), [("gpt2", ["c_attn", "c_fc"]), ("llama", ["q_proj", "v_proj", "up_proj"])]
)
def test_other_peoples_models_train_generate_save_and_open_in_peft(tmp_path, base, make, targets):
    def fresh():
        return llama() if make == "llama" else theirs(base)

    model, plain = get_peft_model(fresh(), targets, 4, 8).enable_lora_training(), fresh()
    optimizer, losses = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05), []
    for _ in range(25):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(IDS).logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    model.eval().save_pretrained(tmp_path)
    opened = peft.PeftModel.from_pretrained(fresh(), tmp_path).eval()
    assert_same(opened(IDS).logits, model(IDS).logits)
    written = model.generate(input_ids=IDS, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(opened.generate(input_ids=IDS, max_new_tokens=6, do_sample=False, pad_token_id=0), written)
    model.add_adapter("b", LoRAConfig(targets, r=2))
    stir(model, "b")
    rows = model.generate(
        input_ids=IDS, max_new_tokens=6, do_sample=False, pad_token_id=0, adapter_names=["default", "__base__"]
    )
    assert torch.equal(rows[0], written[0])
    assert torch.equal(rows[1:], plain.generate(input_ids=IDS[1:], max_new_tokens=6, do_sample=False, pad_token_id=0))
    logits = model(IDS).logits
    assert_same(model.merge_and_unload()(IDS).logits, logits, within=3e-6)

"""Models of other people: what we put in PEFT opens, whatever their task, and transformers' Trainer trains it."""

import copy
import json

import pytest
import torch
from small_models import IDS, scatter, small, stir
from torch import nn

from lora_lib import AdapterError, LoRAConfig, PeftModel, get_peft_model

peft = pytest.importorskip("peft")
hf = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")

BERT = {
    "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32
}  # fmt: skip
TOKENS = {"input_ids": IDS}
PIXELS = {"pixel_values": torch.linspace(-1, 1, 384).view(2, 3, 8, 8)}


def t5():
    return hf.T5ForConditionalGeneration(
        hf.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
    )


def distilbert():
    config = hf.DistilBertConfig(vocab_size=64, dim=16, n_layers=1, n_heads=2, hidden_dim=32, num_labels=3)
    return hf.DistilBertForSequenceClassification(config)


def vit():
    config = hf.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )
    return hf.ViTForImageClassification(config)


def gpt2(head=hf.GPT2LMHeadModel):
    return head(
        hf.GPT2Config(
            vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=16, pad_token_id=0, bos_token_id=0,
            eos_token_id=0, embd_pdrop=0, resid_pdrop=0, attn_pdrop=0,
        )
    )  # fmt: skip


MODELS = {
    "a classifier": (lambda: hf.BertForSequenceClassification(hf.BertConfig(**BERT, num_labels=3)), TOKENS, "SEQ_CLS"),
    "a tagger": (lambda: hf.BertForTokenClassification(hf.BertConfig(**BERT, num_labels=5)), TOKENS, "TOKEN_CLS"),
    "two modules in full": (distilbert, TOKENS, "SEQ_CLS"),  # its pre_classifier ends as classifier does
    "a causal classifier": (lambda: gpt2(hf.GPT2ForSequenceClassification), TOKENS, "SEQ_CLS"),
    "questions": (lambda: hf.BertForQuestionAnswering(hf.BertConfig(**BERT)), TOKENS, "QUESTION_ANS"),
    "features": (lambda: hf.BertModel(hf.BertConfig(**BERT)), TOKENS, "FEATURE_EXTRACTION"),
    "masked": (lambda: hf.BertForMaskedLM(hf.BertConfig(**BERT)), TOKENS, None),
    "images": (vit, PIXELS, None),
    "two stacks": (t5, {**TOKENS, "labels": IDS}, "SEQ_2_SEQ_LM"),
    "two stacks, unsaid": (t5, {**TOKENS, "labels": IDS}, None),
    "causal": (gpt2, TOKENS, "CAUSAL_LM"),
}
HEAD = {"SEQ_CLS": 1, "TOKEN_CLS": 1, "QUESTION_ANS": 1}


def answer(model, inputs):
    with torch.no_grad():
        out = model(**inputs)
    return next(out[key] for key in ("logits", "start_logits", "last_hidden_state") if key in out)


@pytest.mark.parametrize(("make", "inputs", "task"), MODELS.values(), ids=MODELS)
def test_peft_opens_the_adapter_of_any_model_and_we_open_what_it_saves(tmp_path, make, inputs, task):
    def fresh():
        return scatter(make())

    settings = {"task_type": task, "base_model_name_or_path": "someone/tiny"}
    if make is vit:
        settings["exclude_modules"] = ["classifier"]  # rank 4 is too much for its two labels
    model = get_peft_model(fresh(), "all-linear", 4, 8, **settings)
    in_full = [(n, p) for n, p in model.named_parameters() if p.requires_grad and n[-1] not in "AB"]
    assert bool(in_full) is (task in HEAD)
    stir(model)
    for _, p in in_full:
        p.data += 0.1
    out = answer(model, inputs)
    assert not torch.allclose(out, answer(fresh(), inputs), atol=0.02)
    model.save_pretrained(tmp_path / "ours")
    values = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert values.get("task_type") == task and values["base_model_name_or_path"] == "someone/tiny"
    assert torch.equal(answer(PeftModel.from_pretrained(fresh(), tmp_path / "ours"), inputs), out)
    opened = peft.PeftModel.from_pretrained(fresh(), tmp_path / "ours").eval()
    torch.testing.assert_close(answer(opened, inputs), out, atol=1e-6, rtol=1e-5)
    opened.save_pretrained(tmp_path / "theirs")
    again = PeftModel.from_pretrained(fresh(), tmp_path / "theirs")
    assert torch.equal(answer(again, inputs), out)
    assert again.peft_config["default"].task_type == task
    with again.disable_adapter():
        assert torch.equal(answer(again, inputs), answer(fresh(), inputs))
    torch.testing.assert_close(answer(again.merge_and_unload(), inputs), out, atol=1e-5, rtol=1e-4)
    assert torch.equal(answer(model.unload(), inputs), answer(fresh(), inputs))


class OfNoFamily(nn.Sequential):
    """A model of one's own that generates as transformers' do, and whose config says nothing of stacks."""

    def __init__(self):
        super().__init__(nn.Linear(4, 4))

    def prepare_inputs_for_generation(self, ids):
        return {"input": ids}


def test_a_task_is_guessed_for_causal_models_alone(tmp_path):
    for make, wanted in ((gpt2, "CAUSAL_LM"), (t5, None), (lambda: hf.BertModel(hf.BertConfig(**BERT)), None)):
        get_peft_model(make(), "all-linear", 2).save_pretrained(tmp_path)
        values = json.loads((tmp_path / "adapter_config.json").read_text())
        assert values.get("task_type") == wanted and values["inference_mode"] is True
    for make in (small, OfNoFamily):
        get_peft_model(make(), "all-linear", 2).save_pretrained(tmp_path)
        assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"


@pytest.mark.parametrize("make", [gpt2, t5])
@pytest.mark.parametrize("how", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_rows_keep_their_adapter_in_a_search_with_beams(make, how):
    torch.manual_seed(0)
    model = scatter(get_peft_model(make(), "all-linear", 2).eval())
    model.add_adapter("b", LoRAConfig("all-linear", r=2))
    model.set_adapter("b")
    scatter(model)
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(IDS)}
    names, count = ["default", "b"], how.get("num_return_sequences", 1)
    mixed = model.generate(input_ids=IDS, adapter_names=names, **settings, **how)
    for i, name in enumerate(names):
        model.set_adapter(name)
        alone = model.generate(input_ids=IDS, **settings, **how)
        assert torch.equal(mixed[i * count : (i + 1) * count], alone[i * count : (i + 1) * count])
    with pytest.raises(ValueError, match="names 1 adapters for a batch of"):
        model.generate(input_ids=IDS, adapter_names=["b"], **settings, **how)


def test_t5_reads_its_layers_weights_and_still_generates_row_by_row():
    model = stir(get_peft_model(scatter(t5()), "all-linear", 4, 8))
    alone = model.generate(input_ids=IDS, max_new_tokens=5)
    plain = scatter(t5()).generate(input_ids=IDS, max_new_tokens=5)
    rows = model.generate(input_ids=IDS, max_new_tokens=5, adapter_names=["default", "__base__"])
    assert torch.equal(rows, torch.stack([alone[0], plain[1]])) and not torch.equal(alone, plain)


def test_the_vocabulary_may_grow_beside_an_adapter():
    model = stir(get_peft_model(scatter(gpt2()), ["c_attn"], 4, 8))
    before = answer(model, TOKENS)
    model.resize_token_embeddings(70)
    assert torch.equal(answer(model, TOKENS)[..., :64], before)
    head = stir(get_peft_model(scatter(gpt2()), ["c_attn", "lm_head"], 4, 8))
    with pytest.raises(ValueError, match=r"the weight is \(16, 70\) now, but the adapters were made for \(16, 64\)"):
        head.resize_token_embeddings(70)


# --- modules trained in full ----------------------------------------------------------------------


def test_each_adapter_has_its_own_copy_of_a_module_and_one_is_in_use():
    model = get_peft_model(small(), ["c_attn"], 2, modules_to_save=["ln_f"])
    assert torch.equal(model(IDS), small()(IDS))
    trained = [n for n, p in model.named_parameters() if p.requires_grad and "ln_f" in n]
    assert trained == ["base_model.ln_f.adapters.default.weight", "base_model.ln_f.adapters.default.bias"]
    model.add_adapter("b", LoRAConfig(["c_fc"], modules_to_save=["ln_f"]))
    model.add_adapter("c", LoRAConfig(["c_fc"]))
    norm = model.base_model.ln_f
    norm.adapters["default"].weight.data *= 2
    norm.adapters["b"].weight.data *= 3
    model.eval()
    base = small()(IDS)
    torch.testing.assert_close(model.base_model.ln_f.weight, 2 * small().ln_f.weight)
    outs = {}
    for name in ("default", "b", "c"):
        model.set_adapter(name)
        outs[name] = model(IDS)
    assert not torch.allclose(outs["default"], outs["b"]) and torch.equal(outs["c"], base)
    rows = model(IDS, adapter_names=["b", "__base__"])
    torch.testing.assert_close(rows, torch.stack([outs["b"][0], base[1]]), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"\['default', 'b'\] each train a copy of the same LayerNorm"):
        model.set_adapter(["default", "b"])
    assert model.active_adapters == ["c"]
    with pytest.raises(ValueError, match="'b' trains ln_f in full, and trained copies of a module cannot be added"):
        model.add_weighted_adapter(["b", "c"], [1, 1], "sum")
    assert torch.equal(copy.deepcopy(model)(IDS), outs["c"])
    model.set_adapter("b")
    model.delete_adapter("b")
    assert torch.equal(model(IDS), base)
    assert type(model.unload().ln_f) is type(small().ln_f)


@pytest.mark.parametrize("wanted", [(1,), {1}])
def test_layers_come_in_a_tuple_or_a_set_too(wanted):
    model = get_peft_model(small(), ["c_attn"], 2, layers_to_transform=wanted, layers_pattern=("h",))
    assert list(model.lora_layers()) == ["h.1.attn.c_attn"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modules_to_save": ["nothing"]}, "modules_to_save names 'nothing', but no module of this GPT2Model"),
        ({"exclude_modules": ["c_attn"]}, "leave none of the targets: h.0.attn.c_attn"),
        ({"exclude_modules": "("}, "not a regular expression"),
        ({"layers_to_transform": [7]}, "leave none of the targets"),
        ({"modules_to_save": ["attn"]}, "leave none of the targets"),
        ({"layers_to_transform": 1, "layers_pattern": "blocks"}, "leave none of the targets"),
    ],
)
def test_what_leaves_nothing_is_refused(settings, message):
    model = small()
    with pytest.raises(ValueError, match=message):
        get_peft_model(model, ["c_attn"], 2, **settings)
    assert type(model.h[0].attn.c_attn) is nn.Linear


@pytest.mark.parametrize(("layers", "named"), [(5, "0, 1, 2, 3, 4"), (6, "0, 1, 2, 3, 4, …")])
def test_what_was_left_out_is_named_up_to_five(layers, named):
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)))
    with pytest.raises(ValueError, match=f"leave none of the targets: {named}$"):
        get_peft_model(model, "all-linear", 2, exclude_modules=".*")


def test_a_module_in_full_that_has_lora_layers_in_it_is_refused():
    model = get_peft_model(small(), ["c_attn"], 2)
    with pytest.raises(ValueError, match="modules_to_save names h.0.attn, and another adapter has LoRA layers in it"):
        model.add_adapter("b", LoRAConfig(["c_fc"], modules_to_save=["h.0.attn"]))
    assert list(model.peft_config) == ["default"]


def test_the_tensors_of_a_module_in_full_must_fit(tmp_path):
    from safetensors.torch import load_file, save_file

    get_peft_model(small(), ["c_attn"], 2, modules_to_save=["ln_f"]).save_pretrained(tmp_path)
    path, key = tmp_path / "adapter_model.safetensors", "base_model.model.transformer.ln_f.weight"
    tensors = load_file(path)
    for spoil, message in [
        (lambda t: t.pop(key), r"the file lacks \['transformer.ln_f.weight'\]"),
        (lambda t: t.update({key: torch.ones(3)}), r"transformer.ln_f.weight is \(3,\), this model needs \(24,\)"),
        (lambda t: t[key].fill_(float("nan")), "ln_f.weight must hold finite floats"),
        (lambda t: t.update({key.replace("ln_f", "h.0.ln_1"): t[key].clone()}), "is not a LoRA weight"),
    ]:
        spoiled = {name: tensor.clone() for name, tensor in tensors.items()}
        spoil(spoiled)
        save_file(spoiled, path)
        with pytest.raises(AdapterError, match=message):
            PeftModel.from_pretrained(small(), tmp_path)


# --- the model around -----------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel], ids=["compiled", "dp"])
@pytest.mark.parametrize("targets", [["c_attn", "out_head"], "all-linear", r"h\.0\..*", ["h.1.mlp.c_fc"]], ids=str)
def test_an_adapter_of_a_wrapped_model_is_one_of_the_plain_model(tmp_path, wrap, targets):
    inner = small()
    model = stir(get_peft_model(wrap(inner), targets, 4, 8))
    out = inner(IDS)
    model.save_pretrained(tmp_path)
    assert "_orig_mod" not in (tmp_path / "adapter_config.json").read_text()
    opened = PeftModel.from_pretrained(small(), tmp_path)
    assert len(opened.lora_layers()) == len(model.lora_layers()) and torch.equal(opened(IDS), out)
    opened.save_pretrained(tmp_path / "plain")
    back = small()
    PeftModel.from_pretrained(wrap(back), tmp_path / "plain")
    assert torch.equal(back(IDS), out)


@pytest.mark.parametrize("exact", [False, True])
def test_pefts_adapter_of_a_compiled_model_opens_in_the_plain_one(tmp_path, exact):
    inner = scatter(gpt2())
    wrapped, targets = torch.compile(inner, backend="eager"), ["c_attn"]
    if exact:  # with the wrapper's prefix
        targets = [name for name, _ in wrapped.named_modules() if name.endswith("c_attn")]
    model = peft.get_peft_model(wrapped, peft.LoraConfig(r=4, target_modules=targets, fan_in_fan_out=True))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.2)
    out = answer(inner.eval(), TOKENS)
    model.save_pretrained(tmp_path)
    opened = PeftModel.from_pretrained(scatter(gpt2()), tmp_path)
    torch.testing.assert_close(answer(opened, TOKENS), out, atol=1e-6, rtol=1e-6)


def test_the_trainer_of_transformers_trains_evaluates_and_saves(tmp_path):
    model = get_peft_model(gpt2(), LoRAConfig(["c_attn"], r=4, lora_alpha=8))
    rows = [{"input_ids": torch.arange(i, i + 6) % 64, "labels": torch.arange(i, i + 6) % 64} for i in range(16)]
    arguments = hf.TrainingArguments(
        str(tmp_path), max_steps=6, save_steps=3, eval_strategy="steps", eval_steps=3, per_device_train_batch_size=8,
        report_to=[], use_cpu=True, disable_tqdm=True, learning_rate=0.05, logging_steps=1,
    )  # fmt: skip
    trainer = hf.Trainer(model=model.get_base_model(), args=arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses[-1] < losses[0] - 0.01
    trainer.save_model(tmp_path / "whole")
    out = answer(model.eval(), TOKENS)
    from safetensors.torch import load_file

    again = get_peft_model(gpt2(), LoRAConfig(["c_attn"], r=4, lora_alpha=8)).eval()
    left = again.get_base_model().load_state_dict(load_file(tmp_path / "whole" / "model.safetensors"), strict=False)
    assert left == (["lm_head.weight"], [])  # tied to wte.weight, and written once
    assert torch.equal(answer(again, TOKENS), out)
    model.save_pretrained(tmp_path / "adapter")
    opened = PeftModel.from_pretrained(copy.deepcopy(model).unload(), tmp_path / "adapter")
    assert torch.equal(answer(opened, TOKENS), out)


def test_the_settings_come_as_a_config_or_as_keywords():
    config = LoRAConfig(["c_attn"], r=3, lora_alpha=7, lora_dropout=0.1, use_rslora=True)
    one = get_peft_model(small(), config)
    two = get_peft_model(small(), ["c_attn"], 3, 7, 0.1, use_rslora=True)
    assert one.peft_config["default"] == two.peft_config["default"] == config
    for more in ({"lora_rank": 4}, {"lora_alpha": 8}, {"lora_dropout": 0.2}, {"use_dora": True}):
        with pytest.raises(TypeError, match="give the settings in the LoRAConfig or as keywords, not both"):
            get_peft_model(small(), config, **more)
    with pytest.raises(TypeError, match="expected lora_lib's LoRAConfig, got a LoraConfig: it takes the same names"):
        get_peft_model(small(), peft.LoraConfig(target_modules=["c_attn"]))
    with pytest.raises(TypeError, match="loftq_config is not supported: LoftQ changes the base"):
        get_peft_model(small(), ["c_attn"], loftq_config={})
    with pytest.raises(TypeError, match="trainable_token_indices is not supported: train the whole embedding"):
        get_peft_model(small(), ["c_attn"], trainable_token_indices=[1])
    with pytest.raises(TypeError, match="LoRAConfig has no setting 'lora_rnk'. Did you mean 'lora_rank'"):
        get_peft_model(small(), lora_rnk=3)

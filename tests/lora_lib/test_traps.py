"""Traps that chapters 13 and 14 name and do not show in a cell: each as it bites, on tiny models, and its mend."""

import json
import logging
import math
import re
import warnings

import datasets
import peft
import pytest
import torch
import transformers
import trl
from safetensors.torch import load_file, save_file
from tiny_chat import TEMPLATE, letters_tokenizer, tiny_llama
from tokenizers import processors
from torch.utils.checkpoint import checkpoint

import lora_book.measure
import lora_lib
from lora_book.tasks import make_tickets, model_card
from lora_lib.adapters import AdapterError
from lora_lib.data import encode_chat, prompt_ids, write_answers
from lora_lib.training import FitConfig, lr_factor

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it looks for a GPU


PROMPT, ANSWER = [{"role": "user", "content": "ab"}], [{"role": "assistant", "content": "cdefg"}]
ROW = {"prompt": PROMPT, "completion": ANSWER}


@pytest.fixture
def sft(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets.disable_progress_bars()

    def make(model, row=ROW, lora=None, **settings):
        quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "bf16": False, "save_strategy": "no"}
        return trl.SFTTrainer(
            model, trl.SFTConfig(str(tmp_path / "trl"), **quiet, **settings), peft_config=lora,
            train_dataset=datasets.Dataset.from_list([row]), processing_class=letters_tokenizer(),
        )  # fmt: skip

    return make


@pytest.fixture
def saved(tmp_path):
    """A base in a folder, and an adapter for it that changes the answers, in another."""
    tiny_llama().save_pretrained(tmp_path / "base")
    letters_tokenizer().save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    ours = lora_lib.get_peft_model(base, "all-linear", 4)
    with torch.no_grad():
        for layer in ours.lora_layers().values():
            layer.adapters["default"].B.normal_()
    ours.save_pretrained(tmp_path / "adapter")
    return ours


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_trls_trainer_trains_our_adapters_in_the_model_inside(sft):
    model = lora_lib.get_peft_model(tiny_llama(), ["q_proj"], 2).enable_lora_training()
    before = {name: p.clone() for name, p in model.named_parameters()}
    sft(model.get_base_model(), max_steps=1, learning_rate=0.1).train()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all(name.endswith(".B") for name in changed)  # A has no gradient while B is zero


def test_trls_trainer_around_our_peft_model_stops_at_its_first_step(sft):
    trainer = sft(lora_lib.get_peft_model(tiny_llama(), ["q_proj"], 2).enable_lora_training(), max_steps=1)
    with pytest.raises(AttributeError, match="has no attribute 'last_hidden_state'"):  # the page on mends quotes it
        trainer.train()


# --- what the model reads ---------------------------------------------------------------------------


def test_a_template_that_writes_the_first_token_and_a_tokenizer_that_adds_it_make_two():
    tokenizer = letters_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}" + TEMPLATE.replace("<s>", "")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    text = tokenizer.apply_chat_template(PROMPT, tokenize=False)
    assert tokenizer(text).input_ids[:2] == [0, 0]
    once = tokenizer(text, add_special_tokens=False).input_ids
    assert once == tokenizer.apply_chat_template(PROMPT, return_dict=False) and once[:2].count(0) == 1


def test_trl_cuts_an_answer_in_silence_and_its_end_is_not_learned(sft):
    whole = sft(tiny_llama()).train_dataset[0]
    cut = sft(tiny_llama(), max_length=len(whole["input_ids"]) - 2).train_dataset[0]
    end = letters_tokenizer().eos_token_id
    assert whole["labels"][-1] == end and cut["labels"] == whole["labels"][:-2]
    assert end not in cut["labels"] and any(label >= 0 for label in cut["labels"])


# --- which tokens are in the loss ---------------------------------------------------------------------


def test_transformers_collator_hides_every_end_if_padding_is_the_end_and_trls_does_not(sft):
    tokenizer = letters_tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    ids = [tokenizer.apply_chat_template([*PROMPT, *ANSWER[:n]], return_dict=False) for n in (1, 0)]
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    assert tokenizer.eos_token_id not in collator([{"input_ids": one} for one in ids])["labels"]
    apart = letters_tokenizer()
    apart.add_special_tokens({"pad_token": "<p>"})
    labels = transformers.DataCollatorForLanguageModeling(apart, mlm=False)([{"input_ids": one} for one in ids])[
        "labels"
    ]
    assert (labels == apart.eos_token_id).sum(1).tolist() == [2, 1]
    trainer = sft(tiny_llama())
    row = trainer.train_dataset[0]
    short = {name: values[-3:] for name, values in row.items()}
    batch = trainer.data_collator([row, short])["labels"]
    assert (batch == tokenizer.eos_token_id).sum(1).tolist() == [1, 1] and (batch[1, 3:] == -100).all()


def test_trl_learns_the_question_of_messages_and_drops_what_has_no_answer_left(sft):
    row = sft(tiny_llama(), {"messages": [*PROMPT, *ANSWER]}).train_dataset[0]
    assert row["labels"] == row["input_ids"]
    asked = len(letters_tokenizer().apply_chat_template(PROMPT, add_generation_prompt=True, return_dict=False))
    assert len(sft(tiny_llama(), max_length=asked).train_dataset) == 0
    assert torch.nn.functional.cross_entropy(torch.zeros(4, 9), torch.full((4,), -100)).isnan()


def test_assistant_only_loss_wants_a_template_that_marks_the_answers(sft):
    with pytest.raises(ValueError, match="not training-compatible"):
        sft(tiny_llama(), {"messages": [*PROMPT, *ANSWER]}, assistant_only_loss=True)


# --- what the defaults get wrong ----------------------------------------------------------------------


def test_the_table_of_settings_tells_the_defaults(tmp_path):
    args = trl.SFTConfig(str(tmp_path), use_cpu=True)
    assert (args.per_device_train_batch_size, args.warmup_steps, args.max_length) == (8, 0, 1024)
    assert args.lr_scheduler_type == "linear" and args.gradient_checkpointing and args.learning_rate == 2e-5
    ours = FitConfig(steps=1)
    assert (ours.batch_size, ours.learning_rate, ours.warmup) == (16, 1e-3, 0.1)
    config = lora_lib.LoRAConfig("all-linear")
    assert (config.r, config.lora_alpha, peft.LoraConfig().r, peft.LoraConfig().lora_alpha) == (8, 16, 8, 8)
    theirs = peft.get_peft_model(tiny_llama(), peft.LoraConfig())
    assert {name.split(".")[-1] for name in theirs.targeted_module_names} == {"q_proj", "v_proj"}
    every = peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    every = peft.get_peft_model(tiny_llama(), every)
    ours = lora_lib.get_peft_model(tiny_llama(), "all-linear")
    assert set(every.targeted_module_names) == set(ours.lora_layers())
    assert not any("lm_head" in name for name in every.targeted_module_names)


def test_a_warm_up_that_starts_at_zero_wastes_the_first_step_and_ours_does_not():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    theirs = transformers.get_linear_schedule_with_warmup(optimizer, 2, 10)
    assert theirs.get_last_lr() == [0] and lr_factor(0, 10, 0.2) > 0


def test_peft_holds_the_adapter_of_a_bfloat16_base_in_float32_unless_told_otherwise():
    for cast, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        base = tiny_llama().to(torch.bfloat16)
        theirs = peft.get_peft_model(base, peft.LoraConfig(), autocast_adapter_dtype=cast)
        assert {p.dtype for p in trained(theirs).values()} == {dtype}


def test_a_template_with_new_tokens_makes_trl_save_the_head(sft, tmp_path):
    other = letters_tokenizer()
    other.add_tokens(["<x>"], special_tokens=True)
    other.save_pretrained(tmp_path / "other")
    for path, whole in ((tmp_path / "other", ["lm_head"]), (tmp_path / "other" / "chat_template.jinja", None)):
        lora = peft.LoraConfig(task_type="CAUSAL_LM")
        trainer = sft(tiny_llama(), lora=lora, chat_template_path=str(path))
        trainer.save_model(str(tmp_path / "saved"))
        saved = load_file(tmp_path / "saved" / "adapter_model.safetensors")
        settings = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
        assert settings["modules_to_save"] == whole
        assert any("lm_head" in name for name in saved) == bool(whole)


def test_peft_wraps_the_right_name_and_says_nothing_of_the_wrong_one():
    theirs = peft.get_peft_model(tiny_llama(), peft.LoraConfig(target_modules=["q_proj", "v_prj"]))
    assert {name.split(".")[-1] for name in theirs.targeted_module_names} == {"q_proj"}
    with pytest.raises(ValueError, match="'v_prj' matches no layer; did you mean 'v_proj'"):
        lora_lib.get_peft_model(tiny_llama(), ["q_proj", "v_prj"])


def test_reentrant_checkpointing_gives_no_gradient_unless_the_input_asks_for_one():
    block = lora_lib.get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 8)), "all-linear", 2)
    x = torch.randn(4, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch says so
        assert not checkpoint(block, x, use_reentrant=True).requires_grad
    assert checkpoint(block, x.clone().requires_grad_(), use_reentrant=True).requires_grad
    assert checkpoint(block, x, use_reentrant=False).requires_grad


@pytest.mark.parametrize(("autocast", "by_peft"), [(False, 3528), (True, 2744)])
def test_peft_keeps_a_wide_copy_of_the_input_for_a_bfloat16_base(autocast, by_peft):
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=30, num_key_value_heads=2, **sizes)

    def kept(adapt):
        """Bytes that the first block keeps for its backward pass, a token."""
        base = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
        adapted, found = adapt(base), {}
        x = torch.randn(1, 32, 64, dtype=torch.bfloat16, requires_grad=True)
        turned = base.model.rotary_emb(x, torch.arange(32)[None])
        own = {t.untyped_storage().data_ptr() for t in [*adapted.parameters(), *turned]}

        def keep(tensor):
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        ):
            base.model.layers[0](x, position_embeddings=turned)
        return sum(n for where, n in found.items() if where not in own) / 32

    linear = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = kept(lambda base: peft.get_peft_model(base, linear))
    ours = kept(lambda base: lora_lib.get_peft_model(base, "all-linear", 4))
    assert (theirs, ours) == pytest.approx((by_peft, 1944), rel=0.06)


def test_trl_prepares_no_quantised_base_and_makes_its_adapter_bfloat16(sft, tmp_path):
    pytest.importorskip("bitsandbytes")
    tiny_llama().save_pretrained(tmp_path / "base")
    four = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    base = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=four, dtype=torch.bfloat16
    )
    trainer = sft(base, lora=peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert {p.dtype for p in trained(trainer.model).values()} == {torch.bfloat16}
    norm = trainer.model.get_base_model().model.norm.weight
    assert norm.dtype == torch.bfloat16  # prepare_model_for_kbit_training would make it float32
    peft.prepare_model_for_kbit_training(base)
    assert base.model.norm.weight.dtype == torch.float32


# --- loaded, and nothing changed ------------------------------------------------------------------------


def test_no_effect_after_loading_has_five_causes_each_with_its_check(saved, tmp_path):
    ids, folder = torch.arange(8)[None], tmp_path / "adapter"

    def base():
        return transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")

    def loaded(where):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            opened = peft.PeftModel.from_pretrained(base(), where).eval()
        return opened, " ".join(str(warning.message) for warning in told)

    plain = base()(input_ids=ids).logits
    good, told = loaded(folder)
    assert not torch.allclose(good(input_ids=ids).logits, plain, atol=1e-2) and "missing adapter keys" not in told
    weights, settings = load_file(folder / "adapter_model.safetensors"), (folder / "adapter_config.json").read_text()

    def written(name, tensors):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(settings)
        save_file(tensors, tmp_path / name / "adapter_model.safetensors")
        return tmp_path / name

    # 1. The names in the file are not those of the model.
    other, told = loaded(written("renamed", {n.replace(".model.layers", ".layers"): t for n, t in weights.items()}))
    assert torch.equal(other(input_ids=ids).logits, plain) and "missing adapter keys" in told
    # 2. The adapter that was saved was never trained: B is zero.
    zero, told = loaded(written("untrained", {n: t * ("lora_A" in n) for n, t in weights.items()}))
    assert torch.equal(zero(input_ids=ids).logits, plain) and "missing adapter keys" not in told
    # 3. Another adapter is active.
    lora = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    two = peft.get_peft_model(base(), lora).eval()
    two.load_adapter(folder, "mine")
    assert torch.equal(two(input_ids=ids).logits, plain) and two.active_adapters == ["default"]
    two.set_adapter("mine")
    assert torch.allclose(two(input_ids=ids).logits, good(input_ids=ids).logits, atol=1e-4)
    # 4. The adapter works, but the question is not put as in training: the ids differ.
    in_training = encode_chat([{"role": "system", "content": "be kind"}, *PROMPT, *ANSWER], letters_tokenizer())[0]
    asked = prompt_ids(PROMPT, letters_tokenizer())
    assert in_training[: len(asked)].tolist() != asked
    # 5. The change was rounded away: a small adapter, merged into 4 bits.
    small = get_small(base())
    merged = lora_book.measure.quantise_model(small.merge_and_unload())
    rounded = lora_book.measure.quantise_model(base())
    same = [torch.equal(a.weight, b.weight) for a, b in zip(*map(quantised_layers, (merged, rounded)), strict=True)]
    assert all(same)


def get_small(model):
    """The model with an adapter that changes each weight by far less than the step between two of 16 levels."""
    torch.manual_seed(1)
    wrapped = lora_lib.get_peft_model(model, "all-linear", 4)
    with torch.no_grad():
        for layer in wrapped.lora_layers().values():
            layer.adapters["default"].B.normal_(std=1e-6)
    return wrapped


def quantised_layers(model):
    return [m for m in model.modules() if isinstance(m, lora_book.measure.QuantisedLinear)]


# --- new tokens -----------------------------------------------------------------------------------------


def test_a_new_token_without_a_row_of_its_own_is_an_error_and_resizing_first_the_mend():
    lora = peft.LoraConfig(task_type="CAUSAL_LM", trainable_token_indices=[30])
    with pytest.raises(IndexError):
        peft.get_peft_model(tiny_llama(), lora)
    grown = tiny_llama()
    grown.resize_token_embeddings(31)
    assert any("token" in name for name in trained(peft.get_peft_model(grown, lora)))


@pytest.mark.parametrize(("keep", "whole"), [("auto", True), (False, False)])
def test_peft_saves_the_whole_embedding_once_it_was_resized_unless_told_otherwise(tmp_path, keep, whole):
    tiny_llama().save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(31)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", trainable_token_indices=[30])
    theirs = peft.get_peft_model(base, lora)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says that it does
        theirs.save_pretrained(tmp_path / "adapter", save_embedding_layers=keep)
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert any(tensor.shape[0] == 31 for tensor in saved.values()) == whole
    assert any("trainable_tokens_delta" in name for name in saved)


@pytest.mark.parametrize("tying", [False, True])
def test_training_embedding_and_head_whole_unties_them_unless_told_otherwise(tying):
    torch.manual_seed(0)
    config = tiny_llama().config
    config.tie_word_embeddings = True
    base = transformers.AutoModelForCausalLM.from_config(config)
    keep = {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": tying}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says that the weights are tied
        theirs = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", **keep))
        optimizer = torch.optim.SGD(trained(theirs).values(), lr=1.0)
        theirs(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
        optimizer.step()
        merged = theirs.merge_and_unload()
    assert torch.equal(merged.get_input_embeddings().weight, merged.get_output_embeddings().weight) == tying


def test_a_trained_head_is_gone_where_the_merged_config_still_says_tied(tmp_path):
    torch.manual_seed(0)
    config, ids = tiny_llama().config, torch.tensor([[5, 6, 7]])
    config.tie_word_embeddings = True
    lora = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", modules_to_save=["lm_head"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says that the weights are tied
        theirs = peft.get_peft_model(transformers.AutoModelForCausalLM.from_config(config), lora)
        optimizer = torch.optim.SGD(trained(theirs).values(), lr=1.0)
        for _ in range(5):
            theirs(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
        merged = theirs.merge_and_unload().eval()
    merged.save_pretrained(tmp_path)

    def off(model):
        return (model.eval()(ids).logits - merged(ids).logits).abs().max()

    settings, weights = json.loads((tmp_path / "config.json").read_text()), load_file(tmp_path / "model.safetensors")
    assert settings["tie_word_embeddings"] is False  # as these versions write it
    assert off(transformers.AutoModelForCausalLM.from_pretrained(tmp_path)) < 1e-5
    for tied in (True, False):  # a program that goes by the config alone, with True as older versions left it
        config.tie_word_embeddings = tied
        other = transformers.AutoModelForCausalLM.from_config(config)
        read = {name: tensor for name, tensor in weights.items() if not (tied and name == "lm_head.weight")}
        other.load_state_dict(read, strict=False)
        assert (off(other) > 0.1) == tied


@pytest.mark.parametrize(("rows", "error"), [({}, RuntimeError), ({"trainable_token_indices": []}, IndexError)])
def test_an_adapter_with_more_tokens_opens_once_the_base_has_its_rows(tmp_path, rows, error):
    tiny_llama().save_pretrained(tmp_path / "base")
    model, bare, again = (transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base") for _ in range(3))
    before = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(before + 4)
    rows = {name: [before] for name in rows}
    made = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **rows))
    made.save_pretrained(tmp_path)
    with pytest.raises(error, match="size mismatch for .*embed_tokens.weight|index .* is out of bounds"):
        peft.PeftModel.from_pretrained(bare, tmp_path)
    again.resize_token_embeddings(before + 4)
    ids = torch.arange(before, before + 4)[None]
    assert torch.equal(peft.PeftModel.from_pretrained(again, tmp_path)(ids).logits, made.eval()(ids).logits)


def test_the_model_that_was_given_has_the_adapter_and_its_folder_opens_frozen(saved, tmp_path):
    base, ids = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base"), torch.arange(8)[None]
    plain = base(ids).logits
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    adapted = model(ids).logits
    assert not torch.equal(adapted, plain)
    assert torch.equal(base(ids).logits, adapted) and torch.equal(model.get_base_model()(ids).logits, adapted)
    with model.disable_adapter():
        assert torch.equal(model(ids).logits, plain)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(opened(ids).logits, adapted)
    assert not any(parameter.requires_grad for parameter in opened.parameters())
    names = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    with pytest.warns(UserWarning, match="modify a model with PEFT for a second time"):
        fresh = peft.get_peft_model(opened, peft.LoraConfig(r=2, target_modules=names))
    assert torch.equal(fresh(ids).logits, plain)  # what was trained is gone


def test_all_linear_passes_over_experts_and_target_parameters_reaches_them():
    def mixture():
        return transformers.AutoModelForCausalLM.from_config(transformers.Qwen3MoeConfig(
            vocab_size=30, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2,
        ))  # fmt: skip

    attention = {"q_proj", "k_proj", "v_proj", "o_proj"}
    theirs = peft.get_peft_model(mixture(), peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    assert {name.rpartition(".")[2] for name in theirs.targeted_module_names} == attention
    ours = lora_lib.get_peft_model(mixture(), "all-linear", 2)
    assert {name.rpartition(".")[2] for name in ours.lora_layers()} == attention
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    lora = peft.LoraConfig(target_modules=["q_proj"], target_parameters=experts, task_type="CAUSAL_LM")
    theirs, ids = peft.get_peft_model(mixture(), lora), torch.tensor([[5, 6, 7]])
    theirs(input_ids=ids, labels=ids).loss.backward()
    moved = [name for name, p in trained(theirs).items() if "experts" in name and p.grad.abs().max() > 0]
    assert len(moved) == 2 and all("lora_B" in name for name in moved)


def test_a_head_that_classifies_is_trained_whole_only_where_the_task_is_named():
    def trained_heads(task):
        model = transformers.AutoModelForSequenceClassification.from_config(tiny_llama().config)
        theirs = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], task_type=task))
        return [name for name in trained(theirs) if "score" in name]

    assert len(trained_heads("SEQ_CLS")) == 1 and trained_heads(None) == []


def test_an_adapter_around_an_adapter_has_names_that_fit_nothing(tmp_path):
    lora = peft.LoraConfig(target_modules=["q_proj"])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        twice = peft.get_peft_model(peft.get_peft_model(tiny_llama(), lora), lora)
        for name, factor in twice.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(factor)
        twice.save_pretrained(tmp_path)
        theirs = peft.PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert any("missing" in str(w.message) for w in said)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(theirs(input_ids=ids).logits, tiny_llama()(input_ids=ids).logits)


# --- out of the door --------------------------------------------------------------------------------------


def test_what_a_trainer_saves_beside_the_adapter_names_a_folder_of_this_machine(sft, tmp_path):
    trainer = sft(tiny_llama(), lora=peft.LoraConfig(task_type="CAUSAL_LM"))
    trainer.save_model(str(tmp_path / "saved"))
    assert str(tmp_path).encode() in (tmp_path / "saved" / "training_args.bin").read_bytes()


def test_a_fresh_save_names_its_base_and_its_targets_as_peft_does(saved, tmp_path):
    ids = torch.arange(8)[None]
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.allclose(theirs(input_ids=ids).logits, saved(input_ids=ids).logits, atol=1e-4)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "base")
    projections = {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    assert set(settings["target_modules"]) == projections  # what PEFT writes once there are 20 layers or more
    lora_lib.get_peft_model(tiny_llama(), ["q_proj"], 4).save_pretrained(tmp_path / "made")
    nameless = json.loads((tmp_path / "made" / "adapter_config.json").read_text())
    assert "base_model_name_or_path" not in nameless  # a model that was made here has no name to go by


def test_the_model_card_asks_the_model_and_gets_its_answer(saved, tmp_path, monkeypatch, capsys):
    card = model_card(tmp_path / "adapter", "ab", system="be kind", max_new_tokens=6)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(tmp_path / "adapter")
    exec(code, {})
    chat = [{"role": "system", "content": "be kind"}, *PROMPT]
    said, (wanted,) = capsys.readouterr().out, write_answers(saved, letters_tokenizer(), [chat], 6)
    assert wanted and said.replace(" ", "").strip() == wanted.replace(" ", "")
    assert f"base_model: {tmp_path / 'base'}\n" in card and "r = 4, alpha = 16" in card
    lora_lib.get_peft_model(tiny_llama(), ["q_proj"], 4).save_pretrained(tmp_path / "made")
    for folder, said in ((tmp_path / "made", "does not name its base"), (tmp_path, "has no adapter_config.json")):
        with pytest.raises(AdapterError, match=said):
            model_card(folder, "ab")


def test_a_saved_tokenizer_has_its_template_along(tmp_path):
    letters_tokenizer().save_pretrained(tmp_path)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).chat_template == TEMPLATE


def test_an_alpha_that_gives_the_same_scale_takes_the_place_of_rslora(tmp_path):
    ours = lora_lib.get_peft_model(tiny_llama(), ["q_proj"], 4, 8, use_rslora=True)
    with torch.no_grad():
        for layer in ours.lora_layers().values():
            layer.adapters["default"].B.normal_()
    ids = torch.arange(8)[None]
    wanted = ours(input_ids=ids).logits
    ours.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    settings = json.loads(path.read_text())
    for alpha, same in ((8, False), (8 * math.sqrt(4), True)):  # what reads alpha alone takes alpha / r
        path.write_text(json.dumps({**settings, "use_rslora": False, "lora_alpha": alpha}))
        theirs = peft.PeftModel.from_pretrained(tiny_llama(), tmp_path)
        assert torch.allclose(theirs(input_ids=ids).logits, wanted, atol=1e-4) == same


def test_the_lines_for_grpo_run(root, tmp_path):
    """As they stand in chapter 14, on a tiny model for one step."""
    cells = json.loads((root / "notebooks" / "14_out_of_the_door.ipynb").read_text(encoding="utf8"))["cells"]
    (code,) = re.findall(r"```python\n([^`]*GRPOTrainer\([^`]*)```", "".join("".join(c["source"]) for c in cells))
    here = (
        f'"{tmp_path}", use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, max_steps=1, logging_steps=1, '
    )
    for old, new in (
        ('GRPOConfig("grpo", ', f'GRPOConfig({here}max_completion_length=4, save_strategy="no", '),
        ("    model, reward_funcs", "    model, processing_class=tokenizer, reward_funcs"),
    ):
        assert code.count(old) == 1
        code = code.replace(old, new)
    names = {"model": tiny_llama(), "tokenizer": letters_tokenizer(), "data": make_tickets(0, 2, 0, 0)}
    names |= {"datasets": datasets, "peft": peft}
    exec(code, names)
    names["trainer"].train()
    assert names["trainer"].state.log_history[0]["rewards/reward/mean"] == 0  # a tiny model writes no JSON
    assert names["trainer"].state.log_history[0]["grad_norm"] == 0  # and where all score the same, nothing is learned
    assert names["trainer"].state.log_history[0]["frac_reward_zero_std"] == 1
    differ = {**names, "model": tiny_llama(), "reward": lambda completions, **_: [*map(float, range(len(completions)))]}
    exec(code[code.index("trainer =") :], differ)
    differ["trainer"].train()
    log = differ["trainer"].state.log_history[0]
    assert abs(log["loss"]) < 1e-3 and log["grad_norm"] > 1e-3 and log["reward"] > 0
    right = [[{"content": ticket.answer}] for ticket in names["data"].train]
    assert names["reward"](right, [0, 1]) == [1, 1] and names["reward"](right, [1, 0]) != [1, 1]

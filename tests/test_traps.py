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
from safetensors.torch import load_file
from tiny_chat import TEMPLATE, letters_tokenizer, tiny_llama
from tokenizers import processors

import lora_lib
from lora_lib.adapters import AdapterError, model_card
from lora_lib.data import make_tickets, write_answers
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


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_trls_trainer_trains_our_adapters_in_the_model_inside(sft):
    model = lora_lib.get_peft_model(tiny_llama(), ["q_proj"], 2).enable_lora_training()
    before = {name: p.clone() for name, p in model.named_parameters()}
    sft(model.get_base_model(), max_steps=1, learning_rate=0.1).train()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all(name.endswith(".B") for name in changed)  # A has no gradient while B is zero


def test_trls_trainer_around_our_peft_model_is_refused_with_the_mend(sft):
    model = lora_lib.get_peft_model(tiny_llama(), ["q_proj"], 2).enable_lora_training()
    with pytest.raises(TypeError, match=r"pass the model inside, .* SFTTrainer\(model.get_base_model\(\), …\)"):
        sft(model)


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


# --- out of the door --------------------------------------------------------------------------------------


def test_what_a_trainer_saves_beside_the_adapter_names_a_folder_of_this_machine(sft, tmp_path):
    trainer = sft(tiny_llama(), lora=peft.LoraConfig(task_type="CAUSAL_LM"))
    trainer.save_model(str(tmp_path / "saved"))
    assert str(tmp_path).encode() in (tmp_path / "saved" / "training_args.bin").read_bytes()


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
    here = f'"{tmp_path}", use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, max_steps=1, '
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
    right = [[{"content": ticket.answer}] for ticket in names["data"].train]
    assert names["reward"](right, [0, 1]) == [1, 1] and names["reward"](right, [1, 0]) != [1, 1]

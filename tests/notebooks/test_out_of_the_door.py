"""What chapter 14 says and does not show in a cell: symptoms, TRL's defaults, DPO's reference, what was served."""

import inspect
import json
import logging
import re

import datasets
import peft
import pytest
import torch
import transformers
import trl
from tiny_chat import letters_tokenizer, tiny_llama
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

import lora_lib
from lora_book.findings import load_results
from lora_lib.data import difference, encode_chat
from lora_lib.training import fit

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it looks for a GPU

PROMPT, CHOSEN, REJECTED = "ab", "cdefg", "hijklmn"
QUIET = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "bf16": False, "save_strategy": "no"}


def chat(answer):
    return [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": answer}]


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets.disable_progress_bars()


# --- symptoms -----------------------------------------------------------------------------------------


def test_at_a_rate_for_full_training_the_loss_is_flat():
    def falls(rate):
        model = lora_lib.get_peft_model(tiny_llama(), "all-linear", 4).enable_lora_training()
        examples = [encode_chat(chat(CHOSEN), letters_tokenizer())]
        loss = fit(model, examples, steps=5, batch_size=1, learning_rate=rate, progress=False).loss
        return loss[0] - loss[-1]

    default = trl.SFTConfig("unused", use_cpu=True).learning_rate
    assert falls(50 * default) > 10 * falls(default)


def test_an_adapter_opened_at_another_alpha_is_refused_here_and_not_in_peft(tmp_path):
    ours = lora_lib.get_peft_model(tiny_llama(), ["q_proj"], 4)
    ours.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 128}))
    with pytest.raises(lora_lib.AdapterError):
        lora_lib.PeftModel.from_pretrained(tiny_llama(), tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert theirs.peft_config["default"].lora_alpha == 128
    assert theirs.get_nb_trainable_parameters()[0] == 0, "loaded plainly, it is frozen"
    going = peft.PeftModel.from_pretrained(tiny_llama(), tmp_path, is_trainable=True)
    assert going.get_nb_trainable_parameters()[0] > 0


# --- what TRL does ------------------------------------------------------------------------------------


def test_a_pad_that_is_the_end_is_learned_with_trls_collator_and_hidden_by_transformers():
    tokenizer = letters_tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    rows = [{"input_ids": [3, 4, 5, tokenizer.eos_token_id]}, {"input_ids": [3, tokenizer.eos_token_id]}]
    learned = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)(rows)["labels"]
    assert (learned == tokenizer.eos_token_id).sum() == 2 and learned[1].tolist()[2:] == [-100, -100]
    hidden = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)(rows)["labels"]
    assert (hidden == tokenizer.eos_token_id).sum() == 0


def test_a_template_that_does_not_mark_answers_is_refused_for_a_loss_on_the_assistant_alone(offline, tmp_path):
    with pytest.raises(ValueError, match="not training-compatible"):
        trl.SFTTrainer(
            tiny_llama(), trl.SFTConfig(str(tmp_path), assistant_only_loss=True, **QUIET),
            train_dataset=datasets.Dataset.from_list([{"messages": chat(CHOSEN)}]),
            processing_class=letters_tokenizer(),
        )  # fmt: skip


def test_trls_trainer_does_not_prepare_a_4_bit_base_and_trains_in_bfloat16_unless_told_otherwise(tmp_path):
    assert "prepare_model_for_kbit_training" not in inspect.getsource(trl.trainer.sft_trainer)
    settings = trl.SFTConfig(str(tmp_path), use_cpu=True)
    assert settings.bf16 and settings.loss_type == "nll"
    assert trl.DPOConfig(str(tmp_path), use_cpu=True).learning_rate == 1e-6


# --- DPO after a training on answers: which reference? ------------------------------------------------


def tuned_on_the_chosen():
    """A model with an adapter that has learned the better answer."""
    model = peft.get_peft_model(tiny_llama(), peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    fit(model, [encode_chat(chat(CHOSEN), letters_tokenizer())], steps=20, batch_size=1, learning_rate=0.02,
        progress=False)  # fmt: skip
    return model.eval()


@torch.no_grad()
def gap(model):
    """How much likelier the better answer is than the worse one, as a difference of log-probabilities."""
    found = []
    for answer in (CHOSEN, REJECTED):
        ids, targets = encode_chat(chat(answer), letters_tokenizer())
        logits = model(input_ids=ids[None]).logits[0]
        found.append(-torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item())
    return found[0] - found[1]


def dpo(model, folder, **more):
    rows = [{"prompt": chat(CHOSEN)[:1], "chosen": chat(CHOSEN)[1:], "rejected": chat(REJECTED)[1:]}]
    settings = {"max_steps": 1, "learning_rate": 1e-3, "logging_steps": 1, "gradient_checkpointing": False}
    trainer = trl.DPOTrainer(
        model, args=trl.DPOConfig(str(folder), beta=0.1, **settings, **QUIET),
        train_dataset=datasets.Dataset.from_list(rows), processing_class=letters_tokenizer(), **more,
    )  # fmt: skip
    trainer.train()
    assert trainer.ref_model is None, "no second model is kept"
    return trainer.state.log_history[0]["rewards/margins"], trainer.model


def test_the_reference_of_dpo_is_the_tuned_model_merged_or_cloned_and_never_the_adapter_off(offline, tmp_path):
    tuned = tuned_on_the_chosen()
    after = gap(tuned)
    with tuned.disable_adapter():
        before = gap(tuned)
    assert 0.1 * (after - before) > 0.5, "with the adapter off the margin would start far from zero"
    cloned, model = dpo(tuned, tmp_path)
    assert abs(cloned) < 1e-4 and "ref" in model.peft_config, "TRL keeps a copy of the adapter as the reference"
    merged = tuned_on_the_chosen().merge_and_unload()
    first, model = dpo(merged, tmp_path, peft_config=peft.LoraConfig(task_type="CAUSAL_LM"))
    assert abs(first) < 1e-4 and "ref" not in model.peft_config
    with model.disable_adapter():
        assert gap(model) == pytest.approx(after, abs=1e-2), "the reference is the merged model"


def test_an_adapter_and_a_config_for_another_are_refused_by_dpo(offline, tmp_path):
    with pytest.raises(ValueError, match="merge"):
        dpo(tuned_on_the_chosen(), tmp_path, peft_config=peft.LoraConfig(task_type="CAUSAL_LM"))


# --- what was measured --------------------------------------------------------------------------------


def page_of(root):
    notebook = json.loads((root / "notebooks" / "14_out_of_the_door.ipynb").read_text(encoding="utf8"))
    return "".join("".join(cell["source"]) + "\n" for cell in notebook["cells"])


def test_the_table_of_qloras_merges_is_what_the_rows_say(root):
    page, rows = page_of(root), load_results("qlora_merge")
    wrong = [[float(digit) for digit in row["wrong_parts_by_item"][1:]] for row in rows]
    assert wrong[1] == wrong[0] and rows[1]["logits_moved"] < 1e-3, "merged into what it was trained on, it is the same"
    for row, counts in zip(rows, wrong):
        assert f"| {row['validation_loss']:.3f} | {100 * row['parts_right']:.1f} % |" in page
        more = difference(counts, wrong[0])
        if more.mean:
            assert f"{more.mean:+.2f} [{more.low:+.2f}, {more.high:+.2f}] |".replace("-", "−") in page
    assert difference(wrong[2], wrong[0]).low < 0 < difference(wrong[3], wrong[0]).low


def test_what_bits_and_grammars_do_is_what_the_rows_say(root):
    rows = {(row["server"], row["model"], row["form"]): row for row in load_results("serving")}
    right = {name: [float(digit) for digit in row["exact_by_item"][1:]] for name, row in rows.items()}
    whole, page = right["PyTorch", "adapter", "float32"], page_of(root)
    for server in ("vLLM", "llama.cpp"):
        served = rows[server, "adapter", "float32"]
        assert served["same_as_pytorch"] == served["test"] == 18
    merged = [right["llama.cpp", "merged", form] for form in ("Q8_0", "Q4_0")]
    assert f"{sum(whole):.0f} exact, Q8_0 {sum(merged[0]):.0f}, Q4_0 {sum(merged[1]):.0f} others" in page
    for answers in merged:
        lost = difference(answers, whole)
        points = f"{100 * lost.mean:+.0f} points [{100 * lost.low:+.0f}, {100 * lost.high:+.0f}]".replace("-", "−")
        assert points.replace("+0]", "0]") in page and lost.high >= 0
    for model, free in (("base", "float32, free"), ("adapter", "float32")):
        forms = (free, "float32, response_format", "float32, grammar")
        counts = [f"{sum(right['llama.cpp', model, form]):.0f}" for form in forms]
        assert f"| the {model} | {' | '.join(counts)} |" in page


# --- what was served ----------------------------------------------------------------------------------


def test_the_commands_on_the_page_are_those_that_ran(root):
    page = page_of(root)
    ran = "".join(
        path.read_text(encoding="utf8") for path in (root / "experiments" / "practice" / "transcripts").glob("*.txt")
    )
    blocks = re.findall(r"```bash\n(.*?)```", page, re.S)
    commands = [line for block in blocks for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines()]
    assert len(commands) >= 2
    assert [command for command in commands if command not in ran] == []

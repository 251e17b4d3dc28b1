"""The script examples/fine_tune.py, whole, on tiny chat models: trained, killed, resumed, asked and merged."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import string
import sys
from pathlib import Path

import pytest
import torch
import transformers
import trl
from tiny_chat import letters_tokenizer, tiny_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from lora_lib.data import encode_chat, prompt_ids, read_records

ROWS = "text,kind\n" + "".join(f"{a * 3}{b},{'z' if a in 'abcd' else 'q'}\n" for a in "abcdef" for b in "ghijk")
ENDS = {
    "qwen3": "<|im_end|>",
    "qwen3_8": "<|im_end|>",
    "smollm2": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "llama3": "<|eot_id|>",
}
# SmolLM2's own template; the others are TRL's copies.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def family_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer of single letters with the template of a family of models."""
    inner = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(string.printable)}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=ENDS[name], pad_token="<pad>", bos_token="<bos>")
    if ENDS[name] == "<|im_end|>":
        made.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    if name.startswith("qwen3"):
        made.add_tokens(["<think>", "</think>"])  # no special tokens there: they stay when an answer is decoded
    folder = Path(trl.__file__).parent / "chat_templates"
    made.chat_template = SMOLLM2 if name == "smollm2" else (folder / f"{name}.jinja").read_text()
    return made


def family_model(tokenizer, width: int = 32):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=width, num_hidden_layers=2,
        num_attention_heads=2, eos_token_id=tokenizer.eos_token_id, bos_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def module(root):
    """The script's functions."""
    spec = importlib.util.spec_from_file_location("fine_tune_script", root / "examples" / "fine_tune.py")
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    yield made
    del sys.modules[spec.name]


@pytest.fixture
def script(root, tmp_path, monkeypatch):
    """Runs a command of the script; `stop_at` is a step after which the process dies."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tiny_llama().save_pretrained(tmp_path / "base")
    letters_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "rows.csv").write_text(ROWS)

    usual = transformers.trainer.DEFAULT_CALLBACKS

    def run(*arguments, stop_at=None):
        class Dies(transformers.TrainerCallback):
            def on_step_end(self, args, state, control, **_):
                if state.global_step == stop_at:
                    raise KeyboardInterrupt

        monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", [*usual, Dies])
        monkeypatch.setattr(sys, "argv", ["fine_tune.py", *map(str, arguments)])
        runpy.run_path(str(root / "examples" / "fine_tune.py"), run_name="__main__")

    return run


def train(folder: Path, *more: str) -> list[str]:
    return [
        "train", str(folder / "rows.csv"), "--ask", "text", "--answer", "kind", "--output", str(folder / "run"),
        "--model", str(folder / "base"), "--passes", "16", "--batch", "4", "--looks", "3", "--learning-rate", "0.012",
        "--held-out", "0.2", *more,
    ]  # fmt: skip


def answers_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]


def right(run: Path, who: str) -> int:
    return sum(row[who] == row["wanted"] for row in answers_of(run))


def test_a_file_is_learned_killed_resumed_asked_and_merged(script, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        script(*train(tmp_path), stop_at=31)
    run = tmp_path / "run"
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-24"]
    (run / "checkpoint-30").mkdir()  # as if it had been killed while it wrote this one
    base = [row["base"] for row in answers_of(run)]
    (run / "answers.jsonl").write_text((run / "answers.jsonl").read_text().replace('"base": "', '"base": "kept'))
    with pytest.raises(SystemExit, match="exists already: give another --output, or --resume"):
        script(*train(tmp_path))
    with pytest.raises(SystemExit, match="this run began with other settings: rank = 16"):
        script(*train(tmp_path, "--resume", "--rank", "2"))
    capsys.readouterr()
    script(*train(tmp_path, "--resume"))
    said = capsys.readouterr().out
    state = json.loads((run / "checkpoint-72" / "trainer_state.json").read_text())
    looks = [row["eval_score"] for row in state["log_history"] if "eval_score" in row]
    assert len(looks) == 3 and state["best_metric"] == max(looks)
    assert [row["base"] for row in answers_of(run)] == [f"kept{text}" for text in base]  # not asked a second time
    assert (tmp_path / "rows.csv").read_text() == ROWS
    assert right(run, "adapter") > right(run, "commonest") == 4  # z in 4 of 6 test rows, as in 4 of 6 of all
    assert "answer: 20 z, 10 q" in said and "72 steps at a learning rate of 0.012: about" in said
    assert "(over commonest)" in said
    assert {path.name for path in (run / "adapter").iterdir()} >= {"adapter_config.json", "README.md", "tokenizer.json"}
    assert "add_generation_prompt=True" in (run / "adapter" / "README.md").read_text()
    assert not (run / "README.md").exists()  # TRL's card, with a base of None
    capsys.readouterr()
    script("ask", run, "aaag")
    answer = capsys.readouterr().out.strip().splitlines()[-1]
    assert answer == "z"
    script("merge", run, tmp_path / "merged")
    system = json.loads((run / "run.json").read_text())["system"]
    chat = [{"role": "system", "content": system}, {"role": "user", "content": "aaag"},
            {"role": "assistant", "content": answer}]  # fmt: skip
    ids, targets = encode_chat(chat, letters_tokenizer())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert (merged(ids[None]).logits[0].argmax(-1) == targets)[targets >= 0].all()
    with pytest.raises(SystemExit, match="merged exists already: give another name"):
        script("merge", run, tmp_path / "merged")
    kept = json.loads((run / "run.json").read_text())
    assert (kept["rate"], kept["free"]) == (0.012, [])


def test_two_runs_are_compared_row_by_row(script, tmp_path, capsys):
    def run(name, right, asked="what is it"):
        rows = []
        for i in range(20):
            wanted = json.dumps({"kind": "k", "note": f"n {i}"})
            question = [{"role": "user", "content": f"{asked} {i}"}]
            rows.append({"question": question, "wanted": wanted, "adapter": wanted if i < right else "{}"})
        (tmp_path / name).mkdir()
        (tmp_path / name / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
        (tmp_path / name / "run.json").write_text('{"free": ["note"]}')
        return tmp_path / name

    one, two, other = run("one", 5), run("two", 18), run("other", 18, "another question")
    capsys.readouterr()
    script("compare", one, two)
    said = capsys.readouterr().out
    assert "note (words)" in said and "+65% [" in said and "(words)  " in said and "a validation part" in said
    assert "not settled" not in said.split("exact")[2].splitlines()[0]
    with pytest.raises(SystemExit, match="one and .*other: two finished runs with the same file"):
        script("compare", one, other)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--max-length", "8"], "rows.csv, line [0-9]+: .* tokens with its template, more than --max-length 8"),
        (["--answer", "sort"], "expected one column 'sort', found the columns"),
        (["--passes", "0.1"], "are 0 steps, fewer than --looks 3"),
        (["--accumulate", "3"], "--batch 4 cannot be cut into --accumulate 3 equal parts"),
        (["--batch", "0"], 2), (["--looks", "0"], 2), (["--watch", "0"], 2), (["--rank", "0"], 2),
        (["--shots", "-1"], 2), (["--learning-rate", "0"], 2), (["--learning-rate", "-1"], 2),
        (["--passes", "0"], 2), (["--passes", "nan"], 2), (["--alpha", "0"], 2), (["--dropout", "1"], 2),
        (["--held-out", "0.5"], 2),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said_before_anything_is_written(script, tmp_path, capsys, more, said):
    with pytest.raises(SystemExit) as stopped:
        script(*train(tmp_path, *more))
    if said == 2:
        assert stopped.value.code == 2 and f"argument {more[0]}: expected" in capsys.readouterr().err
    else:
        assert stopped.match(said)
    assert not (tmp_path / "run").exists()


def test_one_process_and_one_gpu(script, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SystemExit, match="uses one GPU, and sees several: choose one, CUDA_VISIBLE_DEVICES=0"):
        script(*train(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="runs in one process: start it with python"):
        script(*train(tmp_path))
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit, match="there is no file nope/run.json"):
        script("ask", "nope", "x")


@pytest.mark.parametrize("name", ENDS)
def test_each_family_is_asked_as_it_was_trained(module, tmp_path, name):
    tokenizer = family_tokenizer(name)
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "hello", "kind": "new", "mood": "good"}) + "\n")
    (record,) = read_records(path, ["text"], ["kind", "mood"])
    if name == "gemma":  # its template takes no system turn
        with pytest.raises(ValueError, match="line 1: .*System role not supported.*--system none"):
            module.Task(tokenizer, "Sort.").learned(record)
    task = module.Task(tokenizer, "" if name == "gemma" else "Sort.")
    (row,) = task.learned(record)
    asked = prompt_ids(task.chat(record)[:-1], tokenizer)
    rest = tokenizer.decode(row["input_ids"][len(asked) :])
    assert rest.strip() == '{"kind": "new", "mood": "good"}' + ENDS[name]  # what is left to write once it is asked
    learned = [token for token, on in zip(row["input_ids"], row["completion_mask"]) if on]
    text = tokenizer.decode(learned)
    assert text.strip().endswith('"good"}' + ENDS[name]) and "hello" not in text
    assert ("<think>" in text) == (name == "qwen3")  # so that it answers right where it is asked with thinking too


def test_thoughts_that_would_not_be_asked_for_are_refused(module, tmp_path):
    path = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "c"}]
    path.write_text(json.dumps({"messages": turns}))
    with pytest.raises(ValueError, match="line 1: it is learned with thoughts, and asked without: take them out"):
        module.Task(family_tokenizer("qwen3"), "").learned(*read_records(path))


@pytest.mark.parametrize("name", ENDS)
def test_a_right_answer_scores_whatever_the_template_puts_before_it(module, tmp_path, name, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "hello", "kind": "new", "mood": "good"}) + "\n")
    records = read_records(path, ["text"], ["kind", "mood"])
    tokenizer = family_tokenizer(name)
    task = module.Task(tokenizer, "")
    (row,) = task.learned(records[0])
    prompts = []

    def writes_what_was_learned(model, tokenizer, asked, room, **_):
        prompts.extend(asked)
        return [tokenizer.decode([t for t, on in zip(row["input_ids"], row["completion_mask"]) if on][:-1])] * len(
            asked
        )

    monkeypatch.setattr(module, "generate_text", writes_what_was_learned)
    answers = [text.removesuffix(ENDS[name]) for text in task.answers(None, records)]
    assert task.judge(answers, records) == {"exact": [1], "JSON": [1], "kind": [1], "mood": [1]}
    assert tokenizer.decode(prompts[0]).endswith("</think>\n\n") == name.startswith("qwen3")


def test_thoughts_are_taken_out_of_an_answer_and_nothing_else(module):
    for text in (
        "<think>\n\n</think>\n\nyes",
        "<think>a <b> c</think>yes",
        "thoughts that the prompt began</think>\nyes",
    ):
        assert module.without_thinking(text) == "yes"
    for text in ("yes", "<think>it never ends", 'say "<think>a</think>"'):
        assert module.without_thinking(text) == text


def test_a_thinking_model_learns_from_a_file(script, tmp_path, monkeypatch, capsys):
    tokenizer = family_tokenizer("qwen3")
    family_model(tokenizer).save_pretrained(tmp_path / "thinks")
    tokenizer.save_pretrained(tmp_path / "thinks")
    script(*train(tmp_path, "--model", str(tmp_path / "thinks"), "--system", "none", "--shots", "0",
                  "--learning-rate", "0.004"))  # fmt: skip
    assert right(tmp_path / "run", "adapter") > right(tmp_path / "run", "base")
    assert not any("think" in row["adapter"] for row in answers_of(tmp_path / "run"))
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "run/adapter/README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path / "run" / "adapter")
    capsys.readouterr()
    exec(code, {})
    assert capsys.readouterr().out.strip() == answers_of(tmp_path / "run")[0]["adapter"]


def test_the_rate_follows_the_family_and_the_true_size(module, monkeypatch):
    def rate(family, count):
        fake = torch.nn.Module()
        fake.config = type("Config", (), {"model_type": family})
        fake.num_parameters = lambda: count
        return module.starting_rate(fake)

    assert [rate("llama", 1.3e8), rate("llama", 8e9), rate("qwen3", 8e9), rate("qwen3", 3.2e10)] == [
        1e-3, 2e-4, 1e-3, 3e-4,
    ]  # fmt: skip
    assert [rate("qwen3_5", 4e9), rate("gpt_oss", 2e10), rate("qwen2", 5e8)] == [3e-4, 1e-4, 1e-3]


def test_a_4_bit_base_is_counted_whole_and_merged_as_it_was_scored(module, script, tmp_path):
    tokenizer = family_tokenizer("smollm2")
    wide = family_model(tokenizer, 64)
    folder = tmp_path / "base64"
    wide.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    narrow, _ = module.load(str(folder), quantise=True)
    assert narrow.num_parameters() == wide.num_parameters() > sum(p.numel() for p in narrow.parameters())
    more = ["--model", str(folder), "--quantise", "--system", "none", "--shots", "0", "--passes", "2"]
    script(*train(tmp_path, *more))
    script("merge", tmp_path / "run", tmp_path / "merged")
    beside = module.PeftModel.from_pretrained(narrow, tmp_path / "run" / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    ids = torch.arange(40)[None] + 10
    beside(ids)  # as if it had answered: on some CPUs bitsandbytes then packed the weights, and no gradient passed
    learning = module.PeftModel.from_pretrained(narrow, tmp_path / "run" / "adapter", "two", is_trainable=True).train()
    learning(ids, labels=ids).loss.backward()
    for name, factor in learning.named_parameters():
        assert not ("lora_B" in name and factor.requires_grad) or factor.grad.abs().max() > 0, name
    learning.delete_adapter("two")
    with torch.no_grad():
        scored, handed = beside(ids).logits.float(), merged(ids).logits
        other = module.PeftModel.from_pretrained(wide, tmp_path / "run" / "adapter").eval()(ids).logits
    near, far = (handed - scored).abs().mean(), (other - scored).abs().mean()
    assert near < 0.2 * far, (near, far)  # not merged into the weights as they were before rounding


def test_labels_are_counted_and_what_is_odd_is_said(module, tmp_path, capsys):
    path = tmp_path / "rows.csv"
    lines = [
        f"question {i},{label},word {i}" for i, label in enumerate(["Bill"] + ["bill"] * 9 + ["lost"] * 9 + ["rare"])
    ]
    path.write_text("ask,kind,note\n" + "\n".join(lines) + "\n")
    records = read_records(path, ["ask"], ["kind", "note"])
    classes, free = module.look_at_labels(records)
    parts = module.split_by_class(records, classes, 0.2, 0)
    said = capsys.readouterr().out
    assert (list(classes), free) == (["kind"], ["note"])
    assert "kind: 9 bill, 9 lost, 1 Bill, 1 rare" in said and "note: 20 different values" in said
    assert said.count("count as two classes") == 1 and "'bill' and 'Bill' count" in said
    assert "in the validation part" in said and "have two answers" not in said
    for part in (parts.validation, parts.test):  # about as many of each as in the file
        kinds = [json.loads(r.exchanges[0].completion)["kind"] for r in part]
        assert len(part) == 4 and 1 <= kinds.count("bill") <= 2 and 1 <= kinds.count("lost") <= 2
    assert len(parts.train) == 12


def test_rows_with_one_question_stay_in_one_part(module, tmp_path, capsys):
    path = tmp_path / "rows.csv"
    path.write_text("ask,kind\n" + "".join(f"question {i // 3},{'ab'[i % 2]}\n" for i in range(60)))
    records = read_records(path, ["ask"], ["kind"])
    parts = module.split_by_class(records, module.look_at_labels(records)[0], 0.2, 0)
    said = capsys.readouterr().out
    assert said.count("ask the same and have two answers") == 20 and "line 2 and " in said and "line 3 ask" in said
    seen = [{r.exchanges[0].prompt for r in part} for part in (parts.train, parts.validation, parts.test)]
    assert sum(map(len, seen)) == 20 == len(set().union(*seen)) and list(map(len, seen)) == [12, 4, 4]


TOOL = {"type": "function", "function": {"name": "find", "description": "look up", "parameters": {
    "type": "object", "properties": {"place": {"type": "string"}}}}}  # fmt: skip


def test_chats_of_several_turns_and_tools(module, script, tmp_path):
    call = {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "find", "arguments": {"place": "oslo"}}}]}  # fmt: skip
    chats = []
    for a in "abcdefghij":
        turns = [{"role": "user", "content": f"where is {a}"}, call, {"role": "tool", "content": f"north {a}"},
                 {"role": "assistant", "content": "north"}]  # fmt: skip
        chats.append({"messages": turns, "tools": [TOOL]})
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, chats)))
    tokenizer = family_tokenizer("qwen3")
    task = module.Task(tokenizer, "")
    first, last = task.learned(read_records(path)[0])
    learned = [
        tokenizer.decode([t for t, on in zip(r["input_ids"], r["completion_mask"]) if on]) for r in (first, last)
    ]
    assert '{"name": "find", "arguments": {"place": "oslo"}}' in learned[0] and "north" in learned[1]
    assert "find" not in learned[1] and "look up" in tokenizer.decode(first["input_ids"])
    family_model(tokenizer).save_pretrained(tmp_path / "thinks")
    tokenizer.save_pretrained(tmp_path / "thinks")
    script("train", path, "--output", tmp_path / "run", "--model", tmp_path / "thinks", "--max-length", 2000,
           "--looks", 1, "--passes", 1, "--shots", 1)  # fmt: skip
    rows = answers_of(tmp_path / "run")
    assert {row["wanted"] for row in rows} == {"north"} and [t["role"] for t in rows[0]["question"]][-1] == "tool"
    with pytest.raises(SystemExit, match="name the columns, --ask and --answer; only a .jsonl of chats needs none"):
        script("train", tmp_path / "rows.csv", "--output", tmp_path / "other", "--model", tmp_path / "base")


def test_a_file_of_excel_with_semicolons(module, script, tmp_path):
    (tmp_path / "rows.csv").write_text(ROWS.replace(",", ";"))
    with pytest.raises(SystemExit, match="and the delimiter between them is ','"):
        script(*train(tmp_path))
    path = tmp_path / "rows.csv"
    assert read_records(path, ["text"], ["kind"], delimiter=";")[0].exchanges[0] == ("aaag", "z")


def test_a_step_in_parts_is_the_same_step(script, tmp_path):
    for name, more in {"run": [], "parts": ["--accumulate", "2", "--output", str(tmp_path / "parts")]}.items():
        script(*train(tmp_path, "--shots", "0", "--passes", "2", "--looks", "1", *more))
        assert (tmp_path / name / "adapter").is_dir()
    both = [json.loads((tmp_path / n / "checkpoint-9" / "trainer_state.json").read_text()) for n in ("run", "parts")]
    assert both[0]["global_step"] == both[1]["global_step"] == 9
    one, two = (state["log_history"][0]["loss"] for state in both)
    assert one == pytest.approx(two, rel=1e-3)

"""The script examples/fine_tune.py, whole, on a tiny chat model: trained, killed, resumed, asked and merged."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import transformers
from tiny_chat import letters_tokenizer, tiny_llama

from lora_lib.data import encode_chat

ROWS = "text,kind\n" + "".join(f"{a}{b},z\n" for a in "abcdef" for b in "ghijk")


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
        "--model", str(folder / "base"), "--passes", "12", "--batch", "4", "--looks", "3", "--learning-rate", "0.03",
        "--held-out", "0.2", *more,
    ]  # fmt: skip


def test_a_file_is_learned_killed_resumed_asked_and_merged(script, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        script(*train(tmp_path), stop_at=25)
    run = tmp_path / "run"
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-18"]
    (run / "checkpoint-24").mkdir()  # as if it had been killed while it wrote this one
    base = (run / "base_scores.json").read_bytes()
    with pytest.raises(SystemExit, match="exists already: give another --output, or --resume"):
        script(*train(tmp_path))
    with pytest.raises(SystemExit, match="this run began with other settings: rank = 16"):
        script(*train(tmp_path, "--resume", "--rank", "2"))
    script(*train(tmp_path, "--resume"))
    state = json.loads((run / "checkpoint-54" / "trainer_state.json").read_text())
    looks = [row["eval_score"] for row in state["log_history"] if "eval_score" in row]
    assert len(looks) == 3 and state["best_metric"] == max(looks)
    assert (run / "base_scores.json").read_bytes() == base and (tmp_path / "rows.csv").read_text() == ROWS
    scores = json.loads((run / "scores.json").read_text())
    assert len(scores["adapter"]["exact"]) == 6 and sum(scores["adapter"]["exact"]) > sum(scores["base"]["exact"])
    assert {path.name for path in (run / "adapter").iterdir()} >= {"adapter_config.json", "README.md", "tokenizer.json"}
    assert "add_generation_prompt=True" in (run / "adapter" / "README.md").read_text()
    capsys.readouterr()
    script("ask", run, "ag")
    answer = capsys.readouterr().out.strip().splitlines()[-1]
    assert answer == "z"
    script("merge", run, tmp_path / "merged")
    system = json.loads((run / "run.json").read_text())["system"]
    chat = [{"role": "system", "content": system}, {"role": "user", "content": "ag"},
            {"role": "assistant", "content": answer}]  # fmt: skip
    ids, targets = encode_chat(chat, letters_tokenizer())
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert (merged(ids[None]).logits[0].argmax(-1) == targets)[targets >= 0].all()
    with pytest.raises(SystemExit, match="merged exists already: give another name"):
        script("merge", run, tmp_path / "merged")


def test_what_cannot_be_used_is_said_before_anything_is_written(script, tmp_path):
    for more, said in (
        (["--max-length", "8"], "rows.csv, line 2: .* tokens with its template, more than --max-length 8"),
        (["--answer", "sort"], "expected one column 'sort', found the columns"),
    ):
        with pytest.raises(SystemExit, match=said):
            script(*train(tmp_path, *more))
        assert not (tmp_path / "run").exists()

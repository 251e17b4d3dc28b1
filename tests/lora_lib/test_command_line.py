"""`python -m lora_lib train`, in one process and in two."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import fresh
import pytest
import torch
from safetensors.torch import load_file
from tiny_chat import letters_tokenizer, tiny_llama
from torch import distributed as dist
from torch.nn import functional as F

from lora_lib import GPT2Config, GPT2Model, PeftModel, get_peft_model, load_model, load_pretrained
from lora_lib.__main__ import main
from lora_lib.gpt2 import save_pretrained_folder
from lora_lib.run.commands import FIT, LORA, RUN_FILE, RunConfig, read_parts
from lora_lib.training import loss_sum

PAIRS = [{"prompt": f"{i} =>", "completion": " one more is" + f" {i + 1}" * (1 + i % 3)} for i in range(11)]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> dict:
    """A model of 0.2M parameters, and 11 examples in batches of 5: the last of a pass has one row for two processes."""
    folder = tmp_path_factory.mktemp("train")
    torch.manual_seed(0)
    tokenizer = load_pretrained("gpt2-mini")[1]
    small = GPT2Config(
        tokenizer.vocab_size, 64, n_embd=16, n_head=2, n_layer=2, embd_pdrop=0, resid_pdrop=0, attn_pdrop=0
    )
    save_pretrained_folder(GPT2Model(small), tokenizer, folder / "model")
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, PAIRS)) + "\n")
    return {
        "data": str(folder / "data.jsonl"), "model": str(folder / "model"), "max_length": 64,
        "fit": {"steps": 6, "batch_size": 5, "accumulate": 2, "learning_rate": 0.01, "bf16": False, "progress": False},
    }  # fmt: skip


def run(config: dict, folder: Path, processes: int = 1, torchrun: bool = False) -> tuple[Path, int]:
    """Train in processes of their own; returns the output folder, and the bytes of gradients a step that are told."""
    folder.mkdir()
    file = folder / "config.json"
    file.write_text(json.dumps({**config, "output": str(folder / "out")}))
    if torchrun:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "lora_lib"]
        done = subprocess.run([sys.executable, *command, "train", str(file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said = done.stdout
    else:
        ended = fresh.run_together(main, *[(["train", str(file)],)] * processes, folder=folder)
        assert [process.status for process in ended] == [0] * processes, ended[0].stderr
        said = "".join(process.stdout for process in ended)
    (count,) = re.findall(r"summed over the processes: ([\d,]+) bytes a step", said)  # once: by the first process
    return folder / "out", int(count.replace(",", ""))


def difference(a: Path, b: Path) -> float:
    """The largest between two files of the same tensors."""
    ours, theirs = load_file(a), load_file(b)
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


def test_two_processes_make_the_adapter_of_one_and_exchange_no_more_than_its_gradients(config, tmp_path):
    config = {**config, "lora": {"lora_rank": 4}, "gradient_checkpointing": True}
    one, alone = run(config, tmp_path / "one")
    two, shared = run(config, tmp_path / "two", processes=2, torchrun=True)
    assert difference(one / "adapter_model.safetensors", two / "adapter_model.safetensors") < 1e-5
    assert any(t.abs().max() > 0.01 for n, t in load_file(one / "adapter_model.safetensors").items() if "lora_B" in n)
    model = PeftModel.from_pretrained(load_model(config["model"]), two)
    lora = sum(p.numel() for layer in model.lora_layers().values() for p in layer.adapters.parameters())
    assert (alone, shared) == (0, 4 * lora)


def test_full_fine_tuning_exchanges_every_weight(config, tmp_path):
    one, _ = run({**config, "method": "full"}, tmp_path / "one")
    two, shared = run({**config, "method": "full"}, tmp_path / "two", processes=2)
    assert difference(one / "model.safetensors", two / "model.safetensors") < 1e-5
    assert difference(one / "model.safetensors", Path(config["model"]) / "model.safetensors") > 0.01
    assert shared == 4 * sum(p.numel() for p in load_model(two).parameters())


def shared_out() -> None:
    """In each of two processes: a base cut into shares by FSDP has the gradients of the whole one."""
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    process, processes = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    config = GPT2Config(500, 32, n_embd=64, n_head=4, n_layer=2, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0)
    whole = get_peft_model(GPT2Model(config), "all-linear", 4).enable_lora_training()
    for layer in whole.lora_layers().values():
        torch.nn.init.normal_(layer.adapters["default"].B, std=0.05)
    shared = copy.deepcopy(whole)
    for block in shared.h:
        fully_shard(block)
    fully_shard(shared)
    ids = torch.randint(500, (4, 32))
    logits = shared(ids[process::processes])
    F.cross_entropy(logits.flatten(0, 1), ids[process::processes].flatten()).backward()
    (loss_sum(whole, ids, ids) / ids.numel()).backward()
    learned = dict(whole.named_parameters())
    for name, p in shared.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad.full_tensor(), learned[name].grad, rtol=1e-4, atol=1e-6)
            assert learned[name].grad.any()
    held, total = sum(p.to_local().numel() for p in shared.parameters()), sum(p.numel() for p in whole.parameters())
    assert held == total // 2
    print(process, "of", processes)
    dist.destroy_process_group()


def test_a_base_shared_out_over_two_processes_gives_the_same_gradients(tmp_path):
    pytest.importorskip("torch.distributed.fsdp", reason="this PyTorch is built without it")
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11):
        pytest.skip("on a CPU, PyTorch 2.8 runs it with other gradients; 2.11 is the oldest that was seen to be right")
    ended = fresh.run_together(shared_out, (), (), folder=tmp_path)
    assert [process.stdout for process in ended] == ["0 of 2\n", "1 of 2\n"], ended[0].stderr
    assert [process.status for process in ended] == [0, 0], ended[0].stderr


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": None}, '"data" is missing, and must be given'),
        ({"output": None}, '"output" is missing, and must be given'),
        ({"dat": "x"}, "there is no setting dat. Did you mean 'data'? Expected one of data, output, model"),
        ({"method": "qlora"}, "method must be one of 'lora', 'full', got 'qlora'"),
        ({"model": 3}, "model must be a text that is not empty, got 3"),
        ({"output": ""}, "output must be a text that is not empty, got ''"),
        ({"data": ["a.csv"]}, "data must be a text that is not empty, got ['a.csv']"),
        ({"max_length": 0}, "max_length must be a whole number from 1, got 0"),
        (
            {"gradient_checkpointing": "no"},
            "gradient_checkpointing must be True or False, got 'no'",
        ),
        ({"lora": 3}, "lora must be an object, {…}, got 3"),
        ({"lora": {"rank": 8}}, "there is no setting lora.rank."),
        ({"lora": {"adapter_cls": "LoRA"}}, "there is no setting lora.adapter_cls"),
        ({"lora": {"r": 8, "lora_rank": 8}}, "lora.r and lora_rank are the same setting: give one of them"),
        ({"lora": {"r": "8"}}, "lora.r "),
        (
            {"method": "full", "lora": {"r": 8}},
            'method is "full", which trains every weight, so "lora" would do nothing',
        ),
        ({"ask": ["a"]}, '"ask" and "answer" name columns together'),
        ({"ask": "a", "answer": ["b"]}, "ask must be a list of names, got 'a'"),
        ({"validation": 1}, "validation must be a share of the data from 0, below 1, or the name of a file, got 1"),
        ({"data": "a.csv", "select": "score"}, 'select is "score", which needs a "validation"'),
        ({"select": "exact"}, "select must be one of 'loss', 'score', got 'exact'"),
        ({"dtype": "int8"}, "dtype must be one of 'float32', 'bfloat16', got 'int8'"),
        ({"fit": [3]}, "fit must be an object, {…}, got [3]"),
        ({"fit": {"step": 8}}, "there is no setting fit.step. Did you mean 'steps'? Expected one of steps"),
        ({"fit": {"steps": 8, "validation": []}}, "there is no setting fit.validation"),
        ({"fit": {"batch_size": 8}}, "fit needs steps, the number of steps, or passes over the data"),
        ({"fit": {"steps": 0}}, "fit.steps must be a whole number from 1 to 1000000000, or None, got 0"),
        (
            {"fit": {"steps": 8, "learning_rate": "1e-3"}},
            "fit.learning_rate must be a number above 0, at most 1e30, got '1e-3'",
        ),
        ({"fit": {"steps": 8, "bf16": "yes"}}, "fit.bf16 must be True or False, or None, got 'yes'"),
    ],
)
def test_a_wrong_config_is_refused_by_name(tmp_path, change, message):
    file = tmp_path / "config.json"
    values = {"data": "restaurants", "output": "out", **change}
    values = {name: None if value == "null" else value for name, value in values.items() if value is not None}
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: {re.escape(message)}"):
        RunConfig.read(file)


def test_what_is_no_config_is_refused_with_its_place(tmp_path):
    file = tmp_path / "file.json"
    for text, message in {
        "{": "not JSON", "[]": "expected one JSON object, {…}, found a list", "": "is empty",
    }.items():  # fmt: skip
        file.write_text(text)
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            RunConfig.read(file)
        assert str(file) in str(caught.value)
    with pytest.raises(FileNotFoundError, match="there is no file .*none.json"):
        RunConfig.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fit": {"steps": 0}}, "config.json: fit.steps must be a whole number from 1"),
        ({"output": "{folder}/config.json/out"}, "cannot be written to: .* is not a folder; choose another place"),
        ({"output": "{folder}/config.json"}, "cannot be written to: .* is not a folder; choose another place"),
        ({"data": "{folder}/none.csv"}, "there is no file .*none.csv"),
        ({"model": "gtp2"}, "no model 'gtp2'"),
        ({"lora": {"lora_rank": "8"}}, "lora.r "),
        ({"lora": {"rank_pattern": 3}}, "lora.rank_pattern "),
        ({"lora": {"target_modules": 3}}, "lora.target_modules "),
        ({"lora": {"use_dora": "yes"}}, "lora.use_dora "),
        ({"lora": {"trainable_token_indices": [1]}}, "lora.trainable_token_indices is not supported"),
        ({"fit": {"steps": 1, "checkpoint": "{folder}/config.json"}}, "is used for something else: name another file"),
        (
            {"fit": {"steps": 3, "learning_rate": 1e30, "progress": False}},
            "at step 2: the run diverged; try a smaller learning_rate",
        ),
    ],
)
def test_the_command_says_it_in_one_line_and_has_status_2(config, tmp_path, capsys, monkeypatch, change, message):
    file, written = tmp_path / "config.json", json.dumps({**config, "output": "{folder}/out", **change})
    file.write_text(written.replace("{folder}", str(tmp_path)))
    monkeypatch.setattr(sys, "argv", ["lora_lib", "train", str(file)])
    with pytest.raises(SystemExit) as caught:
        main()
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and re.search(message, err) and err.count("\n") == 1 and err.endswith("\n")
    assert "tokens/s" not in out and [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_an_output_that_cannot_be_written_is_noticed_before_anything_is_read(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lora_lib.run.commands.load_any", lambda *name: pytest.fail("too late"))
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "config.json").write_text(json.dumps({**config, "output": str(tmp_path / "taken" / "out")}))
    with pytest.raises(SystemExit):
        main(["train", str(tmp_path / "config.json")])
    assert "taken" in capsys.readouterr().err


# --- what it takes ----------------------------------------------------------------------------------------------


def parts_of(folder: Path, data: str, **more):
    return read_parts(RunConfig(str(folder / data), "out", **more))


def test_every_kind_of_file_is_taken(tmp_path):
    pair, chat = PAIRS[0], {"messages": [{"role": "user", "content": "0"}, {"role": "assistant", "content": "1"}]}
    files = {
        "pairs.jsonl": json.dumps(pair), "chats.jsonl": json.dumps(chat),
        "pairs.csv": f"prompt,completion\n{pair['prompt']},{pair['completion']}\n",
        "PAIRS.TSV": f"completion\tprompt\n{pair['completion']}\t{pair['prompt']}\n",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        parts = parts_of(tmp_path, name)
        (record,) = parts.train
        assert record.exchanges == ((("user: 0\nassistant:", " 1"),) if "chats" in name else (tuple(pair.values()),))
        assert parts.validation == parts.test == []
    with pytest.raises(ValueError, match="python -m lora_book restaurants > restaurants.jsonl"):
        read_parts(RunConfig("restaurants", "out"))
    for name, text, message in (
        ("pairs.txt", "a", r"pairs.txt: its name must end in .jsonl \(pairs or chats\), .csv or .tsv"),
        ("pairs.jsonl", json.dumps(pair) + '\n{"prompt": "a"}', "pairs.jsonl, line 2: no 'completion'"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            parts_of(tmp_path, name)


def test_shares_and_files_are_held_out(tmp_path):
    rows = [{"text": f"{i} is", "kind": "a" if i % 2 else "b", "size": i} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "more.jsonl").write_text(
        "\n".join(json.dumps({**row, "text": f"{row['text']} not"}) for row in rows[:3])
    )
    columns = {"ask": ["text"], "answer": ["kind", "size"]}
    parts = parts_of(tmp_path, "rows.jsonl", validation=0.1, test=0.2, **columns)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [28, 4, 8]
    assert json.loads(parts.train[0].exchanges[0].completion).keys() == {"kind", "size"}
    parts = parts_of(tmp_path, "rows.jsonl", validation=0.1, test=str(tmp_path / "more.jsonl"), **columns)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [36, 4, 3]
    for name in ("validation", "test"):
        with pytest.raises(ValueError, match=f'40 of 40 items in "{name}" are in "data" too: take them out of one'):
            parts_of(tmp_path, "rows.jsonl", **{name: str(tmp_path / "rows.jsonl")}, **columns)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": "{model}"}, '"output" is the folder of "model"'),
        ({"fit": {"steps": 1, "checkpoint": "{folder}/out"}}, "fit.checkpoint is .*out, which is used for something"),
        ({"fit": {"steps": 1, "checkpoint": "{data}"}}, "fit.checkpoint is .*data.jsonl, which is used for something"),
        (
            {"fit": {"steps": 1, "checkpoint": "{folder}/out/adapter_model.safetensors"}},
            "a checkpoint cannot be called",
        ),
        ({"fit": {"steps": 1, "checkpoint": "{folder}"}}, "is a folder: name a file in it"),
    ],
)
def test_what_would_overwrite_what_is_read_is_refused_before_the_training(config, tmp_path, capsys, change, message):
    written = json.dumps({**config, "output": str(tmp_path / "out"), **change})
    for name, path in {"model": config["model"], "data": config["data"], "folder": str(tmp_path)}.items():
        written = written.replace(f"{{{name}}}", path)
    (tmp_path / "run.json").write_text(written)
    before = {path: path.read_bytes() for path in Path(config["data"]).parent.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as caught:
        main(["train", str(tmp_path / "run.json")])
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and re.search(message, err) and "tokens/s" not in out
    assert {path: path.read_bytes() for path in before} == before
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("checkpoint", ["", "named", "written"])
def test_ctrl_c_ends_in_a_line(config, tmp_path, capsys, monkeypatch, checkpoint):
    def stopped(*args, **kwargs):
        if checkpoint == "written":
            (tmp_path / "run.safetensors").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("lora_lib.run.commands.fit", stopped)
    more = {"checkpoint": str(tmp_path / "run.safetensors")} if checkpoint else {}
    values = {**config, "output": str(tmp_path / "out"), "fit": {**config["fit"], **more}}
    (tmp_path / "run.json").write_text(json.dumps(values))
    with pytest.raises(SystemExit) as caught:
        main(["train", str(tmp_path / "run.json")])
    told = (
        f"start it again to go on from {tmp_path / 'run.safetensors'}"
        if checkpoint == "written"
        else "nothing was saved"
    )
    assert caught.value.code == 130 and capsys.readouterr().err == f"\nstopped: {told}\n"


# --- from a file to a score -------------------------------------------------------------------------------------


def test_a_file_is_trained_on_asked_and_scored(config, tmp_path, capsys):
    """The small GPT-2 learns one answer to every question by heart, and the base knows none."""
    rows = [{"text": f"question {i}", "kind": "yes"} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {
        **config, "data": str(tmp_path / "rows.jsonl"), "ask": ["text"], "answer": ["kind"], "validation": 0.2,
        "test": 0.2, "output": str(tmp_path / "out"), "max_new_tokens": 4, "select": "score", "method": "full",
        "fit": {"passes": 60, "batch_size": 8, "learning_rate": 0.01, "validate_every": 20, "patience": 2,
                "keep_best": True, "progress": False},
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(values))
    main(["train", str(tmp_path / "run.json")])
    assert "best score 1.00 after" in capsys.readouterr().out
    main(["score", str(tmp_path / "run.json")])
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "5 test items" and told[1].split() == ["exact", "words"]
    assert [line.split()[:2] for line in told[2:5]] == [["constant", "100%"], ["base", "0%"], ["trained", "100%"]]
    # One answer to every question shows no more than its being the commonest.
    assert told[6].startswith("exact") and told[6].endswith("not settled  (over constant)")
    main(["generate", str(tmp_path / "run.json"), "question 7", "question 99"])
    assert capsys.readouterr().out.split() == ["yes", "yes"]
    main(["generate", str(tmp_path / "run.json"), "question 7", "--base"])
    assert "yes" not in capsys.readouterr().out
    for command, change, told in (
        ("score", {"test": 0}, 'there is nothing to score on: give "test"'),
        ("score", {"test": 0.3}, "was trained with test = 0.2, now it is 0.3: test items may have"),
        ("score", {"fit": {**values["fit"], "seed": 1}}, "was trained with seed = 0, now it is 1"),
        ("train", {"max_length": 99}, 'holds another run\'s result: name another folder, or set "overwrite": true'),
    ):
        (tmp_path / "run.json").write_text(json.dumps({**values, **change}))
        with pytest.raises(SystemExit):
            main([command, str(tmp_path / "run.json")])
        assert told in capsys.readouterr().err
    (tmp_path / "out" / RUN_FILE).unlink()  # as an earlier release left it
    (tmp_path / "run.json").write_text(json.dumps(values))
    with pytest.raises(SystemExit):
        main(["train", str(tmp_path / "run.json")])
    assert "holds another run's result" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_folder_of_hugging_faces_is_trained_and_asked(tmp_path, capsys, method):
    tiny_llama().save_pretrained(tmp_path / "base")
    letters_tokenizer().save_pretrained(tmp_path / "base")
    before = {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()}
    for name, letters in (("rows", "abcdefgh"), ("test", "ijkl")):
        rows = [{"prompt": letter, "completion": "zq"} for letter in letters]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {
        "data": str(tmp_path / "rows.jsonl"), "model": str(tmp_path / "base"), "output": str(tmp_path / "out"),
        "system": "be kind", "method": method, "max_new_tokens": 4, "test": str(tmp_path / "test.jsonl"),
        "gradient_checkpointing": True, "lora": {"adapter_name": "mine"} if method == "lora" else {},
        "fit": {"steps": 60, "batch_size": 8, "learning_rate": 0.02, "progress": False},
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(values))
    main(["train", str(tmp_path / "run.json")])
    capsys.readouterr()
    main(["generate", str(tmp_path / "run.json"), "b"])
    assert capsys.readouterr().out.replace(" ", "") == "zq\n"
    main(["score", str(tmp_path / "run.json")])
    assert "4 test items" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()} == before


def test_the_help_tells_of_every_setting(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", "run.json", "--help"])
    said = capsys.readouterr().out
    assert caught.value.code == 0
    for name in [*RunConfig.__dataclass_fields__, *LORA, *FIT]:
        assert re.search(rf"\b{name}\b", said), name
    assert {"target_modules", "r", "lora_rank", "adapter_name", "use_dora", "modules_to_save"} < set(LORA)
    assert {"steps", "checkpoint", "progress"} < set(FIT) and not {"adapter_cls", "settings", "model", "lr_ratio"} & {
        *LORA,
        *FIT,
    }

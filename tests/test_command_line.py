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
from torch import distributed as dist
from torch.nn import functional as F

from lora_lib import GPT2Config, GPT2Model, PeftModel, get_peft_model, load_model, load_pretrained
from lora_lib.__main__ import FIT, LORA, TrainConfig, main, read_examples
from lora_lib.gpt2 import MINI_FOLDER, read_tokenizer, save_pretrained_folder
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
        ({"dat": "x"}, "there is no setting dat; expected one of data, output, model"),
        ({"method": "qlora"}, '''method = "qlora" is not a value it can have: expected "lora" or "full"'''),
        ({"model": 3}, "model = 3 is not a value it can have: expected a text"),
        ({"output": ""}, 'output = "" is not a value it can have: expected a text'),
        ({"data": ["a.csv"]}, 'data = ["a.csv"] is not a value it can have: expected a text'),
        ({"max_length": 0}, "max_length = 0 is not a value it can have: expected a whole number from 1"),
        (
            {"gradient_checkpointing": "no"},
            'gradient_checkpointing = "no" is not a value it can have: expected true or',
        ),
        ({"lora": "null"}, "lora = null is not a value it can have: expected an object"),
        ({"lora": {"rank": 8}}, "there is no setting lora.rank; expected one of target_modules, lora_rank"),
        ({"lora": {"kind": "LoRA"}}, "there is no setting lora.kind"),
        ({"lora": {"r": 8}}, "there is no setting lora.r; expected one of target_modules, lora_rank"),
        ({"fit": [3]}, "fit = [3] is not a value it can have: expected an object"),
        ({"fit": {"step": 8}}, "there is no setting fit.step; expected one of steps"),
        ({"fit": {"steps": 8, "validation": []}}, "there is no setting fit.validation"),
        ({"fit": {"batch_size": 8}}, '"fit" needs "steps"'),
        ({"fit": {"steps": 0}}, "fit.steps = 0 is not a value it can have: expected a whole number from 1"),
        (
            {"fit": {"steps": 8, "learning_rate": "1e-3"}},
            "fit.learning_rate = '1e-3' is not a value it can have",
        ),
        ({"fit": {"steps": 8, "bf16": "yes"}}, "fit.bf16 = 'yes' is not a value it can have: expected True, False or"),
    ],
)
def test_a_wrong_config_is_refused_by_name(tmp_path, change, message):
    file = tmp_path / "config.json"
    values = {"data": "restaurants", "output": "out", **change}
    values = {name: None if value == "null" else value for name, value in values.items() if value is not None}
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: {re.escape(message)}"):
        TrainConfig.read(file)


def test_what_is_no_config_is_refused_with_its_place(tmp_path):
    file = tmp_path / "file.json"
    for text, message in {
        "{": "not JSON", "[]": "expected one JSON object, {…}, found a list", "": "is empty",
        '{"output": "a", "output": "b"}': "the key 'output' comes twice in one object",
    }.items():  # fmt: skip
        file.write_text(text)
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            TrainConfig.read(file)
        assert str(file) in str(caught.value)
    with pytest.raises(FileNotFoundError, match="there is no file .*none.json"):
        TrainConfig.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fit": {"steps": 0}}, "config.json: fit.steps = 0 is not a value it can have"),
        ({"output": "{folder}/config.json/out"}, "cannot be written to: .* is no folder; choose another place"),
        ({"output": "{folder}/config.json"}, "cannot be written to: .* is no folder; choose another place"),
        ({"data": "{folder}/none.csv"}, "there is no file .*none.csv"),
        ({"model": "gtp2"}, "no model 'gtp2'"),
        ({"lora": {"lora_rank": "8"}}, "r = '8' is not a value it can have"),
        ({"lora": {"rank_pattern": 3}}, "rank_pattern = 3 is not a value it can have"),
        ({"lora": {"target_modules": 3}}, "target_modules = 3 is not a value it can have"),
        ({"lora": {"use_dora": "yes"}}, "use_dora = 'yes' is not a value it can have"),
        ({"lora": {"trainable_token_indices": [1]}}, "trainable_token_indices is not supported: "),
        ({"fit": {"steps": 1, "checkpoint": "{folder}/config.json"}}, "is not a checkpoint that fit wrote"),
        (
            {"fit": {"steps": 3, "learning_rate": 1e30, "progress": False}},
            "at step 2: try a smaller learning_rate",
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
    monkeypatch.setattr("lora_lib.__main__.load_pretrained", lambda name: pytest.fail("too late"))
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "config.json").write_text(json.dumps({**config, "output": str(tmp_path / "taken" / "out")}))
    with pytest.raises(SystemExit):
        main(["train", str(tmp_path / "config.json")])
    assert "taken" in capsys.readouterr().err


# --- what it takes ----------------------------------------------------------------------------------------------


def test_every_kind_of_file_is_taken(config, tmp_path):
    tokenizer = read_tokenizer(MINI_FOLDER)
    pair, chat = PAIRS[0], {"messages": [{"role": "user", "content": "0"}, {"role": "assistant", "content": "1"}]}
    files = {
        "pairs.jsonl": json.dumps(pair), "chats.jsonl": json.dumps(chat),
        "pairs.csv": f"prompt,completion\n{pair['prompt']},{pair['completion']}\n",
        "PAIRS.TSV": f"completion\tprompt\n{pair['completion']}\t{pair['prompt']}\n",
    }  # fmt: skip
    found = {}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        found[name] = read_examples(str(tmp_path / name), tokenizer, 64)
    (ids, targets), wanted = found.pop("chats.jsonl")[0], found["pairs.jsonl"][0]
    assert tokenizer.decode(ids.tolist()) == "user: 0\nassistant: 1" and (targets != -100).sum() == 2
    for ((ids, targets),) in found.values():
        assert torch.equal(ids, wanted[0]) and torch.equal(targets, wanted[1])
    assert tokenizer.decode(wanted[0].tolist()) == pair["prompt"] + pair["completion"]
    assert len(read_examples("restaurants", tokenizer, 256)) > 1500
    (tmp_path / "pairs.txt").write_text("a")
    for name, text, message in (
        ("pairs.txt", "a", r"pairs.txt: its name must end in .jsonl \(pairs or chats\), .csv or .tsv"),
        ("pairs.jsonl", json.dumps(pair) + '\n{"prompt": "a"}', "pairs.jsonl, line 2: no 'completion'"),
        ("long.jsonl", json.dumps({**pair, "prompt": "a " * 99}), "long.jsonl, line 1: .* do not fit max_length 64"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            read_examples(str(tmp_path / name), tokenizer, 64)


def test_the_help_tells_of_every_setting(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", "run.json", "--help"])
    said = capsys.readouterr().out
    assert caught.value.code == 0
    for name in [*TrainConfig.__dataclass_fields__, *LORA, *FIT]:
        assert re.search(rf"\b{name}\b", said), name
    assert {"target_modules", "lora_rank", "adapter_name", "use_dora", "modules_to_save"} < set(LORA)
    assert {"steps", "checkpoint", "progress"} < set(FIT) and not {"kind", "settings", "model"} & {*LORA, *FIT}

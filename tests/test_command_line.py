"""`python -m lora_lib train`, in one process and in two."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_lib import GPT2Config, GPT2Model, PeftModel, load_model, load_pretrained, save_pretrained_folder
from lora_lib.__main__ import TrainConfig, read_examples

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


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
    lines = [
        json.dumps({"prompt": f"{i} =>", "completion": " one more is" + f" {i + 1}" * (1 + i % 3)}) for i in range(11)
    ]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    return {
        "data": str(folder / "data.jsonl"), "model": str(folder / "model"), "max_length": 64,
        "fit": {"steps": 6, "batch_size": 5, "accumulate": 2, "learning_rate": 0.01, "bf16": False, "progress": False},
    }  # fmt: skip


def run(config: dict, folder: Path, launcher=()) -> tuple[Path, int]:
    """Train in a process of its own; returns the output folder, and the bytes of gradients a step that it reports."""
    folder.mkdir(exist_ok=True)
    file = folder / "config.json"
    file.write_text(json.dumps({**config, "output": str(folder / "out")}))
    command = [sys.executable, *(launcher or ["-m"]), *(["-m"] if launcher else []), "lora_lib", "train", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (count,) = re.findall(
        r"summed over the processes: ([\d,]+) bytes a step", done.stdout
    )  # once: by the first process
    return folder / "out", int(count.replace(",", ""))


def difference(a: Path, b: Path) -> float:
    """The largest between two files of the same tensors."""
    ours, theirs = load_file(a), load_file(b)
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


def test_two_processes_make_the_adapter_of_one_and_exchange_no_more_than_its_gradients(config, tmp_path):
    config = {**config, "lora": {"lora_rank": 4}, "gradient_checkpointing": True}
    one, alone = run(config, tmp_path / "one")
    two, shared = run(config, tmp_path / "two", TORCHRUN)
    assert difference(one / "adapter_model.safetensors", two / "adapter_model.safetensors") < 1e-5
    assert any(t.abs().max() > 0.01 for n, t in load_file(one / "adapter_model.safetensors").items() if "lora_B" in n)
    model = PeftModel.from_pretrained(load_model(config["model"]), two)
    lora = sum(p.numel() for layer in model.lora_layers().values() for p in layer.adapters.parameters())
    assert (alone, shared) == (0, 4 * lora)


def test_full_fine_tuning_exchanges_every_weight(config, tmp_path):
    one, _ = run({**config, "method": "full"}, tmp_path / "one")
    two, shared = run({**config, "method": "full"}, tmp_path / "two", TORCHRUN)
    assert difference(one / "model.safetensors", two / "model.safetensors") < 1e-5
    assert shared == 4 * sum(p.numel() for p in load_model(two).parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": None}, r'"output" must be given'),
        ({"dat": "x"}, "no setting dat; expected one of data, output, model"),
        ({"method": "qlora"}, "method is 'qlora', expected 'lora' or 'full'"),
        ({"lora": {"rank": 8}}, "no setting lora.rank; expected one of target_modules, lora_rank"),
        ({"fit": {"step": 8}}, "no setting fit.step; expected one of steps"),
    ],
)
def test_a_wrong_config_is_refused_by_name(tmp_path, change, message):
    file = tmp_path / "config.json"
    values = {"data": "restaurants", "output": "out", **change}
    file.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    with pytest.raises(ValueError, match=message):
        TrainConfig.read(file)


def test_what_is_no_config_or_no_example_is_refused_with_its_place(tmp_path):
    file = tmp_path / "file.json"
    for text, message in (("{", "not valid JSON"), ("[]", "expected one JSON object, found list")):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            TrainConfig.read(file)
    for line in ("no json", '{"prompt": "a"}', '["a", "b"]'):
        file.write_text('{"prompt": "a", "completion": "b"}\n' + line)
        with pytest.raises(ValueError, match="file.json, line 2: "):
            read_examples(str(file))
    assert len(read_examples("restaurants")) > 1500


SHARED = """
import copy, torch
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from lora_lib import GPT2Config, GPT2Model, get_peft_model
from lora_lib.losses import loss_sum

dist.init_process_group("gloo")
rank, processes = dist.get_rank(), dist.get_world_size()
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
logits = shared(ids[rank::processes])
F.cross_entropy(logits.flatten(0, 1), ids[rank::processes].flatten()).backward()
(loss_sum(whole, ids, ids) / ids.numel()).backward()
learned = dict(whole.named_parameters())
for name, p in shared.named_parameters():
    if p.requires_grad:
        torch.testing.assert_close(p.grad.full_tensor(), learned[name].grad, rtol=1e-4, atol=1e-6)
        assert learned[name].grad.any()
held, total = sum(p.to_local().numel() for p in shared.parameters()), sum(p.numel() for p in whole.parameters())
assert held == total // 2
dist.destroy_process_group()
"""


def test_a_base_shared_out_over_two_processes_gives_the_same_gradients(tmp_path):
    pytest.importorskip("torch.distributed.fsdp", reason="this PyTorch is built without it")
    if not hasattr(torch.distributed.fsdp, "fully_shard"):
        pytest.skip("fully_shard is there from PyTorch 2.6 on")
    (tmp_path / "shared.py").write_text(SHARED)
    done = subprocess.run([sys.executable, *TORCHRUN, str(tmp_path / "shared.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

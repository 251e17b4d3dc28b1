"""A run that is killed goes on from its checkpoint, to the weights that it would have had anyway."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_lib import GPT2Config, GPT2Model, get_peft_model
from lora_lib.training import fit

SETTINGS = {"steps": 12, "batch_size": 3, "accumulate": 2, "learning_rate": 0.01, "checkpoint_every": 3, "seed": 5,
            "bf16": False, "progress": False}  # fmt: skip


def make(alpha: float = 8):
    """A small model with dropout everywhere, and data of an odd length."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_head=2, n_layer=1)
    model = get_peft_model(GPT2Model(config), "all-linear", 4, alpha, lora_dropout=0.2)
    data = [(torch.arange(i, i + 6) % 50, torch.arange(i + 1, i + 7) % 50) for i in range(7)]
    return model.enable_lora_training(), data


# One process that starts others: each trains until it is killed, and the next goes on. A fork needs no new import.
DRIVER = """
import json, os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from safetensors.torch import save_file
from lora_lib import checkpoints, training
from test_checkpoints import SETTINGS, make

def train(folder, name, kill_at_call=0, kill_in_save=0):
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    calls, saves, accumulate, replace = [], [], training._accumulate, os.replace
    def counted(*args):
        calls.append(1)
        if len(calls) == kill_at_call:
            os.kill(os.getpid(), signal.SIGKILL)
        return accumulate(*args)
    def killed(*args):
        saves.append(1)
        if len(saves) == kill_in_save:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*args)
    training._accumulate, os.replace = counted, killed
    model, data = make()
    history = training.fit(
        model, data, checkpoint=folder / "run.safetensors", validation=data, validate_every=2, **SETTINGS
    )
    save_file({{n: p.detach() for n, p in model.named_parameters()}}, folder / name)
    told = [history.loss, history.learning_rate, history.validation, len(calls)]
    (folder / (name + ".json")).write_text(json.dumps(told))
    os._exit(0)

whole, killed = Path({folder!r}) / "whole", Path({folder!r}) / "killed"
whole.mkdir(), killed.mkdir()
ends = [train(whole, "weights")]
kills = [dict(kill_at_call=2), dict(kill_at_call=5), dict(kill_in_save=1), dict(kill_at_call=2), dict(kill_in_save=2)]
for kill in [*kills, dict(kill_at_call=3), dict(), dict()]:
    ends.append(train(killed, "weights", **kill))
print(json.dumps(ends))
"""


def test_a_run_killed_again_and_again_ends_with_the_same_bits(tmp_path: Path):
    script = DRIVER.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [0, 9, 9, 9, 9, 9, 9, 0, 0]  # 9: SIGKILL
    whole, killed = (load_file(tmp_path / run / "weights") for run in ("whole", "killed"))
    assert whole.keys() == killed.keys() and all(torch.equal(whole[name], killed[name]) for name in whole)
    fresh = dict(make()[0].named_parameters())
    assert any(not torch.equal(fresh[name], whole[name]) for name in whole)  # it did train
    a, b = (json.loads((tmp_path / run / "weights.json").read_text()) for run in ("whole", "killed"))
    assert a[:3] == b[:3] and len(a[0]) == 12
    assert (a[3], b[3]) == (12, 0)  # a run that is done is not done again


def test_a_checkpoint_of_another_run_is_refused_by_what_differs(tmp_path: Path):
    model, data = make()
    path = tmp_path / "deep" / "run.safetensors"
    fit(model, data, checkpoint=path, **SETTINGS)
    before = {name: p.clone() for name, p in model.named_parameters()}
    for name, kwargs in {
        "learning_rate is 0.01, this run's is 0.02": {"learning_rate": 0.02}, "steps is 12": {"steps": 13},
        "seed": {"seed": 6}, "accumulate": {"accumulate": 1}, "bf16": {"bf16": True},
        "lr_ratio": {"lr_ratio": lambda name: 2},
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=f"belongs to another run: its {name}.*another file to start anew"):
            fit(model, data, checkpoint=path, **{**SETTINGS, **kwargs})
    with pytest.raises(ValueError, match="its training data is"):
        fit(model, data[::-1], checkpoint=path, **SETTINGS)
    with pytest.raises(ValueError, match="its model is"):  # α is no weight, and changes the result
        fit(make(alpha=9)[0], data, checkpoint=path, **SETTINGS)
    other = make()[0]
    other.base_model.h[0].ln_1.weight.data[0] += 1
    with pytest.raises(ValueError, match="its model is"):
        fit(other, data, checkpoint=path, **SETTINGS)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("content", [b"", b"no checkpoint", "other"])
def test_a_file_that_is_no_checkpoint_is_named_and_left_alone(tmp_path: Path, content):
    path = tmp_path / "run.safetensors"
    if content == "other":
        save_file({"A": torch.zeros(2)}, path)
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="run.safetensors is not a checkpoint that fit wrote"):
        fit(make()[0], make()[1], checkpoint=path, **SETTINGS)
    assert path.read_bytes() == before

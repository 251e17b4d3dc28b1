"""A run that is killed goes on from its checkpoint, to the weights that it would have had anyway."""

import errno
import json
import os
import signal
from pathlib import Path

import fresh
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lora_lib import GPT2Config, GPT2Model, get_peft_model, tensor_files
from lora_lib.training import check_writable, checkpoints, fingerprint, fit, loop

SETTINGS = {"steps": 12, "batch_size": 3, "accumulate": 2, "learning_rate": 0.01, "checkpoint_every": 3, "seed": 5,
            "bf16": False, "progress": False}  # fmt: skip


def make(alpha: float = 8):
    """A small model with dropout everywhere, and data of an odd length."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_head=2, n_layer=1)
    model = get_peft_model(GPT2Model(config), "all-linear", 4, alpha, lora_dropout=0.2)
    data = [(torch.arange(i, i + 6) % 50, torch.arange(i + 1, i + 7) % 50) for i in range(7)]
    return model.enable_lora_training(), data


def train(folder: Path, kill_at_call: int = 0, kill_in_save: int = 0) -> None:
    """Train, until this process kills itself at a step or while it saves."""
    calls, saves, accumulate, replace = [], [], loop._accumulate, os.replace

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

    loop._accumulate, os.replace = counted, killed
    model, data = make()
    history = fit(model, data, checkpoint=folder / "run.safetensors", validation=data, validate_every=2, **SETTINGS)
    save_file({n: p.detach() for n, p in model.named_parameters()}, folder / "weights")
    told = [history.loss, history.learning_rate, history.validation, len(calls)]
    (folder / "told.json").write_text(json.dumps(told))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_a_run_killed_again_and_again_ends_with_the_same_bits(tmp_path: Path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    ends = [fresh.run(train, whole, folder=tmp_path)]
    for kill in ((2, 0), (5, 0), (0, 1), (2, 0), (0, 2), (3, 0), (), ()):
        ends.append(fresh.run(train, killed, *kill, folder=tmp_path))
    assert [end.status for end in ends] == [0, -9, -9, -9, -9, -9, -9, 0, 0], ends[-1].stderr  # -9: SIGKILL
    ours, theirs = (load_file(folder / "weights") for folder in (whole, killed))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    unlearned = dict(make()[0].named_parameters())
    assert any(not torch.equal(unlearned[name], ours[name]) for name in ours)  # it did train
    a, b = (json.loads((folder / "told.json").read_text()) for folder in (whole, killed))
    assert a[:3] == b[:3] and len(a[0]) == 12
    assert (a[3], b[3]) == (12, 0)  # a run that is done is not done again


def test_a_checkpoint_is_written_now_and_then_and_after_the_last_step(tmp_path: Path, monkeypatch):
    path, done = tmp_path / "run.safetensors", []
    save = checkpoints.save_checkpoint
    monkeypatch.setattr(loop, "save_checkpoint", lambda *args: (done.append(len(args[4]["loss"])), save(*args)))
    model, data = make()
    history = fit(model, data, checkpoint=path, **{**SETTINGS, "steps": 7})
    assert done == [3, 6, 7]
    again = make()[0]
    resumed = fit(again, data, checkpoint=path, **{**SETTINGS, "steps": 7})
    assert done == [3, 6, 7] and resumed.loss == history.loss and resumed.tokens == history.tokens > 0
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not any(p.suffix == ".part" for p in tmp_path.iterdir())


def test_a_checkpoint_is_on_the_disk_before_it_takes_the_old_ones_place(tmp_path: Path, monkeypatch):
    seen, sync, replace = [], os.fsync, os.replace

    def synced(number):
        seen.append(("sync", os.fstat(number).st_size))
        sync(number)

    def replaced(source, target):
        seen.append(("replace", Path(source).stat().st_size))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    model, data = make()
    fit(model, data, checkpoint=tmp_path / "run.safetensors", **{**SETTINGS, "steps": 1})
    files = [(what, size) for what, size in seen if size == (tmp_path / "run.safetensors").stat().st_size]
    assert [what for what, _ in files] == ["sync", "replace"]


@pytest.mark.parametrize("left_behind", [True, False])
def test_a_full_disk_is_told_and_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch, left_behind):
    def full(tensors, path, texts):
        if len(json.loads(texts["history"])["loss"]) > 3:
            if left_behind:
                Path(path).write_bytes(b"half")
            raise SafetensorError("Error while serializing: IoError(Os { code: 28, message: No space left on device })")
        save_file(tensors, path, texts)

    monkeypatch.setattr("lora_lib.tensor_files.save_file", full)
    path, (model, data) = tmp_path / "run.safetensors", make()
    with pytest.raises(OSError, match=r"run.safetensors could not be saved to .*No space left on device.*is unchanged"):
        fit(model, data, checkpoint=path, **SETTINGS)
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]
    monkeypatch.undo()
    whole, resumed = make()[0], make()[0]
    seen = []
    fit(resumed, data, checkpoint=path, on_validation=lambda step, _: seen.append(step), validate_every=1, **SETTINGS)
    fit(whole, data, **{key: value for key, value in SETTINGS.items() if key != "checkpoint_every"})
    assert seen[0] == 4  # it went on from the third step
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_fingerprint_tells_numbers_shapes_and_types_apart():
    numbers = torch.arange(6, dtype=torch.int32)
    alike = [numbers, numbers.clone(), numbers.repeat_interleave(2)[::2]]
    assert len({fingerprint([tensor], "a") for tensor in alike}) == 1
    others = [
        (numbers.view(2, 3),), (numbers.view(3, 2),), (numbers.view(torch.float32),), (numbers.flip(0),),
        (numbers[:3], numbers[3:]), (numbers, numbers), (),
    ]  # fmt: skip
    found = {fingerprint(tensors, "a") for tensors in ([numbers], *others)} | {fingerprint([numbers], "b")}
    assert len(found) == len(others) + 2 and {len(name) for name in found} == {12}


def test_a_place_that_cannot_be_written_to_is_noticed_before_the_training(tmp_path: Path):
    (tmp_path / "file").write_text("")
    model, data = make()
    before = {name: p.clone() for name, p in model.named_parameters()}
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(OSError, match=r"file.* cannot be written to: .* is not a folder; choose another place"):
            fit(model, data, checkpoint=folder / "run.safetensors", **SETTINGS)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    check_writable(tmp_path / "new" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # nothing is made


def test_a_disk_that_takes_no_file_is_noticed_before_the_training(tmp_path: Path, monkeypatch):
    def read_only(dir):
        raise OSError(errno.EROFS, "Read-only file system", str(dir))

    monkeypatch.setattr(checkpoints, "TemporaryFile", read_only)
    with pytest.raises(OSError, match="new cannot be written to: Read-only file system; choose another place"):
        check_writable(tmp_path / "new")


def test_a_checkpoint_of_another_run_is_refused_by_what_differs(tmp_path: Path):
    model, data = make()
    path = tmp_path / "deep" / "run.safetensors"
    fit(model, data, checkpoint=path, **SETTINGS)
    before = {name: p.clone() for name, p in model.named_parameters()}
    for name, kwargs in {
        "learning_rate is 0.01, this run's is 0.02": {"learning_rate": 0.02}, "steps is 12": {"steps": 13},
        "seed": {"seed": 6}, "accumulate": {"accumulate": 1}, "bf16": {"bf16": True},
        "lr_ratio": {"lr_ratio": lambda name: 2}, "batch_size": {"batch_size": 4}, "warmup": {"warmup": 0.2},
        "clip": {"clip": 2.0}, "weight_decay": {"weight_decay": 0.1},
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=f"belongs to another run: its {name}.*another file to start again"):
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


def test_one_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path):
    path, (model, data) = tmp_path / "run.safetensors", make()
    fit(model, data, checkpoint=path, **SETTINGS)
    before, whole = {name: p.clone() for name, p in model.named_parameters()}, path.read_bytes()
    header = int.from_bytes(whole[:8], "little") + 8
    for place in [*range(0, header, header // 60), *range(header, len(whole), (len(whole) - header) // 60)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"run.safetensors is (damaged|not a checkpoint)"):
            fit(model, data, checkpoint=path, **SETTINGS)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def size_of_b(model):
    return sum(p.norm().item() for name, p in model.named_parameters() if name.endswith(".B"))


def test_the_best_weights_and_the_patience_outlive_a_kill(tmp_path: Path):
    settings = {**SETTINGS, "checkpoint_every": 1, "validate_every": 2}
    path, sizes, (model, data) = tmp_path / "run.safetensors", {}, make()
    fit(model, data, **settings, on_validation=lambda step, model: sizes.update({step: size_of_b(model)}))
    settings |= {"patience": 2, "keep_best": True, "score": lambda model: -abs(size_of_b(model) - sizes[4])}

    def killed(step, model):
        if step == 6:
            raise KeyboardInterrupt

    whole, again, done = (make()[0] for _ in range(3))
    history = fit(whole, data, **settings)
    assert history.best == (4, 0) and len(history.loss) == 8 and size_of_b(whole) == sizes[4]
    with pytest.raises(KeyboardInterrupt):
        fit(make()[0], data, checkpoint=path, on_validation=killed, **settings)
    for model in (again, done):
        resumed = fit(model, data, checkpoint=path, **settings)
        assert resumed.scores == history.scores and resumed.loss == history.loss
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters(), strict=True))
    with pytest.raises(ValueError, match="its patience is 2, this run's is 3"):
        fit(done, data, checkpoint=path, **{**settings, "patience": 3})


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "model.safetensors", "config.json"])
def test_a_checkpoint_never_takes_the_place_of_a_model(tmp_path: Path, name):
    model, data = make()
    for there in (False, True):
        if there:
            save_file({"A": torch.zeros(2)}, tmp_path / name)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(ValueError, match=f"a checkpoint cannot be called {name}: a model or an adapter is saved"):
            fit(model, data, checkpoint=tmp_path / name, **SETTINGS)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_checkpoint_path_that_is_a_folder_is_named(tmp_path: Path):
    model, data = make()
    with pytest.raises(OSError, match=r"is a folder: name a file in it, .*run.safetensors for example"):
        fit(model, data, checkpoint=tmp_path, **SETTINGS)


def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch):
    def refuses(path, framework):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(tensor_files, "safe_open", refuses)
    (tmp_path / "run.safetensors").touch()
    with pytest.raises(OSError, match="run.safetensors cannot be read: .*Permission denied.*; check its permissions"):
        fit(*make(), checkpoint=tmp_path / "run.safetensors", **SETTINGS)


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


@pytest.mark.parametrize("other", [{"c": (2, 3)}, {"b": (3, 2)}], ids=["name", "shape"])
def test_a_checkpoint_of_another_model_changes_nothing(tmp_path, other):
    def made(shapes):
        weights = {name: torch.zeros(shape, requires_grad=True) for name, shape in shapes.items()}
        return weights, torch.optim.AdamW(weights.values())

    saved, optimizer = made({"a": (2, 3), "b": (2, 3)})
    sum(weight.sum() for weight in saved.values()).backward()
    optimizer.step()
    checkpoints.save_checkpoint(tmp_path / "run", saved, optimizer, {}, {})
    weights, optimizer = made({"a": (2, 3), **other})
    with pytest.raises(ValueError, match=f"it has no weight {next(iter(other))} of"):
        checkpoints.load_checkpoint(tmp_path / "run", weights, optimizer, {})
    assert not any(weight.any() for weight in weights.values()) and not optimizer.state

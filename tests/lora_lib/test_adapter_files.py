"""Adapter folders that are not what they should be: each is refused, by name."""

import json
import pickle
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_lib import AdapterError, LoRAConfig
from lora_lib.adapters import CONFIG_FILE, WEIGHTS_FILE, read_adapter, write_adapter
from lora_lib.tensor_files import digest

A_KEY = "base_model.model.layer.lora_A.weight"
B_KEY = "base_model.model.layer.lora_B.weight"


@pytest.fixture
def folder(tmp_path):
    write_adapter(tmp_path, LoRAConfig(["layer"], r=2), {"layer": pair()})
    return tmp_path


def pair(fill=1.5):
    return {"A": torch.full((5, 2), fill), "B": torch.full((2, 3), fill)}


def test_round_trip(folder):
    config, layers, copies, sample, model_sample, base_weights = read_adapter(folder)
    assert config == LoRAConfig(["layer"], r=2) and sample == []
    assert base_weights == copies == model_sample == {}
    assert layers.keys() == {"layer"} and all(torch.equal(layers["layer"][part], pair()[part]) for part in "AB")
    assert {k: tuple(v.shape) for k, v in load_file(folder / WEIGHTS_FILE).items()} == {A_KEY: (2, 5), B_KEY: (3, 2)}
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_a_config_has_defaults_that_hold():
    config = LoRAConfig("all-linear")
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (8, 16, 0.0, False)


def test_folders_on_the_way_are_made(folder, tmp_path):
    saved = read_adapter(folder)
    write_adapter(tmp_path / "one" / "after" / "another", saved.config, saved.layers)
    assert read_adapter(tmp_path / "one" / "after" / "another").layers.keys() == saved.layers.keys()


def test_the_config_says_what_peft_needs(folder):
    values = json.loads((folder / CONFIG_FILE).read_text())
    assert values["peft_type"] == "LORA" and values["inference_mode"] is True and values["bias"] == "none"
    assert (values["r"], values["lora_alpha"], values["target_modules"]) == (2, 16, ["layer"])
    assert "task_type" not in values and "kind" not in values
    write_adapter(folder, LoRAConfig(["layer"], r=2, task_type="SEQ_CLS"), {"layer": pair()}, fan_in_fan_out=False)
    values = json.loads((folder / CONFIG_FILE).read_text())
    assert values["task_type"] == "SEQ_CLS" and values["fan_in_fan_out"] is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, '"peft_type": "LORA"'),
        ({"r": None}, "r is missing"),
        ({"lora_alpha": None}, "lora_alpha is missing"),
        ({"target_modules": None}, "target_modules is missing"),
        ({"r": 2.5}, "r must be .* got 2.5"),
        ({"r": True}, "r must be .* got True"),
        ({"lora_alpha": -1}, "lora_alpha must be .* got -1"),
        ({"lora_dropout": 1}, "lora_dropout must be .* got 1"),
        ({"target_modules": [1]}, "target_modules must be .* got .1."),
        ({"rank_pattern": {"a": 0}}, "rank_pattern"),
        ({"lora_bias": True}, "lora_bias = True is not supported"),
        ({"bias": "all"}, "bias = 'all' is not supported"),
        ({"modules_to_save": "wte"}, "modules_to_save must be .* got 'wte'"),
        (
            {"trainable_token_indices": [3]},
            "trainable_token_indices = .3. is not supported here: train the whole embedding",
        ),
        ({"task_type": "CHESS"}, "task_type must be .* got 'CHESS'"),
        ({"layers_to_transform": [-1]}, "layers_to_transform"),
        ({"layers_pattern": ["h"]}, "layers_pattern says where"),
        ({"layers_to_transform": [0], "target_modules": "layer"}, "needs target_modules to be a list of names"),
        ({"layers_pattern": ["h"], "target_modules": "layer"}, "needs target_modules to be a list of names"),
        ({"exclude_modules": [1]}, "exclude_modules must be .* got .1."),
        ({"init_lora_weights": "olora"}, "init_lora_weights = 'olora' changed the base"),
        ({"use_new_thing": True}, "use_new_thing = True is not supported"),
    ],
)
def test_config_values_that_we_cannot_honour(folder, changes, message):
    values = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**values, **changes}))
    with pytest.raises(AdapterError, match=message):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop(B_KEY), "layer layer has no lora_B.weight"),
        (lambda t: t.update({"transformer.wte.weight": torch.zeros(2, 2)}), "is not a LoRA weight"),
        (lambda t: t.update({A_KEY: torch.zeros(2, 5, dtype=torch.int64)}), "finite floats, is .2, 5. int64"),
        (lambda t: t.update({A_KEY: torch.full((2, 5), float("nan"))}), "NaN or infinity"),
        (lambda t: t.update({A_KEY: torch.zeros(2, 5, dtype=torch.float8_e5m2)}), "is .2, 5. float8_e5m2"),
    ],
)
def test_tensors_that_are_wrong(folder, spoil, message):
    tensors = load_file(folder / WEIGHTS_FILE)
    spoil(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)
    with pytest.raises(AdapterError, match=message):
        read_adapter(folder)


@pytest.mark.parametrize("content", [b"", b"not a file of tensors", pickle.dumps({"a": 1}), None])
def test_files_that_are_not_safetensors(folder, content):
    whole = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(whole[:-7] if content is None else content)
    with pytest.raises(AdapterError, match="not a whole safetensors file"):
        read_adapter(folder)


def test_a_folder_with_a_pickle_says_that_it_is_not_opened(folder):
    (folder / WEIGHTS_FILE).rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickled .bin weights are never opened"):
        read_adapter(folder)


def test_an_interrupted_save_leaves_the_old_adapter(folder, monkeypatch):
    before = (folder / WEIGHTS_FILE).read_bytes()

    def dies(tensors, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("lora_lib.tensor_files.save_file", dies)
    with pytest.raises(KeyboardInterrupt):
        write_adapter(folder, LoRAConfig(["layer"], r=2), {"layer": pair(0.0)})
    assert (folder / WEIGHTS_FILE).read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_a_save_puts_a_new_file_in_the_place_of_the_old_one(folder):
    before = (folder / WEIGHTS_FILE).read_bytes()
    with (folder / WEIGHTS_FILE).open("rb") as reader:  # somebody who is reading while we save
        write_adapter(folder, LoRAConfig(["layer"], r=2), {"layer": pair(0.0)})
        assert reader.read() == before
    assert (folder / WEIGHTS_FILE).read_bytes() != before


@pytest.mark.parametrize(
    ("room", "targets"), [(100, 1), (1000, 500)], ids=["no room for the weights", "none for the config"]
)
def test_a_disk_that_is_truly_full_leaves_the_old_adapter(folder, room, targets):
    resource = pytest.importorskip("resource")  # of Unix: no file may grow beyond so many bytes
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(OSError, match="could not be saved to .*; an older one is unchanged"):
            write_adapter(folder, LoRAConfig(["layer"] * targets, r=2), {"layer": pair(0.0)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_nothing_that_a_reader_downloads_is_unpickled(root):
    sources = [p for place in ("lora_lib", "notebooks", "book", "experiments") for p in (root / place).rglob("*.*")]
    sources = [p for p in sources if p.suffix in (".py", ".ipynb", ".md")]
    assert len(sources) > 30
    for path in sources:
        text = path.read_text(encoding="utf8")
        if path.is_relative_to(root / "experiments"):  # a run goes on from its own checkpoint, without any pickled code
            text = re.sub(r"torch\.load\([^)]*weights_only=True\)", "", text)
        text = text.replace("pickle.loads(pickle.dumps(Surprise()))", "")  # chapter 9 shows what a pickle may do
        assert not re.search(r"torch\.load\(|pickle\.loads?\(|joblib\.load\(|allow_pickle=True", text), path


def test_the_checksum_covers_names_types_shapes_and_values():
    x = torch.arange(6.0).view(2, 3)
    files = [{"a": x}, {"b": x}, {"a": x.view(3, 2)}, {"a": x.view(torch.int32)}, {"a": x + 1}, {"a": x, "b": x}]
    assert len({digest(file) for file in files}) == len(files)
    assert digest({"a": x, "b": x + 1}) == digest({"b": x + 1, "a": x})

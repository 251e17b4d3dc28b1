"""Checkpoint folders and names: what loads, and what the errors say."""

import contextlib
import dataclasses
import json
import os
import sys
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import fresh
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import small, three_adapters

from lora_lib import GPT2Model, Tokenizer, load_model, load_pretrained, save_pretrained_folder
from lora_lib.gpt2 import MINI_FOLDER, read_tokenizer
from lora_lib.gpt2.tokenizer import _printable_bytes


@pytest.fixture
def folder(tmp_path):
    """A copy of gpt2-mini that a test may spoil."""
    for name in ("config.json", "model.safetensors", "bpe.tiktoken"):
        (tmp_path / name).write_bytes((MINI_FOLDER / name).read_bytes())
    return tmp_path


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(FileNotFoundError, match="no model 'gtp2': expected one of gpt2-mini, gpt2,"):
        load_pretrained("gtp2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "expected model_type 'gpt2', found 'llama'"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"n_layer": 7}, "missing .*h.6.attn.c_attn"),
        ({"n_embd": 640}, "config.json says"),
        ({"n_head": 7}, "n_embd .320. must be a multiple of n_head .7."),
        ({"n_layer": "6"}, "config.json: n_layer must be a whole number from 1, got '6'"),
        ({"n_layer": 0}, "config.json: n_layer must be a whole number from 1, got 0"),
        ({"n_head": None}, "config.json: n_head must be a whole number from 1, got None"),
        ({"n_embd": True}, "config.json: n_embd must be a whole number from 1, got True"),
        ({"resid_pdrop": 2}, "config.json: resid_pdrop must be a number from 0 to 1, got 2"),
        ({"layer_norm_epsilon": 0}, "config.json: layer_norm_epsilon must be a number above 0, got 0"),
        ({"tie_word_embeddings": "yes"}, "config.json: tie_word_embeddings must be True or False, got 'yes'"),
        ({"vocab_size": 4000}, "tokenizer has 4096 tokens|config.json says"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_by_name(folder, changes, message):
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)


def test_broken_files_are_named(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_pretrained(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="no .safetensors file"):
        load_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_pretrained(folder)


def test_the_files_of_the_weights_are_those_of_the_model(folder):
    """Other files of tensors may lie beside them: an adapter, an optimizer's state, another release."""
    whole = load_model(folder).state_dict()
    other = {name: tensor + 1 for name, tensor in load_file(folder / "model.safetensors").items()}
    for name in ("adapter_model.safetensors", "optimizer.safetensors", "z.safetensors"):
        save_file(other, folder / name)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in load_model(folder).state_dict().items())
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"several files of weights, optimizer.safetensors, z.safetensors"):
        load_model(folder)
    (folder / "z.safetensors").unlink()
    assert not torch.equal(load_model(folder).wte.weight, whole["wte.weight"])  # the only one there is
    (folder / "optimizer.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds an adapter: load its base, then PeftModel.from_pretrained"):
        load_model(folder)


def test_files_that_cannot_be_read_are_named(folder):
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
        (folder / name).mkdir()
        with pytest.raises(OSError, match=f"{name} cannot be read: "):
            load_model(folder)


def test_an_index_says_which_files_are_the_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    save_file(tensors, folder / "model-3.safetensors")  # of an older release
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, held in parts.items() for name in held}}))
    assert load_model(folder).state_dict().keys() == load_model(MINI_FOLDER).state_dict().keys()
    twice = dict.fromkeys(names, "model-3.safetensors") | {"x": "model-1.safetensors"}
    index.write_text(json.dumps({"weight_map": twice}))
    with pytest.raises(ValueError, match=r"model-3.safetensors: .* is in two of this model's files"):
        load_model(folder)
    index.write_text(json.dumps({"weight_map": {"x": "none.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"lists none.safetensors, which is not there"):
        load_model(folder)
    index.write_text("[]")
    with pytest.raises(ValueError, match=r"index.json: expected an object with a weight_map"):
        load_model(folder)


def test_a_model_needs_no_tokenizer(folder, monkeypatch):
    monkeypatch.setattr("lora_lib.gpt2.pretrained.read_tokenizer", lambda folder: pytest.fail("not asked for"))
    assert not load_model(folder).training


@pytest.mark.parametrize("content", ["[]", '{"model": {}}', '{"model": {"vocab": {"a": 7}}}', "{"])
def test_a_tokenizer_of_another_kind_is_named(folder, content):
    (folder / "bpe.tiktoken").unlink()
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer.json is not (a tokenizer of GPT-2's kind|valid JSON)"):
        load_pretrained(folder)


def test_what_could_not_be_opened_again_is_not_saved(tmp_path):
    tokenizer, good = read_tokenizer(MINI_FOLDER), small()
    save_pretrained_folder(good, tokenizer, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    wrapped, broken, other, large = three_adapters(), small(), small(), small()
    with torch.no_grad():
        broken.h[1].mlp.c_fc.weight[0, 0] = torch.nan
        large.h[0].ln_1.weight[0] = 1e6
    other.wte = torch.nn.Embedding(98, 24)
    for model, dtype, message in (
        (
            wrapped,
            torch.float32,
            "expected a GPT2Model, got a PeftModel: save a wrapped model",
        ),
        (wrapped.base_model, torch.float32, "not the GPT-2 of its config .*merge its adapters first"),
        (other, torch.float32, r"not the GPT-2 of its config \(wte.weight\)"),
        (good, torch.int8, r"dtype must be one of torch.float32, .*, got torch.int8"),
        (broken, torch.float32, r"h.1.mlp.c_fc.weight is not finite in torch.float32, .* nothing was saved"),
        (large, torch.float16, r"h.0.ln_1.weight is not finite in torch.float16"),
    ):
        with pytest.raises(ValueError, match=message):
            save_pretrained_folder(model, tokenizer, tmp_path, dtype=dtype)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    save_pretrained_folder(large, tokenizer, tmp_path / "wide", dtype=torch.bfloat16)
    assert (tmp_path / "wide" / "config.json").exists()


@pytest.mark.parametrize("renames", range(4))
def test_a_save_that_is_killed_leaves_one_model_and_not_parts_of_two(tmp_path, monkeypatch, renames):
    """Three files get their last names one after the other: the process may die between any two renames."""
    tokenizer, old, new = read_tokenizer(MINI_FOLDER), small(1), small(2)
    new.ln_f.weight.data[0], calls, replace = 7, [], os.replace
    save_pretrained_folder(old, tokenizer, tmp_path)

    def killed(*args):
        if len(calls) == renames:
            raise KeyboardInterrupt
        calls.append(args)
        replace(*args)

    monkeypatch.setattr(os, "replace", killed)
    changed = GPT2Model(dataclasses.replace(new.config, layer_norm_epsilon=1e-3))
    changed.load_state_dict(new.state_dict())
    with pytest.raises(KeyboardInterrupt) if renames < 3 else contextlib.nullcontext():
        save_pretrained_folder(changed, tokenizer, tmp_path)
    if renames in (1, 2):
        with pytest.raises(ValueError, match="config.json and model.safetensors are of two saves"):
            load_model(tmp_path)
        return
    loaded = load_model(tmp_path)
    newer = loaded.config.layer_norm_epsilon == 1e-3
    assert newer == (renames == 3)
    wanted = (changed if newer else old).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in loaded.state_dict().items())


def test_a_broken_tokenizer_file_names_its_line(folder):
    lines = (folder / "bpe.tiktoken").read_text().splitlines()
    lines[4] = "not-base64! 4"
    (folder / "bpe.tiktoken").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="line 5: expected 'base64 rank'"):
        load_pretrained(folder)


def test_vocab_json_and_tokenizer_json_mean_the_same(tmp_path):
    ours = Tokenizer.from_file(MINI_FOLDER / "bpe.tiktoken")
    letters = _printable_bytes()
    vocab = {"".join(letters[b] for b in token): rank for token, rank in ours.ranks.items()}
    vocab["<|endoftext|>"] = len(vocab)
    text = "It's a £12 fish-and-chips café,  isn't it?\n\n<|endoftext|>"
    again = Tokenizer.from_vocab(vocab)
    assert again.encode(text) == ours.encode(text)
    assert again.decode(again.encode(text)) == text
    with pytest.raises(ValueError, match="not a vocabulary of GPT-2's kind"):
        Tokenizer.from_vocab({"a": 5, "<|endoftext|>": 6})


class HubHandler(SimpleHTTPRequestHandler):
    """A stand-in for the model hub: /REPO/resolve/main/FILE, from one folder."""

    def do_HEAD(self):
        self.serve(body=False)

    def do_GET(self):
        self.serve(body=True)

    def serve(self, body):
        path = self.server.folder / self.path.rsplit("/", 1)[-1]
        if "/openai-community/gpt2/resolve/" not in self.path or not path.exists():
            self.send_error(404)
            return
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{len(data)}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *args):
        pass


def load_gpt2():
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[name]  # it reads the variables when it is imported, and another test may have imported it
    time.sleep = lambda seconds: None  # the hub's library tries again, after a pause
    model, tokenizer = load_pretrained("gpt2")
    print(model.config.n_layer, tokenizer.encode("hello there"))


def load_gpt2_in_a_new_process(endpoint, folder):
    """With these variables for the hub's library."""
    environment = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    return fresh.run(load_gpt2, folder=folder, environment=environment)


def test_gpt2_downloads_from_the_hub_as_safetensors(folder, tmp_path):
    letters = _printable_bytes()
    tokenizer = Tokenizer.from_file(folder / "bpe.tiktoken")
    vocab = {"".join(letters[b] for b in token): rank for token, rank in tokenizer.ranks.items()}
    (folder / "vocab.json").write_text(json.dumps({**vocab, "<|endoftext|>": len(vocab)}))
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    server.folder = folder
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        run = load_gpt2_in_a_new_process(f"http://127.0.0.1:{server.server_port}", tmp_path)
    finally:
        server.shutdown()
    assert run.stdout.strip() == f"6 {tokenizer.encode('hello there')}", run.stderr


def test_no_network_says_what_to_do_instead(tmp_path):
    run = load_gpt2_in_a_new_process("http://127.0.0.1:9", tmp_path)
    assert "ConnectionError: could not download 'gpt2'" in run.stderr
    assert 'Without a network use load_pretrained("gpt2-mini")' in run.stderr

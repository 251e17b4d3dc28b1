"""Checkpoint folders and names: what loads, and what the errors say."""

import json
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import fresh
import pytest

from lora_lib import Tokenizer, load_pretrained
from lora_lib.gpt2 import MINI_FOLDER
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
    with pytest.raises(ValueError, match="not GPT-2's kind"):
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
    time.sleep = lambda seconds: None  # the hub's library tries again, after a pause
    model, tokenizer = load_pretrained("gpt2")
    print(model.config.n_layer, tokenizer.encode("hello there"))


def load_gpt2_in_a_new_process(endpoint, folder):
    """New, since the hub's library reads these variables when it is imported."""
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
    assert run.stdout.strip() == f"6 {tokenizer.encode('hello there')}", run.stderr[-2000:]


def test_no_network_says_what_to_do_instead(tmp_path):
    run = load_gpt2_in_a_new_process("http://127.0.0.1:9", tmp_path)
    assert "ConnectionError: could not download 'gpt2'" in run.stderr
    assert 'Without a network use load_pretrained("gpt2-mini")' in run.stderr

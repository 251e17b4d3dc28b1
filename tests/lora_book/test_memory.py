"""The formula of a training step's memory, against what is measured."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from lora_book.measure import (
    PeakMemory,
    adapter_bytes,
    block_bytes,
    hf_block_bytes,
    memory,
    step_bytes,
    step_table,
    step_terms,
)
from lora_lib import (
    GPT_CONFIG_124M,
    GPT_CONFIG_355M,
    GPT_CONFIG_774M,
    GPT_CONFIG_1558M,
    GPT2Config,
    GPT2Model,
    get_peft_model,
)
from lora_lib.gpt2 import loss as chunked
from lora_lib.training import loss_sum

SIZES = (GPT_CONFIG_124M, GPT_CONFIG_355M, GPT_CONFIG_774M, GPT_CONFIG_1558M)
SMALL = GPT2Config(2000, 64, n_embd=64, n_head=4, n_layer=6, embd_pdrop=0, resid_pdrop=0, attn_pdrop=0)


def two_steps(model, ids, memory):
    """The second is the one that counts: AdamW makes its averages in the first."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    for _ in range(2):
        memory.peak = memory.held
        loss_sum(model, ids, ids).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=lambda config: f"width {config.n_embd}")
def test_what_a_block_keeps_is_the_formula_to_the_byte(size, bf16):
    config = replace(size, vocab_size=10, n_layer=1, embd_pdrop=0, resid_pdrop=0, attn_pdrop=0)
    model, kept = get_peft_model(GPT2Model(config), "all-linear", 4).enable_lora_training(), {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(1, 32, config.n_embd, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16, bf16):
        model.base_model.h[0](x)
    for p in model.parameters():
        kept.pop(p.untyped_storage().data_ptr(), None)
    assert sum(kept.values()) == block_bytes(config, 32, bf16) + 4 * adapter_bytes(32, 4, bf16)


@pytest.mark.parametrize("size", SIZES, ids=lambda config: f"width {config.n_embd}")
def test_weights_are_counted_to_the_byte(size):
    with torch.device("meta"):
        model = GPT2Model(size)
        assert step_bytes(size, 1, 8)["weights"] == 4 * sum(p.numel() for p in model.parameters())
        adapted = get_peft_model(model, "all-linear", 8)
    trained, total = adapted.get_nb_trainable_parameters()
    counted = step_bytes(size, 1, 8, rank=8)
    assert (counted["weights"], counted["gradients"], counted["optimizer"]) == (4 * total, 4 * trained, 8 * trained)


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_steps_peak_is_just_below_the_sum(rank, checkpointing):
    ids = torch.randint(SMALL.vocab_size, (8, 64))
    with PeakMemory() as memory:
        model = GPT2Model(SMALL)
        if rank:
            model = get_peft_model(model, "all-linear", rank).enable_lora_training()
        if checkpointing:
            model.gradient_checkpointing_enable()
        two_steps(model, ids, memory)
    predicted = sum(step_bytes(SMALL, 8, 64, rank=rank, checkpointing=checkpointing).values())
    assert (0.95 if rank else 0.85) * predicted < memory.peak <= predicted


def test_a_head_larger_than_a_chunk_of_logits_adds_up_its_gradient_in_chunks_as_large(monkeypatch):
    """Where the head is trained, a chunk holds as many logits as the head has weights: 3 · 4 bytes of each."""
    for module in (chunked, memory):
        monkeypatch.setattr(module, "LOGITS", 2**14)
    config, ids = replace(SMALL, vocab_size=3000, n_layer=1), torch.randint(3000, (8, 64))
    head, logits = 3000 * 64, 8 * 64 * 3000
    assert 2**14 < head < logits
    counted = {rank: step_bytes(config, 8, 64, rank=rank)["working"] for rank in (None, 4)}
    read = 4 * 8 * 64 * 64  # what the head reads; its gradient is as large
    assert counted == {None: 12 * head + read, 4: 12 * 2**14 + read}
    for rank, working in counted.items():
        model = GPT2Model(config)
        if rank:
            model = get_peft_model(model, "all-linear", rank).enable_lora_training()
        inner = getattr(model, "base_model", model)
        features = torch.randn(8, 64, 64, requires_grad=True)
        with PeakMemory() as meter:
            chunked.chunked_cross_entropy(inner.out_head, features, ids).backward()
        gradients = 0 if rank else 2 * 4 * head  # the head's, and one that is added to it
        counted_here = working + read + gradients
        assert 0.9 * counted_here < meter.peak < 1.05 * counted_here  # and a few numbers a token


def test_the_meter_counts_each_block_of_memory_while_it_lives():
    with PeakMemory() as memory:
        a = torch.ones(1000)
        b = a + 1
        view = b.view(10, 100)
        del b
        assert (memory.held, memory.peak) == (8000, 8000)
        del view
        a += 1
        assert (memory.held, memory.peak) == (4000, 8000)


transformers = pytest.importorskip("transformers")
LLAMA = {
    "vocab_size": 500, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def hf_config(kind="llama", **changes):
    return transformers.AutoConfig.for_model(kind, **{**LLAMA, **changes})


def hf_model(config, dtype=torch.float32):
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_what_a_hugging_face_block_keeps_is_the_formula_to_the_byte(kind, rank, dtype):
    config = hf_config(kind)
    model, kept = hf_model(config, dtype), {}
    layer, turns = model.model.layers[0], model.model.rotary_emb
    if rank:
        model = get_peft_model(model, "all-linear", rank).enable_lora_training()

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(1, 32, 64, dtype=dtype, requires_grad=True)
    places = torch.arange(32)[None]
    turned = turns(x, places)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        layer(x, position_embeddings=turned, position_ids=places, attention_mask=None)
    for p in [*model.parameters(), *turned]:
        kept.pop(p.untyped_storage().data_ptr(), None)
    narrow = dtype is torch.bfloat16
    adapters = 7 * adapter_bytes(32, rank, narrow)
    assert sum(kept.values()) == 32 * hf_block_bytes(config, narrow, trained_whole=rank is None) + adapters


@pytest.mark.parametrize("tied", [False, True])
def test_the_weights_of_a_hugging_face_config_are_counted_to_the_byte(tied):
    config = hf_config(tie_word_embeddings=tied)
    model = hf_model(config)
    whole = sum(p.numel() for p in model.parameters())
    assert step_bytes(config, 1, 8)["weights"] == step_bytes({"model_type": "llama", **LLAMA,
                                                             "tie_word_embeddings": tied}, 1, 8)["weights"]  # fmt: skip
    assert step_bytes(config, 1, 8)["weights"] == 4 * whole
    assert step_bytes(config, 1, 8, bits=16)["optimizer"] == 4 * whole
    trained, _ = get_peft_model(model, "all-linear", 8).get_nb_trainable_parameters()
    counted = step_bytes(config, 1, 8, rank=8, bits=16)
    assert (counted["weights"], counted["gradients"], counted["optimizer"]) == (
        2 * whole + 4 * trained, 4 * trained, 8 * trained,
    )  # fmt: skip


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("bits", "dtype"), [(32, torch.float32), (16, torch.bfloat16)])
@pytest.mark.parametrize("rank", [None, 4])
def test_a_hugging_face_steps_peak_is_just_below_the_sum(rank, bits, dtype, checkpointing):
    config, ids = hf_config(num_hidden_layers=6), torch.randint(500, (8, 64))
    with PeakMemory() as memory:
        model = hf_model(config, dtype)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if rank:
            model = get_peft_model(model, "all-linear", rank).enable_lora_training()
        model.train()
        two_steps(model, ids, memory)
    predicted = sum(step_bytes(config, 8, 64, rank=rank, checkpointing=checkpointing, bits=bits).values())
    assert 0.8 * predicted < memory.peak <= predicted


def test_four_bits_are_those_of_nf4_with_scales_in_eight():
    config = hf_config()
    whole, inside = step_bytes(config, 1, 8)["weights"] // 4, 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 192)
    lora = 3 * 8 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 192))
    wanted = inside * (4 + 8 / 64 + 32 / 64 / 256) / 8 + 2 * (whole - inside) + 4 * lora
    assert step_bytes(config, 1, 8, rank=8, bits=4)["weights"] == pytest.approx(wanted, abs=1)


LLAMA_8B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip


@pytest.mark.parametrize("config", [SMALL, LLAMA_8B], ids=["our GPT-2", "Llama"])
@pytest.mark.parametrize("how", [{}, {"rank": 8}, {"rank": 8, "checkpointing": True, "chunked_loss": True}])
def test_the_terms_are_the_sum(config, how):
    terms, parts = step_terms(config, 2, 32, **how), step_bytes(config, 2, 32, **how)
    for part, count in parts.items():
        assert sum(term.bytes for term in terms if term.part == part) == count
    assert len(terms) > len(parts) and all(term.bytes >= 0 for term in terms)
    lines = step_table(terms).splitlines()
    assert len(lines) == len(terms) + 1 and lines[-1].endswith(f"{sum(parts.values()) / 2**30:.2f}")


def test_without_all_the_logits_lora_on_8b_fits_a_card_of_24_gib():
    how = {"rank": 16, "bits": 16, "checkpointing": True}
    whole, chunked = (sum(step_bytes(LLAMA_8B, 1, 8192, chunked_loss=c, **how).values()) for c in (False, True))
    assert whole > 24 * 2**30 > chunked
    assert whole - chunked > 0.9 * 8192 * 128256 * 14 - 2**30  # a block that is computed again takes their place


def test_the_tile_is_that_of_trls_loss_and_holds_no_more():
    kernels = pytest.importorskip("trl.kernels.chunked_logprob", reason="a TRL without a loss in tiles")
    trainer = pytest.importorskip("trl.trainer.utils")
    assert memory.TILE == (kernels.TOKEN_CHUNK_SIZE, trainer._CHUNKED_LOGPROB_CHUNK_SIZE)
    tokens, C, V = 64, 32, 4 * memory.TILE[1]
    hidden, head = torch.randn(tokens, C, requires_grad=True), torch.randn(V, C)
    targets = torch.randint(V, (tokens,))
    with PeakMemory() as meter:
        found = kernels.ChunkedLogProbFunction.apply(
            hidden, head, None, targets, 1.0, memory.TILE[1], None, 1.0, ("entropy", "is_top1")
        )
        (-found[0].sum()).backward()
    counted, _ = memory._hf_loss(tokens, C, V, narrow=False, chunked=True, trains_head=False)
    whole, _ = memory._hf_loss(tokens, C, V, narrow=False, chunked=False, trains_head=False)
    assert counted < whole / 7
    # The formula is for Triton. On a CPU the tile is read with PyTorch's operations, which make some copies of it.
    assert counted <= meter.peak < whole
    loss = F.cross_entropy(hidden @ head.T, targets, reduction="sum")
    torch.testing.assert_close(-found[0].sum(), loss, rtol=1e-4, atol=1e-3)


def test_eight_bit_averages_are_those_of_bitsandbytes():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    weight = torch.nn.Parameter(torch.randn(64, 256))
    optimizer = bitsandbytes.optim.AdamW8bit([weight])
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    state = optimizer.state[weight]
    held = sum(t.numel() * t.element_size() for name, t in state.items() if name.startswith(("state", "absmax")))
    assert held == memory.ADAM_BYTES[8] * weight.numel()
    wide, narrow = (step_bytes(LLAMA_8B, 1, 8, rank=8, optimizer_bits=bits)["optimizer"] for bits in (32, 8))
    assert narrow == pytest.approx(wide * (1 + 4 / 256) / 4, abs=1)


def test_what_cannot_be_counted_says_why():
    with pytest.raises(ValueError, match="optimizer_bits are 32 or 8, got 16"):
        step_bytes(hf_config(), 1, 8, optimizer_bits=16)
    with pytest.raises(ValueError, match="bits of a weight are 32, 16 or 4, got 8"):
        step_bytes(hf_config(), 1, 8, bits=8)
    with pytest.raises(ValueError, match="our GPT-2 is stored in 32 bits"):
        step_bytes(SMALL, 1, 8, bits=16)
    with pytest.raises(ValueError, match="a base in 4 bits cannot be trained"):
        step_bytes(hf_config(), 1, 8, bits=4)
    with pytest.raises(ValueError, match="expected a GPT2Config, a config of Hugging Face's, or a dict"):
        step_bytes({"hidden_size": 8}, 1, 8)
    with pytest.raises(ValueError, match="has no intermediate_size: its blocks are not counted"):
        step_bytes({"model_type": "gpt2", "n_embd": 64, "n_head": 2, "n_layer": 1}, 1, 8, rank=4)

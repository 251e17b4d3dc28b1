"""Where the memory of a training step goes: a formula for our GPT-2 and for other models, and a meter to check it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lora_lib.gpt2.loss import LOGITS
from lora_lib.gpt2.model import GPT2Config
from lora_lib.layers.fused import keeps_product

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)  # bits of a weight in QLoRA: 4, its block's scale in 8, and that scale's own
ADAM_BYTES = {32: 8.0, 8: 2 * (1 + 4 / 256)}  # AdamW's two averages of a number; with 8 bits, a scale for 256 of them
TILE = (4096, 32768)  # how many tokens and how much of the vocabulary TRL's loss computes logits for at once


class Term(NamedTuple):
    """One part of a training step's memory: the kind it belongs to, what it is, and its bytes."""

    part: str
    what: str
    bytes: int


def step_bytes(
    config: Any,
    batch: int,
    time: int,
    *,
    rank: int | None = None,
    checkpointing: bool = False,
    bf16: bool = False,
    bits: int = 32,
    chunked_loss: bool = False,
    optimizer_bits: int = 32,
) -> dict[str, int]:
    """Bytes of one training step with AdamW, by what holds them; their sum bounds the step's peak.

    `config` is a `GPT2Config`, or the config of a causal language model of Hugging Face's (a plain dict that names its
    `model_type` is enough). `rank` is that of LoRA on every linear layer except the head; None trains every weight.
    `bf16` is autocast: weights, gradients and AdamW's averages stay float32. `bits`, 32, 16 or 4, is how the base is
    stored. `optimizer_bits` is 32, or 8 for an 8-bit AdamW such as that of bitsandbytes.

    "working" is needed for a moment on top: by the loss, or with `checkpointing` by the block that is computed again.
    `chunked_loss` is a loss that never holds all the logits, as TRL's SFTTrainer has it; our GPT-2 always does that.
    Counted without dropout, and for attention in one fused kernel. `step_terms` gives every number in the sum.

    Raises ValueError for other `bits` or `optimizer_bits`, fewer than 32 `bits` for a `GPT2Config`, 4 without a rank,
    and a config that is not a language model's.
    """
    terms = step_terms(
        config, batch, time, rank=rank, checkpointing=checkpointing, bf16=bf16, bits=bits, chunked_loss=chunked_loss,
        optimizer_bits=optimizer_bits,
    )  # fmt: skip
    parts = ("weights", "gradients", "optimizer", "activations", "working")
    return {part: sum(term.bytes for term in terms if term.part == part) for part in parts}


def step_terms(
    config: Any,
    batch: int,
    time: int,
    *,
    rank: int | None = None,
    checkpointing: bool = False,
    bf16: bool = False,
    bits: int = 32,
    chunked_loss: bool = False,
    optimizer_bits: int = 32,
) -> list[Term]:
    """The sum of `step_bytes`, number by number. Arguments and errors are those of `step_bytes`."""
    if bits not in (32, 16, 4):
        raise ValueError(f"bits of a weight are 32, 16 or 4, got {bits!r}")
    if optimizer_bits not in ADAM_BYTES:
        raise ValueError(f"optimizer_bits are 32 or 8, got {optimizer_bits!r}")
    if isinstance(config, GPT2Config):
        if bits < 32:
            raise ValueError(f"our GPT-2 is stored in 32 bits, got bits={bits}: pass a config of Hugging Face's")
        return _gpt2_terms(config, batch * time, rank, checkpointing, bf16, optimizer_bits)
    return _hf_terms(config, batch * time, rank, checkpointing, bf16 or bits < 32, bits, chunked_loss, optimizer_bits)


def step_table(terms: Sequence[Term]) -> str:
    """The sum as text: a line for each term, in GiB, and the total below."""
    rows = [*terms, Term("", "GiB together", sum(term.bytes for term in terms))]
    width = max(len(term.what) for term in rows)
    return "\n".join(f"{term.part:11} {term.what:{width}} {term.bytes / 2**30:7.2f}" for term in rows)


def _trained_terms(trained: int, each: int, optimizer_bits: int) -> list[Term]:
    """What each number that is trained costs, `each` bytes wide."""
    adam = ADAM_BYTES[optimizer_bits] * (each / 4 if optimizer_bits == 32 else 1)
    return [
        Term("gradients", f"{trained:,} numbers × {each} bytes", each * trained),
        Term("optimizer", f"AdamW's averages, {trained:,} numbers × {adam:.4g} bytes", round(adam * trained)),
    ]


def _gpt2_terms(
    config: GPT2Config, tokens: int, rank: int | None, checkpointing: bool, bf16: bool, optimizer_bits: int
) -> list[Term]:
    """The terms of our GPT-2, whose head is tied."""
    C, V, L, N = config.n_embd, config.vocab_size, config.n_layer, tokens
    linear = ((C, 3 * C), (C, C), (C, 4 * C), (4 * C, C))  # (d, k) of a block's four layers
    block = sum(d * k + k for d, k in linear) + 4 * C  # and two layer norms
    base = V * C + config.n_positions * C + L * block + 2 * C
    lora = L * sum((rank or 0) * (d + k) for d, k in linear)
    inside = block_bytes(config, N, bf16) + len(linear) * adapter_bytes(N, rank, bf16)
    # A chunk's logits, their logarithms, and the gradient of either; and the gradient of what the head reads.
    loss = 3 * 4 * min(N * V, LOGITS if rank else max(LOGITS, V * C)) + 4 * N * C
    return [
        Term("weights", f"{base:,} of the base × 4 bytes", 4 * base),
        Term("weights", f"{lora:,} of the adapter × 4 bytes", 4 * lora),
        *_trained_terms(lora if rank else base, 4, optimizer_bits),
        Term("activations", "what the last norm and the head read", N * (4 * C + 8) + 4 * N * C),
        _blocks_term(L, 4 * N * C if checkpointing else inside, checkpointing),
        _working_term(loss, "logits, a chunk at a time", inside if checkpointing else 0),
    ]


def _hf_terms(
    config: Any,
    tokens: int,
    rank: int | None,
    checkpointing: bool,
    narrow: bool,
    bits: int,
    chunked: bool,
    optimizer_bits: int,
) -> list[Term]:
    """The terms of a causal language model of Hugging Face's.

    Weights are counted on a model without storage, to the last one. Activations are those of a block with two RMS
    norms, grouped attention and a gated MLP (Llama, Mistral, Qwen2, SmolLM2), and an estimate for other blocks. LoRA's
    numbers, their gradients and averages are float32; a base that is trained whole keeps its own type for all three.
    With 4 bits the blocks' linear layers are stored as QLoRA does, and the rest in 16; one layer at a time is 16 bits
    wide while it computes.
    """
    found = _sizes(config)
    if rank is None and bits == 4:
        raise ValueError("a base in 4 bits cannot be trained: give a rank, or 16 or 32 bits")
    width = 2 if narrow else 4
    lora = sum((rank or 0) * (d + k) for d, k in found.linear)
    inside = sum(d * k for d, k in found.linear)
    held = round(inside * NF4_BITS / 8) + 2 * (found.weights - inside) if bits == 4 else found.weights * bits // 8
    trained, each = (lora, 4) if rank else (found.weights, bits // 8)
    C, V, L = (_size(found.config, name) for name in ("hidden_size", "vocab_size", "num_hidden_layers"))
    in_block = tokens * hf_block_bytes(found.config, narrow, trained_whole=rank is None)
    in_block += len(found.linear) // L * adapter_bytes(tokens, rank, narrow)
    loss, what = _hf_loss(tokens, C, V, narrow, chunked, trains_head=rank is None)
    wide = width * max(d * k for d, k in found.linear) if bits == 4 else 0
    terms = [
        Term("weights", f"{found.weights:,} of the base, stored in {bits} bits", held),
        Term("weights", f"{lora:,} of the adapter × 4 bytes", 4 * lora),
        *_trained_terms(trained, each, optimizer_bits),
        Term("activations", "what the last norm and the head read", tokens * (4 * C + 4 + width * C)),
        _blocks_term(L, width * tokens * C if checkpointing else in_block, checkpointing),
        _working_term(loss, what, in_block if checkpointing else 0),
    ]
    return [*terms, Term("working", "the largest layer, dequantised", wide)] if wide else terms


def _hf_loss(tokens: int, C: int, V: int, narrow: bool, chunked: bool, *, trains_head: bool) -> tuple[int, str]:
    """The bytes of the loss while it is computed, and what they are."""
    width = 2 if narrow else 4
    if not chunked:  # the logits, a float32 copy where they are narrower, their logarithms, and the gradient
        each = width + (4 if narrow else 0) + 4 + 4
        return tokens * V * each, f"logits: {tokens:,} tokens × {V:,} × {each} bytes"
    rows, columns = min(tokens, TILE[0]), min(V, TILE[1])
    of_head = 4 * V * C if trains_head else 0  # added up in float32, and so is the gradient of what the head reads
    return width * rows * columns + 4 * tokens * C + of_head, f"logits: a tile of {rows:,} × {columns:,}, and gradients"


def _blocks_term(count: int, each: int, checkpointing: bool) -> Term:
    what = "what each reads first" if checkpointing else "all that each keeps"
    return Term("activations", f"{count} blocks, {what}, × {each:,} bytes", count * each)


def _working_term(loss: int, what: str, again: int) -> Term:
    """The larger of the two that are never needed together: the loss, or a block that is computed again."""
    return Term("working", what, loss) if loss >= again else Term("working", "a block that is computed again", again)


def block_bytes(config: GPT2Config, tokens: int, bf16: bool = False) -> int:
    """What one block of our GPT-2 keeps for the backward pass: the numbers that its layers read.

    Per token, with C the width: the inputs of both layer norms (C each, float32, and two numbers of statistics),
    of c_attn and c_fc (C), query, key and value (3 C), what attention gives to c_proj (C) with one number a head,
    what GELU reads (4 C) and what it gives to the second c_proj (4 C).
    """
    C, H = config.n_embd, config.n_head
    narrow = 2 if bf16 else 4
    return tokens * (4 * (2 * C + 4 + H) + narrow * (C + C + 3 * C + C + 4 * C + 4 * C))


def adapter_bytes(tokens: int, rank: int | None, narrow: bool = False) -> int:
    """What one LoRA layer keeps beside its input: nothing, or x·A if `tokens` are few and float32."""
    return 4 * tokens * rank if rank and keeps_product(tokens, narrow=narrow) else 0


def hf_block_bytes(config: Any, narrow: bool = False, trained_whole: bool = False) -> int:
    """What a block like Llama's keeps for the backward pass, in bytes for each token.

    With C the width, H heads of size D, K heads for keys and values, and I the MLP's width: what both norms read (C,
    float32, and one number), what the projections of attention read (C), query (HD), key and value (KD each), what
    attention gives to the next layer (HD) with one number a head, what the MLP reads (C), the gate before and after
    its SiLU, the other branch, and their product (4 I). Trained whole, the norms also keep their normed inputs (2 C).
    """
    C, heads, I = (_size(config, name) for name in ("hidden_size", "num_attention_heads", "intermediate_size"))  # noqa: E741
    D = getattr(config, "head_dim", None) or C // heads
    K = getattr(config, "num_key_value_heads", None) or heads
    numbers = C + heads * D + 2 * K * D + heads * D + C + 4 * I + (2 * C if trained_whole else 0)
    return 2 * (4 * C + 4) + 4 * heads + (2 if narrow else 4) * numbers


class _Sizes(NamedTuple):
    config: Any
    weights: int  # all of the model's, a tied one once
    linear: tuple[tuple[int, int], ...]  # (d, k) of every linear layer but the head


def _sizes(config: Any) -> _Sizes:
    """The sizes of a model of this config, which is made without storage."""
    from transformers import AutoConfig, PretrainedConfig

    if isinstance(config, dict) and "model_type" in config:
        config = AutoConfig.for_model(**config)
    if not isinstance(config, PretrainedConfig):
        raise ValueError(
            f"expected a GPT2Config, a config of Hugging Face's, or a dict with its model_type, got {config!r}"
        )
    return _counted(config.to_json_string(use_diff=False), config)


_known: dict[str, _Sizes] = {}


def _counted(key: str, config: Any) -> _Sizes:
    if key not in _known:
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        model.tie_weights()  # the first releases of transformers 5 do not do it on the meta device
        head = model.get_output_embeddings()
        layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
        weights = sum(p.numel() for p in model.parameters())
        _known[key] = _Sizes(config, weights, tuple((m.in_features, m.out_features) for m in layers))
    return _known[key]


def _size(config: Any, name: str) -> int:
    value = getattr(config, name, None)
    if not isinstance(value, int):
        raise ValueError(f"{type(config).__name__} has no {name}: its blocks are not counted")
    return value


class PeakMemory(TorchDispatchMode):
    """Measures the bytes of all tensors made while it is on: `held` now, `peak` at most.

    It needs no GPU, and works on one::

        with PeakMemory() as memory:
            step()
        print(memory.peak)
    """

    held = peak = 0

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen: dict[int, int] = {}  # a block of memory by its number, while it lives

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        inputs = {t.untyped_storage()._cdata for t in args if isinstance(t, Tensor)}
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in inputs:
                self._note(tensor)
        return out

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        self._seen[key] = storage.nbytes()
        self.held += storage.nbytes()
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.held -= self._seen.pop(key, 0)

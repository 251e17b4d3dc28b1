"""Where the bytes of a training step go: a formula for our GPT-2 and for other models, and a meter to check it with."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lora_lib.fused import keeps_product
from lora_lib.gpt2.loss import LOGITS
from lora_lib.gpt2.model import GPT2Config

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)  # a weight of QLoRA's: 4 bits, its block's scale in 8, and those scales' own


def step_bytes(
    config: Any,
    batch: int,
    time: int,
    *,
    rank: int | None = None,
    checkpointing: bool = False,
    bf16: bool = False,
    bits: int = 32,
) -> dict[str, int]:
    """Bytes of one training step with AdamW, by what holds them; their sum bounds the step's peak.

    `config` is a `GPT2Config` or the config of a causal language model of Hugging Face's (see `hf_step_bytes`; a plain
    dict that names its `model_type` will do). `rank` is that of LoRA on every linear layer but the head; None trains
    every weight. `bf16` is autocast: weights, gradients and AdamW's averages stay float32. `bits`, 32, 16 or 4, is how
    the base is held. "working" is what is needed for a moment on top: by the loss, in chunks for our GPT-2, or with
    `checkpointing` by the block that is computed again. Counted without dropout and for attention as one fused kernel.

    Raises ValueError for other `bits`, fewer than 32 for a `GPT2Config`, 4 without a rank, and a config that is no
    language model's.
    """
    if bits not in (32, 16, 4):
        raise ValueError(f"bits of a weight are 32, 16 or 4, got {bits!r}")
    if not isinstance(config, GPT2Config):
        return hf_step_bytes(config, batch * time, rank, checkpointing, bf16 or bits < 32, bits)
    if bits < 32:
        raise ValueError(f"our GPT-2 is held in 32 bits, got bits={bits}: pass a config of Hugging Face's")
    return _gpt2_step_bytes(config, batch, time, rank, checkpointing, bf16)


def _gpt2_step_bytes(
    config: GPT2Config, batch: int, time: int, rank: int | None, checkpointing: bool, bf16: bool
) -> dict[str, int]:
    """`step_bytes` of our GPT-2, whose head is tied."""
    C, V, L, N = config.n_embd, config.vocab_size, config.n_layer, batch * time
    linear = ((C, 3 * C), (C, C), (C, 4 * C), (4 * C, C))  # (d, k) of a block's four layers
    block = sum(d * k + k for d, k in linear) + 4 * C  # and two layer norms
    base = V * C + config.n_positions * C + L * block + 2 * C
    lora = L * sum((rank or 0) * (d + k) for d, k in linear)
    trained = lora if rank else base
    inside = block_bytes(config, N, bf16) + len(linear) * adapter_bytes(N, rank, bf16)
    kept = 4 * N * C if checkpointing else inside  # by each block
    ends = N * (4 * C + 8) + 4 * N * C  # what the last layer norm reads, two numbers a token, and what the head reads
    # A chunk's logits, their logarithms, and the gradient of either; and the gradient of what the head reads.
    loss = 3 * 4 * min(N * V, LOGITS if rank else max(LOGITS, V * C)) + 4 * N * C
    return {
        "weights": 4 * (base + lora),
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        "activations": ends + L * kept,
        "working": max(loss, inside) if checkpointing else loss,
    }


def block_bytes(config: GPT2Config, tokens: int, bf16: bool = False) -> int:
    """What one block keeps for the backward pass: numbers that its layers read, most of them once.

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


def hf_step_bytes(
    config: Any, tokens: int, rank: int | None, checkpointing: bool, narrow: bool, bits: int
) -> dict[str, int]:
    """`step_bytes` of a causal language model of Hugging Face's, for `tokens` = batch × time.

    Weights are counted on a model without storage, to the last one. Activations are those of a block with two RMS
    norms, grouped attention and a gated MLP (Llama, Mistral, Qwen2, SmolLM2), and an estimate for other blocks. LoRA's
    numbers, their gradients and averages are float32; a base that is trained whole keeps its own type for all three.
    In 4 bits are the blocks' linear layers, as QLoRA stores them; the rest is in 16, and one layer at a time is
    16 bits wide while it computes.
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
    # Logits, a float32 copy where they are narrower, their logarithms, and the gradient.
    loss = tokens * V * (width + (4 if narrow else 0) + 4 + 4)
    wide = width * max(d * k for d, k in found.linear) if bits == 4 else 0
    return {
        "weights": held + 4 * lora,
        "gradients": each * trained,
        "optimizer": 2 * each * trained,
        "activations": tokens * (4 * C + 4 + width * C) + L * (width * tokens * C if checkpointing else in_block),
        "working": (max(loss, in_block) if checkpointing else loss) + wide,
    }


def hf_block_bytes(config: Any, narrow: bool = False, trained_whole: bool = False) -> int:
    """What a block as in Llama keeps for the backward pass, in bytes for each token.

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
    """What there is to count in a model of this config, made without its storage."""
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

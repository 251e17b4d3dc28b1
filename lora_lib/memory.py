"""Where the bytes of a training step go: a formula for our GPT-2, and a meter to check it with."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lora_lib.gpt2 import GPT2Config
from lora_lib.losses import LOGITS


def step_bytes(
    config: GPT2Config,
    batch: int,
    time: int,
    *,
    rank: int | None = None,
    checkpointing: bool = False,
    bf16: bool = False,
) -> dict[str, int]:
    """Bytes of one training step with AdamW, by what holds them; their sum bounds the step's peak.

    `rank` is that of LoRA on every linear layer but the head; None trains every weight. `bf16` is autocast: weights,
    gradients and AdamW's averages stay float32. "working" is what is needed for a moment on top: by the loss, in
    chunks, or with `checkpointing` by the block that is computed again. Counted for a GPT-2 without dropout and with
    a tied head, whose attention is one fused kernel.
    """
    C, V, L, N = config.n_embd, config.vocab_size, config.n_layer, batch * time
    linear = ((C, 3 * C), (C, C), (C, 4 * C), (4 * C, C))  # (d, k) of a block's four layers
    block = sum(d * k + k for d, k in linear) + 4 * C  # and two layer norms
    base = V * C + config.n_positions * C + L * block + 2 * C
    lora = L * sum((rank or 0) * (d + k) for d, k in linear)
    trained = lora if rank else base
    inside = block_bytes(config, N, bf16)
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

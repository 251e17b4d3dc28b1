"""Text in, text out: batched generation for prompts of any length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lora_lib.gpt2.tokenizer import Tokenizer


def generate_text(
    model: Any,
    tokenizer: Tokenizer,
    prompts: str | Sequence[str | list[int]],
    max_new_tokens: int = 64,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> list[str]:
    """What `model` (a `GPT2Model`, or a `PeftModel` around one) writes after each prompt, without the prompt.

    Each answer ends where the model writes `<|endoftext|>`, or after `max_new_tokens`. `temperature` 0
    is greedy and needs no `seed`. A prompt in a list may also be its token ids, as `chat_prompt` of `data.readers`
    makes them. Returns one string for each prompt, in the same order.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    encoded = [prompt if isinstance(prompt, list) else tokenizer.encode(prompt) for prompt in prompts]
    # Prompts of similar length share a batch, so that short ones do not wait for long ones.
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        lengths = [len(encoded[i]) for i in chosen]
        ids = torch.full((len(chosen), max(lengths)), tokenizer.eot_token)
        for row, i in enumerate(chosen):
            ids[row, : lengths[row]] = torch.tensor(encoded[i], dtype=torch.long)
        out = model.generate(
            ids.to(device), max_new_tokens, temperature=temperature, top_k=top_k,
            stop_token=tokenizer.eot_token, prompt_lengths=lengths, generator=generator,
        )  # fmt: skip
        for row, i in enumerate(chosen):
            new = out[row, lengths[row] : lengths[row] + max_new_tokens].tolist()
            answers[i] = tokenizer.decode(new[: new.index(tokenizer.eot_token)] if tokenizer.eot_token in new else new)
    return answers

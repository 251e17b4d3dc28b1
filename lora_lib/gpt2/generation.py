"""From text to text: batched generation for prompts of any length, with our GPT-2 or a Hugging Face model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_lib.gpt2.model import expect_model, kept_modes
from lora_lib.gpt2.tokenizer import Tokenizer
from lora_lib.settings import check, number, optional, setting, whole


@dataclass(frozen=True)
class GenerationConfig:
    """How a model picks its next tokens. Raises ValueError for a value that its field does not allow."""

    max_new_tokens: int = setting(whole(1))
    temperature: float = setting(number("from 0 to 1000", lambda value: 0 <= value <= 1000))
    top_k: int | None = setting(optional(whole(1)))
    seed: int = setting(whole(0, 2**63 - 1))
    batch_size: int = setting(whole(1))

    def __post_init__(self) -> None:
        check(self)


def generate_text(
    model: Any,
    tokenizer: Any,
    prompts: str | Sequence[str | list[int]],
    max_new_tokens: int = 64,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> list[str]:
    """What `model` writes after each prompt, without the prompt: one string for each prompt, in the same order.

    `model` and `tokenizer` are our GPT-2 and its tokenizer, or a causal language model of Hugging Face's with its own;
    either may be wrapped with adapters. A prompt in a list may also be its token ids, as `prompt_ids` of `data.chats`
    makes them for a chat. An answer ends where the model writes its end-of-text token, or after `max_new_tokens`.
    `temperature` 0 is greedy and needs no `seed`; above 0 the tokens are sampled.

    Raises ValueError for an empty prompt, and for one that leaves no room in the model's context.
    """
    expect_model(model)
    how = GenerationConfig(max_new_tokens, temperature, top_k, seed, batch_size)
    encoded = [token_ids(prompt, tokenizer) for prompt in ([prompts] if isinstance(prompts, str) else prompts)]
    for index, ids in enumerate(encoded):
        if not ids:
            raise ValueError(f"prompt {index} is empty: a model needs at least one token to continue")
    # Prompts of similar length share a batch, so that short ones do not wait for long ones.
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    device, stops, answers = next(model.parameters()).device, stop_tokens(model, tokenizer), [""] * len(encoded)
    proceed = _continue if isinstance(tokenizer, Tokenizer) else _continue_hugging_face
    with kept_modes(model), torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        model.eval()
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            written = proceed(model, [encoded[i] for i in chosen], stops, how, device)
            for i, new in zip(chosen, written):
                end = next((at for at, token in enumerate(new) if token in stops), len(new))
                answers[i] = tokenizer.decode(new[:end])
    return answers


def stop_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the tokenizer's end of text or turn, and those in the model's generation config.

    Raises ValueError if there are none, because the model would never stop.
    """
    if isinstance(tokenizer, Tokenizer):
        return [tokenizer.eot_token]
    more = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])} - {None}
    if not found:
        raise ValueError("neither the tokenizer nor the model names a token that ends a text: set tokenizer.eos_token")
    return sorted(found)


def token_ids(prompt: str | list[int], tokenizer: Any) -> list[int]:
    """A prompt as token ids, which it may be already."""
    if isinstance(prompt, list):
        return prompt
    found: list[int] = tokenizer.encode(prompt) if isinstance(tokenizer, Tokenizer) else tokenizer(prompt).input_ids
    return found


def _continue(
    model: Any, prompts: list[list[int]], stops: list[int], how: GenerationConfig, device: torch.device
) -> list[list[int]]:
    """The new tokens of each row from our GPT-2, which reads rows that are padded on the right."""
    lengths, (stop,) = list(map(len, prompts)), stops
    ids = torch.tensor([prompt + [stop] * (max(lengths) - len(prompt)) for prompt in prompts], device=device)
    out = model.generate(
        ids, how.max_new_tokens, temperature=how.temperature, top_k=how.top_k, stop_token=stop, prompt_lengths=lengths
    )
    return [row[n : n + how.max_new_tokens] for row, n in zip(out.tolist(), lengths)]


def _continue_hugging_face(
    model: Any, prompts: list[list[int]], stops: list[int], how: GenerationConfig, device: torch.device
) -> list[list[int]]:
    """The new tokens of each row from a Hugging Face model: padding is on the left, and the mask hides it."""
    longest, room = max(map(len, prompts)), getattr(model.config, "max_position_embeddings", None)
    if room and longest + how.max_new_tokens > room:
        raise ValueError(
            f"a prompt of {longest} tokens and {how.max_new_tokens} new ones do not fit this model's context of {room}"
        )
    ids = torch.tensor([[stops[0]] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    picks: dict[str, Any] = {"do_sample": False}
    if how.temperature > 0:  # top_p=1: the model's own generation config may set another one
        picks = {"do_sample": True, "temperature": how.temperature, "top_k": how.top_k or 0, "top_p": 1.0}
    out = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=how.max_new_tokens, eos_token_id=stops,
        pad_token_id=stops[0], **picks,
    )  # fmt: skip
    new: list[list[int]] = out[:, longest:].tolist()
    return new

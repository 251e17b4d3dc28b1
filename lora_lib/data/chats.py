"""Chats for any model of Hugging Face's: its template, the loss on the answer alone, and answers in batches.

A chat is a list of {"role": "user", "content": "…"} that ends with the assistant's answer. A tokenizer is one of
transformers', with a chat template. For the book's own GPT-2 see `data.readers`, which has a template of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from lora_lib.data.examples import IGNORE, Encoded

Chat = Sequence[Mapping[str, str]]


def encode_chat(chat: Chat, tokenizer: Any) -> Encoded:
    """A chat as token ids (T,) and next-token targets (T,), both int64, the loss on its last answer alone.

    All that the template puts after the answer is learned too: the token that ends a turn is among it, and a model
    that never learned it never stops. Targets are -100 elsewhere.

    Raises ValueError where the assistant does not have the last word, the answer is empty, or the template does not
    write the prompt letter for letter as it does when the answer is still to come.
    """
    if not chat or chat[-1]["role"] != "assistant" or not chat[-1]["content"]:
        raise ValueError(f"a chat to learn from ends with the assistant's answer, got {list(chat)[-1:]}")
    prompt = prompt_ids(chat[:-1], tokenizer)
    ids: list[int] = tokenizer.apply_chat_template(list(chat), return_dict=False)
    if ids[: len(prompt)] != prompt:
        raise ValueError(
            "this template writes a prompt in another way once it is answered, so where the answer begins is not "
            f"known: {tokenizer.decode(prompt)!r} against {tokenizer.decode(ids[: len(prompt)])!r}"
        )
    masked = [IGNORE] * (len(prompt) - 1)
    return torch.tensor(ids[:-1]), torch.tensor(masked + ids[len(prompt) :])


def prompt_ids(chat: Chat, tokenizer: Any) -> list[int]:
    """The token ids after which the assistant speaks next."""
    ids: list[int] = tokenizer.apply_chat_template(list(chat), add_generation_prompt=True, return_dict=False)
    return ids


@torch.no_grad()
def write_answers(
    model: Any, tokenizer: Any, chats: Iterable[Chat], max_new_tokens: int = 64, *, batch_size: int = 16
) -> list[str]:
    """What the model answers to each chat, greedily; one string a chat, in their order.

    An answer ends at the tokenizer's end-of-turn token (`eos_token`), or after `max_new_tokens`. Prompts are padded
    on the left, where the attention mask hides it. `model` is in evaluation mode meanwhile.
    """
    prompts = [prompt_ids(chat, tokenizer) for chat in chats]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # neighbours in length share a batch
    answers, device = [""] * len(prompts), next(model.parameters()).device
    was_training = model.training
    model.eval()
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        longest = max(len(prompts[i]) for i in chosen)
        ids = torch.tensor([[tokenizer.eos_token_id] * (longest - len(prompts[i])) + prompts[i] for i in chosen])
        mask = torch.tensor([[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen])
        out = model.generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), max_new_tokens=max_new_tokens, do_sample=False,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        for i, new in zip(chosen, out[:, longest:].tolist(), strict=True):
            end = new.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in new else len(new)
            answers[i] = tokenizer.decode(new[:end])
    model.train(was_training)
    return answers

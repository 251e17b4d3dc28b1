"""Records and chats for any tokenizer: what is read, what is learned, and a model's answers in batches.

A chat is a list of {"role": "user", "content": "…"}. A tokenizer is one of transformers' with a chat template, or the
one of our GPT-2, whose plain template is in `data.readers`.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch

from lora_lib.data.examples import Encoded, Record, encode_examples
from lora_lib.data.readers import chat_prompt
from lora_lib.gpt2.generation import generate_text, token_ids
from lora_lib.gpt2.loss import IGNORE
from lora_lib.gpt2.tokenizer import Tokenizer

Chat = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]


def encode_chat(
    chat: Chat, tokenizer: Any, max_length: int | None = None, *, tools: Tools = (),
    answers: Literal["all", "last"] = "all",
) -> Encoded:  # fmt: skip
    """A chat as token ids (T,) and next-token targets (T,), both int64, with the loss on the assistant's answers.

    What the template writes after an answer is learned too, because a model that never learned the token that ends a
    turn never stops. Targets are -100 elsewhere. `tools` are the functions that the model may call.
    `answers="last"` learns the last answer only. `max_length` None stands for the tokenizer's `model_max_length`.

    Raises ValueError when the chat does not end with an answer, an answer is empty, the chat is too long, or the
    template has no place for tools or reasoning, or writes the beginning of the chat differently once it goes on.
    """
    _check_chat(chat, answers)
    thinks = any(message.get("reasoning_content") for message in chat)
    render = partial(_render, tokenizer=tokenizer, tools=tools, enable_thinking=thinks)
    whole = render(chat)
    _check_written(chat, whole, render)
    longest = tokenizer.model_max_length if max_length is None else max_length
    if len(whole) - 1 > longest:
        raise ValueError(f"{len(whole) - 1:,} tokens do not fit max_length {longest:,}; shorten the chat or raise it")
    targets = [IGNORE] * len(whole)
    turns = [index for index, message in enumerate(chat) if message["role"] == "assistant"]
    for index in turns if answers == "all" else turns[-1:]:
        # What a client asks that says nothing about thinking, so that such a client gets the answer, too.
        asked = _render(chat[:index], tokenizer, tools, add_generation_prompt=True)
        asked = asked if whole[: len(asked)] == asked else render(chat[:index], add_generation_prompt=True)
        begin, end = (_length_of(ids, whole, tokenizer) for ids in (asked, render(chat[: index + 1])))
        targets[begin:end] = whole[begin:end]
    return torch.tensor(whole[:-1]), torch.tensor(targets[1:])


def prompt_ids(chat: Chat, tokenizer: Any, tools: Tools = ()) -> list[int]:
    """The token ids after which the assistant speaks next, without thinking. Raises ValueError as `encode_chat`."""
    if isinstance(tokenizer, Tokenizer):
        return chat_prompt(list(chat), tokenizer, tools)
    return _render(chat, tokenizer, tools, add_generation_prompt=True, enable_thinking=False)


def encode_records(
    records: Sequence[Record], tokenizer: Any, max_length: int, *, too_long: Literal["raise", "drop"] = "raise",
    system: str | None = None,
) -> list[Encoded]:  # fmt: skip
    """Each record as ids (T,) and next-token targets (T,): the loss is on its answers and on the end of each answer.

    With our GPT-2's tokenizer, texts are read as they stand. With a tokenizer of Hugging Face's, a chat goes through
    its template, and so does a pair: the prompt is the user's turn, the completion the assistant's, and `system` a turn
    before them. A tokenizer without a template reads pairs as they stand.

    Raises ValueError for a record that cannot be written with this tokenizer or has more than `max_length` tokens;
    `too_long="drop"` leaves long ones out, with a warning that names them.
    """
    if too_long not in ("raise", "drop"):
        raise ValueError(f"too_long must be 'raise' or 'drop', got {too_long!r}")
    encoded, dropped = [], []
    for record in records:
        ids, targets = _encode_record(record, tokenizer, system)
        if len(ids) <= max_length:
            encoded.append((ids, targets))
            continue
        dropped.append(f"{record.where}: {len(ids)} tokens do not fit max_length {max_length}")
        if too_long == "raise":
            raise ValueError(f"{dropped[0]}; shorten it, raise max_length, or pass too_long='drop'")
    if not encoded:
        raise ValueError(f"no record is left of {len(records)}" + "".join(f"; {reason}" for reason in dropped[:1]))
    if dropped:
        warnings.warn(f"left out {len(dropped)} of {len(records)} records: {'; '.join(dropped[:5])}", stacklevel=2)
    return encoded


def record_chat(record: Record, system: str | None = None) -> list[dict[str, Any]]:
    """A record as a chat: its messages, or, for a pair, the prompt as the user's turn and the completion as the answer.

    Raises ValueError for `system` beside a chat that has a system turn.
    """
    turns = [dict(message) for message in record.messages]
    for prompt, completion in () if turns else record.exchanges:
        turns += [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    if system is None:
        return turns
    if turns[0]["role"] == "system":
        raise ValueError(f"{record.where}: this chat has a system turn already: leave `system` out")
    return [{"role": "system", "content": system}, *turns]


def wanted_answer(record: Record) -> str:
    """The last answer of a record; where it only calls tools, the calls as JSON."""
    turn = record_chat(record)[-1]
    return turn.get("content") or json.dumps(turn.get("tool_calls"), ensure_ascii=False)


def _encode_record(record: Record, tokenizer: Any, system: str | None) -> Encoded:
    try:
        if _is_plain(record, tokenizer, system):
            return _encode_plain(record, tokenizer)
        return encode_chat(record_chat(record, system), tokenizer, sys.maxsize, tools=record.tools)
    except ValueError as error:
        if str(error).startswith(record.where):
            raise
        raise ValueError(f"{record.where}: {error}") from error


def _is_plain(record: Record, tokenizer: Any, system: str | None) -> bool:
    """Whether a record is read as it stands, without a chat template of the tokenizer's."""
    if not isinstance(tokenizer, Tokenizer) and (tokenizer.chat_template or record.messages):
        return False
    if system is not None:
        raise ValueError("this tokenizer has no chat template, so there is no place for `system`: leave it out")
    if not record.exchanges:
        raise ValueError(
            "it has tools or reasoning, and the plain template of our GPT-2 has no place for them: take them out, "
            "or use a chat model of Hugging Face's"
        )
    return True


def _encode_plain(record: Record, tokenizer: Any) -> Encoded:
    """The exchanges one after the other. The token after an answer's end belongs to a prompt and is not learned."""
    if not isinstance(tokenizer, Tokenizer):
        ((prompt_text, completion),) = record.exchanges
        prompt, answer = tokenizer(prompt_text).input_ids, tokenizer(completion, add_special_tokens=False).input_ids
        tokens = [*prompt, *answer, tokenizer.eos_token_id]
        return torch.tensor(tokens[:-1]), torch.tensor([IGNORE] * (len(prompt) - 1) + tokens[len(prompt) :])
    ids: list[torch.Tensor] = []
    targets: list[torch.Tensor] = []
    for one, wanted in encode_examples(record.exchanges, tokenizer, max_length=sys.maxsize):
        ids += [one, torch.tensor([tokenizer.eot_token])]
        targets += [wanted, torch.tensor([IGNORE])]
    return torch.cat(ids)[:-1], torch.cat(targets)[:-1]


def _render(chat: Chat, tokenizer: Any, tools: Tools, **more: Any) -> list[int]:
    """The chat as its template writes it, in token ids."""
    from jinja2 import TemplateError  # comes with transformers' chat templates

    if not tokenizer.chat_template:
        raise ValueError("this tokenizer has no chat template: use a chat model, or records of prompt and completion")
    try:
        ids: list[int] = tokenizer.apply_chat_template(list(chat), tools=list(tools) or None, return_dict=False, **more)
    except TemplateError as error:
        raise ValueError(f"this model's chat template does not take the chat: {error}") from error
    return ids


def _check_chat(chat: Chat, answers: str) -> None:
    if answers not in ("all", "last"):
        raise ValueError(f"answers must be 'all' or 'last', got {answers!r}")
    for message in chat:
        if not isinstance(message, Mapping) or "role" not in message:
            raise ValueError(f"a message of a chat is {{'role': 'user', 'content': '…'}} or the like, got {message!r}")
    if not chat or chat[-1]["role"] != "assistant":
        raise ValueError(f"a chat to learn from ends with the assistant's answer, got {list(chat)[-1:]}")
    for message in chat:
        if message["role"] == "assistant" and not (message.get("content") or message.get("tool_calls")):
            raise ValueError(f"an answer of the assistant is empty, and there is nothing to learn from it: {message}")


def _check_written(chat: Chat, whole: list[int], render: partial[list[int]]) -> None:
    """Raise ValueError where the template leaves out a part of the chat that the answers depend on."""
    if render.keywords["tools"] and whole == render(chat, tools=()):
        raise ValueError("this model's chat template writes nothing of `tools`: take them out, or use another model")
    for name in ("reasoning_content", "tool_calls"):
        if any(message.get(name) for message in chat):
            without = [{key: value for key, value in message.items() if key != name} for message in chat]
            if whole == render(without):
                raise ValueError(f"this model's template writes nothing of {name!r}: take it out, or use another model")


def _length_of(beginning: list[int], whole: list[int], tokenizer: Any) -> int:
    """How many tokens a beginning of the chat has. Raises ValueError where the whole chat begins in another way."""
    if whole[: len(beginning)] == beginning:
        return len(beginning)
    raise ValueError(
        "this template writes the beginning of the chat in another way once the chat goes on, so where an answer "
        f"begins is not known: {tokenizer.decode(beginning)!r} against {tokenizer.decode(whole[: len(beginning)])!r}. "
        "With answers='last', or one record for each answer, the earlier answers are not needed"
    )


def write_answers(
    model: Any, tokenizer: Any, chats: Iterable[Chat], max_new_tokens: int = 64, *, tools: Tools = (),
    batch_size: int = 16, **how: Any,
) -> list[str]:  # fmt: skip
    """What the model answers to each chat. `how` goes to `generate_text`. Raises as that and `prompt_ids` do."""
    prompts = [prompt_ids(chat, tokenizer, tools) for chat in chats]
    return generate_text(model, tokenizer, prompts, max_new_tokens, batch_size=batch_size, **how)


def ask_records(
    records: Sequence[Record], tokenizer: Any, *, system: str | None = None
) -> tuple[list[list[int]], list[str]]:
    """What to ask a model for each record, and the answer that is wanted.

    The first are token ids for `generate_text`, up to the record's last answer; the second are those answers. Raises
    ValueError for a record that cannot be written with this tokenizer.
    """
    prompts, wanted = [], []
    for record in records:
        wanted.append(wanted_answer(record))
        try:
            if not _is_plain(record, tokenizer, system) or record.messages:
                prompts.append(prompt_ids(record_chat(record, system)[:-1], tokenizer, record.tools))
            else:
                prompts.append(token_ids(record.exchanges[-1].prompt, tokenizer))
        except ValueError as error:
            raise ValueError(f"{record.where}: {error}") from error
    return prompts, wanted

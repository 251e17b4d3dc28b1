"""Examples to train on: a prompt and its completion, split into three parts, encoded, packed and batched.

Texts become token ids and next-token targets, with -100 where nothing is learned. `data.readers` reads files, and
`data.chats` encodes records and chats.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from lora_lib.gpt2.loss import IGNORE
from lora_lib.gpt2.tokenizer import Tokenizer

Encoded = tuple[Tensor, Tensor]  # token ids (T,) and targets (T,), both int64


class Example(NamedTuple):
    """A pair to train on: the model is given `prompt` and learns to continue it with `completion`."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Record:
    """One line of a file: each answer with what was said before it, and where the line is ("chats.jsonl, line 3").

    A pair is one exchange. In a chat the prompt of an exchange continues where the answer before it ended. A chat
    also keeps its `messages` and `tools` as they are in the file, for a model with a chat template; if it has tools or
    reasoning, it has no exchanges, because plain text has no place for them.
    """

    exchanges: tuple[Example, ...]
    where: str
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def prompts(self) -> str:
        """All that the model is given and does not learn to write."""
        if not self.messages:
            return "".join(prompt for prompt, _ in self.exchanges)
        given = [message for message in self.messages if message["role"] != "assistant"]
        return "\n".join(f"{message['role']}: {message['content']}" for message in given)


Item = TypeVar("Item")
Text = TypeVar("Text", str, Record)


@dataclass(frozen=True)
class Splits(Generic[Item]):
    """Items to learn from, to choose settings by, and to report on."""

    train: list[Item]
    validation: list[Item]
    test: list[Item]


def split(items: Sequence[Text], *, validation: float = 0.1, test: float = 0.1, seed: int = 0) -> Splits[Text]:
    """Divide documents or records into three parts at random; `seed` decides how.

    Documents with the same text go into the same part, and so do records with the same prompts, whatever their
    answers. Capitals and spacing do not count. `validation` and `test` are shares of the *different* items.

    Raises ValueError for shares that leave nothing to train on, and for too few different items.
    """
    if isinstance(items, str):
        raise ValueError("expected a list of documents or records, got one text; read_text makes a list of it")
    for index, item in enumerate(items):
        if not isinstance(item, (str, Record)):
            raise ValueError(f"item {index} is neither a text nor a Record, but of type {type(item).__name__}")
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise ValueError(f"validation and test must be shares of 0 or more, below 1 together, got {validation}, {test}")
    same: dict[str, list[Text]] = {}
    for item in items:
        text = item if isinstance(item, str) else item.prompts
        same.setdefault(" ".join(text.casefold().split()), []).append(item)
    groups = list(same.values())
    random.Random(seed).shuffle(groups)
    first, second = (max(round(share * len(groups)), share > 0) for share in (test, validation))
    if first + second >= len(groups):
        raise ValueError(
            f"{len(items)} items, {len(groups)} of them different, are too few for three parts: "
            "bring more, or cut them smaller (read_text has a separator)"
        )
    parts = groups[first + second :], groups[first : first + second], groups[:first]
    return Splits(*(list(chain.from_iterable(part)) for part in parts))


def encode_examples(examples: Iterable[Example], tokenizer: Tokenizer, max_length: int) -> list[Encoded]:
    """Examples as token ids (T,) and next-token targets (T,), both int64.

    `targets[t]` is the token that should follow `ids[t]`, so that cross-entropy compares it with the logits at t.
    It is -100 inside the prompt: only the completion is learned, and the `<|endoftext|>` that ends it.

    Raises ValueError for an example of more than `max_length` tokens, or with an empty completion.
    """
    encoded = []
    for index, (prompt_text, completion_text) in enumerate(examples):
        if not completion_text:
            raise ValueError(f"example {index} has no completion: there is nothing to learn from it")
        prompt, completion = tokenizer.encode(prompt_text), tokenizer.encode(completion_text)
        tokens = [*prompt, *completion, tokenizer.eot_token]
        if len(tokens) - 1 > max_length:
            raise ValueError(
                f"example {index} is too long: a prompt of {len(prompt)} and a completion of {len(completion)} tokens "
                f"do not fit max_length {max_length}; shorten or drop it, or raise max_length"
            )
        masked = max(len(prompt) - 1, 0)
        encoded.append((torch.tensor(tokens[:-1]), torch.tensor([IGNORE] * masked + tokens[1 + masked :])))
    return encoded


def pack(documents: Sequence[str], tokenizer: Tokenizer, block_length: int) -> list[Encoded]:
    """Documents, one after the other, cut into blocks of `block_length` tokens: ids (T,) and next-token targets (T,).

    `<|endoftext|>` is put before, between and after them, and every token is learned. No token is lost: the last
    block may be shorter. A block may begin in the middle of a document, and may hold several.
    """
    if isinstance(documents, str) or not documents:
        raise ValueError("expected a list of at least one document; read_text makes one")
    if block_length < 1:
        raise ValueError(f"block_length must be 1 or more (the model's context, at most), got {block_length}")
    stream = [tokenizer.eot_token]
    for document in documents:
        stream += [*tokenizer.encode(document), tokenizer.eot_token]
    ids, targets = torch.tensor(stream[:-1]), torch.tensor(stream[1:])
    return list(zip(ids.split(block_length), targets.split(block_length), strict=True))


def collate(batch: Sequence[Encoded], pad_id: int) -> Encoded:
    """Stack sequences into ids (B, T) and targets (B, T), padded on the right with `pad_id` and -100.

    Causal attention never looks to the right, so the padding needs no mask.
    """
    ids = pad_sequence([ids for ids, _ in batch], batch_first=True, padding_value=pad_id)
    return ids, pad_sequence([targets for _, targets in batch], batch_first=True, padding_value=IGNORE)


def batches(
    encoded: Sequence[Encoded], batch_size: int, pad_id: int, *, shuffle: bool = True, seed: int = 0
) -> DataLoader[Encoded]:
    """A DataLoader of padded (ids, targets) batches. Their order follows from `seed` only."""
    order = torch.Generator().manual_seed(seed)
    return DataLoader(encoded, batch_size, shuffle, collate_fn=partial(collate, pad_id=pad_id), generator=order)  # type: ignore[arg-type]

"""Byte-pair encoding through tiktoken: text to token ids and back."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import tiktoken

END_OF_TEXT = "<|endoftext|>"
MOST_BLANKS = 100_000  # tiktoken needs stack space for each blank in a row, and aborts at about a million
# How GPT-2 splits text into pieces before any merge: contractions, words, numbers, punctuation, spaces.
SPLIT_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


class Tokenizer:
    """Text to token ids and back. `ranks` is the merge order of a trained byte-pair encoding.

    `eot_token` is the id of `<|endoftext|>`, which separates documents and ends an answer. Text that spells this token
    is encoded as ordinary text, so a user cannot inject an end.
    """

    def __init__(self, ranks: dict[bytes, int]) -> None:
        self.ranks = ranks
        self.eot_token = len(ranks)
        self._encoding = tiktoken.Encoding(
            "gpt2-bpe", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: self.eot_token}
        )

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Read a `.tiktoken` file. Each line holds a token's bytes in base64, a space, and its rank."""
        ranks: dict[bytes, int] = {}
        for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
            try:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: expected 'base64 rank', got {line!r}") from error
        if not ranks or sorted(ranks.values()) != list(range(len(ranks))):
            raise ValueError(f"{path}: ranks must be 0, 1, 2, … without gaps, got {len(ranks)} of them")
        return cls(ranks)

    @classmethod
    def from_vocab(cls, vocab: dict[str, int]) -> Tokenizer:
        """Read Hugging Face's `vocab.json`, which has a printable letter for each byte, and ids in merge order."""
        to_byte = {c: b for b, c in _printable_bytes().items()}
        ranks = {bytes(to_byte[c] for c in t): i for t, i in vocab.items() if t != END_OF_TEXT}
        if not ranks or sorted(ranks.values()) != list(range(len(ranks))):
            raise ValueError("not a vocabulary of GPT-2's kind: its ids are not 0, 1, 2, … with <|endoftext|> last")
        return cls(ranks)

    def save(self, path: str | Path) -> None:
        """Write the `.tiktoken` file that `from_file` reads."""
        lines = (f"{base64.b64encode(t).decode()} {r}\n" for t, r in sorted(self.ranks.items(), key=lambda x: x[1]))
        Path(path).write_text("".join(lines), encoding="ascii")

    @property
    def vocab_size(self) -> int:
        """The number of ids, `<|endoftext|>` included."""
        return self.eot_token + 1

    def encode(self, text: str) -> list[int]:
        """Text to token ids. Raises ValueError for a text with more than 100,000 blanks in a row."""
        if len(text) > MOST_BLANKS:
            longest = max(re.findall(r"\s+", text), key=len, default="")
            if len(longest) > MOST_BLANKS:
                raise ValueError(
                    f"the text has {len(longest):,} blanks in a row, from character {text.index(longest):,} on; the "
                    f"tokenizer can split {MOST_BLANKS:,} at most: remove some"
                )
        return self._encoding.encode_ordinary(text)

    def decode(self, ids: list[int]) -> str:
        """Token ids to text; `<|endoftext|>` is written out."""
        return self._encoding.decode(ids)

    def tokens(self, text: str) -> list[str]:
        """The text of each token, for display."""
        return [self._encoding.decode([i]) for i in self.encode(text)]


def _printable_bytes() -> dict[int, str]:
    """The letter for each byte in GPT-2's files: the byte itself if it is printable, else the next unused letter."""
    prints = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in prints]
    return {**{b: chr(b) for b in prints}, **{b: chr(256 + n) for n, b in enumerate(others)}}

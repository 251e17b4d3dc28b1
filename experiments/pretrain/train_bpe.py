"""Train gpt2-mini's byte-level BPE on plain text and write it as a `.tiktoken` file.

    pip install tokenizers
    python experiments/pretrain/train_bpe.py FILE [FILE …] --size 4096 --out bpe.tiktoken

Files may be `.xz`. The last id of the vocabulary is left for <|endoftext|>, so 4096 means 4,095 ranks.
The merges are learned by Hugging Face's tokenizers, over the pieces of GPT-2's own split pattern.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Iterator
from pathlib import Path

from lora_lib.gpt2 import SPLIT_PATTERN, Tokenizer


def read_lines(paths: list[Path]) -> Iterator[str]:
    """All lines of all files."""
    for path in paths:
        with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf8") as file:
            yield from file


def train_bpe(lines: Iterator[str], size: int) -> Tokenizer:
    """A tokenizer with `size` ids: the 256 bytes, then merges in the order in which they were learned."""
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as HFTokenizer

    bpe = HFTokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size - 1, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(lines, trainer)
    return Tokenizer.from_vocab(json.loads(bpe.to_str())["model"]["vocab"])


def main() -> None:
    """Parse the command line, train, write, and say how many ranks there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = train_bpe(read_lines(args.files), args.size)
    tokenizer.save(args.out)
    print(f"{args.out}: {len(tokenizer.ranks)} ranks")


if __name__ == "__main__":
    main()

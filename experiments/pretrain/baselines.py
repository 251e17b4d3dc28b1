"""What gpt2-mini's bits per byte are worth: the same held-out text under compressors and a 5-gram model.

    python experiments/pretrain/baselines.py --corpus FOLDER [--run runs/pretrain]

Prints one JSON object. The 5-gram model sees the same tokens of the same training text, and is
interpolated by Witten and Bell's rule ("The zero-frequency problem", 1991, method C).
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import json
import lzma
import math
from pathlib import Path

import numpy as np
import torch
from pretrain import BPE, encode_corpus, loss_on

from lora_lib.gpt2 import MINI_FOLDER, Tokenizer, load_pretrained

BITS = 12  # an id below 4,096 fits in 12 bits, and five of them in one int64


def ngram_keys(tokens: np.ndarray, n: int) -> np.ndarray:
    """Every run of n tokens as one number; the last token sits in the lowest bits."""
    keys = np.zeros(len(tokens) - n + 1, dtype=np.int64)
    for i in range(n):
        keys = (keys << BITS) | tokens[i : len(tokens) - n + 1 + i].astype(np.int64)
    return keys


def lookup(keys: np.ndarray, table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The value of each key in a sorted table, 0 where it is missing."""
    at = np.searchsorted(table, keys).clip(max=len(table) - 1)
    return np.where(table[at] == keys, values[at], 0)


def ngram_bits(train: np.ndarray, val: np.ndarray, order: int = 5) -> float:
    """Total bits that the interpolated n-gram model spends on `val`."""
    vocabulary = int(max(train.max(), val.max())) + 1
    probability = np.full(len(val), 1.0 / vocabulary)
    for n in range(1, order + 1):
        grams, counts = np.unique(ngram_keys(train, n), return_counts=True)
        contexts, starts = np.unique(grams >> BITS, return_index=True)
        distinct = np.diff(np.append(starts, len(grams)))  # T(h): how many different tokens follow h
        totals = np.add.reduceat(counts, starts)  # c(h)
        keys = ngram_keys(val, n)  # predicts val[n - 1:]; the tokens before keep their shorter context
        c_hw, h = lookup(keys, grams, counts), keys >> BITS
        c_h, t_h = lookup(h, contexts, totals), lookup(h, contexts, distinct)
        lower = probability[n - 1 :]
        probability[n - 1 :] = np.where(c_h > 0, (c_hw + t_h * lower) / np.maximum(c_h + t_h, 1), lower)
    return float(-np.log2(probability).sum())


def main() -> None:
    """Measure everything on all of core_val."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--model", type=Path, default=MINI_FOLDER)
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)
    text = (args.corpus / "core_val.txt").read_bytes()
    tokenizer = Tokenizer.from_file(BPE)
    train = encode_corpus(args.corpus / "core_train.txt.xz", tokenizer, args.run / "train.npy")
    val = encode_corpus(args.corpus / "core_val.txt", tokenizer, args.run / "val.npy")
    model, _ = load_pretrained(args.model)
    nats = loss_on(model, val, model.config.n_positions)
    result = {
        "bytes": len(text),
        "tokens": len(val),
        "gpt2-mini, nats a token": nats,
        "gpt2-mini": nats / math.log(2) * len(val) / len(text),
        "5-gram": ngram_bits(train, val) / len(text),
        "gzip -9": 8 * len(gzip.compress(text, 9)) / len(text),
        "bzip2 -9": 8 * len(bz2.compress(text, 9)) / len(text),
        "xz -9e": 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text),
        "torch": torch.__version__,
    }
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()}, indent=1))


if __name__ == "__main__":
    main()

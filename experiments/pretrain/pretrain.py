"""Pretrain gpt2-mini on a folder of plain text; stop it at any time and run it again to go on.

    python experiments/pretrain/pretrain.py --corpus FOLDER --minutes 90 [--init FOLDER] [--run runs/pretrain]

FOLDER holds `core_train.txt.xz` and `core_val.txt`: one paragraph a line, a blank line between documents.
`--init` starts from the weights of a Hugging Face folder instead of random ones. The schedule is in
wall time, so that a run fills the minutes it is given: warm up, hold, then fall in a straight line.
Muon (torch.optim.Muon) moves the block matrices, AdamW the rest. Every checkpoint is written to a
temporary file first; the last one is an HF-format folder, `RUN/gpt2-mini`.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import os
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lora_lib.gpt2 import GPT2Config, GPT2Model, Tokenizer, save_pretrained_folder
from lora_lib.gpt2.pretrained import load_weights

MINI = GPT2Config(
    vocab_size=4096, n_positions=256, n_embd=320, n_head=5, n_layer=6, embd_pdrop=0, resid_pdrop=0, attn_pdrop=0
)
BPE = Path(__file__).parents[2] / "lora_lib" / "gpt2" / "mini" / "bpe.tiktoken"


def encode_corpus(path: Path, tokenizer: Tokenizer, cache: Path) -> np.ndarray:
    """All documents as one row of uint16 ids, each ended by <|endoftext|>; kept in `cache`."""
    if not cache.exists():
        data = path.read_bytes()
        text = (lzma.decompress(data) if path.suffix == ".xz" else data).decode("utf8")
        parts = [np.array([*tokenizer.encode(d), tokenizer.eot_token], dtype=np.uint16) for d in text.split("\n\n")]
        np.save(cache.with_suffix(".tmp.npy"), np.concatenate(parts))
        os.replace(cache.with_suffix(".tmp.npy"), cache)
    return np.load(cache)


def batch_at(tokens: np.ndarray, step: int, size: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """The step's batch: a shuffled pass over windows that do not overlap, each pass cut at its own offset."""
    per_pass = (len(tokens) - 1) // length - 1
    index = np.arange(step * size, (step + 1) * size)
    rows = []
    for i in index:
        rng = np.random.default_rng((seed, int(i) // per_pass))
        offset = int(rng.integers(length))
        order = _permutation(seed, int(i) // per_pass, per_pass)
        start = offset + int(order[int(i) % per_pass]) * length
        rows.append(tokens[start : start + length + 1].astype(np.int64))
    ids = torch.from_numpy(np.stack(rows))
    return ids[:, :-1], ids[:, 1:]


@lru_cache(maxsize=2)  # a batch lies in one pass or across two
def _permutation(seed: int, number: int, count: int) -> np.ndarray:
    """The order of the windows in one pass."""
    return np.random.default_rng((seed, number, 1)).permutation(count)


@torch.no_grad()
def loss_on(model: torch.nn.Module, tokens: np.ndarray, length: int, windows: int | None = None) -> float:
    """Mean nats a token over windows that do not overlap (the first `windows`, or all)."""
    total, count = 0.0, 0
    starts = list(range(0, len(tokens) - 1, length))[:windows]
    full = [s for s in starts if s + length < len(tokens)]
    groups = [full[i : i + 32] for i in range(0, len(full), 32)] + [[s] for s in starts[len(full) :]]
    for group in groups:
        ids = torch.from_numpy(np.stack([tokens[s : s + length + 1] for s in group]).astype(np.int64))
        logits = model(ids[:, :-1])
        total += F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum").item()
        count += ids[:, 1:].numel()
    return total / count


def learning_rate(progress: float, step: int, warmup: int, hold: float) -> float:
    """The factor on every learning rate: up over `warmup` steps, flat to `hold`, then linear to 2 %."""
    fall = 1.0 if progress < hold else 1.0 - 0.98 * (progress - hold) / (1.0 - hold)
    return min(1.0, (step + 1) / warmup) * max(fall, 0.02)


def optimizers(model: GPT2Model, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings, biases and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("h.")]
    rest = [p for name, p in model.named_parameters() if not (p.ndim == 2 and name.startswith("h."))]
    made = [
        torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    for optimizer in made:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return made


def main() -> None:
    """Parse the command line, then train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--init", type=Path)
    parser.add_argument("--run", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--muon-lr", type=float, default=2e-3)
    parser.add_argument("--adam-lr", type=float, default=3e-3)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--hold", type=float, default=0.4)
    parser.add_argument("--save-seconds", type=float, default=120, help="training time between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)
    train(args)


def train(args: argparse.Namespace) -> None:
    """The training loop: resume, step, report, checkpoint, and at the end save the HF folder."""
    tokenizer, length = Tokenizer.from_file(BPE), MINI.n_positions
    tokens = encode_corpus(args.corpus / "core_train.txt.xz", tokenizer, args.run / "train.npy")
    val = encode_corpus(args.corpus / "core_val.txt", tokenizer, args.run / "val.npy")
    nats_to_bits = len(val) / (args.corpus / "core_val.txt").stat().st_size / math.log(2)
    torch.manual_seed(args.seed)
    model = GPT2Model(MINI)
    if args.init:
        load_weights(model, args.init)
    opts = optimizers(model, args.muon_lr, args.adam_lr)
    compiled = torch.compile(model)
    step, elapsed, checkpoint = 0, 0.0, args.run / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for opt, saved in zip(opts, state["optimizers"], strict=True):
            opt.load_state_dict(saved)
        step, elapsed = state["step"], state["elapsed"]
        print(f"resumed at step {step}, {elapsed / 60:.1f} minutes in", flush=True)
    budget, last, saved_at = args.minutes * 60, time.perf_counter(), elapsed
    while elapsed < budget:
        factor = learning_rate(elapsed / budget, step, args.warmup, args.hold)
        x, y = batch_at(tokens, step, args.batch, length, args.seed)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(compiled(x).flatten(0, 1).float(), y.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = group["peak"] * factor
            opt.step()
            opt.zero_grad()
        step, now = step + 1, time.perf_counter()
        elapsed, last = elapsed + now - last, now
        if step % 200 == 0:
            bits = loss_on(model, val, length, windows=96) * nats_to_bits
            row = {
                "step": step,
                "minutes": round(elapsed / 60, 2),
                "tokens": step * args.batch * length,
                "lr": round(factor, 4),
                "train": round(loss.item(), 4),
                "val_bits_per_byte": round(bits, 4),
            }
            with (args.run / "curve.jsonl").open("a") as f:
                f.write(json.dumps(row) + "\n")
            print(row, flush=True)
        if elapsed - saved_at > args.save_seconds or elapsed >= budget:
            state = {
                "model": model.state_dict(),
                "optimizers": [o.state_dict() for o in opts],
                "step": step,
                "elapsed": elapsed,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
            saved_at = elapsed
    model.half().float()  # what the file will hold
    nats = loss_on(model, val, length)
    print(f"all of core_val: {nats:.4f} nats a token, {nats * nats_to_bits:.4f} bits a byte, {step} steps", flush=True)
    save_pretrained_folder(model, tokenizer, args.run / "gpt2-mini", dtype=torch.float16)


if __name__ == "__main__":
    main()

"""Training: one function, `fit`, for LoRA and for full fine-tuning alike.

It moves whatever parameters ask for gradients, and nothing else: `enable_lora_training` leaves only A
and B asking.
"""

from __future__ import annotations

import itertools
import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from lora_lib.checkpoints import fingerprint, load_checkpoint, save_checkpoint
from lora_lib.distributed import Objective, averaged, place
from lora_lib.examples import IGNORE, Encoded, batches
from lora_lib.losses import loss_sum

PAD = 0  # any token will do: padding stands to the right of what is read and its targets are ignored


@dataclass
class History:
    """What happened in a training run: one entry a step in `loss` and `learning_rate`.

    Losses are mean nats per target token. `validation` holds (steps done, loss) pairs; `seconds` is the
    training time alone, validation not counted; `tokens` counts the positions read, padding included;
    `reduced_bytes` counts the gradients that this process gave to be summed with those of others.
    """

    loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    reduced_bytes: int = 0

    def __post_init__(self) -> None:
        self.validation = [(step, loss) for step, loss in self.validation]  # pairs again, after a checkpoint's lists

    @property
    def tokens_per_second(self) -> float:
        """Positions read per second of training."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def count_bytes(self, count: int) -> None:
        """Add to `reduced_bytes`."""
        self.reduced_bytes += count

    def __repr__(self) -> str:
        last = f", loss {self.loss[0]:.2f} → {sum(self.loss[-10:]) / len(self.loss[-10:]):.2f}" if self.loss else ""
        val = f", validation {self.validation[0][1]:.2f} → {self.validation[-1][1]:.2f}" if self.validation else ""
        return (
            f"History({len(self.loss)} steps{last}{val}, {self.seconds:.0f} s, {self.tokens_per_second:,.0f} tokens/s)"
        )


def fit(
    model: nn.Module,
    train: Sequence[Encoded],
    *,
    steps: int,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    lr_ratio: Callable[[str], float] | None = None,
    warmup: float = 0.1,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    accumulate: int = 1,
    validation: Sequence[Encoded] = (),
    validate_every: int | None = None,
    on_validation: Callable[[int, nn.Module], None] | None = None,
    bf16: bool | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 100,
    progress: bool = True,
) -> History:
    """Train the parameters of `model` that require gradients; returns the run's `History`.

    AdamW; the learning rate climbs over the first `warmup` (a share of all steps) and falls along a
    cosine to zero. `lr_ratio` says how many times that rate the parameter of a given name gets: with
    `lambda name: 16 if name.endswith(".B") else 1` it is LoRA+ (arXiv 2402.12354). Gradients are
    clipped to norm `clip`. One step reads `batch_size` examples `accumulate` times and weighs every target token
    alike. `bf16` computes in bfloat16 autocast (by default on CUDA cards and CPUs whose hardware has it).
    `validation` is measured before the first step, every `validate_every` steps and after the last;
    `on_validation(steps_done, model)` is called after each.
    The same `seed` gives the same order and dropout; the caller's random state is left as it was.

    `checkpoint` is a file that the run's state is written to every `checkpoint_every` steps and after the last.
    Where it exists already, the run goes on from there, and ends with the weights that it would have had without
    the interruption: on a CPU, with the same number of threads, bit for bit.

    In a process group (torchrun; see `lora_lib.distributed`) each process reads its share of every batch, and
    gradients are summed by DistributedDataParallel: the run is that of one process with the same `batch_size`.

    Raises ValueError when nothing is trainable, there is no data, or `checkpoint` is that of another run (it names
    what differs); FloatingPointError when a loss is not finite: the weights are then those before that step.
    """
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not weights:
        raise ValueError("no parameter requires gradients: call model.enable_lora_training() first")
    if not train:
        raise ValueError("the training set is empty: fit needs at least one encoded example")
    device = next(iter(weights.values())).device
    bf16 = _computes_in_bf16(device) if bf16 is None else bf16
    process, processes = place()
    optimizer = _optimizer(weights, learning_rate, lr_ratio, weight_decay)
    history = History()
    if checkpoint:
        path = Path(checkpoint)
        settings = {
            "steps": steps, "batch_size": batch_size, "learning_rate": learning_rate,
            "lr_ratio": [group["ratio"] for group in optimizer.param_groups],
            "warmup": warmup, "weight_decay": weight_decay, "clip": clip, "accumulate": accumulate,
            "bf16": bf16, "seed": seed, "number of processes": processes, **_fingerprints(model, list(weights), train),
        }  # fmt: skip
        if path.exists():
            history = History(**load_checkpoint(path, weights, optimizer, settings))
    objective = averaged(Objective(model), history.count_bytes) if processes > 1 else Objective(model)

    def validate(done: int) -> None:
        if validation:
            history.validation.append((done, evaluate(model, validation, batch_size=batch_size, bf16=bf16)))
        if on_validation is not None:
            on_validation(done, model)

    was_training, done = model.training, len(history.loss)
    stream = itertools.islice(_endless(batches(train, batch_size, PAD, seed=seed)), done * accumulate, None)
    bar = tqdm(total=steps, initial=done, disable=not progress or process > 0, file=sys.stdout, ncols=90, mininterval=1)
    with torch.random.fork_rng(), bar:
        torch.manual_seed(seed)
        if not done:
            validate(0)
        for step in range(done + 1, steps + 1):
            model.train()
            start = time.perf_counter()
            torch.manual_seed(_seed_of(seed, step, process))
            group = [(ids.to(device), targets.to(device)) for ids, targets in itertools.islice(stream, accumulate)]
            loss = _accumulate(objective, group, _autocast(device, bf16))
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} at step {step}: try a smaller learning_rate than {learning_rate}"
                )
            rate = learning_rate * lr_factor(step - 1, steps, warmup)
            _update(optimizer, rate, clip)
            history.loss.append(loss)
            history.learning_rate.append(rate)
            history.tokens += sum(ids.numel() for ids, _ in group)
            history.seconds += time.perf_counter() - start
            bar.set_postfix_str(f"loss {loss:.3f}, {history.tokens_per_second:,.0f} tokens/s", refresh=False)
            bar.update()
            if step == steps or (validate_every and step % validate_every == 0):
                validate(step)
            if checkpoint and process == 0 and (step == steps or step % checkpoint_every == 0):
                save_checkpoint(path, weights, optimizer, settings, asdict(history))
    model.train(was_training)
    return history


@torch.no_grad()
def evaluate(model: nn.Module, examples: Sequence[Encoded], *, batch_size: int = 32, bf16: bool | None = None) -> float:
    """Mean loss per target token in nats, over all `examples`, in evaluation mode."""
    if not examples:
        raise ValueError("no examples to evaluate on")
    device = next(model.parameters()).device
    was_training, total, count = model.training, 0.0, 0
    model.eval()
    for ids, targets in batches(examples, batch_size, PAD, shuffle=False):
        with _autocast(device, bf16):
            total += loss_sum(model, ids.to(device), targets.to(device)).item()
        count += int((targets != IGNORE).sum())
    model.train(was_training)
    return total / count


def lr_factor(step: int, steps: int, warmup: float) -> float:
    """The learning rate at a step as a share of its peak: linear warm-up, then a cosine down to zero."""
    up = max(1, round(warmup * steps))
    if step < up:
        return (step + 1) / up
    return 0.5 * (1 + math.cos(math.pi * (step - up) / max(1, steps - up)))


def _optimizer(
    weights: dict[str, nn.Parameter],
    learning_rate: float,
    lr_ratio: Callable[[str], float] | None,
    weight_decay: float,
) -> torch.optim.AdamW:
    """AdamW, each of its groups with the `ratio` of its learning rate to the one that is asked for."""
    groups: list[dict[str, Any]] = [{"params": list(weights.values()), "ratio": 1}]
    if lr_ratio:  # a group for each, so that all stay in their order: a checkpoint knows them by it
        groups = [{"params": [p], "ratio": lr_ratio(name)} for name, p in weights.items()]
    ratios = [group["ratio"] for group in groups]
    if not all(0 <= ratio < math.inf for ratio in ratios):
        raise ValueError(f"lr_ratio must give finite numbers from 0, got {dict(zip(weights, ratios))}")
    return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay)


def _update(optimizer: torch.optim.Optimizer, rate: float, clip: float) -> None:
    """One step along the gradients, clipped to norm `clip` together, and no gradients left."""
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["ratio"]
    optimizer.step()
    optimizer.zero_grad()


def _accumulate(
    objective: Objective | DistributedDataParallel, group: list[Encoded], autocast: AbstractContextManager[Any]
) -> float:
    """Gradients of the mean loss over all target tokens of the group's batches; returns that loss."""
    count, processes = sum(int((targets != IGNORE).sum()) for _, targets in group), place().processes
    total = torch.zeros((), device=group[0][0].device)
    for i, (ids, targets) in enumerate(group):
        # Gradients are exchanged once a step, after its last batch.
        early = isinstance(objective, DistributedDataParallel) and i < len(group) - 1
        with objective.no_sync() if early else nullcontext():  # type: ignore[operator]
            with autocast:
                loss = objective(ids, targets) / count
            (processes * loss).backward()  # times processes, since DistributedDataParallel takes the mean over them
        total += loss.detach()
    if processes > 1:
        dist.all_reduce(total)
    return total.item()


def _fingerprints(model: nn.Module, learned: list[str], train: Sequence[Encoded]) -> dict[str, str]:
    """What a run is about, besides its numbers: all that is frozen in the model, its settings, and the data."""
    frozen = (p for p in model.parameters() if not p.requires_grad)
    return {"model": fingerprint(frozen, f"{model} {learned}"), "training data": fingerprint(itertools.chain(*train))}


def _seed_of(seed: int, step: int, process: int) -> int:
    """A seed for the dropout of one step: a run that goes on from a checkpoint needs no random state."""
    return random.Random(f"{seed} {step} {process}").getrandbits(32)


def _endless(loader: Iterable[Encoded]) -> Iterator[Encoded]:
    """Pass after pass over the same loader, which shuffles anew each time."""
    while True:
        yield from loader


def _autocast(device: torch.device, bf16: bool | None) -> AbstractContextManager[Any]:
    if bf16 is None:
        bf16 = _computes_in_bf16(device)
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def _computes_in_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices itself: elsewhere autocast would only cost time."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        found: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older PyTorch cannot tell
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return False

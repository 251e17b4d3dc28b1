"""Training: one function, `fit`, for LoRA and for full fine-tuning alike.

It changes the parameters that require gradients, and nothing else: after `enable_lora_training` these are A and B.
"""

from __future__ import annotations

import itertools
import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from lora_lib.data.examples import IGNORE, Encoded, batches
from lora_lib.lora_linear import LoRALinear
from lora_lib.training.checkpoints import check_writable, fingerprint, load_checkpoint, save_checkpoint
from lora_lib.training.distributed import Objective, averaged, place
from lora_lib.training.losses import loss_sum

PAD = 0  # any token will do: padding stands to the right of what is read and its targets are ignored


@dataclass
class History:
    """What happened in a training run: one entry a step in `loss` and `learning_rate`.

    Losses are mean nats per target token. `validation` holds (steps done, loss) pairs; `seconds` is the
    training time alone, validation not counted; `tokens` counts the positions read, padding included;
    `reduced_bytes` counts the bytes of gradients that this process exchanged with the others.
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

    def add_step(self, loss: float, learning_rate: float, tokens: int, seconds: float) -> None:
        """Record one step."""
        self.loss.append(loss)
        self.learning_rate.append(learning_rate)
        self.tokens += tokens
        self.seconds += seconds

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

    The optimizer is AdamW. The learning rate rises in a straight line over the first `warmup` (a share of all steps)
    and falls along a cosine to zero. `lr_ratio` maps a parameter's name to its own rate as a multiple of that: with
    `lambda name: 16 if name.endswith(".B") else 1` it is LoRA+ (arXiv 2402.12354). Gradients are scaled down to the
    norm `clip` where theirs is larger. One step reads `batch_size` examples `accumulate` times, and every target
    token has the same weight in it. `validation` is measured before the first step, every `validate_every` steps and
    after the last; `on_validation(steps_done, model)` is called after each.

    `bf16` computes in bfloat16 autocast. The default, None, does so on CUDA cards that have it and on no CPU, so that
    every CPU does the same arithmetic; `bf16=True` is faster on a CPU that multiplies bfloat16 matrices itself.
    The same `seed` gives the same order and dropout; the caller's random state is left as it was.

    `checkpoint` is a file that the run's state is written to every `checkpoint_every` steps and after the last.
    Where it exists already, the run goes on from there, and ends with the weights that it would have had without
    the interruption: on a CPU, with the same number of threads, bit for bit.

    In a process group (torchrun; see `lora_lib.training.distributed`) each process reads its share of every batch, and
    gradients are summed by DistributedDataParallel: the run is that of one process with the same `batch_size`.

    Raises ValueError, before anything is changed, for a setting that it cannot use, a model in which nothing can be
    trained, data without a target, and a `checkpoint` of another run (it names what differs); OSError where
    `checkpoint` cannot be written; FloatingPointError when a loss or a gradient is not finite: the weights are then
    those before that step.
    """
    settings = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "warmup": warmup,
                "weight_decay": weight_decay, "clip": clip, "accumulate": accumulate, "seed": seed}  # fmt: skip
    check_settings({**settings, "lr_ratio": lr_ratio, "bf16": bf16, "validate_every": validate_every,
                    "checkpoint": checkpoint, "checkpoint_every": checkpoint_every, "progress": progress})  # fmt: skip
    weights = _learned(model)
    _check_examples(train)
    device, autocast = next(iter(weights.values())).device, _autocast(model, bf16)
    optimizer = _optimizer(weights, learning_rate, lr_ratio, weight_decay)
    process, processes = place()
    history = History()
    if checkpoint:
        path = Path(checkpoint)
        settings |= _identity(model, weights, train, optimizer, autocast, processes)
        check_writable(path.parent)
        if path.exists():
            history = History(**load_checkpoint(path, weights, optimizer, settings))
    objective = averaged(Objective(model), history.count_bytes) if processes > 1 else Objective(model)

    def validate(done: int) -> None:
        if validation:
            history.validation.append((done, evaluate(model, validation, batch_size=batch_size, bf16=bf16)))
        if on_validation is not None:
            on_validation(done, model)

    done = len(history.loss)
    stream = itertools.islice(_endless(batches(train, batch_size, PAD, seed=seed)), done * accumulate, None)
    bar = tqdm(total=steps, initial=done, disable=not progress or process > 0, file=sys.stdout, ncols=76, mininterval=1)
    with _kept_modes(model), _no_gradients_left(optimizer), torch.random.fork_rng(), bar:
        torch.manual_seed(seed)
        if not done:
            validate(0)
        for step in range(done + 1, steps + 1):
            model.train()
            start, rate = time.perf_counter(), learning_rate * lr_factor(step - 1, steps, warmup)
            torch.manual_seed(_seed_of(seed, step, process))
            group = [(ids.to(device), targets.to(device)) for ids, targets in itertools.islice(stream, accumulate)]
            loss = _step(objective, optimizer, group, autocast, rate, clip, step)
            history.add_step(loss, rate, sum(ids.numel() for ids, _ in group), time.perf_counter() - start)
            bar.set_postfix_str(f"loss {loss:.3f}, {history.tokens_per_second:,.0f} tokens/s", refresh=False)
            bar.update()
            if step == steps or (validate_every and step % validate_every == 0):
                validate(step)
            if checkpoint and process == 0 and (step == steps or step % checkpoint_every == 0):
                save_checkpoint(path, weights, optimizer, settings, asdict(history))
    return history


@torch.no_grad()
def evaluate(model: nn.Module, examples: Sequence[Encoded], *, batch_size: int = 32, bf16: bool | None = None) -> float:
    """Mean loss per target token in nats, over all `examples`, in evaluation mode; `bf16` as in `fit`.

    Raises ValueError when there are no examples, or no target in them.
    """
    check_settings({"batch_size": batch_size, "bf16": bf16})
    if not examples:
        raise ValueError("no examples to evaluate on")
    device, autocast, total, count = next(model.parameters()).device, _autocast(model, bf16), 0.0, 0
    with _kept_modes(model):
        model.eval()
        for ids, targets in batches(examples, batch_size, PAD, shuffle=False):
            with autocast:
                total += loss_sum(model, ids.to(device), targets.to(device)).item()
            count += int((targets != IGNORE).sum())
    if not count:
        raise ValueError(f"there is nothing to evaluate: every target of these {len(examples)} examples is {IGNORE}")
    return total / count


def lr_factor(step: int, steps: int, warmup: float) -> float:
    """The learning rate at a step as a share of its peak: linear warm-up, then a cosine down to zero."""
    up = max(1, round(warmup * steps))
    if step < up:
        return (step + 1) / up
    return 0.5 * (1 + math.cos(math.pi * (step - up) / max(1, steps - up)))


# ---------------------------------------------------------------------------------------------------------------
# What is refused before anything is changed
# ---------------------------------------------------------------------------------------------------------------


def _is_number(value: Any, low: float = -math.inf) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value < math.inf


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


_COUNT = "a whole number from 1"
_SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "steps": (_is_count, _COUNT),
    "batch_size": (_is_count, _COUNT),
    "accumulate": (_is_count, _COUNT),
    "checkpoint": (lambda value: value is None or (isinstance(value, (str, Path)) and str(value) != ""),
                   "the path of a file, or None"),
    "checkpoint_every": (_is_count, _COUNT),
    "validate_every": (lambda value: value is None or _is_count(value), f"{_COUNT}, or None"),
    "learning_rate": (lambda value: _is_number(value) and 0 < value <= 1e30, "a number above 0, at most 1e30"),
    "lr_ratio": (lambda value: value is None or callable(value), "a function of a parameter's name, or None"),
    "warmup": (lambda value: _is_number(value, 0) and value <= 1, "a share of the steps, a number from 0 to 1"),
    "weight_decay": (lambda value: _is_number(value, 0), "a finite number from 0"),
    "clip": (lambda value: value == math.inf or (_is_number(value, 0) and value > 0),
             "a number above 0 (math.inf does not clip)"),
    "bf16": (lambda value: value is None or isinstance(value, bool), "True, False or None"),
    "seed": (lambda value: type(value) is int and 0 <= value < 2**63, "a whole number from 0, below 2**63"),
    "progress": (lambda value: isinstance(value, bool), "True or False"),
}  # fmt: skip


def check_settings(settings: Mapping[str, object]) -> None:
    """Raise ValueError for the first of these settings of `fit` that has a value it cannot have."""
    for name, value in settings.items():
        fine, expected = _SETTINGS[name]
        if not fine(value):
            raise ValueError(f"{name} = {value!r} is not a value it can have: expected {expected}")


def _check_examples(train: Sequence[Encoded]) -> None:
    if not train:
        raise ValueError("the training set is empty: fit needs at least one encoded example")
    for index, example in enumerate(train):
        pair = tuple(example) if isinstance(example, (tuple, list)) else ()
        if [getattr(part, "ndim", None) for part in pair] != [1, 1] or pair[0].shape != pair[1].shape:
            raise ValueError(
                f"training example {index} is no pair of token ids and targets, two tensors of one length: "
                "encode_examples, encode_records and pack make them"
            )
        if not (pair[1] != IGNORE).any():
            raise ValueError(
                f"training example {index} has nothing to learn: all of its targets are {IGNORE}; leave it out, "
                "or encode it so that its answer is not cut off"
            )


def _learned(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters to train, by name."""
    if any(isinstance(module, LoRALinear) and module.merged for module in model.modules()):
        raise ValueError("the adapters are merged into the weights: call model.enable_lora_training(), which unmerges")
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not weights:
        raise ValueError("no parameter requires gradients: call model.enable_lora_training() first")
    return weights


# ---------------------------------------------------------------------------------------------------------------
# One step
# ---------------------------------------------------------------------------------------------------------------


def _optimizer(
    weights: dict[str, nn.Parameter],
    learning_rate: float,
    lr_ratio: Callable[[str], float] | None,
    weight_decay: float,
) -> torch.optim.AdamW:
    """AdamW; the `ratio` of each group is its learning rate as a multiple of the one that is asked for."""
    groups: list[dict[str, Any]] = [{"params": list(weights.values()), "ratio": 1}]
    if lr_ratio:  # a group for each, so that all stay in their order: a checkpoint knows them by it
        groups = [{"params": [p], "ratio": lr_ratio(name)} for name, p in weights.items()]
    ratios = [group["ratio"] for group in groups]
    if not all(_is_number(ratio, 0) for ratio in ratios):
        raise ValueError(f"lr_ratio must give finite numbers from 0, got {dict(zip(weights, ratios))}")
    return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay)


_NOT_USED = (
    "the loss does not depend on the parameters that would be trained: call fit outside of disable_adapter and "
    "torch.no_grad, and check that the model uses them"
)


def _step(
    objective: Objective | DistributedDataParallel,
    optimizer: torch.optim.Optimizer,
    group: list[Encoded],
    autocast: AbstractContextManager[Any],
    rate: float,
    clip: float,
    step: int,
) -> float:
    """One step on these batches, the gradients clipped to norm `clip` together; returns the loss before it."""
    optimizer.zero_grad()  # a caller, or a step that failed, may have left some
    loss = _accumulate(objective, group, autocast)
    norm = nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip).item()
    for what, value in (("loss", loss), ("norm of the gradient", norm)):
        if not math.isfinite(value):
            cause = f"try a smaller learning_rate than {optimizer.defaults['lr']}"
            if step == 1:
                cause = "no weight has been changed yet, so look for NaN or huge numbers in the model's weights"
            raise FloatingPointError(f"the {what} is {value} at step {step}: {cause}")
    if step == 1 and norm == 0:
        raise ValueError(_NOT_USED)
    for parameters in optimizer.param_groups:
        parameters["lr"] = rate * parameters["ratio"]
    optimizer.step()
    return loss


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
            if not loss.requires_grad:
                raise ValueError(_NOT_USED)
            (processes * loss).backward()  # times processes, since DistributedDataParallel takes the mean over them
        total += loss.detach()
    if processes > 1:
        dist.all_reduce(total)
    return total.item()


@contextmanager
def _kept_modes(model: nn.Module) -> Iterator[None]:
    """Within this context the model may go into training or evaluation; afterwards each module is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _no_gradients_left(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    try:
        yield
    finally:
        optimizer.zero_grad()


def _autocast(model: nn.Module, bf16: bool | None) -> AbstractContextManager[Any]:
    """Autocast to bfloat16, or nothing: None takes it on CUDA cards that have it."""
    first, double = next(model.parameters()), any(p.dtype == torch.float64 for p in model.parameters())
    if bf16 and double:  # autocast would leave float64 as it is, and the two would meet in attention
        raise ValueError("bf16=True does not work on float64 weights: pass bf16=False, or call model.float() first")
    if bf16 is None:
        bf16 = first.is_cuda and not double and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(first.device.type, torch.bfloat16) if bf16 else nullcontext()


# ---------------------------------------------------------------------------------------------------------------
# The same run again
# ---------------------------------------------------------------------------------------------------------------


def _identity(
    model: nn.Module,
    weights: dict[str, nn.Parameter],
    train: Sequence[Encoded],
    optimizer: torch.optim.Optimizer,
    autocast: AbstractContextManager[Any],
    processes: int,
) -> dict[str, Any]:
    """What a run is, besides its numbers: all that is frozen in the model, the model's own settings, and the data."""
    frozen = (p for p in model.parameters() if not p.requires_grad)
    return {
        "lr_ratio": [group["ratio"] for group in optimizer.param_groups],
        "bf16": isinstance(autocast, torch.autocast),
        "number of processes": processes,
        "model": fingerprint(frozen, f"{model} {list(weights)}"),
        "training data": fingerprint(itertools.chain(*train)),
    }


def _seed_of(seed: int, step: int, process: int) -> int:
    """A seed for the dropout of one step: a run that goes on from a checkpoint needs no random state."""
    return random.Random(f"{seed} {step} {process}").getrandbits(32)


def _endless(loader: Iterable[Encoded]) -> Iterator[Encoded]:
    """Pass after pass over the same loader, which shuffles anew each time."""
    while True:
        yield from loader

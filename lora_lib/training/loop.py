"""Training: one function, `fit`, for LoRA and for full fine-tuning.

It changes only the parameters that require gradients. After `enable_lora_training` these are A and B.
"""

from __future__ import annotations

import itertools
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from lora_lib.data.examples import Encoded, batches
from lora_lib.gpt2.loss import IGNORE
from lora_lib.gpt2.model import expect_model, kept_modes
from lora_lib.layers.adapted import adapted_layers
from lora_lib.settings import is_number
from lora_lib.training.checkpoints import check_checkpoint_path, fingerprint, load_checkpoint, save_checkpoint
from lora_lib.training.config import FitConfig, fit_config
from lora_lib.training.distributed import Objective, averaged, place
from lora_lib.training.losses import check_padding, loss_sum

PAD = 0  # any id works: padding comes after the tokens that are read, and its targets are ignored


@dataclass
class History:
    """What happened in a training run: one entry for each step in `loss` and `learning_rate`.

    Losses are mean nats per target token. `validation` holds (steps done, loss) pairs, `scores` (steps done, score)
    pairs. `seconds` is the training time without validation. `tokens` counts the positions read, with padding;
    `reduced_bytes` counts the bytes of gradients that this process exchanged with the others.
    """

    loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    scores: list[tuple[int, float]] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    reduced_bytes: int = 0

    def __post_init__(self) -> None:
        self.validation = [(step, loss) for step, loss in self.validation]  # JSON has turned the pairs into lists
        self.scores = [(step, score) for step, score in self.scores]

    @property
    def tokens_per_second(self) -> float:
        """Positions read per second of training."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def best(self) -> tuple[int, float] | None:
        """The steps done and the value at the best validation: the highest score, or without scores the lowest loss."""
        if self.scores:
            return max(self.scores, key=lambda point: point[1])
        return min(self.validation, key=lambda point: point[1]) if self.validation else None

    def validations_since_best(self) -> int:
        """The number of validations since the best one."""
        done = [step for step, _ in self.scores or self.validation]
        return len(done) - 1 - done.index(self.best[0]) if self.best else 0

    def count_bytes(self, count: int) -> None:
        """Add to `reduced_bytes`."""
        self.reduced_bytes += count

    def __repr__(self) -> str:
        last = f", loss {self.loss[0]:.2f} → {sum(self.loss[-10:]) / len(self.loss[-10:]):.2f}" if self.loss else ""
        val = f", validation {self.validation[0][1]:.2f} → {self.validation[-1][1]:.2f}" if self.validation else ""
        best = f", best score {self.best[1]:.2f} after {self.best[0]} steps" if self.scores and self.best else ""
        return (
            f"History({len(self.loss)} steps{last}{val}{best}, {self.seconds:.0f} s, "
            f"{self.tokens_per_second:,.0f} tokens/s)"
        )


def fit(
    model: nn.Module,
    train: Sequence[Encoded],
    config: FitConfig | None = None,
    *,
    validation: Sequence[Encoded] | None = None,
    on_validation: Callable[[int, nn.Module], None] | None = None,
    score: Callable[[nn.Module], float] | None = None,
    **settings: Any,
) -> History:
    """Train the parameters of `model` that require gradients; returns the run's `History`.

    `config` says how; its fields may also come as keywords: `fit(model, train, steps=100)`. The optimizer is AdamW.
    `lr_ratio=lambda name: 16 if name.endswith(".B") else 1` makes it LoRA+ (arXiv 2402.12354).

    A validation comes before the first step, every `validate_every` steps and after the last. It measures the loss on
    `validation`, calls `score(model)`, a number that is better when it is higher, and then
    `on_validation(steps_done, model)`. With `patience` the run stops early; with `keep_best` it ends with the weights
    of the best validation. The best is the highest score, or without `score` the lowest loss.

    The same `seed` gives the same order and dropout; the caller's random state is restored. A run that resumes from a
    `checkpoint` ends with the weights that it would have had without the interruption: on a CPU, with the same number
    of threads, bit for bit.

    In a process group (torchrun; see `lora_lib.training.distributed`) each process reads its share of every batch, and
    DistributedDataParallel sums the gradients: the result is that of one process with the same `batch_size`.

    Raises ValueError, before anything is changed, for a setting, a model or data that it cannot use, and OSError if
    `checkpoint` cannot be written. Raises FloatingPointError if the run diverges, that is, if a loss or a gradient is
    not finite. The weights are then those before that step.
    """
    run = _Run(expect_model(model), train, fit_config(config, settings), validation, on_validation, score)
    config, history, hidden = run.config, run.history, run.rank > 0 or not run.config.progress
    bar = tqdm(total=run.steps, initial=run.done, disable=hidden, file=sys.stdout, ncols=76, mininterval=1)
    try:
        with kept_modes(model), torch.random.fork_rng(), bar:
            torch.manual_seed(config.seed)
            if not run.done:
                run.validate()
            while not run.over:
                run.step()
                bar.set_postfix_str(f"loss {history.loss[-1]:.3f}, {history.tokens_per_second:,.0f} tokens/s", False)
                bar.update()
                if run.done == run.steps or run.done % (config.validate_every or run.steps) == 0:
                    run.validate()
                if run.over or run.done % config.checkpoint_every == 0:
                    run.save()
    finally:
        run.optimizer.zero_grad()  # no gradient is left, even after an error
    for name, weight in run.best.items():
        run.weights[name].data.copy_(weight)
    return history


class _Run:
    """One run of `fit`: what it was given, and how far it has got.

    The constructor checks everything before it changes anything; then it loads the checkpoint, if there is one.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Sequence[Encoded],
        config: FitConfig,
        validation: Sequence[Encoded] | None,
        on_validation: Callable[[int, nn.Module], None] | None,
        score: Callable[[nn.Module], float] | None,
    ) -> None:
        self.model, self.config, self.validation = model, config, validation or ()
        self.on_validation, self.score = on_validation, score
        self.weights = _trained(model)
        vocabulary = _vocabulary_size(model)
        _check_examples(train, "training", vocabulary)
        if validation is not None:
            _check_examples(validation, "validation", vocabulary, whole=False)
        for examples in (train, self.validation):
            check_padding(model, examples, config.batch_size)
        if (config.patience or config.keep_best) and not (validation or score):
            raise ValueError("patience and keep_best need a validation: pass validation=examples or score=function")
        self.steps, self.autocast = config.count_steps(len(train)), _autocast(model, config.bf16)
        self.optimizer = _optimizer(self.weights, config)
        self.rank, self.world_size = place()
        self.history, self.best = History(), dict[str, Tensor]()
        self.path = Path(config.checkpoint) if config.checkpoint else None
        if self.path:
            check_checkpoint_path(self.path)
            self.identity = self._identity(train)
            if self.path.exists():
                history, self.best = load_checkpoint(self.path, self.weights, self.optimizer, self.identity)
                self.history = History(**history)
        objective = Objective(model)
        self.objective = averaged(objective, self.history.count_bytes) if self.world_size > 1 else objective
        passes = itertools.repeat(batches(train, config.batch_size, PAD, seed=config.seed))  # each shuffles again
        self.stream = itertools.islice(itertools.chain.from_iterable(passes), self.done * config.accumulate, None)
        self.device = next(iter(self.weights.values())).device

    @property
    def done(self) -> int:
        """The number of steps done."""
        return len(self.history.loss)

    @property
    def over(self) -> bool:
        """Whether all steps are done, or `patience` validations in a row brought no better one."""
        patience = self.config.patience
        stale = patience is not None and self.history.validations_since_best() >= patience
        return self.done >= self.steps or stale

    def step(self) -> None:
        """Do one step of the optimizer, with the norm of the gradient clipped, and record the loss before it."""
        start, config, history, step = time.perf_counter(), self.config, self.history, self.done + 1
        self.model.train()
        # A seed for the dropout of each step, so that a run can resume without a saved random state.
        torch.manual_seed(random.Random(f"{config.seed} {step} {self.rank}").getrandbits(32))
        group = [(ids.to(self.device), targets.to(self.device))
                 for ids, targets in itertools.islice(self.stream, config.accumulate)]  # fmt: skip
        self.optimizer.zero_grad()  # the caller or a failed step may have left some
        loss = _accumulate(self.objective, group, self.autocast)
        norm = nn.utils.clip_grad_norm_(list(self.weights.values()), config.clip).item()
        for what, value in (("loss", loss), ("norm of the gradient", norm)):
            if not math.isfinite(value):
                cause = f"the run diverged; try a smaller learning_rate than {config.learning_rate}"
                if step == 1:
                    cause = "no weight has been changed yet, so look for NaN or huge numbers in the model's weights"
                raise FloatingPointError(f"the {what} is {value} at step {step}: {cause}")
        if step == 1 and norm == 0:
            raise ValueError(_NOT_USED)
        rate = config.learning_rate * lr_factor(step - 1, self.steps, config.warmup)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate * parameters["ratio"]
        self.optimizer.step()
        history.loss.append(loss)
        history.learning_rate.append(rate)
        history.tokens += sum(ids.numel() for ids, _ in group)
        history.seconds += time.perf_counter() - start

    def validate(self) -> None:
        """Measure the loss and the score, keep the weights if they are the best so far, and call `on_validation`."""
        config, done = self.config, self.done
        if self.validation:
            loss = evaluate(self.model, self.validation, batch_size=config.batch_size, bf16=config.bf16)
            if math.isnan(loss):
                raise FloatingPointError(f"the validation loss is nan after {done} steps")
            self.history.validation.append((done, loss))
        if self.score is not None:
            value = self.score(self.model)
            if not is_number(value) or not math.isfinite(value):
                raise ValueError(f"score must return a finite number, got {value!r} after {done} steps")
            self.history.scores.append((done, float(value)))
        if config.keep_best and self.history.best and self.history.best[0] == done:
            self.best = {name: weight.detach().clone() for name, weight in self.weights.items()}
        if self.on_validation is not None:
            self.on_validation(done, self.model)

    def save(self) -> None:
        """Write the checkpoint, if one was asked for; only rank 0 does."""
        if self.path and self.rank == 0:
            save_checkpoint(self.path, self.weights, self.optimizer, self.identity, asdict(self.history), self.best)

    def _identity(self, train: Sequence[Encoded]) -> dict[str, Any]:
        """What two runs must have in common to be the same run: settings, frozen weights, model structure and data."""
        frozen = (p for p in self.model.parameters() if not p.requires_grad)
        return {
            **self.config.identity(),
            "steps": self.steps,
            "lr_ratio": [group["ratio"] for group in self.optimizer.param_groups],
            "bf16": isinstance(self.autocast, torch.autocast),
            "world size": self.world_size,
            "model": fingerprint(frozen, f"{self.model} {list(self.weights)}"),
            "training data": fingerprint(itertools.chain(*train)),
            "validation data": fingerprint(itertools.chain(*self.validation)),
        }


@torch.no_grad()
def evaluate(model: nn.Module, examples: Sequence[Encoded], *, batch_size: int = 32, bf16: bool | None = None) -> float:
    """Mean loss per target token in nats, over all `examples`, in evaluation mode; `bf16` as in `FitConfig`."""
    FitConfig(steps=1, batch_size=batch_size, bf16=bf16)  # checks both
    if not examples:
        raise ValueError("no examples to evaluate on")
    _check_examples(examples, "validation", _vocabulary_size(expect_model(model)), whole=False)
    check_padding(model, examples, batch_size)
    device, autocast, total, count = next(model.parameters()).device, _autocast(model, bf16), 0.0, 0
    with kept_modes(model):
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


# --- checks before anything is changed ------------------------------------------------------------


def _check_examples(examples: Sequence[Encoded], what: str, vocabulary: int | None, whole: bool = True) -> None:
    """Raise ValueError for an example that is not a pair of tensors, has unknown ids or (with `whole`) no target."""
    if not hasattr(examples, "__len__"):
        kind = type(examples).__name__
        raise TypeError(f"expected a list of encoded examples as the {what} set, got a {kind}: list(…) makes one")
    if not examples:
        raise ValueError(f"the {what} set is empty: fit needs at least one encoded example")
    for index, example in enumerate(examples):
        pair = tuple(example) if isinstance(example, (tuple, list)) else ()
        if [getattr(part, "ndim", None) for part in pair] != [1, 1] or pair[0].shape != pair[1].shape:
            raise ValueError(
                f"{what} example {index} is not a pair of token ids and targets, two tensors of one length: "
                "encode_examples, encode_records and pack make them"
            )
        targets = pair[1][pair[1] != IGNORE]
        if whole and not len(targets):
            raise ValueError(
                f"{what} example {index} has nothing to learn: all of its targets are {IGNORE}; leave it out, "
                "or encode it so that its answer is not cut off"
            )
        found = torch.cat([pair[0], targets])
        if vocabulary is not None and len(found) and not 0 <= int(found.min()) <= int(found.max()) < vocabulary:
            raise ValueError(
                f"{what} example {index} has token ids from {int(found.min())} to {int(found.max())}, and this model "
                f"has those from 0 to {vocabulary - 1}: encode it with the model's own tokenizer"
            )


def _vocabulary_size(model: nn.Module) -> int | None:
    """The number of token ids of a model, from its embedding or else its config; None if neither says."""
    get: Any = getattr(model, "get_input_embeddings", None)
    try:
        return int(get().weight.shape[0])
    except (TypeError, AttributeError, NotImplementedError):  # no such method, or no embedding
        size = getattr(getattr(model, "config", None), "vocab_size", None)
        return size if isinstance(size, int) else None


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters to train, by name."""
    if any(layer.merged for layer in adapted_layers(model).values()):
        raise ValueError("the adapters are merged into the weights: call model.enable_lora_training(), which unmerges")
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not weights:
        raise ValueError("no parameter requires gradients: call model.enable_lora_training() first")
    return weights


def _optimizer(weights: dict[str, nn.Parameter], config: FitConfig) -> torch.optim.AdamW:
    """AdamW, with groups whose `ratio` is their learning rate as a multiple of the run's."""
    groups: list[dict[str, Any]] = [{"params": list(weights.values()), "ratio": 1}]
    if config.lr_ratio:  # one group for each parameter, because checkpoints rely on the order of the parameters
        groups = [{"params": [p], "ratio": config.lr_ratio(name)} for name, p in weights.items()]
    ratios = [group["ratio"] for group in groups]
    if not all(is_number(ratio) and 0 <= ratio < math.inf for ratio in ratios):
        raise ValueError(f"lr_ratio must give finite numbers from 0, got {dict(zip(weights, ratios))}")
    return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)


_NOT_USED = (
    "the loss does not depend on the parameters that would be trained: call fit outside of disable_adapter and "
    "torch.no_grad, and check that the model uses them (a LoRA layer with alpha = 0 does not)"
)


def _accumulate(
    objective: Objective | DistributedDataParallel, group: list[Encoded], autocast: AbstractContextManager[Any]
) -> float:
    """Compute gradients of the mean loss over all target tokens of these batches; returns that loss."""
    count, (_, world_size) = sum(int((targets != IGNORE).sum()) for _, targets in group), place()
    total = torch.zeros((), device=group[0][0].device)
    for i, (ids, targets) in enumerate(group):
        # Processes exchange gradients once per step, with the last batch.
        early = isinstance(objective, DistributedDataParallel) and i < len(group) - 1
        with objective.no_sync() if early else nullcontext():  # type: ignore[operator]
            with autocast:
                loss = objective(ids, targets) / count
            if not loss.requires_grad:
                raise ValueError(_NOT_USED)
            (world_size * loss).backward()  # DistributedDataParallel takes the mean over the processes
        total += loss.detach()
    if world_size > 1:
        dist.all_reduce(total)
    return total.item()


def _autocast(model: nn.Module, bf16: bool | None) -> AbstractContextManager[Any]:
    """Autocast to bfloat16, or a context that does nothing. None means bfloat16 on CUDA GPUs that support it."""
    first, double = next(model.parameters()), any(p.dtype == torch.float64 for p in model.parameters())
    if bf16 and double:  # autocast leaves float64 alone, and attention would get both types
        raise ValueError("bf16=True does not work on float64 weights: pass bf16=False, or call model.float() first")
    if bf16 is None:
        bf16 = first.is_cuda and not double and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(first.device.type, torch.bfloat16) if bf16 else nullcontext()

"""Training: one function, `fit`, for LoRA and for full fine-tuning alike.

It moves whatever parameters ask for gradients, and nothing else: `enable_lora_training` leaves only A
and B asking.
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from tqdm import tqdm

from lora_lib.data import IGNORE, Encoded, batches
from lora_lib.gpt2 import GPT2Model
from lora_lib.peft_wrapper import PeftModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAD = 0  # any token will do: padding stands to the right of what is read and its targets are ignored
LOGITS = 2**23  # that `chunked_cross_entropy` holds at once: 32 MiB in float32


@dataclass
class History:
    """What happened in a training run: one entry a step in `loss` and `learning_rate`.

    Losses are mean nats per target token. `validation` holds (steps done, loss) pairs; `seconds` is the
    training time alone, validation not counted; `tokens` counts the positions read, padding included.
    """

    loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Positions read per second of training."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def plot(self) -> Figure:
        """Draw the training loss, step by step and smoothed, and the validation losses."""
        from lora_lib.figures import draw_history  # here, so that training needs no matplotlib

        return draw_history(self)

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
    warmup: float = 0.1,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    accumulate: int = 1,
    validation: Sequence[Encoded] = (),
    validate_every: int | None = None,
    on_validation: Callable[[int, nn.Module], None] | None = None,
    bf16: bool | None = None,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Train the parameters of `model` that require gradients; returns the run's `History`.

    AdamW; the learning rate climbs over the first `warmup` (a share of all steps) and falls along a
    cosine to zero. Gradients are clipped to norm `clip`. One step reads `batch_size` examples
    `accumulate` times and weighs every target token alike. `bf16` computes in bfloat16 autocast (by
    default on CUDA cards and CPUs whose hardware has it). `validation` is measured before the first step, every
    `validate_every` steps and after the last; `on_validation(steps_done, model)` is called after each.
    The same `seed` gives the same order and dropout; the caller's random state is left as it was.

    Raises ValueError when nothing is trainable or there is no data, FloatingPointError when a loss is
    not finite: the weights are then those before that step.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("no parameter requires gradients: call model.enable_lora_training() first")
    if not train:
        raise ValueError("the training set is empty: fit needs at least one encoded example")
    device = trainable[0].device
    optimizer = torch.optim.AdamW(trainable, lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, steps, warmup))
    history = History()

    def validate(done: int) -> None:
        if validation:
            history.validation.append((done, evaluate(model, validation, batch_size=batch_size, bf16=bf16)))
        if on_validation is not None:
            on_validation(done, model)

    was_training = model.training
    with (
        torch.random.fork_rng(),
        tqdm(total=steps, disable=not progress, file=sys.stdout, ncols=90, mininterval=1) as bar,
    ):
        torch.manual_seed(seed)
        validate(0)
        stream = _endless(batches(train, batch_size, PAD, seed=seed))
        model.train()
        for step in range(1, steps + 1):
            start = time.perf_counter()
            group = [(ids.to(device), targets.to(device)) for ids, targets in itertools.islice(stream, accumulate)]
            loss = _accumulate(model, group, _autocast(device, bf16))
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} at step {step}: try a smaller learning_rate than {learning_rate}"
                )
            nn.utils.clip_grad_norm_(trainable, clip)
            history.learning_rate.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            history.loss.append(loss)
            history.tokens += sum(ids.numel() for ids, _ in group)
            history.seconds += time.perf_counter() - start
            bar.set_postfix_str(f"loss {loss:.3f}, {history.tokens_per_second:,.0f} tokens/s", refresh=False)
            bar.update()
            if step == steps or (validate_every and step % validate_every == 0):
                validate(step)
                model.train()
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


def loss_sum(model: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy summed over the wanted targets: ids and targets (B, T), targets -100 where not wanted.

    For our GPT-2, adapted or not, the logits are never held all at once: see `chunked_cross_entropy`. Any other
    `model` gives logits (B, T, V), or an output with `.logits` as Hugging Face's models do.
    """
    inner = model.base_model if isinstance(model, PeftModel) else model
    if isinstance(inner, GPT2Model) and type(inner).forward is GPT2Model.forward:  # a reader's own may do more
        return chunked_cross_entropy(inner.out_head, inner.features(ids), targets)
    output: Any = model(ids)
    logits = output if isinstance(output, Tensor) else output.logits
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE, reduction="sum")


def chunked_cross_entropy(head: nn.Linear, features: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of `head(features)`, summed over the wanted targets, without ever holding all the logits.

    features (B, T, C), targets (B, T) with -100 where not wanted. With a vocabulary of 50,257 the logits are the
    largest tensor of a training step, and two more of their size are needed for its gradient. Here the head reads
    a few tokens at a time, about `LOGITS` logits together, and skips those whose target is not wanted.
    """
    wanted = targets != IGNORE
    features, targets = features[wanted], targets[wanted]  # (N, C), (N,)
    learned = [p for p in head.parameters() if p.requires_grad]
    # Where the head itself is trained, its gradient is that large anyway, and adding up few is faster than many.
    rows = max(1, max(LOGITS, sum(p.numel() for p in learned)) // head.out_features)
    if torch.is_grad_enabled():
        loss: Tensor = _ChunkedCrossEntropy.apply(head, rows, features, targets, *learned)  # type: ignore[no-untyped-call]
        return loss
    return torch.stack([_cross_entropy(head, h, t) for h, t in zip(features.split(rows), targets.split(rows))]).sum()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradients are computed on the way forward, while a chunk's logits are at hand.

    A loss is one number: all that is left to do on the way back is to multiply them by its gradient. Nothing is
    computed twice, where checkpointing the head would compute the logits again.
    """

    @staticmethod
    def forward(ctx: Any, head: nn.Linear, rows: int, features: Tensor, targets: Tensor, *learned: Tensor) -> Tensor:
        total = torch.zeros((), device=features.device)
        grads = [torch.zeros_like(t) for t in (features, *learned)]
        for h, t, dh in zip(features.split(rows), targets.split(rows), grads[0].split(rows)):
            with torch.enable_grad():
                h = h.detach().requires_grad_()
                loss = _cross_entropy(head, h, t)
            found = torch.autograd.grad(loss, (h, *learned), materialize_grads=True)
            for grad, part in zip((dh, *grads[1:]), found):
                grad += part
            total += loss.detach()
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        of_features, *of_learned = (g * grad for grad in ctx.saved_tensors)
        return None, None, of_features, None, *of_learned


def _cross_entropy(head: nn.Module, features: Tensor, targets: Tensor) -> Tensor:
    """The sum over all tokens: features (N, C), targets (N,)."""
    return F.cross_entropy(head(features).float(), targets, reduction="sum")


def lr_factor(step: int, steps: int, warmup: float) -> float:
    """The learning rate at a step as a share of its peak: linear warm-up, then a cosine down to zero."""
    up = max(1, round(warmup * steps))
    if step < up:
        return (step + 1) / up
    return 0.5 * (1 + math.cos(math.pi * (step - up) / max(1, steps - up)))


def _accumulate(model: nn.Module, group: list[Encoded], autocast: AbstractContextManager[Any]) -> float:
    """Gradients of the mean loss over all target tokens of the group's batches; returns that loss."""
    count, total = sum(int((targets != IGNORE).sum()) for _, targets in group), 0.0
    for ids, targets in group:
        with autocast:
            loss = loss_sum(model, ids, targets) / count
        loss.backward()
        total += loss.item()
    return total


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

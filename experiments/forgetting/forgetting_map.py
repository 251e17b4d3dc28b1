"""What predicts forgetting: the method, the loss on the task, KL on the task, or the size of the change?

    LORA_DATA_DIR=... python experiments/forgetting/forgetting_map.py --prose FILE --plays FILE [--stages linear ...]

LoRA and full fine-tuning of exactly the same weights on E2E, at learning rates a factor of 1.8 apart. A run is measured
on test data: its loss and its KL from the base on the task, its loss on four other kinds of text, and the size, the
path and the spectrum of its change ΔW. Then ΔW is scaled by λ = 0.85, and loss and KL are measured again.

Several processes can share the work: start the command once for each. A process takes the next run that is neither
kept nor being done (`--claims` is the folder where they say what they do), until none is left. Rows:
lora_book/findings/results/map.csv, one for each λ of a run. The design, and what was predicted before the first
row, are in experiments/README.md.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

sys.path.append(str(Path(__file__).parents[1]))  # common
sys.path.append(str(Path(__file__).parents[1] / "gap"))

import common
import torch
from common import RESULTS, Row, Rows, context, curve, device, embedding, fit, load_base, logits_of
from torch import Tensor, nn
from which_parts import Parts
from which_parts import arguments as parts_arguments

from lora_book.findings.runs import RSLORA, MapRun
from lora_book.measure import text_windows, weight_changes
from lora_book.tasks import Restaurant, load_sms_spam, restaurant_data, to_examples
from lora_lib.data import IGNORE, Encoded, batches, encode_examples
from lora_lib.training import History
from lora_lib.training.loop import PAD

WTE_RATE = 0.0032  # of the embedding, where it is trained; near the best of parts.csv for LoRA and for full fine-tuning
TUNING_SEED, FIRST_REPORTED = 0, 100  # seeds from 200 are for how_many_seeds.py
SNAPSHOT = 6  # steps between two points of the path
SETTINGS = MapRun.columns()
MEASURES = (
    "loss", "kl", "kl_reverse", "prose_loss", "prose_kl", "plays_loss", "messages_loss", "restaurants_loss",
    "delta_norm", "path", "spectral_norm", "stable_rank", "wte_norm", "trainable", "train_cpu_seconds", "curve",
)  # fmt: skip


class Arm(NamedTuple):
    """A method, and the step of the grid of rates where tuning begins."""

    method: str
    rank: int
    alpha: float
    use_rslora: bool
    start: int


ARMS = {
    "full": Arm("full", 0, 32, False, 0),
    "r = 64, α/√r": Arm("lora", 64, RSLORA, True, 2),
    "r = 8": Arm("lora", 8, 32, False, 3),
    "r = 64": Arm("lora", 64, 32, False, 3),
    "r = 64, s = 4": Arm("lora", 64, 256, False, 1),
    "r = 1": Arm("lora", 1, 32, False, 2),
    "r = 8, s = 1.41": Arm("lora", 8, RSLORA, False, 4),
}
MAIN = tuple(ARMS)[:4]


class Stage(NamedTuple):
    """A part of the map: what is trained, how long, by which arms, on how many seeds.

    `beside` says which rates are reported beside an arm's best one: so many steps of the grid from it. `starts` is
    where tuning begins, for arms whose `Arm.start` is far from it. With `tune_first` nothing is reported of an arm
    before its best rate is known.
    """

    parts: str
    steps: int
    arms: tuple[str, ...]
    seeds: int
    beside: dict[str, tuple[int, ...]]
    starts: dict[str, int] = {}
    tune_first: bool = False


STAGES = {
    "linear": Stage("linear", 120, ("full", "r = 64, α/√r", "r = 64"), 5, {"full": (-1,)}),
    "lower": Stage("linear", 120, ("r = 8", "full"), 5, {"full": (-1, -2)}),
    "below": Stage("linear", 120, MAIN, 5, {**dict.fromkeys(MAIN, (-1,)), "full": (-1, -2, -3)}),
    "others": Stage("linear", 120, tuple(ARMS)[4:6], 5, {}),
    "beside": Stage("linear", 120, tuple(ARMS)[:6], 5, {**dict.fromkeys(ARMS, (-1, 1)), "full": (-2, -1, 1)}),
    "gentle": Stage(
        "linear",
        120,
        ("full", "r = 64, α/√r", "r = 8"),
        5,
        {"full": (-4,), "r = 64, α/√r": (-2, -3), "r = 8": (-2,)},
    ),
    "gentle scale": Stage(
        "linear",
        120,
        ("r = 64, s = 4", "r = 8, s = 1.41"),
        5,
        {"r = 64, s = 4": (-1,), "r = 8, s = 1.41": (-1,)},
        {"r = 64, s = 4": 0},
    ),
    "gentle 64": Stage("linear", 120, ("r = 64",), 5, {"r = 64": (-2, -3)}),
    "gentle 1": Stage("linear", 120, ("r = 1",), 5, {"r = 1": (1, -1)}),
    "wte": Stage(
        "linear + wte",
        120,
        ("full", "r = 8", "r = 64"),
        5,
        {"full": (-1,)},
        {"full": -1, "r = 8": 2, "r = 64": 2},
        True,
    ),
    "long": Stage("linear", 480, MAIN, 3, {"full": (-1, -2, -3), "r = 64, α/√r": (-1, -2)}),
    "smollm2": Stage("linear", 60, MAIN[:3], 5, {}, {"full": -4, "r = 64, α/√r": 0, "r = 8": 0}, True),
    "smollm2 lower": Stage(
        "linear", 60, ("full", "r = 8"), 5, {"full": (-1,), "r = 8": (-1,)}, {"full": -4, "r = 8": 0}, True
    ),
    "smollm2 hard": Stage(
        "linear",
        240,
        MAIN[:3],
        5,
        {**dict.fromkeys(MAIN[:3], (-1, -2)), "full": (-3, -2, -1)},
        {"full": -2, "r = 64, α/√r": 1, "r = 8": 2},
        True,
    ),
    "smollm2 64": Stage("linear", 60, MAIN[3:], 5, {}, {"r = 64": 1}, True),
}


def grid(step: int) -> float:
    """Learning rates a factor of 1.8 apart, two digits: grid(0) = 0.001, grid(1) = 0.0018, grid(-1) = 0.00056."""
    return float(f"{0.001 * 1.8**step:.1e}")


# --- which runs, and in which order ---------------------------------------------------------------


def settings_of(
    stage: Stage, name: str, step: int, seed: int, args: argparse.Namespace, wte_rate: float = WTE_RATE
) -> Row:
    """A run's settings, the first columns of its rows."""
    arm, rate = ARMS[name], grid(step)
    return MapRun(
        args.model, name, arm.method, stage.parts, arm.rank, arm.alpha, arm.use_rslora, rate,
        rate if stage.parts == "linear" else wte_rate, stage.steps, args.batch_size, args.max_length, seed,
        "validation" if seed < FIRST_REPORTED or seed >= 2 * FIRST_REPORTED else "test",
    ).row()  # fmt: skip


def base_settings(args: argparse.Namespace) -> Row:
    """The base's, which is every run at λ = 0."""
    nothing = {"arm": "base", "method": "base", "parts": "none", "learning_rate": 0.0, "rest_rate": 0.0, "steps": 0}
    return settings_of(STAGES["linear"], "full", 0, FIRST_REPORTED, args) | nothing


def tuned(start: int, loss: Callable[[int], float | None]) -> tuple[int | None, list[int]]:
    """The step of the best rate, from `start` on downhill until both neighbours are worse, and the steps to run first.

    `loss` gives a step's loss on the tuning seed, None where it is missing. There is no best while steps are left.
    """
    best = start
    while True:
        losses = {step: loss(step) for step in (best, best - 1, best + 1)}
        missing = [step for step, found in losses.items() if found is None]
        if missing:
            return None, missing
        lowest = min(losses, key=lambda step: losses[step] or math.inf)
        if lowest == best:
            return best, []
        best = lowest


def plan(stages: Sequence[Stage], losses: dict[tuple[str, ...], float], args: argparse.Namespace) -> Iterator[Row]:
    """Every run that is known to be needed, kept or not, in the order in which they are to be made.

    Seed by seed, all arms run at their best rate and beside it, so that whatever is done when the time is up treats
    them equally. Before tuning an arm's best rate is the pilot's, `Arm.start`. Tuning comes after these runs; where it
    finds another rate, that one is run as well. A stage with `tune_first` is tuned before it is reported, and last its
    embedding's rate is tried a step lower and higher, on the tuning seed. `losses` are those of the kept runs, by
    `key`. The base comes first.
    """
    yield base_settings(args)
    tuning = list[Row]()
    for stage in stages:
        best: dict[str, int] = {}
        missing_here = list[Row]()
        for name in stage.arms:

            def loss(step: int, name: str = name) -> float | None:
                return losses.get(key(settings_of(stage, name, step, TUNING_SEED, args)))  # noqa: B023

            start = stage.starts.get(name, ARMS[name].start)
            found, missing = tuned(start, loss)
            if found is not None or not stage.tune_first:
                best[name] = start if found is None else found
            missing_here += [settings_of(stage, name, step, TUNING_SEED, args) for step in missing]
        if stage.tune_first:
            yield from missing_here
        else:
            tuning += missing_here
        for seed in range(FIRST_REPORTED, FIRST_REPORTED + stage.seeds):
            for name, step in best.items():
                for near in (0, *stage.beside.get(name, ())):
                    yield settings_of(stage, name, step + near, seed, args)
        if stage.parts != "linear":
            for name, step in best.items():
                tuning += [settings_of(stage, name, step, TUNING_SEED, args, grid(near)) for near in (1, 3)]
    yield from tuning


def key(settings: Row, names: Sequence[str] = SETTINGS) -> tuple[str, ...]:
    """What tells a run from others: its settings as they stand in a file of rows."""
    return tuple(str(settings[name]) for name in names)


class Claims:
    """Which runs are being made, so that several processes can share the work: a file for each, with its process."""

    def __init__(self, folder: Path, names: Sequence[str] = SETTINGS) -> None:
        self.folder, self.names = folder, names
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, settings: Row) -> Path | None:
        """The file that says that this process makes the run; None when another one does."""
        path = self.folder / hashlib.sha256(repr(key(settings, self.names)).encode()).hexdigest()[:16]
        try:
            with path.open("x", encoding="utf8") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            if self._held(path):
                return None
            path.unlink(missing_ok=True)  # of a process that was killed
            return self.take(settings)
        return path

    @staticmethod
    def _held(path: Path) -> bool:
        try:
            os.kill(int(path.read_text(encoding="utf8") or os.getpid()), 0)
        except (ProcessLookupError, FileNotFoundError):
            return False
        return True


# --- one run --------------------------------------------------------------------------------------


class Map(Parts):
    """Runs on E2E that are measured on the task's test data and on other kinds of text."""

    test: list[Encoded]
    others: dict[str, list[Encoded]]
    known: dict[str, list[Tensor]]
    base: nn.Module
    measures: tuple[str, ...] = MEASURES

    @classmethod
    def load(cls, args: argparse.Namespace) -> Map:
        """The data, and what the base says about the task and about prose."""
        task = super().load(args)
        task.base, task.tokenizer = load_base(args.model)
        task.base.to(device()).requires_grad_(False)
        length = min(256, context(task.base))
        ham = "\n".join(message.text for message in load_sms_spam() if message.label == "ham")
        plays = args.plays.read_text(encoding="utf8")
        task.test = task.encoded(common.load_e2e().test, args.max_length)
        task.others = {
            "plays": text_windows(plays, task.tokenizer, length, args.windows),
            "messages": text_windows(ham, task.tokenizer, length, args.windows),
            "restaurants": task.encoded(restaurant_data(1, train=0, validation=0, test=40).test, length)[:20],
        }  # fmt: skip
        known = {"task": task.test, "prose": task.prose}
        task.known = {name: log_probabilities(task.base, examples) for name, examples in known.items()}
        return task

    def encoded(self, restaurants: Sequence[Restaurant], longest: int) -> list[Encoded]:
        """So many of their references as are tested, drawn at random from those that are not too long."""
        found = encode_examples(to_examples(restaurants), self.tokenizer, context(self.base))
        found = [example for example in found if len(example[0]) <= longest]
        return random.Random(1).sample(found, min(self.args.tested, len(found)))

    def make(self, settings: Row) -> None:
        """Train, measure, and write the run's rows down, one for each λ; the base has one, at λ = 0."""
        if settings["method"] == "base":
            quality = {**dict.fromkeys(self.measures, ""), **self.quality_of(self.base, True)}
            self.rows.add([{**settings, "scale": 0.0, **quality}])
            return
        model: Any = copy.deepcopy(self.base)
        torch.manual_seed(settings["seed"])
        trained = self.prepare(model, settings)
        wte = "wte" in settings["parts"]
        path = Travelled(lambda model: changes_of(self.base, model))
        start = time.process_time()
        history = self.train_watched(trained, settings, path)
        found = {
            **dict.fromkeys(self.measures, ""), **shape(changes_of(self.base, trained)), "path": round(path.length, 3),
            "wte_norm": round(norm([self.of_embedding(model)]), 3) if wte else 0.0,
            "trainable": sum(p.numel() for p in trained.parameters() if p.requires_grad),
            "train_cpu_seconds": round(time.process_time() - start, 1), "curve": curve(history.loss, every=10),
        }  # fmt: skip
        if settings["split"] == "validation":
            quality = {"loss": self.loss_on(trained, self.validation), "prose_loss": self.loss_on(trained, self.prose)}
            self.rows.add([{**settings, "scale": 1.0, **found, **quality}])
            return
        self.rows.add(
            [
                {**settings, "scale": scale, **found, **self.quality_of(self.scaled(trained, model, scale), scale == 1)}
                for scale in self.args.scales
            ]
        )

    def train_watched(self, model: nn.Module, settings: Row, watch: Callable[[int, nn.Module], None]) -> History:
        """As `train_model`, and `watch` sees the weights every few steps."""
        try:
            return fit(
                model, self.train, steps=settings["steps"], batch_size=settings["batch_size"],
                learning_rate=settings["learning_rate"], lr_ratio=self.lr_ratio(settings), seed=settings["seed"],
                validate_every=SNAPSHOT, on_validation=watch, progress=False,
            )  # fmt: skip
        except FloatingPointError:  # it diverged: a result, too
            return History(loss=[math.inf])

    def scaled(self, trained: nn.Module, model: nn.Module, scale: float) -> nn.Module:
        """The base, changed by `scale` times what training changed."""
        result = copy.deepcopy(self.base)
        with torch.no_grad():
            for name, change in changes_of(self.base, trained).items():
                cast(nn.Linear, result.get_submodule(name)).weight += scale * change.T
            embedding(result).weight += scale * self.of_embedding(model)
        return result

    def of_embedding(self, model: nn.Module) -> Tensor:
        """The change of the token embedding, (V, d)."""
        return (embedding(model).weight - embedding(self.base).weight).detach()

    def quality_of(self, model: nn.Module, others: bool) -> Row:
        """Loss and KL on the task's test data and on prose, and the loss on `others`, if these are asked for."""
        loss, kl, reverse = against(model, self.test, self.known["task"])
        prose_loss, prose_kl, _ = against(model, self.prose, self.known["prose"])
        known = {"loss": loss, "kl": kl, "kl_reverse": reverse, "prose_loss": prose_loss, "prose_kl": prose_kl}
        texts = self.others if others else {}
        return known | {f"{name}_loss": self.loss_on(model, examples) for name, examples in texts.items()}


class Travelled:
    """How far the weights have gone, added up along the way, as `fit` reports it."""

    def __init__(self, changes: Callable[[nn.Module], dict[str, Tensor]]) -> None:
        self.changes, self.last, self.length = changes, dict[str, Tensor](), 0.0

    def __call__(self, done: int, model: nn.Module) -> None:
        now = {name: change.clone() for name, change in self.changes(model).items()}
        if self.last:
            self.length += norm([now[name] - self.last[name] for name in now])
        self.last = now


def changes_of(base: nn.Module, trained: nn.Module) -> dict[str, Tensor]:
    """The change (d, k) of each linear layer's weight."""
    return {name: change.detach() for name, (_, change) in weight_changes(base, trained).items()}


def norm(tensors: Sequence[Tensor]) -> float:
    """The Frobenius norm of all of them together."""
    return math.sqrt(sum(float(t.square().sum()) for t in tensors))


def shape(changes: dict[str, Tensor]) -> Row:
    """The norm of all changes together, that of their largest singular values, and their mean stable rank."""
    largest = {name: largest_singular_value(change) for name, change in changes.items()}
    ranks = [float(change.square().sum()) / largest[name] ** 2 for name, change in changes.items()]
    return {
        "delta_norm": round(norm(list(changes.values())), 3),
        "spectral_norm": round(math.sqrt(sum(s**2 for s in largest.values())), 3),
        "stable_rank": round(sum(ranks) / len(ranks), 3),
    }


def largest_singular_value(M: Tensor) -> float:
    """From the eigenvalues of M·Mᵀ or Mᵀ·M, the smaller one of them: much faster than all singular values."""
    small = M if len(M) <= M.shape[1] else M.T
    return math.sqrt(float(torch.linalg.eigvalsh(small @ small.T)[-1]))


@torch.no_grad()
def log_probabilities(model: nn.Module, examples: Sequence[Encoded]) -> list[Tensor]:
    """log p of every token, (N, V) for each batch, where a target is wanted."""
    model.eval()
    found = []
    for ids, targets in batches(examples, 8, PAD, shuffle=False):
        with torch.autocast(device(), torch.bfloat16):
            logits = logits_of(model, ids.to(device()))
        found.append(logits[targets.to(device()) != IGNORE].float().log_softmax(-1))
    return found


def against(model: nn.Module, examples: Sequence[Encoded], base: Sequence[Tensor]) -> tuple[float, float, float]:
    """The loss of `model`, KL(model ‖ base) and KL(base ‖ model), in nats a token, at the texts' own tokens."""
    loss = forward = reverse = count = 0.0
    wanted = [targets[targets != IGNORE] for _, targets in batches(examples, 8, PAD, shuffle=False)]
    for log_p, log_q, targets in zip(log_probabilities(model, examples), base, wanted):
        loss -= float(log_p.gather(1, targets.to(log_p.device)[:, None]).sum())
        forward += float((log_p.exp() * (log_p - log_q)).sum())
        reverse += float((log_q.exp() * (log_q - log_p)).sum())
        count += len(targets)
    return round(loss / count, 4), round(forward / count, 4), round(reverse / count, 4)


# --- all runs -------------------------------------------------------------------------------------


class Task(Protocol):
    """What `work` makes the runs of."""

    rows: Rows

    def make(self, settings: Row) -> None: ...


def losses_of(rows: Sequence[Row], names: Sequence[str] = SETTINGS) -> dict[tuple[str, ...], float]:
    """The loss of each kept run, unscaled, by `key`; infinite where it is not a number."""
    found = {}
    for row in rows:
        if float(row.get("scale", 1)) in (0.0, 1.0):
            loss = float(row["loss"])
            found[key(row, names)] = loss if math.isfinite(loss) else math.inf
    return found


def work(task: Task, todo: Callable[[dict[tuple[str, ...], float]], Iterator[Row]], claims: Claims) -> None:
    """Make all runs of `todo`, which tells from the losses so far what is needed; other processes may make some."""
    while True:
        task.rows.read()
        kept = losses_of(task.rows.rows, claims.names)
        left = [settings for settings in todo(kept) if key(settings, claims.names) not in kept]
        if not left:
            return
        for settings in left:
            if claim := claims.take(settings):
                try:
                    task.rows.read()
                    if key(settings, claims.names) not in losses_of(task.rows.rows, claims.names):
                        task.make(settings)
                finally:
                    claim.unlink()
                break
        else:
            time.sleep(2)  # all that can be made is being made


def arguments(doc: str | None, out: str) -> argparse.ArgumentParser:
    """`which_parts.py`'s, and what is measured besides."""
    parser = parts_arguments(doc)
    parser.add_argument("--plays", type=Path, required=True, help="a text file of plays")
    parser.add_argument("--tested", type=int, default=150, help="so many test references")
    parser.add_argument("--windows", type=int, default=4, help="so many windows of plays and of messages")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 0.85], help="what ΔW is multiplied by")
    parser.add_argument("--claims", type=Path, default=Path("runs/map"), help="where processes say what they do")
    parser.set_defaults(out=RESULTS / out, meanings=1)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "map.csv")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    args = parser.parse_args(argv)
    task = Map.load(args)
    stages = [STAGES[name] for name in args.stages]
    work(task, lambda losses: plan(stages, losses, args), Claims(args.claims))


if __name__ == "__main__":
    main()

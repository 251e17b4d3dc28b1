"""What the kept rows say to the questions of the findings page, by the one rule of `lora_book.findings`.

A `Comparison` names two settings and what is measured; `COMPARISONS` holds those that the book speaks of, and `family`
adds every other difference on the page, for the correction in `survivors`. Each side is taken at its best learning
rate, of those that all its seeds have, unless its settings name one.

Two settings are level when they differ by no more than 2 % of the loss or of BLEU; for shares of right answers and for
intruders `MARGIN` says how far they may differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lora_book.findings.forgetting import BEST, SEEDS, SMOLLM2, Compared, at_equal, compared, load_map, tuned_rates
from lora_book.findings.new_words import family as new_words_family
from lora_book.findings.runs import RSLORA, E2ERun, PartsRun
from lora_book.findings.stats import (
    FEWEST,
    Difference,
    Row,
    at_best_rate,
    by_seed,
    load_results,
    mean,
    means,
    paired,
    select,
)

RELATIVE = 0.02  # of what the other side has
MARGIN = {
    "values_told": 0.02, "test_accuracy": 0.01, "exact": 0.02, "fields": 0.02, "missed": 0.02, "greedy_missed": 0.02,
    "intruders": 0.5, "intruders_equal_size": 0.5,
}  # fmt: skip


class Comparison(NamedTuple):
    """Two settings of one file's rows, and the `measure` that is compared: ours less theirs."""

    file: str
    ours: dict[str, Any]
    theirs: dict[str, Any]
    measure: str = "validation_loss"
    tuned_by: str = "validation_loss"

    def sides(self) -> tuple[list[Row], list[Row]]:
        """The runs of both, at the best learning rate of each."""
        rows = [row for row in load_results(self.file) if row["seed"] < 100]  # spam's rates have a seed of their own
        rates = [name for name in ("learning_rate", "rest_rate") if name in rows[0]]
        ours, theirs = (best_runs(select(rows, **side), self.tuned_by, rates) for side in (self.ours, self.theirs))
        return ours, theirs

    def difference(self) -> Difference:
        """Ours less theirs, paired over the seeds."""
        return paired(*self.sides(), self.measure)

    def margin(self) -> float:
        """What the two may differ by and still be level."""
        return MARGIN.get(self.measure) or RELATIVE * mean(self.sides()[1], self.measure).mean

    def verdict(self) -> str:
        """As `Difference.verdict`, with the measure's margin."""
        return self.difference().verdict(self.margin())


def best_runs(
    rows: Iterable[Row], tuned_by: str = "validation_loss", rates: Sequence[str] = ("learning_rate",)
) -> list[Row]:
    """`at_best_rate` among the rates run on three seeds (fewer if none has three).

    Raises ValueError when there are no rows.
    """
    rows = list(rows)
    most = max((found.runs for found in means(rows, tuple(rates), tuned_by).values()), default=0)
    return at_best_rate(rows, tuned_by, max(1, min(FEWEST, most)), rates)


def _lora(**settings: Any) -> dict[str, Any]:
    """LoRA of all linear layers on short references, with α = 32, for 120 steps; `settings` change that."""
    return E2ERun(**settings).where()


def _parts(**settings: Any) -> dict[str, Any]:
    """The same on all references, with the parts of the model that are trained."""
    return PartsRun(**settings).where()


_RESTAURANTS: dict[str, Any] = {"method": "lora", "base": "float32", "rank": 8, "alpha": 32, "lr_ratio": 1}
_64_LINEAR, _64_WTE = _parts(rank=64), _parts(rank=64, parts="linear + wte")
_8_LINEAR, _8_WTE = _parts(rank=8), _parts(rank=8, parts="linear + wte")
_64_ROOT = _parts(rank=64, alpha=RSLORA, use_rslora=True)
_FULL, _FULL_LINEAR = _parts(method="full", rank=0, parts="all"), _parts(method="full", rank=0)
_64_GENTLE: dict[str, Any] = {"method": "lora", "rank": 64, "alpha": 32, "learning_rate": 0.003}
_8_GENTLE = {**_64_GENTLE, "rank": 8}
_FULL_GENTLE: dict[str, Any] = {"method": "full", "learning_rate": 0.0003}
_RELATIVES: dict[str, dict[str, Any]] = {
    "LoRA+ 16": {"lr_ratio": 16}, "PiSSA": {"method": "pissa", "alpha": 8}, "DoRA": {"method": "dora"},
    "α = 512": {"alpha": 512}, "int8": {"base": "int8"}, "NF4": {"base": "nf4"},
}  # fmt: skip
_ON_E2E: dict[str, dict[str, Any]] = {
    "LoRA+ 4": {"lora_plus": 4}, "LoRA+ 16": {"lora_plus": 16}, "PiSSA": {"init": "pissa", "alpha": 8},
}  # fmt: skip
_PLAYS: dict[str, Any] = {"steps": 120, "targets": "all"}
_SPAM: dict[str, Any] = {"max_length": 160}
_ON_SMOLLM2: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rank 1 against 8": ({"method": "lora", "rank": 1}, {"method": "lora", "rank": 8}),
    "rank 64 against 8": ({"method": "lora", "rank": 64}, {"method": "lora", "rank": 8}),
    "rank 8 against full": ({"method": "lora", "rank": 8}, {"method": "full"}),
    "rank 64 against full": ({"method": "lora", "rank": 64}, {"method": "full"}),
    "same layers, rank 8": ({"method": "lora", "rank": 8}, {"method": "full, linear"}),
    "same layers, rank 64": ({"method": "lora", "rank": 64}, {"method": "full, linear"}),
    "same layers, α/√r": ({"method": "rslora", "rank": 64}, {"method": "full, linear"}),
    "α/√r against α/r": ({"method": "rslora", "rank": 64}, {"method": "lora", "rank": 64}),
    "everything against these layers": ({"method": "full"}, {"method": "full, linear"}),
}
_REWARDED: dict[str, dict[str, Any]] = {
    "rank 1": {"method": "lora", "rank": 1}, "rank 8": {"method": "lora", "rank": 8}, "full": {"method": "full"}
}  # fmt: skip
AMOUNTS = (50, 200, 1000, 4000)  # examples
# The arms of the map that the pages speak of, at their best rates; and the lower rates that they were run at.
MAP_RATES = {arm: BEST[arm] for arm in ("full", "r = 64, α/√r", "r = 64", "r = 8")}
LOWER_RATES = {
    "full": (0.00056, 0.00031, 0.00017), "r = 64, α/√r": (0.0018,), "r = 64": (0.0032,), "r = 8": (0.0032,)
}  # fmt: skip
# The same where the embedding is trained as well, at a rate of 0.0032: tuned on seed 0 and validation data.
EMBEDDING_RATES = {"full": 0.00056, "r = 64": 0.0032, "r = 8": 0.0032}

COMPARISONS = {
    # LoRA of r = 64 and full fine-tuning, on unequal and on equal parts
    **{
        name + of: Comparison("parts", ours, theirs, measure)
        for name, (ours, theirs) in {
            "as usual": (_64_LINEAR, _FULL), "same layers": (_64_LINEAR, _FULL_LINEAR),
            "same layers, α/√r": (_64_ROOT, _FULL_LINEAR), "same layers, rank 8": (_8_LINEAR, _FULL_LINEAR),
            "with the embedding": (_64_WTE, _FULL),
            "with the embedding, rank 8": (_8_WTE, _FULL), "rank 64 against 8, with the embedding": (_64_WTE, _8_WTE),
            "α/√r against α/r": (_64_ROOT, _64_LINEAR),
            "α/√r against α/r, one rate": (_64_ROOT, {**_64_GENTLE, **_64_LINEAR}),
            "rank 64 against 8, linear": (_64_LINEAR, _8_LINEAR), "rank 64 with α/√r against 8": (_64_ROOT, _8_LINEAR),
            "as usual, rank 8": (_8_LINEAR, _FULL), "everything against these layers": (_FULL, _FULL_LINEAR),
        }.items()
        for of, measure in {
            "": "validation_loss", ", BLEU": "bleu", ", values": "values_told", ", forgetting": "prose_loss"
        }.items()
    },
    # new directions among W's strongest, at about the same loss
    **{
        f"{name}, rank {ours['rank']}": Comparison("directions", ours, _FULL_GENTLE, measure)
        for ours in (_8_GENTLE, _64_GENTLE)
        for name, measure in {
            "intruders, same loss": "intruders", "intruders, same loss and size": "intruders_equal_size"
        }.items()
    },
    # rank
    "rank 8 against 1": Comparison("e2e", _lora(rank=8), _lora(rank=1)),
    "rank 16 against 8": Comparison("e2e", _lora(rank=16), _lora(rank=8)),
    "rank 64 against 8": Comparison("e2e", _lora(rank=64), _lora(rank=8)),
    "rank 64 against 8, longer": Comparison(
        "e2e", _lora(rank=64, steps=480), _lora(rank=8, steps=480)
    ),
    "rank 64 against 8, plays": Comparison("style", {**_PLAYS, "rank": 64}, {**_PLAYS, "rank": 8}),
    "rank 64 against full, plays": Comparison(
        "style", {**_PLAYS, "rank": 64}, {**_PLAYS, "method": "full"}
    ),
    # scale
    "α/√r against α/r, rank 256": Comparison(
        "e2e", _lora(rank=256, alpha=RSLORA, use_rslora=True), _lora(rank=256)
    ),
    "α/√r against α/r, rank 256, forgetting": Comparison(
        "e2e", _lora(rank=256, alpha=RSLORA, use_rslora=True), _lora(rank=256), "prose_loss"
    ),
    "α/√r against α/r, rank 64": Comparison(
        "e2e", _lora(rank=64, alpha=RSLORA, use_rslora=True), _lora(rank=64)
    ),
    # which layers, at equal size
    "MLP against all": Comparison("e2e", _lora(targets="mlp", rank=5), _lora(rank=3)),
    "attention against all": Comparison("e2e", _lora(targets="attention", rank=8), _lora(rank=3)),
    "head against all": Comparison("e2e", _lora(targets="head", rank=21), _lora(rank=3)),
    # few examples and many
    **{
        f"rank 8 against full, {examples} examples": Comparison(
            "amounts", {"rank": 8, "examples": examples}, {"rank": 0, "examples": examples}
        )
        for examples in AMOUNTS
    },
    # a policy gradient
    **{
        f"rank {rank} against full, reward": Comparison(
            "reinforce", {"rank": rank}, {"method": "full"}, "missed", "missed"
        )
        for rank in (1, 8)
    },
    **{
        f"{name} against the start, {how}": Comparison("reinforce", ours, {"method": "start"}, measure, "missed")
        for name, ours in _REWARDED.items()
        for how, measure in {"reward": "missed", "reward, greedy": "greedy_missed"}.items()
    },
    # a real model
    **{
        f"{name}, SmolLM2{of}": Comparison("smollm2", ours, theirs, measure)
        for name, (ours, theirs) in _ON_SMOLLM2.items()
        for of, measure in {
            "": "validation_loss", ", right answers": "exact", ", forgetting": "prose_loss"
        }.items()
    },
    # LoRA's relatives
    **{
        f"{name}, restaurants": Comparison("beyond_lora", {**_RESTAURANTS, **how}, _RESTAURANTS, "test_loss")
        for name, how in _RELATIVES.items()
    },
    "LoRA+ 16 against α = 512, restaurants": Comparison(
        "beyond_lora", {**_RESTAURANTS, **_RELATIVES["LoRA+ 16"]}, {**_RESTAURANTS, **_RELATIVES["α = 512"]},
        "test_loss",
    ),
    **{
        f"{name}, E2E{of}": Comparison("e2e", _lora(rank=8, **how), _lora(rank=8), measure)
        for name, how in _ON_E2E.items()
        for of, measure in {"": "validation_loss", ", forgetting": "prose_loss"}.items()
    },
    # spam, ten seeds
    "LoRA against word counts": Comparison(
        "sms", {**_SPAM, "method": "lora", "rank": 16}, {**_SPAM, "method": "tf-idf, cut"}, "test_accuracy",
        "test_accuracy",
    ),
    "full against word counts": Comparison(
        "sms", {**_SPAM, "method": "full"}, {**_SPAM, "method": "tf-idf, cut"}, "test_accuracy", "test_accuracy"
    ),
    "LoRA against full, spam": Comparison(
        "sms", {**_SPAM, "method": "lora", "rank": 16}, {**_SPAM, "method": "full"}, "test_accuracy", "test_accuracy"
    ),
}  # fmt: skip


def growth(of: str, few: str, many: str) -> Difference:
    """By how much more one side is behind in the comparison `of.format(many)` than in `of.format(few)`, seed by seed.

    With more data, say: `growth("rank 8 against full, {} examples", "1000", "4000")`.
    """
    gaps = []
    for name in (few, many):
        comparison = COMPARISONS[of.format(name)]
        ours, theirs = (by_seed(side, comparison.measure) for side in comparison.sides())
        gaps.append({seed: ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()})
    return Difference.of([gaps[1][seed] - gaps[0][seed] for seed in sorted(gaps[0].keys() & gaps[1].keys())])


def above_chance(rows: Iterable[Row], measure: str = "intruders") -> Difference:
    """How many more intruders each run has than the same change in random directions."""
    return Difference.of([row[measure] - row[f"random_{measure}"] for row in rows])


def equal_losses() -> dict[str, Difference]:
    """What LoRA of r = 64 forgets more than full fine-tuning of the same layers at the same loss on E2E."""
    e2e, parts = load_results("e2e"), load_results("parts")
    short = select(e2e, steps=120, method="lora", targets="all", rank=64, learning_rate=0.003)
    matrices = select(e2e, steps=120, targets="matrices")
    linear = select(parts, method="lora", rank=64, parts="linear", steps=120)
    full = select(parts, method="full", parts="linear", steps=120)
    ours = {
        "short references, α/√r": (select(short, use_rslora=True), matrices),
        "short references, s = 4": (select(short, alpha=256), matrices),
        "all references, α/√r": (select(linear, use_rslora=True, learning_rate=0.003), full),
        "all references, α/r at 0.003": (select(linear, alpha=32, learning_rate=0.003), full),
        "all references, α/r at 0.01": (select(linear, alpha=32, learning_rate=0.01), full),
    }
    return {name: forgetting_at_equal_loss(*sides) for name, sides in ours.items()}


def intruders_above_chance() -> dict[str, Difference]:
    """`above_chance` of LoRA at about the loss of full fine-tuning, as it is and at one size, and of a high rate."""
    rows = load_results("directions")
    lora = {f"r = {gentle['rank']}": select(rows, **gentle) for gentle in (_8_GENTLE, _64_GENTLE)}
    found = {name: above_chance(runs) for name, runs in lora.items()}
    found |= {f"{name}, one size": above_chance(runs, "intruders_equal_size") for name, runs in lora.items()}
    return found | {"full at 0.003": above_chance(select(rows, method="full", learning_rate=0.003))}


def map_runs() -> list[Row]:
    """The runs of the map that the pages speak of: each arm at its best rate and at lower ones."""
    rates = {arm: (rate, *LOWER_RATES[arm]) for arm, rate in MAP_RATES.items()}
    return [row for row in load_map() if row["learning_rate"] in rates.get(row["arm"], ())]


def on_the_map() -> dict[str, Compared]:
    """LoRA less full fine-tuning of exactly the same weights, at the rates of `MAP_RATES` and `EMBEDDING_RATES`.

    The loss on the task and on prose; the loss on prose where full fine-tuning, between two of its rates, has LoRA's
    loss or KL on the task, if it reaches that on five seeds, and the same for LoRA at its lower rates; α/√r less α/r
    and rank 64 less 8; and each arm with its change scaled by 0.85 after training, less the same runs. The names of
    the runs that train the embedding as well begin with "embedding, ".
    """
    alone, both = map_runs(), load_map("linear + wte")
    linear, with_it = _at_rates(alone, MAP_RATES), _at_rates(both, EMBEDDING_RATES)
    full = select(alone, arm="full", scale=1.0)
    found = _less_full(linear, full)
    for arm, rates in LOWER_RATES.items():
        for rate in rates if arm != "full" else ():
            gentle = select(alone, arm=arm, learning_rate=rate, scale=1.0)
            found |= _at_equal(f"{arm} at {rate:g}", gentle, full)
    for x in ("loss", "prose_loss"):
        found[f"α/√r against α/r, {x}"] = compared(linear["r = 64, α/√r"], linear["r = 64"], x)
        found[f"rank 64 against 8, {x}"] = compared(linear["r = 64"], linear["r = 8"], x)
        for arm, runs in _at_rates(alone, MAP_RATES, 0.85).items():
            found[f"{arm} × 0.85, {x}"] = compared(runs, linear[arm], x)
    embedding = _less_full(with_it, select(both, arm="full", scale=1.0))
    for x in ("loss", "prose_loss"):
        embedding[f"rank 64 against 8, {x}"] = compared(with_it["r = 64"], with_it["r = 8"], x)
    return found | {f"embedding, {name}": both for name, both in embedding.items()}


def _at_rates(rows: Iterable[Row], rates: Mapping[str, float], scale: float = 1.0) -> dict[str, list[Row]]:
    """The runs of each arm at one rate."""
    rows = list(rows)
    return {arm: select(rows, arm=arm, learning_rate=rate, scale=scale) for arm, rate in rates.items()}


def _less_full(arms: Mapping[str, list[Row]], full: Iterable[Row]) -> dict[str, Compared]:
    """Each arm less `arms["full"]`, and at equal loss and KL less `full`, which are runs at several rates."""
    ours, full = [arm for arm in arms if arm != "full"], list(full)
    found = {f"{arm}, {x}": compared(arms[arm], arms["full"], x) for arm in ours for x in ("loss", "prose_loss")}
    for arm in ours:
        found |= _at_equal(arm, arms[arm], full)
    return found


def _at_equal(name: str, rows: Sequence[Row], full: Sequence[Row]) -> dict[str, Compared]:
    """What `rows` have forgotten more than `full` at equal loss and at equal KL, where five seeds reach that."""
    return {
        f"{name}, prose_loss at equal {by}": at_equal(rows, full, by)
        for by in ("loss", "kl")
        if sum(_reaches(full, row, by) for row in rows) >= SEEDS
    }


def on_smollm2() -> dict[str, Compared]:
    """LoRA less full fine-tuning of SmolLM2's linear layers, on the map's task, each at the rate that tuning chose.

    The loss on the task and on prose, KL from the base, and what is forgotten of prose; the same for r = 8 at its lower
    rate, less full fine-tuning at its best and at its lower rate; and both arms' lower rate less their best one.
    """
    rows, rates = select(load_map(**SMOLLM2), scale=1.0), tuned_rates(**SMOLLM2)
    arms = _at_rates(rows, rates)
    lower = {
        arm: [row for row in select(rows, arm=arm) if row["learning_rate"] < rates[arm]] for arm in ("r = 8", "full")
    }
    sides = {arm: (runs, arms["full"]) for arm, runs in arms.items() if arm != "full"}
    sides["r = 8, lower rate"] = lower["r = 8"], arms["full"]
    sides["r = 8, lower rate against full's"] = lower["r = 8"], lower["full"]
    for arm, runs in lower.items():
        sides[f"{arm}, lower rate against best"] = runs, arms[arm]
    measures = ("loss", "prose_loss", "kl", "prose_forgotten")
    return {f"{name}, {x}": compared(*pair, x) for name, pair in sides.items() for x in measures}


def given_back(arm: str, scale: float = 0.85) -> Difference:
    """The share of the prose forgotten by an arm that comes back when its change is scaled after training."""
    rows = select(map_runs(), arm=arm, learning_rate=MAP_RATES[arm])
    before, after = (by_seed(select(rows, scale=s), "prose_forgotten") for s in (1.0, scale))
    return Difference.of([1 - after[seed] / before[seed] for seed in sorted(before.keys() & after.keys())])


def closed_by_embedding(arm: str) -> Compared:
    """How much smaller an arm's gap to full fine-tuning is with the embedding on both sides than without, in nats.

    Taken seed by seed, beside the mean gap on the linear layers alone.
    """
    gaps = []
    for rows, rates in ((map_runs(), MAP_RATES), (load_map("linear + wte"), EMBEDDING_RATES)):
        runs = _at_rates(rows, rates)
        ours, full = (by_seed(runs[name], "loss") for name in (arm, "full"))
        gaps.append({seed: ours[seed] - full[seed] for seed in ours.keys() & full.keys()})
    seeds = sorted(gaps[0].keys() & gaps[1].keys())
    closed = Difference.of([gaps[0][seed] - gaps[1][seed] for seed in seeds])
    return Compared(closed, math.fsum(gaps[0][seed] for seed in seeds) / len(seeds))


def _reaches(full: Iterable[Row], row: Row, by: str) -> bool:
    """Whether full fine-tuning of the row's seed has as much `by` between two of its rates."""
    values = [run[by] for run in select(full, seed=row["seed"])]
    return bool(values) and min(values) <= row[by] <= max(values)


def family() -> dict[str, Difference]:
    """Every difference that the page of findings may call one, by a name."""
    found = {name: comparison.difference() for name, comparison in COMPARISONS.items()}
    found |= {f"map, {name}": both.difference for name, both in on_the_map().items()}
    found |= {f"SmolLM2 on E2E, {name}": both.difference for name, both in on_smollm2().items()}
    found["4,000 examples against 1,000"] = growth("rank 8 against full, {} examples", "1000", "4000")
    found |= {f"forgetting at equal loss, {name}": difference for name, difference in equal_losses().items()}
    found |= new_words_family()
    found |= {f"closed by the embedding, {arm}": closed_by_embedding(arm).difference for arm in ("r = 8", "r = 64")}
    return found | {f"intruders above chance, {name}": x for name, x in intruders_above_chance().items()}


def forgetting_at_equal_loss(rows: Iterable[Row], full: Iterable[Row]) -> Difference:
    """How much higher the loss on prose of `rows` is than that of `full` at the same loss on the task, over the seeds.

    `full` are runs at several learning rates, one above the best among them. The loss on the task is taken between two
    rates from the parabola through these and the next, over the rate's logarithm, and the loss on prose from a straight
    line. A seed whose loss lies outside of what `full` reaches is left out. Raises ValueError when all are.
    """
    full, found = list(full), []
    for row in rows:
        runs = sorted(select(full, seed=row["seed"]), key=lambda run: run["learning_rate"])
        x = [math.log(run["learning_rate"]) for run in runs]
        for i in range(len(runs) - 2):
            at = _crossing(x[i : i + 3], [run["validation_loss"] for run in runs[i : i + 3]], row["validation_loss"])
            if at is not None:
                share, (low, high) = (at - x[i]) / (x[i + 1] - x[i]), (run["prose_loss"] for run in runs[i : i + 2])
                found.append(row["prose_loss"] - (low + share * (high - low)))
                break
    return Difference.of(found)


def _crossing(x: Sequence[float], y: Sequence[float], height: float) -> float | None:
    """Where the parabola through three points comes down to `height` between the first two; None where it does not."""
    if not y[0] >= height >= y[1]:
        return None
    slope = (y[1] - y[0]) / (x[1] - x[0])
    bend = ((y[2] - y[1]) / (x[2] - x[1]) - slope) / (x[2] - x[0])
    low, high = x[0], x[1]
    for _ in range(60):  # halved until nothing is left
        middle = (low + high) / 2
        above = y[0] + slope * (middle - x[0]) + bend * (middle - x[0]) * (middle - x[1]) > height
        low, high = (middle, high) if above else (low, middle)
    return low


def best_rates(rows: Iterable[Row], measure: str = "validation_loss") -> dict[int, float]:
    """Each seed's best learning rate: the lowest point of the parabola through its losses, over the rate's logarithm.

    The parabola goes through the rate with the least mean loss and its two neighbours, of the rates that three seeds
    have. Raises ValueError when the best of them lies at the edge.
    """
    rows = list(rows)
    losses = {rate: found.mean for rate, found in means(rows, "learning_rate", measure).items() if found.runs >= FEWEST}
    rates = list(losses)
    at = rates.index(min(rates, key=lambda rate: losses[rate]))
    if not 0 < at < len(rates) - 1:
        raise ValueError(f"the best of the rates {rates} lies at their edge: more are needed there")
    near = rates[at - 1 : at + 2]
    heights = [by_seed(select(rows, learning_rate=rate), measure) for rate in near]
    x = [math.log(rate) for rate in near]
    return {
        seed: math.exp(_lowest(x, [h[seed] for h in heights])) for seed in heights[1] if all(seed in h for h in heights)
    }


def _lowest(x: Sequence[float], y: Sequence[float]) -> float:
    """Where the parabola through three points, the middle one the lowest, has its lowest point."""
    left, right = (y[0] - y[1]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    return x[1] + (left * (x[2] - x[1]) - right * (x[1] - x[0])) / (2 * (left + right))


def rate_ratio(rows: Iterable[Row], others: Iterable[Row]) -> Difference:
    """How many times as large the best learning rate of `rows` is as that of `others`: a mean and its interval.

    It is `Difference.of` the logarithms, raised again, so "no difference" is a ratio of 1.
    """
    ours, theirs = best_rates(rows), best_rates(others)
    found = Difference.of([math.log(ours[seed] / theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())])
    return Difference(math.exp(found.mean), math.exp(found.low), math.exp(found.high), found.runs)

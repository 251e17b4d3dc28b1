"""Pictures of kept trainings that a reader turns: the rate, the number of examples, the method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from lora_book.findings.stats import Difference, Row, at_best_rate, load_results, mean, means, select
from lora_book.findings.verdicts import MAP_RATES, map_runs
from lora_book.show.figures import ACCENT, BASE, FAINT, FULL, INK, LORA
from lora_book.show.knobs import Knob, knob
from lora_book.show.live import Live, Run, Scale, tradeoff

PLAIN, ZERO = "y = x·W + s·x·A·B,  s = α/", "A random, B = 0"
METHODS = {  # what is trained, the forward pass, the start
    "LoRA": ("A and B", PLAIN + "r", ZERO),
    "rsLoRA": ("A and B", PLAIN + "√r", ZERO),
    "LoRA+": ("A and B, B at 16 × A's rate", PLAIN + "r", ZERO),
    "PiSSA": ("A and B", "y = x·(W − s·A₀·B₀) + s·x·A·B", "A₀·B₀, the strongest part of W"),
    "DoRA": ("A, B and m", "y = x·(m · V/‖V‖),  V = W + s·A·B", ZERO + ", m = ‖W‖"),
}
BOXES = {  # x, y, width, height, colour
    "W": (0.3, 0.3, 2.4, 1.8, BASE),
    "A": (4.0, 0.3, 0.5, 1.8, LORA),
    "B": (4.8, 1.6, 2.4, 0.5, LORA),
    "m": (7.5, 1.6, 2.2, 0.5, ACCENT),
}


def rates_knob(ways: Mapping[str, Sequence[Row]], known: float) -> Knob:
    """Learning against forgetting on E2E: the rate is turned, and each way of training goes along its line.

    `known` is the base's loss on prose. Names that begin with "full" have full fine-tuning's colour.
    """
    marks = dict(zip(ways, "oD<s>*"))
    rates = sorted({row["learning_rate"] for rows in ways.values() for row in rows})
    at = {name: _learned_and_forgotten(rows) for name, rows in ways.items()}
    told = (next(iter(ways)), list(ways)[-2])

    def say(rate: float) -> str:
        found = {name: at[name].get(rate) for name in told}
        return "; ".join(
            f"{name}: " + (f"{xy[0]:.2f} on the task, {xy[1]:.2f} on prose" if xy else "not run")
            for name, xy in found.items()
        )

    def draw(rate: float) -> tuple[Figure, str]:
        said = say(rates[rates.index(rate)])  # no other rate was run
        fig, ax = plt.subplots(figsize=(7, 4.4))
        for name, rows in ways.items():
            color = FULL if name.startswith("full") else LORA
            path = [xy for r, xy in at[name].items() if r <= rate]
            ax.plot([x for x, _ in path], [y for _, y in path], color=color, lw=1.5, alpha=0.5)
            for row in rows:
                now = row["learning_rate"] == rate
                look = {"color": color if now else FAINT, "ms": 7 if now else 4, "zorder": 2 + now}
                ax.plot(row["validation_loss"], row["prose_loss"], marks[name], **look)
            ax.plot([], [], marks[name], color=color, ms=7, label=name)
        ax.axhline(known, color=BASE, ls="--")
        ax.text(6.4, known, "the base", ha="right", va="bottom", color=BASE)
        ax.set(xscale="log", xlim=(1.65, 6.5), ylim=(2.8, 8.7), xlabel="held-out loss on E2E", ylabel="loss on prose")
        ax.set_xticks([2, 3, 4, 5, 6], ["2", "3", "4", "5", "6"])
        ax.minorticks_off()
        fig.legend(ncols=2, loc="outside lower center", columnspacing=8, labelspacing=1)  # on a phone letters grow
        return fig, said

    return knob(
        draw,
        rate=rates,
        start={"rate": 0.001},
        caption="Learning and forgetting as the learning rate grows. A point is a run; grey: the other rates; lines "
        "join the means.",
        alt=lambda rate: f"At a rate of {rate:g}: {say(rate)}",
    )


def _learned_and_forgotten(rows: Iterable[Row]) -> dict[float, tuple[float, float]]:
    """Held-out loss and loss on prose, mean over the seeds, by rate."""
    rows = list(rows)
    task, prose = (means(rows, "learning_rate", measure) for measure in ("validation_loss", "prose_loss"))
    return {rate: (task[rate].mean, prose[rate].mean) for rate in task}


def forgetting_map() -> Live:
    """The runs on exactly the same layers: the reader turns the way of training, its rate and the scale λ."""
    rows, measured = map_runs(), ("loss", "kl", "prose_loss")
    (base,) = select(load_results("map"), arm="base")
    order = list(MAP_RATES)
    ways = {(row["arm"], row["learning_rate"], row["scale"]) for row in rows}
    runs = []
    for arm, rate, scale in sorted(ways, key=lambda way: (order.index(way[0]), *way[1:])):
        found = select(rows, arm=arm, learning_rate=rate, scale=scale)
        runs.append(Run(arm, rate, scale, tuple(mean(found, x).mean for x in measured), len(found)))
    return tradeoff(
        runs,
        [base[x] for x in measured],
        axes=[Scale("loss on the task", 1.7, 2.3, [1.8, 2, 2.2]), Scale("KL from the base", 2.5, 4.5, [3, 3.5, 4])],
        up=Scale("loss on prose", 2.8, 5.6, [3.5, 4, 4.5, 5, 5.5]),
        start=("r = 64, α/√r", MAP_RATES["r = 64, α/√r"]),
        apart="full",
        caption="Learning against forgetting: left is better at the task, low is less forgotten. A point is a mean "
        "over seeds; solid lines join the rates, the dashed line follows λ from 1 down to 0.5.",
    )


def energy_knob(shares: Mapping[str, Mapping[str, Tensor]]) -> Knob:
    """How the energy of W and of its changes is spread, for each layer: of `LoRA`, `full` and `W` itself."""

    def draw(layer: str) -> tuple[Figure, str]:
        fig, ax = plt.subplots(figsize=(7, 3))
        names = {"LoRA": "LoRA's ΔW", "full": "full's ΔW", "W": "W itself"}
        for (name, share), color in zip(shares[layer].items(), (LORA, FULL, BASE)):
            ax.plot(range(1, len(share) + 1), share, color=color, label=names[name])
        ticks = [2**n for n in range(9)]
        ax.set_xscale("log", base=2)
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.set(xlabel="strongest directions", ylim=(0, 1.03))
        ax.set_title("share of the energy", fontweight="normal")
        fig.legend(ncols=3, loc="outside lower center", columnspacing=6)
        of_full = shares[layer]["full"]
        return fig, f"8 of {len(of_full)} directions hold {of_full[7]:.0%} of full's change"

    return knob(
        draw,
        layer=list(shares),
        caption="How the energy of W and of the two changes is spread over directions.",
        alt="Three rising curves: LoRA's reaches one at eight directions, full fine-tuning's rises slowly, W's slowest",
    )


def amounts_knob() -> Knob:
    """When the validation loss of rank 8 turns, with few examples of E2E and with many."""
    amounts = select(load_results("amounts"), rank=8, batch_size=8)
    counts = sorted({row["examples"] for row in amounts})

    def runs_of(examples: int) -> list[Row]:
        return at_best_rate(select(amounts, examples=examples))

    def say(examples: int) -> str:
        runs = runs_of(examples)
        best, lowest = (mean(runs, x) for x in ("best_step", "validation_loss"))
        after = best.mean * runs[0]["batch_size"] / examples
        still = "" if best.mean < 0.99 * runs[0]["steps"] else ", its end: it had not turned"
        return f"lowest, {lowest.mean:.2f}, after {after:.1f} passes{still}"

    def draw(examples: int) -> tuple[Figure, str]:
        fig, ax = plt.subplots(figsize=(5, 2.9))
        for row in runs_of(examples):
            curve = [float(loss) for loss in row["curve"].split()]
            passes = row["steps"] * row["batch_size"] / examples
            x = [passes * i / (len(curve) - 1) for i in range(len(curve))]
            at = curve.index(min(curve))
            ax.plot(x, curve, "-", color=ACCENT, lw=1)
            ax.plot(x[at], curve[at], "o", color=ACCENT)
        ax.set(xlim=(-0.5, 20), ylim=(1.4, 6.7), xlabel="passes", ylabel="validation loss")
        return fig, say(examples)

    return knob(
        draw,
        examples={f"{count:,}": count for count in counts},
        caption="Validation loss against passes over the training examples; each line is a seed, each dot its lowest "
        "point.",
        alt=lambda examples: f"{examples} examples: {say(examples)}",
    )


def methods_knob(came_out: Mapping[str, tuple[str, Difference | None]], margin: float) -> Knob:
    """LoRA and its relatives: what is trained, the forward pass, the start, and what came out, in words and drawn."""

    def draw(method: str) -> tuple[Figure, str]:
        fig, (top, below) = plt.subplots(2, figsize=(5, 4), height_ratios=[3, 1])
        _draw_boxes(top, method)
        said, change = came_out[method]
        below.axvspan(-margin, margin, color=FAINT)
        below.axvline(0, color=BASE, lw=1)
        if change:
            below.plot([change.low, change.high], [0, 0], color=LORA)
            below.plot(change.mean, 0, "o", color=LORA)
        below.set(xlim=(-0.15, 0.15), ylim=(-1, 1), yticks=[])
        below.set_xlabel("better ← loss minus LoRA's (grey: ± 2 %) → worse")
        return fig, said

    def in_words(method: str) -> str:
        trained, forward, start = METHODS[method]
        return f"{method} trains {trained}; {forward}; start: {start}. {came_out[method][0]}"

    return knob(
        draw,
        method=list(came_out),
        caption="Five methods side by side: what is trained, the forward pass, the start, and the test loss with its "
        "95 % interval.",
        alt=in_words,
    )


def _draw_boxes(ax: Axes, method: str) -> None:
    trained, forward, start = METHODS[method]
    for name, (x, y, width, height, colour) in BOXES.items():
        if name != "m" or "m" in trained.split():
            ax.add_patch(Rectangle((x, y), width, height, color=colour))
            label = "W − s·A₀·B₀" if name == "W" and "A₀" in forward else name
            ax.text(x + width / 2, y + height / 2, label, color="white", ha="center", va="center")
    ax.text(3.35, 1.2, "+ s ·", ha="center", va="center", fontsize=12)
    ax.text(0.3, 2.4, forward, fontsize=11)
    ax.text(0.3, -0.3, f"trained: {trained}", color=LORA)
    ax.text(0.3, -0.8, f"start: {start}", color=INK)
    ax.set(xlim=(0, 10), ylim=(-0.9, 2.9))
    ax.set_axis_off()


def seeds_figure(runs: Mapping[str, Sequence[Row]], ends: tuple[float, float], measure: str = "test_loss") -> Figure:
    """Each seed's test loss as a circle and their mean as a line, for each of these ways; `ends` are the axis's."""
    fig, ax = plt.subplots(figsize=(5, 0.9 + 0.42 * len(runs)))
    for y, (name, rows) in enumerate(runs.items()):
        color = BASE if name.split()[0] == "LoRA" else LORA
        losses = [row[measure] for row in rows]
        ax.plot(losses, [y] * len(losses), "o", color=color, mfc="none")
        ax.plot([mean(rows, measure).mean] * 2, [y - 0.3, y + 0.3], color=color, lw=2.5)
    ax.set(yticks=range(len(runs)), yticklabels=list(runs), ylim=(len(runs) - 0.4, -0.6), xlim=ends)
    ax.set(xlabel="test loss (nats a token); circles are seeds")
    plt.close(fig)
    return fig

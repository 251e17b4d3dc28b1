"""The page on forgetting: its picture, its tables and its claims, from the rows of gpt2-mini and of SmolLM2."""

from __future__ import annotations

import functools
import html
import math
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from lora_book.findings.curves import against_full, at_loss, dual
from lora_book.findings.forgetting import (
    FEATURES,
    SMOLLM2,
    Compared,
    compared,
    detected,
    error_without,
    explained,
    load_map,
    power,
    spread_of,
)
from lora_book.findings.stats import FEWEST, Difference, Row, load_results, mean, select
from lora_book.findings.verdicts import map_runs
from lora_book.show.board import STYLE, displayed, html_table
from lora_book.show.figures import BASE, CYCLE, FULL, LORA
from lora_book.show.knobs import Knob, knob

ROOT, PROSE = "r = 64, α/√r", "prose_forgotten"
SHOWN = ("loss", PROSE)
ARMS = {
    "full": (FULL, "-", "full"),
    ROOT: (LORA, "-", "r = 64, α/√r"),
    "r = 64, s = 4": (LORA, "--", "r = 64, s = 4"),
    "r = 64": (LORA, ":", "r = 64, s = 0.5"),
    "r = 8": (CYCLE[4], "-", "r = 8, s = 4"),
    "r = 8, s = 1.41": (CYCLE[4], "--", "r = 8, s = 1.41"),
    "r = 1": (BASE, "-", "r = 1, s = 32"),
}
LOSSES = (2.2, 2.1, 2.0, 1.93, 1.9, 1.85)
ALL_REACH = 1.93  # the lowest loss to two digits that every arm of equal scale reaches on every seed
AXES = {
    "loss on the task": "loss",
    "KL(base ‖ tuned) on the task": "kl_reverse",
    "size of the change, ‖ΔW‖": "delta_norm",
}
KL = "KL(base ‖ tuned) on the task"


@functools.cache
def runs() -> tuple[Row, ...]:
    """gpt2-mini's runs on the linear layers, as they were trained."""
    return tuple(select(load_map(), scale=1.0))


def first_runs() -> list[Row]:
    """The runs that the rule of a third was written for: best rates and the ones below, as they were trained."""
    return select(map_runs(), scale=1.0)


def arms(fewest: int = 1) -> list[str]:
    """The methods that were run at two rates or more on so many seeds, full fine-tuning first."""
    seeds = {arm: [len(select(runs(), arm=arm, learning_rate=rate)) for rate in rates_of(arm)] for arm in ARMS}
    return [arm for arm in ARMS if sum(n >= fewest for n in seeds[arm]) >= 2]


def rates_of(arm: str) -> list[float]:
    """The rates of an arm, the lowest first."""
    return sorted({row["learning_rate"] for row in select(runs(), arm=arm)})


# --- the picture ----------------------------------------------------------------------------------


def picture() -> Knob:
    """What each method has forgotten, against the loss, the distance or the size of the change: the reader chooses."""
    return knob(
        _draw,
        axis=AXES,
        labels={"axis": "across"},
        caption="What is forgotten, in nats of prose. A point is a run, a line joins the means at one learning rate "
        "after the other. If one number decided, all lines would lie on one another when it is across.",
        alt=lambda axis: f"Forgetting against {axis}: one rising line for each method, full fine-tuning in orange.",
    )


def _draw(axis: str) -> Figure:
    fig, ax = plt.subplots(figsize=(7, 4.6), layout="none")
    ends = dict[str, tuple[float, float, str]]()
    for arm in arms(FEWEST):
        colour, style, label = ARMS[arm]
        rows = select(runs(), arm=arm)
        ax.plot([row[axis] for row in rows], [row[PROSE] for row in rows], ".", color=colour, alpha=0.35, markersize=6)
        groups = [select(rows, learning_rate=rate) for rate in rates_of(arm)]
        line = [[mean(group, m).mean for group in groups] for m in (axis, PROSE)]
        ax.plot(*line, color=colour, linestyle=style, marker="o", markersize=4)
        ends[label.replace(" =", "")] = (line[0][-1], line[1][-1], colour)
    ax.set(xlabel=next(name for name, key in AXES.items() if key == axis), ylabel="forgotten: nats of prose")
    ax.set_yscale("log")
    ax.set_yticks([0.25, 0.5, 1, 2], ["0.25", "0.5", "1", "2"])
    ax.minorticks_off()
    if axis == "delta_norm":
        ax.set_xscale("log")
        ax.set_xticks([5, 10, 20, 50], ["5", "10", "20", "50"])
        ax.minorticks_off()
    if axis == "loss":
        ax.invert_xaxis()  # more is learned to the right
    _label(ax, ends)
    fig.subplots_adjust(left=0.11, right=0.66, top=0.97, bottom=0.13)  # on a phone the names grow: leave them room
    plt.close(fig)
    return fig


def _label(ax: Any, ends: dict[str, tuple[float, float, str]]) -> None:
    """Each line's name at the right edge, at its end's height or as near as the others leave room."""
    ax.margins(x=0.05)
    low, high = (math.log(y) for y in ax.get_ylim())
    free = 1.0
    for name, (x, y, colour) in sorted(ends.items(), key=lambda end: -end[1][1]):
        free = min(free, (math.log(y) - low) / (high - low))
        ax.annotate(
            name, (x, y), xytext=(1.03, free), textcoords="axes fraction", va="center", color=colour, fontsize=9,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.5, "shrinkA": 1, "shrinkB": 3},
        )  # fmt: skip
        free -= 0.065


# --- the tables -----------------------------------------------------------------------------------


def shown(found: Difference, digits: int = 2, unit: str = "") -> str:
    """A difference with its interval."""
    middle, low, high = (f"{x:+.{digits}f}" for x in found[:3])
    return f"{middle}{unit} [{low}, {high}]".replace("-", "−")


def at_equal_loss() -> Any:
    """The result: what each method has forgotten more than full, at one loss after the other, and its power."""
    found = {arm: [at_loss(runs(), arm, "full", loss) for loss in LOSSES] for arm in arms(FEWEST) if arm != "full"}
    table = _table(
        ["at a loss of", *(f"{loss:g}" for loss in LOSSES)],
        [
            [ARMS[arm][2], *("–" if one is None else _cell(one, "<br>") for one in row)]
            for arm, row in found.items()
            if any(row)
        ],
    )
    return displayed(table + seen())


def rank_and_scale() -> Any:
    """Rank apart from scale, at the lowest loss that all four methods reach."""
    pairs = {
        "rank 64 less rank 8, s = 4": ("r = 64, s = 4", "r = 8"),
        "rank 64 less rank 8, s = 1.41": (ROOT, "r = 8, s = 1.41"),
        "s = 4 less s = 1.41, rank 64": ("r = 64, s = 4", ROOT),
        "s = 4 less s = 1.41, rank 8": ("r = 8", "r = 8, s = 1.41"),
    }
    body = [[name, _cell(found)] for name, pair in pairs.items() if (found := at_loss(runs(), *pair, ALL_REACH))]
    return displayed(_table([f"at a loss of {ALL_REACH:g}", "nats of prose forgotten"], body))


def seen() -> str:
    """What five seeds can see, with the spread that these differences have."""
    found = [at_loss(runs(), arm, "full", loss) for arm in arms(FEWEST) if arm != "full" for loss in LOSSES]
    spreads = sorted(spread_of(both.difference) for both in found if both)
    low, high = (round(spreads[int(share * (len(spreads) - 1))], 2) for share in (0.1, 0.9))
    chances = ", ".join(
        f"{size:g} nats in {detected(size, low):.0%} and {detected(size, high):.0%}" for size in (0.3, 0.15, 0.05)
    )
    return (
        f"<p>Power: from cell to cell of the table the differences spread by {low:g} to {high:g} nats over the seeds. "
        f"With these, the interval of five seeds excludes zero for a difference of {chances} of simulated cases.</p>"
    )


def _cell(found: Compared, between: str = " ") -> str:
    seeds = "" if found.difference.runs == 5 else f" ({found.difference.runs} seeds)"
    said = shown(found.difference).replace(" ", seeds + between, 1)
    return f"<b>{said}</b>" if found.difference.verdict() in ("more", "less") else said


def by_rate() -> Any:
    """Folded: each method at each rate, with what it forgot more than full at equal loss and KL, and the dual."""
    rows = []
    for arm, group, cells in _groups(runs(), arms()):
        if arm != "full":
            cells += [_against(group, "loss"), _against(group, "loss", "plays"), _against(group, "kl_reverse")]
            cells.append(_dual(group, runs()))
        rows.append([*cells, *[""] * (4 if arm == "full" else 0)])
    head = ["method", "rate", "seeds", "loss", "forgotten", "prose, equal loss", "plays, equal loss",
            "prose, equal KL(base ‖ tuned)", "loss, equal forgetting"]  # fmt: skip
    return _folded("Every method at every rate", _table(head, rows))


def _groups(rows: Sequence[Row], arms: Sequence[str]) -> Iterator[tuple[str, list[Row], list[str]]]:
    """The runs of each arm at each rate, and a table's columns: method, rate, seeds, loss, forgotten."""
    for arm in arms:
        for rate in sorted({row["learning_rate"] for row in select(rows, arm=arm)}):
            group = select(rows, arm=arm, learning_rate=rate)
            means = (f"{mean(group, m).mean:.2f}" for m in SHOWN)
            yield arm, group, [ARMS[arm][2], _rate(rate), str(len(group)), *means]


def _against(group: Sequence[Row], by: str = "loss", text: str = "prose", among: Sequence[Row] | None = None) -> str:
    try:
        found = against_full(runs() if among is None else among, group, by, text)
    except ValueError:
        return "–"
    return _cell(found) if found.difference.runs >= FEWEST else "–"


def _dual(group: Sequence[Row], among: Sequence[Row]) -> str:
    try:
        found = dual(among, group)
    except ValueError:
        return "–"
    return shown(found.percent, 1, " %") if found.difference.runs >= FEWEST else "–"


def longer() -> Any:
    """Folded: four times as many steps, each LoRA at the rate that is best at 120."""
    rows = select(load_map(steps=480), scale=1.0)
    body = [
        [*cells, "" if arm == "full" else _against(group, among=rows)]
        for arm, group, cells in _groups(rows, ("full", ROOT, "r = 64", "r = 8"))
    ]
    head = ["480 steps", "rate", "seeds", "loss", "forgotten", "forgotten less full's, equal loss"]
    return _folded("Four times as many steps", _table(head, body))


def predictors() -> Any:
    """How much of forgetting one number explains for all methods together, and what the old rule could have seen."""
    rows, everything = first_runs(), load_map()
    nothing = error_without(rows, [])
    body = [
        [name, f"{explained(everything, name):.2f}", f"{explained(everything, name, log=True):.2f}",
         f"{error_without(rows, [name]):.2f}", _share(power(rows, name))]
        for name in FEATURES
    ]  # fmt: skip
    head = ["one parabola in", "R²", "R², in log", "error on the method left out, nats", "power of the rule"]
    note = (
        f"<p>R² is over all {len(everything)} runs, those scaled by λ included; KL(base ‖ tuned) has "
        f"{explained(runs(), KL):.2f} over the {len(runs())} as trained. The mean of the other methods leaves "
        f"{nothing:.2f} nats. Our first rule called a number a predictor where it leaves a third of that. The last "
        "column is how often it would pass in 200 simulated worlds in which that number does decide. So it could "
        "hardly have said yes, and we do not use it any more.</p>"
    )
    return displayed(_table(head, body) + note)


def _rate(rate: float) -> str:
    return f"{rate:f}".rstrip("0")


def _share(found: float) -> str:
    return "under 10 %" if found < 0.1 else f"{found:.0%}"


def scaled() -> Any:
    """Folded: what scaling the change by 0.85 and a lower rate cost."""
    rows = load_map()
    best = {"full": 0.001, ROOT: 0.0032, "r = 64": 0.0058, "r = 8": 0.0058}
    lower = {"full": 0.00056, ROOT: 0.0018, "r = 64": 0.0032, "r = 8": 0.0032}
    body = []
    for arm, rate in best.items():
        group = select(rows, arm=arm, learning_rate=rate, scale=1.0)
        for name, other in (
            ("× 0.85", select(rows, arm=arm, learning_rate=rate, scale=0.85)),
            (f"at {_rate(lower[arm])}", select(rows, arm=arm, learning_rate=lower[arm], scale=1.0)),
        ):
            cost = shown(compared(other, group, "loss").percent, 1, " %")
            body.append([f"{ARMS[arm][2]} {name}", cost, shown(compared(other, group, PROSE).percent, 0, " %")])
    head = ["less the same at its best rate", "loss on the task", "prose forgotten"]
    return _folded("What scaling by 0.85 and a lower rate cost", _table(head, body))


# --- SmolLM2 --------------------------------------------------------------------------------------


FAR: dict[str, Any] = {"steps": 60, "file": "smollm2_far"}
VOICE: dict[str, Any] = {"steps": 60, "file": "smollm2_voice"}
ANSWERED = {"smollm2_map": "smollm2_near"}  # runs whose facts were counted when they were made again


def _run(row: Row) -> tuple[str, float, int]:
    return row["arm"], row["learning_rate"], row["seed"]


@functools.cache
def on_e2e() -> tuple[Row, ...]:
    """SmolLM2's runs on E2E: at the tuned rates, and driven harder, where the facts were counted."""
    kept = load_map(**SMOLLM2)
    known = {_run(row) for row in kept}
    return (*kept, *(row for row in load_map(steps=60, file="smollm2_near") if _run(row) not in known))


def smollm2() -> Any:
    """SmolLM2 on its three tasks: means over the seeds, facts still right, each against full."""
    body = []
    for task, where in {"E2E": SMOLLM2, "permuted": FAR, "a voice": VOICE}.items():
        rows = load_map(**where) if task != "E2E" else on_e2e()
        for arm, group, cells in _groups(rows, ("full", ROOT, "r = 8")):
            lora, far = arm != "full" and task != "a voice", task == "permuted"
            against = [_against(group, among=rows) if far else "", _dual(group, rows)] if lora else ["", ""]
            body.append([task, *cells, facts(where["file"], arm, group[0]["learning_rate"]), *against])
    head = ["SmolLM2 on", "method", "rate", "seeds", "loss", "forgotten", "facts still right",
            "forgotten less full's, equal loss", "loss less full's, equal forgetting"]  # fmt: skip
    return displayed(_table(head, body))


def facts(file: str, arm: str, rate: float) -> str:
    """How many of the facts that the base answers the runs of a method at a rate still answer, on average."""
    kept = load_results(ANSWERED.get(file, file))
    (base,) = select(kept, arm="base")
    group = select(kept, arm=arm, learning_rate=rate, split="test")
    if not group:
        return "–"
    seeds = "" if len(group) == 5 else f" ({len(group)} seed{'s' * (len(group) > 1)})"
    return f"{mean(group, 'facts').mean:.0f} of {base['facts']}{seeds}"


def repeated() -> list[float]:
    """By how many nats each run that was made again on the near task differs, on the task and on prose."""
    before = {_run(row): row for row in load_map(**SMOLLM2)}
    again = [row for row in load_map(steps=60, file="smollm2_near") if _run(row) in before]
    return [abs(row[name] - before[_run(row)][name]) for row in again for name in ("loss", "prose_loss")]


# --- the claims -----------------------------------------------------------------------------------


def claims() -> dict[str, bool]:
    """What the page says in words, each with whether the rows say it."""
    by_rate = {
        arm: [against_full(runs(), select(runs(), arm=arm, learning_rate=rate)) for rate in rates_of(arm)]
        for arm in (ROOT, "r = 8")
    }
    root, eight = ([found.difference.verdict() for found in by_rate[arm]] for arm in (ROOT, "r = 8"))
    high = [select(runs(), arm=ROOT, learning_rate=rate) for rate in rates_of(ROOT)[-2:]]
    plays = against_full(runs(), high[-1], text="plays")
    kl = [against_full(runs(), group, "kl_reverse").difference.verdict() for group in high]
    everything = load_map()
    best = max(FEATURES, key=lambda name: explained(everything, name))
    return {
        "r = 64 with α/√r: less forgotten than full at its two highest rates, more at its lowest": (
            root[-2:] == ["less", "less"] and root[0] == "more"
        ),
        "r = 8: more forgotten than full at its two highest rates": eight[-2:] == ["more", "more"],
        "r = 64 with α/r: more forgotten than full at its two lowest rates": [
            against_full(runs(), select(runs(), arm="r = 64", learning_rate=rate)).difference.verdict()
            for rate in rates_of("r = 64")[:2]
        ]
        == ["more", "more"],
        "at the loss that all reach rank 64 has forgotten less than rank 8 at both scales; "
        "the scales differ by less: not settled at rank 64, the larger has forgotten less at rank 8": _rank_matters(),
        "of one number for all methods KL(base ‖ tuned) explains most: more than half": best == KL
        and min(explained(everything, KL), explained(runs(), KL)) > 1 / 2,
        "at equal KL(base ‖ tuned) α/√r has forgotten less at its two highest rates": kl == ["less", "less"],
        "on plays its advantage at the best rate is not settled": plays.difference.verdict() == "not settled",
        **_rank_one_claims(),
        **_longer_claims(),
        **_far_claims(),
        **_facts_claims(),
        "the rule of a third would have passed in fewer than one world in ten": power(first_runs(), KL) < 0.1,
    }


def _rank_one_claims() -> dict[str, bool]:
    """What the page says of r = 1."""
    one = [select(runs(), arm="r = 1", learning_rate=rate) for rate in rates_of("r = 1")]
    best = select(runs(), arm="full", learning_rate=0.001)
    return {
        "r = 1: more than 15 % behind in loss, more forgotten at equal loss, at all three rates": len(one) == 3
        and all(compared(group, best, "loss").percent.low > 15 for group in one)
        and all(against_full(runs(), group).difference.verdict() == "more" for group in one),
    }


def _longer_claims() -> dict[str, bool]:
    """What the page says of four times as many steps, on three seeds."""
    rows = select(load_map(steps=480), scale=1.0)
    high, lower = (select(rows, arm=ROOT, learning_rate=rate) for rate in (0.0032, 0.0018))
    at_equal = [against_full(rows, group).difference for group in (high, lower)]
    return {
        "480 steps, three seeds: at 0.0032 α/√r has forgotten at least 0.5 nats more at equal loss": (
            at_equal[0].runs == 3 and at_equal[0].low > 0.5
        ),
        "there it is not settled at 0.0018, which has forgotten about half as much, with no difference in loss": (
            [found.verdict() for found in (at_equal[1], compared(lower, high, "loss").difference)]
            == ["not settled"] * 2
            and 0.45 < mean(lower, PROSE).mean / mean(high, PROSE).mean < 0.6
        ),
    }


def _far_claims() -> dict[str, bool]:
    """What the page says of SmolLM2 on the far task."""
    rows, near = select(load_map(**FAR), scale=1.0), select(load_map(**SMOLLM2), scale=1.0)

    def at(arm: str, rate: float) -> list[Row]:
        return select(rows, arm=arm, learning_rate=rate)

    lora = [at(ROOT, rate) for rate in (0.001, 0.0018, 0.0032)]
    pair = lora[1], at("full", 0.00056)
    said = {name: compared(*pair, name).difference.verdict() for name in ("loss", PROSE, "facts")}
    most = max(row[PROSE] for row in near if row["arm"] in ("full", ROOT))
    return {
        "SmolLM2, tokens permuted: at equal loss α/√r has forgotten more, at both rates that full's losses reach": [
            against_full(rows, group).difference.verdict() for group in lora[1:]
        ]
        == ["more", "more"],
        "at equal forgetting its loss is higher, at all three rates": all(
            dual(rows, group).difference.verdict() == "more" for group in lora
        ),
        "where prose is not settled (0.0018 and 0.00056), facts are not either, and its loss is higher": said
        == {"loss": "more", PROSE: "not settled", "facts": "not settled"},
        "every run has forgotten at least 0.3 nats more than any of the same two methods on E2E": min(
            row[PROSE] for row in rows
        )
        > most + 0.3,
        "at the highest rates both answer fewer than a twentieth of the facts on average": all(
            mean(group, "facts").mean < 145 / 20 for group in (lora[2], at("full", 0.001))
        ),
    }


def _facts_claims() -> dict[str, bool]:
    """What the page says of the facts after E2E itself, and of the voice."""
    near = select(load_results("smollm2_near"), split="test")
    voice = load_map(**VOICE)

    def less_full(rows: list[Row], rate: float, full: float, measure: str) -> Compared:
        ours, theirs = select(rows, arm=ROOT, learning_rate=rate), select(rows, arm="full", learning_rate=full)
        return compared(ours, theirs, measure)

    kept = less_full(near, 0.001, 0.00017, "facts").difference
    harder = dual(on_e2e(), select(on_e2e(), arm=ROOT, learning_rate=0.0018)).difference
    loss, prose, right = (less_full(voice, 0.00056, 9.5e-5, measure) for measure in ("loss", PROSE, "facts"))
    return {
        "the runs on E2E that were made again repeat loss and prose within 0.003 nats": max(repeated()) < 0.003,
        "E2E: LoRA has forgotten more in every pair of rates; its loss is level with full's best": _pairs_on_e2e(),
        "E2E, driven harder: at equal forgetting α/√r's loss is lower, which three seeds do not settle": (
            harder.mean < 0 and harder.runs == 3 and harder.verdict() == "not settled"
        ),
        "after E2E α/√r answers fewer facts than full; both answer more than half": (
            kept.verdict() == "less"
            and min(row["facts"] for row in near if _run(row)[:2] in {(ROOT, 0.001), ("full", 0.00017)}) > 145 / 2
        ),
        "the voice: level in loss within 4 %": loss.percent.verdict(4) == "level",
        "the voice: α/√r has forgotten more prose and answers fewer facts": (
            prose.difference.verdict() == "more" and right.difference.verdict() == "less"
        ),
    }


def _pairs_on_e2e() -> bool:
    """Whether SmolLM2's LoRA has forgotten more than full on E2E at all their rates, while no loss differs."""
    rows = load_map(**SMOLLM2)
    lora = [
        select(rows, arm=arm, learning_rate=rate) for arm, rate in ((ROOT, 0.001), ("r = 8", 0.0018), ("r = 8", 0.0032))
    ]
    pairs = [(group, select(rows, arm="full", learning_rate=rate)) for rate in (0.00017, 9.5e-5) for group in lora]
    losses = [compared(*pair, "loss").percent for pair in pairs]
    return (
        all(compared(*pair, PROSE).difference.verdict() == "more" for pair in pairs)
        and all(found.low < 0 < found.high for found in losses)
        and {found.verdict(2) for found in losses[:3]} == {"level"}
    )


def _rank_matters() -> bool:
    """Whether the ranks differ at both scales, by more than the scales differ at both ranks."""

    def less(ours: str, theirs: str) -> Difference:
        found = at_loss(runs(), ours, theirs, ALL_REACH)
        assert found is not None  # all four reach this loss
        return found.difference

    ranks = [less("r = 64, s = 4", "r = 8"), less(ROOT, "r = 8, s = 1.41")]
    scales = [less("r = 64, s = 4", ROOT), less("r = 8", "r = 8, s = 1.41")]
    return (
        [found.verdict() for found in ranks + scales] == ["less", "less", "not settled", "less"]
        and max(found.mean for found in ranks) < min(found.mean for found in scales)
    )  # fmt: skip


# --- HTML -----------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table, which scrolls where it is too wide; cells are HTML, heads are text."""
    return f'{STYLE}<div class="pst-scrollable-table-container">{html_table(head, rows, "rates")}</div>'


def _folded(title: str, inner: str) -> Any:
    return displayed(f'<details class="behind"><summary>{html.escape(title)}</summary>{inner}</details>')

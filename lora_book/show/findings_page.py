"""The findings page: the board, and what is drawn and folded under each answer. Every number comes from the kept rows.

The notebook holds the headings and the text; `overview` and `section` give the HTML of its cells.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from lora_book.findings import new_words as nw
from lora_book.findings.forgetting import SMOLLM2, Compared, load_map, tuned_rates
from lora_book.findings.stats import (
    Difference,
    Row,
    at_best_rate,
    by_seed,
    load_results,
    mean,
    select,
    survivors,
)
from lora_book.findings.verdicts import (
    AMOUNTS,
    COMPARISONS,
    MAP_RATES,
    best_runs,
    family,
    given_back,
    intruders_above_chance,
    on_smollm2,
    on_the_map,
    rate_ratio,
)
from lora_book.show.board import (
    MARK,
    Answer,
    Block,
    Line,
    behind,
    board,
    displayed,
    flipped,
    forest,
    html_table,
    interval,
    line,
    percent_line,
)

PLAIN = {"targets": "all", "alpha": 32, "init": "default", "lora_plus": 1, "use_rslora": False}
RANKS = (1, 2, 4, 8, 16, 64)
PAPER = dict(zip(RANKS, (1.23, 1.21, 1.18, 1.17, 1.16, 1.16)))  # LoRA, Table 18
PAPER_BLEU = 100 * (70.4 / 68.2 - 1)  # LoRA and full fine-tuning, GPT-2 Medium
ON_E2E = "SmolLM2 on E2E"


# --- what every section needs ---------------------------------------------------------------------


@functools.cache
def differences() -> dict[str, Difference]:
    """Every difference of the page, by name."""
    return family()


@functools.cache
def surviving() -> set[str]:
    """The names of those that survive the correction for their number."""
    return survivors(differences())


@functools.cache
def compared_runs() -> dict[str, Compared]:
    """The differences on the map, with new words and on SmolLM2, each with the other side's mean."""
    kinds = {"map": on_the_map(), "new words": nw.contrasts(), ON_E2E: on_smollm2()}
    return {f"{kind}, {name}": found for kind, both in kinds.items() for name, found in both.items()}


def drawn(name: str, label: str = "", paper: float | None = None) -> Line:
    """A comparison as a line: one of the book's, or one of the map, with new words or of SmolLM2."""
    for full in (f"map, {name}", f"new words, {name}", name):
        if full in compared_runs():
            return percent_line(label, compared_runs()[full], full in surviving())
    return line(label, name, surviving(), paper)


def shown(lines: Mapping[str, str | tuple[str, float]], **axis: Any) -> str:
    """A forest plot of comparisons: name -> label, or label and the paper's value."""
    return forest([drawn(name, *((v,) if isinstance(v, str) else v)) for name, v in lines.items()], **axis)


def numbers(contrasts: Mapping[str, str], **notes: str) -> str:
    """What is folded under an answer."""
    named = {name[0].upper() + name[1:].replace("_", " "): text for name, text in notes.items()}
    return behind(contrasts, named, surviving())


def mapped(name: str, kind: str = "map") -> str:
    """A difference on the map, with new words or on SmolLM2, in nats, and its verdict."""
    both = compared_runs()[f"{kind}, {name}"]
    word = {"more": "worse", "less": "better"}.get(word := both.difference.verdict(0.02 * both.of), word)
    mark = MARK if f"{kind}, {name}" in surviving() else ""
    return f"{interval(both.difference, 3)}, {word}; {both.difference.runs} seeds{mark}"


def marked(name: str, digits: int = 2) -> str:
    """A difference that is none of the comparisons, with the mark of those that survive."""
    return interval(differences()[name], digits) + (MARK if name in surviving() else "")


def sweep(rank: int, steps: int = 120) -> list[Row]:
    """All runs of a rank on short references, at every rate; rank 0 is full fine-tuning."""
    method = "lora" if rank else "full"
    return select(load_results("e2e"), **PLAIN, method=method, rank=rank, steps=steps)


# --- the board ------------------------------------------------------------------------------------


def overview() -> Any:
    """The board: what to do, what not to expect, what is open."""
    return displayed(board([_do(), _do_not_expect(), _open()]))


def _do() -> Block:
    embedding = drawn(f"{nw.PART}, p = 0.1")
    return Block(
        "Do",
        [
            Answer("which-rate", "Tune the learning rate first, from ten times full fine-tuning's."),
            Answer(
                "which-layers",
                "Adapt all linear layers, not attention alone.",
                drawn("attention against all"),
                ("all layers", "attention"),
            ),
            Answer("which-rank", "Start with rank 8.", drawn("rank 8 against 1"), ("rank 1", "rank 8")),
            Answer(
                "which-rank",
                "For the last few percent, go to rank 64.",
                drawn("rank 64 against 8, loss"),
                ("rank 8", "rank 64"),
            ),
            Answer(
                "which-scale",
                "At rank 64 divide α by √r, with α = 11.3.",
                drawn("α/√r against α/r, loss"),
                ("α/r", "α/√r"),
            ),
            Answer(
                "new-words",
                "Train the embedding too if your text has new words.",
                embedding,
                ("without", "with the embedding"),
            ),
            Answer(
                "undo",
                "If it forgot too much, scale the change by 0.85.",
                drawn("r = 64, α/√r × 0.85, prose_loss"),
                ("as trained", "× 0.85, on prose"),
            ),
        ],
        limit=40,
    )


def _do_not_expect() -> Block:
    return Block(
        "Do not expect",
        [
            Answer(
                "as-good",
                "To be quite as good as full fine-tuning.",
                drawn("embedding, r = 8, loss"),
                ("full", "LoRA, r = 8"),
            ),
            Answer(
                "data",
                "To catch up when you have more data.",
                drawn("rank 8 against full, 4000 examples"),
                ("full", "LoRA, 4,000 examples"),
            ),
            Answer(
                "relatives",
                "LoRA+ to learn more than LoRA with a larger α.",
                drawn("LoRA+ 16 against α = 512, restaurants"),
                ("larger α", "LoRA+"),
            ),
            Answer(
                "quantised", "An 8-bit base to cost quality.", drawn("int8, restaurants"), ("float32", "8-bit base")
            ),
            Answer(
                "style",
                "LoRA to be closer on plain text: it stays behind.",
                drawn("rank 64 against full, plays"),
                ("full", "LoRA, r = 64"),
            ),
            Answer("cost", "Much speed: the files shrink, the steps hardly."),
        ],
        limit=30,
    )


def _open() -> Block:
    return Block(
        "Open, or it depends",
        [
            Answer("forgetting", "Whether LoRA forgets less depends on rank, rate, length and model."),
            Answer("capacity", "How much a rank can hold was not measured to the end."),
            Answer(
                "reward",
                "Whether rank 1 is enough for reinforcement learning.",
                drawn("rank 1 against full, reward"),
                ("full", "rank 1"),
            ),
            Answer(
                "spam",
                "Whether fine-tuning beats word counts at spam.",
                drawn("LoRA against word counts"),
                ("word counts", "LoRA"),
            ),
            Answer("directions", "Whether LoRA's change is of a special kind."),
        ],
        limit=20,
        unit=" points",
    )


# --- one function a section -----------------------------------------------------------------------


def section(name: str) -> Any:
    """What stands under the text of a section: one figure, and the numbers, folded.

    Raises ValueError for a name that is none, with the names there are.
    """
    if name not in SECTIONS:
        raise ValueError(f"the findings page has no section {name!r}; there are {', '.join(SECTIONS)}")
    return displayed(SECTIONS[name]())


def _as_good() -> str:
    small = {
        f"{ON_E2E}, r = 64, α/√r, loss": "SmolLM2: r = 64 with α/√r",
        f"{ON_E2E}, r = 8, loss": "SmolLM2: r = 8",
    }
    return shown(
        {
            "embedding, r = 8, loss": "r = 8, embedding in both",
            "embedding, r = 64, loss": "r = 64, embedding in both",
            "r = 64, α/√r, loss": "r = 64, α/√r, linear layers",
            "r = 8, loss": "r = 8, linear layers",
            **small,
        },
        limit=12,
    ) + numbers(
        {f"{arm} minus full, linear layers": mapped(f"{arm}, loss") for arm in ("r = 8", "r = 64", "r = 64, α/√r")}
        | {
            f"{arm} minus full, linear layers and embedding": mapped(f"embedding, {arm}, loss")
            for arm in ("r = 8", "r = 64")
        }
        | {
            f"{arm}: by how much the embedding closes the gap, nats": marked(f"closed by the embedding, {arm}", 3)
            for arm in ("r = 8", "r = 64")
        }
        | {
            "r = 8, embedding in both minus full of everything (coarse grid)": "with the embedding, rank 8",
            "r = 64, embedding in both minus full of everything (coarse grid)": "with the embedding",
            "the same, BLEU": "with the embedding, BLEU",
            "r = 64 minus full, as usual (coarse grid)": "as usual",
            "r = 8 minus full, as usual (coarse grid)": "as usual, rank 8",
        }
        | _orders(),
        papers="LoRA is better on E2E, with a BLEU of 70.4 against 68.2, GPT-2 Medium, five passes (LoRA); it is equal "
        "as long as its capacity suffices (LoRA Without Regret).",
        control="both sides train exactly the same weights. In the rows of the coarse grid, full fine-tuning of "
        "everything also moves norms, biases and positions.",
        orders="an order in words, answered as JSON: 60 steps of 4, three seeds, a coarse grid. Nearly all of that "
        "loss is on one field, a code that is not in the order and has to be memorised. LoRA is behind there, and "
        "has forgotten more.",
        what_would_change_it="other rates for the embedding, which has 0.0032 in every arm, and longer runs: these saw "
        "960 of 42,036 references. SmolLM2 had 60 steps of 4.",
    )


def _orders() -> dict[str, str]:
    """SmolLM2 on orders as JSON: what is folded, with the share of the loss that is the code."""
    how = {"rank 8": "r = 8", "rank 64": "r = 64", "α/√r": "r = 64 with α/√r"}
    found = {f"SmolLM2, orders, {label} minus full": f"same layers, {name}, SmolLM2" for name, label in how.items()}
    found |= {
        f"SmolLM2, orders, prose, {label} minus full": f"same layers, {name}, SmolLM2, forgetting"
        for name, label in how.items()
    }
    by_field = {row["method"].partition(",")[0].replace("lora", "LoRA"): row for row in load_results("order_fields")}
    code = "; ".join(f"{name} {row['loss_code']:.0%}" for name, row in by_field.items())
    right = best_runs(select(load_results("smollm2"), method="lora", rank=8))
    full = best_runs(select(load_results("smollm2"), method="full, linear"))
    answers = f"r = 8 {mean(right, 'exact').mean:.0%}, full {mean(full, 'exact').mean:.0%}"
    return found | {"orders: share of the loss that is the code": code, "orders: answers right": answers}


def _new_words() -> str:
    new = {name.removeprefix("new words, "): both for name, both in compared_runs().items() if "new words" in name}
    lines = []
    for share, of in nw.shares().items():
        both, name = new[f"{nw.PART}, p = {share:g}"], f"new words, {nw.PART}, p = {share:g}"
        found = flipped(both.difference, -1)
        gained = Line(f"{100 * of:.0f} % new tokens", found, 0.02 * both.of, "")
        mark = MARK if name in surviving() else ""
        lines.append(gained._replace(said=f"{interval(found)}, {gained.verdict}{mark}"))
    names = {
        nw.PART: "r = 8, with the embedding minus without",
        nw.USUAL: "r = 8 minus full with the embedding",
        nw.BOTH: "r = 8 minus full, embedding in both",
    }
    percent = ", ".join(f"{-new[f'{nw.PART}, p = {p:g}'].percent.mean:.0f} %" for p in nw.shares())
    return forest(lines, sides=("without", "with it"), limit=1.2, unit=" nats", digits=2) + numbers(
        {
            f"{label}, {100 * of:.0f} % new": mapped(f"{name}, p = {share:g}", "new words")
            for name, label in names.items()
            for share, of in nw.shares().items()
        }
        | {
            name.replace("embedding's part", "growth of the gain, nats"): marked(f"new words, {name}")
            for name in nw.growth()
        }
        | {
            "a new token's gain minus a known one's, nats": marked("new words, gain on new less known tokens, p = 1"),
            "the gain over r = 8's gap to full, p = 1": interval(nw.share_of_gap(1.0)),
        },
        loss=f"the embedding lowers it by {percent}.",
        predictions="right: the gain grows at each step; at p = 1 it is more than half of the usual gap, and larger on "
        "a new token than on a known one. Wrong: that it is below 5 % without new tokens, and that r = 8 is within 4 % "
        "of full at p = 1, where it is ahead. At p = 0 that is not settled.",
        control="lengths, sentences and everything else are the same at every share of new tokens. 160 short texts, "
        "five seeds. With the embedding r = 8 trains six times as many parameters, and we have no run of a larger rank "
        "in its place. SmolLM2 was not run.",
        what_would_change_it="a rate tuned for the embedding (0.0032 throughout, so it may gain more), longer runs, "
        "and a model that is closer to the task.",
    )


def rate_table() -> list[tuple[str, str, str]]:
    """The one table of rate ratios: where, LoRA's best rate over full fine-tuning's, and its evidence."""
    matrices = select(load_results("e2e"), **{**PLAIN, "targets": "matrices"}, method="full", rank=0, steps=120)
    tuned, both, small = tuned_rates(), tuned_rates("linear + wte"), tuned_rates(**SMOLLM2)
    lower = min(row["learning_rate"] for row in load_map(**SMOLLM2) if row["arm"] == "full")
    gentle = min(row["learning_rate"] for row in load_map(**SMOLLM2) if row["arm"] == "r = 8")
    grid = "one seed, grid of 1.8"
    return [
        ("gpt2-mini, r = 8, same matrices", _times(rate_ratio(sweep(8), matrices)), "three seeds, grid of 3"),
        ("gpt2-mini, r = 64, same matrices", _times(rate_ratio(sweep(64), matrices)), "three seeds, grid of 3"),
        (
            "gpt2-mini, r = 8, full of everything",
            _times(rate_ratio(sweep(8), sweep(0))),
            "three seeds, grid of 3",
        ),
        ("gpt2-mini, r = 8 and 64, linear layers", f"{tuned['r = 8'] / tuned['full']:.1f}", grid),
        ("the same with the embedding", f"{both['r = 8'] / both['full']:.1f}", grid),
        ("gpt2-mini, r = 64 with α/√r", f"{tuned['r = 64, α/√r'] / tuned['full']:.1f}", grid),
        (
            "SmolLM2, r = 8",
            f"{gentle / small['full']:.0f} to {small['r = 8'] / lower:.0f}",
            "rates whose losses are level",
        ),
        ("SmolLM2, r = 64 with α/√r", f"{small['r = 64, α/√r'] / small['full']:.1f}", grid),
        ("larger models, any rank", "about 10", "LoRA Without Regret"),
    ]


def _times(found: Difference) -> str:
    return f"{found.mean:.1f} [{found.low:.1f}, {found.high:.1f}]"


def _which_rate() -> str:
    return html_table(("model and method", "times full's rate", "evidence"), rate_table(), "rates") + numbers(
        {"r = 64, best rate over that of r = 8": _times(rate_ratio(sweep(64), sweep(8)))},
        control="short references of E2E, 120 steps, α = 32 for the grid of 3. The best rate of a seed is the lowest "
        "point of the parabola through its best rate and the two next to it, which are a factor of 3 away. So the "
        "interval includes the spread over seeds, but not the error of the parabola.",
        what_would_change_it="more tuning seeds, and larger models, for which the factor of 10 was found. For 480 "
        "steps we give no factor: the runs next to the best rate diverged.",
    )


def _which_rank() -> str:
    losses = [mean(at_best_rate(sweep(rank)), "validation_loss").mean for rank in RANKS]
    paper = {pair: 100 * (PAPER[pair[1]] - PAPER[pair[0]]) / PAPER[pair[1]] for pair in ((8, 1), (16, 8))}
    return shown(
        {
            "rank 8 against 1": ("8 and 1, short references", paper[8, 1]),
            "rank 16 against 8": ("16 and 8, short references", paper[16, 8]),
            "rank 64 against 8": "64 and 8, short references",
            "rank 64 against 8, loss": "64 and 8, all references",
            "embedding, rank 64 against 8, loss": "64 and 8, with the embedding",
        },
        sides=("lower rank", "higher rank better"),
        limit=20,
    ) + numbers(
        {
            "8 minus 1, short references": "rank 8 against 1",
            "16 minus 8": "rank 16 against 8",
            "64 minus 8": "rank 64 against 8",
            "64 minus 8, 480 steps": "rank 64 against 8, longer",
            "64 minus 8, Shakespeare's plays": "rank 64 against 8, plays",
            "64 minus 8, all references": mapped("rank 64 against 8, loss"),
            "64 minus 8, with the embedding": mapped("embedding, rank 64 against 8, loss"),
        },
        papers="higher ranks help up to 8 or 16: 1.23, 1.21, 1.18, 1.17, 1.16, 1.16 from r = 1 to 64 (LoRA, Table 18; "
        "GPT-2 Medium; ◇ in the plot).",
        ours=", ".join(f"{x:.2f}" for x in losses) + " from r = 1 to 64, on references up to 64 tokens.",
        control="each rank at its own best learning rate of the grid, on the same seeds.",
        what_would_change_it="a finer grid, more seeds, and tasks with more to memorise.",
    )


def _which_scale() -> str:
    return shown(
        {
            "α/√r against α/r, loss": "r = 64, tuned for each",
            "α/√r against α/r, one rate": "r = 64, one rate for both",
            "α/√r against α/r, one rate, forgetting": "prose: r = 64, one rate for both",
        },
        sides=("α/r better", "α/√r better"),
    ) + numbers(
        {
            "r = 64, one rate, short references": "α/√r against α/r, rank 64",
            "r = 256, one rate, short references": "α/√r against α/r, rank 256",
            "r = 256, prose": "α/√r against α/r, rank 256, forgetting",
            "r = 64, one rate, all references": "α/√r against α/r, one rate",
            "the same, BLEU": "α/√r against α/r, one rate, BLEU",
            "the same, prose": "α/√r against α/r, one rate, forgetting",
            "r = 64, tuned for each": mapped("α/√r against α/r, loss"),
            "tuned for each, prose": mapped("α/√r against α/r, prose_loss"),
        },
        papers="with α/r, high ranks learn no better than low ones; with α/√r they do (rsLoRA).",
        control="with one rate: the one that is best at r = 8, where both rules have s = 4.",
        what_would_change_it="more rates, longer runs, other tasks. A and B of r = 256 have more parameters here than "
        "the matrices that they change.",
    )


def _which_layers() -> str:
    lines = {"MLP against all": "MLP", "head against all": "head", "attention against all": "attention"}
    return shown(lines, sides=("all layers better", "better")) + numbers(
        {f"{label} minus all layers": name for name, label in lines.items()},
        papers="adapt all layers, or the MLP; attention alone is worse (LoRA Without Regret). The LoRA paper adapts q "
        "and v.",
        control="ranks that train about 92,000 parameters each, and a rate tuned for each.",
        what_would_change_it="a finer grid for the head, whose interval ends near zero. Attention means q, k, v and "
        "the output projection together; q and v alone were not run.",
    )


def _forgetting() -> str:
    return shown(
        {
            "r = 64, α/√r, prose_loss at equal loss": "r = 64, α/√r, at equal loss",
            "r = 8, prose_loss at equal loss": "r = 8, at equal loss",
            f"{ON_E2E}, r = 64, α/√r, prose_loss": "SmolLM2: r = 64, α/√r, at its best",
            f"{ON_E2E}, r = 8, prose_loss": "SmolLM2: r = 8, at its best",
        },
        sides=("full forgets less", "LoRA forgets less"),
    ) + numbers(
        {
            f"{name.removeprefix('map, ')} minus full": mapped(name.removeprefix("map, "))
            for name in compared_runs()
            if name.startswith("map") and "prose_loss" in name and not any(x in name for x in ("against", "×"))
        }
        | {
            f"SmolLM2, {arm} minus full, {x.replace('_', ' ')}": mapped(f"{arm}, {x}", ON_E2E)
            for arm in ("r = 64, α/√r", "r = 8", "r = 8, lower rate", "r = 8, lower rate against full's")
            for x in ("loss", "kl", "prose_forgotten")
        }
        | {
            f"coarse grid, r = 64 minus full at equal loss: {name.removeprefix('forgetting at equal loss, ')}": marked(
                name
            )
            for name in differences()
            if name.startswith("forgetting at equal loss")
        },
        papers="LoRA learns less and forgets less, on code and mathematics, and where both have learned equally much "
        "both lie on about one curve (Biderman et al., section 4.3); low ranks forget more at equal loss (Shuttleworth "
        "et al., first version); what is forgotten follows the KL on the new task, whatever the method (RL's Razor).",
        control="exactly equal weights and the same passages of prose. At equal loss, what full fine-tuning has "
        "forgotten is read off between two of its rates, linearly in the logarithm.",
        rank_64_can_forget_more="with a scale or a rate beyond its best (s = 4, or 0.01, on the coarse grid) r = 64 "
        "forgets much more than full fine-tuning at the same loss.",
        what_would_change_it="other kinds of text, longer runs. The papers' models have a thousand times as many "
        "parameters.",
    )


def _undo() -> str:
    short = {"r = 64, α/√r": "r = 64, α/√r", "r = 8": "r = 8"}
    return shown(
        {
            f"{arm} × 0.85, {x}": f"{label}: {on}"
            for arm, label in short.items()
            for x, on in (("loss", "task"), ("prose_loss", "prose"))
        },
        sides=("as trained", "scaled by 0.85"),
        limit=15,
    ) + numbers(
        {
            f"{arm} × 0.85, {x.replace('_', ' ')}": mapped(f"{arm} × 0.85, {x}")
            for arm in MAP_RATES
            for x in ("loss", "prose_loss")
        }
        | {
            f"{arm}: of what was forgotten, comes back": f"{interval(flipped(given_back(arm), 100), 0, ' %')}"
            for arm in MAP_RATES
        },
        control="the same trained weights; full fine-tuning's change is scaled in the same way. The embedding was "
        "frozen; lora_alpha does not scale a trained embedding.",
        a_lower_rate="whether scaling is better than training at a lower rate is not settled: the answer depends on "
        "how full fine-tuning is read off between two rates.",
        what_would_change_it="other tasks and kinds of text. A task whose answers are right or wrong may lose more.",
    )


def _capacity() -> str:
    capacity, facts = load_results("capacity"), select(load_results("plateau"), rank=1, facts=512)
    stored = {
        seen: max(row["bits_a_number"] for row in select(facts, exposures=seen))
        for seen in sorted({row["exposures"] for row in facts})
    }
    recall = {r: mean(at_best_rate(select(capacity, rank=r), "loss"), "recall").mean for r in (1, 4, 16, 0)}
    picked = Counter(Random(0).choices(range(4096), k=512))  # answers as these are drawn
    answers = sum(n * (12 - math.log2(512 / n)) for n in picked.values()) / facts[0]["trainable"]
    bits = ", ".join(f"{found:.2f}" for found in stored.values())
    names = {1: "r = 1", 4: "r = 4", 16: "r = 16", 0: "full"}
    row = ["recalled of 512 facts", *(f"{share:.0%}" for share in recall.values())]
    return html_table(["after 400 steps", *(names[r] for r in recall)], [row], "rates") + numbers(
        {
            "bits a parameter at r = 1, one seed": f"{bits} after {', '.join(map(str, stored))} times",
            "bits that the list of the answers is worth": f"{answers:.2f} a parameter",
        },
        papers="LoRA falls behind when its capacity is used up (LoRA Without Regret); a whole model stores about 2 "
        "bits a parameter (Allen-Zhu and Li).",
        control="the same facts; rates tuned at r = 4 and for full fine-tuning; the adapter is in the MLP of the last "
        "block.",
        what_would_change_it="ranks above 1 trained until recall stops rising, answers from a short list, a rate "
        "tuned for each rank, more seeds.",
    )


def _data() -> str:
    amounts = load_results("amounts")

    def at_amount(examples: int) -> list[Row]:
        return best_runs(select(amounts, rank=8, examples=examples))

    def passes(examples: int) -> str:
        rows = at_amount(examples)
        best = mean(rows, "best_step").mean * rows[0]["batch_size"] / examples
        return f"{best:.1f} of {rows[0]['steps'] * rows[0]['batch_size'] / examples:.1f} with {examples:,}"

    lines = {f"rank 8 against full, {n} examples": f"r = 8, {n:,} examples" for n in AMOUNTS}
    return shown(lines, sides=("full better", "LoRA better")) + numbers(
        {label: name for name, label in lines.items()}
        | {"gap at 4,000 minus gap at 1,000": marked("4,000 examples against 1,000", 3) + ", grows"},
        papers="level on small and medium data, behind once the data exceed its capacity (LoRA Without Regret).",
        loss="at r = 8: " + ", ".join(f"{mean(at_amount(n), 'validation_loss').mean:.2f} with {n:,}" for n in AMOUNTS),
        passes="at r = 8, until the best loss: " + ", ".join(map(passes, AMOUNTS)) + ".",
        control="a learning rate tuned for each amount, on a grid of factor 3, and the same held-out references. Full "
        "fine-tuning trains the embedding too.",
        what_would_change_it="equal parts, a finer grid, more data than 4,000 examples.",
    )


def _reward() -> str:
    reward = load_results("reinforce")

    def after(measure: str) -> str:
        ways = {"before": ("start", 0), "r = 1": ("lora", 1), "r = 8": ("lora", 8), "full": ("full", 0)}
        rows = {name: best_runs(select(reward, rank=r, method=m), "missed") for name, (m, r) in ways.items()}
        return ", ".join(f"{name} {mean(found, measure).mean:.0%}" for name, found in rows.items())

    names = {"rank 1": "r = 1", "rank 8": "r = 8", "full": "full"}
    return shown(
        {f"{name} against the start, reward": f"{label} and the start, sampled" for name, label in names.items()}
        | {"rank 1 against full, reward": "r = 1 and full", "rank 8 against full, reward": "r = 8 and full"},
        sides=("second better", "first better"),
        unit=" points",
    ) + numbers(
        {"slots missed, sampled": after("missed"), "slots missed, greedy": after("greedy_missed")}
        | {
            f"{label} and the start, greedy": f"{name} against the start, reward, greedy"
            for name, label in names.items()
        },
        papers="rank 1 learns as well as full fine-tuning (LoRA Without Regret).",
        control="the same start and layers, and a learning rate tuned for each; 200 texts about other restaurants.",
        what_would_change_it="more steps and seeds; tasks that need reasoning, as in the paper.",
    )


def _relatives() -> str:
    tasks = {"restaurants": ("LoRA+ 16", "α = 512", "PiSSA", "DoRA"), "E2E": ("LoRA+ 4", "LoRA+ 16", "PiSSA")}
    lines = {f"{name}, {task}": f"{name}, {task}" for task, names in tasks.items() for name in names}
    few = {name: label for name, label in lines.items() if name != "LoRA+ 4, E2E"}
    return shown(few, sides=("plain LoRA better", "better"), limit=20) + numbers(
        {label: name for name, label in lines.items()}
        | {"LoRA+ 16 minus α = 512, restaurants": "LoRA+ 16 against α = 512, restaurants"}
        | {f"{name}, E2E, prose": f"{name}, E2E, forgetting" for name in tasks["E2E"]},
        papers="each method learns more than LoRA in its own paper.",
        control="the same number of trained parameters, each at its own best rate of a grid of 3, six seeds on "
        "restaurants (100 steps), three on E2E (120 steps). With Adam, a larger α at the same rate acts nearly like a "
        "larger rate for B.",
        what_would_change_it="a finer grid, longer runs, larger models.",
    )


def _quantised() -> str:
    lines = {"int8, restaurants": "int8", "NF4, restaurants": "NF4"}
    return shown(lines, sides=("float32 better", "better"), limit=10) + numbers(
        {f"{label} minus float32": name for name, label in lines.items()},
        papers="4 bits reach the scores of 16 bits (QLoRA).",
        control="the same adapter, rate and seeds on the same base in float32.",
        what_would_change_it="longer runs, or a model whose weights have outliers, as those of large models do.",
    )


def _directions() -> str:
    directions = load_results("directions")
    lora = select(directions, method="lora", rank=64, alpha=32, learning_rate=0.003)
    full = select(directions, method="full", learning_rate=0.0003)
    beyond_random = Difference.of([row["amplification_4"] - row["random_4"] for row in lora])
    phi = {
        of: mean(select(load_results("similarity"), of=of, rank1=8, rank2=64), "phi_1_64").mean
        for of in ("A", "random")
    }
    size = mean(lora, "relative_size").mean / mean(full, "relative_size").mean
    chance = {f"intruders beyond chance: {n}": marked(f"intruders above chance, {n}") for n in intruders_above_chance()}
    own = {
        "intruders: r = 8 minus full, equal loss": "intruders, same loss, rank 8",
        "intruders: r = 64 minus full, equal loss": "intruders, same loss, rank 64",
        "the same, one size: r = 8": "intruders, same loss and size, rank 8",
        "the same, one size: r = 64": "intruders, same loss and size, rank 64",
    }
    return numbers(
        own
        | chance
        | {
            "size of the change at r = 64 over full's": f"{size:.1f} times",
            "amplification at r = 64 minus that of random directions": interval(beyond_random, 1),
            "φ: the strongest of r = 8 within r = 64": f"{phi['A']:.2f}, random matrices {phi['random']:.2f}",
        },
        papers="LoRA brings intruders, full fine-tuning hardly any, and many intruders go with much forgetting "
        "(Shuttleworth et al.). The change amplifies 21.5 times at r = 4 in GPT-3, and φ is above 0.5 (LoRA, section "
        "7).",
        control="equal loss, equal size, and the same change in random directions. Full fine-tuning at equal loss has "
        "no intruder in any layer, which is a floor. φ has no interval, because its six pairs share three seeds.",
        what_would_change_it="longer runs and larger models, which the papers counted in.",
    )


def _style() -> str:
    style = load_results("style")
    plays = {r: mean(at_best_rate(select(style, rank=r, method="lora")), "validation_loss") for r in (1, 8, 64)}
    plays[0] = mean(at_best_rate(select(style, method="full")), "validation_loss")
    (unread,) = select(style, method="base")
    gained = {rank: unread["validation_loss"] - found.mean for rank, found in plays.items()}
    lines = {"rank 64 against full, plays": "r = 64 and full, as usual", "rank 64 against 8, plays": "r = 64 and r = 8"}
    return shown(lines, sides=("second better", "first better"), limit=10) + numbers(
        {label: name for name, label in lines.items()}
        | {
            "loss ± standard deviation": f"{plays[1]} at r = 1, {plays[8]} at r = 8, {plays[64]} at r = 64, "
            f"{plays[0]} in full, {unread['validation_loss']:.2f} before",
            "r = 1's gain as a share of full's": f"{gained[1] / gained[0]:.0%}",
        },
        control="as on E2E, on a coarse grid.",
        what_would_change_it="equal parts and a finer grid: here full fine-tuning trains the embedding, LoRA does not.",
    )


def _spam() -> str:
    sms = [row for row in load_results("sms") if row["seed"] < 100]
    ways: dict[str, dict[str, Any]] = {
        "word counts": {"method": "tf-idf, cut"},
        "full": {"method": "full"},
        "LoRA": {"method": "lora", "rank": 16},
    }
    right = {name: mean(select(sms, max_length=160, **way), "test_accuracy").mean for name, way in ways.items()}
    return shown(
        {
            "full against word counts": "full and word counts",
            "LoRA against word counts": "LoRA r = 16 and word counts",
            "LoRA against full, spam": "LoRA r = 16 and full",
        },
        sides=("second better", "first better"),
        limit=4,
        unit=" points",
    ) + numbers(
        {"messages right": ", ".join(f"{name} {share:.1%}" for name, share in right.items())},
        control="ten splits, the same tokens, a margin of one point. Word counts: TF-IDF with a logistic regression.",
        what_would_change_it="larger test sets: one message of 300 is a third of a point.",
    )


def _cost() -> str:
    cpu, size = (
        {r: mean(at_best_rate(sweep(r)), name).mean for r in (0, 8, 64)} for name in ("train_cpu_seconds", "file_bytes")
    )
    return numbers(
        {
            "processor time of a step of gpt2-mini, r = 8 over full": f"{cpu[8] / cpu[0]:.2f}",
            "processor time of a step of gpt2-mini, r = 64 over full": f"{cpu[64] / cpu[0]:.2f}",
            "file, full over r = 8": f"{size[0] / size[8]:.0f} times",
        },
        papers="the products fall to two thirds at best (our count, Chapter 2); a file 10,000 times smaller for GPT-3 "
        "(LoRA).",
        control="one machine, the same batches.",
        what_would_change_it="a model that is large compared with its batch.",
    )


SECTIONS: dict[str, Callable[[], str]] = {
    "as-good": _as_good, "new-words": _new_words, "which-rate": _which_rate, "which-rank": _which_rank,
    "which-scale": _which_scale, "which-layers": _which_layers, "forgetting": _forgetting, "undo": _undo,
    "capacity": _capacity, "data": _data, "reward": _reward, "relatives": _relatives, "quantised": _quantised,
    "directions": _directions, "style": _style, "spam": _spam, "cost": _cost,
}  # fmt: skip


# What most readers can do without, folded at the end of the page: heading and text.
MORE = {
    "capacity": (
        "A higher rank memorises more",
        "Random facts can only be memorised. After 400 steps a higher rank recalls more of them. Trained five times "
        "as long, rank 1 stores about as many bits as the bare list of answers is worth.",
    ),
    "data": (
        "More data does not close the gap",
        "From 50 to 4,000 examples of E2E rank 8 stays behind full fine-tuning of everything, and is further behind at "
        "4,000 than at 1,000. From 1,000 to 4,000 the number of passes falls from three to one, so more data and fewer "
        "passes cannot be told apart.",
    ),
    "reward": (
        "Reinforcement learning: open",
        "gpt2-mini samples four texts for each meaning; the reward is the share of facts that a text states correctly. "
        "Sampled texts then miss fewer slots with rank 1 and with full fine-tuning. Which of them learns most, three "
        "seeds do not settle.",
    ),
    "relatives": (
        "Relatives: a larger α does it too",
        "LoRA+ has a lower loss than plain LoRA on the restaurants, and so has plain LoRA with 16 times the α; which "
        "of the two is better is not settled. PiSSA's gain is not settled, and DoRA is slightly behind. On E2E no "
        "gain is settled, and LoRA+ and PiSSA forget far more at their best rates.",
    ),
    "directions": (
        "Its change is larger; more is open",
        "<em>Intruders</em> are new directions among a weight's ten strongest. At equal loss LoRA brings more of them "
        "than full fine-tuning. Its change is also larger, and a large change in random directions brings intruders "
        "too. Whether LoRA's are more than by chance is not settled at rank 8, and at equal size they are slightly "
        "more.",
    ),
    "style": (
        "Plain text: smaller gaps",
        "Shakespeare's plays are plain English, so there is less to learn. Rank 1 already has most of full "
        "fine-tuning's gain.",
    ),
    "spam": (
        "Spam: open",
        "Neither full fine-tuning nor LoRA is seen to be ahead of word counts. Ten splits do not settle whether they "
        "are within a point.",
    ),
    "cost": (
        "Smaller files, slightly faster steps",
        "File, gradients and optimizer state shrink with the number of trained parameters. The matrix products fall by "
        "a third at most. A whole step of GPT-2 124M takes 0.53 of full fine-tuning's time without dropout and 0.63 "
        'with it (<a href="benchmarks.html">Benchmarks</a>); for gpt2-mini the gain is smaller.',
    ),
}


def more() -> Any:
    """The folded findings. A link to one of them opens it, since its anchor is inside."""
    return displayed(
        "".join(
            f'<details class="more"><summary>{title}</summary><p id="{name}">{text}</p>{SECTIONS[name]()}</details>'
            for name, (title, text) in MORE.items()
        )
    )


# --- the claims -----------------------------------------------------------------------------------


def _within(found: Difference, low: float, high: float) -> bool:
    """Whether all of an interval lies between two numbers."""
    return low < found.low and found.high < high


def claims() -> dict[str, bool]:
    """What the page says in words, each with whether the rows say it."""
    said = {name: comparison.verdict() for name, comparison in COMPARISONS.items()}
    on_map = {name.removeprefix("map, "): both for name, both in compared_runs().items() if name.startswith("map, ")}
    near = {name.removeprefix(f"{ON_E2E}, "): both for name, both in compared_runs().items() if ON_E2E in name}
    verdict = {name: both.difference.verdict(0.02 * both.of) for name, both in (on_map | near).items()}
    behind_full = {arm: on_map[f"{arm}, loss"].percent for arm in MAP_RATES if arm != "full"}
    new = nw.contrasts()
    level = {
        arm: near[f"{arm}, loss"].difference.verdict(0.02 * near[f"{arm}, loss"].of)
        for arm in ("r = 8", "r = 64, α/√r")
    }
    orders = [f"same layers, {how}, SmolLM2" for how in ("rank 8", "rank 64", "α/√r")]
    return {
        "linear layers: behind full by 0.5 to 3.5 % (α/√r) and 6.5 to 9 % (r = 8)": _within(
            behind_full["r = 64, α/√r"], 0.5, 3.5
        )
        and _within(behind_full["r = 8"], 6.5, 9),
        "with the embedding: r = 8 and r = 64 are behind full by 0.4 to 2.6 %": all(
            _within(on_map[f"embedding, {arm}, loss"].percent, 0.4, 2.6) for arm in ("r = 8", "r = 64")
        ),
        "SmolLM2: level in loss on E2E, behind on orders": set(level.values()) == {"level"}
        and {said[name] for name in orders} == {"more"},
        "new words: the embedding gains more than 2 % at every share, and more nats at each step": all(
            new[f"{nw.PART}, p = {share:g}"].percent.high < -2 for share in nw.shares()
        )
        and all(found.verdict() == "more" for found in nw.growth().values()),
        "LoRA's best rate is above full fine-tuning's at ranks 8 and 64": all(
            rate_ratio(sweep(rank), sweep(0)).low > 1 for rank in (8, 64)
        ),
        "rank 8 is better than 1; 64 is 3 to 4.5 % better than 8 on all references": said["rank 8 against 1"] == "less"
        and _within(flipped(on_map["rank 64 against 8, loss"].percent, -1), 3, 4.5),
        "at equal loss r = 64 with α/√r forgets less at its best rate, r = 8 more": [
            verdict[f"{arm}, prose_loss at equal loss"] for arm in ("r = 64, α/√r", "r = 8")
        ]
        == ["less", "more"],
        "SmolLM2: both forget more, each at its best rate": all(
            verdict[f"{arm}, prose_forgotten"] == "more" for arm in level
        ),
        "scaled by 0.85, each method loses 0.5 to 2 % on the task; a fifth to a third of the prose comes back": all(
            _within(on_map[f"{arm} × 0.85, loss"].percent, 0.5, 2) and _within(given_back(arm), 1 / 5, 1 / 3)
            for arm in MAP_RATES
        ),
        "attention alone is worse than all layers, and the MLP is not settled": (
            said["attention against all"],
            said["MLP against all"],
        )
        == ("more", "not settled"),
        "the gap to full fine-tuning is larger with 4,000 examples than with 1,000": differences()[
            "4,000 examples against 1,000"
        ].verdict()
        == "more",
        "rank 1 against full fine-tuning after a reward, and LoRA against word counts, are not settled": {
            said["rank 1 against full, reward"],
            said["LoRA against word counts"],
        }
        == {"not settled"},
    }


def study() -> dict[str, str]:
    """How the rule behaves on these rows: the spread over seeds, and how many intervals survive."""
    rows = load_results("seeds")
    sides = [by_seed(select(rows, arm=arm), "loss") for arm in ("r = 8", "full")]
    paired = Difference.of([sides[0][seed] - sides[1][seed] for seed in sides[0]])
    differ = [name for name, found in differences().items() if found.verdict() in ("more", "less")]
    return {
        "r = 8 minus full, nats": f"{interval(paired, 3)}, {paired.runs} seeds",
        "intervals of the page": str(len(differences())),
        "on one side of zero": str(len(differ)),
        "that survive Benjamini and Hochberg": str(len(surviving())),
    }

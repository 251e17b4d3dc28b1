"""Chapter 7's map of ranks and learning rates, and its table of runs, from their rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from lora_book.findings.stats import Row, at_best_rate, mean, means, paired, select
from lora_book.findings.verdicts import RELATIVE
from lora_book.show.figures import BASE, CYCLE, LORA, draw_lines
from lora_book.show.knobs import Panels
from lora_book.show.live import Live, Square, run_map
from lora_book.show.tables import table


def name_of(rank: int) -> str:
    """A rank as a row's name; 0 is full fine-tuning, which trains the embedding, too."""
    return f"rank {rank}" if rank else "full*"


def rank_map(rows: Iterable[Row], ranks: Sequence[int], caption: str) -> Live:
    """Held-out loss by rank and learning rate, and the curves of each square; it starts at the middle LoRA rank's best.

    Raises ValueError for a rank without runs.
    """
    rows = list(rows)
    if lacking := [rank for rank in ranks if not select(rows, rank=rank)]:
        raise ValueError(f"no runs of rank {lacking}: expected some of {sorted({row['rank'] for row in rows})}")
    squares, best = {}, {}
    for rank in ranks:
        found = select(rows, rank=rank)
        best[rank] = at_best_rate(found)[0]
        for rate, loss in means(found, "learning_rate", "validation_loss").items():
            said = (
                f"{name_of(rank)}: {best[rank]['trainable']:,} numbers trained; at {rate:g} held-out loss {loss}; "
                f"best at {best[rank]['learning_rate']:g}"
            )
            curve = mean_curve(select(found, learning_rate=rate))
            squares[name_of(rank), f"{rate:g}"] = Square(loss.mean, said, curve)
    start = 8 if 8 in ranks else ranks[len(ranks) // 2]
    return run_map(
        [name_of(rank) for rank in ranks],
        [f"{rate:g}" for rate in sorted({row["learning_rate"] for row in rows if row["rank"] in ranks})],
        squares,
        start=(name_of(start), f"{best[start]['learning_rate']:g}"),
        names=("rank", "learning rate", "held-out loss", "training loss"),
        axis=(1.5, 9, 2, 4, 6, 8),
        steps=(5, 10),
        most=2.8,
        apart=name_of(0) if 0 in ranks else None,
        caption=caption,
    )


def mean_curve(rows: Iterable[Row]) -> list[float]:
    """Training loss, ten steps a point, mean over these runs."""
    curves = [[float(x) for x in str(row["curve"]).split()] for row in rows]
    return [float(x) for x in torch.tensor(curves).mean(0)]


def compared(runs: Mapping[str, Sequence[Row]], to: Sequence[Row]) -> Any:
    """A table of what each line of runs learned and forgot, and its held-out loss minus that of the runs `to`."""
    lines = []
    for name, rows in runs.items():
        held_out, prose = (mean(rows, measure) for measure in ("validation_loss", "prose_loss"))
        same = [row["method"] for row in rows] == ["base"] * len(rows) or list(rows) == list(to)
        apart = "" if same else paired(rows, to, "validation_loss")
        lines.append((name, f"{rows[0]['trainable']:,}", held_out, prose, apart))
    return table(("", "trained", "held-out", "on prose", "minus rank 8"), lines)


def verdict(ours: Iterable[Row], theirs: Sequence[Row], measure: str = "validation_loss") -> str:
    """The rule's word for ours less theirs, with a margin of 2 %: more, less, level or not settled."""
    return paired(ours, theirs, measure).verdict(RELATIVE * mean(theirs, measure).mean)


def rule_panels(ranks: Sequence[int], rules: Mapping[str, Sequence[Sequence[Row]]]) -> Panels:
    """What was learned and forgotten by rank, a line for each rule of the scale: its runs at each of `ranks`."""
    panels = []
    for title, measure in (("held-out loss", "validation_loss"), ("on prose", "prose_loss")):
        found = {name: [mean(rows, measure) for rows in by_rank] for name, by_rank in rules.items()}
        ends = ", ".join(f"{name} {row[-1].mean:.2f}" for name, row in found.items())
        drawn = draw_lines(
            ranks,
            {name: [m.mean for m in row] for name, row in found.items()},
            (LORA, CYCLE[3], BASE),
            spread={name: [m.spread for m in row] for name, row in found.items()},
            style="o-", log="x", size=(3.5, 3), xlabel="rank r", title=title,
        )  # fmt: skip
        panels.append((drawn, f"{title} by rank; at rank {ranks[-1]}: {ends}"))
    return Panels(*panels)

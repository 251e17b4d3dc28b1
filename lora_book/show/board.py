"""The findings as a reader meets them: a board of answers in blocks, and forest plots of the intervals behind them.

Both are plain HTML with positions in percent and the page's own text colour: they fit any width and both themes, and
every number in them is text. An interval lies on the side that is better; the ends of its axis name the two sides.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from IPython.display import HTML

from lora_book.findings.forgetting import Compared
from lora_book.findings.stats import Difference, mean
from lora_book.findings.verdicts import COMPARISONS, MARGIN, RELATIVE, Comparison

MORE_IS_BETTER = ("bleu", "values_told", "test_accuracy", "exact", "fields")
NAMES = {
    "validation_loss": "loss on the task", "test_loss": "test loss", "bleu": "BLEU", "values_told": "values right",
    "prose_loss": "loss on prose", "exact": "right answers", "missed": "slots missed",
    "greedy_missed": "slots missed, greedy", "test_accuracy": "right", "intruders": "intruders",
    "intruders_equal_size": "intruders, one size",
}  # fmt: skip
MARK = "\u00a0*"  # of a difference that survives the correction for many
WORDS = 14  # of an answer on the board, at most

STYLE = """<style>
.found { list-style: none; margin: 0.6rem 0; padding: 0; container-type: inline-size; font-size: 0.95em; }
.found > li { display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 6fr) 5rem; gap: 0.1rem 0.9rem;
  align-items: center; margin: 0; padding: 0.1rem 0;
  border-top: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
.found.board > li { padding: 0.2rem 0; }
.found .all { grid-column: 1 / -1; }
.found.board > li:first-child { border-top: 2px solid currentColor; }
.found.board a { font-weight: 600; }
.found.board b { font-size: 1.15em; }
.found.board .whisker { min-width: 0; }
.found .ends { display: flex; justify-content: space-between; gap: 1rem; font-size: 0.85em; line-height: 1.2; }
.found > li > * { margin: 0; }
.found .axis { display: flex; justify-content: space-between; font-size: 0.85em; opacity: 0.85; }
.found .track { position: relative; display: block; height: 1.3rem; overflow: hidden; }
.found .track > * { position: absolute; box-sizing: border-box; }
.found .zero { left: 50%; top: 0; bottom: 0; border-left: 1px solid currentColor; opacity: 0.6; }
.found .margin { top: 0; bottom: 0; background: currentColor; opacity: 0.13; }
.found .range { top: calc(50% - 1.5px); height: 3px; border-radius: 2px; background: currentColor; }
.found .point { top: calc(50% - 5px); width: 10px; height: 10px; margin-left: -5px; border-radius: 50%;
  background: currentColor; }
.found .paper { border-radius: 0; transform: rotate(45deg) scale(0.8); background: transparent;
  border: 2px solid currentColor; }
@container (max-width: 34rem) {
  .found > li, .found.board > li { grid-template-columns: minmax(0, 1fr) auto; }
  .found > li > .wide { grid-column: 1 / -1; }
}
.more > summary { font-weight: 600; padding: 0.35rem 0; }
.behind { overflow-x: auto; font-size: 0.95em; margin: 0.3rem 0; }
.rates { font-size: 0.95em; }
.pst-scrollable-table-container .rates :is(th, td) { white-space: nowrap; }
.rates :is(th, td) { padding: 0.1rem 0.9rem 0.1rem 0; font-weight: inherit; text-align: left; }
html[data-theme="dark"] .bd-content div.cell_output div.text_html:has(.found, .behind, .rates) {
  background: none; color: inherit; padding: 0; }
.behind table { border-collapse: collapse; font-size: 0.95em; margin: 0.5rem 0; }
.behind th, .behind td { padding: 0.2rem 0.7rem 0.2rem 0; text-align: left; vertical-align: top; font-weight: inherit; }
.behind thead th { font-weight: 600; }
</style>"""


class Line(NamedTuple):
    """One interval, in percent of the second side's value (or in points, for shares); positive is better."""

    label: str
    found: Difference
    margin: float
    said: str  # the interval and its verdict, in words
    paper: float | None = None

    @property
    def verdict(self) -> str:
        """Better, worse, level or not settled."""
        return {"more": "better", "less": "worse"}.get(word := self.found.verdict(self.margin), word)


def line(label: str, name: str, survive: Iterable[str] = (), paper: float | None = None) -> Line:
    """One of the book's comparisons as a line: an asterisk marks those among `survive`."""
    comparison = COMPARISONS[name]
    unit = 100 / (1 if comparison.measure in MARGIN else mean(comparison.sides()[1], comparison.measure).mean)
    if comparison.measure.startswith("intruders"):
        unit = 1
    found = flipped(comparison.difference(), unit * (1 if comparison.measure in MORE_IS_BETTER else -1))
    drawn = Line(label, found, abs(unit) * comparison.margin(), "", paper)
    return drawn._replace(said=f"{interval(found, 1)}, {drawn.verdict}{MARK if name in survive else ''}")


def percent_line(label: str, both: Compared, survives: bool = False) -> Line:
    """A comparison of two losses as a line, in percent: positive is a lower loss."""
    drawn = Line(label, flipped(both.percent, -1), 100 * RELATIVE, "")
    mark = MARK if survives else ""
    return drawn._replace(said=f"{interval(drawn.found, 1)}, {drawn.verdict}{mark}")


def judged(comparison: Comparison) -> str:
    """A comparison's difference as it was measured, and its verdict in the measure's own words."""
    small = comparison.measure in MARGIN or mean(comparison.sides()[1], comparison.measure).mean < 0.2
    digits = 1 if comparison.measure == "bleu" else 3 if small else 2
    more, less = ("better", "worse") if comparison.measure in MORE_IS_BETTER else ("worse", "better")
    if comparison.measure == "prose_loss":
        more, less = "forgets more", "forgets less"
    elif comparison.measure.startswith("intruders"):
        more, less = "more", "fewer"
    word = comparison.verdict()
    return f"{interval(comparison.difference(), digits)}, {({'more': more, 'less': less}).get(word, word)}"


def flipped(found: Difference, by: float) -> Difference:
    """The same difference times `by`, which may be negative."""
    low, high = sorted((found.low * by, found.high * by))
    return Difference(found.mean * by, low, high, found.runs)


def interval(found: Difference, digits: int = 2, unit: str = "") -> str:
    """A difference with its interval, or with the number of its seeds where there is none."""
    shown, low, high = (f"{x:+.{digits}f}".replace("-", "−") + unit for x in found[:3])
    floor = f" ({found.runs} seed{'s' if found.runs > 1 else ''}, no interval)"
    return shown + (f" [{low}, {high}]" if math.isfinite(found.low) else floor)


def track(drawn: Line, limit: float) -> str:
    """The line's interval on an axis from -`limit` to `limit`."""

    def at(x: float, inset: float = 0) -> float:
        return round(min(100 - inset, max(inset, 50 + 50 * x / limit)), 1)

    low, high = (at(x) for x in drawn.found[1:3])
    left, right = at(-drawn.margin), at(drawn.margin)
    parts = [f'<span class="margin" style="left:{left}%;width:{right - left:.1f}%"></span><span class="zero"></span>']
    if math.isfinite(drawn.found.low):
        parts.append(f'<span class="range" style="left:{low}%;width:{max(high - low, 0.5):.1f}%"></span>')
    points = {"point": drawn.found.mean, "point paper": drawn.paper}
    parts += [f'<span class="{kind}" style="left:{at(x, 3)}%"></span>' for kind, x in points.items() if x is not None]
    return f'<span class="track wide" aria-hidden="true">{"".join(parts)}</span>'


def axis(sides: tuple[str, str], limit: float, unit: str) -> str:
    """What the ends of the axis mean."""
    worse, better = map(html.escape, sides)
    return f'<span class="axis wide"><span>← {worse}</span><span>± {limit:g}{unit}</span><span>{better} →</span></span>'


def forest(
    lines: Sequence[Line],
    sides: tuple[str, str] = ("full better", "LoRA better"),
    limit: float = 30,
    unit: str = " %",
    digits: int = 1,
) -> str:
    """A forest plot: a line each, with its label, its interval drawn, and its mean; a pointer shows the interval."""
    rows = [f'<li><span class="wide"></span>{axis(sides, limit, unit)}<span class="wide"></span></li>']
    for drawn in lines:
        label, said = html.escape(drawn.label), html.escape(drawn.said)
        mean = f"{drawn.found.mean:+.{digits}f}".replace("-", "−") + (MARK if drawn.said.endswith(MARK) else "")
        rows.append(
            f'<li title="{said}"><span class="wide">{label}</span>{track(drawn, limit)}<span>{mean}</span></li>'
        )
    return f'{STYLE}<ul class="found">{"".join(rows)}</ul>'


class Answer(NamedTuple):
    """A row of the board: an answer as a sentence, the one interval that it rests on, and the names of its sides."""

    anchor: str
    said: str
    drawn: Line | None = None
    sides: tuple[str, str] = ("", "")


class Block(NamedTuple):
    """Answers of one kind, which share an axis from -`limit` to `limit`."""

    title: str
    answers: Sequence[Answer]
    limit: float
    unit: str = " %"


def board(blocks: Sequence[Block]) -> str:
    """The board of all answers. Raises ValueError for an answer of more than `WORDS` words."""
    return STYLE + "".join(map(_block, blocks))


def _block(block: Block) -> str:
    """One block: its title and axis, then a row for each answer."""
    ticks = "".join(
        f"<span>{x:+g}{block.unit}</span>" if x else "<span>0</span>" for x in (-block.limit, 0, block.limit)
    )
    ticks = ticks.replace("-", "−")
    drawn = any(answer.drawn for answer in block.answers)
    axis = f'<span class="axis wide" aria-hidden="true">{ticks}</span><span class="wide"></span>' if drawn else ""
    rows = [f'<li><b class="wide">{html.escape(block.title)}</b>{axis}</li>']
    for row in block.answers:
        if len(row.said.split()) > WORDS:
            raise ValueError(f"{row.said!r}: an answer has at most {WORDS} words")
        whisker = ""
        if row.drawn:
            ends = "".join(f"<span>{html.escape(side)}</span>" for side in row.sides)
            number = f"{row.drawn.found.mean:+.1f}".replace("-", "−") + block.unit
            whisker = (
                f'<span class="wide whisker">{track(row.drawn, block.limit)}<span class="ends">{ends}</span></span>'
                f"<span>{number}{'' if row.drawn.verdict != 'not settled' else ' ?'}</span>"
            )
        kind = "wide" if whisker else "all"
        rows.append(f'<li><a class="{kind}" href="#{row.anchor}">{html.escape(row.said)}</a>{whisker}</li>')
    return f'<ul class="found board">{"".join(rows)}</ul>'


def behind(contrasts: Mapping[str, str | Comparison], notes: Mapping[str, str], survive: Iterable[str] = ()) -> str:
    """What stands behind an answer, folded: its contrasts as a table, and notes such as the control.

    A contrast is the name of a comparison, or a text with what was found.
    """
    rows = []
    for label, name in contrasts.items():
        measure, said = "", str(name)
        if name in COMPARISONS:
            comparison = COMPARISONS[str(name)]
            measure = NAMES[comparison.measure]
            said = judged(comparison) + (MARK if name in survive else "")
        rows.append((html.escape(label), measure, html.escape(said)))
    table = html_table(("first minus second", "measure", "found"), rows) if rows else ""
    told = "".join(f"<p><strong>{html.escape(name)}:</strong> {html.escape(text)}</p>" for name, text in notes.items())
    summary = "<summary>Numbers, control, what would change it</summary>"
    return f'<details class="behind">{summary}{table}{told}</details>'


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table of this CSS class. Heads are text, cells are HTML, and the first cell of a row is its head."""
    top = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    opened = f'<table class="{kind}">' if kind else "<table>"
    return f"{opened}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def displayed(text: str) -> Any:
    """HTML, as a cell shows it."""
    made: Any = HTML  # IPython declares no types
    return made(text)

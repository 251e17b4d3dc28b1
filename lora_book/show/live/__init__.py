"""Pictures that the reader changes by hand: the product A·B, and LoRA's layers in a GPT-2.

A knob (`book.knobs`) turns through pictures that were drawn in advance. What is here is computed as it is touched,
by a plain script that lies beside this file and is put into the cell's output: it asks for no network and no kernel.
Where no script runs, the start stands as a table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from html import escape
from typing import Any, NamedTuple

from torch import nn

from lora_book.show.knobs import HERE, Axis, script, style
from lora_lib.gpt2.model import GPT2Model
from lora_lib.layers.adapted import linear_shape

HINT = "To change it, run this cell (Shift + Enter), or allow this page to run scripts."
HEAD = "out_head"
KINDS = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", HEAD]  # of GPT-2's linear layers
ENTRY = range(-3, 4)  # what an entry of A or B may be
Matrix = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Live:
    """A picture with its script. As the last line of a cell, it shows itself."""

    html: str
    words: str

    def __repr__(self) -> str:
        return self.words

    def _repr_html_(self) -> str:
        return self.html


def _figure(
    kind: str, words: str, caption: str, readout: str, frame: str, axes: Iterable[tuple[Axis, int]], **data: Any
) -> Live:
    """The picture as HTML. Its parts have the knob's names, so that a page gives both one look."""
    key = f"live-{kind}"
    controls = "\n".join(axis.html(key, at) for axis, at in axes)
    data["controls"] = f'<div class="knob-controls">\n{controls}\n</div>'
    packed = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    return Live(
        f"""<figure class="knob live {key}" id="{key}" data-lm-suppress-shortcuts="true">
<style>{style(key)}{(HERE / "live.css").read_text(encoding="utf8")}</style>
<p class="knob-still knob-hint">{HINT}</p>
<div class="knob-line"><p aria-live="polite">{escape(readout)}</p></div>
<div class="knob-frames live-picture">
{frame}
</div>
<figcaption>{escape(caption)}</figcaption>
<script type="application/json" class="knob-data">{packed}</script>
<script>
{script(kind)}
</script>
</figure>""",
        words,
    )


def product(A: Matrix, B: Matrix, W: Matrix, *, rank: int, alpha: int, alphas: Sequence[int], caption: str) -> Live:
    """W + s·A·B in cells: the reader changes entries of A and B, the rank and α, and sees which sums change.

    A is (d × R), B is (R × k) and W is (d × k), of whole numbers; those of A and B lie between -3 and 3. Of A's columns
    and B's rows the first `rank` are in use at the start, and the reader may use up to R.
    Raises ValueError for shapes that do not fit, and for other entries.
    """
    d, most, k = len(A), len(B), len(W[0])
    for name, M, rows, columns in (("A", A, d, most), ("B", B, most, k), ("W", W, d, k)):
        if len(M) != rows or {len(row) for row in M} != {columns}:
            raise ValueError(f"{name} has rows of {[len(row) for row in M]} numbers: expected {rows} rows of {columns}")
        if name != "W" and not {number for row in M for number in row} <= set(ENTRY):
            raise ValueError(f"{name} holds {M}: expected whole numbers from {ENTRY[0]} to {ENTRY[-1]}")
    ranks = list(range(1, most + 1))
    if rank not in ranks or alpha not in alphas:
        raise ValueError(f"starts at rank {rank} and α {alpha}: expected one of {ranks} and one of {list(alphas)}")

    s = Fraction(alpha, rank)
    AB = [[sum(A[i][n] * B[n][j] for n in range(rank)) for j in range(k)] for i in range(d)]
    changed = [[w + s * ab for w, ab in zip(*rows)] for rows in zip(W, AB)]
    frame = "\n".join(
        _table(name, M)
        for name, M in (
            (f"A ({d} × {rank})", [row[:rank] for row in A]),
            (f"B ({rank} × {k})", B[:rank]),
            (f"A·B ({d} × {k})", AB),
            (f"W ({d} × {k})", W),
            (f"W' = W + s·A·B, s = {_number(s)}", changed),
        )
    )
    axes = [Axis("rank", "rank r", [str(r) for r in ranks], ranks, True)]
    axes += [Axis("alpha", "α", [str(a) for a in alphas], list(alphas), False)]
    start = [rank - 1, list(alphas).index(alpha)]
    return _figure(
        "product",
        f"W + s·A·B for a W of {d} × {k}, at rank {rank} and α = {alpha}",
        caption,
        f"s = α/r = {_number(s)}",
        frame,
        zip(axes, start),
        A=A, B=B, W=W, alphas=list(alphas), start=start,
    )  # fmt: skip


def injection(
    models: Mapping[str, GPT2Model], *, ranks: Sequence[int], rank: int, chosen: Sequence[str], caption: str
) -> Live:
    """A GPT-2 drawn as its linear layers: the reader chooses which get an adapter, and sees what it costs.

    `models` are shown by their name, the first at the start; on the meta device they weigh nothing. `chosen` are the
    kinds of layer with an adapter at the start, as `KINDS` has them. Counts are those of `get_peft_model`: r·(d + k)
    for each layer, and a share of all parameters, the adapter's own included.
    Raises ValueError for a rank that is not in `ranks` or larger than a layer has, and for other kinds.
    """
    if rank not in ranks or not set(chosen) <= set(KINDS):
        raise ValueError(f"starts at rank {rank} with {list(chosen)}: expected one of {list(ranks)} and of {KINDS}")
    shapes = {name: [linear_shape(layer) for layer in _kinds(model)] for name, model in models.items()}
    if max(ranks) > (least := min(min(shape) for found in shapes.values() for shape in found)):
        raise ValueError(f"a rank of {max(ranks)} is more than the smallest layer has: expected {least} or less")
    described = [
        {
            "name": name,
            "blocks": model.config.n_layer,
            "shapes": shapes[name],
            "embedding": list(model.wte.weight.shape),
            "size": sum(p.numel() for p in model.parameters()),
        }
        for name, model in models.items()
    ]
    names, blocks = list(models), next(iter(models.values())).config.n_layer
    rows = "".join(
        f"<tr><td>{kind}</td><td>{d:,} × {k:,}</td><td>{1 if kind == HEAD else blocks}</td>"
        f"<td>{f'{rank * (d + k):,}' if kind in chosen else 'frozen'}</td></tr>"
        for kind, (d, k) in zip(KINDS, shapes[names[0]])
    )
    head = "<tr><th>layer</th><th>d × k</th><th>how many</th><th>each learns</th></tr>"
    axes = [Axis("rank", "rank r", [f"{r}" for r in ranks], list(ranks), True)]
    axes += [Axis("model", "model", names, names, False)]
    return _figure(
        "injection",
        f"{names[0]} with adapters of rank {rank} on {', '.join(chosen)}",
        caption,
        f"{names[0]}, adapters of rank {rank}",
        f"<table><caption>The linear layers of {names[0]}</caption><thead>{head}</thead><tbody>{rows}</tbody></table>",
        zip(axes, (list(ranks).index(rank), 0)),
        models=described, kinds=KINDS, chosen=list(chosen), ranks=list(ranks), start=[list(ranks).index(rank), 0],
    )  # fmt: skip


def switching(x: Sequence[int], W: Matrix, adapters: Mapping[str, tuple[Matrix, Matrix]], *, caption: str) -> Live:
    """Adapters on one weight: the reader chooses which are in use, and whether they are folded into W.

    x is (d), W is (d × k), and each adapter is a pair of A (d × r) and B (r × k), of whole numbers, with s = 1.
    Raises ValueError for fewer than two adapters, and for shapes that do not fit.
    """
    if len(adapters) < 2:
        raise ValueError(f"there is nothing to switch between with {list(adapters)}: expected two adapters or more")
    d, k = len(x), len(W[0])
    for name, (A, B) in adapters.items():
        if (len(W), len(A), len(A[0]), len(B[0])) != (d, d, len(B), k):
            raise ValueError(
                f"{name}'s A is {len(A)} × {len(A[0])} and its B {len(B)} × {len(B[0])}, beside an x of {d} and a W of "
                f"{len(W)} × {k}: expected A of d × r and B of r × k"
            )
    names = list(adapters)
    choices: list[list[str]] = [[], *([name] for name in names), names]
    labels = ["none", *names, "all" if len(names) > 2 else "both"]
    axes = [Axis("use", "in use", labels, labels, False), Axis("fold", "folded in", ["no", "yes"], [0, 1], False)]
    parts = [("x", [x]), ("W", W)]
    parts += [(f"{name}'s {part}", M) for name in names for part, M in zip("AB", adapters[name])]
    return _figure(
        "switch",
        f"A layer with the adapters {', '.join(names)}",
        caption,
        f"In use: {names[0]}.",
        "\n".join(_table(name, M) for name, M in parts),
        zip(axes, (1, 0)),
        x=[list(x)], W=W, adapters={name: {"A": A, "B": B} for name, (A, B) in adapters.items()},
        choices=choices, start=[1, 0],
    )  # fmt: skip


def action(
    u: float, v: float, strongest: float, weaker: Sequence[float], *, start: tuple[float, float], caption: str
) -> Live:
    """The matrix σ₁·u₁ᵀv₁ + σ₂·u₂ᵀv₂ as an action on a circle: the reader drags the arrow that goes in.

    u and v are the angles of u₁ and v₁ in degrees; u₂ and v₂ stand at a right angle to them. `strongest` is σ₁, and
    `weaker` are the values of σ₂ that the reader may choose. `start` is the angle of x and the σ₂ at first.
    Raises ValueError for a σ₂ that is not in `weaker`, or larger than σ₁.
    """
    angle, second = start
    if second not in weaker or max(weaker) > strongest:
        raise ValueError(
            f"σ₂ starts at {second} beside a σ₁ of {strongest}: expected one of {list(weaker)}, at most σ₁"
        )
    at = list(weaker).index(second)
    turns = [math.radians(degrees) for degrees in (u, u + 90, v, v + 90)]
    u1, u2, v1, v2 = [(math.cos(turn), math.sin(turn)) for turn in turns]
    M = [[strongest * u1[i] * v1[j] + second * u2[i] * v2[j] for j in (0, 1)] for i in (0, 1)]
    rows = "".join(f"<tr>{''.join(f'<td>{x:.2f}</td>' for x in row)}</tr>" for row in M)
    return _figure(
        "ellipse",
        f"A matrix with the singular values {strongest:g} and {second:g}",
        caption,
        f"σ₁ = {strongest:g}, σ₂ = {second:g}",
        f"<table><caption>M, which stretches by {strongest:g} and {second:g}</caption><tbody>{rows}</tbody></table>",
        [(Axis("weaker", "σ₂", [f"{x:g}" for x in weaker], list(weaker), True), at)],
        u=u, v=v, strongest=strongest, weaker=list(weaker), start=[angle, at],
    )  # fmt: skip


def voices(prompt: str, side: int, texts: Mapping[int, tuple[str, str]], *, caption: str) -> Live:
    """What a model writes after `prompt` at each rank of its adapter, beside a weight of (side × side) to scale.

    `texts` has for each rank, from the lowest, the text and a sentence about it. The picture plays once by itself and
    ends at the highest rank. Raises ValueError for fewer than two ranks, and for ranks in another order.
    """
    ranks = list(texts)
    if len(ranks) < 2 or ranks != sorted(ranks):
        raise ValueError(f"the ranks are {ranks}: expected two or more, from the lowest to the highest")
    last = len(ranks) - 1
    written = "".join(
        f'<p class="live-text{" knob-away" * (n < last)}"><b>{escape(prompt)}</b>'
        f'<span class="{"live-tuned" if rank else "live-base"}">{escape(text)}</span></p>'
        for n, (rank, (text, _)) in enumerate(texts.items())
    )
    shown = "-30 -34 232 236"
    return _figure(
        "voices",
        f"What a model writes after {prompt!r} at the ranks {ranks}",
        caption,
        texts[ranks[last]][1],
        f'<svg viewBox="{shown}" role="img" aria-label="A weight of {side} × {side}, a thin A beside it, a thin B on '
        f'top"></svg>\n<div class="live-texts">{written}</div>',
        [(Axis("rank", "rank r", [str(rank) for rank in ranks], ranks, True), last)],
        ranks=ranks, side=side, said=[said for _, said in texts.values()], start=[last],
    )  # fmt: skip


class Square(NamedTuple):
    """One run, or the mean of some: what came out, that in words, and its curve."""

    value: float
    said: str
    curve: Sequence[float]

    def packed(self) -> dict[str, Any]:
        """With as many digits as can be seen."""
        return {"value": round(self.value, 2), "said": self.said, "curve": [round(x, 2) for x in self.curve]}


def run_map(
    rows: Sequence[str],
    columns: Sequence[str],
    squares: Mapping[tuple[str, str], Square],
    *,
    start: tuple[str, str],
    names: tuple[str, str, str, str],
    axis: Sequence[float],
    steps: tuple[int, int],
    most: float,
    apart: str | None = None,
    caption: str,
) -> Live:
    """Runs by two settings as a map: the reader presses a square, and sees the curve of its run.

    `squares` has a run for some of the pairs of a row and a column. `names` say what rows, columns, the values and the
    curves are. `axis` is the lowest and the highest value that a curve is drawn at, then the marks. A curve's first
    value is of step `steps[0]`, and `steps[1]` lie between two. Values from `most` on have the faintest colour. The row
    `apart`, such as full fine-tuning among ranks, has another colour.
    Raises ValueError for a run of no row or column, and for a start without a run.
    """
    if unknown := [key for key in squares if key[0] not in rows or key[1] not in columns]:
        raise ValueError(f"no square for {unknown}: expected rows of {list(rows)} and columns of {list(columns)}")
    if start not in squares:
        raise ValueError(f"starts at {start}, where no run is: expected one of {list(squares)}")
    cells = [[squares.get((row, column)) for column in columns] for row in rows]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in (names[0], *columns))
    body = ""
    for row, line in zip(rows, cells):
        values = "".join(f"<td>{square.value:.2f}</td>" if square else "<td></td>" for square in line)
        body += f'<tr><th scope="row">{escape(row)}</th>{values}</tr>'
    return _figure(
        "map",
        f"{names[2]} by {names[0]} and {names[1]}",
        caption,
        squares[start].said,
        f"<table><caption>{escape(names[2])}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>",
        [],
        rows=list(rows), columns=list(columns), names=list(names), axis=list(axis), steps=list(steps), most=most,
        least=min(square.value for square in squares.values()), apart=list(rows).index(apart) if apart else None,
        start=[list(rows).index(start[0]), list(columns).index(start[1])],
        cells=[[square and square.packed() for square in line] for line in cells],
    )  # fmt: skip


class Scale(NamedTuple):
    """What an axis shows, from where to where, the values that are marked, and whether it is logarithmic."""

    name: str
    low: float
    high: float
    marks: Sequence[float]
    log: bool = False


class Run(NamedTuple):
    """Where training ended: a method, its learning rate, what its change was scaled by, and what was measured.

    `values` has one number for each of the axes to choose from and then the one for the upright axis; they are means
    over so many `seeds`.
    """

    method: str
    rate: float
    scale: float
    values: tuple[float, ...]
    seeds: int


def tradeoff(
    runs: Sequence[Run],
    base: Sequence[float],
    *,
    axes: Sequence[Scale],
    up: Scale,
    start: tuple[str, float],
    apart: str,
    caption: str,
) -> Live:
    """Learning against forgetting: the reader turns the method, its rate and the scale λ of its change.

    `runs` are drawn in the order of their methods; every method and rate has a run with λ = 1. `base` has the base's
    values, as a run has them. The reader chooses one of `axes` for the level axis; `up` is the upright one. `start` is
    the method and the rate at first, with λ = 1. The method `apart`, full fine-tuning, has another colour.
    Raises ValueError for a start without a run, a run without λ = 1, and numbers that do not fit the axes.
    """
    found = {(run.method, run.rate, run.scale): run for run in runs}
    methods = list(dict.fromkeys(run.method for run in runs))
    rates, scales = (sorted({getattr(run, name) for run in runs}) for name in ("rate", "scale"))
    if lacking := [(run.method, run.rate) for run in runs if (run.method, run.rate, 1.0) not in found]:
        raise ValueError(f"{lacking[0]} has no run with λ = 1: expected one for every method and rate")
    if (*start, 1.0) not in found:
        raise ValueError(f"starts at {start}, where no run is: expected one of {[key[:2] for key in found]}")
    if wrong := [values for values in (base, *(run.values for run in runs)) if len(values) != len(axes) + 1]:
        raise ValueError(f"got the values {wrong[0]}: expected one for each of {len(axes)} axes and the upright one")

    def packed(method: str, rate: float) -> list[list[float] | None] | None:
        if (method, rate, 1.0) not in found:
            return None
        line = [found.get((method, rate, scale)) for scale in scales]
        return [run and [*(round(value, 3) for value in run.values), run.seeds] for run in line]

    labels = [f"{rate:g}" for rate in rates], [f"{scale:g}" for scale in scales]
    first = [methods.index(start[0]), rates.index(start[1]), len(scales) - 1, 0]
    turned = [
        Axis("method", "trained", methods, methods, False),
        Axis("rate", "rate", labels[0], rates, True),
        Axis("scale", "λ", labels[1], scales, True),
        Axis("against", "against", [axis.name for axis in axes], list(axes), False),
    ]
    names = ("method", "rate", "λ", *(axis.name for axis in axes), up.name)
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr><td>{escape(run.method)}</td>{''.join(f'<td>{x:g}</td>' for x in (run.rate, run.scale))}"
        f"{''.join(f'<td>{x:.2f}</td>' for x in run.values)}</tr>"
        for run in runs
        if run.scale == 1
    )
    return _figure(
        "tradeoff",
        f"{up.name} against {axes[0].name}, by {', '.join(methods)}",
        caption,
        f"{start[0]} at {start[1]:g}",
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>",
        zip(turned, first),
        methods=methods, rates=labels[0], scales=labels[1], points=[[packed(m, r) for r in rates] for m in methods],
        base=list(base), across=[axis._asdict() for axis in axes], up=up._asdict(), apart=methods.index(apart),
        start=first,
    )  # fmt: skip


def _kinds(model: GPT2Model) -> list[nn.Module]:
    """One layer of each kind: those of the first block, and the head."""
    return [model.get_submodule(kind if kind == HEAD else f"h.0.{kind}") for kind in KINDS]


def _table(caption: str, M: Sequence[Sequence[int | Fraction]]) -> str:
    rows = "".join(f"<tr>{''.join(f'<td>{_number(x)}</td>' for x in row)}</tr>" for row in M)
    return f"<table><caption>{caption}</caption><tbody>{rows}</tbody></table>"


def _number(x: int | Fraction) -> str:
    """With a minus sign and at most two digits behind the point, as the scripts write it."""
    return f"{float(x):.2f}".rstrip("0").rstrip(".").replace("-", "−")

"""Knobs: a picture that changes as the reader turns a value, with a kernel or without one.

`knob` draws every picture in advance, so the same object is a live widget in Jupyter and Colab and a
plain HTML slider in the published book, where no Python runs and nothing is fetched.
"""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Any, NamedTuple

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

MAX_FRAMES = 120  # at about 25 kB a frame, a page stays below 3 MB
# What a knob needs on any page; `:where` leaves the last word to the page's own stylesheet. The frames
# lie on top of one another, so that text below them never moves.
STYLE = """
:where(.knob-axis) { display: flex; flex-wrap: wrap; align-items: center; gap: .25em 1em; margin: .5em 0 }
:where(.knob-track) { flex: 1 1 12em; max-width: 32em }
:where(.knob-track input) { width: 100%; margin: 0 }
:where(.knob-ticks) { display: flex; justify-content: space-between; padding: 0 .5em; font-size: .75em }
:where(.knob-ticks span) { display: flex; justify-content: center; width: 0; white-space: nowrap }
:where(.knob-frames) { display: grid }
:where(.knob-frames > *) { grid-area: 1 / 1; min-width: 0 }
:where(.knob-frames pre) { white-space: pre-wrap; overflow-wrap: anywhere }
.knob-frames > [hidden] { display: block; visibility: hidden }
"""
SCRIPT = """
document.querySelectorAll("#ID").forEach(knob => {
  const show = () => {
    let at = 0;
    for (const axis of knob.querySelectorAll(".knob-axis")) {
      const labels = JSON.parse(axis.dataset.labels);
      const input = axis.querySelector("[type=range], :checked");
      at = at * labels.length + Number(input.value);
      if (input.type === "range") {
        axis.querySelector("output").value = labels[input.value];
        input.setAttribute("aria-valuetext", labels[input.value]);
        input.style.setProperty("--at", input.value / input.max);
      }
    }
    for (const stack of knob.querySelectorAll(".knob-readouts, .knob-frames"))
      [...stack.children].forEach((child, i) => { child.hidden = i !== at; });
  };
  knob.oninput = show;
  knob.querySelector(".knob-controls").hidden = false;
  show();
});
"""


def knob(
    draw: Callable[..., Figure | str | tuple[Figure | str, str]],
    *,
    caption: str,
    alt: str | Callable[..., str] | None = None,
    labels: Mapping[str, str] | None = None,
    start: Mapping[str, Any] | None = None,
    **axes: Iterable[Any] | Mapping[str, Any],
) -> Knob:
    """A slider over what `draw` draws: `knob(draw, rank=[1, 2, 4, 8], caption="The weight at each rank")`.

    One or two axes. A list of numbers becomes a slider; a list of anything else, or a dict of label to
    value, becomes a row of choices. `draw` is called once for every combination, by keyword
    (`draw(rank=8)`), and returns a matplotlib Figure, a string (shown as it is), or a pair of either
    with a short read-out, such as "12,288 numbers instead of 147,456".

    `alt` says in words what the pictures show: a string, to which the setting is added, or a function
    called as `draw` is; without it, the caption serves. `labels` gives an axis a name to show
    (`{"rank": "rank r"}`). `start` is where it begins (`{"rank": 8}`, or a label of a dict; else the first).

    Raises ValueError for no axis or more than two, an axis with fewer than two values, two values with
    one label, an unknown axis or start, or more than 120 combinations; TypeError when `draw` returns
    anything else.
    """
    labels, start = labels or {}, start or {}
    if not 1 <= len(axes) <= 2:
        raise ValueError(f"a knob turns one or two values, got {len(axes)}: {list(axes)}")
    if unknown := [name for name in [*labels, *start] if name not in axes]:
        raise ValueError(f"labels or start names {unknown}: expected one of {list(axes)}")
    turned = [Axis.make(name, values, labels.get(name, name)) for name, values in axes.items()]
    first = [axis.index(start[axis.name]) if axis.name in start else 0 for axis in turned]
    sizes = [len(axis.labels) for axis in turned]
    if math.prod(sizes) > MAX_FRAMES:
        counts = " × ".join(map(str, sizes))
        raise ValueError(f"{counts} values make {math.prod(sizes)} frames, more than {MAX_FRAMES}: pass fewer values")
    frames = []
    for choice in itertools.product(*map(range, sizes)):
        arguments = {axis.name: axis.values[i] for axis, i in zip(turned, choice)}
        setting = ", ".join(f"{axis.title} {axis.labels[i]}" for axis, i in zip(turned, choice))
        words = alt(**arguments) if callable(alt) else f"{alt or caption} ({setting})"
        frames.append(Frame.make(draw(**arguments), words, setting))
    return Knob(caption, turned, first, frames)


@dataclass(frozen=True)
class Axis:
    """One value to turn: its keyword, its name on the page, and its values with their labels."""

    name: str
    title: str
    labels: list[str]
    values: list[Any]
    slides: bool  # a slider; otherwise a row of choices

    @classmethod
    def make(cls, name: str, given: Iterable[Any] | Mapping[str, Any], title: str) -> Axis:
        named = isinstance(given, Mapping)
        values = list(given.values()) if isinstance(given, Mapping) else list(given)
        labels = [str(label) for label in given] if named else [_label(value) for value in values]
        if len(values) < 2:
            raise ValueError(f"{name} needs two values or more to choose from, got {labels}")
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"{name} has more than one value labelled {twice}: pass a dict of label to value")
        return cls(name, title, labels, values, not named and all(_is_number(value) for value in values))

    def index(self, start: Any) -> int:
        if _label(start) not in self.labels:
            raise ValueError(f"{self.name} cannot start at {_label(start)!r}: expected one of {self.labels}")
        return self.labels.index(_label(start))

    def html(self, key: str, at: int) -> str:
        """The control, at its value number `at`: a range input, or one radio button per label."""
        key, title = f"{key}-{self.name}", escape(self.title)
        data = f'class="knob-axis" data-labels="{escape(json.dumps(self.labels, ensure_ascii=False))}"'
        if not self.slides:
            choices = "".join(
                f'<input type="radio" id="{key}-{i}" name="{key}" value="{i}" autocomplete="off"'
                f'{" checked" * (i == at)}><label for="{key}-{i}">{escape(label)}</label>'
                for i, label in enumerate(self.labels)
            )
            return (
                f'<div {data} role="radiogroup" aria-labelledby="{key}"><span class="knob-title" id="{key}">{title}'
                f'</span><span class="knob-choices">{choices}</span></div>'
            )
        value, last = escape(self.labels[at]), len(self.labels) - 1
        step = 1 + sum(len(label) + 2 for label in self.labels) // 50  # as many ticks as a phone has room for
        ticks = "".join(f"<span>{label * (i % step == 0)}</span>" for i, label in enumerate(self.labels))
        return (
            f'<div {data}><label class="knob-title" for="{key}">{title}</label><span class="knob-track">'
            f'<input type="range" id="{key}" min="0" max="{last}" value="{at}" autocomplete="off" '
            f'aria-valuetext="{value}"><span class="knob-ticks" aria-hidden="true">{ticks}</span></span>'
            f'<output for="{key}" aria-live="off">{value}</output></div>'
        )


class Frame(NamedTuple):
    """What the knob shows at one setting, as HTML: a picture or a text, and a read-out."""

    body: str
    readout: str

    @classmethod
    def make(cls, drawn: Any, alt: str, setting: str) -> Frame:
        body, readout = drawn if isinstance(drawn, tuple) and len(drawn) == 2 else (drawn, "")
        if not isinstance(body, (Figure, str)) or not isinstance(readout, str):
            raise TypeError(
                f"draw returned {type(drawn).__name__} for {setting}: expected a matplotlib Figure (end draw "
                "with `return fig`), a string, or a pair of either with a string"
            )
        return cls(f"<pre>{escape(body)}</pre>" if isinstance(body, str) else _img(body, alt), escape(readout))


@dataclass(frozen=True, repr=False)
class Knob:
    """What `knob` returns. As the last line of a cell, it shows itself."""

    caption: str
    axes: list[Axis]
    start: list[int]  # per axis, the index of the value shown first
    frames: list[Frame]  # the last axis turns fastest

    def __repr__(self) -> str:
        return f"Knob({'; '.join(f'{axis.name}: ' + ', '.join(axis.labels) for axis in self.axes)})"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}
        return {"text/plain": repr(self), "text/html": self.html(), "application/vnd.jupyter.widget-view+json": view}

    def _frame(self, choice: Iterable[int]) -> Frame:
        at = 0
        for axis, i in zip(self.axes, choice):
            at = at * len(axis.labels) + i
        return self.frames[at]

    def html(self) -> str:
        """All frames with their controls; needs no kernel, network or other file. Without scripts, the first frame."""
        key = "knob-" + hashlib.sha256(f"{self.caption} {self!r}".encode()).hexdigest()[:8]
        controls = "\n".join(axis.html(key, at) for axis, at in zip(self.axes, self.start))
        first = self._frame(self.start)
        hide = ["" if frame is first else " hidden" for frame in self.frames]
        readouts = "\n".join(f"<span{h}>{frame.readout}</span>" for frame, h in zip(self.frames, hide))
        bodies = "\n".join(f"<div{h}>{frame.body}</div>" for frame, h in zip(self.frames, hide))
        return f"""<figure class="knob" id="{key}">
<style>{STYLE}</style>
<div class="knob-controls" hidden>
{controls}
</div>
<p class="knob-readouts" aria-live="polite">
{readouts}
</p>
<div class="knob-frames">
{bodies}
</div>
<figcaption>{escape(self.caption)}</figcaption>
<script>{SCRIPT.replace("ID", key)}</script>
</figure>"""

    @cached_property
    def widget(self) -> Any:
        """The live view. It holds the current frame alone, so that saved notebooks stay small."""
        import ipywidgets as widgets

        controls = [
            (widgets.SelectionSlider if axis.slides else widgets.ToggleButtons)(
                options=[(label, i) for i, label in enumerate(axis.labels)],
                value=at,
                description=axis.title,
                style={"description_width": "initial"},
            )
            for axis, at in zip(self.axes, self.start)
        ]
        view = widgets.HTML()

        def show(_: Any = None) -> None:
            frame = self._frame(control.value for control in controls)
            view.value = f"<div>{frame.readout}</div>{frame.body}<div>{escape(self.caption)}</div>"

        for control in controls:
            control.observe(show, names="value")
        show()
        return widgets.VBox([*controls, view])


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _label(value: Any) -> str:
    """A value as the reader sees it: 12,288 or 0.1 or c_attn."""
    if not _is_number(value):
        return str(value)
    return f"{value:,}" if isinstance(value, numbers.Integral) else f"{value:g}"


def _img(figure: Figure, alt: str) -> str:
    """A figure as an <img> that carries its own data, at two pixels for each of the page's (100 to an inch)."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=200)
    plt.close(figure)
    picture = Image.open(png).convert("RGB")
    # Lines and text come out smaller with few colours, heat maps and photographs with WebP's lossy mode.
    # Both look like the PNG at a third to a fifteenth of its size; the smaller is kept.
    few, lossy = io.BytesIO(), io.BytesIO()
    picture.quantize(128, dither=Image.Dither.NONE).convert("RGB").save(few, "webp", lossless=True)
    picture.save(lossy, "webp", quality=85)
    data = base64.b64encode(min(few.getvalue(), lossy.getvalue(), key=len)).decode()
    return (
        f'<img src="data:image/webp;base64,{data}" alt="{escape(alt)}" width="{picture.width // 2}" '
        f'height="{picture.height // 2}" decoding="sync" style="max-width: 100%; height: auto">'
    )

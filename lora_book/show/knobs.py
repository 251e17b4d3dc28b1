"""Knobs: a picture that changes as the reader turns a value, with a kernel or without one.

`knob` draws a picture for every value in advance. Where scripts run (the published book, a trusted notebook),
a plain HTML slider turns these pictures; nothing is fetched. Where a kernel runs too, ipywidgets take its place,
and draw any value in between. Where neither runs, the first picture stands with a line that says how to wake it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from lora_book.show.figures import as_image

MAX_FRAMES = 120  # at about 25 kB a frame, a page stays below 3 MB
Choice = str | float  # a label of an axis, or a number between its values
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
HINT = "To turn it, run this cell (Shift + Enter), or allow this page to run scripts."
RIGHT = "background:rgb(0 158 115 / 28%)"  # of marked words; both are seen on a light and on a dark ground
WRONG = "background:rgb(213 94 0 / 28%);text-decoration:line-through"
HERE = Path(__file__).parent / "live"
Drawn: TypeAlias = "Figure | Panels | str | Marked"


def style(key: str) -> str:
    """The styles of a figure with this id that its reader turns."""
    return (HERE / "frames.css").read_text(encoding="utf8").replace("ID", key)


def script(kind: str) -> str:
    """The engine and the script of one kind of picture, in braces: their names meet no others on the page."""
    return "{\n" + "\n".join((HERE / name).read_text(encoding="utf8") for name in ("turned.js", f"{kind}.js")) + "}"


def knob(
    draw: Callable[..., Drawn | tuple[Drawn, str]],
    *,
    caption: str,
    alt: str | Callable[..., str] | None = None,
    labels: Mapping[str, str] | None = None,
    start: Mapping[str, Any] | None = None,
    **axes: Iterable[Any] | Mapping[str, Any],
) -> Knob:
    """A slider over what `draw` draws: `knob(draw, rank=[1, 2, 4, 8], caption="The weight at each rank")`.

    One or two axes. A list of numbers becomes a slider; a list of anything else, a dict of label to value, or a single
    number becomes a row of choices. `draw` is called once for every combination, by keyword
    (`draw(rank=8)`), and returns a matplotlib Figure, `Panels`, a string (shown as it is), a `Marked` text, or a pair
    of one of them with a short read-out, such as "12,288 numbers instead of 147,456".

    With a kernel, a slider takes any value from the smallest to the largest, and `draw` draws it on the spot.
    Where `draw` cannot (it raises at a value halfway between two of the list, since it looks its results up, say),
    the slider keeps to the list; `knob(...).between` names the axes that take any value.

    `alt` says in words what the pictures show: a string, to which the setting is added, or a function
    called as `draw` is; without it, the caption serves. `labels` gives an axis a name to show
    (`{"rank": "rank r"}`). `start` is where it begins (`{"rank": 8}`, or a label of a dict; else the first).

    Raises ValueError for no axis or more than two, an axis without a value, two values with one
    label, an unknown axis or start, or more than 120 combinations; TypeError when `draw` returns
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
    made = Knob(caption, turned, first, draw, alt)
    for choice in itertools.product(*(axis.labels for axis in turned)):
        made.frame(choice)
    return made


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
        if not values:
            raise ValueError(f"{name} has no value to choose from: expected one or more")
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"{name} has more than one value labelled {twice}: pass a dict of label to value")
        slides = not named and len(values) > 1 and all(_is_number(value) for value in values)
        return cls(name, title, labels, values, slides)

    def index(self, start: Any) -> int:
        if _label(start) not in self.labels:
            raise ValueError(f"{self.name} cannot start at {_label(start)!r}: expected one of {self.labels}")
        return self.labels.index(_label(start))

    def value(self, choice: Choice) -> Any:
        """What `draw` is given."""
        return self.values[self.labels.index(choice)] if isinstance(choice, str) else choice

    def nearest(self, number: float) -> Choice:
        """The label of the value that a slider's number stands for, or the number itself."""
        same = (math.isclose(value, number, rel_tol=1e-6, abs_tol=1e-9) for value in self.values)
        return next((label for label, there in zip(self.labels, same) if there), number)

    @property
    def halfway(self) -> float | None:
        """A number between two neighbours of the list; None where there is none, or no slider."""
        if not self.slides:
            return None
        low, high = max(itertools.pairwise(sorted(self.values)), key=lambda pair: pair[1] - pair[0])
        if not self.whole:
            return (low + high) / 2
        return (low + high) // 2 if high - low > 1 else None

    @property
    def whole(self) -> bool:
        return all(isinstance(value, numbers.Integral) for value in self.values)

    def html(self, key: str, at: int) -> str:
        """The control, at its value number `at`: a range input, or one radio button per label."""
        key, title = f"{key}-{self.name}", escape(self.title)
        data = (
            f'class="knob-axis" data-name="{escape(self.name)}" '
            f'data-labels="{escape(json.dumps(self.labels, ensure_ascii=False))}"'
        )
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

    def widget(self, at: int, between: bool) -> Any:
        """The same control as an ipywidget, whose `value` is a label or a number.

        Numbers that do not follow each other by one step are a row of choices, for a slider over them would
        tell a screen reader their index.
        """
        import ipywidgets as widgets

        look = {"description": self.title, "style": {"description_width": "initial"}}
        steps = [b - a for a, b in itertools.pairwise(self.values)] if self.slides else []
        if not steps or not (between or (steps[0] > 0 and all(math.isclose(step, steps[0]) for step in steps))):
            return widgets.ToggleButtons(options=self.labels, value=self.labels[at], **look)
        low, high, look["value"] = min(self.values), max(self.values), self.values[at]
        if self.whole:
            return widgets.IntSlider(min=low, max=high, step=1 if between else steps[0], **look)
        if between and low > 0 and high / low >= 100:
            ends = {"min": math.log10(low), "max": math.log10(high), "step": 0.01}
            return widgets.FloatLogSlider(readout_format=".2g", **ends, **look)
        step = 10 ** math.floor(math.log10((high - low) / 50)) if between else steps[0]
        return widgets.FloatSlider(min=low, max=high, step=step, readout_format=".3g", **look)


@dataclass(frozen=True)
class Marked:
    """A text for a knob in which some words are marked as right (True) or wrong (False), in colour and by a line."""

    text: str
    words: Mapping[str, bool]

    @property
    def html(self) -> str:
        body = escape(self.text)
        for words, right in self.words.items():
            look = RIGHT if right else WRONG
            body = body.replace(escape(words), f'<mark style="color:inherit;{look}">{escape(words)}</mark>')
        return f"<pre>{body}</pre>"


class Panels:
    """Figures side by side where there is room for all, and in one column on a phone, with letters of one size.

    Each comes with what it shows in words: `Panels((left, "a rising line"), (right, "a flat line"))`. Draw each about
    3.4 inches wide. The last line of a cell shows it, and `draw` of a knob may return it.
    """

    def __init__(self, *figures: tuple[Figure, str]) -> None:
        drawn = "".join(f'<div style="flex: 1 1 18rem">{as_image(figure, words)}</div>' for figure, words in figures)
        self.html = f'<div class="panels" style="display: flex; flex-wrap: wrap; gap: 0 1rem">{drawn}</div>'

    def _repr_html_(self) -> str:
        return self.html


class Frame(NamedTuple):
    """What the knob shows at one setting: a picture or a text as HTML, and a read-out as plain text."""

    body: str
    readout: str

    @classmethod
    def make(cls, drawn: Any, alt: str, setting: str) -> Frame:
        body, readout = drawn if isinstance(drawn, tuple) and len(drawn) == 2 else (drawn, "")
        if isinstance(body, (Marked, Panels)):
            return cls(body.html, readout)
        if not isinstance(body, (Figure, str)) or not isinstance(readout, str):
            raise TypeError(
                f"draw returned {type(drawn).__name__} for {setting}: expected a matplotlib Figure (end draw "
                "with `return fig`), a string, or a pair of either with a string"
            )
        return cls(f"<pre>{escape(body)}</pre>" if isinstance(body, str) else as_image(body, alt), readout)


@dataclass(frozen=True, repr=False)
class Knob:
    """What `knob` returns. As the last line of a cell, it shows itself."""

    caption: str
    axes: list[Axis]
    start: list[int]  # per axis, the index of the value shown first
    draw: Callable[..., Any]
    alt: str | Callable[..., str] | None
    frames: dict[tuple[Choice, ...], Frame] = field(default_factory=dict)  # as they are drawn, the list's first

    def __repr__(self) -> str:
        return f"Knob({'; '.join(f'{axis.name}: ' + ', '.join(axis.labels) for axis in self.axes)})"

    def _ipython_display_(self) -> None:
        """Show the HTML, and the widget as an output of its own.

        A notebook that is opened without a kernel has lost its widgets, and shows what other outputs there are.
        """
        from IPython.display import publish_display_data

        publish_display_data({"text/plain": repr(self), "text/html": self.html()})  # type: ignore[no-untyped-call]
        view = {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}
        publish_display_data({"text/plain": "", "text/html": "", WIDGET_VIEW: view})  # type: ignore[no-untyped-call]

    @property
    def _first(self) -> tuple[str, ...]:
        return tuple(axis.labels[at] for axis, at in zip(self.axes, self.start))

    def frame(self, choices: tuple[Choice, ...]) -> Frame:
        """What stands at these labels, or numbers, of the axes; drawn when it is first asked for."""
        if choices not in self.frames:
            arguments = {axis.name: axis.value(choice) for axis, choice in zip(self.axes, choices)}
            setting = self._setting(choices)
            words = self.alt(**arguments) if callable(self.alt) else f"{self.alt or self.caption} ({setting})"
            before = plt.get_fignums()
            try:
                self.frames[choices] = Frame.make(self.draw(**arguments), words, setting)
            finally:  # a notebook would show a figure that a failed draw leaves open
                for number in set(plt.get_fignums()) - set(before):
                    plt.close(number)
        return self.frames[choices]

    def _setting(self, choices: Iterable[Choice]) -> str:
        """In words, such as: rank r 8, targets all-linear."""
        labels = (choice if isinstance(choice, str) else _label(choice) for choice in choices)
        return ", ".join(f"{axis.title} {label}" for axis, label in zip(self.axes, labels))

    @cached_property
    def between(self) -> list[str]:
        """The axes whose slider takes any value with a kernel: those where `draw` draws one that is not in its list."""
        names = []
        for n, axis in enumerate(self.axes):
            if axis.halfway is None:
                continue
            try:
                self.frame((*self._first[:n], axis.halfway, *self._first[n + 1 :]))
            except Exception:  # whatever draw does with a value that it does not know
                continue
            names.append(axis.name)
        return names

    @property
    def key(self) -> str:
        """The knob's id in a page: the same every time, and not that of another knob."""
        return "knob-" + hashlib.sha256(f"{self.caption} {self!r}".encode()).hexdigest()[:8]

    def html(self) -> str:
        """The knob without a kernel; needs no network or other file.

        Viewers that strip scripts, styles and attributes are left with the first frame and the hint. All else is
        data, which the script brings to life.
        """
        key, first = self.key, self.frame(self._first)
        frames = [self.frames[choices] for choices in itertools.product(*(axis.labels for axis in self.axes))]
        titles = " and ".join(axis.title for axis in self.axes if axis.name in self.between)
        controls = "\n".join(axis.html(key, at) for axis, at in zip(self.axes, self.start))
        long = " knob-long" * any(len(axis.title) > 9 for axis in self.axes)
        data = {
            "controls": f'<div class="knob-controls{long}">\n{controls}\n</div>',
            "start": self.start,
            "bodies": ["" if frame is first else frame.body for frame in frames],
            "readouts": [frame.readout for frame in frames],
            "any": titles and f"Run this cell (Shift + Enter) to set {titles} to any value in between.",
        }
        packed = json.dumps(data, ensure_ascii=False, indent=0).replace("<", "\\u003c")
        setting = escape(self._setting(self._first))
        return f"""<figure class="knob knob-drawn" id="{key}">
<style>{style(key)}</style>
<p class="knob-still"><b>{setting}</b> <span class="knob-hint">{HINT}</span></p>
<div class="knob-line"><p aria-live="polite">{escape(first.readout)}</p></div>
<div class="knob-frames">
<div>{first.body}</div>
</div>
<figcaption>{escape(self.caption)}</figcaption>
<script type="application/json" class="knob-data">{packed}</script>
<script>
{script("knob")}
</script>
</figure>"""

    @cached_property
    def widget(self) -> Any:
        """The live view, for a kernel. It holds the current frame alone, so that saved notebooks stay small."""
        import ipywidgets as widgets

        controls = [axis.widget(at, axis.name in self.between) for axis, at in zip(self.axes, self.start)]
        readout, body = widgets.HTML(), widgets.HTML()

        def show(_: Any = None) -> None:
            turned = zip(self.axes, (control.value for control in controls))
            choices = tuple(value if isinstance(value, str) else axis.nearest(value) for axis, value in turned)
            try:
                frame = self.frame(choices)
            except Exception as error:  # the kernel shows no traceback of what a widget calls
                message = f"draw raised {type(error).__name__} at {self._setting(choices)}: {error}"
                frame = Frame(f"<pre>{escape(message)}</pre>", "")
            readout.value, body.value = escape(frame.readout), frame.body

        for control in controls:
            control.observe(show, names="value")
        show()
        for said in (readout, body) if self.frame(self._first).body.startswith("<pre") else (readout,):
            said.add_class("knob-said")
        start, back = [control.value for control in controls], widgets.Button(description="Back to the start")

        def to_start(_: Any) -> None:
            for control, value in zip(controls, start):
                control.value = value

        back.on_click(to_start)
        live = widgets.VBox([*controls, readout, body, widgets.HTML(escape(self.caption)), back])
        live.add_class("knob-live")
        live.add_class(f"live-{self.key}")
        return live


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _label(value: Any) -> str:
    """A value as the reader sees it: 12,288 or 0.1 or c_attn."""
    if not _is_number(value):
        return str(value)
    return f"{value:,}" if isinstance(value, numbers.Integral) else f"{value:g}"

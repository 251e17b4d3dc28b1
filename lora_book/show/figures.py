"""One look for every figure of the book, and the drawings that more than one chapter needs.

Colours have fixed meanings: grey is the frozen base, blue is LoRA, orange is full fine-tuning, ink is what was measured
on held-out data, and green marks what is right. They are Okabe and Ito's (https://jfly.uni-koeln.de/color/), which
readers with any colour vision tell apart.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import torch
from cycler import cycler
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from PIL import Image

if TYPE_CHECKING:
    from lora_lib.training.loop import History

BASE, LORA, FULL, ACCENT = "#767b84", "#0072b2", "#d55e00", "#009e73"
INK, PAPER, FAINT = "#1f2430", "#ffffff", "#d5d9e0"
CYCLE = [LORA, FULL, ACCENT, "#cc79a7", "#56b4e9", "#e69f00", BASE]
MATRIX_CMAP = "RdBu_r"  # blue below zero, white at zero, red above

STYLE: dict[str, Any] = {
    "figure.figsize": (7.0, 3.2),  # the width of the page's column at 100 pixels an inch
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": "none",
    "axes.prop_cycle": cycler(color=CYCLE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": BASE,
    "axes.labelcolor": INK,
    "axes.labelpad": 8,  # on a phone the letters grow
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "font.size": 11,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.markersize": 5,
    "image.cmap": MATRIX_CMAP,
    "image.interpolation": "none",  # one square for each entry, at any size
}
AS_SVG: dict[str, Any] = {"svg.fonttype": "none", "svg.hashsalt": "book", "image.composite_image": False}
SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
NUMBER = re.compile(r"-?\d+\.\d+")
SIZE = re.compile(r"font-size: ?([\d.]+)px")
NUMBERS = {"d", "x", "y", "width", "height", "transform", "points", "style", "clip-path"}  # attributes that hold some
RAISED = str.maketrans("0123456789+−n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ")
REFERENCE = re.compile(r"url\(#([\w-]+)\)")


def use_book_style() -> None:
    """Give every figure drawn from here on the book's look; a notebook shows them as SVG.

    A notebook also says more about a name that is missing, see `name_is_missing`.
    """
    plt.rcdefaults()
    plt.rcParams.update(STYLE)
    from IPython import get_ipython

    if shell := get_ipython():
        plt.switch_backend(plt.get_backend())  # now, for it sets its own formats
        formats = shell.display_formatter.formatters
        for kind in formats:
            formats[kind].pop(Figure, None)
        formats["image/svg+xml"].for_type(Figure, figure_svg)
        shell.set_custom_exc((NameError,), name_is_missing)


def name_is_missing(shell: Any, kind: type[NameError], error: NameError, trace: Any, tb_offset: Any = None) -> None:
    """Show a NameError with what a reader who left out a cell, or whose cell above stopped, should do."""
    if kind is NameError:  # not a function's local variable
        said = f"{error}. If a cell above makes it, that cell was left out or stopped at an error: run it first."
        error.args = (said,)
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)


def figure_svg(figure: Figure) -> str:
    """A figure as SVG: the same every time, its text as text, with no other file, on white.

    Its ground has the class `paper`, so that a page can leave it out. Numbers have two digits behind the point, and
    the ids that are needed begin with a hash of the picture, since a page holds many.
    """
    drawn = io.StringIO()
    with plt.rc_context(AS_SVG):
        figure.savefig(drawn, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = drawn.getvalue()
    root = ElementTree.fromstring(text)
    root.attrib.update({"font-family": "DejaVu Sans, Verdana, sans-serif", "stroke-linejoin": "round"})
    root.attrib.pop("version")
    for style in root.findall(f"./{SVG}defs[{SVG}style]"):
        root.remove(style)
    if (ground := root.find(f".//{SVG}g[@id='figure_1']/{SVG}g[@id='patch_1']/{SVG}path")) is not None:
        ground.set("class", "paper")
    used = set(REFERENCE.findall(text)) | {name[1:] for e in root.iter() if (name := e.get(LINK, "")).startswith("#")}
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    names = {name: f"f{digest}{n}" for n, name in enumerate(sorted(used))}
    for element in list(root.iter()):
        if element.tag == f"{SVG}text" and len(element):
            _plain(element)
        _shorten(element, names)
    _unwrap(root)
    for side in ("width", "height"):  # in points, 72 to an inch; the page has 100 pixels
        root.set(side, f"{float(root.attrib[side].removesuffix('pt')) / 0.72:.0f}")
    ElementTree.register_namespace("", SVG[1:-1])
    return ElementTree.tostring(root, encoding="unicode")


def _shorten(element: ElementTree.Element, names: dict[str, str]) -> None:
    """Leave out what matplotlib writes and nobody needs."""
    has = element.attrib
    name, link = has.pop("id", ""), has.pop(LINK, "")
    if name in names:
        has["id"] = names[name]
    if link:
        has["href"] = f"#{names[link[1:]]}" if link.startswith("#") else _smaller(link)
    if has.get("transform", "").startswith("rotate(-0 "):
        del has["transform"]
    if "style" in has:
        parts = [part.strip() for part in has["style"].split(";")]
        kept = [part for part in parts if not part.startswith("font-family") or "monospace" in part]
        has["style"] = ";".join(re.sub("font-family:.*", "font-family:monospace", part) for part in kept)
    digits = 5 if element.tag == f"{SVG}image" else 2  # of a matrix that says how large an entry is drawn
    for key in NUMBERS & has.keys():
        value = REFERENCE.sub(lambda match: f"url(#{names[match[1]]})", has[key])
        value = NUMBER.sub(lambda match: f"{round(float(match[0]), digits):g}", value)
        has[key] = " ".join(value.split()).replace(": ", ":")
    element.text, element.tail = (part if part and part.strip() else None for part in (element.text, element.tail))


def _plain(text: ElementTree.Element) -> None:
    """A formula such as the 10⁻³ of an axis, drawn sign by sign, as one line of text."""
    signs = [(SIZE.search(sign.get("style", "")), sign) for sign in text]
    sizes = [float(found[1]) if found else 10.0 for found, _ in signs]
    raised = [
        size < max(sizes) and float(sign.get("y", 0)) < float(text[0].get("y", 0))
        for size, (_, sign) in zip(sizes, signs)
    ]
    words = "".join((sign.text or "").translate(RAISED if up else {}) for up, (_, sign) in zip(raised, signs))
    text.attrib.update({"x": text[0].get("x", "0"), "y": text[0].get("y", "0"), "style": text[0].get("style", "")})
    text[:] = []
    text.text = words


def _unwrap(parent: ElementTree.Element) -> None:
    """Put what stands in groups that say nothing into their parent."""
    for place in range(len(parent) - 1, -1, -1):
        child = parent[place]
        _unwrap(child)
        if (child.tag == f"{SVG}g" and not child.attrib) or (child.tag == f"{SVG}defs" and not len(child)):
            parent[place : place + 1] = list(child)


def _smaller(link: str) -> str:
    """A PNG in a link as WebP, where that has fewer bytes: lossy for many colours, exact for a few entries."""
    png = base64.b64decode(link.partition(",")[2])
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    exact, lossy = io.BytesIO(), io.BytesIO()
    picture.save(exact, "webp", lossless=True)
    if picture.width * picture.height > 4096:
        picture.save(lossy, "webp", quality=88)
    kind, data = min((("webp", exact), ("webp", lossy), ("png", io.BytesIO(png))), key=lambda k: _size(k[1]))
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def _size(data: io.BytesIO) -> float:
    return len(data.getvalue()) or float("inf")


def show_matrix(ax: Axes, W: Any, title: str, vmax: float | None = None) -> AxesImage:
    """Draw a matrix (tensor, array or lists of numbers, 2-D) as colours: red above zero, blue below, white at zero.

    `vmax` is the value of the strongest colour (the largest size of an entry, when not given): pass one
    `vmax` to several calls to make their colours comparable. Up to 64 entries are also written out.
    Raises ValueError when W is not 2-D.
    """
    values = torch.as_tensor(W).detach().float().cpu().numpy()
    if values.ndim != 2:
        raise ValueError(f"show_matrix draws a matrix, got shape {values.shape}")
    vmax = vmax or float(np.abs(values).max()) or 1.0
    image = ax.imshow(values, cmap=MATRIX_CMAP, vmin=-vmax, vmax=vmax)
    ax.set_title(title)
    ax.set(xticks=[], yticks=[], xlabel=f"{values.shape[0]:,} × {values.shape[1]:,}")
    ax.grid(False)
    ax.spines[:].set_visible(False)
    if values.size <= 64:
        for (i, j), v in np.ndenumerate(values):
            color = PAPER if abs(v) > 0.6 * vmax else INK
            ax.text(j, i, f"{v:.2g}", ha="center", va="center", fontsize=8, color=color)
    return image


def draw_history(history: History) -> Figure:
    """Draw a training's loss at each step, its mean over the last twentieth, and the validation losses.

    Raises ValueError when nothing has been trained yet.
    """
    if not history.loss:
        raise ValueError("this history holds no step yet: train first, then plot")
    loss = np.array(history.loss)
    window = max(1, len(loss) // 20)
    mean = [loss[max(0, i - window + 1) : i + 1].mean() for i in range(len(loss))]
    fig = Figure()  # not through pyplot, as in _canvas
    ax = fig.subplots()
    steps = np.arange(1, len(loss) + 1)
    ax.plot(steps, loss, color=FAINT, linewidth=1, label="each step")
    ax.plot(steps, mean, color=LORA, label=f"mean of {window}")
    if history.validation:
        ax.plot(*zip(*history.validation), "o-", color=INK, label="validation")
    ax.set(xlabel="step", ylabel="loss (nats per token)")
    ax.legend()
    return fig


def shades(count: int) -> list[Any]:
    """So many blues from light to dark, for adapters of growing rank."""
    return [plt.get_cmap("Blues")(0.25 + 0.7 * n / count) for n in range(1, count + 1)]


def draw_lines(
    x: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    colors: Iterable[Any] = CYCLE,
    *,
    style: str = "-",
    spread: Mapping[str, Sequence[float]] | None = None,
    log: str = "",
    size: tuple[float, float] = (7, 3),
    **labels: Any,
) -> Figure:
    """Lines over one x, each named at its right end in its own colour, so that no legend is needed.

    `spread` has bars for some of the lines. `log` names the axes, of "x" and "y", that are logarithmic; on such an x
    the ticks are the values of x if they are few. `labels` go to matplotlib's `Axes.set`, such as xlabel and title.
    Raises ValueError when there is no line, or one that is not as long as x.
    """
    if wrong := [name for name, y in lines.items() if len(y) != len(x)] or not lines:
        raise ValueError(f"expected one line or more, each with {len(x)} values as x has; these differ: {wrong}")
    fig = Figure(figsize=size)  # not through pyplot, as in _canvas
    ax = fig.subplots()
    drawn = list(zip(lines.items(), colors))
    for (name, y), color in drawn:
        ax.errorbar(x, y, (spread or {}).get(name), fmt=style, color=color, capsize=4)
    for axis in log:
        ax.set(**{f"{axis}scale": "log"})
    if "x" in log and len(x) <= 10:
        ax.set_xticks(x, [f"{value:g}" for value in x])
    ax.minorticks_off()
    ax.set(**labels)
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())  # now, for the names stand by them
    to_axes = ax.transData + ax.transAxes.inverted()
    ends = {name: float(to_axes.transform((x[-1], y[-1]))[1]) for (name, y), _ in drawn}
    for ((name, y), color), place in zip(drawn, apart(list(ends.values()), 0.36 / size[1])):
        ax.annotate(
            name, (x[-1], y[-1]), (to_axes.transform((x[-1], y[-1]))[0] + 0.02, place),
            textcoords="axes fraction", va="center", color=color, annotation_clip=False,
        )  # fmt: skip
    return fig


def apart(places: Sequence[float], gap: float) -> list[float]:
    """The same heights, those closer than `gap` moved apart around their middle, in the same order."""
    order = sorted(range(len(places)), key=lambda n: places[n])
    groups: list[list[int]] = []

    def middle(group: list[int]) -> float:
        return sum(places[n] for n in group) / len(group)

    for n in order:
        groups.append([n])
        while len(groups) > 1 and (
            middle(groups[-1]) - middle(groups[-2]) < gap * (len(groups[-1]) + len(groups[-2])) / 2
        ):
            groups[-2:] = [groups[-2] + groups[-1]]
    found = list(places)
    for group in groups:
        for i, n in enumerate(group):
            found[n] = middle(group) + gap * (i - (len(group) - 1) / 2) if len(group) > 1 else places[n]
    return found


def as_image(figure: Figure, alt: str) -> str:
    """A figure as an <img> that carries its own data: an SVG, which a page of the book draws in its own colours."""
    svg = figure_svg(figure)
    plt.close(figure)
    data = base64.b64encode(svg.encode()).decode()
    width, height = (round(inches * 100) for inches in figure.get_size_inches())
    return (
        f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(alt)}" width="{width}" height="{height}" '
        f'decoding="sync" style="max-width: 100%; height: auto">'
    )


def matrix_product_picture(d: int, k: int, r: int) -> Figure:
    """W' = W + s·A·B as rectangles drawn to scale: W (d × k) is frozen, A (d × r) and B (r × k) are trained.

    A side thinner than 0.01 inch is drawn as that, so that rank 1 can be seen at all. Up to r = k/4,
    nothing but A and B moves from one rank to another.
    """
    width, signs = 7.0, {"=": 0.4, "+  s ·": 0.85, "·": 0.3}  # inches, as all lengths here
    room = max(r, k // 4)
    unit = min((width - 0.4 - sum(signs.values())) / (3 * k + room), 3.0 / d)
    height, y = d * unit + 1.25, d * unit / 2 + 0.75
    fig, ax = _canvas(width, height)
    x = (width - sum(signs.values()) - (3 * k + room) * unit) / 2
    for name, rows, columns, note, face, ink in (
        ("W′", d, k, f"{d:,} × {k:,}\n{d * k:,}\nin use", "#dfeaf3", INK),
        ("=", 0, 0, "", "", INK),
        ("W", d, k, f"{d:,} × {k:,}\n{d * k:,}\nfrozen", "#e6e8ec", INK),
        ("+  s ·", 0, 0, "", "", INK),
        ("A", d, r, f"{d:,} × {r:,}\n{d * r:,}\ntrained", LORA, PAPER),
        ("·", 0, 0, "", "", INK),
        ("B", r, k, f"{r:,} × {k:,}\n{r * k:,}\ntrained", LORA, PAPER),
    ):
        slot = signs[name] if name in signs else room * unit if name == "A" else k * unit
        middle, x = x + slot / 2, x + slot
        if name in signs:
            ax.text(middle, y, name, ha="center", va="center", fontsize=17)
            continue
        h, w = max(rows * unit, 0.01), max(columns * unit, 0.01)
        ax.add_patch(Rectangle((middle - w / 2, y - h / 2), w, h, facecolor=face, linewidth=0))
        fits = min(h, w) > 0.35
        ax.text(middle, y if fits else y + h / 2 + 0.08, name, ha="center", va="center" if fits else "bottom",
                fontsize=18, style="italic", color=ink if fits else face)  # fmt: skip
        ax.text(middle, y - h / 2 - 0.1, note, ha="center", va="top", linespacing=1.45)
    return fig


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure whose coordinates are inches."""
    fig = Figure(figsize=(width, height))  # not through pyplot: a notebook would show it twice
    fig.set_layout_engine("none")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.set_axis_off()
    return fig, ax

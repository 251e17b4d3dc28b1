"""One look for every figure of the book, and the drawings that more than one chapter needs.

Colours have fixed meanings: grey is the frozen base, blue is LoRA, orange is full fine-tuning. They are
Okabe and Ito's (https://jfly.uni-koeln.de/color/), which readers with any colour vision tell apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from cycler import cycler
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

if TYPE_CHECKING:
    from lora_lib.training.loop import History

BASE, LORA, FULL, ACCENT = "#767b84", "#0072b2", "#d55e00", "#009e73"
INK, PAPER, FAINT = "#1f2430", "#ffffff", "#d5d9e0"
CYCLE = [LORA, FULL, ACCENT, "#cc79a7", "#56b4e9", "#e69f00", BASE]
MATRIX_CMAP = "RdBu_r"  # blue below zero, white at zero, red above

STYLE: dict[str, Any] = {
    "figure.figsize": (7.0, 3.2),  # the width of the page's column at 100 pixels an inch
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.prop_cycle": cycler(color=CYCLE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": BASE,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "font.size": 10,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.markersize": 5,
    "image.cmap": MATRIX_CMAP,
}


def use_book_style() -> None:
    """Give every figure drawn from here on the book's look; in a notebook, at twice the screen's resolution."""
    plt.rcdefaults()
    plt.rcParams.update(STYLE)
    from IPython import get_ipython

    if shell := get_ipython():
        from matplotlib_inline.config import InlineBackend

        inline: Any = InlineBackend.instance(parent=shell)
        inline.shell = shell
        inline.print_figure_kwargs = {"bbox_inches": None}  # as wide as asked for, so that figures line up
        inline.figure_formats = {"retina"}


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
        ax.plot(*zip(*history.validation), "o-", color=ACCENT, label="validation")
    ax.set(xlabel="step", ylabel="loss (nats per token)")
    ax.legend()
    return fig


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
        ("W′", d, k, f"d × k\n{d:,} × {k:,}\n{d * k:,} in use", "#dfeaf3", INK),
        ("=", 0, 0, "", "", INK),
        ("W", d, k, f"d × k\n{d:,} × {k:,}\n{d * k:,} frozen", "#e6e8ec", INK),
        ("+  s ·", 0, 0, "", "", INK),
        ("A", d, r, f"d × r\n{d:,} × {r:,}\n{d * r:,} trained", LORA, PAPER),
        ("·", 0, 0, "", "", INK),
        ("B", r, k, f"r × k\n{r:,} × {k:,}\n{r * k:,} trained", LORA, PAPER),
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

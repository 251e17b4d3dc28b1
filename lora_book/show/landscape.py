"""Chapter 1's picture: a lake at dusk, as a matrix of brightness."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from lora_book.measure import low_rank_factors
from lora_book.show.knobs import Knob, knob

COLOURS = ["#0b1026", "#27285c", "#6b3a78", "#c9596a", "#f3a25f", "#fff1c9"]
DUSK = LinearSegmentedColormap.from_list("dusk", COLOURS)
SHORE = 0.66
RIDGES = [(0.40, 0.10, 0.45), (0.52, 0.07, 0.28), (0.60, 0.035, 0.12)]


def landscape(rows: int, columns: int) -> Tensor:
    """A lake at dusk: a (rows × columns) matrix of brightness, 0 to 1."""
    y, x = torch.meshgrid(torch.linspace(0, 1, rows), torch.linspace(0, 1, columns), indexing="ij")
    # the lake mirrors what is above
    mirrored = 2 * SHORE - y - 0.012 * torch.sin(160 * y**2)
    up = torch.where(y < SHORE, y, mirrored)
    # how far each place is from the middle of the sun
    sun = torch.hypot(1.33 * (x - 0.68), up - 0.3)
    light = 0.45 + 0.35 * up / SHORE + 0.25 * torch.exp(-12 * sun**2)
    light = torch.where(sun < 0.085, 1.0, light)
    for far, (height, rough, shade) in enumerate(RIDGES):
        waves = (rough / n * torch.sin(n * (5 + 2 * far) * x + 4 * n * far + n) for n in (1, 2, 3, 5, 9))
        light = torch.where(up > height + torch.stack(list(waves)).sum(0), shade, light)
    return light * torch.where(y < SHORE, 1.0, 0.8)


def show_picture(ax: Axes, brightness: Tensor, title: str) -> None:
    """The matrix in the colours of dusk."""
    ax.imshow(brightness.numpy(), cmap=DUSK, vmin=0, vmax=1)
    ax.set(title=title, xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)


def two_thin_matrices(picture: Tensor, ranks: Sequence[int]) -> Knob:
    """A knob: the picture beside the best product of a (d × r) and an (r × k) matrix, for the ranks that it has."""
    d, k = picture.shape

    def draw(r: int) -> tuple[Figure, str]:
        A, B = low_rank_factors(picture, r)
        fig = Figure(figsize=(7, 2.95))
        left, right = fig.subplots(1, 2)
        show_picture(left, picture, "the picture")
        show_picture(right, A @ B, f"A·B with r = {r}")
        stored = A.numel() + B.numel()
        error = (picture - A @ B).norm() / picture.norm().clamp(min=1e-12)  # of a black picture, too
        return fig, f"{stored:,} numbers instead of {d * k:,} ({stored / (d * k):.0%}); off by {error:.1%}"

    return knob(
        draw,
        r=[r for r in ranks if r <= min(d, k)],
        labels={"r": "rank r"},
        caption=f"A picture of {d} × {k} numbers, made from a ({d} × r) and an (r × {k}) matrix.",
        alt="Left, a sunset over mountains and a lake. Right, the same from two thin matrices: blurred bars at rank 1, "
        "mountains at 8, hardly a difference at 32.",
    )

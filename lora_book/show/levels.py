"""The weights of a layer, and the few levels that they are rounded to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from lora_book.measure import quantised
from lora_book.show.figures import BASE, LORA
from lora_book.show.knobs import Knob, knob


def levels_knob(
    W: Tensor, kinds: Mapping[str, Tensor], sizes: Sequence[int], errors: Mapping[tuple[str, int], float]
) -> Knob:
    """A histogram of W's weights, scaled block by block, and the levels: their kind and the block size are turned.

    The name of a kind begins with its bits; `errors` has the error of each kind at each block size.
    """

    def stored(kind: str, block: int) -> float:
        """Bytes of the codes and of a float32 scale for each block."""
        return W.numel() * int(kind[0]) / 8 + W.numel() / block * 4

    def draw(kind: str, block: int) -> tuple[Figure, str]:
        levels, error = kinds[kind], errors[kind, block]
        scaled = (W.view(-1, block) / quantised.quantise(W, levels, block)[1]).flatten()
        fig, ax = plt.subplots(figsize=(5, 2.4))
        ax.hist(scaled, bins=200, range=(-1, 1), histtype="stepfilled", color=BASE)  # one path
        width, top = 0.4 if len(levels) > 99 else 1, ax.get_ylim()[1]
        x = [x for level in levels.tolist() for x in (level, level, None)]
        ax.plot(x, [0, top, None] * len(levels), color=LORA, lw=width)
        ax.set(xlabel="weight / largest of its block", yticks=[])
        size, full = stored(kind, block), W.numel() * 4
        said = f"{size * 8 / W.numel():.2f} bits a weight, {size:,.0f} bytes instead of {full:,}"
        return fig, f"error {error:.1%}; {said}"

    def in_words(kind: str, block: int) -> str:
        return (
            f"Histogram of scaled weights with the levels of {kind} at block size {block}; the rounding error is "
            f"{errors[kind, block]:.1%} of the weight."
        )

    return knob(
        draw,
        kind={kind: kind for kind in kinds},
        block=sizes,
        labels={"kind": "bits, levels", "block": "block size"},
        start={"kind": list(kinds)[len(kinds) // 2], "block": sizes[min(1, len(sizes) - 1)]},
        caption="The weights of one layer of gpt2-mini, scaled block by block, and the levels they are rounded to.",
        alt=in_words,
    )

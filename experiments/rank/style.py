"""What rank does a shift of style need, with a long text to learn from instead of short answers?

    python experiments/rank/style.py TEXT [--prose FILE] [--model gpt2-mini]

The first nine tenths of TEXT are cut into windows of 128 tokens and learned, every token of them; the loss is measured
on 48 windows of the last tenth. Ranks and full fine-tuning as in rank_sweep.py: all linear layers, alpha = 32, 120
steps of 8 windows, the learning rate tuned on the first seed. Rows: lora_book/findings/results/style.csv, of the "tiny
Shakespeare" text, 1.1 MB of plays; a row does not tell which text it is of, so give another text another --out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # common

from common import E2E, RESULTS, Row, Rows, e2e_arguments, prose, sweep_ranks
from torch import nn

from lora_book.measure import text_windows
from lora_lib import load_pretrained

HELD_OUT = 48  # windows


def main(argv: Sequence[str] | None = None) -> None:
    parser = e2e_arguments(__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 0, 64, 1, 4, 16], help="0: full fine-tuning")
    parser.set_defaults(out=RESULTS / "style.csv", keep=Path("runs/style"), max_length=128)
    args = parser.parse_args(argv)
    task = Style.load(args)
    task.run("base", 0.0, seed=0)
    sweep_ranks(task, args.ranks, args.seeds)


class Style(E2E):
    """The same runs on windows of a text; no sentences are written, so there is no BLEU."""

    @classmethod
    def load(cls, args: argparse.Namespace) -> Style:
        model, tokenizer = load_pretrained(args.model)
        text = args.text.read_text(encoding="utf8")
        first, last = text[: 9 * len(text) // 10], text[9 * len(text) // 10 :]
        count = (len(tokenizer.encode(first)) - 1) // args.max_length
        train = text_windows(first, tokenizer, args.max_length, count)
        validation = text_windows(last, tokenizer, args.max_length, HELD_OUT)
        return cls(args, Rows(args.out), tokenizer, train, validation, [], prose(args, model, tokenizer))

    def quality(self, model: nn.Module) -> Row:
        return {"validation_loss": self.loss_on(model, self.validation), "prose_loss": self.loss_on(model, self.prose)}


if __name__ == "__main__":
    main()

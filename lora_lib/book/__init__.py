"""What the chapters show and check: claims, figures, knobs, live pictures, results, and models from elsewhere."""

from lora_lib.book.claims import check
from lora_lib.book.downloads import Message, balanced_splits, load_e2e, load_sms_spam
from lora_lib.book.figures import (
    ACCENT,
    BASE,
    CYCLE,
    FAINT,
    FULL,
    INK,
    LORA,
    MATRIX_CMAP,
    PAPER,
    draw_history,
    matrix_product_picture,
    show_matrix,
    use_book_style,
)
from lora_lib.book.knobs import WIDGET_VIEW, Marked, knob
from lora_lib.book.live import KINDS, Run, Scale, Square, action, injection, product, run_map, switching, tradeoff
from lora_lib.book.smollm2 import NAME, load_smollm2, smollm2_folder
from lora_lib.book.story import STORY

__all__ = [
    "ACCENT",
    "BASE",
    "CYCLE",
    "FAINT",
    "FULL",
    "INK",
    "KINDS",
    "LORA",
    "MATRIX_CMAP",
    "NAME",
    "PAPER",
    "STORY",
    "WIDGET_VIEW",
    "Marked",
    "Message",
    "Run",
    "Scale",
    "Square",
    "action",
    "balanced_splits",
    "check",
    "draw_history",
    "injection",
    "knob",
    "load_e2e",
    "load_smollm2",
    "load_sms_spam",
    "matrix_product_picture",
    "product",
    "run_map",
    "show_matrix",
    "smollm2_folder",
    "switching",
    "tradeoff",
    "use_book_style",
]

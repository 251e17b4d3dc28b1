"""What the chapters show and check: claims, figures, knobs, live pictures."""

from lora_book.show.claims import check
from lora_book.show.figures import (
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
    draw_lines,
    matrix_product_picture,
    shades,
    show_matrix,
    use_book_style,
)
from lora_book.show.knobs import WIDGET_VIEW, Marked, Panels, knob
from lora_book.show.live import (
    KINDS,
    Run,
    Scale,
    Square,
    action,
    injection,
    product,
    run_map,
    switching,
    tradeoff,
    voices,
)
from lora_book.show.tables import means_table, table

"""What long runs found: their rows, the statistics, and the argument of the findings page."""

from lora_book.findings.stats import (
    FOLDER,
    Difference,
    Mean,
    Row,
    at_best_rate,
    by_seed,
    load_results,
    mean,
    means,
    paired,
    select,
    survivors,
)

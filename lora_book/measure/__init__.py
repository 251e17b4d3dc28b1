"""What the chapters measure: what a change of weights is like, the memory of a step, a quantised base."""

from lora_book.measure.analysis import (
    amplification,
    effective_rank,
    energy_shares,
    intruder_dimensions,
    low_rank_factors,
    rank_for,
    subspace_similarity,
    text_windows,
    weight_changes,
)
from lora_book.measure.memory import (
    PeakMemory,
    Term,
    adapter_bytes,
    block_bytes,
    hf_block_bytes,
    step_bytes,
    step_table,
    step_terms,
)
from lora_book.measure.quantised import (
    QuantisedLinear,
    dequantise_model,
    even_levels,
    normal_levels,
    quantise,
    quantise_model,
)

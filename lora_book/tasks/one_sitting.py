"""Chapter 0's kept runs, made by `experiments/one_sitting.py`: the same training at each rank and in full."""

from __future__ import annotations

from lora_book.findings.stats import Row, load_results, select


def kept_runs() -> dict[str, Row]:
    """The runs by name: the base, LoRA by rank, LoRA with the embedding trained too, and full at its best rate."""
    rows = load_results("one_sitting")
    runs = {"base": select(rows, parts="none")[0]}
    runs |= {f"r = {row['rank']}": row for row in select(rows, parts="linear", learning_rate=0.005)}
    runs |= {f"r = {row['rank']} + embedding": row for row in select(rows, parts="linear + wte")}
    return runs | {"full": min(select(rows, parts="all"), key=lambda row: row["loss"])}


def describe(run: Row) -> tuple[str, str]:
    """What a run writes, and a line with its loss, its size and its time: a knob's picture and its read-out."""
    said = f"loss {run['loss']:.2f}, {run['slots_right']:.0%} of the facts right; "
    if not run["trainable"]:
        return run["text"], said + "nothing is trained"
    saved = f", {run['file_bytes'] / 1000:,.0f} kB saved" if run["file_bytes"] else ""
    return run["text"], (
        f"{said}{run['trainable']:,} numbers trained{saved}, {run['train_cpu_seconds']:.0f} s of one core"
    )

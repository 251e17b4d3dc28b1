"""The book's page of benchmarks, written from the results: every number on it stands in a file beside this one."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import contestants as c

RESULTS = Path(__file__).parent / "results"
TEMPLATE = Path(__file__).parent / "page_template.md"
PAGE = Path(__file__).parent.parent / "book" / "benchmarks.md"
Row = dict[str, str]


def render(results: Path) -> str:
    """The page, from the CSV files in a folder."""
    layers, sizes, steps, compiled, losses, inference, adapters = (
        read(results / f"{part}.csv")
        for part in ("layer", "sizes", "step", "compiled", "loss", "inference", "adapters")
    )
    one = [row for row in layers if row["sweep"] == "layer"]
    dry, wet = ([row for row in steps if float(row["dropout"]) == p] for p in (0.0, 0.1))
    layer_columns = {"who": "who", "time, ms": time_of, "of the floor": "of_floor", "of PEFT": "of_peft"}
    step_columns = {"who": "who", "time, ms": time_of, "of the floor": "of_floor", "of PEFT": "of_peft",
                    "of full": "of_full", "GFLOP": "gflops", "peak": lambda r: megabytes(r["peak_bytes"]),
                    "beyond imports": lambda r: megabytes(r["beyond_imports_bytes"])}  # fmt: skip
    return TEMPLATE.read_text(encoding="utf8").format(
        machine=machines(json.loads((results / "machine.json").read_text())),
        targets=targets(one, sizes, dry, losses, inference, adapters),
        rank=c.RANK, batch=c.BATCH, time=c.TIME,
        layer=table(one, {**layer_columns, "FLOPs": "flops_of_2Ndk",
                          "kept": lambda r: f"{int(r['kept_bytes']):,} bytes"}),
        memory_kept=table([row for row in layers if row["sweep"] == "memory kept"], layer_columns),
        sizes=by_size(sizes),
        sweeps="\n\n".join(sweep(layers, name) for name in ("rank", "tokens", "adapters")),
        step=table(dry, step_columns), step_dropout=table(wet, step_columns),
        compiled=table(compiled, {"precision": "precision", "who": "who", "time, ms": time_of,
                                  "of the plain step": "of_plain", "first step, s": "first_step_s"}),
        loss=table(losses, {"tokens": lambda r: f"{int(r['tokens']):,}",
                            "vocabulary": lambda r: f"{int(r['vocabulary']):,}", "loss": "how",
                            "all logits": lambda r: megabytes(r["logits_bytes"]),
                            "peak": lambda r: megabytes(r["peak_bytes"])}),
        inference=table(inference, {"who": "who", "modules": "modules", "time, ms": time_of, "of the base": "of_base"}),
        adapters=table(adapters, {"what": "what", "value": lambda r: f"{int(r['value']):,}"}),
        lab=in_the_page(*read(results / "lab.csv")),
    )  # fmt: skip


def targets(
    one: list[Row],
    sizes: list[Row],
    dry: list[Row],
    losses: list[Row],
    inference: list[Row],
    adapters: list[Row],
) -> str:
    """Each aim with what was measured, and whether it was reached."""
    ours_at = [row for row in sizes if row["who"] == c.OURS]
    of_peft = [float(row["of_peft"]) for row in ours_at]
    beyond_flops = [float(r["of_floor"]) / float(r["flops_of_floor"]) for r in ours_at if int(r["rows"]) >= 512]
    layer, step = ({row["who"]: row for row in rows} for rows in (one, dry))
    ours, value = step[c.STEP_OURS], {row["what"]: int(row["value"]) for row in adapters}
    chunked = [int(r["peak_bytes"]) for r in losses if r["how"] == "chunked" and r["tokens"] == "512"]
    base, merged = (next(row for row in inference if row["who"] == who) for who in ("base", "merged"))
    memory = int(ours["peak_bytes"]) / int(step[c.STEP_PEFT]["peak_bytes"])
    per_file = "adapter file beyond its parameters, "
    rows = [
        ("layer, time of the frozen Linear's", float(layer[c.OURS]["of_floor"]), 1.05),
        ("layer, time of PEFT's", float(layer[c.OURS]["of_peft"]), 0.75),
        ("layer at twelve sizes, time of PEFT's, the largest", max(of_peft), 1.0),
        ("layer at twelve sizes, time of PEFT's, geometric mean", statistics.geometric_mean(of_peft), 0.80),
        ("layer from 512 rows on, time of its FLOPs' at the floor's speed, the largest", max(beyond_flops), 1.15),
        ("layer, bytes kept beyond its input", int(layer[c.OURS]["kept_bytes"]), 0),
        ("step, time of Hugging Face + PEFT's", float(ours["of_peft"]), 0.90),
        ("step, time of our own full fine-tuning's", float(ours["of_full"]), 0.62),
        ("step, peak memory of Hugging Face + PEFT's", memory, 0.75),
        ("loss, peak memory at a vocabulary of 100,000 over that at 50,257", chunked[-1] / chunked[-2], 1.05),
        ("merged model, time of the base's", float(merged["of_base"]), 1.05),
        ("merged model, extra modules", int(merged["modules"]) - int(base["modules"]), 0),
        ("switching adapters, bytes computed or copied", value["bytes that 15 switches computed or copied"], 0),
        ("15 more adapters, bytes over their own",
         value["bytes of the 15 adapters loaded beside it"] - 15 * value["one adapter's own bytes"], 0),
        ("adapter file on c_attn, bytes beyond its parameters", value[per_file + "c_attn's 12 layers"], 4096),
        ("adapter file on all layers, bytes beyond its parameters", value[per_file + "all 48 layers"], 4096),
    ]  # fmt: skip
    lines = [(what, f"{got:,}" if isinstance(got, int) else f"{got:.2f}", f"≤\N{NO-BREAK SPACE}{aim:,}",
              "reached" if got <= aim else "**missed**") for what, got, aim in rows]  # fmt: skip
    return grid(("what", "measured", "aim", "result"), lines)


def in_the_page(lab: Row) -> str:
    """What the lab costs, beside PyTorch on one thread."""
    lines = [
        ("a training step of 4 × 64 tokens, processor time", f"{lab['step_ms']} ms", f"{lab['pytorch_step_ms']} ms"),
        ("the same, ratio of the two", lab["ratio"], ""),
        ("PyTorch with vectors of 8 (AVX2)", "", f"{lab['pytorch_step_ms_avx2']} ms"),
        ("ratio to that", lab["ratio_avx2"], ""),
        ("PyTorch with vectors of 4 (SSE 4.2)", "", f"{lab['pytorch_step_ms_sse']} ms"),
        ("ratio to that", lab["ratio_sse"], ""),
        ("a step at r = 64, processor time", f"{lab['step_ms_r64']} ms", f"{lab['pytorch_step_ms_r64']} ms"),
        ("the same, ratio of the two", lab["ratio_r64"], ""),
        ("two workers, times as fast as one", lab["two_workers"], ""),
        ("tokens written in a second of processor time", lab["tokens_per_second"], lab["pytorch_tokens_per_second"]),
        ("WebAssembly's memory, loaded", f"{lab['wasm_mb_loaded']} MB", ""),
        ("the same after training", f"{lab['wasm_mb_trained']} MB", ""),
        ("the tab's memory at its peak", f"{lab['tab_peak_mb']} MB", ""),
        ("the page without the model, gzipped", f"{lab['page_kb']} kB", ""),
        ("the model", f"{lab['model_mb']} MB", ""),
    ]
    return grid(("what", lab["browser"], "PyTorch, one thread"), lines)


def by_size(sizes: list[Row]) -> str:
    """One table: a line for each layer and number of rows."""
    lines = []
    for d, k, rows in dict.fromkeys((row["d"], row["k"], row["rows"]) for row in sizes):
        here = {row["who"]: row for row in sizes if (row["d"], row["k"], row["rows"]) == (d, k, rows)}
        ratios = [f"{float(here[who]['of_peft']):.2f}" for who in (c.OURS, c.FORMULA, c.FLOOR)]
        beyond = float(here[c.OURS]["of_floor"]) / float(here[c.OURS]["flops_of_floor"])
        lines.append((f"{d} × {k}, {int(rows):,}", *ratios, f"{beyond:.2f}"))
    return grid(("layer, rows", c.OURS, c.FORMULA, c.FLOOR, "ours, of its FLOPs' time"), lines)


def sweep(layers: list[Row], name: str) -> str:
    """One table: a row for each setting, a column for each contestant."""
    rows = [row for row in layers if row["sweep"] == name]
    who = list(dict.fromkeys(row["who"] for row in rows))
    lines = []
    for setting in dict.fromkeys(row[name] for row in rows):
        found = {row["who"]: f"{float(row['of_floor']):.2f}" for row in rows if row[name] == setting}
        lines.append((f"{int(setting):,}", *(found.get(one, "") for one in who[1:])))
    return grid((name + (" in use" if name == "adapters" else ""), *who[1:]), lines)


def machines(found: dict[str, Row]) -> str:
    """Where each part was measured, parts from one place together."""
    lines: dict[str, list[str]] = {}
    for part, m in found.items():
        packages = ", ".join(f"{name} {m[name]}" for name in ("torch", "transformers", "peft", "loralib"))
        text = f"{m['device']}, {m['threads']} of {m['cores']} cores, Python {m['python']}, {packages}"
        note = f"{m['rounds']} rounds, load {m['load_at_start']} at the start"
        lines.setdefault(text, []).append(f"{part} ({note})")
    return "\n".join(f"Measured on: {text}. Parts: {', '.join(parts)}." for text, parts in lines.items())


def time_of(row: Row) -> str:
    return f"{row['median_ms']} ({row['lower_quartile_ms']} to {row['upper_quartile_ms']})"


def megabytes(count: str) -> str:
    return f"{int(count) / 1e6:,.0f} MB"


def table(rows: Iterable[Row], columns: dict[str, object]) -> str:
    """A column is the name of a field, or a function of the row."""
    lines = [[str(get(row) if callable(get) else row[str(get)]) for get in columns.values()] for row in rows]
    return grid(tuple(columns), lines)


def grid(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))


def read(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf8") as file:
        return list(csv.DictReader(file))

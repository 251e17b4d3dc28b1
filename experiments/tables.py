"""The results as tables: every group of runs as mean ± standard deviation over its seeds.

python experiments/tables.py [e2e parts directions plateau smollm2 style sms capacity geometry similarity]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lora_book.findings import Mean, Row, load_results, means
from lora_book.findings.runs import E2ERun, PartsRun

# file -> what makes a group, and what is averaged in it
TABLES: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "e2e": (
        E2ERun.grouped(),
        ("validation_loss", "bleu", "values_told", "prose_loss", "trainable", "file_bytes", "train_cpu_seconds"),
    ),
    "parts": (
        PartsRun.grouped(),
        ("validation_loss", "bleu", "values_told", "prose_loss", "trainable", "train_cpu_seconds"),
    ),
    "directions": (
        ("model", "steps", "method", "rank", "learning_rate"),
        ("validation_loss", "relative_size", "share_4", "amplification_4", "random_4", "intruders", "random_intruders"),
    ),
    "plateau": (
        ("model", "facts", "rank", "learning_rate", "steps"), ("exposures", "recall", "bits", "bits_a_number"),
    ),
    "smollm2": (
        ("model", "method", "rank", "learning_rate"), ("validation_loss", "exact", "fields", "prose_loss", "trainable"),
    ),
    "style": (E2ERun.grouped(), ("validation_loss", "prose_loss", "trainable", "train_cpu_seconds")),
    "sms": (
        ("model", "method", "rank", "learning_rate"),
        ("test_accuracy", "validation_loss", "trainable", "train_seconds"),
    ),
    "capacity": (("model", "facts", "rank", "learning_rate"), ("recall", "bits", "trainable")),
    "geometry": (
        ("model", "steps", "rank", "learning_rate"),
        ("relative_size", "effective_rank", "share_1", "share_8", "amplification_4", "intruders"),
    ),
    "similarity": (
        ("model", "steps", "of", "rank1", "rank2"),
        ("phi_1_1", "phi_1_8", "phi_1_64", "phi_4_4", "phi_8_8", "phi_8_64"),
    ),
}  # fmt: skip


def table(rows: Sequence[Row], by: Sequence[str], measures: Sequence[str]) -> list[list[str]]:
    """A header, then one line a group: what its rows share, how many they are, mean ± deviation of each measure."""
    found = {measure: means(rows, by, measure) for measure in measures}
    lines = [[*by, "runs", *measures]]
    for key, (_, _, runs) in means(({**row, "": 0} for row in rows), by, "").items():
        cells = [spread(found[measure].get(key)) for measure in measures]
        lines.append([*("" if value is None else str(value) for value in key), str(runs), *cells])
    return lines


def spread(found: Mean | None) -> str:
    """Mean ± standard deviation, or the one value there is."""
    if found is None:
        return ""
    return f"{found.mean:.4g} ± {found.spread:.2g}" if found.spread else f"{found.mean:.4g}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(TABLES), help=f"of {', '.join(TABLES)}")
    for name in parser.parse_args(argv).names:
        print(f"\n{name}\n")
        header, *lines = table(load_results(name), *TABLES[name])
        for line in (header, ["---"] * len(header), *lines):
            print("| " + " | ".join(line) + " |")


if __name__ == "__main__":
    main()

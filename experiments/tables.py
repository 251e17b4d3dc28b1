"""The results as tables: every group of runs as mean ± standard deviation over its seeds.

python experiments/tables.py [e2e sms capacity geometry similarity]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence

from common import RESULTS, Row, Rows

# file -> what makes a group, and what is averaged in it
TABLES: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "e2e": (
        ("model", "steps", "method", "targets", "rank", "alpha", "use_rslora", "init", "lora_plus", "learning_rate"),
        ("validation_loss", "bleu", "values_told", "prose_loss", "trainable", "file_bytes", "train_cpu_seconds"),
    ),
    "sms": (("model", "method", "learning_rate"), ("test_accuracy", "validation_loss", "trainable", "train_seconds")),
    "capacity": (("model", "facts", "rank", "learning_rate"), ("recall", "bits", "trainable")),
    "geometry": (
        ("model", "steps", "rank", "learning_rate"),
        ("relative_size", "effective_rank", "share_1", "share_8", "amplification_1", "amplification_4", "intruders"),
    ),
    "similarity": (
        ("model", "steps", "of", "rank1", "rank2"),
        ("phi_1_1", "phi_1_8", "phi_1_64", "phi_4_4", "phi_8_8", "phi_8_64"),
    ),
}  # fmt: skip


def table(rows: Iterable[Row], by: Sequence[str], measures: Sequence[str]) -> list[list[str]]:
    """A header, then one line a group: what its rows share, how many they are, mean ± deviation of each measure."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    lines = [[*by, "runs", *measures]]
    for key in sorted(groups, key=lambda key: [number(value) for value in key]):
        cells = [spread([float(row[name]) for row in groups[key] if row[name]]) for name in measures]
        lines.append([*key, str(len(groups[key])), *cells])
    return lines


def number(text: str) -> tuple[float, str]:
    """For sorting: numbers by size, then words."""
    try:
        return float(text), ""
    except ValueError:
        return float("inf"), text


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, or the one value there is."""
    if not values:
        return ""
    mean = statistics.fmean(values)
    return f"{mean:.4g} ± {statistics.stdev(values):.2g}" if len(values) > 1 and len(set(values)) > 1 else f"{mean:.4g}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(TABLES), help=f"of {', '.join(TABLES)}")
    for name in parser.parse_args(argv).names:
        print(f"\n{name}\n")
        header, *lines = table(Rows(RESULTS / f"{name}.csv").rows, *TABLES[name])
        for line in (header, ["---"] * len(header), *lines):
            print("| " + " | ".join(line) + " |")


if __name__ == "__main__":
    main()

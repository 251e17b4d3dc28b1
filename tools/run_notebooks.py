"""Run notebooks from a clean kernel and keep their outputs: what `make notebooks` does.

Outputs are stored as the book wants them: a progress bar as it stood at the end, no times of execution,
no metadata but the kernel's name and the widgets, and widgets numbered in their order instead of at random,
so that a second run changes only what differs. A notebook with a claim that failed (✗) is not kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode


def run(path: Path) -> list[str]:
    """Execute one notebook in its own folder and write it back, unless a claim failed; returns those that did."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", record_timing=False, coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )  # fmt: skip
    client.execute()
    failed = failed_claims(notebook)
    if not failed:
        kept = {key: notebook.metadata[key] for key in ("kernelspec", "widgets") if key in notebook.metadata}
        notebook.metadata = nbformat.from_dict(kept)
        path.write_text(nbformat.writes(number_widgets(notebook)) + "\n", encoding="utf8")
    return failed


def failed_claims(notebook: NotebookNode) -> list[str]:
    """The lines that `lora_book.show.claims` marked with a ✗."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [line for output in outputs for line in output.get("text", "").splitlines() if line.startswith("✗")]


def number_widgets(notebook: NotebookNode) -> NotebookNode:
    """The same notebook with each widget's random id replaced by one that depends on its number alone."""
    text = json.dumps(notebook)
    for state in notebook.metadata.get("widgets", {}).values():
        for i, widget in enumerate(state["state"]):  # in the order in which they were made
            text = text.replace(widget, hashlib.md5(str(i).encode(), usedforsecurity=False).hexdigest())
    return nbformat.from_dict(json.loads(text))


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", type=Path, nargs="+")
    parser.add_argument("--processes", type=int, default=2, help="notebooks that run at the same time")
    args = parser.parse_args()
    with ProcessPoolExecutor(args.processes) as pool:
        found = dict(zip(args.notebooks, pool.map(run, args.notebooks)))
    for path, claims in found.items():
        print(path, *(f"not kept: {claim}" for claim in claims), sep="\n  ", flush=True)
    sys.exit(any(found.values()))


if __name__ == "__main__":
    main()

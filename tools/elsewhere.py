"""Check every notebook's output again as other machines would compute it: what `make test-elsewhere` does.

A reader's processor may know fewer instructions than the one that made the outputs, or have another number of
threads; PyTorch may be older. Each setting below runs all notebooks and compares them with what is committed, and
prints a line: how many cells were the same, and which were not.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# PyTorch's own kernels, oneDNN and MKL each choose their instructions: all three are held to one level.
LEVELS = {
    "this processor": {},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "SSE4": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}
SETTINGS = [("AVX2", 1), ("SSE4", 1), ("this processor", 2), ("AVX2", 2), ("this processor", 4)]


def check(level: str, threads: int, notebooks: list[str], python: str) -> tuple[str, list[str]]:
    """Compare the notebooks in one setting: its closing line, and the cells that differ."""
    at_a_time = "2" if threads == 1 else "1"  # threads of two notebooks would wait for each other
    command = [
        python, "-m", "pytest", *notebooks, "--nbval", "--nbval-sanitize-with", "tests/nbval_sanitize.cfg",
        "--nbval-cell-timeout", "1200", "-q", "-n", at_a_time, "--dist", "loadfile", "--no-loadscope-reorder",
        "-p", "no:cacheprovider",
    ]  # fmt: skip
    environment = {**os.environ, **LEVELS[level], "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    lines = run.stdout.splitlines() or [run.stderr[-200:]]
    return lines[-1], re.findall(r"^FAILED (\S+ \d+)", run.stdout, re.MULTILINE)


def main() -> None:
    """Run the settings, print a line for each, and fail if any cell differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="+")
    parser.add_argument("--python", default=sys.executable, help="of an environment with another PyTorch")
    parser.add_argument("--setting", nargs="+", choices=[f"{level}:{n}" for level, n in SETTINGS], help="not all")
    args = parser.parse_args()
    version = [args.python, "-c", "import torch; print(torch.__version__)"]
    torch = subprocess.run(version, capture_output=True, text=True, check=True).stdout.strip()
    settings = SETTINGS if args.python == sys.executable else [("this processor", 1)]
    if args.setting:
        settings = [setting for setting in SETTINGS if "{}:{}".format(*setting) in args.setting]
    differ = False
    for level, threads in settings:
        told, failed = check(level, threads, args.notebooks, args.python)
        print(f"torch {torch}, {level}, {threads} thread{'s' * (threads > 1)}: {told}", *failed, sep="\n  ", flush=True)
        differ = differ or bool(failed) or "passed" not in told
    sys.exit(differ)


if __name__ == "__main__":
    main()

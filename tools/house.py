"""Measure how large lora_lib is and what it brings with it: `python tools/house.py`. A test holds it to the limits."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lora_lib
from lora_lib import PeftModel, get_peft_model, load_pretrained

ROOT = Path(__file__).parent.parent
HOUSE = ROOT / "lora_lib"
BOOK = ("lora_book", "matplotlib", "IPython", "ipywidgets", "pooch")  # what the library runs without
LIMITS = {
    "lines of Python in lora_lib": 5545,
    "lines of lora_linear.py": 220,
    "lines of peft_wrapper.py": 415,
    "files of JavaScript or CSV in lora_lib": 0,
    "files that loading an adapter enters": 10,
    "packages of the book that python -m lora_lib imports": 0,
}


def lines(*files: Path) -> int:
    """The lines of these files together."""
    return sum(len(file.read_text(encoding="utf8").splitlines()) for file in files)


def entered(call: Callable[[], object]) -> set[str]:
    """The files of lora_lib in which a Python function runs during a call."""
    home, found = str(Path(lora_lib.__file__).parent), set()

    def seen(frame: Any, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(home):
            found.add(frame.f_code.co_filename[len(home) + 1 :])

    sys.setprofile(seen)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def entered_by_a_load() -> set[str]:
    """The files that `PeftModel.from_pretrained` enters, for our GPT-2 that is loaded already and a LoRA adapter."""
    with tempfile.TemporaryDirectory() as folder:
        get_peft_model(load_pretrained("gpt2-mini")[0], r=4).save_pretrained(folder)
        base, _ = load_pretrained("gpt2-mini")
        return entered(lambda: PeftModel.from_pretrained(base, folder))


def imported_by_the_commands() -> list[str]:
    """The packages of `BOOK` that a new process has after importing what `python -m lora_lib` runs."""
    code = f"import lora_lib.__main__, sys; print(*[name for name in {BOOK} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return run.stdout.split()


def measure() -> dict[str, int]:
    """Each number that `LIMITS` limits, under the same name."""
    return dict(zip(LIMITS, (
        lines(*HOUSE.rglob("*.py")),
        lines(HOUSE / "lora_linear.py"),
        lines(HOUSE / "peft_wrapper.py"),
        sum(path.suffix in (".js", ".csv") for path in HOUSE.rglob("*")),
        len(entered_by_a_load()),
        len(imported_by_the_commands()),
    ), strict=True))  # fmt: skip


if __name__ == "__main__":
    for what, value in measure().items():
        print(f"{value:6,} {what} (at most {LIMITS[what]:,})")

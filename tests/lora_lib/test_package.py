"""What a reader installs, and the first code that a reader runs."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


def test_wheel_carries_the_library_and_gpt2_mini(root: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(root),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    source = {
        p.relative_to(root).as_posix() for house in ("lora_lib", "lora_book") for p in (root / house).rglob("*.py")
    }
    data = {f"lora_lib/gpt2/mini/{name}" for name in ("model.safetensors", "config.json", "bpe.tiktoken", "README.md")}
    data |= {path.relative_to(root).as_posix() for path in (root / "lora_book").rglob("*.csv")}
    assert source | data | {"lora_lib/py.typed"} <= inside
    assert wheel.stat().st_size < 20_000_000


def test_quick_start_of_the_readme_runs(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(encoding="utf8"), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    assert "steps=20," in "\n".join(code)
    exec("\n".join(code).replace("steps=20,", "steps=2,"), {})
    assert (tmp_path / "my-adapter" / "adapter_model.safetensors").exists()

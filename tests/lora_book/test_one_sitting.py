"""Chapter 0 keeps to its size, and what it says of the library and of PEFT runs as it stands."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import transformers

from lora_book.tasks import restaurant_data, to_examples
from lora_book.tasks.one_sitting import compare, describe, judge, kept_runs
from lora_lib import get_peft_model, load_model, load_pretrained
from lora_lib.data import encode_examples
from lora_lib.training import fit


@pytest.fixture(scope="module")
def cells(root: Path) -> list[nbformat.NotebookNode]:
    return nbformat.read(root / "notebooks" / "00_lora_in_one_sitting.ipynb", as_version=4).cells


@pytest.fixture(scope="module")
def prose(cells: list[nbformat.NotebookNode]) -> str:
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def fenced(prose: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", prose, flags=re.DOTALL)


def test_it_is_one_sitting(cells: list[nbformat.NotebookNode], prose: str) -> None:
    code = [cell for cell in cells if cell.cell_type == "code"]
    lines = [line for text in [*(cell.source for cell in code), *fenced(prose)] for line in text.splitlines()]
    assert len([line for line in lines if line.strip()]) <= 80
    assert all(len(cell.source.splitlines()) <= 15 for cell in code)
    assert not any("hide-input" in cell.metadata.get("tags", []) for cell in code), "all of its code is visible"
    words = re.sub(r"```python.*?```|<[^>]+>|\]\([^)]*\)", " ", prose, flags=re.DOTALL).split()
    assert len([word for word in words if re.search(r"\w", word)]) <= 1200
    outputs = [output.get("text", "") for cell in code for output in cell.outputs]
    assert 1 <= sum(text.count("✓") for text in outputs) <= 4


def test_its_first_table_is_the_base_and_the_kept_run(prose: str) -> None:
    before, after = (cell.strip() for cell in re.findall(r"\| (.*) \|", prose)[2].split(" | "))
    assert kept_runs()["base"]["text"].startswith(before.removesuffix(" …"))
    assert after == kept_runs()["r = 8"]["text"]


def test_its_blocks_of_code_run(prose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    three_lines, of_peft = fenced(prose)
    _, tokenizer = load_pretrained("gpt2-mini")
    train = encode_examples(to_examples(restaurant_data(seed=0, train=4).train), tokenizer, 256)
    names = {"get_peft_model": get_peft_model, "load_model": load_model, "fit": fit, "train": train}
    exec(three_lines.replace("steps=120", "steps=1"), names)
    assert (tmp_path / "my-adapter" / "adapter_model.safetensors").is_file()

    size = {"vocab_size": 64, "n_positions": 32, "n_embd": 32, "n_layer": 1, "n_head": 2}
    names = {"your_model": transformers.GPT2LMHeadModel(transformers.GPT2Config(**size))}
    exec(of_peft, names)
    assert names["model"].get_nb_trainable_parameters()[0] > 0


def test_the_kept_runs_are_in_the_order_of_the_knob() -> None:
    runs = kept_runs()
    assert list(runs) == ["base", "r = 1", "r = 4", "r = 8", "r = 16", "r = 64", "r = 8 + embedding", "full"]
    lora = [run for name, run in runs.items() if name.startswith("r = ")]
    assert {(run["alpha"], run["steps"]) for run in lora} == {(32, 120)}
    text, line = describe(runs["r = 8"])
    assert text == runs["r = 8"]["text"] and line.endswith("; 245,760 numbers trained")
    assert describe(runs["base"])[1].endswith("nothing is trained")
    head, rows = compare(runs)
    assert [row[0] for row in rows] == list(runs) and {len(row) for row in rows} == {len(head)}
    assert rows[0][2] == "100%"


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (lambda self, x: self.base(x) + self.s * (x @ self.A) @ self.B, "✓ this is LoRA's forward"),
        (lambda self, x: self.base(x) + self.s * x @ (self.A @ self.B), "✓ this is LoRA's forward"),
        (lambda self, x: ..., "○ nothing is written yet"),
        (lambda self, x: None, "forward returns nothing"),
        (lambda self, x: 4, "returns a int, not a tensor"),
        (lambda self, x: self.base(x), "the second path is missing"),
        (lambda self, x: self.s * x @ self.A @ self.B, "the base is missing"),
        (lambda self, x: self.base(x) + x @ self.A @ self.B, "multiply it by self.s"),
        (lambda self, x: self.s * (self.base(x) + x @ self.A @ self.B), "multiplies the base, too"),
        (lambda self, x: self.base(x) - self.s * x @ self.A @ self.B, "is subtracted"),
        (lambda self, x: self.base(x) + self.A @ self.B, "the shape (3, 2), not (1, 2)"),
        (lambda self, x: self.base(x) + x @ self.B @ self.A, "raises RuntimeError"),
        (lambda self, x: self.base(x) + self.alpha, "raises AttributeError"),
        (lambda self, x: 2 * self.base(x), "returns other numbers"),
    ],
)
def test_the_blank_cell_says_what_is_wrong(forward: Callable[..., object], said: str) -> None:
    assert said in judge(forward)

"""What the code of every notebook must not do, and how long the chapters may be."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted([*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "book").glob("*.ipynb")])
YOURS = re.compile(r"#.*\b(yours|your own|your file)\b")
WRITES = ("write_text", "write_bytes", "unlink", "rename", "replace", "touch")


def code_of(notebook: nbformat.NotebookNode) -> str:
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return "\n".join(re.sub(r"^(\s*)%", r"\1pass  # %", source, flags=re.MULTILINE) for source in cells)


def names_of_readers_paths(code: str) -> set[str]:
    """The variables that a comment asks the reader to fill in."""
    lines = code.splitlines()
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Assign):
            after = lines[node.lineno - 1 : (node.end_lineno or node.lineno) + 1]  # and the line below
            if any(YOURS.search(line) for line in after):
                found |= {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    return found


def writes(code: str, names: set[str]) -> Iterator[str]:
    """Calls that would write to one of these paths."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        called, arguments = node.func, [*node.args, *(word.value for word in node.keywords)]
        mode = next((a.value for a in arguments if isinstance(a, ast.Constant) and isinstance(a.value, str)), "r")
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id in names:
            if called.attr in WRITES or (called.attr == "open" and mode.strip("bt") != "r"):
                yield ast.unparse(node)
        elif isinstance(called, ast.Name) and called.id == "open" and node.args:
            path = node.args[0]
            if isinstance(path, ast.Name) and path.id in names and mode.strip("bt") != "r":
                yield ast.unparse(node)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_cell_writes_to_a_path_that_the_reader_puts_in(path: Path) -> None:
    code = code_of(nbformat.read(path, as_version=4))
    assert not list(writes(code, names_of_readers_paths(code)))


def test_a_cell_that_would_is_found() -> None:
    code = 'mine = work / "mine.csv"  # or a file of yours\nwith mine.open("w", newline="") as f:\n    pass\n'
    names = names_of_readers_paths(code)
    assert names == {"mine"}
    assert list(writes(code, names)) == ["mine.open('w', newline='')"]
    assert not list(writes(code.replace('"w"', '"r"'), names))


AFRESH = ("00_lora_in_one_sitting", "01_rank_math", "02_lora_layer", "05_fine_tuning")
MAKES = re.compile(r"\b(new_model|with_lora|load_model|load_pretrained|deepcopy)\(|\.weight\.data = ")


def trains_on(source: str) -> bool:
    """Whether a cell trains what another cell has made: run twice, it would go on from the first run's end."""
    return bool(re.search(r"\bfit\(", source)) and not MAKES.search(source)


@pytest.mark.parametrize("chapter", AFRESH)
def test_a_training_cell_that_is_run_twice_starts_afresh(chapter: str) -> None:
    notebook = nbformat.read(ROOT / "notebooks" / f"{chapter}.ipynb", as_version=4)
    assert [cell.source for cell in notebook.cells if cell.cell_type == "code" and trains_on(cell.source)] == []


def test_a_cell_that_trains_on_is_found() -> None:
    assert trains_on("history = fit(model, train, steps=3)")
    assert not trains_on("model = new_model()\nfit(model, train, steps=3)")


AFTERNOON = ("00", "01", "02", "05", "07")  # the chapters that are read in three hours
NOT_MAIN = re.compile(
    r"<details.*?</details>|```.*?```|\$\$.*?\$\$|\{cite[^}]*\}`[^`]*`|<[^>]+>|\]\([^)]*\)", re.DOTALL
)
SOLUTION = re.compile(r"```{(exercise|solution)-start}.*?```{\1-end}\n```", re.DOTALL)


def chapter(number: str) -> nbformat.NotebookNode:
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    return nbformat.read(path, as_version=4)


def main_words(notebook: nbformat.NotebookNode) -> int:
    """Words of the prose, without folds, exercises, formulas and blocks of code."""
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return sum(bool(re.search("[A-Za-z]", word)) for word in NOT_MAIN.sub("", SOLUTION.sub("", prose)).split())


def lines_of(notebook: nbformat.NotebookNode, hidden: bool) -> int:
    """Lines of code, in cells that are folded or in those that are open."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    sources = [cell.source for cell in cells if hidden == ("hide-input" in cell.metadata.get("tags", []))]
    return sum(bool(line.strip()) for source in sources for line in source.splitlines())


def test_the_afternoon_is_short() -> None:
    words = {number: main_words(chapter(number)) for number in AFTERNOON}
    assert max(words.values()) <= 1900 and sum(words.values()) <= 6800, words


def test_little_code_is_folded() -> None:
    chapters = [chapter(f"{number:02}") for number in range(8)]
    hidden, shown = (sum(lines_of(notebook, folded) for notebook in chapters) for folded in (True, False))
    assert hidden / (hidden + shown) <= 0.25

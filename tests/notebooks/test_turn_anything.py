"""A reader turns one setting of a chapter and runs it all: no exception but one that says what is wrong with the value.

`make test-settings` runs these; they take too long for `make test`.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from settings_to_turn import SHORTER, TURNS, YOUR_FILES, Turn

pytestmark = pytest.mark.settings
EXPLAINED = ("ValueError", "AdapterError", "FileNotFoundError")  # raised for a value that the library refuses


def replaced(notebook: nbformat.NotebookNode, old: str, new: str) -> bool:
    """Put `new` in the place of `old` in every code cell; returns whether it stood in any."""
    found = [cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source]
    for cell in found:
        cell.source = cell.source.replace(old, new)
    return bool(found)


@pytest.mark.parametrize("turn", TURNS, ids=[f"{t.chapter[:2]}: {t.old[:30]} to {t.new[:30]}" for t in TURNS])
def test_a_turned_setting_stops_nobody(root: Path, turn: Turn) -> None:
    path = root / "notebooks" / f"{turn.chapter}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert replaced(notebook, turn.old, turn.new), f"no cell of {turn.chapter} has {turn.old!r}"
    for old, new in SHORTER.get(turn.chapter, []):
        assert replaced(notebook, old, new) or turn.old in old or old in turn.old, f"no cell to shorten has {old!r}"
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": path.parent}})
    stopped = None
    try:
        client.execute()
    except CellExecutionError as error:
        stopped = error
    if not turn.error:
        assert stopped is None, str(stopped)
    else:
        assert stopped is not None, f"it ran to its end, and was to say {turn.error!r}"
        assert stopped.ename in EXPLAINED, stopped.ename
        assert turn.error in stopped.evalue


@pytest.mark.parametrize("chapter", YOUR_FILES)
def test_a_readers_file_is_used_and_stays_as_it_is(root: Path, tmp_path: Path, chapter: str) -> None:
    old, new, content = YOUR_FILES[chapter]
    mine = tmp_path / "mine.csv"
    mine.write_text(content, encoding="utf8")
    before = mine.stat().st_mtime_ns
    path = root / "notebooks" / f"{chapter}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert replaced(notebook, old, new.replace("PATH", repr(str(mine)))), f"no cell of {chapter} has {old!r}"
    for long, short in SHORTER.get(chapter, []):
        assert replaced(notebook, long, short)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    assert mine.read_text(encoding="utf8") == content and mine.stat().st_mtime_ns == before
    assert [file.name for file in tmp_path.iterdir()] == ["mine.csv"]

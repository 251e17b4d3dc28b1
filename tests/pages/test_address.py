"""The book's address: one place says it, and no other says anything else."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import set_address

# Where the address stands, with the host or without, and what makes a place one of ours.
OURS = [
    r"git\+https://github\.com/([\w.-]+/[\w-]+)",  # the notebooks' set-up cells
    r"git clone https://github\.com/([\w.-]+/[\w-]+)",
    r"https://github\.com/([\w.-]+/[\w-]+)/(?:blob|tree)/main",
    r"https://github\.com/([\w.-]+/[\w-]+)/issues\b",
    r"colab\.research\.google\.com/github/([\w.-]+/[\w-]+)",
    r"with the repository `([\w.-]+/[\w-]+)`",  # Kaggle's form
    r'Repository = "https://github\.com/([\w.-]+/[\w-]+)"',
    r"repository-code: https://github\.com/([\w.-]+/[\w-]+)",
]


def places(root: Path) -> dict[str, set[str]]:
    """Each kind of place with the addresses found there."""
    text = "\n".join(
        path.read_text(encoding="utf8") for path in set_address.text_files(root) if path.name != Path(__file__).name
    )
    return {pattern: set(re.findall(pattern, text)) for pattern in OURS}


def test_every_place_says_what_the_config_says(root: Path) -> None:
    ours = {set_address.address(root).removeprefix("https://github.com/")}
    wrong = {pattern: found for pattern, found in places(root).items() if found != ours}
    assert wrong == {}, f"expected {ours} everywhere: `make address URL=…` writes it"


def test_every_notebook_can_install_the_library(root: Path) -> None:
    notebooks = [root / "book" / "intro.ipynb", *sorted((root / "notebooks").glob("*.ipynb"))]
    without = [
        path.name for path in notebooks if f"git+{set_address.address(root)}" not in path.read_text(encoding="utf8")
    ]
    assert without == []


def test_readme_opens_every_chapter_in_colab(root: Path) -> None:
    readme = (root / "README.md").read_text(encoding="utf8")
    colab = set_address.address(root).replace("github.com", "colab.research.google.com/github") + "/blob/main/notebooks"
    links = [f"({colab}/{path.name})" for path in sorted((root / "notebooks").glob("*.ipynb"))]
    assert [link for link in links if link not in readme] == []


def test_one_command_moves_the_book(root: Path, tmp_path: Path) -> None:
    for path in set_address.text_files(root):
        copy = tmp_path / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    assert len(set_address.set_address("https://github.com/Some.One/their_book/", tmp_path)) > 10
    assert set_address.address(tmp_path) == "https://github.com/Some.One/their_book"
    assert all(found == {"Some.One/their_book"} for found in places(tmp_path).values())


@pytest.mark.parametrize("bad", ["github.com/a/b", "https://github.com/a", "https://example.org/a/b"])
def test_refuses_what_is_no_repository(root: Path, bad: str) -> None:
    with pytest.raises(ValueError, match="expected an address such as"):
        set_address.set_address(bad, root)

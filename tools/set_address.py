"""Give the book another address: `make address URL=https://github.com/you/your-book`.

The book's address is `repository.url` in `_config.yml`; the launch buttons read it there. Pages, notebooks
and package files cannot, so this writes it wherever the old one stands, and into `_config.yml` itself.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

ADDRESS = re.compile(r"https://github\.com/[\w.-]+/[\w-]+")
SUFFIXES = {".cff", ".ipynb", ".md", ".py", ".toml", ".yml"}
ROOT = Path(__file__).parent.parent


def address(root: Path = ROOT) -> str:
    """The book's address as `_config.yml` has it."""
    (url,) = re.findall(r"^repository:\n  url: (\S+)$", (root / "_config.yml").read_text(encoding="utf8"), re.MULTILINE)
    return url


def text_files(root: Path = ROOT) -> list[Path]:
    """Every file of the project in which an address can stand."""
    found = []
    for folder, inside, names in os.walk(root):
        inside[:] = [name for name in inside if name not in (".git", "_build", "build") and ".venv" not in name]
        found += [Path(folder, name) for name in names if Path(name).suffix in SUFFIXES]
    return found


def set_address(new: str, root: Path = ROOT) -> list[Path]:
    """Replace the book's address in every file; returns the files that have changed.

    Raises ValueError when `new` is not the address of a repository on GitHub.
    """
    new = new.rstrip("/")
    if not ADDRESS.fullmatch(new):
        raise ValueError(f"expected an address such as https://github.com/you/your-book, got {new!r}")
    old, prefix = address(root), "https://github.com/"
    changed = []
    for path in text_files(root):
        before = path.read_text(encoding="utf8")
        # With and without the host: Colab and Kaggle ask for owner/name alone.
        after = re.sub(rf"\b{re.escape(old.removeprefix(prefix))}\b", new.removeprefix(prefix), before)
        if after != before:
            path.write_text(after, encoding="utf8")
            changed.append(path)
    return changed


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="the repository's new address on GitHub")
    for path in set_address(parser.parse_args().url):
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()

"""What several test files share."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import build_lab
import print_book
import pytest
from playwright.sync_api import Browser, sync_playwright

from lora_lib import Tokenizer
from lora_lib.data import Restaurant, Splits, restaurant_data
from lora_lib.gpt2 import MINI_FOLDER, read_tokenizer


def skip_or_fail(reason: str) -> NoReturn:
    """A reader without a browser may go on; continuous integration may not."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One browser for all: a process can hold no second one of Playwright's."""
    path = print_book.find_browser()
    if path is None:
        skip_or_fail(print_book.NO_BROWSER)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=print_book.FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab's page without the book around it."""
    folder = tmp_path_factory.mktemp("lab")
    build_lab.write_site(folder)
    return folder / "lab.html"


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the repository."""
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def splits() -> Splits[Restaurant]:
    """The book's restaurants, as many as `restaurant_data` makes by itself."""
    return restaurant_data(seed=0)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """gpt2-mini's."""
    return read_tokenizer(MINI_FOLDER)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put all tests that visit one page of the book behind one another, so that it is opened once."""
    visits = [item for item in items if "visit" in getattr(item, "fixturenames", ())]
    pages = list(dict.fromkeys(item.callspec.params["visit"] for item in visits))
    ordered = iter(sorted(visits, key=lambda item: pages.index(item.callspec.params["visit"])))
    items[:] = [next(ordered) if item in visits else item for item in items]

"""What several test files share."""

import json
import os
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import NoReturn

import build_lab
import firefox
import lab_modules
import print_book
import pytest
from measure_lab import Engine
from playwright.sync_api import Browser, Page, sync_playwright
from tokenizers import ByteLevelBPETokenizer

from lora_book.tasks import Restaurant, restaurant_data
from lora_lib import Tokenizer
from lora_lib.data import Splits
from lora_lib.gpt2 import MINI_FOLDER, read_tokenizer

NO_FIREFOX = "no Firefox found: `apt install firefox-esr` brings one"


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


@pytest.fixture(scope="module")
def engine(browser: Browser, site: Path) -> Iterator[Engine]:
    """The lab's worker, with gpt2-mini loaded."""
    engine = Engine(browser, site)
    yield engine
    engine.tab.close()


@pytest.fixture(scope="module")
def bare(browser: Browser, site: Path) -> Iterator[Page]:
    """The lab's page with nothing loaded, for tests of single modules: they leave nothing in it."""
    page = browser.new_page()
    page.goto(site.as_uri())
    yield page
    page.close()


@pytest.fixture(params=["chromium", "firefox"])
def visit(request: pytest.FixtureRequest, site: Path, tmp_path: Path) -> Iterator[lab_modules.Driver]:
    """The lab's page, newly opened, in each browser."""
    if request.param == "chromium":
        page = lab_modules.Chromium(request.getfixturevalue("browser"), tmp_path, site.as_uri())
        yield page
        page.context.close()
        return
    path = firefox.find()
    if path is None:
        skip_or_fail(NO_FIREFOX)
    with firefox.open_tab(path, tmp_path) as tab:
        tab.goto(site.as_uri())
        yield lab_modules.Driver(tab, tmp_path / "downloads")


@pytest.fixture(scope="session")
def tokenizer_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2's own kind of files, of a small vocabulary: vocab.json and merges.txt, and tokenizer.json."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = ByteLevelBPETokenizer()
    texts = [lab_modules.PROSE, "aaaa aaaaaaaa héllo — 你好 " * 20]
    tokenizer.train_from_iterator(texts, vocab_size=411, min_frequency=2)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save_model(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def tiny(tokenizer_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small random GPT-2 of transformers', in float32."""
    folder = tmp_path_factory.mktemp("tiny")
    vocab = json.loads((tokenizer_files / "vocab.json").read_text(encoding="utf8"))
    lab_modules.tiny_gpt2(len(vocab)).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((tokenizer_files / name).read_bytes())
    return folder


@pytest.fixture
def hub(tiny: Path) -> Iterator[str]:
    """The address of a stand-in for the Hub that has the small GPT-2 as someone/tiny."""
    lab_modules.Hub.files, lab_modules.Hub.asked = {**lab_modules.read_files(tiny), "README.md": b"tiny"}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), lab_modules.Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests did not run for want of a browser, and again at the end of `make test`."""
    reasons = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", []) if report.longrepr]
    for browser, mend in (("Chromium", print_book.NO_BROWSER), ("Firefox", NO_FIREFOX)):
        if count := sum(mend in reason for reason in reasons):
            line = f"{count} tests of the pages and the lab did not run in {browser}: {mend}"
            terminalreporter.write_line(line, yellow=True)
            if place := os.environ.get("NOT_RUN"):
                Path(place).parent.mkdir(exist_ok=True)
                with Path(place).open("a", encoding="utf8") as file:
                    file.write(line + "\n")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put all tests that visit one page of the book behind one another, so that it is opened once."""
    visits = [item for item in items if item.path.name == "test_book.py" and "visit" in item.fixturenames]
    pages = list(dict.fromkeys(item.callspec.params["visit"] for item in visits))
    ordered = iter(sorted(visits, key=lambda item: pages.index(item.callspec.params["visit"])))
    items[:] = [next(ordered) if item in visits else item for item in items]

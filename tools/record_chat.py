"""Record a run of the chat model's page (lab/page/chat_recorded.html), which plays before a reader has loaded anything.

    python tools/record_chat.py

It serves the page, presses what a reader presses, and writes what came into lab/page/chat_recorded.html. Minutes. Any
page shows it: in MyST, ```{raw} html with `:file: ../lab/page/chat_recorded.html`.
"""

from __future__ import annotations

import functools
import json
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import build_lab
import print_book
from playwright.sync_api import Page, sync_playwright

PIECE = build_lab.LAB / "page" / "chat_piece.html"
OUT = build_lab.LAB / "page" / "chat_recorded.html"
LONG = 1_200_000  # milliseconds
SEEN = """() => ({
  questions: [Lab.chat.lesson.heldOut[0].question, "What is the capital of France?"],
  samples: Lab.chat.samples, kept: Lab.chat.ends[0].at, pairs: Lab.chat.lesson.pairs.length,
  groups: Lab.answers.groups.map(({ name, about, counted, places }) => ({
    head: `${name}?`, said: `${about}. ${counted.textContent}`,
    rows: places.map(({ pair, base, adapted }) => [pair.question, base, adapted]),
  })),
})"""


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, with nothing on the terminal."""

    def log_message(self, *_: Any) -> None:
        """Not on the terminal."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which this machine serves a folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def run(tab: Page) -> dict[str, Any]:
    """Load the model, train with the settings that stand there, and return what the page shows at the end.

    Raises RuntimeError with the page's words if it cannot.
    """
    settings = {name: tab.input_value(f"#lab-{name}") for name in ("train-rank", "train-alpha", "rate", "steps")}
    tab.click("#lab-load")
    tab.wait_for_function("Lab.chat.pace > 0 || document.querySelector('.lab-wrong')", timeout=LONG)
    if wrong := tab.locator(".lab-wrong").all_text_contents():
        raise RuntimeError(" ".join(wrong))
    tab.click("#lab-train")
    tab.wait_for_function("Lab.chat.training")
    tab.wait_for_function("Lab.chat.adapter && !Lab.chat.training", timeout=LONG)
    tab.wait_for_function("Lab.answers.groups.at(-1)?.result", timeout=LONG)
    seen: dict[str, Any] = tab.evaluate(SEEN)
    return {**seen, "settings": settings}


def recording(seen: dict[str, Any]) -> dict[str, Any]:
    """What chat_piece.html plays."""
    settings = "rank {train-rank}, α {train-alpha}, rate {rate}, {steps} steps".format(**seen["settings"])
    learned = f"SmolLM2-135M-Instruct learns a pirate's voice from {seen['pairs']} answers, in a browser"
    return {
        "about": f"{learned}: {settings}.",
        "kept": seen["kept"],
        "questions": seen["questions"],
        "samples": [{"at": one["at"], "answers": [one["sample"], one["known"]]} for one in seen["samples"]],
        "groups": seen["groups"],
    }


def piece(seen: dict[str, Any]) -> str:
    """The HTML that plays a recording."""
    text = json.dumps(seen, ensure_ascii=False).replace("</", "<\\/")
    return PIECE.read_text(encoding="utf8").replace("RECORDING", text)


def main() -> None:
    """Run the page, and write the recording."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        build_lab.write_site(Path(folder))
        browser = playwright.chromium.launch(executable_path=print_book.find_browser(), args=print_book.FLAGS)
        with served(Path(folder)) as address:
            tab = browser.new_page()
            tab.goto(f"{address}chat.html")
            seen = recording(run(tab))
        browser.close()
    OUT.write_text(piece(seen), encoding="utf8")


if __name__ == "__main__":
    main()

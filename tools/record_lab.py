"""Record what the lab shows before a reader has loaded the model: lab/recorded.json.

    python tools/record_lab.py

Opens the page in Chromium, writes with the adapters of SCENES, trains on the page's first example with the page's own
settings, and keeps texts, bars, losses and samples. Needs Chromium or Chrome.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import build_lab
import print_book
from playwright.sync_api import sync_playwright

PATIENCE = 300_000  # milliseconds, for a training run on a busy machine
SCENES = [("cat", 8), ("cat", 2), ("cat", 0), ("restaurants", 8), ("plays", 8)]  # adapter and rank, as they are played
TURN = """([adapter, rank]) => {
  for (const [id, value] of [["adapter", adapter], ["rank", rank]]) {
    const control = document.getElementById(`lab-${id}`);
    control.value = value;
    control.dispatchEvent(new Event("input", { bubbles: true }));
  }
}"""
TURNED = "([adapter, rank]) => { const { view } = Lab.seen().write; return view?.adapter === adapter && view.rank === rank; }"


def record() -> dict[str, Any]:
    """What the page tells of one visit: `write` and `train`, as `start` in lab/page.js takes them."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        build_lab.write_site(Path(folder))
        browser = playwright.chromium.launch(executable_path=print_book.find_browser(), args=print_book.FLAGS)
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        page.goto((Path(folder) / "lab.html").as_uri())
        page.click("#lab-load")
        page.wait_for_function("Lab.seen().write.bars && Lab.seen().write.adapted", timeout=PATIENCE)
        seen = []
        for adapter, rank in SCENES:
            page.evaluate(TURN, [adapter, rank])
            page.wait_for_function(TURNED, arg=[adapter, rank], timeout=PATIENCE)
            seen.append(page.evaluate("Lab.seen().write"))
        page.click("#lab-train")
        page.wait_for_selector("#lab-train:disabled")
        page.wait_for_selector("#lab-train:enabled", timeout=PATIENCE)
        train = page.evaluate("Lab.seen().train")
        del train["settings"]["text"]  # the page has its example already
        browser.close()
    scenes = [{key: write[key] for key in ("view", "adapted", "bars")} for write in seen]
    return {"write": {"prompt": seen[0]["prompt"], "base": seen[0]["base"], "scenes": scenes}, "train": train}


def rounded(value: Any) -> Any:
    """The same with four digits after the point: more are not seen."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    """Record, and write the file."""
    text = json.dumps(rounded(record()), ensure_ascii=False, separators=(",", ":"))
    (build_lab.LAB / "recorded.json").write_text(text + "\n", encoding="utf8")


if __name__ == "__main__":
    main()

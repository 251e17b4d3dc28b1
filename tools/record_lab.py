"""Record what the lab shows before a reader has loaded the model (lab/page/recorded.json), and draw its card.

    python tools/record_lab.py         # both
    python tools/record_lab.py card    # the card alone

Opens the page in Chromium, writes with the adapters of SCENES, trains on the page's first example with the page's own
settings, and keeps texts, bars, losses and samples. The card, book/_static/lab_card.png, is the picture that other
programs show of a link to the page. Needs Chromium or Chrome.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import build_lab
import print_book
from PIL import Image
from playwright.sync_api import Page, sync_playwright

PATIENCE = 300_000  # milliseconds, for a training run on a busy machine
SCENES = [("cat", 8), ("cat", 2), ("cat", 0), ("plays", 8)]  # adapter and rank, as they are played
FACTS = [("restaurants", rank) for rank in (8, 4, 2, 1, 0)]  # for links that lead here; this adapter has its own prompt
TURN = """([adapter, rank]) => {
  for (const [id, value] of [["adapter", adapter], ["rank", rank]]) {
    const control = document.getElementById(`lab-${id}`);
    control.value = value;
    control.dispatchEvent(new Event("input", { bubbles: true }));
  }
}"""
TURNED = """([adapter, rank]) => {
  const { view } = Lab.seen().write;
  return view?.adapter === adapter && view.rank === rank;
}"""
# Asked for: those on the page may still be of the scene before.
BARS = """() => {
  const { view, prompt } = Lab.seen().write;
  return Lab.page.engine.ask("bars", { view, prompt, ids: [], count: 8, also: [] });
}"""


def record() -> dict[str, Any]:
    """What the page tells of one visit: `write` and `train`, as `start` in lab/page/page.js takes them."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        build_lab.write_site(Path(folder))
        browser = playwright.chromium.launch(executable_path=print_book.find_browser(), args=print_book.FLAGS)
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        page.goto((Path(folder) / "lab.html").as_uri())
        page.click("#lab-load")
        page.wait_for_function("Lab.seen().write.bars && Lab.seen().write.adapted", timeout=PATIENCE)
        write, facts = (recording(page, scenes) for scenes in (SCENES, FACTS))
        page.click("#lab-train")
        page.wait_for_selector("#lab-train:disabled")
        page.wait_for_selector("#lab-train:enabled", timeout=PATIENCE)
        train = page.evaluate("Lab.seen().train")
        del train["settings"]["text"], train["files"]  # the page has its example already
        browser.close()
    return {"write": write, "facts": facts, "train": train}


def recording(page: Page, scenes: list[tuple[str, int]]) -> dict[str, Any]:
    """What is written at these settings, one after the other: {prompt, base, scenes}."""
    seen = []
    for adapter, rank in scenes:
        page.evaluate(TURN, [adapter, rank])
        page.wait_for_function(TURNED, arg=[adapter, rank], timeout=PATIENCE)
        seen.append({**page.evaluate("Lab.seen().write"), "bars": page.evaluate(BARS)})
    kept = [{key: write[key] for key in ("view", "adapted", "bars")} for write in seen]
    return {"prompt": seen[-1]["prompt"], "base": seen[-1]["base"], "scenes": kept}


CARD = build_lab.ROOT / "book" / "_static" / "lab_card.png"
CARD_LOOK = """body { margin: 0 1rem; background: #fdfdfb; font-family: "DejaVu Sans", sans-serif; overflow: hidden; }
h1 { margin: 0.7rem 0 0; font: bold 1.9rem "DejaVu Serif", serif; } .lab-more { display: none; }
.lab:not(.lab-instrument), #lab-load, #lab-play, .lab-bars li:nth-child(n + 5) { display: none; }
.lab-instrument .lab-text { height: 8rem; }"""


def draw_card() -> None:
    """Photograph the first screen at 1200 × 630, in 64 colours."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        build_lab.write_site(Path(folder))
        browser = playwright.chromium.launch(executable_path=print_book.find_browser(), args=print_book.FLAGS)
        size = {"width": 1000, "height": 525}
        page = browser.new_page(viewport=size, device_scale_factor=1.2, reduced_motion="reduce")
        page.goto((Path(folder) / "lab.html").as_uri())
        page.add_style_tag(content=CARD_LOOK)
        page.evaluate("document.body.insertAdjacentHTML('afterbegin', '<h1>Train a LoRA in this page</h1>')")
        picture = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
    picture.convert("RGB").quantize(64).save(CARD, optimize=True)


def rounded(value: Any) -> Any:
    """The same with four digits after the point: more are not seen."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    """Record, draw, and write the files."""
    if sys.argv[1:] == ["card"]:
        return draw_card()
    text = json.dumps(rounded(record()), ensure_ascii=False, separators=(",", ":"))
    (build_lab.LAB / "page" / "recorded.json").write_text(text + "\n", encoding="utf8")
    return draw_card()


if __name__ == "__main__":
    main()

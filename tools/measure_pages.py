"""What a page costs a reader with a slow phone: its largest paint, what shifts, and what comes over the network.

    python tools/measure_pages.py _build/html
    python tools/measure_pages.py _build/html notebooks/01_rank_math.html

Each page is opened at 390 pixels in Chromium, with an empty cache, 1.6 Mbit/s, 150 ms to the server and a processor
slowed down to a quarter. Seconds depend on the machine, and on what else runs on it; bytes and shifts do not.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import print_book
from playwright.sync_api import Browser, Page, sync_playwright

NETWORK = {"offline": False, "latency": 150, "downloadThroughput": 1_600_000 / 8, "uploadThroughput": 750_000 / 8}
SLOWER = 4  # times, of the processor
WATCH = """window.paints = []; window.shifts = 0;
new PerformanceObserver(list => paints.push(...list.getEntries())).observe({
  type: "largest-contentful-paint", buffered: true });
new PerformanceObserver(list => list.getEntries().forEach(e => { if (!e.hadRecentInput) shifts += e.value; })).observe({
  type: "layout-shift", buffered: true });"""


class Cost(NamedTuple):
    """What opening a page costs."""

    paint: float  # seconds until the largest text or picture of the first screen stands
    shift: float  # how much of the screen moved without being asked to, as the web counts it
    before_load: int  # bytes over the network until the page has loaded
    what: str  # that was painted last


def measure(browser: Browser, url: str) -> Cost:
    """Open the page as a slow phone does, scroll to its end, and tell what it cost."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, device_scale_factor=2)
    cost = opened(context.new_page(), url, slow=True)
    context.close()
    return cost


def opened(tab: Page, url: str, *, slow: bool) -> Cost:
    """The same in a tab of a new context; not `slow`, the page comes as fast as the machine can."""
    tab.add_init_script(WATCH)
    session = tab.context.new_cdp_session(tab)
    session.send("Network.enable")
    received = []
    session.on("Network.loadingFinished", lambda event: received.append(event["encodedDataLength"]))
    if slow:
        session.send("Network.emulateNetworkConditions", NETWORK)
        session.send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
    tab.goto(url, timeout=120_000)
    tab.wait_for_timeout(1500 if slow else 200)
    before_load = int(sum(received))
    last = tab.evaluate("(e => [e?.startTime ?? 0, e?.element?.outerHTML.slice(0, 60)])(paints.at(-1))")
    if slow:
        session.send("Emulation.setCPUThrottlingRate", {"rate": 1})
    tab.evaluate(  # what comes late must have its place
        """async () => { for (let y = 0; y < document.body.scrollHeight; y += 700) {
        scrollTo(0, y); await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))); } }"""
    )
    session.detach()
    return Cost(last[0] / 1000, tab.evaluate("shifts"), before_load, last[1])


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("html", type=Path, help="the folder of built pages")
    parser.add_argument("pages", nargs="*", help="some of them; without, all")
    args = parser.parse_args()
    print(f"{'page':40} {'paint s':>8} {'shift':>6} {'kB':>6}")
    with print_book.serve(args.html) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=print_book.find_browser(), args=print_book.FLAGS)
        for page in args.pages or print_book.pages(args.html):
            cost = measure(browser, address + page)
            print(
                f"{page:40} {cost.paint:8.1f} {cost.shift:6.3f} {cost.before_load / 1000:6.0f}  {cost.what}", flush=True
            )
        browser.close()


if __name__ == "__main__":
    main()

"""What the lab costs, beside PyTorch on one thread: benchmarks/results/lab.csv.

    python tools/measure_lab.py

CPU time of a training step and of a written token (both sides in turns, in one run), how much faster two workers are
than one, the memory that the tab held, and the size of the page. CPU time hardly counts what else runs on the machine,
but other programs still take cache and memory bandwidth; the two workers are timed by the clock and need two cores to
themselves. Needs Chromium or Chrome, and Linux for the memory of a process.
"""

from __future__ import annotations

import csv
import gzip
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import build_lab
import print_book
import torch
from playwright.sync_api import Browser, Page, sync_playwright

from lora_lib import GPT2Model, get_peft_model, load_pretrained

OUT = build_lab.ROOT / "benchmarks" / "results" / "lab.csv"
ROWS, WINDOW, RANK, ALPHA = 4, 64, 8, 16  # what the page begins with: a step of 4 × 64 tokens, all linear layers
HIGH_RANK = 64
KINDS = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
STEPS = 4  # of each side in a round
TOKENS = 120  # written in a round
WITH_PROBE = """async ([source, relaxed]) => {
  const { worker } = Lab;
  Lab.worker = parts => worker({ ...parts, source });
  window.engine = await Lab.Engine.start(undefined, { relaxed });
  if (window.engine.relaxed !== relaxed) throw new Error("this browser takes the other kernels");
}"""


class Engine:
    """The lab's worker in a separate page, with the jobs of lab/probe.js added."""

    def __init__(self, browser: Browser, site: Path, relaxed: bool = True) -> None:
        self.relaxed = relaxed
        self.tab: Page = browser.new_page()
        self.tab.goto(site.as_uri())
        self.tab.evaluate(WITH_PROBE, [build_lab.bundle("probe.js"), relaxed])

    def ask(self, job: str, **what: Any) -> Any:
        """A job's answer. JSON both ways: playwright is slow with long lists."""
        script = "async ([job, what]) => JSON.stringify((await engine.ask(job, JSON.parse(what))) ?? null)"
        return json.loads(self.tab.evaluate(script, [job, json.dumps(what)]))


def renderers(browser: Browser) -> dict[int, float]:
    """CPU seconds that each of the browser's page processes has used, by its process id."""
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    return {process["id"]: process["cpuTime"] for process in processes if process["type"] == "renderer"}


def in_turns(browser: Browser, lab: Any, pytorch: Any, rounds: int) -> tuple[list[float], list[float]]:
    """CPU seconds of both sides, round by round; the first round of each is not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for count in range(rounds + 1):
        before = sum(renderers(browser).values())
        lab()
        lab_seconds = sum(renderers(browser).values()) - before
        before = time.process_time()
        pytorch()
        if count:
            times[0].append(lab_seconds)
            times[1].append(time.process_time() - before)
    return times


def step_cost(engine: Engine, browser: Browser, rank: int = RANK, rounds: int = 8) -> dict[str, float]:
    """CPU milliseconds of a training step in the lab and in PyTorch on one thread, and the median of their ratios."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base, _ = load_pretrained("gpt2-mini")
    model = get_peft_model(base, "all-linear", lora_rank=rank, lora_alpha=ALPHA)
    lora = {"r": rank, "alpha": ALPHA, "kinds": KINDS}
    ids = torch.randint(0, 4095, (STEPS, ROWS, WINDOW + 1))
    batches = [[row[:, :-1].tolist(), row[:, 1:].tolist()] for row in ids]
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, weight_decay=0.0)

    def steps() -> None:
        for rows in ids:
            logits = model(rows[:, :-1])
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()

    lab, pytorch = in_turns(
        browser, lambda: engine.ask("stepsOf", lora=lora, batches=batches, rate=1e-3), steps, rounds
    )
    return {
        "step_ms": 1000 * statistics.median(lab) / STEPS,
        "pytorch_step_ms": 1000 * statistics.median(pytorch) / STEPS,
        "ratio": statistics.median(a / b for a, b in zip(lab, pytorch, strict=True)),
    }


def token_cost(engine: Engine, browser: Browser, rounds: int = 5) -> dict[str, float]:
    """Tokens written in a second of CPU time, by the base alone, with a cache of keys and values on both sides."""
    torch.set_num_threads(1)
    model, tokenizer = load_pretrained("gpt2-mini")
    prompt = "Once upon a time"
    ids = torch.tensor([tokenizer.encode(prompt)])
    lab, pytorch = in_turns(
        browser,
        lambda: engine.ask("greedy", prompt=prompt, count=TOKENS),
        lambda: GPT2Model.generate(model, ids, TOKENS),
        rounds,
    )
    return {
        "tokens_per_second": TOKENS / statistics.median(lab),
        "pytorch_tokens_per_second": TOKENS / statistics.median(pytorch),
    }


SPEED_UP = """async settings => {
  let found;
  const news = what => { found = what.speedUp ?? found; };
  await engine.ask("train", { name: "measured", settings }, { news });
  return found.alone / found.together;
}"""


def speed_up(engine: Engine, workers: int = 2, runs: int = 5) -> float:
    """How many times as fast as one worker some are, by the clock: the median of several runs."""
    settings = {
        "text": "The lamp is on the table, and the table is by the door. " * 40, "prompt": "The", "batch": ROWS,
        "r": RANK, "alpha": ALPHA, "kinds": KINDS,
        "rate": 1e-3, "steps": 8, "patience": 100, "workers": workers,
    }  # fmt: skip
    return statistics.median(engine.tab.evaluate(SPEED_UP, settings) for _ in range(runs))


def sizes(site: Path) -> dict[str, float]:
    """Kilobytes of the page without the model, as a web server sends it, and megabytes of the model's scripts."""
    files = list(site.parent.iterdir())
    model = [file for file in files if file.name.startswith(("weights-", "tokens"))]
    page = [file for file in files if file not in model and not file.name.startswith("adapter-")]
    return {
        "page_kb": sum(len(gzip.compress(file.read_bytes())) for file in page) / 1e3,
        "model_mb": sum(file.stat().st_size for file in model) / 1e6,
    }


def peak_megabytes(browser: Browser) -> float:
    """The most memory that the tab's process ever held."""
    status = [Path(f"/proc/{process}/status").read_text() for process in renderers(browser)]
    return max(int(text.split("VmHWM:")[1].split()[0]) for text in status) / 1e3


def main() -> None:
    """Measure, and write the row."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        build_lab.write_site(Path(folder))
        site = Path(folder) / "lab.html"
        browser = playwright.chromium.launch(executable_path=print_book.find_browser(), args=print_book.FLAGS)
        engine = Engine(browser, site)
        loaded = engine.ask("memory")
        row = {
            "browser": f"Chromium {browser.version.split('.')[0]}",
            **step_cost(engine, browser),
            **{f"{name}_r{HIGH_RANK}": cost for name, cost in step_cost(engine, browser, HIGH_RANK).items()},
            **token_cost(engine, browser),
            "wasm_mb_loaded": loaded,
            "wasm_mb_trained": engine.ask("memory"),
            "tab_peak_mb": peak_megabytes(browser),
            "two_workers": speed_up(engine),
            **sizes(site),
        }
        browser.close()
    row = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()}
    with OUT.open("w", newline="", encoding="utf8") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)
    print(row)


if __name__ == "__main__":
    main()

"""What the lab costs, beside PyTorch on one thread: benchmarks/results/lab.csv, and the chat model's page.

    python tools/measure_lab.py
    python tools/measure_lab.py chat    # SmolLM2, printed only

CPU time of a training step and of a written token (both sides in turns, in one run), how much faster two workers are
than one, the memory that the tab held, and the size of the page. PyTorch's step is measured with all vectors that the
processor has, and held to those of 8 and of 4 numbers: a browser has 4. CPU time hardly counts what else runs on the
machine, but other programs still take cache and memory bandwidth; the two workers are timed by the clock and need two
cores to themselves. Needs Chromium or Chrome, and Linux for the memory of a process.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import build_lab
import print_book
import record_chat
import torch
from playwright.sync_api import Browser, Page, sync_playwright
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lora_lib import GPT2Model, get_peft_model, load_pretrained
from lora_lib.run import load_any

OUT = build_lab.ROOT / "benchmarks" / "results" / "lab.csv"
ROWS, WINDOW, RANK, ALPHA = 4, 64, 8, 16  # what the page begins with: a step of 4 × 64 tokens, all linear layers
HIGH_RANK = 64
MINI, SMOLLM2 = "gpt2-mini", "smollm2"
KINDS = {
    MINI: ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    SMOLLM2: [
        f"{part}_proj" for part in "self_attn.q self_attn.k self_attn.v self_attn.o mlp.gate mlp.up mlp.down".split()
    ],
}
STEPS = 4  # of each side in a round
TOKENS = 120  # written in a round
# What holds PyTorch, and the libraries that compute its products, to shorter vectors: AVX2 has 8 numbers, SSE 4.2 has 4
# and no instruction for a·b + c.
VECTORS: dict[str, dict[str, str]] = {
    "": {},
    "_avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "_sse": {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}
WITH_PROBE = """async ([source, relaxed]) => {
  const { worker } = Lab;
  Lab.worker = parts => worker({ ...parts, source });
  window.engine = await Lab.Engine.start(undefined, { relaxed });
  if (window.engine.relaxed !== relaxed) throw new Error("this browser takes the other kernels");
}"""


class Engine:
    """The lab's worker in a separate page, with the jobs of lab/worker/probe.js added."""

    model = MINI

    def __init__(self, browser: Browser, site: Path, relaxed: bool = True) -> None:
        self.relaxed = relaxed
        self.tab: Page = browser.new_page()
        self.tab.goto(site.as_uri())
        self.tab.evaluate(WITH_PROBE, [build_lab.bundle("worker/probe.js"), relaxed])

    def ask(self, job: str, **what: Any) -> Any:
        """A job's answer. JSON both ways: playwright is slow with long lists."""
        script = "async ([job, what]) => JSON.stringify((await engine.ask(job, JSON.parse(what))) ?? null)"
        return json.loads(self.tab.evaluate(script, [job, json.dumps(what)]))


class ChatEngine(Engine):
    """The same in the chat model's page, with SmolLM2 from beside it."""

    model = SMOLLM2

    def __init__(self, browser: Browser, address: str) -> None:
        self.tab = browser.new_page()
        self.tab.goto(f"{address}chat.html")
        replace = "source => { const { worker } = Lab; Lab.worker = parts => worker({ ...parts, source }); }"
        self.tab.evaluate(replace, build_lab.bundle("worker/probe.js"))
        self.tab.click("#lab-load")
        self.tab.wait_for_function("Lab.chat.pace > 0", timeout=600_000)
        self.tab.evaluate("window.engine = Lab.chat.engine")


def renderers(browser: Browser) -> dict[int, float]:
    """CPU seconds that each of the browser's page processes has used, by its process id."""
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    return {process["id"]: process["cpuTime"] for process in processes if process["type"] == "renderer"}


def in_browser(browser: Browser, work: Callable[[], Any]) -> Callable[[], float]:
    """`work`, which then returns the CPU seconds that it took in the browser."""

    def measured() -> float:
        before = sum(renderers(browser).values())
        work()
        return sum(renderers(browser).values()) - before

    return measured


def in_turns(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of all sides, round by round; the first round of each is not counted."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for count in range(rounds + 1):
        for name, work in sides.items():
            seconds = work()
            if count:
                times[name].append(seconds)
    return times


Batches = list[tuple[list[list[int]], list[list[int]]]]  # rows and targets of STEPS steps


def windows() -> Batches:
    """Steps of ROWS windows of WINDOW tokens each, all of whose targets count."""
    ids = torch.randint(0, 4095, (STEPS, ROWS, WINDOW + 1), generator=torch.Generator().manual_seed(0))
    return [(rows[:, :-1].tolist(), rows[:, 1:].tolist()) for rows in ids]


def chats(lines: list[str]) -> Batches:
    """Steps of ROWS of these lines, "question | answer", as the chat model's page makes rows of them."""
    _, tokenizer = load_any(SMOLLM2)
    rows, targets = [], []
    for question, answer in (line.split("|") for line in lines[: STEPS * ROWS]):
        chat = [{"role": "user", "content": question.strip()}]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        asked = tokenizer.encode(text)
        ids = torch.tensor([*asked, *tokenizer.encode(answer.strip()), tokenizer.eos_token_id])
        rows.append(ids[:-1])
        targets.append(ids[1:].where(torch.arange(1, len(ids)) >= len(asked), -100))
    steps = range(0, STEPS * ROWS, ROWS)
    padded = [(tokenizer.eos_token_id, rows), (-100, targets)]
    filled = [[pad_sequence(all_[i : i + ROWS], True, value).tolist() for i in steps] for value, all_ in padded]
    return list(zip(*filled, strict=True))


class PyTorch:
    """The training steps in PyTorch on one thread, in another process with these environment variables."""

    def __init__(self, model: str, rank: int, environment: dict[str, str], batches: Batches) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "steps", model, str(rank)],
            env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdin
        print(json.dumps(batches), file=self.process.stdin, flush=True)

    def steps(self) -> float:
        """CPU seconds of STEPS steps."""
        assert self.process.stdin
        assert self.process.stdout
        print(file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def answer_steps(name: str, rank: int) -> None:
    """The other side of `PyTorch`: the input's first line has the steps; for each other, print their CPU seconds."""
    torch.set_num_threads(1)
    base, _ = load_any(name)
    model = get_peft_model(base, "all-linear", lora_rank=rank, lora_alpha=ALPHA)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, weight_decay=0.0)
    batches = [(torch.tensor(rows), torch.tensor(targets)) for rows, targets in json.loads(sys.stdin.readline())]
    for _ in sys.stdin:
        before = time.process_time()
        for rows, targets in batches:
            output = model(rows)
            logits = output if isinstance(output, Tensor) else output.logits
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        print(time.process_time() - before, flush=True)


def step_cost(
    engine: Engine,
    browser: Browser,
    rank: int,
    vectors: dict[str, dict[str, str]],
    rounds: int = 8,
    batches: Batches | None = None,
) -> dict[str, float]:
    """CPU milliseconds of a training step in the lab and in PyTorch, by its vectors; the medians of their ratios."""
    lora = {"r": rank, "alpha": ALPHA, "kinds": KINDS[engine.model]}
    batches = batches or windows()
    peers = {name: PyTorch(engine.model, rank, environment, batches) for name, environment in vectors.items()}
    lab = in_browser(browser, lambda: engine.ask("stepsOf", lora=lora, batches=batches, rate=1e-3))
    times = in_turns({"lab": lab, **{name: peer.steps for name, peer in peers.items()}}, rounds)
    for peer in peers.values():
        peer.close()
    cost = {"step_ms": 1000 * statistics.median(times["lab"]) / STEPS}
    for name in vectors:
        cost[f"pytorch_step_ms{name}"] = 1000 * statistics.median(times[name]) / STEPS
        cost[f"ratio{name}"] = statistics.median(a / b for a, b in zip(times["lab"], times[name], strict=True))
    return cost


def token_cost(engine: Engine, browser: Browser, rounds: int = 5) -> dict[str, float]:
    """Tokens written in a second of CPU time, by the base alone, with a cache of keys and values on both sides."""
    torch.set_num_threads(1)
    model, tokenizer = load_pretrained("gpt2-mini")
    prompt = "Once upon a time"
    ids = torch.tensor([tokenizer.encode(prompt)])

    def in_pytorch() -> float:
        before = time.process_time()
        GPT2Model.generate(model, ids, TOKENS)
        return time.process_time() - before

    lab = in_browser(browser, lambda: engine.ask("greedy", prompt=prompt, count=TOKENS))
    times = in_turns({"lab": lab, "pytorch": in_pytorch}, rounds)
    return {
        "tokens_per_second": TOKENS / statistics.median(times["lab"]),
        "pytorch_tokens_per_second": TOKENS / statistics.median(times["pytorch"]),
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
        "r": RANK, "alpha": ALPHA, "kinds": KINDS[engine.model],
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


def measure_chat() -> None:
    """Print what SmolLM2 costs in the chat model's page."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        build_lab.write_site(Path(folder))
        browser = playwright.chromium.launch(executable_path=print_book.find_browser(), args=print_book.FLAGS)
        with record_chat.served(Path(folder)) as address:
            engine = ChatEngine(browser, address)
            print(f"memory once a step was measured: {engine.ask('memory'):.0f} MB", flush=True)
            of_lines = chats(engine.tab.input_value("#lab-pairs").splitlines())
            longest = max(len(rows[0]) for rows, _ in of_lines)
            print_steps(engine, browser, f"{ROWS} of the page's lines, up to {longest} tokens", of_lines)
            print_steps(engine, browser, f"{ROWS} × {WINDOW} tokens", windows())
            print(f"memory in training: {engine.ask('memory'):.0f} MB", flush=True)
            write = in_browser(browser, lambda: engine.ask("greedy", prompt="Once upon a time", count=TOKENS))
            token = 1000 * statistics.median(in_turns({"lab": write}, 3)["lab"]) / TOKENS
            print(f"a token: {token:.1f} ms", flush=True)
            print(f"two workers: {speed_up(engine, runs=3):.2f} times as fast as one")
        browser.close()


def print_steps(engine: Engine, browser: Browser, of: str, batches: Batches) -> None:
    """Print what a step of these batches costs, beside PyTorch, which computes padding and all logits, too."""
    vectors = {name: VECTORS[name] for name in ("", "_avx2")}
    cost = step_cost(engine, browser, RANK, vectors, rounds=3, batches=batches)
    print(f"a step of {of}, SmolLM2, rank {RANK}: {cost['step_ms']:.0f} ms")
    for name in vectors:
        peer = f"{cost[f'pytorch_step_ms{name}']:.0f} ms, ratio {cost[f'ratio{name}']:.2f}"
        print(f"  PyTorch on one thread{name.replace('_', ', ')}: {peer}", flush=True)


def main() -> None:
    """Measure, and write the row."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        build_lab.write_site(Path(folder))
        site = Path(folder) / "lab.html"
        browser = playwright.chromium.launch(executable_path=print_book.find_browser(), args=print_book.FLAGS)
        engine = Engine(browser, site)
        loaded = engine.ask("memory")
        high_rank = step_cost(engine, browser, HIGH_RANK, {"": {}})
        row = {
            "browser": f"Chromium {browser.version.split('.')[0]}",
            **step_cost(engine, browser, RANK, VECTORS),
            **{f"{name}_r{HIGH_RANK}": cost for name, cost in high_rank.items()},
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
    if sys.argv[1:2] == ["steps"]:
        answer_steps(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:] == ["chat"]:
        measure_chat()
    else:
        main()

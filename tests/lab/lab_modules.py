"""What the tests of the lab share: its modules, its page in two browsers, a small GPT-2, and a stand-in for the Hub."""

from __future__ import annotations

import base64
import functools
import http.server
import itertools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import build_lab
import print_book
import torch
from playwright.sync_api import Browser

KINDS = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
PROSE = (build_lab.LAB / "worker" / "prose.txt").read_text(encoding="utf8")


@functools.cache
def as_module(name: str) -> str:
    """An address from which a page can import a module of `lab/`, with all that it imports."""
    return "data:text/javascript;base64," + base64.b64encode(build_lab.bundle(name, "esm").encode()).decode()


@functools.cache
def probe() -> str:
    """The worker's script, with the jobs of lab/worker/probe.js added."""
    return build_lab.bundle("worker/probe.js")


@contextmanager
def simulated_gpu(browser: Browser) -> Iterator[Browser]:
    """A Chromium that offers WebGPU on a GPU that it simulates, closed afterwards."""
    flags = [*print_book.FLAGS, "--enable-unsafe-webgpu"]
    chromium = browser.browser_type.launch(executable_path=print_book.find_browser(), args=flags)
    yield chromium
    chromium.close()


# ---- The page ----------------------------------------------------------------------------------------------------


class Driver:
    """What the tests do in a page, whichever browser it is in: all of it through scripts, as Firefox takes them."""

    def __init__(self, tab: Any, downloads: Path) -> None:
        self.tab, self.downloads = tab, downloads

    def js(self, script: str) -> Any:
        return self.tab.evaluate(script)

    def text(self, name: str) -> str:
        return self.js(f"document.getElementById('lab-{name}').textContent")

    def click(self, name: str) -> None:
        self.usable(name)
        self.js(f"document.getElementById('lab-{name}').click()")

    def fill(self, name: str, value: object) -> None:
        element = f"document.getElementById('lab-{name}')"
        self.js(f"void ({element}.value = {json.dumps(value)})")
        for event in ("input", "change"):
            self.js(f"void {element}.dispatchEvent(new Event('{event}', {{ bubbles: true }}))")

    def until(self, script: str, seconds: float = 120) -> Any:
        """The value of an expression, once it is true."""
        end = time.monotonic() + seconds
        while not (value := self.js(script)):
            assert time.monotonic() < end, f"still not: {script}; {self.text('status')} {self.text('train-status')}"
            time.sleep(0.05)
        return value

    def usable(self, name: str) -> None:
        self.until(f"!document.getElementById('lab-{name}').disabled", 30)

    def losses(self) -> list[float]:
        return json.loads(self.js("document.getElementById('lab-loss').dataset.losses"))

    def load(self) -> None:
        self.click("load")
        self.usable("train")
        self.until("Boolean(Lab.seen().write.adapted && Lab.seen().write.bars)")

    def train(self, **numbers: object) -> None:
        """A whole run; the fields are named as in the page's ids."""
        for name, value in numbers.items():
            self.fill(name.replace("_", "-"), value)
        self.click("train")
        self.until("document.getElementById('lab-train').disabled")
        self.until("!document.getElementById('lab-train').disabled")

    def download(self, name: str) -> Path:
        """The file that a click on this button brings."""
        before = set(self.downloads.iterdir())
        self.click(name)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            new = [file for file in set(self.downloads.iterdir()) - before if file.stat().st_size]
            if len(new) == 1 and new[0].suffix != ".part":
                return new[0]
            time.sleep(0.05)
        raise AssertionError("no file came")


class Chromium(Driver):
    """A tab of Chromium, offline, with what went wrong in it and what it asked for."""

    def __init__(self, browser: Browser, folder: Path, url: str, **context: Any) -> None:
        self.context = browser.new_context(**context)
        super().__init__(self.context.new_page(), folder)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None)
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.context.set_offline(True)
        self.tab.goto(url)

    def download(self, name: str) -> Path:
        self.usable(name)
        with self.tab.expect_download() as coming:
            self.js(f"document.getElementById('lab-{name}').click()")
        file = self.downloads / coming.value.suggested_filename
        coming.value.save_as(file)
        return file


# Playwright keeps these features of Chromium switched off.
THROTTLES = ["--disable-background-timer-throttling", "--disable-backgrounding-occluded-windows",
             "--disable-renderer-backgrounding"]  # fmt: skip


class Unwatched:
    """A tab that Playwright does not attach itself to: it keeps its own tabs visible, this one can be hidden."""

    def __init__(self, browser: Browser) -> None:
        self.devtools, self.page = browser.new_browser_cdp_session(), browser.new_page()
        self.answers: dict[int, Any] = {}
        self.numbers = itertools.count()
        self.target = self.devtools.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        self.devtools.on("Target.receivedMessageFromTarget", self.hear)
        asked = {"targetId": self.target, "flatten": False}
        self.session = self.devtools.send("Target.attachToTarget", asked)["sessionId"]

    def hear(self, event: Any) -> None:
        message = json.loads(event["message"])
        self.answers[message["id"]] = message["result"]["result"]

    def evaluate(self, script: str) -> Any:
        number = next(self.numbers)
        params = {"expression": f"(async () => await ({script}))()", "awaitPromise": True, "returnByValue": True}
        message = {"id": number, "method": "Runtime.evaluate", "params": params}
        self.devtools.send("Target.sendMessageToTarget", {"sessionId": self.session, "message": json.dumps(message)})
        while number not in self.answers:
            self.page.wait_for_timeout(20)
        return self.answers.pop(number).get("value")

    def goto(self, url: str) -> None:
        self.evaluate(f"void (location.href = {json.dumps(url)})")

    def hide(self) -> None:
        """Open a tab in front of it."""
        self.devtools.send("Target.createTarget", {"url": "about:blank"})


@contextmanager
def background(browser: Browser) -> Iterator[Unwatched]:
    """A tab of a Chromium that slows hidden tabs down to a timer a minute, as it does after five minutes."""
    flags = [*print_book.FLAGS, "--enable-features=IntensiveWakeUpThrottling:grace_period_seconds/1"]
    path = print_book.find_browser()
    chromium = browser.browser_type.launch(executable_path=path, args=flags, ignore_default_args=THROTTLES)
    yield Unwatched(chromium)
    chromium.close()


# ---- A GPT-2 that the reader brings ------------------------------------------------------------------------------

# A vocabulary that is no multiple of 8, heads of 12 numbers, an MLP that is not four times as wide, another epsilon.
SIZES = {"n_embd": 48, "n_head": 4, "n_layer": 3, "n_positions": 50, "n_inner": 104, "layer_norm_epsilon": 1e-3}


def tiny_gpt2(vocab_size: int) -> Any:
    """A random GPT-2 of transformers' whose biases and norms are not those of a new one."""
    from transformers import GPT2Config, GPT2LMHeadModel  # slow to import, and most tests do without

    torch.manual_seed(0)
    end = vocab_size - 1
    config = GPT2Config(vocab_size=vocab_size, bos_token_id=end, eos_token_id=end, **SIZES)
    model = GPT2LMHeadModel(config).eval()
    for name, weights in model.named_parameters():
        torch.nn.init.normal_(weights, mean=float("ln_" in name and "weight" in name), std=0.08)
    return model


def read_files(folder: Path, *left_out: str) -> dict[str, bytes]:
    """{name: bytes} of a folder's files."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name not in left_out}


class Hub(http.server.BaseHTTPRequestHandler):
    """A stand-in for the Hub on this machine: lists a model's files, and hands them out."""

    files: dict[str, bytes] = {}
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        name = self.path.removeprefix("/someone/tiny/resolve/main/")
        if self.path == "/api/models/someone/tiny/tree/main":
            listed = [{"type": "file", "path": n, "size": len(data)} for n, data in self.files.items()]
            data = json.dumps([*listed, {"type": "directory", "path": "onnx", "size": 0}]).encode()
        elif name in self.files:
            data = self.files[name]
        else:
            self.send_response(404)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Not on the terminal."""

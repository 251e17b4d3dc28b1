"""The lab when something ends or goes silent under it: a worker, a helper, the browser's store, the tab, the line."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from lab_modules import Chromium, Driver, as_module, probe
from measure_lab import Engine
from playwright.sync_api import Browser, Route

WITH_PROBE = """(source => {
  const { worker } = Lab;
  Lab.worker = parts => worker({ ...parts, source });
})"""
MEASURED = "!Lab.seen().train.recorded && Lab.seen().train.measured.some(({ at }) => at > 0)"
IDLE = "!document.getElementById('lab-train').disabled"


def said(page: Driver, name: str, words: str, seconds: float = 60) -> None:
    page.until(f"document.getElementById('lab-{name}').textContent.includes({json.dumps(words)})", seconds)


def begin(page: Driver, **numbers: object) -> None:
    """A long run, until its first measurement: a probe's jobs are in its worker."""
    page.js(f"{WITH_PROBE}({json.dumps(probe())})")
    page.load()
    for name, value in {"steps": 400, **numbers}.items():
        page.fill(name, value)
    page.click("train")
    page.until(MEASURED)


def check_saved(page: Driver) -> None:
    """The run has ended in words, another worker is there, and the best adapter so far writes."""
    assert "The adapter of step 10 is kept" in page.text("train-status")
    page.until("Lab.page.engine && Lab.seen().write.view?.adapter === 'run-1'", 60)
    page.until("document.getElementById('lab-kept').textContent.includes('unfinished')")
    assert len(page.text("adapted")) > 60 and page.text("adapted") != page.text("base")
    page.train(steps=2)
    assert len(page.losses()) == 2


# ---- A worker ----------------------------------------------------------------------------------------------------


def test_a_worker_that_is_ended_while_it_trains(visit: Driver) -> None:
    begin(visit)
    before = time.monotonic()
    visit.js("void Lab.page.engine.worker.terminate()")
    visit.until(IDLE, 10)
    assert time.monotonic() - before < 5
    assert "The browser has ended the lab's worker" in visit.text("train-status")
    check_saved(visit)


def test_a_worker_that_never_comes_back(visit: Driver) -> None:
    begin(visit)
    visit.until("Lab.page.engine.limit < 5")
    before = time.monotonic()
    visit.js("void Lab.page.engine.ask('hang').catch(() => {})")
    visit.until(IDLE, 20)
    assert 3 < time.monotonic() - before < 7, "a second of ticks, and a step that was going on"
    assert "no longer answers" in visit.text("train-status")
    check_saved(visit)


def test_an_idle_worker_that_is_ended_is_replaced(visit: Driver) -> None:
    visit.load()
    visit.js("void Lab.page.engine.worker.terminate()")
    said(visit, "status", "Another one is starting", 5)
    said(visit, "status", "is ready")
    visit.fill("rank", 3)
    visit.until("Lab.seen().write.view?.rank === 3")


def test_workers_that_end_again_and_again_are_not_started_for_ever(
    browser: Browser, site: Path, tmp_path: Path
) -> None:
    page = Chromium(browser, tmp_path, site.as_uri())
    page.load()
    for _ in range(4):
        page.until("Boolean(Lab.page.engine)")
        page.js("void (window.ended = Lab.page.engine).worker.terminate()")
        page.until("Lab.page.engine !== window.ended", 10)
    said(page, "status", "Close other tabs, then load the model again")
    page.load()
    page.context.close()


def test_a_helper_that_is_ended_costs_no_step(visit: Driver) -> None:
    begin(visit, workers=2, steps=24)
    visit.js("void Lab.page.engine.ask('killHelper')")
    said(visit, "train-status", "one worker goes on alone", 10)
    visit.until(IDLE)
    assert len(visit.losses()) == 24 and "is trained: 24 steps" in visit.text("train-status")


# ---- The tab -----------------------------------------------------------------------------------------------------


def test_a_closed_tab_costs_the_steps_since_the_last_measurement(visit: Driver, site: Path) -> None:
    begin(visit)
    visit.until("Lab.page && document.getElementById('lab-kept-status').textContent.includes('is kept')", 10)
    visit.tab.goto("about:blank")
    visit.tab.goto(site.as_uri())
    visit.until("!document.getElementById('lab-yours').hidden")
    assert "1 adapter of yours is kept in this browser" in visit.text("yours")
    assert "10 of 400 steps, unfinished" in visit.text("kept")
    visit.js("document.querySelector('#lab-yours button').click()")
    visit.until("Lab.seen().write.view?.adapter === 'run-1'", 60)


def test_two_tabs_train_at_the_same_time(browser: Browser, site: Path, tmp_path: Path) -> None:
    first = Chromium(browser, tmp_path, site.as_uri())
    second = Driver(first.context.new_page(), tmp_path)
    second.tab.goto(site.as_uri())
    for page in (first, second):
        page.load()
        page.fill("steps", 10)
        page.click("train")
    for page in (first, second):
        page.until(IDLE)
        said(page, "kept-status", "is kept")
    first.js("window.dispatchEvent(new Event('focus'))")
    first.until("document.getElementById('lab-kept').tBodies[0].rows.length === 2")
    assert first.js("Lab.page.kept.map(({ id }) => id).sort()") == ["run-1", "run-2"]
    first.context.close()


def test_a_tab_that_was_frozen_accuses_nobody(browser: Browser, site: Path, tmp_path: Path) -> None:
    """As a hidden tab on a phone, or a machine that slept."""
    page = Chromium(browser, tmp_path, site.as_uri())
    page.load()
    page.fill("steps", 40)
    page.click("train")
    page.until("document.getElementById('lab-loss').dataset.losses !== '[]'")
    devtools = page.context.new_cdp_session(page.tab)
    devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
    time.sleep(8)
    devtools.send("Page.setWebLifecycleState", {"state": "active"})
    page.until(IDLE)
    assert len(page.losses()) == 40 and "is trained: 40 steps" in page.text("train-status")
    page.context.close()


# ---- The browser's store -----------------------------------------------------------------------------------------

SILENT_STORE = """void (IDBDatabase.prototype.transaction = () => ({
  objectStore: () => ({ add() {}, put() {}, get() {}, getAll() {}, delete() {} }) }))"""


def test_a_store_that_never_answers_blocks_nothing(visit: Driver) -> None:
    visit.load()
    visit.js(SILENT_STORE)
    before = time.monotonic()
    visit.fill("steps", 3)
    visit.click("train")
    visit.until("JSON.parse(document.getElementById('lab-loss').dataset.losses).length > 0", 30)
    assert time.monotonic() - before < 15
    visit.until(IDLE)
    assert "is trained: 3 steps" in visit.text("train-status")
    said(visit, "kept-status", "has not answered for 2", 40)


def test_a_browser_without_a_store_says_so(browser: Browser, site: Path, tmp_path: Path) -> None:
    page = Chromium(browser, tmp_path, "about:blank")
    page.tab.add_init_script("Object.defineProperty(window, 'indexedDB', { value: null })")
    page.tab.goto(site.as_uri())
    said(page, "kept-status", "does not let the page keep adapters (it has no IndexedDB)")
    page.context.close()


# ---- Memory, and a slow line -------------------------------------------------------------------------------------


def test_a_refused_run_gives_its_memory_back(browser: Browser, site: Path) -> None:
    engine = Engine(browser, site)
    script = """async r => {
      const settings = { text: "The goose ran away, and the boy went after it. ".repeat(30), prompt: "The", batch: 4,
        r, alpha: 8, rate: 1e-3, steps: 1, kinds: ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"] };
      return engine.ask("train", { name: "mine", settings }).then(done => done.steps, error => error.message);
    }"""
    engine.ask("limit", megabytes=90)
    for _ in range(3):
        refused = engine.tab.evaluate(script, 300)
        assert "MB of memory, but the browser refused more" in str(refused)
    assert engine.tab.evaluate(script, 4) == 1
    engine.tab.close()


def test_a_slow_line_is_seen_to_move(browser: Browser, site: Path, tmp_path: Path) -> None:
    page = Chromium(browser, tmp_path, "about:blank")
    held: list[Route] = []
    page.tab.route("**/weights-4.js*", lambda route: held.append(route))
    page.tab.goto(site.as_uri())
    page.click("load")
    said(page, "status", "13 of 25 MB are here")
    assert page.js("document.getElementById('lab-progress').value") == 0.5
    while not held:
        page.tab.wait_for_timeout(50)
    held[0].abort()
    said(page, "status", "try again when there is a network")
    page.tab.unroute("**/weights-4.js*")
    page.load()
    page.context.close()


# ---- Words -------------------------------------------------------------------------------------------------------


def test_a_run_that_is_stopped_at_once_leaves_nothing(visit: Driver) -> None:
    visit.load()
    visit.click("train")
    visit.click("stop")
    visit.until(IDLE)
    options: list[Any] = visit.js("[...document.getElementById('lab-adapter').options].map(one => one.value)")
    if not visit.losses():
        assert "nothing is kept" in visit.text("train-status") and "run-1" not in options
        assert visit.js("Lab.page.kept.length") == 0


def test_a_message_goes_when_its_reason_has_gone(visit: Driver) -> None:
    visit.load()
    visit.fill("prompt", "word " * 9000)
    said(visit, "write-status", "shorten it")
    visit.fill("prompt", "word")
    visit.until("document.getElementById('lab-write-status').textContent === ''", 20)


FILES = """async ([module, names]) => {
  const { chosenModelFiles } = await import(module);
  try { chosenModelFiles(names.map(name => new File(["x"], name))); } catch (error) { return error.message; }
}"""


def test_files_of_other_kinds_are_called_by_their_names(bare: Any) -> None:
    def words(*names: str) -> str:
        return str(bare.evaluate(FILES, [as_module("page/model_sources.js"), list(names)]))

    assert "model-q4.gguf is a GGUF file. This page needs" in words("config.json", "model-q4.gguf")
    assert "The page of the chat model opens a GGUF" in words("model-q4.gguf")
    assert "pytorch_model.bin is a file that PyTorch has pickled" in words("config.json", "pytorch_model.bin")
    assert "(model.safetensors) has no config.json. A GPT-2 needs config.json, model.saf" in words("model.safetensors")
    assert "(a, b, c and 2 more) has no config.json" in words("a", "b", "c", "d", "e")


@pytest.mark.parametrize(("begins", "kind"), [("GGUF", "a GGUF file"), ("PK\\x03\\x04", "pickled")])
def test_renamed_files_are_known_by_how_they_begin(bare: Any, begins: str, kind: str) -> None:
    script = f"""async module => {{
      const {{ openSafetensors }} = await import(module);
      return openSafetensors(new Blob(["{begins}" + "\\0".repeat(20)])).then(() => "", error => error.message);
    }}"""
    assert kind in bare.evaluate(script, as_module("files/safetensors.js"))

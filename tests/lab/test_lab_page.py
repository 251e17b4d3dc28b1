"""The lab as its visitor meets it: the recording, one press to train, adapters that stay, and links that carry one.

The arithmetic is in tests/lab/test_lab.py; the page is opened here in the same way, as a file and with the network cut.
"""

from __future__ import annotations

import base64
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from lab_modules import Chromium, Driver, Hub, as_module
from PIL import Image
from playwright.sync_api import Browser, Page


def opened(browser: Browser, site: Path, folder: Path, address: str = "", **context: Any) -> Chromium:
    """The page in Chromium; `address` is what follows its name."""
    return Chromium(browser, folder, site.as_uri() + address, **context)


def value(page: Driver, name: str) -> str:
    return page.js(f"document.getElementById('lab-{name}').value")


def requests(page: Driver) -> list[str]:
    return page.requests if isinstance(page, Chromium) else page.tab.requests


def options(page: Driver) -> dict[str, str]:
    """What can be chosen as an adapter: each name with its text."""
    return dict(page.js("[...document.getElementById('lab-adapter').options].map(one => [one.value, one.textContent])"))


def visit_again(page: Driver, url: str) -> None:
    """Open another page and come back, so that nothing stays but what the browser keeps."""
    page.tab.goto("about:blank")
    page.tab.goto(url)


# ---- The first screen --------------------------------------------------------------------------------------------


def test_a_recording_plays_and_nothing_is_loaded(visit: Driver) -> None:
    first = visit.text("adapted")
    assert len(first) > 100 and len(visit.text("base")) > 100, "the first scene stands there at once"
    assert visit.text("rank-value") == "8 of 8"
    visit.until("document.getElementById('lab-rank').value === '2'", 60)
    visit.until("document.querySelectorAll('#lab-adapted .lab-token').length > 5", 60)
    visit.click("play")
    stopped = visit.text("adapted")
    assert stopped != first
    time.sleep(0.5)
    assert visit.text("adapted") == stopped and visit.text("play") == "Play"
    visit.click("play")
    visit.until(f"document.getElementById('lab-adapted').textContent !== {json.dumps(stopped)}", 60)
    assert not [url for url in requests(visit) if "weights" in url]
    assert "#" not in visit.js("location.href"), "a recording says nothing in the address"


def test_a_reader_who_wants_no_motion_gets_none(browser: Browser, site: Path, tmp_path: Path) -> None:
    page = opened(browser, site, tmp_path, reduced_motion="reduce")
    seen = page.text("adapted"), value(page, "rank"), page.text("next")
    assert len(seen[0]) > 100 and page.text("play") == "Play"
    time.sleep(4)
    assert (page.text("adapted"), value(page, "rank"), page.text("next")) == seen
    assert page.js("document.getAnimations().length") == 0
    page.click("play")  # who presses it asks for motion
    page.until("document.getElementById('lab-rank').value === '2'", 60)
    page.context.close()


def test_a_change_loads_the_model_and_takes_the_recordings_place(visit: Driver) -> None:
    visit.until("document.getElementById('lab-rank').value === '2'", 60)
    visit.fill("rank", 4)
    assert visit.js("!document.getElementById('lab-progress').hidden || Boolean(Lab.page.engine)")
    visit.until("Lab.seen().write.view?.rank === 4")
    assert visit.js("Lab.seen().write.view.adapter") == "cat", "the adapter that was on the page"
    assert "rank=4" in visit.js("location.hash")
    assert visit.js("document.getElementById('lab-play').hidden && document.getElementById('lab-load').hidden")
    assert visit.text("adapted").startswith("The door opened, and")


# The standing page has no header: the book's is 191 pixels on a phone and 234 on a desk (its title and one sentence).
@pytest.mark.parametrize(("width", "height", "above", "bars"), [(1120, 900, 234, 8), (390, 844, 191, 4)])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_instrument_fits_the_first_screen(
    browser: Browser, site: Path, tmp_path: Path, width: int, height: int, above: int, bars: int, theme: str
) -> None:
    page = opened(browser, site, tmp_path, viewport={"width": width, "height": height}, reduced_motion="reduce")
    page.js(f"void (document.documentElement.dataset.theme = '{theme}')")
    top = page.js("document.getElementById('lab').getBoundingClientRect().top")
    for name in ("prompt", "adapter", "base", "adapted", "rank", "alpha", "train-now"):
        bottom = page.js(f"document.getElementById('lab-{name}').getBoundingClientRect().bottom") - top
        assert bottom + above <= height, f"{name} ends at {bottom + above}"
    rows = page.js(
        "[...document.querySelectorAll('#lab-next li')].map(row => row.getBoundingClientRect().bottom).filter(Boolean)"
    )
    assert len(rows) == bars and max(rows) - top + above <= height
    assert page.js("document.documentElement.scrollWidth") <= width
    page.context.close()


MOVES = """() => new Promise(resolve => {
  const list = document.getElementById("lab-next");
  const bars = () => Object.fromEntries([...list.children].map(row => [row.dataset.id,
    row.querySelector(".lab-bar-adapted .lab-filled")]));
  const before = Object.fromEntries(Object.entries(bars()).map(([id, bar]) => [id, bar.offsetWidth]));
  new MutationObserver(() => resolve(Object.entries(bars()).map(([id, bar]) => {
    const [from, to] = bar.getAnimations()[0].effect.getKeyframes();
    return [before[id] ?? 0, parseFloat(from.width), parseFloat(to.width), bar.offsetWidth];
  }))).observe(list, { childList: true });
})"""


def test_bars_move_to_their_new_values(browser: Browser, site: Path, tmp_path: Path) -> None:
    page = opened(browser, site, tmp_path)
    page.until("document.getAnimations().length === 0")
    moves = page.tab.evaluate(MOVES)  # when the next scene comes
    assert len(moves) == 8 and max(abs(to - begin) for _, begin, to, _ in moves) > 10
    for before, begin, _, now in moves:
        assert begin == pytest.approx(before, abs=1) and now == pytest.approx(before, abs=2)
    page.until("document.getAnimations().length === 0")
    widths = "[...document.querySelectorAll('#lab-next .lab-bar-adapted .lab-filled')].map(bar => bar.offsetWidth)"
    assert sorted(page.js(widths)) == pytest.approx(sorted(to for _, _, to, _ in moves), abs=1)
    page.context.close()


def test_an_example_sets_its_prompt_unless_the_reader_has_typed_one(
    browser: Browser, site: Path, tmp_path: Path
) -> None:
    page = opened(browser, site, tmp_path)
    page.fill("example", "weather")
    assert value(page, "prompt") == "Weather for giants, tomorrow."
    page.fill("example", "recipes")
    assert value(page, "prompt") == "Snail pie. Take"
    page.fill("prompt", "My own words")
    page.fill("example", "ship")
    assert value(page, "prompt") == "My own words"
    page.context.close()


# ---- Training, and what stays ------------------------------------------------------------------------------------


BARS = """name => Lab.page.engine.ask("bars", {
  view: { adapter: name, rank: 8, strength: 1, off: [] }, prompt: "Arr", ids: [], count: 8, also: [] })"""


def test_one_press_trains_and_shows_what_was_learned_and_forgotten(visit: Driver) -> None:
    """The default run learns its example to the end: nothing is memorised."""
    visit.click("train-now")
    visit.until("document.getElementById('lab-train').disabled")
    visit.until("!document.getElementById('lab-train').disabled", 600)
    run = visit.js("({ ...Lab.seen().train, losses: Lab.seen().train.losses.length, settings: 0 })")
    assert run["best"] == run["losses"] == run["measured"][-1]["at"]
    assert run["measured"][0]["heldOut"] - run["measured"][-1]["heldOut"] > 0.8
    assert "Learning: " in visit.text("verdict") and "Memorising: " not in visit.text("verdict")
    samples = {sample["at"]: sample for sample in run["samples"]}
    for name, text, begins in (("learned", "text", "Ninth day. Arr,"), ("forgotten", "known", "Once upon a time")):
        base, kept = visit.js(f"[...document.querySelectorAll('#lab-{name} li')].map(item => item.textContent)")
        assert base == f"Base{begins}{samples[0][text]}" and samples[0][text] != samples[run["best"]][text]
        assert kept == f"With the adapter, step {run['best']} (kept){begins}{samples[run['best']][text]}"
    assert visit.js("document.querySelectorAll('#lab-samples .lab-is-kept').length") == 1
    assert visit.js("document.querySelector('#lab-train-status button').textContent") == "See it write"


def test_the_best_adapter_stays(visit: Driver, site: Path) -> None:
    visit.fill("steps", 60)
    visit.click("train-now")
    visit.until("document.getElementById('lab-train').disabled")
    visit.until("!document.getElementById('lab-train').disabled", 600)
    run = visit.js("({ ...Lab.seen().train, losses: Lab.seen().train.losses.length, settings: 0, samples: 0 })")
    lowest = min(run["measured"], key=lambda at: at["heldOut"])
    last = run["measured"][-1]
    assert run["best"] == lowest["at"] < last["at"] == run["losses"] == run["best"] + 30 < 60, "it stopped by itself"
    said = visit.text("verdict")
    assert f"fell from {run['measured'][0]['heldOut']:.2f} to {lowest['heldOut']:.2f}" in said
    assert "Memorising: " in said and "Forgetting: " in said
    assert f"step {run['best']}" in visit.text("train-status")
    assert f"{lowest['heldOut']:.2f} ({last['heldOut']:.2f})" in visit.text("runs"), "the best beside the last"
    assert "run-1-last" in options(visit) and value(visit, "adapter") == "run-1"
    assert value(visit, "prompt") == "Ninth day. Arr,"

    # The two adapters differ.
    both = [visit.js(f"({BARS})('{name}')") for name in ("run-1", "run-1-last")]
    assert both[0] != both[1]

    # It is here after a reload, and writes as before.
    visit.until("document.getElementById('lab-kept').rows.length === 2")
    visit.until("Lab.seen().write.view?.adapter === 'run-1' && Lab.seen().write.prompt === 'Ninth day. Arr,'")
    text = visit.text("adapted")
    visit_again(visit, visit.js("location.href"))
    visit.until("document.getElementById('lab-adapter').value === 'run-1'")
    assert "a pirate's log, run 1" in options(visit)["run-1"]
    visit.click("load")
    visit.until("Lab.seen().write.view?.adapter === 'run-1'")
    assert visit.text("adapted") == text
    rename(visit)
    send_and_receive(visit)
    delete_all(visit, site)


def rename(visit: Driver) -> None:
    field = "document.querySelector('#lab-kept input[type=text]')"
    visit.js(f"void ({field}.value = 'Arr <b>7</b>')")
    visit.js(f"void {field}.dispatchEvent(new Event('change'))")
    visit.until("document.getElementById('lab-kept-status').textContent.includes('Arr <b>7</b>')")
    assert options(visit)["run-1"] == "yours: Arr <b>7</b>"


COPY = """Object.defineProperty(navigator, "clipboard", {
  value: { writeText(text) { window.copied = text; } }, configurable: true })"""


def shared(page: Driver) -> str:
    """What the page says to a click on the button that copies a link."""
    page.js(f"void ({COPY})")
    page.js("void (document.getElementById('lab-shared').textContent = '')")
    page.click("share")
    page.until("document.getElementById('lab-shared').textContent !== ''")
    return page.text("shared")


def send_and_receive(visit: Driver) -> None:
    """A link carries the selected adapter: its receiver sees the text at once, before a model is loaded."""
    assert "this one has rank 8: turn Rank down to 2, or send the file" in shared(visit)
    visit.fill("rank", 1)
    visit.until("Lab.seen().write.view.rank === 1")
    assert "It carries the adapter" in shared(visit)
    link = visit.js("window.copied")
    assert 40_000 < len(link) < 46_000

    before = len(requests(visit))
    visit_again(visit, link)
    visit.until("document.getElementById('lab-adapter').value === 'carried'", 60)
    base, text, bars = visit.text("base"), visit.text("adapted"), visit.text("next")
    assert text.startswith(value(visit, "prompt")) and len(text) > 60 and text != base and "%" in bars
    fetched = {Path(url.partition("#")[0]).name for url in requests(visit)[before:] if not url.startswith("data:")}
    assert fetched <= {"about:blank", "lab.html", "lab.css", "page.js"} and not visit.js("Boolean(Lab.page.engine)")
    visit.click("load")
    visit.until("Boolean(Lab.seen().write.adapted && Lab.seen().write.bars)")
    assert (visit.text("base"), visit.text("adapted"), visit.text("next")) == (base, text, bars)
    assert visit.js("location.href.includes('carried=')"), "a reload must not lose it"
    visit.click("keep")
    visit.until("document.getElementById('lab-kept').rows.length === 3")

    for broken, words in {
        link[:20_000]: "The link is cut off",
        link[:30_000] + "~" + link[30_001:]: "has “~” at",
    }.items():
        visit_again(visit, broken)
        visit.until(f"document.getElementById('lab-status').textContent.includes({json.dumps(words)})", 60)
        assert "carried" not in options(visit)


def delete_all(visit: Driver, site: Path) -> None:
    visit_again(visit, site.as_uri())
    for rows in (3, 2):
        visit.until(f"document.getElementById('lab-kept').rows.length === {rows}")
        delete = "[...document.querySelectorAll('#lab-kept button')].at(-1)"
        visit.js(f"void {delete}.click()")
        assert visit.js(f"{delete}.textContent") == "Really delete?"
        visit.js(f"void {delete}.click()")
    visit.until("document.getElementById('lab-kept').hidden")
    visit_again(visit, site.as_uri())
    visit.until("document.getElementById('lab-kept-status').textContent.startsWith('No adapters yet')")
    assert "run-1" not in options(visit)
    tab = visit if isinstance(visit, Chromium) else visit.tab
    assert tab.errors == []


SHORT = "The lamp is on the table, and the table is by the door. " * 12


def train_short(page: Driver, **numbers: object) -> None:
    page.fill("text", SHORT)
    page.train(**{"steps": 10, "train_rank": 2, **numbers})
    assert "is trained" in page.text("train-status")


def test_two_kept_adapters_are_compared(browser: Browser, site: Path, tmp_path: Path) -> None:
    page = opened(browser, site, tmp_path)
    train_short(page)
    train_short(page, rate=0.01)
    page.until("document.getElementById('lab-kept').rows.length === 3")
    page.until("Lab.seen().write.view?.adapter === 'run-2'")
    texts = page.text("base"), page.text("adapted")
    assert page.js("document.getElementById('lab-compare').disabled")
    for tick in (0, 1):
        page.js(f"void document.querySelectorAll('#lab-kept input[type=checkbox]')[{tick}].click()")
    page.click("compare")
    page.until("Lab.seen().write.left?.adapter === 'run-1'")
    assert "run 1" in page.text("base-title") and value(page, "adapter") == "run-2"
    assert page.text("adapted") == texts[1] and page.text("base") != texts[0]
    assert page.js("document.querySelectorAll('#lab-loss .lab-earlier').length") >= 3, "both have their curves"
    page.click("compare-end")
    page.until("Lab.seen().write.left === null")
    assert page.text("base") == texts[0] and "gpt2-mini" in page.text("base-title")
    page.context.close()


def throws(method: str, error: str) -> str:
    return f"{method} = () => {{ throw new DOMException('as the test wants', '{error}'); }}"


REFUSED = {
    throws("IDBFactory.prototype.open", "SecurityError"): "does not let the page keep",
    throws("IDBObjectStore.prototype.put", "QuotaExceededError"): "there is no room left",
}


@pytest.mark.parametrize("script", REFUSED, ids=["no storage", "no room"])
def test_storage_that_fails_says_so_and_the_adapter_can_be_used(
    browser: Browser, site: Path, tmp_path: Path, script: str
) -> None:
    page = opened(browser, site, tmp_path)
    page.context.add_init_script(script)
    page.tab.reload()
    train_short(page)
    page.until(f"document.getElementById('lab-kept-status').textContent.includes({json.dumps(REFUSED[script])})")
    assert "download it" in page.text("kept-status")
    assert page.js("document.getElementById('lab-kept-status').classList.contains('lab-wrong')")
    assert value(page, "adapter") == "run-1" and page.download("download").stat().st_size > 1000
    assert page.errors == []
    page.context.close()


# ---- Links -------------------------------------------------------------------------------------------------------


def test_a_link_to_the_restaurants_has_facts_and_a_text_for_each_rank(
    browser: Browser, site: Path, tmp_path: Path
) -> None:
    """As chapters 5 and 7 have it: nothing is loaded yet."""
    seen = {}
    for rank in (8, 4, 2, 1, "abc"):
        page = opened(browser, site, tmp_path, f"#adapter=restaurants&rank={rank}")
        page.until("document.getElementById('lab-adapted').textContent.length > 60")
        assert value(page, "prompt").startswith("name[The Stone Otter], eatType[wine bar]")
        assert page.text("adapted").startswith(value(page, "prompt"))
        assert not [url for url in requests(page) if "weights" in url]
        seen[rank] = page.text("adapted")
        said = page.text("status")
        assert ("It says rank=abc, which is not a number" in said) == (rank == "abc")
        page.context.close()
    assert len(set(seen.values())) == 4 and seen["abc"] == seen[8]


def test_a_link_to_an_adapter_that_is_not_here_says_so(visit: Driver, site: Path) -> None:
    visit_again(visit, site.as_uri() + "#adapter=run-7&rank=3")
    visit.until("document.getElementById('lab-status').textContent.includes('“run-7”')", 60)
    assert "only in the browser that trained it" in visit.text("status")
    assert visit.js("document.getElementById('lab-status').classList.contains('lab-wrong')")


CODEC = """async ([share, config, weights, about]) => {
  const { toLink, fromLink } = await import(share);
  const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const files = { "adapter_config.json": bytes(config), "adapter_model.safetensors": bytes(weights) };
  const letters = await toLink(files, about);
  const back = await fromLink(letters);
  const text = Array.from(new Uint8Array(back.files["adapter_model.safetensors"]), byte => String.fromCharCode(byte));
  return { letters, about: back.about, config: back.config, weights: btoa(text.join("")) };
}"""


def files_of(r: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """An adapter of rank r for two layers: the numbers of one direction are large, those of another all zero."""
    rng = np.random.default_rng(r)
    config = {"peft_type": "LORA", "r": r, "lora_alpha": 3.5, "target_modules": ["transformer.h.0.attn.c_attn"]}
    tensors = {}
    for layer, (d, k) in {"h.0.attn.c_attn": (320, 960), "h.0.mlp.c_proj": (1280, 320)}.items():
        A, B = rng.normal(size=(r, d)), rng.normal(size=(k, r))
        A[0] *= 1000
        B[:, -1] = 0
        tensors[f"base_model.model.transformer.{layer}.lora_A.weight"] = A.astype(np.float32)
        tensors[f"base_model.model.transformer.{layer}.lora_B.weight"] = B.astype(np.float32)
    return config, tensors


def carried(bare: Page, r: int) -> dict[str, Any]:
    config, tensors = files_of(r)
    texts = [base64.b64encode(part).decode() for part in (json.dumps(config).encode(), safetensors.numpy.save(tensors))]
    return bare.evaluate(CODEC, [as_module("files/link_bytes.js"), *texts, {"title": "Ü 😀"}])


@pytest.fixture(scope="module")
def letters(bare: Page) -> str:
    """A link's letters for an adapter of rank 1."""
    return carried(bare, 1)["letters"]


@pytest.mark.parametrize("r", [1, 2])
def test_eight_bits_keep_each_direction_to_half_a_step(bare: Page, r: int) -> None:
    config, tensors = files_of(r)
    found = carried(bare, r)
    assert found["config"] == config and found["about"] == {"title": "Ü 😀"}
    back = safetensors.numpy.load(base64.b64decode(found["weights"]))
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        step = np.abs(tensor).max(axis=1 if "lora_A" in name else 0, keepdims=True) / 127
        assert (np.abs(back[name] - tensor) <= 0.5001 * step).all(), name
    numbers = sum(tensor.size for tensor in tensors.values())
    assert numbers * 4 / 3 < len(found["letters"]) < numbers * 4 / 3 + 1500


def test_rank_three_does_not_travel(bare: Page) -> None:
    with pytest.raises(Exception, match="this one has rank 3"):
        carried(bare, 3)


READ = """async ([share, links]) => {
  const { fromLink } = await import(share);
  return Promise.all(links.map(link => fromLink(link).then(() => "taken", error => error.message)));
}"""


def test_a_damaged_link_says_what_is_damaged(bare: Page, letters: str) -> None:
    other = "B" if letters[2000] == "A" else "A"
    links = {
        letters: "taken",  # the control
        letters[:2000] + other + letters[2001:]: "Some letters of the link were changed",
        letters[:-1]: "The link is cut off",
        letters[:2000]: "bytes of the adapter did not arrive",
        letters[:5]: "nearly all of the adapter did not arrive",
        "": "nearly all of the adapter did not arrive",
        letters + "AAAA": "bytes too many",
        letters[:2000] + "%" + letters[2001:]: "“%” at letter 2001",
        letters[:2000] + "😀" + letters[2001:]: "“😀” at letter 2001",
        "_" + letters[1:]: "does not know this kind of link",
        letters * 100: "no adapter of this page is so large",
    }
    said = bare.evaluate(READ, [as_module("files/link_bytes.js"), list(links)])
    assert [(words, found) for words, found in zip(links.values(), said, strict=True) if words not in found] == []


BROKEN = """async ([share, letters, change]) => {
  const { fromLink } = await import(share);
  const sums = Uint32Array.from({ length: 256 }, (_, byte) => {
    for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
    return byte;
  });
  const crc = bytes => ~bytes.reduce((sum, byte) => sums[(sum ^ byte) & 255] ^ (sum >>> 8), -1) >>> 0;
  const deflate = async text => new Uint8Array(await new Response(
    new Blob([text]).stream().pipeThrough(new CompressionStream("deflate-raw"))).arrayBuffer());
  const inflate = bytes => new Response(
    new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"))).text();
  const old = Uint8Array.from(atob(letters.replaceAll("-", "+").replaceAll("_", "/")), letter => letter.charCodeAt(0));
  const size = new DataView(old.buffer).getUint16(9);
  const header = JSON.parse(await inflate(old.slice(11, 11 + size)));
  const text = (0, eval)(change)(header);
  const packed = await deflate(text);
  const bytes = new Uint8Array(11 + packed.length + old.length - 11 - size);
  bytes.set(old.slice(0, 9));
  bytes.set(packed, 11);
  bytes.set(old.slice(11 + size), 11 + packed.length);
  const view = new DataView(bytes.buffer);
  view.setUint16(9, packed.length);
  view.setUint32(1, bytes.length);
  view.setUint32(5, crc(bytes.slice(9)));
  const again = btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join(""));
  try {
    await fromLink(again.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", ""));
  } catch (error) {
    return error.message;
  }
  return "taken";
}"""
# What an enemy writes into a link whose checksum is right.
HOSTILE = {
    "JSON.stringify": "taken",  # the control: nothing is changed
    "() => 'no JSON'": "cannot be read",
    "() => ' '.repeat(1e8)": "cannot be read",  # 100 MB out of 100 kB
    "() => 'null'": "does not describe an adapter",
    "header => JSON.stringify({ ...header, config: { ...header.config, r: 3e7 } })": "does not describe an adapter",
    "header => JSON.stringify({ ...header, shapes: [['x', [1, 1e9]]] })": "more numbers than it contains",
    "header => JSON.stringify({ ...header, shapes: [['x', [1, 0.5]]] })": "does not describe an adapter",
    "header => JSON.stringify({ ...header, shapes: header.shapes.slice(1) })": "more numbers than it describes",
    "header => JSON.stringify({ ...header, config: { r: 1, target_modules: [5] } })": "does not describe an adapter",
}


@pytest.mark.parametrize("change", HOSTILE)
def test_a_hostile_link_is_refused(bare: Page, letters: str, change: str) -> None:
    assert HOSTILE[change] in bare.evaluate(BROKEN, [as_module("files/link_bytes.js"), letters, change])


# ---- A GPT-2 that the reader brings ------------------------------------------------------------------------------


def test_a_gpt2_from_the_disk_writes_trains_and_makes_place_again(
    browser: Browser, site: Path, tmp_path: Path, tiny: Path
) -> None:
    page = opened(browser, site, tmp_path)
    train_short(page)  # an adapter of gpt2-mini, which is kept
    page.until("document.getElementById('lab-kept').rows.length === 2")
    page.tab.set_input_files("#lab-model", [tiny / name for name in ("config.json", "model.safetensors")])
    page.until("document.getElementById('lab-model-status').textContent.includes('has no tokenizer')")
    assert page.js("Lab.page.model") == "gpt2-mini" and value(page, "adapter") == "run-1"
    page.tab.set_input_files("#lab-model", sorted(tiny.iterdir()))
    page.until("document.getElementById('lab-model-status').textContent.includes('is loaded')")
    assert "3 blocks, 48 wide, " in page.text("model-status")
    assert options(page) == {"": "none yet: train one"} and "your GPT-2" in page.text("base-title")
    page.until("Lab.seen().write.base && Lab.seen().write.view.adapter === ''")
    assert page.text("adapted") == page.text("base"), "there is no adapter yet"
    assert page.js("document.getElementById('lab-download').disabled")

    page.fill("train-rank", 49)
    page.click("train")
    page.until("document.getElementById('lab-train-status').textContent.includes('a whole number from 1 to 48')")
    page.usable("train")
    train_short(page, workers=2)
    assert re.search(r"2 workers: \d+\.\d × one", page.text("speed-up"))
    widths = page.js("[...document.querySelectorAll('#lab-speed-up .lab-filled')].map(bar => bar.style.width)")
    assert len(widths) == 2 and "100%" in widths, "the slower of the two is the whole bar"
    page.until("document.getElementById('lab-kept').rows.length === 3")
    assert set(options(page)) >= {"", "run-2"} and "run-1" not in options(page)
    assert "for gpt2-mini" in page.text("kept")
    assert "your GPT-2" not in page.text("peft") and "FOLDER_OF_YOUR_MODEL" in page.text("peft")
    assert "adapters of gpt2-mini" in shared(page)

    page.click("model-back")
    page.until("document.getElementById('lab-model-status').textContent.startsWith('gpt2-mini is loaded')")
    assert {"plays", "cat", "restaurants", "run-1"} <= set(options(page)) and "run-2" not in options(page)
    page.fill("adapter", "run-1")
    page.until("Lab.seen().write.view?.adapter === 'run-1'")
    assert page.errors == []
    page.context.close()


def test_the_hub_is_asked_only_when_the_reader_says_so(site: Path, browser: Browser, tmp_path: Path, hub: str) -> None:
    page = opened(browser, site, tmp_path)
    page.context.set_offline(False)
    page.js(f"void (Lab.hub = '{hub}')")
    page.fill("model-name", "no/such model")
    page.click("model-look")
    page.until("document.getElementById('lab-model-status').textContent.includes('not the name of a model')")
    page.fill("model-name", "someone/tiny")
    assert Hub.asked == [] and page.js("document.getElementById('lab-model-fetch').hidden")
    page.click("model-look")
    page.until("!document.getElementById('lab-model-fetch').hidden")
    assert Hub.asked == ["/api/models/someone/tiny/tree/main"]
    weights = len(Hub.files["model.safetensors"])
    assert f"model.safetensors ({-(-weights // 1000)} kB)" in page.text("model-status")
    assert f"from {hub.removeprefix('http://')}" in page.text("model-fetch")
    page.click("model-fetch")
    page.until("document.getElementById('lab-model-status').textContent.startsWith('someone/tiny is loaded')")
    assert len(Hub.asked) == 5 and 'from_pretrained("someone/tiny")' in page.text("peft")
    page.context.close()


def test_the_device_is_said(browser: Browser, site: Path, tmp_path: Path) -> None:
    page = opened(browser, site, tmp_path)
    page.click("load")
    page.until("document.getElementById('lab-device-status').textContent !== ''")
    assert value(page, "device") == "wasm" and "It runs on the processor (WebAssembly)." in page.text("device-status")
    page.fill("device", "webgpu")  # this browser has none
    page.until("document.getElementById('lab-device-status').classList.contains('lab-wrong')")
    assert value(page, "device") == "wasm", "it stays where it was"
    page.context.close()


# ---- Several workers ---------------------------------------------------------------------------------------------

TIMED = """async module => {
  const { SpeedUp } = await import(module);
  const speedUp = new SpeedUp(2);
  const results = [];
  const alone = [900, 40, 60, 50];
  const together = [900, 20, 30, 10];
  for (let step = 1; step <= 10; step++) {
    speedUp.took(step, (speedUp.isAlone(step) ? alone : together).shift() ?? 1);
    results.push(speedUp.result);
  }
  return { results, alone: [7, 8, 9, 10].map(step => speedUp.isAlone(step)) };
}"""


def test_the_speed_up_is_that_of_the_first_steps(bare: Page) -> None:
    """Medians of three steps each; the two before them only warm up, and those after them are not timed."""
    found = bare.evaluate(TIMED, as_module("worker/helpers.js"))
    measured = {"workers": 2, "alone": 50, "together": 20}
    assert found["results"] == [None] * 7 + [measured] * 3
    assert found["alone"] == [True, False, False, False], "from step 9 on, all workers compute"


# ---- What the curves say -----------------------------------------------------------------------------------------

# Held-out and prose losses at steps 0, 10, 20; training losses at the start and at the end; what is said.
CURVES = {
    "learning": ([4.0, 3.5, 3.2], [3.0, 3.0, 3.01], (4.0, 3.0), ["Learning"]),
    "memorising": ([4.0, 3.5, 3.9], [3.0, 3.0, 3.01], (4.0, 2.0), ["Learning", "Memorising"]),
    "forgetting": ([4.0, 3.5, 3.2], [3.0, 3.1, 3.3], (4.0, 3.0), ["Learning", "Forgetting"]),
    "all three": ([4.0, 3.5, 3.9], [3.0, 3.1, 3.3], (4.0, 2.0), ["Learning", "Memorising", "Forgetting"]),
    "nothing": ([4.0, 4.0, 3.99], [3.0, 3.0, 3.0], (4.0, 4.0), ["Nothing learned yet"]),
    "begun": ([4.0], [3.0], (4.0, 4.0), ["just begun"]),
}


@pytest.mark.parametrize("kind", CURVES)
def test_curves_are_told_in_words(bare: Page, kind: str) -> None:
    held_out, prose, (first, final), said = CURVES[kind]
    measured = [{"at": 10 * i, "heldOut": h, "prose": p} for i, (h, p) in enumerate(zip(held_out, prose, strict=True))]
    best = 10 * held_out.index(min(held_out))
    run = {"losses": [first, *[final] * 20], "measured": measured, "best": best}
    script = "async ([module, run]) => (await import(module)).verdict(run)"
    found = bare.evaluate(script, [as_module("page/verdict.js"), run])
    assert [what for what, _ in found] == said
    words = dict(found)
    if "Memorising" in words:
        assert words["Memorising"].startswith("after step 10 the training loss went on falling, to 2.00")
    if "Forgetting" in words:
        assert "rose from 3.00 to" in words["Forgetting"]


# ---- For those who share the page --------------------------------------------------------------------------------


def test_a_link_to_the_page_has_title_picture_and_description(root: Path) -> None:
    sys.path.append(str(root / "book" / "_ext"))
    import lab_page

    tags = lab_page.share_tags("https://github.com/some-one/their.book")
    site = "https://some-one.github.io/their.book/"
    assert f'property="og:url" content="{site}book/lab.html"' in tags
    assert f'property="og:image" content="{site}_static/lab_card.png"' in tags
    assert 'property="og:title"' in tags and 'name="description"' in tags
    assert tags.count("https://") == 2, "no other address"
    assert Image.open(root / "book" / "_static" / "lab_card.png").size == (1200, 630)

"""The lab with hostile input: huge texts, strange archives, mad settings, a page that forbids workers."""

from __future__ import annotations

import base64
import io
import json
import struct
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from lab_modules import KINDS, PROSE, as_module
from measure_lab import Engine
from playwright.sync_api import Browser, Page
from playwright.sync_api import Error as PlaywrightError

from lora_lib import Tokenizer, get_peft_model, load_model

# ---- Text without spaces -----------------------------------------------------------------------------------------


def without_spaces(length: int) -> str:
    generator = torch.Generator().manual_seed(0)
    return "".join(chr(97 + i) for i in torch.randint(0, 26, (length,), generator=generator).tolist())


def test_a_text_without_spaces_is_cut_as_by_tiktoken(engine: Engine, tokenizer: Tokenizer) -> None:
    for text in (without_spaces(20_000), "ab" * 5000, "a" * 10_000, "\u4f60" * 3000):
        assert engine.ask("encode", text=text) == tokenizer.encode(text)


def test_two_hundred_thousand_letters_without_a_space_take_no_time(engine: Engine) -> None:
    """Four times the letters may take some five times as long; a quadratic method takes sixteen times."""
    seconds = {}
    for length in (50_000, 200_000):
        before = time.monotonic()
        assert length / 4 < engine.ask("count", text=without_spaces(length)) < length
        seconds[length] = time.monotonic() - before
    assert seconds[200_000] < 10 * max(seconds[50_000], 0.2)


# ---- Archives and folders ----------------------------------------------------------------------------------------

ADAPTER_FILES = """async ([module, chosen]) => {
  const { adapterFilesIn } = await import(module);
  const files = chosen.map(({ path, bytes }) => {
    const file = new File([Uint8Array.from(atob(bytes), letter => letter.charCodeAt(0))], path.split("/").at(-1));
    if (path.includes("/")) Object.defineProperty(file, "webkitRelativePath", { value: path });
    return file;
  });
  const found = await adapterFilesIn(files, 39e6);
  const text = name => new TextDecoder().decode(found[name]);
  return [text("adapter_config.json"), text("adapter_model.safetensors")];
}"""


def adapter_files(tab: Page, files: dict[str, bytes]) -> list[str]:
    """The two files that the page finds among those that a reader chose, as text."""
    chosen = [{"path": path, "bytes": base64.b64encode(data).decode()} for path, data in files.items()]
    return tab.evaluate(ADAPTER_FILES, [as_module("files/zip.js"), chosen])


def refusal(tab: Page, files: dict[str, bytes]) -> str:
    with pytest.raises(PlaywrightError) as error:
        adapter_files(tab, files)
    return str(error.value)


def archive(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as zipped:
        for path, data in files.items():
            zipped.writestr(path, data)
    return out.getvalue()


def pair(words: str) -> dict[str, bytes]:
    return {"adapter_config.json": f"config {words}".encode(), "adapter_model.safetensors": f"weights {words}".encode()}


def inside(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": data for name, data in files.items()}


def test_the_final_adapter_wins_over_checkpoints(bare: Page) -> None:
    run = {
        **inside("run/checkpoint-500", pair("of step 500")),
        **inside("run", pair("at the end")),
        **inside("run/z", pair("of z")),
    }
    expected = ["config at the end", "weights at the end"]
    assert adapter_files(bare, {"run.zip": archive(run)}) == expected
    assert adapter_files(bare, {"run.zip": archive(dict(reversed(run.items())), zipfile.ZIP_STORED)}) == expected
    assert adapter_files(bare, run) == expected
    numbered = {"adapter_config (1).json": b"config 1", "adapter_model (1).safetensors": b"weights 1"}
    assert adapter_files(bare, numbered) == ["config 1", "weights 1"]
    with_other = {**pair("alone"), "trainer_state.json": b"{}"}
    assert adapter_files(bare, {"a.zip": archive(with_other)}) == ["config alone", "weights alone"]


def test_several_adapters_or_none_are_refused(bare: Page) -> None:
    two = {**inside("a", pair("of a")), **inside("b", pair("of b"))}
    assert "There are several adapters, a and b" in refusal(bare, {"two.zip": archive(two)})
    assert "adapter_config.json is missing" in refusal(bare, {"none.zip": archive({})})
    assert "adapter_model.safetensors is missing" in refusal(bare, {"adapter_config.json": b"{}"})
    assert "which of them is meant" in refusal(bare, {"a.json": b"{}", "b.json": b"{}", "c.safetensors": b""})


def bomb(said: int) -> bytes:
    """A zip whose weights unpack to 8 MB of zeros, and say to be of `said` bytes."""
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packed.compress(bytes(2**23)) + packed.flush()
    name = b"adapter_model.safetensors"
    sizes = struct.pack("<III", zlib.crc32(bytes(2**23)), len(data), said)
    local = struct.pack("<IHHHHH", 0x04034B50, 20, 0, 8, 0, 33) + sizes + struct.pack("<HH", len(name), 0) + name + data
    config = archive({"adapter_config.json": b"{}"})
    entry = struct.pack("<IHHHHHH", 0x02014B50, 20, 20, 0, 8, 0, 33) + sizes
    entry += struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0) + name
    first = zipfile.ZipFile(io.BytesIO(config)).infolist()[0]
    end_of_config = config.index(b"PK\x01\x02")
    second = config[end_of_config : config.index(b"PK\x05\x06")]
    second = second[:42] + struct.pack("<I", len(local) + first.header_offset) + second[46:]
    directory = entry + second
    at = len(local) + end_of_config
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 2, 2, len(directory), at, 0)
    return local + config[:end_of_config] + directory + end


def test_a_zip_that_unpacks_to_gigabytes_is_refused(bare: Page) -> None:
    assert len(adapter_files(bare, {"honest.zip": bomb(2**23)})[1]) == 2**23  # the control
    assert "has 4,300 MB, but for this model it can have 39 MB at most" in refusal(bare, {"big.zip": bomb(2**32 - 1)})
    assert "is damaged" in refusal(bare, {"lies.zip": bomb(1000)})
    assert "is damaged" in refusal(bare, {"lies.zip": bomb(2**24)})


def test_a_zip_with_a_wrong_checksum_or_a_password_is_refused(bare: Page) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        whole = archive(pair("x" * 200), method)
        at = whole.index(b"weights") if method == zipfile.ZIP_STORED else whole.rindex(b"PK\x01\x02") + 16
        torn = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]  # a letter, or the checksum
        assert "is damaged" in refusal(bare, {"torn.zip": torn})
    locked = bytearray(archive(pair("locked")))
    at = locked.index(b"PK\x01\x02")
    locked[at + 8] |= 1
    assert "encrypted" in refusal(bare, {"locked.zip": bytes(locked)})
    assert "not a whole zip" in refusal(bare, {"cut.zip": archive(pair("cut"))[:-30]})
    assert "not a whole zip" in refusal(bare, {"not.zip": b"no zip at all"})


# ---- Adapters with mad settings ----------------------------------------------------------------------------------

KEEP = """async ([name, config, weights]) => {
  const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0)).buffer;
  const files = { "adapter_config.json": bytes(config), "adapter_model.safetensors": bytes(weights) };
  return await engine.ask("keep", { name, files });
}"""


def keep(engine: Engine, folder: Path, name: str = "kept", **changes: str) -> Any:
    """Hand a saved adapter to the worker; `changes` are fields of its config, in JSON."""
    config = json.loads((folder / "adapter_config.json").read_text())
    text = json.dumps({**config, **{field: f"@{field}" for field in changes}})
    for field, value in changes.items():
        text = text.replace(f'"@{field}"', value)
    weights = (folder / "adapter_model.safetensors").read_bytes()
    coded = [base64.b64encode(data).decode() for data in (text.encode(), weights)]
    return engine.tab.evaluate(KEEP, [name, *coded])


def saved(folder: Path, r: int, kinds: list[str] = KINDS) -> Path:
    torch.manual_seed(0)
    model = get_peft_model(load_model("gpt2-mini"), kinds, r, 8)
    for layer in model.lora_layers().values():
        torch.nn.init.normal_(layer.adapters["default"].B, std=0.02)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("alpha", ["1e308", "1e999", "-1", "0", '"16"', "[16]", "100001"])
def test_an_alpha_that_no_adapter_has_is_refused(engine: Engine, tmp_path: Path, alpha: str) -> None:
    folder = saved(tmp_path / "own", 2)
    with pytest.raises(PlaywrightError, match="lora_alpha must be a number above 0"):
        keep(engine, folder, lora_alpha=alpha)
    assert keep(engine, folder, lora_alpha="100000")["alpha"] == 100000


def test_a_rank_that_no_adapter_has_is_refused(engine: Engine, tmp_path: Path) -> None:
    folder = saved(tmp_path / "own", 2)
    for r in ("20000000", "321", "2.5", "0"):
        with pytest.raises(PlaywrightError, match="r must be a whole number from 1 to 320"):
            keep(engine, folder, r=r)


def test_fields_of_peft_are_known_from_the_librarys_table(engine: Engine, tmp_path: Path) -> None:
    folder = saved(tmp_path / "own", 2)
    assert keep(engine, folder, init_lora_weights='"eva"', eva_config='{"rho": 2}', layers_to_transform="[0]")["r"] == 2
    unknown = ("use_dora", "some_new_field", "constructor", "__proto__", "toString")
    for field, why in (("corda_config", "CorDA changes the base"), *((field, "") for field in unknown)):
        with pytest.raises(PlaywrightError, match=f"{field} = .* is not supported here.*{why}"):
            keep(engine, folder, **{field: '{"a": 1}'})


def test_a_rank_of_320_is_turned_while_the_worker_answers(engine: Engine, tmp_path: Path) -> None:
    """Its directions are sorted in slices: the worker answers other jobs meanwhile and reports its progress."""
    keep(engine, saved(tmp_path / "large", 320, ["attn.c_proj"]), "large")
    script = """async () => {
      const view = { adapter: "large", rank: 3, strength: 1, off: [] };
      const told = [];
      const answered = [];
      const news = what => {
        if (!what.ordering) return;
        told.push(what.ordering);
        engine.ask("count", { text: "a text" }).then(() => answered.push(told.length));
      };
      const settings = { prompt: "The sea", ids: [], count: 5, also: [] };
      const bars = await engine.ask("bars", { view, ...settings }, { news });
      return { told, answered, bars: bars.map(bar => bar.adapted) };
    }"""
    seen = engine.tab.evaluate(script)
    assert seen["told"] == [f"{layer} of 6" for layer in range(1, 7)]
    assert len(seen["answered"]) >= 5, "the worker was deaf while it worked"
    assert all(0 <= share <= 1 for share in seen["bars"])
    again = engine.tab.evaluate(script)
    assert (again["told"], again["bars"]) == ([], seen["bars"]), "sorted once, it stays sorted"


# ---- Training ----------------------------------------------------------------------------------------------------

SETTINGS = {
    "text": PROSE,
    "prompt": "The goose",
    "batch": 1,
    "r": 2,
    "alpha": 4,
    "rate": 1e-3,
    "steps": 3,
    "kinds": KINDS,
}


def train(engine: Engine, **changes: Any) -> Any:
    return engine.ask("train", name="mine", settings={**SETTINGS, **changes})


@pytest.mark.parametrize("steps", [1, 2])
def test_a_last_step_that_went_too_far_is_told(engine: Engine, steps: int) -> None:
    done = train(engine, rate=1e9, steps=steps)
    assert "a rate of 1000000000 is too high" in done["diverged"]
    view = {"adapter": "mine", "rank": 2, "strength": 1, "off": []}
    logits = torch.tensor(engine.ask("logits", view=view, ids=[1, 2, 3]))
    base = torch.tensor(engine.ask("logits", view=None, ids=[1, 2, 3]))
    assert (logits - base).abs().max() < 0.5, "the adapter is the one before the step"
    assert train(engine)["diverged"] is None


def test_learning_by_heart_is_not_taken_for_diverging(engine: Engine) -> None:
    """The held-out loss rises by more than a run may, and the training loss falls."""
    script = """async settings => {
      const heldOut = [];
      const news = what => what.heldOut && heldOut.push(what.heldOut);
      const done = await engine.ask("train", { name: "by heart", settings }, { news });
      return { done, rise: Math.max(...heldOut) - heldOut[0] };
    }"""
    text = "Once there was a goose. " * 20 + PROSE[600:660]
    seen = engine.tab.evaluate(script, {**SETTINGS, "text": text, "rate": 3e-3, "steps": 30, "r": 16, "alpha": 32})
    assert seen["rise"] > 3
    assert (seen["done"]["diverged"], seen["done"]["steps"]) == (None, 30)


@pytest.mark.parametrize("setting", [{"alpha": 1e308}, {"r": 321}, {"r": 0}, {"alpha": None}])
def test_settings_are_checked_in_the_worker_too(engine: Engine, setting: dict[str, Any]) -> None:
    with pytest.raises(PlaywrightError, match="must be a"):
        train(engine, **setting)
    assert train(engine)["steps"] == 3


def test_stop_and_pause_are_heard_while_a_text_is_written(engine: Engine) -> None:
    """The training waits for its turn behind the text; what is said meanwhile is not lost."""
    script = """async settings => {
      const whileWriting = async (name, steps, word, news) => {
        let text;
        await new Promise(begun => {
          const writing = { view: null, base: true, prompt: "The sea", count: 200, temperature: 0.8, seed: 1 };
          text = engine.ask("write", writing, { news: begun });
        });
        const run = engine.ask("train", { name, settings: { ...settings, steps } }, { news });
        engine.ask(word);
        const done = await run;
        await text;
        return done;
      };
      const told = [];
      const stopped = await whileWriting("stopped", 300, "stop", what => told.push(what));
      const paused = [];
      const done = await whileWriting("paused", 2, "pause", what => {
        if (what.pausedAt === undefined) return;
        paused.push(what.pausedAt);
        engine.ask("goOn");
      });
      return { stopped, told, paused, done };
    }"""
    seen = engine.tab.evaluate(script, SETTINGS)
    assert (seen["stopped"]["steps"], seen["told"]) == (0, [])
    assert (seen["paused"], seen["done"]["steps"]) == ([0], 2)


def test_stop_and_pause_cut_the_sample_short(engine: Engine) -> None:
    """The sample after every tenth step is 40 tokens long; stop and pause do not wait for it."""
    script = """async settings => {
      const told = [];
      const news = what => {
        told.push(what);
        if (what.heldOut !== undefined) engine.ask("pause"); // a sample comes next
        if (what.pausedAt !== undefined) engine.ask("stop");
      };
      const done = await engine.ask("train", { name: "mine", settings }, { news });
      const [{ sample }] = told.filter(what => what.sample !== undefined);
      return { done, tokens: await engine.ask("count", { text: sample }) };
    }"""
    seen = engine.tab.evaluate(script, {**SETTINGS, "steps": 300})
    assert seen["done"]["steps"] == 0
    assert 0 < seen["tokens"] <= 12


# ---- Pages that forbid workers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["policy", "throws", "silent"])
def test_a_worker_that_does_not_start_is_told(browser: Browser, site: Path, tmp_path: Path, how: str) -> None:
    tab = browser.new_page()
    html = site.read_text(encoding="utf8")
    if how == "policy":
        policy = '<meta http-equiv="Content-Security-Policy" content="worker-src \'none\'">'
        html = html.replace("<head>", f"<head>{policy}")
    page = site.parent / f"forbidden-{how}.html"
    page.write_text(html, encoding="utf8")
    if how == "throws":
        tab.add_init_script("window.Worker = class { constructor() { throw new DOMException('no'); } }")
    if how == "silent":  # and the page does not wait for half a minute
        tab.add_init_script(
            "window.Worker = class { postMessage() {} terminate() {} }; window.setTimeout = run => queueMicrotask(run)"
        )
    tab.goto(page.as_uri())
    tab.click("#lab-load")
    tab.wait_for_function("document.getElementById('lab-status').textContent.includes('forbid workers')")
    assert tab.is_enabled("#lab-load")
    tab.close()
    page.unlink()

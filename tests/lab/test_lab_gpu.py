"""The lab on the GPU: every kernel against PyTorch, in the GPU that Chromium simulates on the processor."""

from __future__ import annotations

import base64
import copy
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import build_lab
import measure_lab
import pytest
import torch
from lab_llama import lora_layers, tiny_llama, with_lora
from lab_modules import KINDS, probe, simulated_gpu
from playwright.sync_api import Browser, Page, Route
from safetensors.torch import save
from small_models import scatter, stir
from torch import Tensor, nn

from lora_lib import GPT2Config, GPT2Model, PeftModel, get_peft_model

LAB = build_lab.LAB
ADDRESS = "https://lab.test/"  # WebGPU wants a secure address; nothing is fetched from it
RATE, STEPS = 1e-2, 4


@dataclass
class Case:
    """A small GPT-2 with an adapter, and the text that it reads."""

    C: int
    V: int
    r: int
    B: int
    T: int
    targets: list[str] = field(default_factory=lambda: KINDS)
    dtype: torch.dtype = torch.float32  # of the file
    half: bool = False  # float16 on the GPU
    s: float = 2.0

    @property
    def config(self) -> dict[str, Any]:
        """The sizes, by the lab's names."""
        sizes = {"C": self.C, "H": 3, "V": self.V, "depth": 2, "context": 96, "inner": 4 * self.C, "epsilon": 1e-5}
        return {"family": "gpt2", **sizes}

    def model(self) -> PeftModel:
        config = GPT2Config(self.V, 96, self.C, 2, 3, 0, 0, 0)
        base = scatter(GPT2Model(config))
        with torch.no_grad():
            for p in base.parameters():  # PyTorch computes with the weights as they are on the GPU
                p.copy_(p.to(self.dtype).half() if self.half and p.ndim == 2 else p.to(self.dtype))
        return stir(get_peft_model(base, self.targets, self.r, self.s * self.r))


CASES = {
    "odd width, all layers": Case(45, 97, 4, 2, 31, s=10),
    "float16, nine directions": Case(48, 95, 9, 3, 17, ["attn.c_attn", "mlp.c_proj"], torch.float16, half=True),
    "more than 64 tokens and numbers": Case(69, 131, 1, 1, 66, ["attn.c_proj", "mlp.c_fc"]),
    "upper block, bfloat16": Case(42, 64, 3, 2, 9, ["h.1.attn.c_attn", "h.1.mlp.c_fc"], torch.bfloat16),
    "float32 stored as float16": Case(45, 97, 2, 2, 8, half=True),
}


@pytest.fixture(scope="module")
def gpu_browser(browser: Browser) -> Iterator[Browser]:
    """One for all tests of the kernels."""
    with simulated_gpu(browser) as chromium:
        yield chromium


@pytest.fixture(scope="module")
def page(gpu_browser: Browser) -> Iterator[Page]:
    """A page that has imported lab/gpu/probe.js as `lab`."""
    tab = gpu_browser.new_page()
    tab.route(f"{ADDRESS}**", serve)
    tab.goto(ADDRESS)
    tab.evaluate("async () => { window.lab = await import('./gpu/probe.js'); window.models = {}; }")
    yield tab
    tab.close()


def serve(route: Route) -> None:
    name = route.request.url.removeprefix(ADDRESS)
    if name:
        route.fulfill(path=LAB / name, content_type="text/javascript")
    else:
        route.fulfill(body="<!doctype html><title>lab</title>", content_type="text/html")


def ask(page: Page, script: str, **what: Any) -> Any:
    """Run a script with `what` by name. JSON both ways: playwright is slow with long lists."""
    body = f"async text => {{ const {{ {', '.join(what)} }} = JSON.parse(text); {script} }}"
    return json.loads(page.evaluate(f"async text => JSON.stringify(await ({body})(text) ?? null)", json.dumps(what)))


def weights_of(model: PeftModel, dtype: torch.dtype) -> str:
    """The base as Hugging Face's GPT-2 is stored, in base64: linear layers as (d, k)."""
    tensors = {}
    for name, p in model.base_model.named_parameters():
        if "adapters" not in name and "out_head" not in name:
            linear = any(kind in name for kind in KINDS) and p.ndim == 2
            tensors[name.replace(".base.", ".")] = (p.T if linear else p).detach().to(dtype).contiguous()
    return base64.b64encode(save(tensors)).decode()


def adapter_of(model: PeftModel) -> dict[str, Any]:
    layers = {}
    for name, layer in model.lora_layers().items():
        A, B = layer.adapters["default"].A, layer.adapters["default"].B
        layers[name] = {"d": A.shape[0], "k": B.shape[1], "A": A.T.flatten().tolist(), "B": B.flatten().tolist()}
    return {"r": A.shape[1], "s": layer.adapters["default"].scale, "layers": layers}


def relative(found: list[float], wanted: Tensor) -> float:
    got = torch.tensor(found).view(wanted.shape)
    wanted = wanted.detach()
    return float((got - wanted).norm() / wanted.norm())


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, page: Page) -> Iterator[tuple[Case, PeftModel]]:
    """A case, whose model is `models.case` in the page."""
    case = CASES[request.param]
    model = case.model()
    what = {"config": case.config, "weights": weights_of(model, case.dtype), "half": case.half}
    ask(page, "models.case = await lab.openModel(what);", what=what)
    return case, model


def test_logits_are_pytorchs(page: Page, case: tuple[Case, PeftModel]) -> None:
    setting, model = case
    T = setting.T
    ids = torch.randint(setting.V, (1, T), generator=torch.Generator().manual_seed(1))
    pieces = [T - 7, 1, 1, 4, 1]
    first = (setting.r + 1) // 2
    views = {"base": None, "whole": {}, "turned": {"rank": first, "strength": 0.5, "off": []}}
    script = "return lab.logitsOf(models.case, lab.adapterOf(adapter), views, ids, pieces);"
    found = ask(page, script, adapter=adapter_of(model), views=views, ids=ids[0].tolist(), pieces=pieces)
    ends = torch.tensor(pieces).cumsum(0) - 1
    wanted = {"whole": model(ids)[0, ends]}
    with model.disable_adapter():
        wanted["base"] = model(ids)[0, ends]
    with torch.no_grad():
        for layer in model.lora_layers().values():
            layer.adapters["default"].A[:, first:] = 0
            layer.adapters["default"].A.mul_(0.5)
    wanted["turned"] = model(ids)[0, ends]
    for view, logits in wanted.items():
        assert (torch.tensor(found[view]) - logits).abs().max() < 1e-4, view


def test_losses_gradients_and_steps_are_pytorchs(page: Page, case: tuple[Case, PeftModel]) -> None:
    setting, model = case
    generator = torch.Generator().manual_seed(2)
    rows, targets = torch.randint(setting.V, (2, setting.B, setting.T), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < 0.3] = -100
    what = {"rows": rows.tolist(), "targets": targets.tolist(), "rate": RATE, "steps": STEPS}
    script = "return lab.learn(models.case, lab.adapterOf(adapter), what);"
    found = ask(page, script, adapter=adapter_of(model), what=what)

    def loss(rows: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(rows).flatten(0, 1), targets.flatten())

    alone = [loss(rows, targets).item(), loss(rows[:1, :5], targets[:1, :5]).item(), loss(rows, targets).item()]
    assert found["alone"] == pytest.approx(alone, abs=1e-4)
    bypasses = {name: layer.adapters["default"] for name, layer in model.lora_layers().items()}
    trained = [p for bypass in bypasses.values() for p in (bypass.A, bypass.B)]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0)
    losses, norms = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        now = loss(rows, targets)
        now.backward()
        losses.append(now.item())
        for name, bypass in bypasses.items() if step == 0 else ():
            got = found["gradients"][name]
            assert relative(got["A"], bypass.A.grad.T) < 1e-4, f"A of {name}"
            assert relative(got["B"], bypass.B.grad) < 1e-4, f"B of {name}"
        norms.append(float(nn.utils.clip_grad_norm_(trained, 1)))
        optimizer.step()
    assert found["losses"] == pytest.approx(losses, abs=1e-3)
    for name, bypass in bypasses.items():
        assert relative(found["after"][name]["A"], bypass.A.T) < 1e-3, f"A of {name} after {STEPS} steps"
        assert relative(found["after"][name]["B"], bypass.B) < 1e-3, f"B of {name} after {STEPS} steps"
    if setting.s > 2:
        assert max(norms) > 1.5 > 1 > min(norms), "the gradient was not clipped, or always was"


# ---- A Llama -----------------------------------------------------------------------------------------------------

# What is not as in `tiny_llama`, and whether the GPU has the weights as float16.
LLAMAS: dict[str, tuple[dict[str, Any], bool]] = {
    "three queries to a key": ({}, False),
    "odd widths, float16": (
        {"vocab_size": 97, "hidden_size": 45, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 10,
         "intermediate_size": 70, "rms_norm_eps": 1e-3,
         "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
        True,
    ),
    "one key for all, more than 64 tokens": (
        {"vocab_size": 131, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 6}, False,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=LLAMAS)
def llama(request: pytest.FixtureRequest, page: Page) -> tuple[Any, float]:
    """A random Llama with LoRA beside all layers, in PEFT, and its s. The page has it without LoRA: `models.case`."""
    changes, half = LLAMAS[request.param]
    model = tiny_llama(**changes)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.half() if half and p.ndim == 2 else p)
    c = model.config
    config = {
        "family": "llama", "C": c.hidden_size, "H": c.num_attention_heads, "K": c.num_key_value_heads, "D": c.head_dim,
        "V": c.vocab_size, "depth": c.num_hidden_layers, "context": 96, "inner": c.intermediate_size,
        "epsilon": c.rms_norm_eps, "theta": c.rope_parameters["rope_theta"],
    }  # fmt: skip
    tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
    what = {"config": config, "weights": base64.b64encode(save(tensors)).decode(), "half": half}
    ask(page, "models.case = await lab.openModel(what);", what=what)
    return with_lora(model, 5, 7.0), 7 / 5


def llama_adapter(model: Any, s: float) -> dict[str, Any]:
    layers = {}
    for name, (A, B) in lora_layers(model).items():
        layers[name] = {"d": A.shape[1], "k": B.shape[0], "A": A.flatten().tolist(), "B": B.T.flatten().tolist()}
    return {"r": A.shape[0], "s": s, "layers": layers}


def test_logits_of_a_llama_are_those_of_transformers(page: Page, llama: tuple[Any, float]) -> None:
    """Read in pieces, so that the caches are used; without the adapter, with it, and as the sliders turn it."""
    model, s = llama
    ids = torch.randint(model.config.vocab_size, (1, 80), generator=torch.Generator().manual_seed(1))
    pieces = [70, 1, 1, 7, 1]
    views = {"base": None, "whole": {}, "turned": {"rank": 2, "strength": 0.5, "off": ["mlp.up_proj"]}}
    script = "return lab.logitsOf(models.case, lab.adapterOf(adapter), views, ids, pieces);"
    found = ask(page, script, adapter=llama_adapter(model, s), views=views, ids=ids[0].tolist(), pieces=pieces)
    ends = torch.tensor(pieces).cumsum(0) - 1
    with torch.no_grad():
        wanted = {"whole": model(ids).logits[0, ends]}
        with model.disable_adapter():
            wanted["base"] = model(ids).logits[0, ends]
        turned = copy.deepcopy(model)
        for name, (A, _) in lora_layers(turned).items():
            A[2:] = 0
            A.mul_(0 if "up_proj" in name else 0.5)
        wanted["turned"] = turned(ids).logits[0, ends]
    for view, logits in wanted.items():
        assert (torch.tensor(found[view]) - logits).abs().max() < 1e-5 * logits.std(), view
    assert (wanted["whole"] - wanted["base"]).abs().max() > 0.1, "the adapter changes nothing, so nothing was compared"


def test_gradients_and_twenty_steps_of_a_llama_are_pytorchs(page: Page, llama: tuple[Any, float]) -> None:
    model, s = copy.deepcopy(llama[0]), llama[1]
    generator = torch.Generator().manual_seed(2)
    rows, targets = torch.randint(model.config.vocab_size, (2, 3, 17), generator=generator)
    targets[1, :9] = -100
    rate, steps = 3e-3, 20
    what = {"rows": rows.tolist(), "targets": targets.tolist(), "rate": rate, "steps": steps}
    script = "return lab.learn(models.case, lab.adapterOf(adapter), what);"
    found = ask(page, script, adapter=llama_adapter(model, s), what=what)
    layers = lora_layers(model)
    trained = [p for pair in layers.values() for p in pair]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(rows).logits.flatten(0, 1), targets.flatten())
        loss.backward()
        losses.append(loss.item())
        for name, (A, B) in layers.items() if step == 0 else ():
            assert relative(found["gradients"][name]["A"], A.grad) < 1e-5, f"A of {name}"
            assert relative(found["gradients"][name]["B"], B.grad.T) < 1e-5, f"B of {name}"
        nn.utils.clip_grad_norm_(trained, 1)
        optimizer.step()
    assert losses[0] - losses[-1] > 0.5, "nothing was learned, so nothing was compared"
    assert found["alone"][0] == found["losses"][0] == pytest.approx(found["alone"][2], rel=1e-6)
    assert found["losses"] == pytest.approx(losses, abs=1e-5 * losses[0])


# ---- When something goes wrong -----------------------------------------------------------------------------------


@pytest.fixture
def tiny(page: Page) -> None:
    """`models.tiny` in the page."""
    case = Case(9, 11, 1, 1, 4)
    what = {"config": case.config, "weights": weights_of(case.model(), torch.float32), "half": False}
    ask(page, "models.source = await lab.sourceOf(what.config, what.weights);", what=what)
    ask(page, "models.tiny = await lab.openModel(what);", what=what)


def refused(page: Page, script: str) -> str:
    return str(ask(page, f"try {{ await (async () => {{ {script} }})(); }} catch (error) {{ return `${{error}}`; }}"))


REAL = 'stand(GPUAdapter.prototype, "info", { vendor: "acme", architecture: "one" });'
CHOICES = {
    "a real GPU": ("", REAL, "webgpu", "", "acme one"),
    "a simulated GPU": ("", "", "wasm", "This browser offers only a simulated GPU", ""),
    "WebAssembly is wanted": ("wasm", REAL, "wasm", "", ""),
    "no WebGPU": ("", 'stand(Navigator.prototype, "gpu", undefined);', "wasm", "This browser has no WebGPU.", ""),
    "no GPU": ("", 'stand(GPU.prototype, "requestAdapter", async () => null);', "wasm", "no GPU that it can use", ""),
    "a GPU that fails": (
        "",
        REAL + 'stand(GPUAdapter.prototype, "requestDevice", async () => { throw new Error("too hot"); });',
        "wasm",
        "The GPU could not be opened: too hot",
        "",
    ),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_the_device_is_chosen_and_named(page: Page, choice: str) -> None:
    wanted, situation, kind, why, name = CHOICES[choice]
    case = Case(24, 11, 1, 1, 4)
    what = {"config": case.config, "weights": weights_of(case.model(), torch.float32), "wanted": wanted or None}
    script = f"""const before = [];
      const stand = (owner, name, value) => {{
        before.push([owner, name, Object.getOwnPropertyDescriptor(owner, name)]);
        Object.defineProperty(owner, name, {{ get: () => value, configurable: true }});
      }};
      const wasm = await (await fetch("./cpu/kernels.wasm")).arrayBuffer();
      const source = await lab.sourceOf(what.config, what.weights);
      {situation}
      try {{
        const model = await lab.modelOn(what.wanted ?? undefined, {{ source, wasm, exact: true, name: "small" }});
        return {{ ...model.device, read: (await model.next([1, 2])).length }};
      }} finally {{
        for (const one of before.reverse()) Object.defineProperty(...one);
      }}"""
    found = ask(page, script, what=what)
    assert (found["kind"], found["name"], found["read"]) == (kind, name, 11)
    assert why in found["why"] if why else found["why"] == ""


def test_a_gpu_that_was_asked_for_and_is_not_there_is_an_error(page: Page, tiny: None) -> None:
    words = refused(
        page,
        """const own = Object.getOwnPropertyDescriptor(Navigator.prototype, "gpu");
      Object.defineProperty(Navigator.prototype, "gpu", { get: () => undefined, configurable: true });
      try { await lab.modelOn("webgpu", { source: models.source, exact: true }); }
      finally { Object.defineProperty(Navigator.prototype, "gpu", own); }""",
    )
    assert words == "Error: This browser has no WebGPU."
    words = refused(page, 'await lab.modelOn("gpu", { source: models.source });')
    assert words == 'Error: The device must be "webgpu" or "wasm", not "gpu".'


def test_a_simulated_gpu_is_recognised(page: Page) -> None:
    assert ask(page, "return lab.findGPU();")["simulated"] is True


def test_a_lost_gpu_is_noticed_in_the_middle_of_a_step(page: Page, tiny: None) -> None:
    script = """const found = await lab.findGPU();
      models.own = await lab.GPUModel.load(models.source, { exact: true, found });
      await models.own.loss([[1, 2, 3]], [[2, 3, 4]]);
      return models.own.lost;"""
    assert ask(page, script) is None
    words = refused(
        page,
        """const { gpu } = models.own;
      const { submit } = gpu;
      gpu.submit = (...what) => { submit.apply(gpu, what); gpu.device.destroy(); };
      await models.own.loss([[1, 2, 3]], [[2, 3, 4]]);""",
    )
    assert words.startswith("Error: The GPU was lost (destroyed)"), words
    assert refused(page, "await models.own.next([1]);") == words, "and the next call says so, too"
    assert ask(page, "return models.own.lost !== null;")


def test_a_gpu_that_is_too_small_says_so(page: Page, tiny: None) -> None:
    """A phone's limits, and an embedding of 201 MB: it is refused before anything of it is read."""
    words = refused(
        page,
        """const limits = { maxBufferSize: 2 ** 28, maxStorageBufferBindingSize: 2 ** 27 };
      const { adapter } = await lab.findGPU();
      const phone = { limits, requestDevice: wanted => adapter.requestDevice(wanted) };
      const { config, tensors } = models.source;
      const large = { ...tensors, "wte.weight": { ...tensors["wte.weight"], shape: [2 ** 22, 9] } };
      const source = { config: { ...config, V: 2 ** 22 }, tensors: large };
      await lab.GPUModel.load(source, { exact: true, found: { adapter: phone } });""",
    )
    assert words.startswith(
        "Error: The model needs a buffer of 201 MB, but this GPU allows 134 MB: use 16 bits a weight"
    )


def test_too_large_a_step_leaves_the_model_as_it_was(page: Page, tiny: None) -> None:
    script = "return models.tiny.loss([[1, 2, 3]], [[2, 3, 4]]);"
    before = ask(page, script)
    bytes_before = ask(page, "return models.tiny.gpu.bytes;")
    words = refused(
        page,
        """const { gpu } = models.tiny;
      const { largest } = gpu;
      gpu.largest = 2 ** 16;
      try { await models.tiny.loss([Array(90).fill(1)], [Array(90).fill(1)]); } finally { gpu.largest = largest; }""",
    )
    assert words.startswith("Error: The model needs a buffer of 0.0972 MB, but this GPU allows 0.0655 MB: use")
    assert ask(page, "return models.tiny.gpu.bytes;") < bytes_before, "room is left behind"
    assert ask(page, script) == before
    assert "at most 96 tokens" in refused(page, "await models.tiny.next(Array(97).fill(1));")


def test_a_step_that_is_too_far_is_taken_back(page: Page, tiny: None) -> None:
    """Nothing moves when the loss is too high or not finite, and the weights of the last good loss come back."""
    found = ask(
        page,
        """const layers = { "h.1.mlp.c_fc": { d: 9, k: 36, A: Array(9).fill(0.5), B: Array(36).fill(0.25) } };
      const loaded = await models.tiny.place(lab.adapterOf({ r: 1, s: 2, layers }), true);
      const weights = async () => Object.values((await loaded.read()).layers).flatMap(({ A, B }) => [...A, ...B]);
      const step = (step, rate, most) => models.tiny.step(loaded, [[1, 2, 3]], [[2, 3, 4]], { step, rate, most });
      models.tiny.use(loaded);
      const seen = { start: await weights() };
      seen.first = await step(1, 0.1, 0);
      seen.refused = await weights();
      seen.losses = [await step(1, 0.1, 100)];
      seen.good = await weights();
      for (const [rate, most] of [[1, 0], [1e30, 100]]) {
        seen.losses.push(await step(2, rate, 100));
        seen.wild = await weights();
        seen.losses.push(await step(3, 0.1, most));
        seen.back = [...seen.back ?? [], await weights()];
      }
      models.tiny.use(null);
      loaded.free();
      return seen;""",
    )
    assert found["first"] == found["losses"][0] > 0
    assert found["refused"] == found["start"] != found["good"] != found["wild"]
    assert found["losses"][2] > 0
    assert found["losses"][4] is None, "NaN is null in JSON"
    assert found["back"] == [found["good"]] * 2, "the weights before the wild step"


def test_a_slow_plan_is_split_and_computes_the_same(page: Page, tiny: None) -> None:
    """Few launches in a submission at first; then as many as fit into the time that one may take."""
    found = ask(
        page,
        """const { gpu } = models.tiny;
      const sizes = [];
      const { submit } = gpu;
      gpu.submit = (steps, wanted) => { sizes.push(steps.length); submit.call(gpu, steps, wanted); };
      const loss = () => models.tiny.loss([[1, 2, 3]], [[2, 3, 4]]);
      const losses = [await loss(), await loss()];
      const [plan] = Object.values(models.tiny.plans);
      const fast = plan.atOnce;
      plan.atOnce = 7;
      losses.push(await loss());
      return { losses, sizes, fast, launches: plan.steps.length };""",
    )
    launches = found["launches"]
    parts = [16] * (launches // 16) + [launches % 16]
    assert found["fast"] >= launches
    assert found["sizes"] == [*parts, launches, *[7] * (launches // 7), launches % 7]
    assert len(set(found["losses"])) == 1


def test_a_large_launch_is_a_rectangle(page: Page, tiny: None) -> None:
    """As if a GPU could run 7 workgroups in a row, not 65535."""
    found = ask(
        page,
        """const { gpu } = models.tiny;
      const loss = () => models.tiny.loss([[1, 2, 3]], [[2, 3, 4]]);
      const losses = [await loss()];
      models.tiny.forgetPlans();
      const { mostGroups } = gpu;
      gpu.mostGroups = 7;
      losses.push(await loss());
      gpu.mostGroups = mostGroups;
      const [plan] = Object.values(models.tiny.plans);
      const largest = side => Math.max(...plan.steps.map(step => step[side]));
      return { losses, wide: largest("x"), high: largest("y") };""",
    )
    assert found["losses"][0] == found["losses"][1]
    assert found["wide"] <= 7
    assert found["high"] > 1


def test_float16_is_rounded_as_pytorch_rounds(page: Page) -> None:
    values = torch.cat(
        [torch.randn(2000), torch.randn(2000) * 1e-6, torch.tensor([65519.9, 65520, -1e9, 2**-24, 2**-25])]
    )
    values = torch.cat([values, torch.tensor([1 + 2**-11, 1 + 3 * 2**-11, 3 * 2**-25, 0, -0.0, math.inf])])
    found = ask(
        page, "return values.map(value => lab.floatToHalf(value ?? Infinity));", values=[*values[:-1].tolist(), None]
    )
    wanted = values.half().view(torch.int16).to(torch.int32) & 0xFFFF
    assert found == wanted.tolist()


# ---- The worker, on a page that is opened from a disk ------------------------------------------------------------

SETTINGS = {
    "text": "All day the old boat lay on the sand. " * 12, "prompt": "The boat", "r": 4, "alpha": 8, "kinds": KINDS,
    "rate": 3e-2, "steps": 13, "batch": 2,
}  # fmt: skip
TRAIN = """async ([name, settings, loseAt]) => {
  const losses = {};
  const news = ({ step, loss }) => {
    if (step) losses[step] = loss;
    if (step === loseAt) engine.ask("loseGPU");
  };
  const done = await engine.ask("train", { name, settings }, { news });
  if (done.diverged) throw new Error(done.diverged);
  return losses;
}"""
FILES = """async name => {
  const view = { adapter: name, rank: 4, strength: 1, off: [] };
  const files = await engine.ask("files", { view });
  return Object.fromEntries(Object.entries(files).map(([file, bytes]) => [file, [...bytes]]));
}"""


@pytest.fixture
def worker(browser: Browser, site: Path) -> Iterator[Page]:
    """The page of the lab with its worker as `engine`, and jobs for tests in it."""
    with simulated_gpu(browser) as chromium:
        tab = chromium.new_page()
        tab.goto(site.as_uri())
        tab.evaluate(measure_lab.WITH_PROBE, [probe(), True])
        yield tab


def small_gpt2_files() -> dict[str, str]:
    """A random GPT-2 with gpt2-mini's tokenizer. Weights in base64."""
    model = scatter(GPT2Model(GPT2Config(4096, 96, 24, 1, 3, 0, 0, 0)))
    config = {"model_type": "gpt2", "vocab_size": 4096, "n_positions": 96, "n_embd": 24, "n_layer": 1, "n_head": 3}
    tokens = (build_lab.MODEL / "bpe.tiktoken").read_text(encoding="ascii")
    weights = weights_of(get_peft_model(model, KINDS, 1), torch.float16)
    return {"config.json": json.dumps({**config, "eos_token_id": 4095}), "bpe.tiktoken": tokens, "weights": weights}


def load(worker: Page, device: str) -> dict[str, Any]:
    script = """async ([{ weights, ...files }, device]) => {
      const bytes = Uint8Array.from(atob(weights), letter => letter.charCodeAt(0));
      await engine.load({ ...files, "model.safetensors": bytes.buffer }, { device });
      return engine.device;
    }"""
    return dict(worker.evaluate(script, [small_gpt2_files(), device]))


def test_a_simulated_gpu_is_not_chosen(worker: Page) -> None:
    device = worker.evaluate("engine.device")
    assert device["kind"] == "wasm"
    assert "only a simulated GPU" in device["why"]


def test_both_devices_write_and_train_the_same_and_a_lost_gpu_costs_no_step(worker: Page) -> None:
    assert load(worker, "wasm") == {"kind": "wasm", "name": "", "why": ""}
    wanted = worker.evaluate(TRAIN, ["run", SETTINGS, None])
    view = {"adapter": "run", "rank": 2, "strength": 0.5, "off": ["mlp.c_fc"]}
    writing = {"view": view, "base": True, "prompt": "The boat", "count": 20, "temperature": 0.8, "seed": 4}
    texts = worker.evaluate("what => engine.ask('write', what)", writing)
    files = worker.evaluate(FILES, "run")

    worker.evaluate("engine.moveTo('webgpu')")
    assert worker.evaluate("engine.device")["kind"] == "webgpu"
    assert worker.evaluate("what => engine.ask('write', what)", writing) == texts
    assert worker.evaluate(FILES, "run") == files, "the base's fingerprint among them"

    worker.evaluate("engine.onDevice = device => { window.heard = device; }")
    # The GPU works alone; two workers go on without it.
    found = worker.evaluate(TRAIN, ["run", {**SETTINGS, "workers": 2}, 12])
    assert list(found) == [str(step) for step in range(1, SETTINGS["steps"] + 1)]
    assert list(found.values()) == pytest.approx(list(wanted.values()), abs=1e-3)
    assert wanted["1"] - wanted["13"] > 0.2, "nothing was learned, so nothing was compared"
    heard = worker.evaluate("heard")
    assert heard == worker.evaluate("engine.device")
    assert heard["kind"] == "wasm"
    assert heard["why"].startswith("The GPU was lost")
    assert worker.evaluate("what => engine.ask('write', what)", writing) == texts


@pytest.mark.parametrize("silent", ["requestAdapter", "requestDevice"])
def test_a_browser_that_never_answers_is_given_up(browser: Browser, silent: str) -> None:
    """As after a driver has crashed. The minute that the lab waits is none here."""
    with simulated_gpu(browser) as chromium:
        tab = chromium.new_page()
        tab.route(f"{ADDRESS}**", serve)
        tab.goto(ADDRESS)
        words = tab.evaluate(
            """async silent => {
          const { findGPU, GPU } = await import("./gpu/probe.js");
          const found = await findGPU();
          const { setTimeout } = window;
          window.setTimeout = (work, ms, ...rest) => setTimeout(work, 0, ...rest);
          const kind = silent === "requestAdapter" ? window.GPU : GPUAdapter;
          kind.prototype[silent] = () => new Promise(() => {});
          const done = silent === "requestAdapter" ? findGPU() : GPU.open(found, false);
          const late = new Promise(resolve => setTimeout(resolve, 5000, { message: "still waiting" }));
          return (await Promise.race([done.catch(error => error), late])).message;
        }""",
            silent,
        )
    assert "has not answered for 60 seconds" in words

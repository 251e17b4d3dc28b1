"""The lab, the page in which a reader trains an adapter: its arithmetic against PyTorch's, and the page in browsers."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import build_lab
import print_book
import pytest
import torch
from playwright.sync_api import Browser, Page, sync_playwright
from test_book import skip_or_fail
from torch import Tensor

from lora_lib import PeftModel, get_peft_model, load_model, load_pretrained
from lora_lib.training import lr_factor

LAB = build_lab.LAB
PROBE = (Path(__file__).parent / "lab_probe.js").read_text(encoding="utf8")
START_ENGINE = """async ([probe, relaxed]) => {
  const { worker } = Lab;
  Lab.worker = parts => worker({ ...parts, source: parts.source + probe });
  window.engine = await Lab.Engine.start(undefined, { relaxed });
  if (window.engine.relaxed !== relaxed) throw new Error("the other kernels were taken");
}"""
KINDS = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page without the book around it."""
    folder = tmp_path_factory.mktemp("lab")
    build_lab.write_site(folder)
    return folder / "lab.html"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = print_book.find_browser()
    if path is None:
        skip_or_fail("no Chromium or Chrome found: `apt install chromium` brings one")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=print_book.FLAGS)
        yield chromium
        chromium.close()


class Engine:
    """The lab's worker in a page of its own, with the tests' jobs in it."""

    def __init__(self, browser: Browser, site: Path, relaxed: bool) -> None:
        self.tab: Page = browser.new_page()
        self.tab.goto(site.as_uri())
        self.tab.evaluate(START_ENGINE, [PROBE, relaxed])

    def ask(self, job: str, **what: Any) -> Any:
        """A job's answer. JSON both ways: playwright is slow with long lists."""
        script = "async ([job, what]) => JSON.stringify(await engine.ask(job, JSON.parse(what)))"
        return json.loads(self.tab.evaluate(script, [job, json.dumps(what)]))


@pytest.fixture(scope="module", params=["relaxed", "plain"])
def engine(browser: Browser, site: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = Engine(browser, site, request.param == "relaxed")
    yield engine
    engine.tab.close()


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


# r, B, T, kinds: odd ranks and lengths, and choices of layers
CASES = [(8, 4, 64, KINDS), (5, 3, 37, ["attn.c_attn", "mlp.c_proj"]), (1, 1, 2, ["mlp.c_fc"]), (3, 2, 9, ["attn.c_proj"])]


@pytest.mark.parametrize(("r", "B", "T", "kinds"), CASES)
def test_loss_and_gradients_are_pytorchs(engine: Engine, r: int, B: int, T: int, kinds: list[str]) -> None:
    model = adapted(r, 12, kinds)
    ids = some_ids(B, T + 1, seed=r)
    expected = mean_loss(model, ids[:, :-1], ids[:, 1:])
    expected.backward()
    rows, targets = ids[:, :-1].tolist(), ids[:, 1:].tolist()
    found = engine.ask("gradients", adapter=for_the_lab(model, r, 12), rows=rows, targets=targets)
    assert math.isclose(found["loss"], expected.item(), abs_tol=1e-4)
    assert set(found["gradients"]) == set(model.lora_layers())
    for name, layer in model.lora_layers().items():
        adapter = layer.adapters["default"]
        for part, want in (("A", adapter.A.grad.T), ("B", adapter.B.grad)):
            got = torch.tensor(found["gradients"][name][part]).view(want.shape)
            assert (got - want).abs().max() <= 1e-4 * want.abs().max(), f"{part} of {name}"


def test_twenty_steps_are_those_of_fit(engine: Engine) -> None:
    r, alpha, steps, rate = 8, 16, 20, 2e-3
    model = adapted(r, alpha, KINDS)
    batches = [(ids[:, :-1], ids[:, 1:]) for ids in (some_ids(2, 33, seed=i) % 500 for i in range(steps))]
    start = for_the_lab(model, r, alpha)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer, expected = torch.optim.AdamW(weights, weight_decay=0.0), []
    for step, (ids, targets) in enumerate(batches):
        loss = mean_loss(model, ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.param_groups[0]["lr"] = rate * lr_factor(step, steps, 0.1)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    lists = [(ids.tolist(), targets.tolist()) for ids, targets in batches]
    losses = engine.ask("steps", adapter=start, batches=lists, rate=rate)["losses"]
    assert expected[0] - expected[-1] > 0.5, "nothing was learned, so nothing was compared"
    assert losses == pytest.approx(expected, abs=1e-4)

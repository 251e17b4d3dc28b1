"""The pictures that a reader changes by hand: they show what the library computes, and every hand reaches it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import product as every

import nbformat
import print_book
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page
from test_knobs import (
    lab,  # noqa: F401 - the fixture: JupyterLab on a folder of its own
    write_notebook,
)

from lora_book.show import (
    KINDS,
    Run,
    Scale,
    Square,
    action,
    injection,
    product,
    run_map,
    switching,
    tradeoff,
    voices,
)
from lora_lib import GPT2Config, GPT2Model, get_peft_model, load_model

A = [[1, 0, 1, -1], [2, 1, 0, 1], [0, -1, 2, 0], [-1, 2, 1, 1]]
B = [[1, -1, 2, 0, 1], [0, 2, 1, -1, 1], [1, 0, -1, 1, 0], [0, 1, 1, -1, 2]]
W = [[3, 0, -2, 1, 1], [0, 2, 1, -1, 0], [1, -1, 3, 0, 2], [-2, 1, 0, 2, -1]]
ALPHAS = [1, 2, 4, 8]
X, BASE = [1, 2, -1], [[3, 0, -2, 1], [0, 2, 1, -1], [1, -1, 3, 0]]
ADAPTERS = {"writer": ([[1], [0], [2]], [[1, -1, 0, 2]]), "reader": ([[0], [1], [-1]], [[2, 0, 1, -1]])}
SMALL = GPT2Config(vocab_size=97, n_positions=32, n_embd=24, n_head=3, n_layer=2)
PAGE = """<!DOCTYPE html><html lang="en"><head><title>live</title></head><body><main class="bd-article"><h1>live</h1>
{}</main></body></html>"""


def opened(browser: Browser, html: str, **context: object) -> Page:
    """A page that holds the picture alone, with no network."""
    page = browser.new_context(offline=True, **context).new_page()
    page.set_content(PAGE.format(html))
    return page


def the_product() -> str:
    return product(A, B, W, rank=2, alpha=4, alphas=ALPHAS, caption="The product").html


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = opened(browser, the_product())
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    assert errors == []
    page.context.close()


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def shown(page: Page, of: str) -> torch.Tensor:
    """The numbers of one table."""
    rows = page.locator(f"table:has([data-cell={of}]) tr").all()
    return torch.tensor([[number(cell) for cell in row.locator("td").all_inner_texts()] for row in rows])


def lit(page: Page) -> set[tuple[str, int, int]]:
    cells = page.locator("td.live-lit").evaluate_all("all => all.map(c => [c.dataset.cell, c.dataset.i, c.dataset.j])")
    return {(of, int(i), int(j)) for of, i, j in cells}


def turn(page: Page, rank: int, alpha: int) -> None:
    page.get_by_role("slider", name="rank r").fill(str(rank - 1))
    page.get_by_role("radio", name=str(alpha), exact=True).check(force=True)


def said(page: Page) -> str:
    return page.locator(".live-said").inner_text()


def entry(page: Page, of: str, i: int, j: int) -> Locator:
    return page.get_by_role("spinbutton", name=f"{of}, row {i}, column {j}")


@pytest.mark.parametrize(("rank", "alpha"), [(1, 8), (2, 4), (3, 1), (4, 8)])
def test_the_product_is_that_of_the_entries_shown(page: Page, rank: int, alpha: int) -> None:
    turn(page, rank, alpha)
    entry(page, "A", 4, rank).press("ArrowDown")
    entry(page, "B", 1, 5).press("ArrowUp")
    a, b = shown(page, "A"), shown(page, "B")
    assert a.tolist() != [row[:rank] for row in A] and b.tolist() != B[:rank]
    assert torch.equal(shown(page, "AB"), a @ b)
    sheets = [shown(page, f"sheet{n}") for n in range(rank)]
    assert torch.equal(sum(sheets), a @ b)
    assert all(torch.linalg.matrix_rank(sheet) <= 1 for sheet in sheets)
    changed = torch.tensor(W) + alpha / rank * a @ b
    assert (shown(page, "new") - changed).abs().max() < 0.051  # one digit behind the point
    line = page.locator(".knob-line p").inner_text()
    assert f"s = α/r = {alpha}/{rank}" in line and f"hold {9 * rank} numbers, W 20." in line
    assert f"A·B has rank {torch.linalg.matrix_rank(a @ b)}." in line


def test_the_rank_told_is_that_of_the_product_and_not_r(page: Page) -> None:
    for i, (first, second) in enumerate(zip(*zip(*[row[:2] for row in A]))):
        for _ in range((first - second) % 7):  # A's second column becomes its first
            entry(page, "A", i + 1, 2).click()
    assert shown(page, "A")[:, 0].equal(shown(page, "A")[:, 1])
    assert "A·B has rank 1." in page.locator(".knob-line p").inner_text()


@pytest.mark.parametrize("how", ["hover", "focus"])
def test_a_cell_of_the_product_lights_its_row_and_its_column(page: Page, how: str) -> None:
    turn(page, 3, 2)
    getattr(page.get_by_role("button", name="A·B, row 4, column 2:"), how)()
    marked = lit(page)
    assert {cell for cell in marked if cell[0] == "A"} == {("A", 3, n) for n in range(3)}
    assert {cell for cell in marked if cell[0] == "B"} == {("B", n, 1) for n in range(3)}
    assert {cell[1:] for cell in marked if cell[0] not in "AB"} == {(3, 1)}
    assert said(page) == (
        "Row 4 of A times column 2 of B: −1·(−1) + 2·2 + 1·0 = 5. Times s = 0.67: 3.33. On top of W's 1: 4.33."
    )


@pytest.mark.parametrize(("of", "i", "j"), [("A", 2, 1), ("B", 2, 4)])
def test_an_entry_changes_one_whole_row_or_column_and_nothing_else(page: Page, of: str, i: int, j: int) -> None:
    before = shown(page, "AB")
    entry(page, of, i, j).press("ArrowUp")
    after = shown(page, "AB")
    line = [(i - 1, n) for n in range(5)] if of == "A" else [(n, j - 1) for n in range(4)]
    different = {tuple(place) for place in (before != after).nonzero().tolist()}
    assert different and different <= set(line)
    assert {cell[1:] for cell in lit(page) if cell[0] == "AB"} == set(line)
    met = {cell[1:] for cell in lit(page) if cell[0] == ("B" if of == "A" else "A")}  # what the entry is multiplied by
    assert met == ({(j - 1, n) for n in range(5)} if of == "A" else {(n, i - 1) for n in range(4)})
    values = ", ".join(f"{after[place]:g}".replace("-", "−") for place in line)
    assert said(page).endswith(f"of A·B has changed: {values}.")


def test_keys_go_round_the_entries_and_the_cells(page: Page) -> None:
    first = entry(page, "A", 1, 1)
    first.focus()
    for key, name in (("ArrowRight", "A, row 1, column 2"), ("ArrowRight", "A, row 2, column 1")):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.ariaLabel") == name
    assert first.get_attribute("aria-valuenow") == "1"
    for expected in ("2", "3", "-3"):  # after the last comes the first
        first.press("ArrowUp")
        assert first.get_attribute("aria-valuenow") == expected
    assert number(first.inner_text()) == -3
    page.get_by_role("button", name="A·B, row 1, column 1:").press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert said(page).startswith("Row 2 of A times column 2 of B")
    stops = page.locator("td [tabindex='0']").evaluate_all("all => all.map(one => one.dataset.of)")
    assert sorted(stops) == ["A", "AB", "B"]  # one stop of the Tab key for each


def test_fingers_change_an_entry_on_a_phone(browser: Browser) -> None:
    page = opened(browser, the_product(), viewport={"width": 390, "height": 844}, has_touch=True)
    entry(page, "B", 1, 3).tap()
    assert entry(page, "B", 1, 3).inner_text() == "3"
    assert said(page).startswith("Row 1, column 3 of B is 3. All of column 3 of A·B has changed")
    turn(page, 4, 8)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    page.context.close()


def test_back_to_the_start(page: Page) -> None:
    reset = page.locator(".knob-reset")
    assert reset.is_disabled()
    start = page.locator(".live").inner_text()
    entry(page, "A", 1, 1).click()
    turn(page, 4, 1)
    reset.click()
    assert page.locator(".live").inner_text() == start


@pytest.mark.parametrize("kind", ["product", "injection"])
def test_without_scripts_the_start_stands(browser: Browser, kind: str) -> None:
    html = the_product() if kind == "product" else the_model()
    still, alive = opened(browser, html, java_script_enabled=False), opened(browser, html)
    assert still.get_by_text("To change it, run this cell").is_visible()
    if kind == "product":
        tables = still.locator("table").all_inner_texts()
        numbers = [[number(text) for text in re.findall(r"−?[\d.]+(?=\s|$)", table)] for table in tables]
        for of, found in zip(("A", "B", "AB", "W", "new"), numbers, strict=True):
            expected = shown(alive, of).flatten().tolist()
            assert found[-len(expected) :] == expected or found[: len(expected)] == expected
    else:
        assert still.get_by_role("row", name=re.compile("mlp.c_fc")).inner_text().split("\t")[-1] == "960"
    for page in (still, alive):
        page.context.close()


def the_model(**names: GPT2Model) -> str:
    models = names or {"small": GPT2Model(SMALL)}
    return injection(models, ranks=[1, 8, 16], rank=8, chosen=KINDS[:3], caption="A GPT-2").html


CHOSEN = [["attn.c_attn"], KINDS[:4], ["attn.c_proj", "mlp.c_proj"], ["out_head"], KINDS]


@pytest.mark.parametrize(("chosen", "rank"), list(every(CHOSEN, [1, 16])))
def test_the_counts_are_those_of_get_peft_model(browser: Browser, chosen: list[str], rank: int) -> None:
    page = opened(browser, the_model(mini=load_model("gpt2-mini")))
    for kind in KINDS:
        page.locator(f"[data-kind='{kind}']").set_checked(kind in chosen)
    page.get_by_role("slider", name="rank r").fill(str([1, 8, 16].index(rank)))
    model = load_model("gpt2-mini")
    code = page.locator(".live-code").inner_text()
    peft = eval(code, {"get_peft_model": get_peft_model, "model": model})  # what the picture says is what is asked
    learns, total = peft.get_nb_trainable_parameters()
    line = page.locator(".knob-line p").inner_text()
    assert line.startswith(f"{learns:,} numbers learn, {learns / total:.2%} of all in mini; ")
    assert f"in a file {4 * learns / 1e6:.2f} MB beside the model's {4 * (total - learns) / 1e6:.0f} MB" in line
    layers = peft.lora_layers()
    assert {name.removeprefix("h.0.") for name in layers if "h." not in name or "h.0." in name} == set(chosen)
    for kind in chosen:
        name = kind if kind == "out_head" else f"h.0.{kind}"
        adapter = layers[name].adapters["default"]
        assert f"{adapter.A.numel() + adapter.B.numel():,} learn" in page.locator(f"label[for$='{kind}']").inner_text()
    page.context.close()


def test_nothing_chosen_is_said_and_a_larger_model_has_its_own_counts(browser: Browser) -> None:
    with torch.device("meta"):
        wide = GPT2Model(GPT2Config(vocab_size=97, n_positions=32, n_embd=48, n_head=3, n_layer=5))
    page = opened(browser, the_model(small=GPT2Model(SMALL), wide=wide))
    for kind in KINDS:
        page.locator(f"[data-kind='{kind}']").set_checked(False)
    assert "0 numbers learn, 0.00% of all" in page.locator(".knob-line p").inner_text()
    assert page.locator(".live-code").inner_text().startswith("# choose a layer")
    page.get_by_role("radio", name="small").press("ArrowRight")
    page.get_by_label("c_attn").check()
    assert f"{8 * (48 + 144) * 5:,} numbers learn" in page.locator(".knob-line p").inner_text()
    assert "there are 5" in page.locator(".live-picture").inner_text()
    page.context.close()


def the_switch() -> str:
    return switching(X, BASE, ADAPTERS, caption="Two adapters").html


@pytest.mark.parametrize("folded", ["no", "yes"])
@pytest.mark.parametrize("use", ["none", "writer", "reader", "both"])
def test_switching_and_folding_in_give_what_the_formula_gives(browser: Browser, use: str, folded: str) -> None:
    page = opened(browser, the_switch())
    page.get_by_text(use, exact=True).first.click()
    page.get_by_text(folded, exact=True).first.click()
    used = [name for name in ADAPTERS if use in (name, "both")]
    W = torch.tensor(BASE)
    changed = W + sum(torch.tensor(A) @ torch.tensor(B) for A, B in (ADAPTERS[name] for name in used))
    held = changed if folded == "yes" else W
    told = [number(text) for text in page.locator("table", has_text="y comes out").locator("td").all_inner_texts()]
    assert told == (torch.tensor(X) @ changed).tolist()
    rows = page.locator("table").nth(1).locator("tr").all()
    assert [[number(text) for text in row.locator("td").all_inner_texts()] for row in rows] == held.tolist()
    assert page.locator(".live-lit").count() == (held != W).sum()
    line = page.locator(".knob-line p").inner_text()
    beside = 0 if folded == "yes" else 7 * len(used)
    assert (
        line.startswith(f"In use: {' and '.join(used) or 'no adapter'}.") and f" {12 + beside} multiplications" in line
    )
    assert page.locator(".live-used").count() == (len(used) if folded == "no" else 0)
    page.context.close()


def the_ellipse() -> str:
    return action(20, 75, strongest=1.6, weaker=[0.0, 0.4, 0.8], start=(45, 0.8), caption="An ellipse").html


def sent(angle: float, weaker: float) -> tuple[list[float], int]:
    """How much of x's u₁ and u₂ there is, what comes out of each, and the rank."""
    u, x = (torch.deg2rad(torch.tensor(degrees)) for degrees in ([20.0, 110.0], angle))
    inside = torch.cos(u - x)
    out = inside * torch.tensor([1.6, weaker])
    return [*inside.tolist(), *out.tolist()], 1 + (weaker > 0)


def test_the_arrow_is_dragged_and_turned_by_keys(browser: Browser) -> None:
    page = opened(browser, the_ellipse(), viewport={"width": 900, "height": 900})
    handle, line = page.get_by_role("slider", name="angle of x"), page.locator(".knob-line p")

    def tells(angle: float, weaker: float) -> bool:
        found = [number(text) for text in re.findall(r"−?\d\.\d\d", line.inner_text())]
        wanted, rank = sent(angle, weaker)
        close = all(abs(a - b) < 0.006 for a, b in zip(found, wanted, strict=True))
        return close and line.inner_text().endswith(f"rank {rank}")

    assert tells(45.0, 0.8)
    handle.press("ArrowUp")
    assert handle.get_attribute("aria-valuenow") == "50" and tells(50.0, 0.8)
    box = page.locator(".live-panel").first.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(middle[0] + 20, middle[1] - 20)
    page.mouse.down()
    page.mouse.move(middle[0] - 60, middle[1])
    page.mouse.up()
    assert handle.get_attribute("aria-valuenow") == "180" and tells(180.0, 0.8)
    page.get_by_role("slider", name="σ₂").press("Home")
    assert tells(180.0, 0.0)
    page.get_by_role("button", name="Back to the start").click()
    assert tells(45.0, 0.8)
    page.context.close()


RUNS = {
    ("r = 1", "0.1"): Square(3.0, "one at 0.1", [8, 4, 3]),
    ("r = 8", "0.1"): Square(2.0, "eight at 0.1", [8, 3, 2]),
    ("r = 8", "0.3"): Square(2.5, "eight at 0.3", [8, 5, 2.5]),
    ("full", "0.1"): Square(1.9, "full at 0.1", [8, 2, 1.9]),
}


def the_map(start: tuple[str, str] = ("r = 8", "0.1"), **squares: Square) -> str:
    return run_map(
        ["r = 1", "r = 8", "full"], ["0.1", "0.2", "0.3"], RUNS | squares, start=start,
        names=("rank", "rate", "held-out loss", "training loss"), axis=(1, 9, 2, 4, 8), steps=(5, 10), most=3.5,
        apart="full", caption="A map",
    ).html  # fmt: skip


def test_a_square_of_the_map_is_pressed_and_arrows_pass_over_empty_ones(browser: Browser) -> None:
    page = opened(browser, the_map())
    line, chosen = page.locator(".knob-line p"), page.locator("button[aria-pressed=true]")
    assert line.inner_text() == "eight at 0.1" and page.locator(".live-other").count() == 1
    page.get_by_role("button", name="r = 8, rate 0.3: 2.50").click()
    assert line.inner_text() == "eight at 0.3"
    page.keyboard.press("ArrowLeft")
    assert line.inner_text() == "eight at 0.1" and chosen.evaluate("b => b === document.activeElement")
    page.keyboard.press("ArrowDown")
    assert line.inner_text() == "full at 0.1" and page.locator(".live-chosen-line.live-apart").count() == 1
    page.keyboard.press("ArrowDown")  # there is no more
    assert line.inner_text() == "full at 0.1" and chosen.count() == 1
    assert page.locator(".live-map-table button[tabindex='0']").count() == 1  # one stop of the Tab key
    page.get_by_role("button", name="Back to the start").click()
    assert line.inner_text() == "eight at 0.1" and chosen.evaluate("b => b === document.activeElement")
    page.context.close()


def test_maps_and_ellipses_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"starts at \('r = 1', '0.3'\), where no run is"):
        the_map(start=("r = 1", "0.3"))
    with pytest.raises(ValueError, match=r"no square for \[\('r = 9', '0.1'\)\]"):
        run_map(["r = 1"], ["0.1"], {("r = 9", "0.1"): RUNS["full", "0.1"]}, start=("r = 9", "0.1"),
                names=("", "", "", ""), axis=(0, 1), steps=(0, 1), most=1, caption="")  # fmt: skip
    with pytest.raises(ValueError, match="σ₂ starts at 2 beside a σ₁ of 1"):
        action(0, 0, strongest=1, weaker=[2], start=(0, 2), caption="")


ENDS = [
    Run("full", 0.1, 1.0, (1.0, 4.0, 5.0), 5), Run("full", 0.2, 1.0, (0.9, 4.5, 6.0), 5),
    Run("full", 0.2, 0.5, (1.2, 3.0, 4.0), 2), Run("r = 8", 0.4, 1.0, (1.1, 3.9, 4.5), 5),
]  # fmt: skip


def the_tradeoff(runs: Sequence[Run] = ENDS, start: tuple[str, float] = ("r = 8", 0.4)) -> str:
    return tradeoff(
        runs, (2.0, 0.0, 3.0), axes=[Scale("loss", 0.8, 2, [1, 2]), Scale("KL", 2, 5, [3, 4], log=True)],
        up=Scale("prose", 3, 7, [4, 5]), start=start, apart="full", caption="Learning against forgetting",
    ).html  # fmt: skip


def test_method_rate_and_lambda_are_turned_or_a_point_is_pressed(browser: Browser) -> None:
    page = opened(browser, the_tradeoff())
    line, dot = page.locator(".knob-line p"), page.locator(".live-here")
    assert line.inner_text() == "r = 8 at 0.4: loss 1.1 (base 2), KL 3.9 (base 0), prose 4.5 (base 3); 5 seeds"
    page.get_by_label("full", exact=True).check()  # which has no run at 0.4: the nearest one
    assert line.inner_text().startswith("full at 0.2: loss 0.9 ")
    page.get_by_role("slider", name="λ").press("Home")
    assert line.inner_text().startswith("full at 0.2, its change × 0.5: loss 1.2 ") and "2 seeds" in line.inner_text()
    page.get_by_role("slider", name="rate").press("Home")  # and at 0.1 with λ = 1 alone
    assert line.inner_text().startswith("full at 0.1: loss 1 ")
    before = float(dot.get_attribute("cx") or 0)
    page.get_by_label("KL", exact=True).check()
    assert float(dot.get_attribute("cx") or 0) != before
    page.locator("[data-at='1.2.1']").first.click()
    assert line.inner_text().startswith("r = 8 at 0.4: ") and page.get_by_label("KL", exact=True).is_checked()
    page.get_by_role("button", name="Back to the start").click()
    assert page.get_by_label("loss", exact=True).is_checked()
    page.context.close()


def test_runs_that_do_not_fit_the_picture_are_refused() -> None:
    with pytest.raises(ValueError, match=r"starts at \('r = 8', 0.1\), where no run is"):
        the_tradeoff(start=("r = 8", 0.1))
    with pytest.raises(ValueError, match=r"\('r = 1', 0.1\) has no run with λ = 1"):
        the_tradeoff([*ENDS, Run("r = 1", 0.1, 0.5, (1, 2, 3), 5)])
    with pytest.raises(ValueError, match=r"got the values \(1, 2\): expected one for each of 2 axes and the upright"):
        the_tradeoff([*ENDS, Run("r = 1", 0.1, 1.0, (1, 2), 5)])


def test_adapters_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="two adapters or more"):
        switching(X, BASE, {"writer": ADAPTERS["writer"]}, caption="")
    with pytest.raises(ValueError, match="third's A is 2 × 1 and its B 1 × 4, beside an x of 3"):
        switching(X, BASE, ADAPTERS | {"third": ([[1], [0]], [[1, 2, 3, 4]])}, caption="")


@pytest.mark.parametrize("scheme", ["active", "none"])
@pytest.mark.parametrize("kind", ["product", "injection", "switch", "ellipse", "map", "tradeoff"])
def test_axe_finds_nothing_and_what_matters_is_drawn_in_few_colours(browser: Browser, kind: str, scheme: str) -> None:
    made = {
        "product": the_product,
        "injection": the_model,
        "switch": the_switch,
        "map": the_map,
        "tradeoff": the_tradeoff,
    }
    page = opened(browser, made.get(kind, the_ellipse)(), forced_colors=scheme)
    if kind == "switch":
        page.get_by_text("yes", exact=True).click()
    elif kind in ("product", "injection"):
        page.get_by_role("slider", name="rank r").press("End")
    if kind == "product":
        entry(page, "A", 1, 1).press("ArrowUp")
    found = Axe().run(page, options={"rules": {"label-content-name-mismatch": {"enabled": True}}}).response
    assert [(v["id"], v["nodes"][0]["html"]) for v in found["violations"] if v["id"] != "region"] == []
    if kind in ("ellipse", "map", "tradeoff"):
        page.context.close()
        return
    mark = page.locator(".live-chosen .live-a" if kind == "injection" else ".live-lit").first
    style = mark.evaluate("e => [getComputedStyle(e).outlineStyle, getComputedStyle(e).backgroundColor]")
    ground = page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor")
    assert style[1] != ground if kind == "injection" else style[0] == "solid"
    page.context.close()


@pytest.mark.parametrize("kind", ["product", "injection"])
def test_the_address_leads_back(browser: Browser, kind: str, tmp_path) -> None:
    (tmp_path / "page.html").write_text(
        PAGE.format(the_product() if kind == "product" else the_model()), encoding="utf8"
    )
    with print_book.serve(tmp_path) as address:
        page = browser.new_page()
        page.goto(f"{address}page.html")
        if kind == "product":
            entry(page, "B", 2, 2).click()
        else:
            page.get_by_label("out_head").check()
        page.get_by_role("slider", name="rank r").press("End")
        page.wait_for_url(f"**?live-{kind}=*")
        told = page.locator(".live").inner_text()
        again = browser.new_page()
        again.goto(page.url)
        if kind == "product":
            entry(again, "B", 2, 2).focus()
            entry(page, "B", 2, 2).focus()
            told = page.locator(".live").inner_text()
        assert again.locator(".live").inner_text() == told
        page.get_by_role("button", name="Back to the start").click()
        page.wait_for_function("!location.search")
        for nonsense in (
            "99.1",
            "00.0000",
            "31.111119",
            "",
            f"09.{'3' * 36}",
            f"40.{'3' * 36}",
            "09.11111",
            "30.11111",
        ):
            again.goto(f"{address}page.html?live-{kind}={nonsense}")
            assert again.locator(".knob-reset").is_disabled()
        page.close()
        again.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": A[:3]}, r"W has rows .* expected 3 rows of 5"),
        ({"B": [row[:4] for row in B]}, "B has rows of .* expected 4 rows of 5"),
        ({"A": [[4, 0, 0, 0]] * 4}, "A holds .* from -3 to 3"),
        ({"rank": 5}, "rank 5"),
        ({"alpha": 3}, "α 3"),
    ],
)
def test_a_product_that_does_not_fit_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        product(**{"A": A, "B": B, "W": W, "rank": 2, "alpha": 4, "alphas": ALPHAS, "caption": ""} | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 2}, "rank 2"),
        ({"chosen": ["c_attn"]}, "c_attn"),
        ({"ranks": [8, 25]}, "rank of 25 .* expected 24 or less"),
    ],
)
def test_an_injection_that_does_not_fit_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        injection({"small": GPT2Model(SMALL)}, **{"ranks": [1, 8], "rank": 8, "chosen": KINDS, "caption": ""} | change)


@pytest.mark.parametrize("ranks", [[], [8], [8, 1], [0, 4, 2]])
def test_voices_need_two_ranks_in_their_order(ranks: list[int]) -> None:
    with pytest.raises(ValueError, match="expected two or more, from the lowest to the highest"):
        voices("Once", 320, dict.fromkeys(ranks, ("a cat", "It says so.")), caption="Voices")


def test_in_jupyterlab_it_lives_when_trusted_and_stands_still_when_not(browser: Browser, lab) -> None:  # noqa: F811
    folder, address, notary = lab
    output = nbformat.v4.new_output("display_data", {"text/plain": "", "text/html": the_product()})
    write_notebook(nbformat.v4.new_code_cell("1", outputs=[output], execution_count=1), folder / "live.ipynb")
    page = browser.new_page(viewport={"width": 1100, "height": 1400})

    page.goto(f"{address}/doc/tree/live.ipynb?reset")
    page.get_by_text("To change it, run this cell").wait_for()
    numbers = page.locator("figure table").first.locator("td").all_inner_texts()
    assert [number(text) for text in numbers] == [x for row in A for x in row[:2]]
    assert page.get_by_role("spinbutton").count() == 0

    notary.sign(nbformat.read(folder / "live.ipynb", as_version=4))
    page.goto(f"{address}/doc/tree/live.ipynb?reset")
    page.locator("[data-status=idle]").first.wait_for()  # until then JupyterLab still draws
    entry(page, "A", 2, 1).press("ArrowUp")
    assert said(page).startswith("Row 2, column 1 of A is 3. All of row 2 of A·B has changed")
    page.close()

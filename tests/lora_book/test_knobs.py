"""Knobs: what the reader turns is what is drawn, in HTML without a kernel and in the live widget."""

import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from time import sleep

import IPython.display
import nbformat
import numpy as np
import pytest
from matplotlib import pyplot as plt

import lora_lib
from lora_book.show import WIDGET_VIEW, Panels, knob
from lora_book.show.figures import figure_svg

NUMBERS = """from lora_book.show import knob
def draw(rank):
    return f"rank {rank} stores {rank * 3072:,} numbers", f"r = {rank}"
knob(draw, rank=[1, 2, 4, 8, 64], labels={"rank": "rank r"}, start={"rank": 8}, caption="Size by rank")"""


def draw_text(rank, target="q"):
    return f"<rank {rank} on {target}>", f"r = {rank}, {target}"


def draw_line(rank):
    fig, ax = plt.subplots(figsize=(7, 3))
    for power in (0.5, 1.0, 1.5):
        ax.plot(np.arange(1, 100) ** power / rank, label=f"power {power}")
    ax.set(xlabel="step", ylabel="loss", title=f"rank {rank}", ylim=(0, 100))
    ax.legend()
    return fig


def two_axes():
    return knob(
        draw_text, rank=[1, 2, 4], target={"query": "q", "all": "all-linear"}, caption="Rank & target",
        labels={"rank": "Rank r"}, start={"rank": 2, "target": "all"},
    )  # fmt: skip


def data(html):
    """What the script of a knob brings to life."""
    return json.loads(re.search(r'<script type="application/json" class="knob-data">(.*?)</script>', html, re.S)[1])


def outputs(made, monkeypatch):
    """What a cell that ends in a knob leaves in its notebook."""
    shown = []
    monkeypatch.setattr(IPython.display, "publish_display_data", shown.append)
    made._ipython_display_()
    return [nbformat.v4.new_output("display_data", data=output) for output in shown]


def test_frames_follow_the_axes_and_the_start():
    made = two_axes()
    assert repr(made) == "Knob(rank: 1, 2, 4; target: query, all)"
    packed = data(made.html())
    assert packed["readouts"] == [f"r = {r}, {t}" for r in (1, 2, 4) for t in ("q", "all-linear")]
    assert [i for i, body in enumerate(packed["bodies"]) if not body] == [3], "the first frame stands in the page"
    assert packed["bodies"][0] == "<pre>&lt;rank 1 on q&gt;</pre>"


def test_what_a_viewer_leaves_without_scripts_is_the_first_frame_alone():
    html = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", two_axes().html(), flags=re.S)
    words = re.sub(r"<[^>]*>", "", html).split("\n")
    assert [line for line in words if line] == [
        "Rank r 2, target all To turn it, run this cell (Shift + Enter), or allow this page to run scripts.",
        "r = 2, all-linear", "&lt;rank 2 on all-linear&gt;", "Rank &amp; target",
    ]  # fmt: skip
    assert not re.search("<input|<button|hidden", html)


def test_html_is_self_contained_and_the_same_every_time():
    first, second, other = (
        knob(draw_line, rank=values, caption="Loss", alt="Three lines").html() for values in ([1, 2], [1, 2], [1, 3])
    )
    assert first == second
    ids, other_ids = (set(re.findall(r'\bid="([^"]+)"', html)) for html in (first, other))
    assert len(ids) == 1 and not ids & other_ids
    pictures = re.search(r"<div><img.*?</div>", first)[0] + "".join(data(first)["bodies"])
    assert re.findall(r'alt="([^"]+)" width="(\d+)" height="(\d+)"', pictures) == [
        ("Three lines (rank 1)", "700", "300"), ("Three lines (rank 2)", "700", "300"),
    ]  # fmt: skip
    sources = re.findall(r'(?:src|href)="([^"]*)', pictures)
    assert len(sources) == 2 and all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert not plt.get_fignums(), "a figure left open would be shown twice in a notebook"


def test_a_figure_is_a_small_drawing_that_is_the_same_every_time():
    def drawn():
        fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3))
        left.loglog([1, 10], [1e-3, 1e-1], "o-", label="loss")
        left.legend()
        right.imshow(np.arange(6.0).reshape(2, 3))
        right.text(0, 0, "code", family="monospace")
        svg = figure_svg(fig)
        plt.close(fig)
        return svg

    svg = drawn()
    assert svg == drawn() and len(svg) < 12_000
    assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg" width="700" height="300" viewBox="0 0 504 216"')
    texts = re.findall("<text[^>]*>([^<]*)</text>", svg)
    assert {"loss", "code", "10⁻³"} <= set(texts) and "tspan" not in svg
    assert svg.count('class="paper"') == 1 and svg.count("<image ") == 1
    ids, used = set(re.findall(r'\bid="([^"]+)"', svg)), set(re.findall(r'(?:url\(|href=")#([^")]+)', svg))
    assert ids == used, "an id that nothing uses would stand twice in a page of many figures"


def test_named_numbers_are_choices():
    html = data(knob(draw_text, rank={"low": 1, "high": 8}, caption="c").html())["controls"]
    assert html.count('type="radio"') == 2 and 'type="range"' not in html


def test_a_single_number_is_a_choice_that_stands():
    made = knob(draw_text, rank=[320], target=["q", "v"], caption="One rank", labels={"rank": "rank r"})
    html = data(made.html())["controls"]
    assert html.count('type="radio"') == 3 and 'type="range"' not in html
    assert made.frame(made._first).body == "<pre>&lt;rank 320 on q&gt;</pre>"


def test_alt_can_be_computed():
    made = knob(draw_line, rank=[1, 2], caption="Loss", alt=lambda rank: f'slope "1/{rank}"')
    bodies = "".join(frame.body for frame in made.frames.values())
    assert re.findall(r'alt="([^"]+)"', bodies) == ["slope &quot;1/1&quot;", "slope &quot;1/2&quot;"]


def test_panels_are_two_pictures_with_their_words_and_a_frame_of_a_knob():
    def draw(n):
        return Panels(*((plt.figure(figsize=(3.4, 2)), f"{side} {n}") for side in ("left", "right")))

    pictures = re.findall(r'<img src="data:image/svg[^"]*" alt="([^"]*)"', draw(1)._repr_html_())
    assert pictures == ["left 1", "right 1"]
    assert knob(draw, n=[1, 2], caption="c").frame(("2",)).body == draw(2).html
    assert plt.get_fignums() == []


def test_twelve_frames_weigh_little():
    assert len(knob(draw_line, rank=range(1, 13), caption="Loss").html()) < 400_000


def test_live_widget_shows_the_chosen_frame_alone():
    rank, target, readout, body, *_ = two_axes().widget.children
    seen = [(readout.value, body.value)]
    rank.value = 1
    seen.append((readout.value, body.value))
    target.value = "query"
    seen.append((readout.value, body.value))
    assert seen == [
        ("r = 2, all-linear", "<pre>&lt;rank 2 on all-linear&gt;</pre>"),
        ("r = 1, all-linear", "<pre>&lt;rank 1 on all-linear&gt;</pre>"),
        ("r = 1, q", "<pre>&lt;rank 1 on q&gt;</pre>"),
    ]  # fmt: skip


def test_a_button_beside_the_live_controls_leads_back_to_the_start():
    rank, target, *_, back = two_axes().widget.children
    start = rank.value, target.value
    rank.value, target.value = 1, "query"
    back.click()
    assert (rank.value, target.value) == start


def test_with_a_kernel_a_slider_takes_any_value_and_draws_it_once():
    drawn = []

    def draw(rank, rate):
        drawn.append((rank, rate))
        return f"{rank} {rate:g}"

    made = knob(draw, rank=[1, 8, 64], rate=[0.5, 1.0, 2.0], caption="c")
    rank, rate, _, body, *_ = made.widget.children
    assert made.between == ["rank", "rate"]
    assert (rank.min, rank.max, rank.step, rank.value) == (1, 64, 1, 1)
    rank.value = 5
    rate.value = 1.25
    assert body.value == "<pre>5 1.25</pre>" and drawn[-2:] == [(5, 0.5), (5, 1.25)]
    count = len(drawn)
    rank.value, rate.value = 8, 1.0
    rank.value, rate.value = 5, 1.25
    new = drawn[count:]
    assert (8, 1.0) not in new and (5, 1.25) not in new, "a value that was drawn before is not drawn again"
    assert "set rank and rate to any value" in data(made.html())["any"]


def test_a_slider_keeps_to_the_list_where_draw_knows_no_other_value():
    table = {1: "one", 4: "four", 64: "many"}
    made = knob(lambda rank, layer: table[rank] + str(layer), rank=list(table), layer=range(3), caption="c")
    rank, layer, *_ = made.widget.children
    assert made.between == [] and data(made.html())["any"] == ""
    assert list(rank.options) == ["1", "4", "64"], "a row of labels: a slider would tell a screen reader an index"
    assert (layer.min, layer.max, layer.step) == (0, 2, 1)


def test_a_draw_that_fails_between_its_values_says_so():
    def draw(rank):
        figure = plt.figure()
        if rank == 7:
            raise ValueError("seven <is> odd")
        plt.close(figure)
        return str(rank)

    rank, _, body, *_ = knob(draw, rank=[1, 64], caption="c").widget.children
    rank.value = 7
    assert body.value == "<pre>draw raised ValueError at rank 7: seven &lt;is&gt; odd</pre>"
    assert not plt.get_fignums()
    rank.value = 8
    assert body.value == "<pre>8</pre>"


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({}, "one or two values, got 0"),
        ({"a": [1, 2], "b": [1, 2], "c": [1, 2]}, "one or two values, got 3"),
        ({"rank": []}, "rank has no value to choose from"),
        ({"rank": [8, 4, 8]}, r"rank has more than one value labelled \['8'\]"),
        ({"rank": [1, 2], "start": {"rank": 3}}, r"rank cannot start at '3': expected one of \['1', '2'\]"),
        ({"rank": [1, 2], "start": {"layer": 1}}, r"names \['layer'\]: expected one of \['rank'\]"),
        ({"rank": [1, 2], "labels": {"layer": "Layer"}}, r"names \['layer'\]: expected one of \['rank'\]"),
        ({"rank": range(11), "target": range(11)}, "11 × 11 values make 121 frames, more than 120"),
    ],
)
def test_bad_axes_are_named(axes, message):
    with pytest.raises(ValueError, match=message):
        knob(draw_text, caption="c", **axes)


def test_a_draw_that_returns_nothing_is_named():
    with pytest.raises(TypeError, match="draw returned NoneType for rank 1: expected a matplotlib Figure"):
        knob(lambda rank: None, rank=[1, 2], caption="c")


def shown(page):
    """The texts that can be seen: read-out, then frame."""
    return [page.locator(f"{where}:visible").all_inner_texts() for where in (".knob-line > p", ".knob-frames > div")]


def test_keyboard_turns_a_knob_in_a_bare_page_and_leads_back(browser):
    page = browser.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_content(two_axes().html())
    rank, output = page.get_by_label("Rank r", exact=True), page.locator("output")
    start, back = (
        [["r = 2, all-linear"], ["<rank 2 on all-linear>"]],
        page.get_by_role("button", name="Back to the start"),
    )
    assert shown(page) == start and not page.locator(".knob-still").is_visible() and not back.is_visible()
    rank.press("ArrowRight")
    assert shown(page) == [["r = 4, all-linear"], ["<rank 4 on all-linear>"]]
    assert output.inner_text() == rank.get_attribute("aria-valuetext") == "4"
    page.get_by_role("radiogroup", name="target").get_by_label("all").press("ArrowLeft")
    assert shown(page) == [["r = 4, q"], ["<rank 4 on q>"]]
    back.press("Enter")
    assert shown(page) == start and output.inner_text() == "2" and rank.evaluate("r => r === document.activeElement")
    assert not errors
    page.close()


def test_first_frame_is_there_without_scripts(browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_content(two_axes().html())
    assert shown(page) == [["r = 2, all-linear"], ["<rank 2 on all-linear>"]]
    assert page.locator(".knob-hint").is_visible()
    context.close()


def write_notebook(cell, path):
    """A notebook of one cell. It names its kernel: JupyterLab would ask for one."""
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=metadata), path)


def notebook(path, monkeypatch):
    """A notebook of one knob, with the outputs that running it leaves and no widget's state."""
    scope = {}
    exec(NUMBERS.replace("\nknob(", "\nmade = knob("), scope)
    cell = nbformat.v4.new_code_cell(NUMBERS, outputs=outputs(scope["made"], monkeypatch), execution_count=1)
    write_notebook(cell, path)
    return path


def test_the_widget_is_an_output_of_its_own(monkeypatch):
    first, second = outputs(two_axes(), monkeypatch)
    assert set(first.data) == {"text/plain", "text/html"}
    assert second.data["text/plain"] == second.data["text/html"] == "" and WIDGET_VIEW in second.data


def test_knob_in_a_notebook_made_into_a_page(browser, tmp_path, monkeypatch):
    nbconvert = pytest.importorskip("nbconvert")
    path = notebook(tmp_path / "knob.ipynb", monkeypatch)
    (tmp_path / "knob.html").write_text(nbconvert.HTMLExporter().from_filename(path)[0], encoding="utf8")
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto((tmp_path / "knob.html").as_uri())
    assert not page.get_by_text("run this cell").is_visible(), "there is nothing to run in an export"
    page.get_by_label("rank r", exact=True).press("ArrowRight")
    assert shown(page) == [["r = 64"], ["rank 64 stores 196,608 numbers"]]
    context.close()


LIVE = """<div class="jp-NotebookPanel"><i class="jp-Notebook-ExecutionIndicator" data-status="idle"></i>
<div class="jp-OutputArea">{}
<div class="knob-live live-{}"><div class="widget-inline-hbox"><label>target</label>
<button class="widget-toggle-button">query</button><button class="widget-toggle-button mod-active">all</button>
</div></div></div></div>"""


def test_rows_of_buttons_beside_a_kernel_have_a_name_and_say_what_is_pressed(browser):
    page = browser.new_page()
    page.set_content(LIVE.format(two_axes().html(), two_axes().key))
    first = page.locator(".widget-toggle-button").first
    page.evaluate("document.querySelector('.knob-live').append('a change, as ipywidgets make them')")
    group = page.get_by_role("group", name="target")
    group.get_by_role("button", name="all", pressed=True).wait_for()
    assert group.get_by_role("button", name="query", pressed=False).count() == 1
    first.evaluate("button => button.classList.add('mod-active')")
    group.get_by_role("button", name="query", pressed=True).wait_for()
    page.close()


def test_the_frames_take_over_when_the_kernel_is_shut_down(browser):
    page = browser.new_page()
    page.set_content(LIVE.format(two_axes().html(), two_axes().key))
    still, live = page.locator("figure.knob"), page.locator(".knob-live")
    assert live.is_visible() and not still.is_visible()
    for status, gone in (("busy", False), ("unknown", True)):  # what JupyterLab says while it works, and after
        page.locator("i").evaluate("(mark, status) => { mark.dataset.status = status; }", status)
        page.wait_for_timeout(50)
        assert (live.is_visible(), still.is_visible()) == (not gone, gone)
    page.close()


@pytest.fixture
def lab(tmp_path):
    """JupyterLab on a folder of its own, with nothing of the reader's: the folder, its address and its notary."""
    pytest.importorskip("jupyterlab", reason="pip install jupyterlab, to test knobs where readers turn them")
    places = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("DATA", "CONFIG", "RUNTIME")}
    places |= {f"JUPYTERLAB_{name}_DIR": str(tmp_path / name) for name in ("SETTINGS", "WORKSPACES")}
    places |= {"JUPYTER_PREFER_ENV_PATH": "1", "OMP_NUM_THREADS": "1"}
    places |= {"PYTHONPATH": str(Path(lora_lib.__file__).parent.parent)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "notebooks"
    folder.mkdir()
    options = {
        "ServerApp.port": port, "ServerApp.root_dir": folder, "ServerApp.open_browser": False, "ServerApp.token": "",
        "ServerApp.password": "", "ServerApp.allow_root": True, "LabApp.news_url": None,
    }  # fmt: skip
    command = [sys.executable, "-m", "jupyterlab", *(f"--{key}={value}" for key, value in options.items())]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | places, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        while server.poll() is None:
            try:
                urllib.request.urlopen(f"{address}/api")
                break
            except urllib.error.URLError:
                sleep(0.1)
        assert server.poll() is None, (tmp_path / "log").read_text()
        yield folder, address, nbformat.sign.NotebookNotary(data_dir=places["JUPYTER_DATA_DIR"])
    finally:
        server.terminate()
        try:
            server.wait(timeout=10)  # it ends its kernels first
        except subprocess.TimeoutExpired:
            server.kill()


def test_knob_in_every_state_of_jupyterlab(browser, lab, monkeypatch, tmp_path):
    folder, address, notary = lab
    path = notebook(folder / "knob.ipynb", monkeypatch)
    page = browser.new_page(viewport={"width": 1100, "height": 800})
    still, live = page.locator("figure.knob"), page.locator(".knob-live")
    html_slider, widget_slider = still.locator("[type=range]"), live.get_by_role("slider", name="rank r")

    def open_notebook():
        page.goto(f"{address}/doc/tree/{path.name}?reset")
        still.wait_for()
        page.wait_for_function("!document.body.innerText.includes('Loading widget')")

    def looks(state, figure, widget, text):
        page.screenshot(path=tmp_path / f"{state}.png")
        assert (still.is_visible(), live.is_visible()) == (figure, widget), state
        assert (live if widget else still).locator("pre:visible").all_inner_texts() == [text], state
        assert "rror displaying widget" not in page.locator(".jp-Notebook").inner_text(), state

    eight, any_64 = "rank 8 stores 24,576 numbers", "rank 64 stores 196,608 numbers"
    open_notebook()
    looks("not trusted", True, False, eight)
    assert page.get_by_text("To turn it, run this cell").is_visible() and html_slider.count() == 0

    notary.sign(nbformat.read(path, as_version=4))
    open_notebook()
    looks("trusted, not run", True, False, eight)
    assert page.get_by_text("Run this cell (Shift + Enter) to set rank r to any value").is_visible()
    html_slider.press("ArrowRight")
    looks("trusted, not run, turned", True, False, any_64)

    page.locator(".jp-InputArea-editor").first.click()
    page.keyboard.press("Shift+Enter")
    widget_slider.wait_for()
    looks("run", False, True, eight)
    for _ in range(3):
        widget_slider.press("ArrowLeft")
    live.get_by_text("rank 5 stores").wait_for()
    looks("run and turned", False, True, "rank 5 stores 15,360 numbers")
    assert widget_slider.get_attribute("aria-valuetext") == "5"

    with page.expect_response(lambda response: response.request.method == "PUT"):
        page.keyboard.press("Control+s")
    page.locator(".jp-InputPrompt").first.click()
    page.keyboard.press("0")
    page.keyboard.press("0")
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    still.wait_for()
    looks("kernel restarted", True, False, eight)
    open_notebook()
    looks("saved and reopened", True, False, eight)
    html_slider.press("ArrowRight")
    looks("saved, reopened and turned", True, False, any_64)
    page.close()

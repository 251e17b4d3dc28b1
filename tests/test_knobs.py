"""Knobs: what the reader turns is what is drawn, in HTML without a kernel and in the live widget."""

import os
import re
import shutil

import numpy as np
import pytest
from matplotlib import pyplot as plt

from lora_lib.knobs import knob


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


def test_frames_follow_the_axes_and_the_start():
    made = two_axes()
    assert repr(made) == "Knob(rank: 1, 2, 4; target: query, all)"
    assert [f.readout for f in made.frames] == [f"r = {r}, {t}" for r in (1, 2, 4) for t in ("q", "all-linear")]
    frames = re.search(r'<div class="knob-frames">\n(.*?)\n</div>\n', made.html(), re.S)[1].splitlines()
    assert [i for i, line in enumerate(frames) if "hidden" not in line] == [3]
    assert frames[3] == "<div><pre>&lt;rank 2 on all-linear&gt;</pre></div>"


def test_html_is_self_contained_and_the_same_every_time():
    first, second, other = (
        knob(draw_line, rank=values, caption="Loss", alt="Three lines")._repr_mimebundle_()["text/html"]
        for values in ([1, 2], [1, 2], [1, 3])
    )
    assert first == second
    ids, other_ids = (set(re.findall(r'\bid="([^"]+)"', html)) for html in (first, other))
    assert len(ids) == 2 and not ids & other_ids
    assert re.findall(r'alt="([^"]+)" width="(\d+)" height="(\d+)"', first) == [
        ("Three lines (rank 1)", "700", "300"), ("Three lines (rank 2)", "700", "300"),
    ]  # fmt: skip
    assert all(source.startswith("data:image/webp;base64,") for source in re.findall(r'(?:src|href)="([^"]*)', first))
    assert not plt.get_fignums(), "a figure left open would be shown twice in a notebook"


def test_named_numbers_are_choices():
    html = knob(draw_text, rank={"low": 1, "high": 8}, caption="c").html()
    assert html.count('type="radio"') == 2 and 'type="range"' not in html


def test_alt_can_be_computed():
    html = knob(draw_line, rank=[1, 2], caption="Loss", alt=lambda rank: f'slope "1/{rank}"').html()
    assert re.findall(r'alt="([^"]+)"', html) == ["slope &quot;1/1&quot;", "slope &quot;1/2&quot;"]


def test_twelve_frames_weigh_little():
    assert len(knob(draw_line, rank=range(1, 13), caption="Loss").html()) < 400_000


def test_live_widget_shows_the_chosen_frame_alone():
    widget = two_axes().widget
    rank, target, view = widget.children
    seen = [view.value]
    rank.value = 0
    seen.append(view.value)
    target.value = 0
    seen.append(view.value)
    assert [re.findall("&lt;rank . on .*?&gt;", value) for value in seen] == [
        ["&lt;rank 2 on all-linear&gt;"], ["&lt;rank 1 on all-linear&gt;"], ["&lt;rank 1 on q&gt;"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({}, "one or two values, got 0"),
        ({"a": [1, 2], "b": [1, 2], "c": [1, 2]}, "one or two values, got 3"),
        ({"rank": []}, r"rank needs two values or more to choose from, got \[\]"),
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


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright, to test knobs in a browser")
    chromium = shutil.which("chromium")
    if chromium is None and "CI" not in os.environ:
        pytest.skip("no chromium on this machine (Debian and Ubuntu: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def shown(page):
    """The texts that can be seen: read-out, then frame."""
    return [page.locator(f"{stack} > :visible").all_inner_texts() for stack in (".knob-readouts", ".knob-frames")]


def test_keyboard_turns_a_knob_in_a_bare_page(browser):
    page = browser.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_content(two_axes().html())
    rank, output = page.get_by_label("Rank r", exact=True), page.locator("output")
    assert shown(page) == [["r = 2, all-linear"], ["<rank 2 on all-linear>"]]
    rank.press("ArrowRight")
    assert shown(page) == [["r = 4, all-linear"], ["<rank 4 on all-linear>"]]
    assert output.inner_text() == rank.get_attribute("aria-valuetext") == "4"
    page.get_by_role("radiogroup", name="target").get_by_label("all").press("ArrowLeft")
    assert shown(page) == [["r = 4, q"], ["<rank 4 on q>"]]
    assert not errors


def test_first_frame_is_there_without_scripts(browser):
    page = browser.new_context(java_script_enabled=False).new_page()
    page.set_content(two_axes().html())
    assert shown(page) == [["r = 2, all-linear"], ["<rank 2 on all-linear>"]]
    assert not page.locator(".knob-controls").is_visible()

"""What the book does to its pages: colours for both themes, letters for a phone, tables, formulas, lines that break."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
from types import SimpleNamespace

import drawings
import formulas
import printed
import pytest
import table_cards
import unbroken
from docutils import nodes
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from PIL import Image

from lora_book.show import BASE, CYCLE, FAINT, INK, PAPER, Panels
from lora_book.show.figures import figure_svg

BLUES = plt.cm.Blues([0.4, 0.6, 0.8, 1.0])  # ranks, in chapter 7
DARK = "1b2029"  # the page's ground in the dark


def brightness(code: str) -> float:
    """Relative luminance as contrast is measured with."""
    r, g, b = (drawings.linear(int(code[i : i + 2], 16) / 255) for i in (0, 2, 4))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    low, high = sorted((brightness(one), brightness(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", [*CYCLE, BASE, INK, "#000000", "#08306b"])
def test_lines_are_seen_on_a_dark_ground(colour: str) -> None:
    assert contrast(drawings.darkened(colour[1:])[1:], DARK) >= 3


def distance(one: str, other: str) -> float:
    """Between two colours, from 0 to about 440; two that differ by 50 are told apart."""
    pairs = ((int(one[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5))
    return sum((a - b) ** 2 for a, b in pairs) ** 0.5


def test_what_differs_in_the_light_differs_in_the_dark() -> None:
    for one, other in itertools.combinations([*CYCLE, *map(to_hex, BLUES)], 2):
        if distance(one, other) > 50:
            assert distance(drawings.darkened(one[1:]), drawings.darkened(other[1:])) > 40, (one, other)


def test_paper_is_dark_in_the_dark_and_what_is_faint_stays_faint() -> None:
    assert contrast(drawings.darkened(PAPER[1:])[1:], DARK) < 1.3
    assert 1.2 < contrast(drawings.darkened(FAINT[1:])[1:], DARK) < 3


def drawn(size: float, width: float = 7) -> str:
    fig = plt.figure(figsize=(width, 2))
    fig.text(0.5, 0.5, "words & more", fontsize=size)
    svg = figure_svg(fig)
    plt.close(fig)
    return drawings.themed(svg, 'a "name"')


@pytest.mark.parametrize(("size", "width", "wide"), [(11, 7, False), (14, 7, False), (5, 7, True), (11, 3, False)])
def test_letters_have_twelve_pixels_on_a_phone(size: float, width: float, wide: bool) -> None:
    html = drawn(size, width)
    assert html.startswith(f'<div class="drawn{" wide" * wide}"><svg role="img" aria-label="a &quot;name&quot;"')
    small, unit = float(re.search(r"--small:([\d.]+)px", html)[1]), float(re.search(r'viewBox="0 0 (\d+)', html)[1])
    column = float(found[1]) if (found := re.search(r"min-width:(\d+)px", html)) else drawings.PHONE
    assert (column > drawings.PHONE) == wide
    assert max(size, small) * column / unit >= 12
    assert f"font-size:max({size}px,var(--least))" in html and "fill:var(--c" in html


@pytest.mark.parametrize(("grey", "sheet"), [(240, True), (90, False)])
def test_light_pictures_are_turned_over_in_the_dark_and_dark_ones_are_not(grey: int, sheet: bool) -> None:
    data = io.BytesIO()
    Image.new("L", (4, 4), grey).save(data, "png")
    assert drawings.is_sheet(base64.b64encode(data.getvalue()).decode()) == sheet


def table(*rows: tuple[str, ...]) -> str:
    head, *body = [
        [f"<{'td' if i else 'th'}>{cell}</{'td' if i else 'th'}>" for cell in row] for i, row in enumerate(rows)
    ]
    lines = "".join(f"<tr>{''.join(row)}</tr>" for row in body)
    return f'<table class="table"><thead><tr>{"".join(head)}</tr></thead><tbody>{lines}</tbody></table>'


def test_a_wide_table_names_its_cells_and_a_narrow_one_stays() -> None:
    narrow = table(("r", "loss"), ("8", "2.17"))
    assert table_cards.as_cards(narrow) == narrow
    said = "how many columns A has, and rows B"
    wide = table_cards.as_cards(table(("setting", "what it does & why", "where it is read"), ("r", said, said)))
    assert wide.startswith('<table class="cards table">')
    assert wide.count("data-label") == 3 and 'data-label="what it does &amp; why">how many' in wide


def test_a_table_of_short_cells_stays_one_and_says_how_long_its_first_column_is() -> None:
    head = ("adapters in use", "lora_lib", "plain formula", "PEFT", "full", "loralib")
    numbers = table_cards.as_cards(table(head, ("LoRA, rank 8", "1.14", "1.38 [1.3, 1.4]", "1.51", "1.56", "1.43")))
    assert numbers.startswith('<table style="--first: 12ch" class="numbers table">') and "data-label" not in numbers


def test_of_two_columns_the_first_card_alone_names_the_second() -> None:
    rows = [("<b>Go</b>", ""), ("1. Rank, and why a change", "x" * 50), ("2. The LoRA layer", "y" * 50)]
    builds = table_cards.as_cards(table(("chapter", "what you build, of these"), *rows))
    assert builds.count('data-label="what you build, of these"') == 1 and 'data-label="">yy' in builds


def test_short_cells_of_a_card_share_a_line() -> None:
    card = table_cards.as_cards(table(("model", "rate", "from"), ("a" * 30, "1e-3", "b" * 60)))
    assert 'data-brief="" data-label="rate">1e-3' in card and card.count("data-brief") == 1


def test_an_empty_cell_of_a_card_has_no_name() -> None:
    wide = table_cards.as_cards(table(("chapter", "what it builds, in a word.", "why"), ("x" * 50, "", "y" * 50)))
    assert wide.count("data-label") == 2 and "what it builds" not in wide.split("<tbody>")[1]
    full = table_cards.as_cards(table(("chapter", "given: a place.", "why"), ("x" * 50, "z", "y" * 50)))
    assert 'data-label="given: a place">z' in full, "a colon follows, so the full stop goes"


def output(*lines: str) -> str:
    text = "\n".join(lines).replace("8", '<span class="ansi">8</span>')
    return printed.PRINTED.sub(
        printed.mark, f'<div class="output stream"><div class="highlight"><pre>{text}</pre></div>'
    )


def test_printed_tables_keep_their_columns_and_prose_does_not() -> None:
    assert 'class="columns" style="--columns:13"' in output("rank  loss  x", "8     2.17", "the base: 6.7")
    assert "columns" not in output("one line of a table:  1  2")
    assert "columns" not in output("    indented", "    and again", "prose")
    assert "columns" not in output("wanted  " + "x" * 140, "base    " + "y" * 140)


@pytest.mark.parametrize(
    ("text", "together"),
    [
        ("In GPT-2 124M r = 8 gives 0.1 %.", ["GPT-2 124M", "r = 8", "0.1 %"]),
        ("+2.0 % [+0.7, +3.4], more; 3.70 ± 0.06", ["+2.0 % [+0.7, +3.4]", "3.70 ± 0.06"]),
        ("A of (320 × 8), 2e-4 to 3e-4, with α/√r", ["(320 × 8)", "2e-4", "3e-4", "α/√r"]),
        ("See Chapter 7: 20 GB, not 200", ["Chapter 7", "20 GB"]),
    ],
)
def test_what_belongs_together_does_not_break(text: str, together: list[str]) -> None:
    found = unbroken.parts(text)
    assert "".join(node.astext() for node in found) == text
    assert [
        node.astext() for node in found if "unbroken" in getattr(node, "attributes", {}).get("classes", [])
    ] == together


def test_formulas_beside_each_other_are_several() -> None:
    body: list[str] = []
    translator = SimpleNamespace(body=body)
    with pytest.raises(nodes.SkipNode):
        formulas.visit_block(translator, nodes.math_block("", r"a = b, \qquad c = \alpha \dots"))
    assert body[0].count("<math") == 2 and body[0].index("b") < body[0].index("α")


def test_frames_of_two_panels_come_later_with_each_panel_drawn_in_the_page() -> None:
    panels = Panels(*((plt.figure(figsize=(3.4, 2)), side) for side in ("left", "right")))
    kept = json.dumps({"bodies": ["", panels.html]})
    html = f'<figure class="knob" id="k"><script type="application/json" class="knob-data">{kept}</script></figure>'
    _, later = drawings.light_knob(html, set())
    assert later[1].count('<div class="drawn') == 2 and "<img" not in later[1]

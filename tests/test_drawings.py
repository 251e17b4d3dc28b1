"""Figures in the page: colours for both themes, letters for a phone, and tables that become cards."""

from __future__ import annotations

import base64
import io
import re

import drawings
import pytest
import table_cards
from matplotlib import pyplot as plt
from PIL import Image

from lora_lib.book import BASE, CYCLE, FAINT, INK, PAPER
from lora_lib.book.figures import figure_svg

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
def test_letters_have_nine_pixels_on_a_phone(size: float, width: float, wide: bool) -> None:
    html = drawn(size, width)
    assert html.startswith(f'<div class="drawn{" wide" * wide}"><svg role="img" aria-label="a &quot;name&quot;"')
    small, unit = float(re.search(r"--small:([\d.]+)px", html)[1]), float(re.search(r'viewBox="0 0 (\d+)', html)[1])
    column = float(found[1]) if (found := re.search(r"min-width:(\d+)px", html)) else drawings.PHONE
    assert (column > drawings.PHONE) == wide
    assert max(size, small) * column / unit >= 9
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

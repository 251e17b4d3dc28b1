"""The findings page: its sections, its claims, and that the notebook shows each of them once."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from lora_book.show import findings_page as page

BOOK = Path(__file__).parents[2] / "book"


def sources(name):
    return ["".join(cell["source"]) for cell in json.loads((BOOK / name).read_text(encoding="utf8"))["cells"]]


def test_each_section_stands_once_on_the_page_under_its_own_anchor():
    cells = sources("findings.ipynb")
    called = [re.fullmatch(r'page\.section\("(.*)"\)', cell) for cell in cells]
    names = [found[1] for found in called if found]
    assert names == [name for name in page.SECTIONS if name not in page.MORE]
    folds = BeautifulSoup(page.more().data, "html.parser").select("details.more")
    assert cells.count("page.more()") == 1 and [fold.p["id"] for fold in folds] == list(page.MORE)
    for found, before in zip(called[1:], cells):
        assert not found or f'<a id="{found[1]}"></a>' in before


def test_the_board_leads_to_every_section():
    board = BeautifulSoup(page.overview().data, "html.parser")
    assert {link["href"].removeprefix("#") for link in board.select("a")} == set(page.SECTIONS)


@pytest.mark.parametrize("name", page.SECTIONS)
def test_a_section_folds_its_numbers(name):
    html = BeautifulSoup(page.section(name).data, "html.parser")
    assert len(html.select("details.behind")) == 1 and "nan" not in html.text and "inf" not in html.text.split()
    for point in html.select(".point"):
        assert 0 <= float(re.search(r"left:([\d.]+)%", point["style"])[1]) <= 100


def test_a_section_that_is_none_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match=r"no section 'rank'; there are as-good, new-words"):
        page.section("rank")


def test_the_rows_say_what_the_page_says():
    assert not [claim for claim, holds in page.claims().items() if not holds]


def test_a_finding_has_at_most_sixty_words_and_no_cell_is_long():
    for name in ("findings.ipynb", "how_measured.ipynb", "forgetting.ipynb"):
        cells = json.loads((BOOK / name).read_text(encoding="utf8"))["cells"]
        assert all(len(cell["source"]) <= 15 for cell in cells if cell["cell_type"] == "code"), name
    for cell in sources("findings.ipynb"):
        if "## " in cell:
            assert len(cell.partition("## ")[2].partition("\n")[2].split()) <= 62
    assert all(len(text.split()) <= 62 for _, text in page.MORE.values())


def test_the_table_of_rates_is_made_of_the_rows():
    table = {name: ratio for name, ratio, _ in page.rate_table()}
    assert table["gpt2-mini, r = 8, same matrices"].startswith("4.0 [3.5")
    assert table["SmolLM2, r = 8"] == "11 to 34"

"""The page on forgetting: its claims hold, its tables come from the rows, and nothing of a draft is left."""

from __future__ import annotations

import json
from pathlib import Path

from bs4 import BeautifulSoup

from lora_book.findings import select
from lora_book.findings.curves import at_loss
from lora_book.show import forgetting_page as page

NOTEBOOK = Path(__file__).parents[2] / "book/forgetting.ipynb"


def cells(found):
    return [
        [cell.text for cell in row.select("th, td")] for row in BeautifulSoup(found.data, "html.parser").select("tr")
    ]


def test_the_rows_say_what_the_page_says():
    assert not [claim for claim, holds in page.claims().items() if not holds]


def test_the_table_compares_at_each_loss():
    head, *rows = cells(page.at_equal_loss())
    assert [float(loss) for loss in head[1:]] == list(page.LOSSES)
    table = {row[0]: row[1:] for row in rows}
    found = at_loss(page.runs(), page.ROOT, "full", page.LOSSES[0])
    assert (
        table["r = 64, α/√r"][0] == page.shown(found.difference).replace(" ", "", 1) and "–" in table["r = 8, s = 1.41"]
    )


def test_every_arm_reaches_the_loss_at_which_rank_and_scale_are_compared():
    for arm in ("r = 64, s = 4", page.ROOT, "r = 8", "r = 8, s = 1.41"):
        for seed in range(100, 105):
            losses = [row["loss"] for row in select(page.runs(), arm=arm, seed=seed)]
            assert min(losses) <= page.ALL_REACH <= max(losses)


def test_no_word_of_a_draft_is_left():
    text = NOTEBOOK.read_text(encoding="utf8")
    sources = "".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    assert not [word for word in ("PREDICTIONS", "FARTEXT", "TODO") if word in sources]


def test_only_methods_with_enough_seeds_are_drawn():
    assert "r = 1" in page.arms(3) and set(page.arms(3)) <= set(page.ARMS)
    assert page.arms(6) == [], "no method has more than five seeds"
    assert len(cells(page.rank_and_scale())) == 5

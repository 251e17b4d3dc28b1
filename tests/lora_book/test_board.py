"""The board of findings and its forest plots: positions, words and marks."""

from __future__ import annotations

import re

import pytest
from bs4 import BeautifulSoup

from lora_book.findings import Difference, mean
from lora_book.findings.forgetting import Compared
from lora_book.findings.verdicts import COMPARISONS
from lora_book.show import board
from lora_book.show.board import Answer, Block, Line


def a_line(mean, low, high, margin=2.0, paper=None):
    return Line("LoRA & full", Difference(mean, low, high, 3), margin, "+5.0 [2.0, 8.0], better", paper)


def lefts(html, kind):
    return [float(x) for x in re.findall(rf'class="{kind}" style="left:([\d.]+)%', html)]


def test_a_forest_draws_each_interval_to_scale():
    html = board.forest([a_line(5, 2, 8, paper=-10), a_line(-90, -120, 40)], limit=20)
    assert lefts(html, "range") == [55, 0] and re.findall(r"width:([\d.]+)%\"></span><span class=\"point", html)
    assert lefts(html, "point") == [62.5, 3]  # what lies beyond the axis is drawn at its end
    assert lefts(html, "point paper") == [25] and lefts(html, "margin") == [45, 45]
    rows = BeautifulSoup(html, "html.parser").select("li")
    assert "full better" in rows[0].text and "± 20 %" in rows[0].text
    assert rows[1].text == "LoRA & full+5.0" and rows[1]["title"] == "+5.0 [2.0, 8.0], better"


def test_a_floor_has_a_point_and_no_interval():
    found = Difference.of([1.0, 1.0, 1.0])
    html = board.track(Line("", found, 2, ""), 20)
    assert 'class="point"' in html and 'class="range"' not in html
    assert board.interval(found) == "+1.00 (3 seeds, no interval)"
    assert board.interval(Difference(-0.5, -0.7, -0.3, 3), 1) == "−0.5 [−0.7, −0.3]"


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("rank 8 against 1", "better"),  # a lower loss
        ("as usual, BLEU", "worse"),  # a lower score
        ("as usual, forgetting", "worse"),
        ("with the embedding, rank 8", "level"),
        ("rank 64 against 8", "not settled"),
        ("rank 1 against the start, reward", "better"),
    ],
)
def test_right_is_better(name, verdict):
    drawn = board.line("a", name, {name})
    assert drawn.verdict == verdict and drawn.said.endswith(f", {verdict}{board.MARK}")
    assert not board.line("a", name).said.endswith(board.MARK)
    assert (drawn.found.mean > 0) == (verdict == "better") or verdict in ("level", "not settled")


def test_losses_are_in_percent_and_shares_in_points():
    loss, share = COMPARISONS["rank 8 against 1"], COMPARISONS["rank 1 against the start, reward"]
    percent = -100 * loss.difference().mean / mean(loss.sides()[1], loss.measure).mean
    drawn = board.line("a", "rank 8 against 1")
    assert drawn.found.mean == pytest.approx(percent) and drawn.margin == pytest.approx(2)
    points = board.line("a", "rank 1 against the start, reward")
    assert points.found.mean == pytest.approx(-100 * share.difference().mean) and points.margin == pytest.approx(2)


def test_a_lower_loss_is_to_the_right():
    drawn = board.percent_line("a", Compared(Difference(-0.1, -0.2, -0.05, 3), 2.0), survives=True)
    assert drawn.found[:3] == (5, 2.5, 10) and drawn.margin == 2
    assert drawn.said == f"+5.0 [+2.5, +10.0], better{board.MARK}"


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("with the embedding, rank 8, forgetting", "forgets less"),
        ("as usual, forgetting", "forgets more"),
        ("intruders, same loss, rank 8", "more"),
        ("same layers", "worse"),
        ("same layers, BLEU", "worse"),
    ],
)
def test_contrasts_are_judged_in_their_own_words(name, word):
    html = board.behind({"first": name, "second": "said & done"}, {"Control": "the same <seeds>"}, {name})
    page = BeautifulSoup(html, "html.parser")
    first, second = page.select("tbody tr")
    assert first.select("td")[1].text.endswith(f", {word}{board.MARK}") and second.text == "secondsaid & done"
    assert "Control: the same <seeds>" in page.text


def a_board(*answers, limit=20, unit=" %"):
    return BeautifulSoup(board.board([Block("Do", answers, limit, unit)]), "html.parser")


def test_the_board_leads_to_its_answers_and_names_the_sides_of_each_interval():
    page = a_board(Answer("why", "Do it.", a_line(5, 2, 8), ("not done", "done & dusted")))
    head, row = page.select("li")
    assert head.b.text == "Do" and [tick.text for tick in head.select(".axis > span")] == ["−20 %", "0", "+20 %"]
    assert row.a["href"] == "#why" and row.a.text == "Do it."
    assert [end.text for end in row.select(".ends > span")] == ["not done", "done & dusted"]
    assert lefts(str(row), "point") == [62.5] and row.select("span")[-1].text == "+5.0 %"


def test_an_interval_that_settles_nothing_says_so():
    page = a_board(Answer("why", "Is it so?", a_line(5, -2, 12), ("no", "yes")))
    assert page.select("li")[1].select("span")[-1].text == "+5.0 % ?"


def test_an_answer_without_an_interval_has_no_empty_track():
    page = a_board(Answer("why", "Nobody knows."))
    assert not page.select(".track, .axis") and len(page.select("li")[1].contents) == 1


def test_an_answer_is_short():
    with pytest.raises(ValueError, match=r"'word .*': an answer has at most 14 words"):
        board.board([Block("Do", [Answer("why", "word " * 15)], 20)])

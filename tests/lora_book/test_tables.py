"""Tables in what a cell shows."""

from lora_book.show.tables import means_table, table


def test_no_text_in_a_cell_breaks_the_table():
    shown = table(["weight", "text"], [[0.5, "one | two\nthree"], [1, ""]])
    assert shown.data.splitlines() == ["| weight | text |", "| ---: | --- |", "| 0.5 | one \\| two three |", "| 1 |  |"]


def test_a_column_of_numbers_is_set_to_the_right():
    rows = [["r = 8", "1,234", "+0.36 [+0.24, +0.47]", "2.17 ± 0.03", "16%"], ["full", "", "−0.4", "987 kB", "no"]]
    assert table(["way", "a", "b", "c", "d"], rows).data.splitlines()[1] == "| --- | ---: | ---: | ---: | --- |"


def test_means_of_runs_stand_under_their_heads():
    runs = {"r = 1": [{"loss": 1.0}, {"loss": 2.0}], "r = 8": [{"loss": 0.5}]}
    shown = means_table(runs, {"loss": "loss", "runs": len}, "way")
    assert shown.data.splitlines() == [
        "| way | loss | runs |", "| --- | ---: | ---: |", "| r = 1 | 1.50 ± 0.71 | 2 |", "| r = 8 | 0.50 | 1 |"
    ]  # fmt: skip

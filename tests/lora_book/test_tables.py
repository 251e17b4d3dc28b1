"""Tables in what a cell shows."""

from lora_book.show.tables import table


def test_no_text_in_a_cell_breaks_the_table():
    shown = table(["weight", "text"], [[0.5, "one | two\nthree"], [1, ""]])
    assert shown.data.splitlines() == ["| weight | text |", "| --- | --- |", "| 0.5 | one \\| two three |", "| 1 |  |"]

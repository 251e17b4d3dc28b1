"""Tables in what a cell shows."""

from lora_book.show.tables import table


def test_no_text_in_a_cell_breaks_the_table():
    shown = table(["weight", "text"], [[0.5, "one | two\nthree"], [1, ""]])
    assert shown.data.splitlines() == ["| weight | text |", "| ---: | --- |", "| 0.5 | one \\| two three |", "| 1 |  |"]


def test_a_column_of_numbers_is_set_to_the_right():
    rows = [["r = 8", "1,234", "+0.36 [+0.24, +0.47]", "2.17 ± 0.03", "16%"], ["full", "", "−0.4", "987 kB", "no"]]
    assert table(["way", "a", "b", "c", "d"], rows).data.splitlines()[1] == "| --- | ---: | ---: | ---: | --- |"

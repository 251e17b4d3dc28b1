"""Lines with their names at their ends."""

import pytest
from nbclient import NotebookClient
from nbformat import v4

from lora_book.show.figures import INK, apart, draw_lines


def test_names_stand_at_the_ends_and_keep_their_distance_and_order():
    fig = draw_lines([1, 2, 4], {"low": [3, 2, 1.00], "high": [3, 2, 1.01], "far": [3, 4, 5]}, [INK] * 3, log="x")
    places = {text.get_text(): text.get_position()[1] for text in fig.axes[0].texts}
    assert places["far"] > 0.9
    assert places["high"] - places["low"] == pytest.approx(0.12)
    assert [label.get_text() for label in fig.axes[0].get_xticklabels()] == ["1", "2", "4"]


@pytest.mark.parametrize("log", ["", "y"])
def test_a_name_is_beside_the_end_of_its_line_at_any_scale(log):
    ax = draw_lines(range(100, 400), {"line": [2.0] * 299 + [1.0]}, log=log).axes[0]
    x, y = ax.texts[0].get_position()
    end = (ax.transData + ax.transAxes.inverted()).transform((399, 1))
    assert (x - 0.02, y) == pytest.approx(tuple(end))
    assert 0.9 < end[0] < 1 and 0 < end[1] < 0.1


def test_heights_move_apart_around_their_middle_and_no_further():
    assert apart([0.5, 0.0, 0.52], 0.1) == pytest.approx([0.46, 0.0, 0.56])
    assert apart([0.1, 0.9], 0.1) == [0.1, 0.9]


@pytest.mark.parametrize("lines", [{}, {"short": [1]}])
def test_lines_that_do_not_fit_are_named(lines):
    with pytest.raises(ValueError, match="each with 2 values"):
        draw_lines([1, 2], lines)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("train", "name 'train' is not defined. If a cell above makes it, that cell was left out or stopped"),
        ("def f():\n    print(x)\n    x = 1\nf()", "'x'"),
    ],
)
def test_a_missing_name_says_that_a_cell_was_left_out(code, said):
    cells = [v4.new_code_cell(f"from lora_book.show import use_book_style\nuse_book_style()\n{code}")]
    notebook = NotebookClient(v4.new_notebook(cells=cells), kernel_name="python3", allow_errors=True).execute()
    (error,) = notebook.cells[0].outputs
    assert error.output_type == "error" and said in error.evalue
    assert ("a cell above" in error.evalue) == (code == "train") == ("a cell above" in "".join(error.traceback))

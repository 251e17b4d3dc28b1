"""A run's settings, from which columns, file names, comparisons and tables follow."""

from __future__ import annotations

import csv

import pytest

from lora_book.findings import FOLDER, load_results, select
from lora_book.findings.runs import E2ERun, MapRun, PartsRun, slug


@pytest.mark.parametrize(("file", "kind"), [("e2e", E2ERun), ("parts", PartsRun), ("map", MapRun)])
def test_the_settings_are_the_first_columns_of_the_rows(file, kind):
    with (FOLDER / f"{file}.csv").open(newline="", encoding="utf8") as rows:
        head = next(csv.reader(rows))
    assert tuple(head[: len(kind.columns())]) == kind.columns()
    first = load_results(file)[0]
    assert list(kind(**{name: first[name] for name in kind.columns()}).row()) == list(kind.columns())


def test_an_open_setting_finds_every_value_of_it():
    found = select(load_results("e2e"), **E2ERun(rank=8, steps=120).where())
    assert {row["learning_rate"] for row in found} > {0.003} and {row["steps"] for row in found} == {120}
    assert all(row["targets"] == "all" and row["alpha"] == 32 for row in found)


def test_a_table_groups_by_everything_but_the_seed_and_what_all_share():
    assert set(E2ERun.columns()) - set(E2ERun.grouped()) == {"batch_size", "max_length", "seed"}


def test_a_folder_is_named_by_the_settings_in_their_order():
    run = E2ERun(model="a/b", rank=8, learning_rate=0.003, seed=1)
    assert slug(run.row()) == "b-lora-all-8-32-False-default-1-0.003-120-8-64-1"

"""The library stays small, and brings nothing of the book; old names say where they are now."""

import importlib
import sys

import house
import pytest

import lora_lib.data
from lora_lib import moved


@pytest.fixture(scope="module")
def measured() -> dict[str, int]:
    return house.measure()


@pytest.mark.parametrize("what", house.LIMITS)
def test_the_house_keeps_its_size(measured, what):
    assert measured[what] <= house.LIMITS[what]


def test_files_are_counted_where_a_function_of_the_library_runs():
    assert house.entered(lambda: lora_lib.data.split(["a", "b", "c"])) == {"data/examples.py"}
    assert house.entered(lambda: len("not ours")) == set()


@pytest.mark.parametrize("module", ["lora_lib.data", "lora_lib.adapters", "lora_lib.training"])
def test_an_old_name_says_where_it_is_now(module):
    for name, place in moved.PLACES.items():
        with pytest.raises(ImportError, match=f"{name} is no longer in {module}: from {place} import {name}"):
            getattr(importlib.import_module(module), name)
        assert hasattr(importlib.import_module(place), name)
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'nothing'"):
        getattr(importlib.import_module(module), "nothing")  # noqa: B009


def test_a_name_that_changed_says_the_new_one():
    for name in ("read_columns", "read_csv", "read_jsonl", "read_chats"):
        with pytest.raises(ImportError, match=f"{name} is now called read_records: from lora_lib.data import"):
            getattr(lora_lib.data, name)


def test_the_old_folder_of_the_book_says_where_it_is_now(monkeypatch):
    monkeypatch.delitem(sys.modules, "lora_lib.book", raising=False)
    with pytest.raises(ImportError, match="lora_lib.book is now lora_book: .* check are in lora_book.show"):
        importlib.import_module("lora_lib.book.figures")

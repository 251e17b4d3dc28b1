"""Wrong input is never silent: every case of the page book/wrong_input.md, with its error and its message.

The page's tables are written from `CASES`: after a change there run
`PYTHONPATH=.:tests python tests/lora_lib/test_wrong_input.py`.
"""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_models import IDS, small, stir, three_adapters
from wrong_input_cases import CASES

from lora_lib import LoRALinear, get_peft_model

PAGE = Path(__file__).parents[2] / "book" / "wrong_input.md"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a good adapter, to be copied and spoiled."""
    folder = tmp_path_factory.mktemp("good")
    stir(get_peft_model(small(), ["c_attn"], 4)).save_pretrained(folder)
    return folder


@pytest.fixture
def at(tmp_path, saved, monkeypatch):
    """A plain model `base`, a `model` with three adapters, and a `folder` with an adapter for `base`."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    model = three_adapters()

    def two():
        model.set_adapter(["default", "b"])
        return model

    return SimpleNamespace(
        base=small(), model=model, folder=folder, tmp=tmp_path, monkeypatch=monkeypatch, unwrap=None,
        two=two, frozen=lambda: model.requires_grad_(False),
    )  # fmt: skip


ALL = [pytest.param(case, id=case.what) for cases in CASES.values() for case in cases]


@pytest.mark.parametrize("case", ALL)
def test_it_is_refused_by_name_and_nothing_is_lost(at, case):
    base_before, before = at.base(IDS), at.model(IDS)
    with pytest.raises(case.error, match=pattern(case.message)):
        case.act(at)
    if at.unwrap is not None:
        at.unwrap.unload()
    assert torch.equal(at.base(IDS), base_before)
    assert not any(isinstance(module, LoRALinear) for module in at.base.modules())
    at.model.set_adapter("default")
    assert torch.equal(at.model.eval()(IDS), before) and list(at.model.peft_config) == ["default", "b", "c"]


def pattern(message: str) -> str:
    return "(?s)" + ".*".join(map(re.escape, message.split("…")))


def tables() -> str:
    """The page's tables, one for each part of `CASES`."""
    lines = []
    for part, cases in CASES.items():
        lines += [f"## {part}", "", "| what is wrong | error | its message says |", "|---|---|---|"]
        for case in cases:
            errors = case.error if isinstance(case.error, tuple) else (case.error,)
            names = " or ".join(f"`{error.__name__}`" for error in errors)
            lines.append(f"| {case.what} | {names} | {'`' + case.message + '`' if case.message != '…' else '…'} |")
        lines.append("")
    return "\n".join(lines)


def page_with_tables(text: str) -> str:
    """The page with its generated part, from the first heading of a table on, replaced by `tables()`."""
    return text[: text.index(f"## {next(iter(CASES))}")] + tables()


def test_the_page_of_the_book_lists_these_cases():
    text = PAGE.read_text(encoding="utf8")
    assert text == page_with_tables(text), "run `python tests/lora_lib/test_wrong_input.py` to write them"
    assert len(ALL) >= 40


if __name__ == "__main__":
    PAGE.write_text(page_with_tables(PAGE.read_text(encoding="utf8")), encoding="utf8")

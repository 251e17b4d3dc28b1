"""Formulas as MathML, made when the book is built: browsers draw them by themselves, with no script to fetch."""

from __future__ import annotations

from xml.etree import ElementTree

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

MATHML = "{http://www.w3.org/1998/Math/MathML}"
BESIDE = r"\qquad"  # between formulas that stand side by side, or below each other where there is no room
LOGGER = logging.getLogger(__name__)
NAMES = {r"\dots": r"\ldots"}  # of LaTeX's commands, those that docutils has under another name


def mathml(source: str, node: nodes.Element, as_block: bool) -> str:
    """A formula of a node; a warning, which stops the build, and its source where it cannot be read."""
    for ours, theirs in NAMES.items():
        source = source.replace(ours, theirs)
    try:
        found = latex2mathml.tex2mathml(source, as_block=as_block)
    except MathError as error:
        LOGGER.warning("formula: %s", error, location=node)
        return f"<code>{source}</code>"
    root = ElementTree.fromstring("".join(map(str.strip, found.splitlines())).replace("&ApplyFunction;", "\u2061"))
    for element in root.iter():
        if element.tag == f"{MATHML}mo" and element.text == "'":
            element.text = "′"
        if element.tag == f"{MATHML}msub" and "".join(element[0].itertext()).endswith("⏟"):
            element.tag = f"{MATHML}munder"  # what is said of a brace stands below it
    ElementTree.register_namespace("", MATHML[1:-1])
    return ElementTree.tostring(root, encoding="unicode")


def visit_inline(self: HTML5Translator, node: nodes.math) -> None:
    """A formula in a line."""
    self.body.append(f'<span class="math">{mathml(node.astext(), node, as_block=False)}</span>')
    raise nodes.SkipNode


def visit_block(self: HTML5Translator, node: nodes.math_block) -> None:
    """A formula on a separate line, or several beside each other."""
    formulas = (mathml(source.strip(), node, as_block=True) for source in node.astext().split(BESIDE))
    self.body.append(f'<div class="math">{"".join(formulas)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""Words that stand together stay in one line: GPT-2, a number and its unit, α/√r. An italic symbol is set in serif."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

NUMBER = r"[+−-]?\d[\d.,]*"
INTERVAL = rf"\[{NUMBER}%?,[ ]{NUMBER}%?\]"
OTHERS = rf"""GPT-2(?:[ ]\d+M)?
    | Chapter[ ]\d+
    | {NUMBER}(?:[ ]±[ ]{NUMBER}|[ ](?:%|[kMG]i?B))
    | \(?[\dA-Za-z.,]+[ ]×[ ][\dA-Za-z.,]+\)?
    | \b[rsdkα][ ]=[ ][\w./]+
    | \d+e-\d+
    | α[ ]?/[ ]?√?r"""
TOGETHER = re.compile(rf"{NUMBER}(?:[ ]?%)?[ ]{INTERVAL} | {OTHERS}", re.VERBOSE)
IN_A_CELL = re.compile(rf"{INTERVAL} | {OTHERS}", re.VERBOSE)  # where columns are narrow, the interval stands below
SYMBOL = re.compile(r"Δ?W|[ABrsdkxyαλσ]")
LONGEST = 30  # letters; longer ones would leave a hole in a phone's line


class Unbroken(SphinxPostTransform):
    """Put what belongs together into a <span> that does not break; the text itself stays as it is."""

    default_priority = 900
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Called by Sphinx for each page."""
        for emphasis in self.document.findall(nodes.emphasis):
            if SYMBOL.fullmatch(emphasis.astext()):
                emphasis["classes"].append("symbol")
        for text in list(self.document.findall(nodes.Text)):
            block = block_of(text)
            if isinstance(block, (nodes.paragraph, nodes.title, nodes.caption)):
                together = IN_A_CELL if isinstance(block.parent, nodes.entry) else TOGETHER
                if together.search(text):
                    text.parent.replace(text, list(parts(str(text), together)))


def block_of(text: nodes.Text) -> nodes.Node | None:
    """The paragraph, title or caption that a text is in; code or a formula, if it is in such there."""
    node = text.parent
    while isinstance(node, (nodes.inline, nodes.emphasis, nodes.strong, nodes.reference)):
        node = node.parent
    return node


def parts(text: str, together: re.Pattern[str] = TOGETHER) -> list[nodes.Node]:
    """The text in pieces, those that stay together as inline nodes with the class `unbroken`."""
    found: list[nodes.Node] = []
    end = 0
    for match in together.finditer(text):
        if len(match[0]) > LONGEST or not re.search(r"[ /-]", match[0]):
            continue
        found += [nodes.Text(text[end : match.start()]), nodes.inline(match[0], match[0], classes=["unbroken"])]
        end = match.end()
    return [*found, nodes.Text(text[end:])]


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_post_transform(Unbroken)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

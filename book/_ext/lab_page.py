"""The lab's page: its scripts, made when the book is built, and links from its words to its source."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst.states import Inliner
from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT / "tools"))

import build_lab  # noqa: E402 - its folder is known only now

PAGE = "book/lab"


def add_scripts(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Only the lab's own page loads what the lab needs."""
    if page == PAGE:
        app.add_css_file("lab/lab.css")
        app.add_js_file("lab/page.js", loading_method="defer")


def write_scripts(app: Sphinx, error: Exception | None) -> None:
    """Into the book's static files, beside its styles."""
    if error is None and app.builder.format == "html":
        build_lab.write_scripts(Path(app.outdir, "_static", "lab"))


def lab_role(
    name: str, rawtext: str, text: str, lineno: int, inliner: Inliner, options: Any = None, content: Any = ()
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """`model.js loraBackward` in the text becomes a link to the line where that function begins."""
    file, function = text.split()
    line = line_of(file, function)
    if line is None:
        message = inliner.reporter.error(f"lab/{file} has no function {function}", line=lineno)
        return [inliner.problematic(rawtext, rawtext, message)], [message]
    settings = inliner.document.settings.env.config.html_theme_options
    address = f"{settings['repository_url']}/blob/{settings['repository_branch']}/lab/{file}#L{line}"
    link = nodes.reference(rawtext, "", nodes.literal(text=function), refuri=address)
    return [link], []


def line_of(file: str, function: str) -> int | None:
    """The line of `lab/file` in which a function, method, class or kernel of this name begins."""
    name = re.escape(function)
    begins = re.compile(rf"(?:EXPORT\({name}\)|\s*(?:export |static |async )*(?:function |class )?{name}(?:\(.*)? {{$)")
    lines = (build_lab.LAB / file).read_text(encoding="utf8").splitlines()
    return next((number for number, line in enumerate(lines, start=1) if begins.match(line)), None)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("html-page-context", add_scripts)
    app.connect("build-finished", write_scripts)
    app.add_role("lab", lab_role)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

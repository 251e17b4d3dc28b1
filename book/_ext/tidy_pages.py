"""Mend what the theme and Sphinx leave in every page: downloads for nothing, and a list that is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx


def drop_mathjax(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Load MathJax on pages with a formula only: Sphinx loads it on their parents too, so on the start page."""
    if doctree is None or not any(doctree.findall(lambda node: isinstance(node, (nodes.math, nodes.math_block)))):
        path = app.config.mathjax_path
        context["script_files"] = [file for file in context["script_files"] if not str(file.filename).endswith(path)]


def drop_widget_state(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Leave out the widgets' state: the pages show a knob's HTML, and the state would be its pictures once more."""
    state = "application/vnd.jupyter.widget-state+json"
    context["script_files"] = [f for f in context["script_files"] if getattr(f, "attributes", {}).get("type") != state]


def unmark_citations(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Drop the list role of the bibliography: its entries are no list items, and screen readers stumble over that."""
    context["body"] = context.get("body", "").replace('<div role="list" class="citation-list">', "<div>")


def empty_icon_script(app: Sphinx, error: Exception | None) -> None:
    """The theme brings its icons twice, as a web font and as this script of 1.5 MB. The font is enough."""
    script = Path(app.outdir, "_static", "scripts", "fontawesome.js")
    if error is None and script.exists():
        script.write_text("")


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("html-page-context", drop_mathjax, priority=900)  # after Sphinx has added it
    app.connect("html-page-context", drop_widget_state, priority=900)
    app.connect("html-page-context", unmark_citations)
    app.connect("build-finished", empty_icon_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

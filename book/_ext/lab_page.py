"""The lab's page: its scripts, made when the book is built, what a link to it shows, and links to its source."""

from __future__ import annotations

import re
import sys
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst.states import Inliner
from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT / "tools"))

import build_lab  # noqa: E402 - its folder is known only now

PAGE = "book/lab"
SCRIPTS = {PAGE: "lab/page.js", "book/chat": "lab/chat.js"}
# What other programs show of a link to the page.
TITLE = "Train a LoRA in this page"
DESCRIPTION = (
    "A small GPT-2 writes in your browser, with and without a LoRA adapter. Turn the rank, train an adapter on your "
    "own words, and download it for Hugging Face PEFT. Nothing to install, and nothing you type leaves your machine."
)
PICTURE = "_static/lab_card.png"  # tools/record_lab.py draws it
PICTURE_ALT = "Two texts from one prompt, without and with an adapter, above sliders and bars of probabilities."


def add_scripts(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Only the lab's own pages load what the lab needs."""
    if script := SCRIPTS.get(page):
        app.add_css_file("lab/lab.css")
        app.add_js_file(script, loading_method="defer")
    if page == PAGE:
        context["metatags"] = context.get("metatags", "") + share_tags(app.config.html_theme_options["repository_url"])


def share_tags(repository: str) -> str:
    """Title, description and picture of the page, as Open Graph has them. A picture needs its whole address."""
    site = pages_address(repository)
    graph = {
        "type": "website",
        "title": TITLE,
        "description": DESCRIPTION,
        "url": f"{site}{PAGE}.html",
        "image": f"{site}{PICTURE}",
        "image:width": "1200",
        "image:height": "630",
        "image:alt": PICTURE_ALT,
    }
    named = {"description": DESCRIPTION, "twitter:card": "summary_large_image"}
    tags = [f'<meta property="og:{key}" content="{escape(value)}">' for key, value in graph.items()]
    tags += [f'<meta name="{key}" content="{escape(value)}">' for key, value in named.items()]
    return "\n".join(["", *tags, ""])


def pages_address(repository: str) -> str:
    """Where GitHub publishes the pages of a repository: github.com/you/book is at you.github.io/book/."""
    host, owner, name = repository.removeprefix("https://").rstrip("/").split("/")
    return f"https://{owner}.{host.replace('.com', '.io')}/{name}/"


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

"""Number exercises within their page; sphinx-exercise counts through the whole book."""

from __future__ import annotations

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def number_by_page(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Replace the numbers that Sphinx has given to a page's exercises by 1, 2, 3 and so on.

    Sphinx numbers in an `env-get-updated` handler; this one runs after it and before pages are written. Titles,
    solutions and references all read these numbers.
    """
    for numbers in env.toc_fignumbers.values():
        exercises = sorted(numbers.get("exercise", {}).items(), key=lambda item: item[1])
        numbers["exercise"] = {name: (number,) for number, (name, _) in enumerate(exercises, start=1)}
    return []


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("env-get-updated", number_by_page, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

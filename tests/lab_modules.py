"""Modules of the lab, for tests that need no page around them."""

import base64

import build_lab


def as_module(name: str) -> str:
    """An address from which a page can import a module of `lab/`, with all that it imports."""
    return "data:text/javascript;base64," + base64.b64encode(build_lab.bundle(name, "esm").encode()).decode()

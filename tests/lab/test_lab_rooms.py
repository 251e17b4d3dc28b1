"""The lab's modules: who may import whom."""

from __future__ import annotations

import re

import build_lab

LAB = build_lab.LAB
# A room, and the rooms that its modules may import. The page and its worker meet in messages only.
MAY = {
    "page": {"page", "files", "model", "worker/messages.js", "worker/known.js"},
    "worker": {"worker", "cpu", "gpu", "model", "files"},
    "cpu": {"cpu", "model", "files"},
    "gpu": {"gpu", "model", "files"},
    "model": {"model", "files"},
    "files": {"files", "model"},
}
PROBES = {"worker/probe.js", "gpu/probe.js"}  # of the tests


def imports() -> dict[str, set[str]]:
    """Of each module, those that it imports, as paths in `lab/`."""
    found = {}
    for file in LAB.glob("*/*.js"):
        names = re.findall(r'from "(\.[^"]+\.js)"', file.read_text(encoding="utf8"))
        found[file.relative_to(LAB).as_posix()] = {
            (file.parent / name).resolve().relative_to(LAB).as_posix() for name in names
        }
    return found


def test_rooms_are_entered_by_their_doors() -> None:
    for module, wanted in imports().items():
        if module in PROBES:
            continue
        may = MAY[module.split("/")[0]]
        strange = [one for one in wanted if one != "errors.js" and not {one, one.split("/")[0]} & may]
        assert strange == [], f"{module} may not import {strange}"


def test_no_module_imports_itself_in_a_circle() -> None:
    left = imports()
    while free := [module for module, wanted in left.items() if not wanted & left.keys()]:
        for module in free:
            del left[module]
    assert left == {}, "these import each other, or what does"
    assert not [one for one in imports()["page/state.js"] if one.startswith("page/")]

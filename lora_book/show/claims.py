"""Claims that a chapter makes about its own results, each shown with a ✓ or a ✗."""

from __future__ import annotations


def check(claim: str, holds: object) -> None:
    """Print "✓ claim" where it holds, else "✗ claim (not in this run)", and go on.

    `holds` is anything with a truth value: a bool, a comparison of two numbers, a tensor with one entry. A reader who
    turned a number sees what follows from it; the tests compare the line, so in the book as it stands no claim
    fails unseen.

    Raises TypeError where `claim` is not a text, which happens when the two are swapped.
    """
    if not isinstance(claim, str):
        raise TypeError(f"check(claim, holds) takes the claim first, as a text; got {claim!r}")
    print(f"✓ {claim}" if bool(holds) else f"✗ {claim} (not in this run)")

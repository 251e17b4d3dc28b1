"""Settings: declared once, checked, and refused with a message that says what to write instead.

A dataclass declares each setting as a field with its rule, and checks itself when it is made:

    @dataclass
    class FitConfig:
        steps: int = setting(whole(1), help="how many optimizer steps")
        learning_rate: float = setting(number("above 0", lambda x: 0 < x <= 1e30), 3e-4)
        bf16: bool | None = setting(optional(FLAG), None)

        def __post_init__(self) -> None:
            check(self)

    FitConfig(steps=0)    # ValueError: steps must be a whole number from 1, got 0

The rest follows from the fields: `rules(FitConfig)` gives each name its rule (a command line's schema), `asdict` gives
the values (a checkpoint's identity), and `unknown` writes the error for a name that is not among them.
"""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


@dataclass(frozen=True)
class Rule:
    """The values that a setting allows: in words that follow "must be", and as a test.

    `known` are allowed words, for "Did you mean …?".
    """

    expected: str
    allows: Callable[[Any], bool]
    known: tuple[str, ...] = ()


def whole(low: int, high: int | None = None) -> Rule:
    """A whole number from `low`, or from `low` to `high`."""
    words = f"a whole number from {low}" + ("" if high is None else f" to {high}")
    return Rule(words, lambda value: type(value) is int and low <= value and (high is None or value <= high))


def number(words: str, allows: Callable[[float], bool] = math.isfinite) -> Rule:
    """A number, whole or not, for which `allows` is true; `words` names the range. NaN is never allowed."""
    return Rule(f"a number {words}", lambda value: is_number(value) and not math.isnan(value) and allows(value))


def one_of(*values: Any) -> Rule:
    """One of these values."""
    known = tuple(value for value in values if isinstance(value, str))
    return Rule(f"one of {', '.join(map(repr, values))}", lambda value: value in values, known)


def optional(rule: Rule) -> Rule:
    """None, or what `rule` allows."""
    return Rule(f"{rule.expected}, or None", lambda value: value is None or rule.allows(value), rule.known)


def is_number(value: object) -> bool:
    """Whether a value is an int or a float. True and False are not numbers here."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


FLAG = Rule("True or False", lambda value: isinstance(value, bool))
TEXT = Rule("a text", lambda value: isinstance(value, str))


def setting(rule: Rule, default: Any = MISSING, *, default_factory: Any = MISSING, help: str = "") -> Any:
    """A dataclass field with a rule and a line of help."""
    metadata = {"rule": rule, "help": help}
    if default_factory is not MISSING:
        return field(default_factory=default_factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def rules(settings: Any) -> dict[str, Rule]:
    """The rule of each setting of a dataclass, or of an object of it, by the setting's name."""
    return {f.name: f.metadata["rule"] for f in fields(settings) if "rule" in f.metadata}


def check(settings: Any) -> None:
    """Raise ValueError for the first setting in this dataclass whose value its rule does not allow."""
    for name, rule in rules(settings).items():
        value = getattr(settings, name)
        if not rule.allows(value):
            hint = did_you_mean(value, rule.known)
            raise ValueError(f"{name} must be {rule.expected}, got {shown(value)}{hint and '.'}{hint}")


def shown(value: object) -> str:
    """A value as error messages show it: long ones are shortened."""
    return _short.repr(value)


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """The closest known word as a question, with a space before it; "" if none is close."""
    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def unknown(name: str, settings: Any, of: str, also: Iterable[str] = ()) -> TypeError:
    """The error for an unknown setting of a dataclass. `of` says whose setting it is; `also` lists more names."""
    known = [*rules(settings), *also]
    return TypeError(f"{of} has no setting {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")

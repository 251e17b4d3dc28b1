"""Settings: declared once, checked once, and errors that say what to write instead."""

import math
from dataclasses import dataclass

import pytest

from lora_lib.settings import FLAG, check, number, one_of, optional, rules, setting, shown, unknown, whole


@dataclass
class Config:
    steps: int = setting(whole(1), help="how many optimizer steps")
    rate: float = setting(number("above 0", lambda x: 0 < x <= 1e30), 3e-4)
    bf16: bool | None = setting(optional(FLAG), None)
    names: list = setting(optional(one_of([], ["a"])), default_factory=list)

    def __post_init__(self) -> None:
        check(self)


def test_a_good_config_is_made_and_a_list_is_not_shared():
    a, b = Config(1, rate=1), Config(2)
    assert a.names is not b.names and (a.rate, b.rate, b.bf16) == (1, 3e-4, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be a whole number from 1, got 0"),
        ({"steps": True}, "steps must be a whole number from 1, got True"),
        ({"steps": 1.0}, "steps must be a whole number from 1, got 1.0"),
        ({"rate": math.nan}, "rate must be a number above 0, got nan"),
        ({"rate": "3e-4"}, "rate must be a number above 0, got '3e-4'"),
        ({"rate": 0}, "rate must be a number above 0, got 0"),
        ({"bf16": 1}, "bf16 must be True or False, or None, got 1"),
        ({"names": ["b"]}, r"names must be one of \[\], \['a'\], or None, got \['b'\]"),
    ],
)
def test_a_setting_that_its_rule_does_not_allow_is_named(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Config(**{"steps": 1, **changes})


def test_ranges_include_their_ends():
    rule = whole(0, 3)
    assert [rule.allows(n) for n in (-1, 0, 3, 4)] == [False, True, True, False]
    assert rule.expected == "a whole number from 0 to 3" and not number("of any size").allows(math.inf)


def test_a_long_value_does_not_fill_the_message():
    assert len(shown("x" * 10**6)) < 100 and len(shown(list(range(1000)))) < 100


def test_rules_and_unknown_names():
    assert list(rules(Config)) == ["steps", "rate", "bf16", "names"] and rules(Config(1))["bf16"].allows(None)
    message = str(unknown("stpes", Config, "fit"))
    assert message == "fit has no setting 'stpes'. Did you mean 'steps'? Known: steps, rate, bf16, names."
    assert "Did you mean" not in str(unknown("zzz", Config, "fit"))

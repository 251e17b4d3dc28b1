"""The book's task: from the facts about a restaurant, write a sentence or two.

Meanings have the form of the E2E NLG Challenge (Novikova et al., 2017, arXiv:1706.09254), `name[…], eatType[…], …`.
Names, values and sentences are generated here at random, and nothing is downloaded. Every sentence consists of known
phrases, so `slot_report` can say exactly which facts a text states. `lora_book.tasks.downloads` loads the real E2E set
in the same types.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

from lora_lib.data.examples import Example, Splits

SLOTS = ("name", "eatType", "food", "priceRange", "customer rating", "area", "familyFriendly", "near")
# Ends every prompt. The completion starts with a space and a letter, which GPT-2's split pattern keeps together as
# one word, so no token straddles the joint: encoding the two parts apart gives the tokens of the whole.
PROMPT_END = " =>"

# ---------------------------------------------------------------------------------------------------------------
# The words
# ---------------------------------------------------------------------------------------------------------------

_CUISINES = "Chinese English French German Greek Indian Italian Japanese Spanish Thai Turkish vegetarian".split()
_OUT_OF_5 = [f"{stars} out of 5" for stars in range(1, 6)]

# slot -> form -> value -> phrase. A template asks for a form that fits its grammar; not every value has every form.
# Each phrase names its value by itself ("a low customer rating", never "low"), so the metric reads this table too.
PHRASES: dict[str, dict[str, dict[str, str]]] = {
    "eatType": {"": {kind: kind for kind in ("pub", "restaurant", "coffee shop", "wine bar", "tea room")}},
    "food": {"": {cuisine: cuisine for cuisine in _CUISINES}},
    "priceRange": {
        "adj": {"cheap": "cheap", "moderate": "moderately priced", "high": "expensive"},
        "at": {"cheap": "at low prices", "moderate": "at moderate prices", "high": "at high prices",
               "less than £20": "for less than £20", "£20-25": "for £20-25", "more than £30": "for more than £30"},
        "are": {"cheap": "prices are low", "moderate": "prices are moderate", "high": "prices are high"},
        "cost": {price: price for price in ("less than £20", "£20-25", "more than £30")},
    },
    "customer rating": {
        "adj": {"low": "poorly rated", "high": "highly rated"},
        "have": {"low": "a low customer rating", "average": "an average customer rating",
                 "high": "a high customer rating", **{v: f"a customer rating of {v}" for v in _OUT_OF_5}},
        "give": {"low": "a low rating", "average": "an average rating", "high": "a high rating",
                 **{v: v for v in _OUT_OF_5}},
    },
    "area": {"": {"city centre": "in the city centre", "riverside": "by the riverside", "old town": "in the old town",
                  "market square": "on the market square", "harbour": "by the harbour", "suburbs": "in the suburbs"}},
    "familyFriendly": {
        "adj": {"yes": "family-friendly"},
        "be": {"yes": "family-friendly", "no": "not family-friendly"},
        "suit": {"yes": "suitable for families", "no": "not suitable for families"},
        "welcome": {"yes": "families are welcome"},
        "children": {"yes": "children are welcome", "no": "this is not a place for children"},
    },
}  # fmt: skip
PROXIMITY = ("near", "close to", "not far from", "just round the corner from", "a short walk from")
VALUES = {slot: list(dict.fromkeys(v for form in forms.values() for v in form)) for slot, forms in PHRASES.items()}

# {slot.form} is a phrase, [ … ] is sometimes left out, and always if its slot is not in the meaning. {type} and {place}
# fall back on "place to eat" and "place" for a meaning without eatType; {kind} insists on it.
_KEYS = {"name": "name", "type": "eatType", "place": "eatType", "kind": "eatType", "food": "food", "near": "near",
         "price": "priceRange", "rating": "customer rating", "area": "area", "family": "familyFriendly"}  # fmt: skip
_FALLBACKS = {"type": "place to eat", "place": "place"}
_NOUN_ENDINGS = tuple(f"{noun}." for noun in (*PHRASES["eatType"][""], _FALLBACKS["type"]))
_OTHER_SUBJECTS = ("A meal", "Prices", "The food", "Expect", "Families")
OPENINGS = (
    "{name} is a [{price.adj} ][{food} ]{type}[ {area}][ {near}].",
    "{name} is a [{family.adj} ][{food} ]{type}[ {area}].",
    "{name} is a [{family.adj} ]{type} serving {food} food[ {price.at}].",
    "{name} is a [{food} ]{type} {area} with {rating.have}.",
    "{name}, {near}, is a [{rating.adj} ][{food} ]{type}[ {area}].",
    "There is a [{rating.adj} ][{food} ]{type} called {name}[ {area}].",
    "There is a [{price.adj} ]{type} called {name} {near}.",
    "{area}, {near}, you will find {name}, a [{family.adj} ][{food} ]{type}.",
    "{near} you will find {name}, a [{price.adj} ][{food} ]{type}[ with {rating.have}].",
    "{area}, {name} offers {food} food[ {price.at}].",
    "If you would like {food} food[ {area}], try {name}, a [{price.adj} ]{type}[ {near}].",
    "For {food} food {area}, go to {name}[, {near}].",
    "Customers give {name}, a [{food} ]{type}[ {area}], {rating.give}.",
    "{family.welcome} at {name}, a [{price.adj} ][{food} ]{type}[ {near}].",
    "{name} serves {food} food[ {price.at}][ {area}].",
    "A [{family.adj} ][{food} ]{type} {area}, {name} has {rating.have}.",
    "Looking for a [{family.adj} ]{type}[ {area}]? Try {name}[, {near}].",
    "Looking for {food} food {area}? Try {name}, a [{rating.adj} ]{type}[ {near}].",
    "At {name}, a [{food} ]{type}[ {area}], a meal costs {price.cost}.",
    "You can eat {food} food for {price.cost} at {name}[, a {type} {near}].",
)
FOLLOW_UPS = (
    "It is a [{price.adj} ][{food} ]{kind}[ {area}][ {near}].",
    "It is {area}[, {near}].",
    "It is {near}[ and has {rating.have}].",
    "You will find it {near}[, {area}].",
    "It serves {food} food[ {price.at}][ and has {rating.have}].",
    "The food is {food}, and {price.are}.",
    "The food is {food}[, and a meal costs {price.cost}].",
    "{price.are}[, and customers give it {rating.give}].",
    "A meal costs {price.cost}[, and {family.welcome}].",
    "Expect to pay {price.cost} for a meal.",
    "It has {rating.have}[ and is {family.suit}].",
    "Customers give it {rating.give}[, and {family.children}].",
    "It is {family.suit}.",
    "{family.children}.",
    "The {place} is {family.be}[ and has {rating.have}].",
    "The {place} is {area}[ and is {family.be}].",
    "The {place} is {price.adj}[ and {family.be}].",
    "It is {price.adj} and has {rating.have}.",
)

_ADJECTIVES = (
    "Amber Black Blue Bold Brass Brave Bright Broken Clever Copper Crimson Crooked Curious Dancing Dusty Flying "
    "Gentle Golden Green Grey Happy Hidden Honest Hungry Iron Ivory Jolly Laughing Little Lost Lucky Merry Misty "
    "Painted Paper Proud Quiet Red Rising Royal Rusty Scarlet Silver Singing Sleeping Smiling Spotted Stone "
    "Striped Sunny Velvet Wandering White Wild Winter Wooden"
).split()
_NOUNS = (
    "Anchor Apple Badger Barrel Bear Bell Boat Candle Captain Cherry Clock Clover Crow Crown Dragon Drum Duck "
    "Feather Fern Fiddle Fox Goose Hare Heron Horse Kettle Key Ladder Lamp Lantern Lark Lemon Lily Lion Mill Moon "
    "Oak Olive Otter Owl Pear Pepper Plough Plum Pony Raven Ribbon Robin Rose Ship Sparrow Spoon Squirrel Stag "
    "Star Swan Thistle Trout Whale Wheel Willow Wolf"
).split()
_FAMILIES = (
    "Alice Annie Arthur Ashby Baker Barker Bennett Blake Butler Carter Clara Dawson Ellen Emma Fletcher Foster "
    "George Harper Henry Howard Jack Kelly Marlow Martha Martin Mason Mary Morgan Nell Oscar Palmer Parker Polly "
    "Porter Quinn Rosa Rowan Sutton Tilly Tom Turner Walker Webb Weston William Wright"
).split()
_ROOMS = "Cellar Garden Hearth House Kitchen Larder Pantry Parlour Table".split()


# ---------------------------------------------------------------------------------------------------------------
# The generator
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Restaurant:
    """A meaning, which maps slots to values, and the texts that express it (its references)."""

    meaning: dict[str, str]
    references: tuple[str, ...]

    @property
    def mr(self) -> str:
        """The meaning in E2E's written form: `name[The Vaults], eatType[pub], …`."""
        return ", ".join(f"{slot}[{value}]" for slot, value in self.meaning.items())

    @property
    def prompt(self) -> str:
        """What the model is given: the meaning, and the mark after which the text begins."""
        return self.mr + PROMPT_END

    def examples(self) -> list[Example]:
        """One example for each reference."""
        return [Example(self.prompt, " " + reference) for reference in self.references]


def restaurant_data(
    seed: int = 0, *, train: int = 1500, validation: int = 100, test: int = 100, slots: Sequence[str] = SLOTS
) -> Splits[Restaurant]:
    """Invent restaurants, each with 3 to 8 of the `slots` and 2 to 4 references that begin differently.

    The numbers count the meanings in each split. Fewer `slots` (the name and at least two more) make an easier task
    with shorter texts. Every name is used once, in `near` too, so a model that writes about the test set's restaurants
    must copy their names and cannot have memorised them. The same `seed` gives the same restaurants on every machine.

    Raises ValueError for slots that are not E2E's, and when more restaurants are asked for than there are names.
    """
    if len(set(slots) & set(SLOTS)) != len(slots) or "name" not in slots or len(slots) < 3:
        raise ValueError(f"slots must be name and two or more others of {SLOTS}, each once, got {slots}")
    rng = random.Random(seed)
    names = _invent_names(rng, 2 * (train + validation + test))
    made = [_invent_restaurant(rng, name, near, slots) for name, near in zip(names[::2], names[1::2], strict=True)]
    return Splits(made[:train], made[train : train + validation], made[train + validation :])


def to_examples(restaurants: Iterable[Restaurant]) -> list[Example]:
    """All examples of these restaurants: one for each reference."""
    return [example for restaurant in restaurants for example in restaurant.examples()]


def _invent_names(rng: random.Random, count: int) -> list[str]:
    """`count` different names, in several styles, in random order."""
    pairs = [f"{adjective} {noun}" for adjective in _ADJECTIVES for noun in _NOUNS]
    houses = [f"{family}'s{room}" for family in _FAMILIES for room in ["", *(f" {room}" for room in _ROOMS)]]
    couples = [f"{the}{one} and {other}" for the in ("", "The ") for one in _NOUNS for other in _NOUNS if one != other]
    styles = [pairs, [f"The {p}" for p in pairs], houses, couples, [f"The {n} {r}" for n in _NOUNS for r in _ROOMS]]
    available = sum(map(len, styles))
    if count > available:
        raise ValueError(f"{count // 2} restaurants need {count} names, and there are {available}: ask for fewer")
    for style in styles:
        rng.shuffle(style)
    names: list[str] = []
    while len(names) < count:
        names += [style.pop() for style in styles if style]
    names = names[:count]
    rng.shuffle(names)
    return names


def _invent_restaurant(rng: random.Random, name: str, near: str, slots: Sequence[str]) -> Restaurant:
    values = {"name": name, "near": near, **{slot: rng.choice(VALUES[slot]) for slot in PHRASES}}
    (extra,) = rng.choices((2, 3, 4, 5, 6), weights=(3, 4, 4, 3, 1))
    others = [slot for slot in SLOTS[1:] if slot in slots]
    chosen = {"name", *rng.sample(others, min(extra, len(others)))}
    if rng.random() < 0.7 and "eatType" in slots:  # most texts say what the place is
        chosen.add("eatType")
    meaning = {slot: values[slot] for slot in SLOTS if slot in chosen}
    count, texts = rng.randint(2, 4), list[str]()
    for opening in rng.sample(OPENINGS, len(OPENINGS)):
        if len(texts) < count and _tellable(opening, meaning, meaning):
            text = _describe(rng, opening, meaning)
            starts = {known.split(". ")[0] for known in texts}  # two templates can shrink to one sentence
            texts += [text] if text.split(". ")[0] not in starts else []
    return Restaurant(meaning, tuple(texts))


def _describe(rng: random.Random, opening: str, meaning: Mapping[str, str]) -> str:
    """The opening, then sentences until every slot is stated; what kind of place it is comes first."""
    todo = set(meaning)
    sentences = [_fill(rng, opening, meaning, todo)]
    while todo:
        fitting = [f for f in rng.sample(FOLLOW_UPS, len(FOLLOW_UPS)) if _tellable(f, meaning, todo)
                   and ("eatType" not in todo or "{kind}" in f)]  # fmt: skip
        follow_up = min(fitting[:4], key=partial(_clumsiness, sentences[-1], todo))
        sentences.append(_fill(rng, follow_up, meaning, todo))
    return " ".join(sentences)


def _clumsiness(before: str, todo: Collection[str], follow_up: str) -> tuple[bool, int]:
    """How badly a sentence follows the one `before` it; the smallest of these tuples reads best.

    Two sentences in a row should not begin with the same word, "… is a pub." should not be followed by "The pub is …",
    and "it" should not follow a sentence about something else. A sentence that states more slots is better.
    """
    repeats = before.split()[0] == follow_up.split()[0] or ("{place}" in follow_up and before.endswith(_NOUN_ENDINGS))
    lost = before.startswith(_OTHER_SUBJECTS) and re.search(r"\b[Ii]t\b", follow_up) is not None
    return repeats or lost, -sum(_KEYS[key] in todo for key, _ in _placeholders(follow_up))


@cache
def _placeholders(template: str) -> list[tuple[str, str]]:
    """The (key, form) pairs in a piece of template."""
    return re.findall(r"\{(\w+)\.?(\w*)\}", template)


@cache
def _required(template: str) -> list[tuple[str, str]]:
    """The (key, form) pairs outside [ … ]."""
    return _placeholders(re.sub(r"\[.*?\]", "", template))


def _tellable(piece: str, meaning: Mapping[str, str], todo: Collection[str]) -> bool:
    """Whether every phrase that a template needs outside its [ … ] exists, for slots that are not stated yet."""
    for key, form in _required(piece):
        slot = _KEYS[key]
        if key in _FALLBACKS or slot == "name":
            continue
        if slot not in todo or (slot in PHRASES and meaning[slot] not in PHRASES[slot][form]):
            return False
    return True


def _fill(rng: random.Random, template: str, meaning: Mapping[str, str], todo: set[str]) -> str:
    """Put phrases into a template, and remove the slots that it states from `todo`."""

    def optional(match: re.Match[str]) -> str:
        inner = match[1]
        return inner if _tellable(inner, meaning, todo) and rng.random() < 0.8 else ""

    def phrase(match: re.Match[str]) -> str:
        key, form = match[1], match[2]
        slot = _KEYS[key]
        todo.discard(slot)
        if slot not in meaning:
            return _FALLBACKS[key]
        if slot == "near":
            return f"{rng.choice(PROXIMITY)} {meaning[slot]}"
        return PHRASES[slot][form][meaning[slot]] if slot in PHRASES else meaning[slot]

    template = re.sub(r"\[(.*?)\]", optional, template)
    text = re.sub(r"\{(\w+)\.?(\w*)\}", phrase, template)
    text = re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", text)
    return _capital(text)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


# ---------------------------------------------------------------------------------------------------------------
# The metric
# ---------------------------------------------------------------------------------------------------------------


class SlotScores(NamedTuple):
    """How well texts express their meanings, each from 0 to 1."""

    slot_accuracy: float  # correct slots, of all slots in the meanings or the texts
    all_right: float  # texts in which every slot is correct and nothing is added


def _any_of(phrases: Iterable[str]) -> str:
    """A pattern for the longest of these phrases. A capital is allowed at the beginning of a sentence.

    A phrase does not match inside a longer word or number: "£20" is not in "£200", "5 out of 5" not in "15 out of 5".
    """
    longest_first = sorted(phrases, key=len, reverse=True)
    openers = (rf"(?<![^.?!]\s){re.escape(_capital(phrase))}" for phrase in longest_first if phrase[0].islower())
    either = "|".join([*map(re.escape, longest_first), *openers])
    return rf"(?<![\w£-])(?<!\d[.,])(?:{either})(?![\w-]|[.,]\d)"


_NAME_MARK, _NEAR_MARK = "\ue000", "\ue001"  # private-use letters that stand in for the two names
_CAPITALISED = r"[A-Z][\w'’-]*"
_PROPER = rf"(?:[{_NAME_MARK}{_NEAR_MARK}]|{_CAPITALISED})"
_NEIGHBOUR = re.compile(rf"{_any_of(PROXIMITY)}(?:\s((?:the\s)?{_PROPER}(?:\s(?:and\s)?{_PROPER})*))?")
_VALUE_OF = {slot: {phrase: value for form in forms.values() for value, phrase in form.items()}
             for slot, forms in PHRASES.items()}  # fmt: skip
_PATTERNS = {slot: re.compile(_any_of(phrases)) for slot, phrases in _VALUE_OF.items()}
# Capitalised words that may begin a sentence: those of the templates, and the first word of any phrase.
_OPENERS = {"An", *re.findall(_CAPITALISED, " ".join([*OPENINGS, *FOLLOW_UPS]))} | {
    _capital(phrase.split()[0]) for phrases in [PROXIMITY, *_VALUE_OF.values()] for phrase in phrases
}


def slot_report(text: str, meaning: Mapping[str, str]) -> dict[str, bool]:
    """Whether `text` states each slot of `meaning` correctly, and each other slot that it mentions.

    A slot is correct if the text states its value in one of the generator's phrases (`PHRASES`, `PROXIMITY`) and states
    no other value of it. A name must be exactly the same. A capitalised word that is not part of the two names, not a
    cuisine, and not the beginning of a known sentence counts as a wrong name. A slot that the text states and the
    meaning lacks is False. Other wordings are not recognised: the measure is exact only for texts in the generator's
    phrases.

    Raises ValueError for a meaning without a name, or with a slot or value that the generator does not know.
    """
    _check_meaning(meaning)
    rest = _mark_names(text.strip(), meaning)
    stated = {"near": set(_NEIGHBOUR.findall(rest))}
    rest = _NEIGHBOUR.sub(" ", rest)
    if _NEAR_MARK in rest:  # the neighbour's name, but not as a neighbour
        stated["near"].add("")
    for slot, pattern in _PATTERNS.items():
        values = _VALUE_OF[slot]
        stated[slot] = {
            values.get(phrase) or values[phrase[0].lower() + phrase[1:]] for phrase in pattern.findall(rest)
        }
    report = {"name": _NAME_MARK in rest and not _has_stray_name(rest)}
    for slot in SLOTS[1:]:
        expected = {_NEAR_MARK if slot == "near" else meaning[slot]} if slot in meaning else set()
        if expected or stated[slot]:
            report[slot] = stated[slot] == expected
    return report


def slot_accuracy(text: str, meaning: Mapping[str, str]) -> float:
    """The share of correct slots, 0 to 1, of those in `meaning` or `text`: see `slot_report`."""
    return score_texts([text], [meaning]).slot_accuracy


def score_texts(texts: Sequence[str], meanings: Sequence[Mapping[str, str]]) -> SlotScores:
    """Slot accuracy over all slots of all texts, and the share of correct texts; `texts[i]` is for `meanings[i]`.

    Raises ValueError when there are no texts, or not as many as meanings, and as `slot_report` does.
    """
    if len(texts) != len(meanings) or not texts:
        raise ValueError(f"expected one text for each meaning, and at least one; got {len(texts)} and {len(meanings)}")
    reports = [slot_report(text, meaning) for text, meaning in zip(texts, meanings, strict=True)]
    verdicts = [right for report in reports for right in report.values()]
    return SlotScores(sum(verdicts) / len(verdicts), sum(all(r.values()) for r in reports) / len(reports))


def _check_meaning(meaning: Mapping[str, str]) -> None:
    if "name" not in meaning:
        raise ValueError(f"a meaning needs a name to be scored; this one has {', '.join(meaning) or 'nothing'}")
    for slot, value in meaning.items():
        if slot not in SLOTS:
            raise ValueError(f"unknown slot {slot!r}: expected one of {', '.join(SLOTS)}")
        if slot in VALUES and value not in VALUES[slot]:
            raise ValueError(f"unknown {slot} {value!r}: the metric knows {', '.join(VALUES[slot])}")


def _mark_names(text: str, meaning: Mapping[str, str]) -> str:
    """Replace the meaning's names by the marks, where they are whole words."""
    marks = {meaning["name"]: _NAME_MARK} | ({meaning["near"]: _NEAR_MARK} if "near" in meaning else {})
    names = "|".join(re.escape(name) for name in sorted(marks, key=len, reverse=True))
    return re.sub(rf"(?<![\w'’&-])(?:{names})(?![\w&-]|['’]\w)", lambda match: marks[match[0]], text)


def _has_stray_name(rest: str) -> bool:
    """Whether another word looks like a name, or like part of a name."""
    words = re.finditer(rf"(^|[.?!]\s+)?({_CAPITALISED})", rest)
    article = re.search(rf"[Tt]he\s{_NAME_MARK}", rest)  # a "The" that the name lacks
    return bool(article) or any(w[2] not in (_CUISINES if w[1] is None else _OPENERS) for w in words)

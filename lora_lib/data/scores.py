"""How good are a model's answers? Each answer beside the wanted one, and what a few test items can tell.

Answers that are JSON objects are judged field by field, any other text by its words. A model's score is a mean over
test items, so its interval comes from the items. Methods are compared over seeds instead (`lora_book.findings`).
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

Z = 1.959964  # 95 % of a normal distribution lie within this many standard deviations


class Interval(NamedTuple):
    """A mean over test items, and the 95 % interval that these items leave open."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.0%} [{self.low:.0%}, {self.high:.0%}]"


def answer_fields(wanted: Sequence[str]) -> dict[str, list[Any]]:
    """The values of each field that all wanted answers have; none unless each of them is a JSON object."""
    objects = [_json_object(text) for text in wanted]
    found = [target for target in objects if target is not None]
    names = found[0] if found and len(found) == len(objects) else ()
    return {name: [target[name] for target in found] for name in names if all(name in target for target in found)}


def judge_answers(
    answers: Sequence[str], wanted: Sequence[str], *, free: Collection[str] = ()
) -> dict[str, list[float]]:
    """What is right in each answer, from 0 to 1: by name of the score, one number for each test item.

    If every wanted answer is a JSON object: "exact" (all fields correct and no others), "JSON" (the answer is one JSON
    object), and each field that all wanted answers have. Answers are compared as JSON: spaces and the order of fields
    do not count, letters do, true is not 1, and null is not a missing field. The fields named in `free` hold free text
    and are judged by their words. Otherwise "exact" (the same text but for space at its ends) and "words" (F1 over
    words: how much of the wanted answer is there, and how much of what is there was wanted).
    """
    if len(answers) != len(wanted) or not wanted:
        raise ValueError(f"expected an answer for each wanted one, at least one: got {len(answers)} for {len(wanted)}")
    targets = [_json_object(text) for text in wanted]
    if any(target is None for target in targets):
        pairs = [(answer.strip(), text.strip()) for answer, text in zip(answers, wanted)]
        return {"exact": [float(a == w) for a, w in pairs], "words": [_shared_words(a, w) for a, w in pairs]}
    found = [_json_object(answer) for answer in answers]
    scores = {
        "exact": [float(_same(f, t)) for f, t in zip(found, targets)],
        "JSON": [float(f is not None) for f in found],
    }
    for field, values in answer_fields(wanted).items():
        if field in scores:
            raise ValueError(f"a field of the wanted answers is called {field!r}, as one score is: rename the field")
        pairs_of_values = [((f or {}).get(field, ...), value) for f, value in zip(found, values)]
        judge = _words_of_values if field in free else _same
        scores[field] = [float(judge(a, w)) for a, w in pairs_of_values]
    return scores


def mean_score(judged: Mapping[str, Sequence[float]]) -> float:
    """One number to choose a checkpoint by: the mean over JSON fields, or else over words.

    "exact" and "JSON" are left out, because an answer can be valid JSON and still have every field wrong.
    """
    parts = [values for name, values in judged.items() if name not in ("exact", "JSON")] or [judged["exact"]]
    return sum(map(sum, parts)) / sum(map(len, parts))


def constant_answer(wanted: Sequence[str]) -> str:
    """The same answer for every question: each JSON field's commonest value, or the commonest text.

    A model that scores no better than the commonest answer of the training part has learned nothing but that answer.
    """
    if not wanted:
        raise ValueError("no answer is the commonest of none")
    if not (fields := answer_fields(wanted)):
        return Counter(wanted).most_common(1)[0][0]
    common = {n: json.loads(Counter(map(json.dumps, v)).most_common(1)[0][0]) for n, v in fields.items()}
    return json.dumps(common, ensure_ascii=False)


def interval(values: Sequence[float], *, draws: int = 2000, seed: int = 0) -> Interval:
    """The mean of one score over test items, with its 95 % interval.

    Scores that are 0 or 1 get Wilson's interval for a share (1927), which is also correct at 0 of 50; others a
    bootstrap over items (Efron, 1979).
    """
    if not values:
        raise ValueError("a mean over no test items has no value")
    mean, n = sum(values) / len(values), len(values)
    if set(values) <= {0.0, 1.0}:
        middle = (mean + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = Z * math.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
        return Interval(mean, max(0.0, middle - half), min(1.0, middle + half))
    return Interval(mean, *_bootstrap(values, draws, seed))


def difference(ours: Sequence[float], theirs: Sequence[float], *, draws: int = 2000, seed: int = 0) -> Interval:
    """How much higher one model scores than another on the same test items, from a paired bootstrap over the items.

    If every item has the same difference, a bootstrap shows no spread. But a few items can only tell that, with 95 %
    confidence, less than a share u = 1 - 0.05^(1/n) of all items differs from them, about 3 / n (the rule of three).
    The interval is what such a share could change: from -u to u if no item differed.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"a paired difference needs both scores of every item: got {len(ours)} and {len(theirs)}")
    gains = [a - b for a, b in zip(ours, theirs)]
    mean = sum(gains) / len(gains)
    if len(set(gains)) == 1:
        unseen = 1 - 0.05 ** (1 / len(gains))
        return Interval(mean, mean - unseen * (mean + 1), mean + unseen * (1 - mean))
    return Interval(mean, *_bootstrap(gains, draws, seed))


def items_needed(gain: float, differ: float, power: float = 0.8) -> int:
    """How many test items show, with this power, that one model is better by `gain`.

    `differ` is the share of items on which the two models do not score the same, at least `gain`. With a normal
    approximation: n = (z + z')² · (differ - gain²) / gain², z for 95 % and z' for the power.
    """
    if not 0 < gain <= differ <= 1 or not 0.5 <= power < 1:
        raise ValueError(f"expected 0 < gain <= differ <= 1 and a power in [0.5, 1), got {gain}, {differ} and {power}")
    return math.ceil((Z + NormalDist().inv_cdf(power)) ** 2 * (differ - gain**2) / gain**2)


def gains_over_best(models: Mapping[str, Mapping[str, Sequence[float]]], ours: str) -> str:
    """How much higher each score is than the best of the other models', with its interval: a line for each score."""
    width, lines = max(map(len, models[ours])), []
    for name, values in models[ours].items():
        bar = max((model for model in models if model != ours), key=lambda model: sum(models[model][name]))
        gain = difference(values, models[bar][name])
        settled = "" if gain.low > 0 or gain.high < 0 else "  not settled"
        lines.append(f"{name:{width}}  {gain.mean:+5.0%} [{gain.low:+.0%}, {gain.high:+.0%}]{settled}  (over {bar})")
    return "\n".join(lines)


def score_table(models: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Scores as text: a line for each model, a column for each score, each with its interval over the items."""
    names = list(next(iter(models.values())))
    cells = {model: [str(interval(scores[name])) for name in names] for model, scores in models.items()}
    first = max(map(len, models))
    widths = [max(len(name), *(len(row[i]) for row in cells.values())) for i, name in enumerate(names)]
    lines = [" " * first + "".join(f"  {name:>{width}}" for name, width in zip(names, widths))]
    for model, row in cells.items():
        lines.append(f"{model:{first}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(row, widths)))
    return "\n".join(lines)


def _bootstrap(values: Sequence[float], draws: int, seed: int) -> tuple[float, float]:
    """The middle 95 % of the means of samples drawn from these values, with replacement."""
    rng, n = random.Random(seed), len(values)
    means = sorted(sum(rng.choices(values, k=n)) / n for _ in range(draws))
    return means[round(0.025 * (draws - 1))], means[round(0.975 * (draws - 1))]


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _words_of_values(a: Any, b: Any) -> float:
    """As `_shared_words` for two texts; other values are the same or not."""
    return _shared_words(a, b) if isinstance(a, str) and isinstance(b, str) else float(_same(a, b))


def _same(a: Any, b: Any) -> bool:
    """Whether two values are the same in JSON, where true is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _shared_words(answer: str, wanted: str) -> float:
    """F1 over words: 0 for nothing in common, 1 for the same words."""
    a, w = Counter(answer.split()), Counter(wanted.split())
    return 2 * sum((a & w).values()) / max(1, sum(a.values()) + sum(w.values()))

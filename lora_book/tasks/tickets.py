"""A small task for a chat model: turn a customer's message into one line of JSON, which is scored exactly.

Messages are put together here from random parts. Names, products and the wordings of each problem are divided between
training and testing, so a test message is never a training message with other words in the gaps.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lora_lib.data.examples import Splits
from lora_lib.data.scores import judge_answers

SYSTEM = "Turn the message into a ticket."
FIELDS = ("customer", "order", "product", "problem", "wants")
GUIDE = (  # the system turn for a model that was not trained on the task: it says everything that is needed
    "Turn the message into a ticket: one line of JSON with the keys customer, order, product, problem and wants. "
    "problem is broken, late, wrong item or payment; wants is refund, replacement, answer or null. "
    "customer and order are null where the message does not tell them."
)


@dataclass(frozen=True)
class Ticket:
    """What a customer wrote, and what the shop's system should store: a value or None for each of `FIELDS`."""

    message: str
    fields: dict[str, str | None]

    @property
    def answer(self) -> str:
        """The line of JSON to write."""
        return json.dumps(self.fields)

    def chat(self, answered: bool = True) -> list[dict[str, str]]:
        """The ticket as a chat: the task, the message and, with `answered`, the line of JSON."""
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": self.message}]
        return [*turns, {"role": "assistant", "content": self.answer}] if answered else turns


class TicketScores(NamedTuple):
    """How well answers match their tickets, each from 0 to 1. For intervals, and other files, see `judge_answers`."""

    exact: float  # answers that are the ticket: JSON with all fields, each correct, and no others
    fields: float  # correct fields, of all fields
    json: float  # answers that are one JSON object
    by_field: dict[str, float]  # answers in which this field is correct


# ---------------------------------------------------------------------------------------------------------------
# The words: training has the first two thirds of each list, validation and test the rest
# ---------------------------------------------------------------------------------------------------------------

_FIRST = ("Anna Ben Carla David Elena Felix Grace Henry Ines Jonas Kira Leo Maria Nils Olga Paul "
          "Rosa Simon Tara Victor Wendy Yusuf Zoe Marta").split()  # fmt: skip
_LAST = ("Adams Berg Costa Dunn Ellis Fischer Grant Hughes Ivanov Jensen Keller Lopez Meyer Novak "
         "Olsen Petrov Quinn Rossi Santos Turner Ueda Vogel Weber Young").split()  # fmt: skip
_PRODUCTS = (
    "kettle", "desk lamp", "toaster", "backpack", "office chair", "coffee grinder", "wall clock", "bicycle helmet",
    "rain jacket", "keyboard", "water filter", "camping tent", "hair dryer", "bookshelf", "blender", "phone case",
    "garden hose", "electric razor", "picture frame", "sleeping bag", "rice cooker", "radio", "yoga mat", "printer",
)  # fmt: skip
_PROBLEMS = {
    "broken": (
        "the {p} does not work", "the {p} arrived broken", "the {p} has a crack in it", "the {p} stopped working",
        "my {p} came in pieces", "the {p} fell apart on the first day", "there is a deep scratch all over the {p}",
        "the {p} is dead", "the {p} was smashed when I opened the box",
    ),
    "late": (
        "the {p} has not arrived yet", "I am still waiting for the {p}", "the {p} is two weeks late",
        "where is my {p}", "the {p} should have been here on Monday", "no {p} so far", "the {p} never came",
        "the {p} has been on its way for a month", "nobody has delivered the {p}",
    ),
    "wrong item": (
        "I got something else instead of the {p}", "you sent me the wrong {p}", "this is not the {p} I ordered",
        "the {p} is in the wrong colour", "the {p} is too small, I ordered a large one",
        "I was sent another model of the {p}", "the {p} looks nothing like the one I chose",
        "the box held a different {p}", "I asked for another size of the {p}",
    ),
    "payment": (
        "I was charged twice for the {p}", "the price of the {p} on the bill is too high",
        "my card was billed two times for the {p}", "the discount for the {p} is missing on the bill",
        "I paid for the {p} and the page says I did not", "the invoice for the {p} is wrong",
        "you took too much money for the {p}", "the {p} was cheaper on your page than on my card",
        "the voucher was not taken off the {p}",
    ),
}  # fmt: skip
_WISHES = {
    "refund": ("I want my money back.", "Please refund me.", "I would like a refund.", "Please pay me back.",
               "Send the money back to my card.", "I do not want it any more, only my money."),
    "replacement": ("Please send a new one.", "I would like a replacement.", "Can you exchange it?",
                    "Send me another one, please.", "I need one that is right.", "A fresh one would be fine."),
    "answer": ("Can you tell me what to do?", "Please explain.", "What happens now?", "Please call me.",
               "I would like to know why.", "How can this be?"),
    None: ("", "Thank you.", "I am not happy.", "This is the first time I write to you.", "Best wishes.", "Not good."),
}  # fmt: skip
_ORDERS = ("My order is {o}. ", "Order {o}: ", "It is about order {o}. ", "Number {o}. ",
           "Order number {o}, please look. ", "I ordered it as {o}. ")  # fmt: skip
_OTHERS = ("I paid 45 euros. ", "I live at 12 Mill Road. ", "I wrote on 14 May. ", "My brother has the same one. ",
           "My old one lasted 10 years. ", "It is for my 3 children. ")  # fmt: skip


def make_tickets(seed: int = 0, train: int = 400, validation: int = 50, test: int = 100) -> Splits[Ticket]:
    """Tickets to learn from, to choose settings by and to report on; every message is different.

    Training and the other two parts have no words in common for first and last names, products, each problem, each
    wish, the order's number and what does not matter.

    Raises ValueError if more are asked for than there are different ones (tens of thousands).
    """
    rng, seen = random.Random(seed), set[str]()
    parts = [_draw(rng, count, seen, held_out) for count, held_out in ((train, 0), (validation, 1), (test, 1))]
    return Splits(*parts)


def score_tickets(answers: Sequence[str], tickets: Sequence[Ticket]) -> TicketScores:
    """Compare each answer with its ticket as JSON: spaces and the order of fields do not count, letters do.

    Raises ValueError when there are no answers, or not as many as tickets.
    """
    if len(answers) != len(tickets) or not answers:
        raise ValueError(f"expected one answer for each ticket, and at least one; got {len(answers)}, {len(tickets)}")
    right = judge_answers(answers, [ticket.answer for ticket in tickets])
    share = {name: sum(values) / len(values) for name, values in right.items()}
    by_field = {name: share[name] for name in FIELDS}
    return TicketScores(share["exact"], sum(by_field.values()) / len(FIELDS), share["JSON"], by_field)


def few_shot(shown: Sequence[Ticket], ticket: Ticket) -> list[dict[str, str]]:
    """The chat that asks for `ticket` after `GUIDE` and some answered tickets, for a model without training."""
    turns = [turn for example in shown for turn in example.chat()[1:]]
    return [{"role": "system", "content": GUIDE}, *turns, ticket.chat()[1]]


def _draw(rng: random.Random, count: int, seen: set[str], held_out: int) -> list[Ticket]:
    tickets: list[Ticket] = []
    for _ in range(100 * count + 1):
        if len(tickets) == count:
            return tickets
        ticket = _ticket(rng, held_out)
        if ticket.message not in seen:
            seen.add(ticket.message)
            tickets.append(ticket)
    raise ValueError(f"there are not {count} different messages: ask for fewer")


def _ticket(rng: random.Random, held_out: int) -> Ticket:
    def pick(words: Sequence[str]) -> str:
        cut = len(words) * 2 // 3
        return rng.choice(words[cut:] if held_out else words[:cut])

    customer = f"{pick(_FIRST)} {pick(_LAST)}" if rng.random() < 0.75 else None
    order = f"{rng.randrange(10_000, 100_000)}" if rng.random() < 0.75 else None
    problem, wish = rng.choice(list(_PROBLEMS)), rng.choice(list(_WISHES))
    product = pick(_PRODUCTS)
    complaint = pick(_PROBLEMS[problem]).format(p=product)
    number = pick(_ORDERS).format(o=order) if order else ""
    greeting, signed = rng.choice(("Hello! ", "Hi. ", "")), ""
    if customer and rng.random() < 0.5:
        greeting += f"This is {customer}. " if greeting else f"{customer} here. "
    elif customer:
        signed = customer
    aside = pick(_OTHERS) if rng.random() < 0.4 else ""
    first, second = rng.sample([f"{complaint[0].upper()}{complaint[1:]}. ", number], 2)
    text = f"{greeting}{first}{second}{aside}{pick(_WISHES[wish])} {signed}"
    return Ticket(" ".join(text.split()), dict(zip(FIELDS, (customer, order, product, problem, wish))))

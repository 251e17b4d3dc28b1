"""Where should an adapter go that QLoRA trained on a 4-bit base? Four ways, asked about the same test items.

Writes `qlora_merge.csv`: a row for each base and each way. A base ("wide": as it is stored, in float32) is quantised to
NF4 with this library, an adapter is trained on the NF4 base, and the same adapter then answers

- on NF4: beside the 4-bit base that it was trained on;
- merged into dequantised NF4: the 4-bit base turned into float32 numbers first;
- merged into the wide base: the weights as they were before quantisation;
- merged and NF4 again: the second way, quantised once more.

The base is gpt2-mini on chapter 5's restaurants, or with `--model smollm2` SmolLM2-135M-Instruct on chapter 13's
tickets. (SmolLM2's package holds it in 4 bits already; "wide" is what they are dequantised to.) An item is right when
everything in it is: every slot of a restaurant, every field of a ticket. The rows keep that item by item, so that a
page can compare two ways on the same items.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).parents[1]))  # common

import torch
from common import SLOTS, Row, Rows, arguments
from safetensors.torch import load_file, save_file

from lora_book.measure import dequantise_model, quantise_model
from lora_book.tasks import make_tickets, restaurant_data, slot_report, to_examples
from lora_book.tasks.tickets import FIELDS
from lora_lib import PeftModel, get_peft_model, load_pretrained
from lora_lib.data import IGNORE, Encoded, collate, encode_chat, encode_examples, judge_answers, write_answers
from lora_lib.gpt2 import generate_text
from lora_lib.training import evaluate, fit

RANK, ALPHA = 8, 32


class Task(NamedTuple):
    """A base and what it is trained on and asked about."""

    load: Callable[[], tuple[Any, Any]]  # the wide base and its tokenizer
    train: list[Encoded]
    validation: list[Encoded]
    right: Callable[[Any], list[list[bool]]]  # for each test item, which of its parts a model gets right
    learning_rate: float
    steps: int


def restaurants(test: int) -> Task:
    data, tokenizer = restaurant_data(0, slots=SLOTS, test=test), load_pretrained("gpt2-mini")[1]

    def right(model: Any) -> list[list[bool]]:
        texts = generate_text(model, tokenizer, [place.prompt for place in data.test], 70, batch_size=test)
        reports = [slot_report(text, place.meaning) for text, place in zip(texts, data.test)]
        return [list(report.values()) for report in reports]

    train, validation = (encode_examples(to_examples(part), tokenizer, 256) for part in (data.train, data.validation))
    return Task(lambda: load_pretrained("gpt2-mini"), train, validation[:200], right, 5e-3, 120)


def tickets(test: int) -> Task:
    from lora_lib.run import load_smollm2

    data, tokenizer = make_tickets(test=test), load_smollm2()[1]

    def right(model: Any) -> list[list[bool]]:
        chats = [ticket.chat(answered=False) for ticket in data.test]
        answers = write_answers(model, tokenizer, chats, 64, batch_size=test)
        judged = judge_answers(answers, [ticket.answer for ticket in data.test])
        return [list(map(bool, item)) for item in zip(*(judged[name] for name in FIELDS))]

    train, validation = (
        [encode_chat(ticket.chat(), tokenizer) for ticket in part] for part in (data.train, data.validation)
    )
    return Task(load_smollm2, train, validation, right, 1e-3, 30)


TASKS = {"gpt2-mini": restaurants, "smollm2": tickets}
WAYS: dict[str, Callable[[Any, Path], Any]] = {
    "on NF4": lambda wide, adapter: PeftModel.from_pretrained(quantise_model(wide), adapter).eval(),
    "merged into dequantised NF4": lambda wide, adapter: merged(dequantise_model(quantise_model(wide)), adapter),
    "merged into the wide base": lambda wide, adapter: merged(wide, adapter, check_base=False),
    "merged and NF4 again": lambda wide, adapter: quantise_model(
        merged(dequantise_model(quantise_model(wide)), adapter)
    ),
}


def merged(base: Any, adapter: Path, check_base: bool = True) -> Any:
    """The base with the adapter folded in, a plain model."""
    return PeftModel.from_pretrained(base, adapter, check_base=check_base).merge_and_unload().eval()


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "qlora_merge.csv", seeds=(0,))
    parser.add_argument("--test", type=int, default=300, help="items to score")
    parser.add_argument("--keep", type=Path, default=Path("runs/qlora_merge"), help="where trained adapters go")
    options = parser.parse_args(argv)
    rows, task = Rows(options.out), TASKS[options.model](options.test)
    for seed in options.seeds:
        for way in WAYS:
            settings = {
                "model": options.model, "way": way, "rank": RANK, "alpha": ALPHA,
                "learning_rate": task.learning_rate, "steps": task.steps, "batch_size": 8, "seed": seed,
                "test": options.test,
            }  # fmt: skip
            adapter = options.keep / f"{options.model}-{seed}"
            rows.run(settings, functools.partial(measured, task, way, adapter, seed))


def train(task: Task, adapter: Path, seed: int) -> None:
    """QLoRA: an adapter on the NF4 base."""
    torch.manual_seed(seed)
    tuned = get_peft_model(quantise_model(task.load()[0]), "all-linear", RANK, ALPHA).enable_lora_training()
    fit(
        tuned, task.train, steps=task.steps, batch_size=8, learning_rate=task.learning_rate, seed=seed, progress=False
    )  # fmt: skip
    tuned.save_pretrained(adapter)


def measured(task: Task, way: str, adapter: Path, seed: int) -> Row:
    """Loss and answers of the adapter put out in this way."""
    if not adapter.exists():
        train(task, adapter, seed)
    model = WAYS[way](task.load()[0], adapter)
    ids, targets = collate(task.validation[:4], pad_id=0)
    with torch.no_grad():
        out = model(ids)
    logits = getattr(out, "logits", out)[targets != IGNORE]
    beside = adapter / "nf4_logits.safetensors"  # what it says beside the base that it was trained on
    if way == "on NF4":
        save_file({"logits": logits}, beside)
    moved = (logits - load_file(beside)["logits"]).abs().max().item()
    parts = task.right(model)
    return {
        "validation_loss": round(evaluate(model, task.validation, batch_size=8), 4), "logits_moved": f"{moved:.1e}",
        "right": round(sum(map(all, parts)) / len(parts), 4),
        "parts_right": round(sum(map(sum, parts)) / sum(map(len, parts)), 4),
        "right_by_item": "x" + "".join(str(int(all(item))) for item in parts),
        "wrong_parts_by_item": "x" + "".join(str(item.count(False)) for item in parts),
    }  # fmt: skip


if __name__ == "__main__":
    main()

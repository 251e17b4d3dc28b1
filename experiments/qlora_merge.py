"""Where should an adapter go that QLoRA trained on a 4-bit base? Four ways, on chapter 13's tickets with SmolLM2.

Writes `qlora_merge.csv`: a row for each way. The base (SmolLM2-135M-Instruct, which its package holds in 4 bits, loaded
as float32: "wide" below) is quantised to NF4 with this library, an adapter is trained on the NF4 base, and the same
adapter then answers the same test messages

- on NF4: beside the 4-bit base that it was trained on;
- merged into dequantised NF4: the 4-bit base turned into float32 numbers first;
- merged into the wide base: the weights as they were before quantisation;
- merged and NF4 again: the second way, quantised once more.

The rows keep what is right for each test message, so that a page can compare two ways message by message.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import Row, Rows, arguments

from lora_lib import PeftModel, get_peft_model
from lora_lib.adapters import dequantise_model, quantise_model
from lora_lib.book import load_smollm2
from lora_lib.data import IGNORE, collate, encode_chat, judge_answers, make_tickets, write_answers
from lora_lib.data.tickets import FIELDS
from lora_lib.training import evaluate, fit

RANK, ALPHA, RATE, BATCH, EXAMPLES, NEW_TOKENS = 8, 32, 1e-3, 8, 400, 64


def wide() -> Any:
    """The base as it was before quantisation."""
    return load_smollm2()[0]


def nf4() -> Any:
    """The base that the adapter is trained on."""
    return quantise_model(wide())


def rounded() -> Any:
    """The 4-bit base as plain float32 layers: the same numbers, in layers that can be merged into."""
    return dequantise_model(nf4())


WAYS: dict[str, Callable[[Path], Any]] = {
    "on NF4": lambda adapter: PeftModel.from_pretrained(nf4(), adapter).eval(),
    "merged into dequantised NF4": lambda adapter: merged(rounded(), adapter),
    "merged into the wide base": lambda adapter: merged(wide(), adapter),
    "merged and NF4 again": lambda adapter: quantise_model(merged(rounded(), adapter)),
}


def merged(base: Any, adapter: Path) -> Any:
    """The base with the adapter folded in, a plain model."""
    return PeftModel.from_pretrained(base, adapter).merge_and_unload().eval()


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "qlora_merge.csv", seeds=(0,))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--test", type=int, default=100, help="messages to score")
    parser.add_argument("--keep", type=Path, default=Path("runs/qlora_merge"), help="where trained adapters go")
    options = parser.parse_args(argv)
    rows = Rows(options.out)
    for seed in options.seeds:
        adapter = options.keep / f"steps{options.steps}-seed{seed}"
        for way in WAYS:
            settings = {
                "way": way, "rank": RANK, "alpha": ALPHA, "learning_rate": RATE, "steps": options.steps,
                "batch_size": BATCH, "examples": EXAMPLES, "seed": seed, "test": options.test,
            }  # fmt: skip
            rows.run(settings, functools.partial(_measured, way, adapter, options.steps, seed, options.test))


def _train(adapter: Path, steps: int, seed: int) -> None:
    """QLoRA: an adapter on the NF4 base."""
    tokenizer = load_smollm2()[1]
    train = [encode_chat(ticket.chat(), tokenizer) for ticket in make_tickets().train[:EXAMPLES]]
    torch.manual_seed(seed)
    tuned = get_peft_model(nf4(), "all-linear", RANK, ALPHA).enable_lora_training()
    fit(tuned, train, steps=steps, batch_size=BATCH, learning_rate=RATE, seed=seed, progress=False)
    tuned.save_pretrained(adapter)


def _measured(way: str, adapter: Path, steps: int, seed: int, test: int) -> Row:
    """Loss and answers of the adapter put out in this way."""
    if not adapter.exists():
        _train(adapter, steps, seed)
    data, tokenizer = make_tickets(test=test), load_smollm2()[1]
    model = WAYS[way](adapter)
    examples = [encode_chat(ticket.chat(), tokenizer) for ticket in data.validation]
    ids, targets = collate(examples[:4], tokenizer.pad_token_id)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[targets != IGNORE]
    path = adapter / "nf4_logits.pt"  # what the adapter says beside the base that it was trained on
    if way == "on NF4":
        torch.save(logits, path)
    moved = (logits - torch.load(path)).abs().max().item()
    answers = write_answers(model, tokenizer, [t.chat(answered=False) for t in data.test], NEW_TOKENS, batch_size=100)
    right = judge_answers(answers, [ticket.answer for ticket in data.test])
    fields = [int(sum(item)) for item in zip(*(right[name] for name in FIELDS))]
    return {
        "validation_loss": round(evaluate(model, examples, batch_size=8), 4),
        "logits_moved": f"{moved:.1e}",
        "exact": sum(right["exact"]) / test, "fields": round(sum(fields) / len(FIELDS) / test, 4),
        "json": sum(right["JSON"]) / test, "first_answer": answers[0],
        "exact_by_item": "x" + "".join(str(int(value)) for value in right["exact"]),
        "fields_by_item": "x" + "".join(map(str, fields)),
    }  # fmt: skip


if __name__ == "__main__":
    main()

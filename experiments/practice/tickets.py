"""SmolLM2-135M-Instruct (4-bit, dequantised) on chapter 13's tickets: examples in the prompt, against LoRA.

Writes `tickets.csv`: a row for each number of examples in the prompt, and for each rank, learning rate and seed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.append(str(Path(__file__).parents[1]))  # common

import torch
from common import Row, Rows, arguments

from lora_book.tasks import Ticket, few_shot, make_tickets, score_tickets
from lora_lib import get_peft_model
from lora_lib.data import encode_chat, write_answers
from lora_lib.run import load_smollm2
from lora_lib.training import evaluate, fit

BATCH, ALPHA, NEW_TOKENS = 8, 32, 64


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "tickets.csv")
    parser.add_argument("--shown", type=int, nargs="*", default=[0, 4, 8], help="examples in the prompt")
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3], help="learning rates")
    parser.add_argument("--examples", type=int, nargs="+", default=[400], help="to train on")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--test", type=int, default=100, help="messages to score")
    options = parser.parse_args(argv)
    rows = Rows(options.out)
    for shown in options.shown:
        settings = _settings("prompt", shown, options.test)
        rows.run(settings, lambda shown=shown: _prompted(shown, options.test))
    for seed in options.seeds:
        for examples in options.examples:
            for rate in options.rates:
                for rank in options.ranks:
                    settings = _settings("lora", examples, options.test, rank, rate, options.steps, seed)
                    rows.run(settings, lambda settings=settings: _trained(settings))


def _settings(
    method: str, examples: int, test: int, rank: int = 0, rate: float = 0.0, steps: int = 0, seed: int = 0
) -> Row:
    return {
        "method": method, "examples": examples, "rank": rank, "alpha": ALPHA if rank else 0, "learning_rate": rate,
        "steps": steps, "batch_size": BATCH if rank else 0, "seed": seed, "test": test,
    }  # fmt: skip


def _prompted(shown: int, test: int) -> Row:
    data, (model, tokenizer) = make_tickets(test=test), load_smollm2()
    chats = [few_shot(data.train[:shown], ticket) for ticket in data.test]
    return {"validation_loss": "", "train_cpu_seconds": 0, "trainable": 0, "file_bytes": 0, "curve": ""} | _scored(
        model, tokenizer, data.test, chats, batch_size=8
    )


def _trained(settings: Row) -> Row:
    data, (model, tokenizer) = make_tickets(test=settings["test"]), load_smollm2()
    train = [encode_chat(ticket.chat(), tokenizer) for ticket in data.train[: settings["examples"]]]
    torch.manual_seed(settings["seed"])
    tuned = get_peft_model(model, "all-linear", settings["rank"], ALPHA).enable_lora_training()
    start = time.process_time()
    history = fit(
        tuned, train, steps=settings["steps"], batch_size=BATCH, learning_rate=settings["learning_rate"],
        seed=settings["seed"], progress=False,
    )  # fmt: skip
    seconds = time.process_time() - start
    validation = [encode_chat(ticket.chat(), tokenizer) for ticket in data.validation]
    with TemporaryDirectory() as folder:
        tuned.save_pretrained(folder)
        size = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
    curve = [sum(history.loss[i : i + 10]) / len(history.loss[i : i + 10]) for i in range(0, len(history.loss), 10)]
    row = {
        "validation_loss": evaluate(tuned, validation, batch_size=8),
        "train_cpu_seconds": round(seconds, 1), "trainable": tuned.get_nb_trainable_parameters()[0],
        "file_bytes": size, "curve": " ".join(f"{loss:.3f}" for loss in curve),
    }  # fmt: skip
    chats = [ticket.chat(answered=False) for ticket in data.test]
    return row | _scored(tuned.merge_and_unload(), tokenizer, data.test, chats)


def _scored(model: object, tokenizer: object, tickets: Sequence[Ticket], chats: Sequence, batch_size: int = 16) -> Row:
    start = time.process_time()
    answers = write_answers(model, tokenizer, chats, NEW_TOKENS, batch_size=batch_size)
    seconds = time.process_time() - start
    exact, fields, json, by_field = score_tickets(answers, tickets)
    return {"exact": exact, "fields": round(fields, 4), "json": json, **by_field} | {
        "answer_cpu_seconds": round(seconds / len(chats), 2), "first_answer": answers[0],
    }  # fmt: skip


if __name__ == "__main__":
    main()

"""Fine-tune a chat model on a CSV or JSONL file with LoRA or QLoRA, from the file to a score, with TRL and PEFT.

    python examples/fine_tune.py train reviews.csv --ask review --answer category mood --output run
    python examples/fine_tune.py ask run "The box came broken."
    python examples/fine_tune.py merge run merged

`train` splits the file into three parts and scores the base on the test part, alone and with examples in its prompt.
Then it trains an adapter, keeps the checkpoint whose answers to the validation part score best, and scores that one on
the same test part. If the run is killed, the same command with --resume goes on from the last checkpoint. Your file is
only read. Everything is written into --output, which must not exist yet: `run/adapter` is a folder that PEFT, vLLM and
this book's library open.

--model is "smollm2" (SmolLM2-135M from its package, no network), a folder, or a name on the Hub. The same code runs on
a CPU and on a GPU; `hardware` chooses what only a GPU can do and says what it saves. We ran all of it on a CPU with
SmolLM2, killed and resumed, and --quantise too. We did not run the lines marked "on a GPU".
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from lora_book.tasks import model_card
from lora_lib.data import (
    Example,
    Record,
    gain_table,
    judge_answers,
    read_columns,
    score_table,
    split,
    write_answers,
)  # fmt: skip

Chat = list[dict[str, str]]


# --- questions and answers -------------------------------------------------------------------------------------------


def chat_of(record: Record, system: str, shown: list[Record] | None = None) -> Chat:
    """The chat that asks for a record's answer, after `shown` examples with theirs."""
    chat = [{"role": "system", "content": system}] if system else []
    for example in shown or []:
        chat += [{"role": "user", "content": example.exchanges[0].prompt}, answer_turn(example)]
    return [*chat, {"role": "user", "content": record.exchanges[0].prompt}]


def answer_turn(record: Record) -> dict[str, str]:
    """The assistant's turn that is to be learned."""
    return {"role": "assistant", "content": record.exchanges[0].completion}


# --- the model ---------------------------------------------------------------------------------------------------


def load(name: str, *, quantise: bool = False) -> tuple[Any, Any]:
    """A model and its tokenizer. `quantise` keeps the base in 4 bits, as QLoRA does: 8B in about 6 GB."""
    if name == "smollm2":
        from lora_lib.run import smollm2_folder

        name = str(smollm2_folder())
    machine = hardware()
    settings: dict[str, Any] = {"dtype": machine["dtype"], "attn_implementation": machine["attention"]}
    if machine["device"] == "cuda":  # on a GPU: load the weights straight onto it
        settings["device_map"] = {"": 0}
    if quantise:
        from transformers import BitsAndBytesConfig

        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=machine["dtype"],
            bnb_4bit_use_double_quant=True,
        )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(name, **settings)
    tokenizer = AutoTokenizer.from_pretrained(name)
    if not tokenizer.chat_template:
        raise ValueError(f"{name} has no chat template: take an instruction-tuned model")
    return model, tokenizer


def hardware() -> dict[str, Any]:
    """What this machine can do, and the settings of the trainer that follow from it."""
    if not torch.cuda.is_available():
        return {
            "device": "cpu", "dtype": torch.float32, "attention": "sdpa",
            "trainer": {"use_cpu": True, "bf16": False, "gradient_checkpointing": False},
        }  # fmt: skip
    # On a GPU (not run by us):
    # - bfloat16 halves the bytes of weights and activations.
    # - FlashAttention does not keep the T × T attention scores, and packing needs it.
    # - Packing fills each sequence with several rows, so no time goes into padding.
    # - 8-bit AdamW keeps 2 bytes instead of 8 for each number that is trained.
    # - Gradient checkpointing keeps one input for each block and computes the rest again: a third more time.
    flash = importlib.util.find_spec("flash_attn") is not None
    eight_bit = importlib.util.find_spec("bitsandbytes") is not None
    return {
        "device": "cuda", "dtype": torch.bfloat16, "attention": "flash_attention_2" if flash else "sdpa",
        "trainer": {
            "bf16": True, "gradient_checkpointing": True, "packing": flash,
            "optim": "paged_adamw_8bit" if eight_bit else "adamw_torch",
        },
    }  # fmt: skip


def starting_rate(model: Any) -> float:
    """A learning rate to begin with; the book's cheat sheet has a table of them by family and size."""
    return 1e-3 if sum(p.numel() for p in model.parameters()) < 5e9 else 2e-4


# --- training ----------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> None:
    """From a file to an adapter and its score."""
    started = time.perf_counter()
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k not in ("do", "resume")}
    records = read_columns(args.file, args.ask, args.answer)
    parts = split(records, validation=args.held_out, test=args.held_out, seed=args.seed)
    print(f"{len(parts.train)} rows to train, {len(parts.validation)} to validate, {len(parts.test)} to test")
    model, tokenizer = load(args.model, quantise=args.quantise)
    check_lengths(records, tokenizer, args.system, args.max_length)
    open_run(args, settings)
    set_seed(args.seed)
    room = max(len(tokenizer(r.exchanges[0].completion).input_ids) for r in records) + 8

    def scores_of(model: Any, part: list[Record], shown: list[Record] | None = None) -> dict[str, list[float]]:
        answers = write_answers(model, tokenizer, [chat_of(r, args.system, shown) for r in part], room)
        return judge_answers(answers, [r.exchanges[0].completion for r in part])

    base_scores, shown = args.output / "base_scores.json", f"base, {args.shots} shown"
    if not base_scores.exists():
        scores = {"base": scores_of(model, parts.test)}
        scores[shown] = scores_of(model, parts.test, parts.train[: args.shots])
        write_json(base_scores, scores)
    scores = json.loads(base_scores.read_text(encoding="utf8"))
    trainer = make_trainer(args, model, tokenizer, parts, scores_of)
    trainer.train(resume_from_checkpoint=last_checkpoint(args.output) if args.resume else None)
    # The model is now that of the best checkpoint (load_best_model_at_end).
    trainer.model.save_pretrained(args.output / "adapter")
    tokenizer.save_pretrained(args.output / "adapter")
    question = parts.test[0].exchanges[0].prompt
    card = model_card(args.output / "adapter", question, system=args.system, max_new_tokens=room)
    (args.output / "adapter" / "README.md").write_text(card, encoding="utf8")
    scores["adapter"] = scores_of(trainer.model, parts.test)
    write_json(args.output / "scores.json", scores)
    print(score_table(scores))
    print(f"\nadapter - {shown}:\n{gain_table(scores['adapter'], scores[shown])}")
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes; the adapter is in {args.output / 'adapter'}")
    show(trainer.model, tokenizer, parts.test[:5], args.system, room)


def open_run(args: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Make the output folder, or see that a run that goes on has the settings that it began with."""
    kept = args.output / "run.json"
    if not args.resume:
        if args.output.exists():
            sys.exit(f"{args.output} exists already: give another --output, or --resume to go on with it")
        args.output.mkdir(parents=True)
        write_json(kept, settings)
        return
    begun = json.loads(kept.read_text(encoding="utf8"))
    if changed := [name for name, value in settings.items() if begun.get(name) != value]:
        sys.exit(f"this run began with other settings: {', '.join(f'{n} = {begun.get(n)!r}' for n in changed)}")


def last_checkpoint(output: Path) -> str | None:
    """The newest checkpoint that is complete: the trainer writes trainer_state.json last."""
    found = [path.parent for path in output.glob("checkpoint-*/trainer_state.json")]
    return str(max(found, key=lambda path: int(path.name.split("-")[1]))) if found else None


def check_lengths(records: list[Record], tokenizer: Any, system: str, most: int) -> None:
    """Exit if a row is longer than `most` tokens: TRL would cut off its end without a word."""
    for record in records:
        chat = [*chat_of(record, system), answer_turn(record)]
        length = len(tokenizer.apply_chat_template(chat, return_dict=False))
        if length > most:
            sys.exit(f"{record.where}: {length} tokens with its template, more than --max-length {most}")


def make_trainer(args: argparse.Namespace, model: Any, tokenizer: Any, parts: Any, scores_of: Any) -> Any:
    """TRL's trainer, which also scores answers to the validation part at each evaluation and keeps the best."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    class ScoringTrainer(SFTTrainer):
        """SFTTrainer that writes answers when it evaluates: the lowest loss does not mean the best answers."""

        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            metrics = super().evaluate()
            scores = scores_of(self.model, parts.validation[: args.watch])
            means = [sum(values) / len(values) for name, values in scores.items() if name != "JSON"]
            metrics["eval_score"] = sum(means) / len(means)
            self.log({"eval_score": metrics["eval_score"]})
            return metrics

    def rows(part: list[Record]) -> Any:  # TRL puts the loss on a completion, and not on its prompt
        return datasets.Dataset.from_list(
            [{"prompt": chat_of(record, args.system), "completion": [answer_turn(record)]} for record in part]
        )

    machine = hardware()["trainer"]
    if args.quantise:
        from peft import prepare_model_for_kbit_training  # TRL's trainer does not call it

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=machine["gradient_checkpointing"])
    every = max(1, round(args.passes * len(parts.train) / args.batch / args.looks))  # steps between evaluations
    settings = SFTConfig(
        str(args.output), max_steps=every * args.looks, per_device_train_batch_size=args.batch,
        learning_rate=args.learning_rate or starting_rate(model), lr_scheduler_type="cosine",
        warmup_steps=max(1, every * args.looks // 10), max_length=args.max_length, eval_strategy="steps",
        eval_steps=every, save_strategy="steps", save_steps=every, save_total_limit=2, load_best_model_at_end=True,
        metric_for_best_model="eval_score", greater_is_better=True, logging_steps=every, report_to="none",
        seed=args.seed, **machine,
    )  # fmt: skip
    lora = LoraConfig(
        r=args.rank, lora_alpha=args.alpha, lora_dropout=args.dropout, target_modules="all-linear",
        task_type="CAUSAL_LM",
    )  # fmt: skip
    return ScoringTrainer(
        model, settings, train_dataset=rows(parts.train), eval_dataset=rows(parts.validation),
        processing_class=tokenizer, peft_config=lora,
    )  # fmt: skip


def show(model: Any, tokenizer: Any, records: list[Record], system: str, room: int) -> None:
    """Some answers to read beside the wanted ones."""
    answers = write_answers(model, tokenizer, [chat_of(record, system) for record in records], room)
    for record, answer in zip(records, answers):
        prompt, wanted = record.exchanges[0]
        print(f"\n{prompt[:200]}\n  wanted: {wanted}\n  answer: {answer}")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, all of it or nothing."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf8")
    os.replace(part, path)


# --- afterwards --------------------------------------------------------------------------------------------------


def ask(args: argparse.Namespace) -> None:
    """Put a question to a trained run."""
    run = json.loads((args.run / "run.json").read_text(encoding="utf8"))
    model, tokenizer = load(run["model"], quantise=run["quantise"])
    model = PeftModel.from_pretrained(model, args.run / "adapter").eval()
    question = Record((Example(args.question, ""),), "the command line")
    print(write_answers(model, tokenizer, [chat_of(question, run["system"])], 256)[0])


def merge(args: argparse.Namespace) -> None:
    """Fold a run's adapter into its base, loaded in 16 or 32 bits and never in 4: one plain model for any server."""
    if args.folder.exists():
        sys.exit(f"{args.folder} exists already: give another name")
    run = json.loads((args.run / "run.json").read_text(encoding="utf8"))
    model, tokenizer = load(run["model"])
    merged = PeftModel.from_pretrained(model, args.run / "adapter").merge_and_unload(safe_merge=True)
    merged.save_pretrained(args.folder)
    tokenizer.save_pretrained(args.folder)
    print(f"a plain model in {args.folder}; its system turn is {run['system']!r}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("train", help="from a file to an adapter and its score")
    one.add_argument("file", type=Path, help=".csv, .tsv, or .jsonl with one object a line; it is only read")
    one.add_argument("--ask", nargs="+", required=True, help="the columns that the model is given")
    one.add_argument(
        "--answer", nargs="+", required=True, help="the columns to answer with; several make a JSON object"
    )
    one.add_argument("--output", type=Path, required=True, help="a new folder")
    one.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --output")
    one.add_argument("--model", default="smollm2", help='"smollm2", a folder, or a name on the Hub')
    one.add_argument("--system", default="", help="the task in one line, a system turn before each question")
    one.add_argument("--quantise", action="store_true", help="QLoRA: the base in 4 bits")
    one.add_argument("--rank", type=int, default=16)
    one.add_argument("--alpha", type=float, default=32.0)
    one.add_argument("--dropout", type=float, default=0.0)
    one.add_argument("--learning-rate", type=float, default=None, help="default: by the model's size")
    one.add_argument("--passes", type=float, default=3.0, help="how often each row is seen")
    one.add_argument("--batch", type=int, default=8)
    one.add_argument("--max-length", type=int, default=512, help="tokens of a row, template and answer included")
    one.add_argument("--held-out", type=float, default=0.15, help="share of the rows to validate, and to test")
    one.add_argument("--looks", type=int, default=4, help="evaluations, each with a checkpoint")
    one.add_argument("--watch", type=int, default=32, help="validation rows whose answers are scored each time")
    one.add_argument("--shots", type=int, default=4, help="examples in the prompt of the base")
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(do=train)
    two = commands.add_parser("ask", help="put a question to a run")
    two.add_argument("run", type=Path)
    two.add_argument("question")
    two.set_defaults(do=ask)
    three = commands.add_parser("merge", help="fold a run's adapter into its base")
    three.add_argument("run", type=Path)
    three.add_argument("folder", type=Path, help="a new folder")
    three.set_defaults(do=merge)
    args = parser.parse_args()
    if args.do is train and not args.system:
        args.system = "Answer with one JSON object." if len(args.answer) > 1 else "Answer with nothing but the answer."
    try:
        args.do(args)
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

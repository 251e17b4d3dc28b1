"""Fine-tune a chat model on a file of yours with LoRA or QLoRA, from the file to a score, with TRL and PEFT.

    python examples/fine_tune.py train reviews.csv --ask review --answer category mood --output run
    python examples/fine_tune.py ask run "The box came broken."
    python examples/fine_tune.py merge run merged
    python examples/fine_tune.py compare run longer-run

`train` counts the labels, splits the file into three parts, and scores the base on the test part, alone and with
examples in its prompt. Then it trains an adapter, keeps the checkpoint whose answers to the validation part score best,
and scores that one on the same test part. If the run is killed, the same command with --resume goes on from the last
checkpoint. Your file is only read. Everything is written into --output: `run/adapter` is a folder that PEFT, vLLM and
this book's library open, `run/answers.jsonl` has every test question with all answers to it.

--model is "smollm2" (SmolLM2-135M from its package, no network), a folder, or a name on the Hub. A model that thinks
(Qwen3) is asked without thinking, and `<think>…</think>` is not part of an answer. `python -m lora_lib train` is for
the book's own models, and for several processes.

We ran all of it on a CPU, with SmolLM2 and with tiny models, killed and resumed, and --quantise too. We did not run the
lines marked "on a GPU": `hardware` has what only a GPU can do, and says what it saves.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed

from lora_book.tasks import model_card
from lora_lib.data import IGNORE, Record, Splits, encode_chat, prompt_ids, read_records, record_chat, write_answers
from lora_lib.data.chats import wanted_answer
from lora_lib.data.readers import read_object
from lora_lib.data.scores import answer_fields, constant_answer, gains_over_best, judge_answers, mean_score, score_table
from lora_lib.gpt2 import generate_text
from lora_lib.run import NAME, smollm2_folder
from lora_lib.tensor_files import replaced

# --- the file --------------------------------------------------------------------------------------------------------


def look_at_labels(records: Sequence[Record]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Count the labels. Gives each field of classes, with the label of each row, and the fields of free text.

    Free text has more different values than half of the rows. Answers that are not all JSON are one field, "answer".
    """
    wanted = [wanted_answer(record) for record in records]
    classes, free = {}, []
    for name, values in (answer_fields(wanted) or {"answer": wanted}).items():
        labels = {r.where: v if isinstance(v, str) else json.dumps(v) for r, v in zip(records, values)}
        counts = Counter(labels.values())
        if len(counts) > len(records) / 2:
            free.append(name)
            print(f"{name}: {len(counts)} different values in {len(records)} rows")
            continue
        classes[name] = labels
        listed = ", ".join(f"{n} {value}" for value, n in counts.most_common(12))
        print(f"{name}: {listed}{', …' if len(counts) > 12 else ''}")
        spelled: dict[str, list[str]] = {}
        for value, _ in counts.most_common():
            spelled.setdefault(" ".join(value.casefold().split()), []).append(value)
        for one, *others in spelled.values():
            if others:
                print(f"  warning: {one!r} and {others[0]!r} count as two classes; if they are one, mend the file")
    return classes, free


def split_by_class(records: list[Record], classes: dict[str, Any], share: float, seed: int) -> Splits[Record]:
    """Three parts with about the same share of each class. Rows with the same question go into the same part."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(" ".join(record.prompts.casefold().split()), []).append(record)
    rest = list(groups.values())
    for first, *others in rest:
        if other := next((record for record in others if wanted_answer(record) != wanted_answer(first)), None):
            print(f"  warning: {first.where} and {other.where} ask the same and have two answers")
    random.Random(seed).shuffle(rest)
    rest.sort(key=lambda group: [labels[group[0].where] for labels in classes.values()])  # keeps the order in a class
    each = max(1, round(share * len(rest)))
    if len(rest) < 3 * each:
        raise ValueError(f"{len(rest)} different questions are too few for three parts: bring more")
    parts = []
    for _ in range(2):
        taken = {int((i + 0.5) * len(rest) / each) for i in range(each)}  # evenly spread over the classes
        parts.append([record for i in sorted(taken) for record in rest[i]])
        rest = [group for i, group in enumerate(rest) if i not in taken]
    found = Splits([record for group in rest for record in group], parts[1], parts[0])
    for name, labels in classes.items():
        for part, kept in vars(found).items():
            if missing := set(labels.values()) - {labels[record.where] for record in kept}:
                print(f"  warning: {name}: no {', '.join(sorted(missing))} in the {part} part")
    return found


# --- questions and answers -------------------------------------------------------------------------------------------


@dataclass
class Task:
    """How rows become tokens, and what a model answers to them."""

    tokenizer: Any
    system: str
    free: Sequence[str] = ()
    longest: int = sys.maxsize  # tokens of a row
    room: int = 256  # tokens of an answer

    def chat(self, record: Record, shown: Sequence[Record] = ()) -> list[dict[str, Any]]:
        """A row as a chat with its answer, after `shown` examples with theirs."""
        chat = record_chat(record, self.system or None)
        examples = [turn for other in shown for turn in record_chat(other) if turn["role"] != "system"]
        first = int(chat[0]["role"] == "system")
        return chat[:first] + examples + chat[first:]

    def learned(self, record: Record) -> list[dict[str, list[int]]]:
        """A row for TRL for each answer: its tokens, and where the loss is.

        Raises ValueError for a row that the template cannot write, or that TRL would cut off in silence.
        """
        chat, rows = self.chat(record), []
        for end in [i + 1 for i, turn in enumerate(chat) if turn["role"] == "assistant"]:
            try:
                ids, targets = encode_chat(chat[:end], self.tokenizer, sys.maxsize, tools=record.tools, answers="last")
                asked = prompt_ids(chat[: end - 1], self.tokenizer, record.tools)
            except ValueError as error:
                raise ValueError(f"{record.where}: {error} (--system none leaves the system turn out)") from error
            whole, mask = [*ids.tolist(), int(targets[-1])], [0, *(targets != IGNORE).long().tolist()]
            if whole[: len(asked)] != asked:
                raise ValueError(f"{record.where}: it is learned with thoughts, and asked without: take them out")
            if (n := len(whole)) > self.longest:
                raise ValueError(f"{record.where}: {n} tokens with its template, more than --max-length {self.longest}")
            rows.append({"input_ids": whole, "completion_mask": mask})
        return rows

    def answers(self, model: Any, part: Sequence[Record], shown: Sequence[Record] = ()) -> list[str]:
        """What a model answers to the last question of each row, without what it thinks before."""
        prompts = [prompt_ids(self.chat(record, shown)[:-1], self.tokenizer, record.tools) for record in part]
        return [without_thinking(t) for t in generate_text(model, self.tokenizer, prompts, self.room, batch_size=16)]

    def judge(self, answers: Sequence[str], part: Sequence[Record]) -> dict[str, list[float]]:
        return judge_answers(answers, [wanted_answer(record) for record in part], free=self.free)


def without_thinking(text: str) -> str:
    """An answer without the thoughts before it."""
    return re.sub(r"^\s*(<think>)?((?!<think>).)*?</think>", "", text, count=1, flags=re.DOTALL).strip()


# --- the model ---------------------------------------------------------------------------------------------------


def load(name: str, *, quantise: bool = False) -> tuple[Any, Any]:
    """A model and its tokenizer. `quantise` keeps the base in 4 bits, as QLoRA does: 8B in about 6 GB."""
    if name == "smollm2":
        name = str(smollm2_folder())
    settings, _ = hardware()
    if quantise:
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=settings["dtype"],
            bnb_4bit_use_double_quant=True,
        )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(name, **settings)
    # On some CPUs bitsandbytes packs the weights once the model has answered, and no gradient passes any more.
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    return model, AutoTokenizer.from_pretrained(name)


def one_process() -> None:
    """Exit where several GPUs or processes would each do something else than this script means."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.exit("this script runs in one process: start it with python. Chapter 14 has training in several")
    if torch.cuda.device_count() > 1:
        sys.exit("this script uses one GPU, and sees several: choose one, CUDA_VISIBLE_DEVICES=0 python …")


def hardware() -> tuple[dict[str, Any], dict[str, Any]]:
    """How to load a model on this machine, and the settings of the trainer that follow from it."""
    if not torch.cuda.is_available():
        return {"dtype": torch.float32}, {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    # On a GPU (not run by us):
    # - bfloat16 halves the bytes of weights and activations.
    # - FlashAttention does not keep the T × T attention scores.
    # - Rows are not packed, because steps are counted in rows.
    # - 8-bit AdamW keeps 2 bytes instead of 8 for each number that is trained.
    # - Gradient checkpointing keeps one input for each block and computes the rest again: a third more time.
    loading = {"dtype": torch.bfloat16, "device_map": {"": 0}}  # straight onto the GPU
    training = {"bf16": True, "gradient_checkpointing": True}
    if importlib.util.find_spec("flash_attn"):
        loading["attn_implementation"] = "flash_attention_2"
    if importlib.util.find_spec("bitsandbytes"):
        training["optim"] = "paged_adamw_8bit"
    return loading, training


# Where to begin, by the family's name in its config: up to how many parameters, and the rate. Their sources are in the
# table of the book's cheat sheet.
RATES = {
    "qwen3_5": [(float("inf"), 3e-4)],
    "qwen3": [(2e10, 1e-3), (float("inf"), 3e-4)],
    "gpt_oss": [(float("inf"), 1e-4)],
    "": [(5e9, 1e-3), (float("inf"), 2e-4)],
}


def starting_rate(model: Any) -> float:
    """A learning rate to begin with. `num_parameters` counts two for each byte of a 4-bit base, as `numel` does not."""
    family = next(name for name in RATES if model.config.model_type.startswith(name))
    return next(rate for most, rate in RATES[family] if model.num_parameters() < most)


# --- training ----------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> None:
    """From a file to an adapter and its score."""
    started = time.perf_counter()
    one_process()
    if args.batch % args.accumulate:
        raise ValueError(f"--batch {args.batch} cannot be cut into --accumulate {args.accumulate} equal parts")
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k not in ("do", "resume")}
    check_output(args, settings)
    if not (args.ask or args.answer or args.file.suffix.lower() == ".jsonl"):
        raise ValueError(f"{args.file}: name the columns, --ask and --answer; only a .jsonl of chats needs none")
    records = read_records(args.file, args.ask, args.answer, delimiter=args.delimiter)
    classes, free = look_at_labels(records)
    parts = split_by_class(records, classes, args.held_out, args.seed)
    model, tokenizer = load(args.model, quantise=args.quantise)
    task = Task(tokenizer, args.system, free, args.max_length)
    rows = {name: [row for record in part for row in task.learned(record)] for name, part in vars(parts).items()}
    task.room = max(sum(row["completion_mask"]) for part in rows.values() for row in part) + 8
    total = round(args.passes * len(rows["train"]) / args.batch)
    if total < args.looks:
        raise ValueError(f"--passes {args.passes:g} are {total} steps, fewer than --looks {args.looks}")
    every = round(total / args.looks)  # the looks are equally far apart
    args.learning_rate = args.learning_rate or starting_rate(model)
    print(f"{len(parts.train)} rows to train, {len(parts.validation)} to validate, {len(parts.test)} to test")
    if not args.resume:
        args.output.mkdir(parents=True)
        found = {"rate": args.learning_rate, "free": free}
        (args.output / "run.json").write_text(json.dumps(settings | found, indent=1), encoding="utf8")
    set_seed(args.seed)
    print(f"{every * args.looks} steps at a learning rate of {args.learning_rate:g}: about", end=" ")
    print(f"{minutes_of(model, rows['train'], args):.1f} minutes on this machine as it is now, and the time to score")
    print("answers. Is it busy? One thread (OMP_NUM_THREADS=1) then takes less time than several")
    answers = base_answers(args, model, task, parts)
    trainer = make_trainer(args, model, task, parts, rows, every)
    trainer.train(resume_from_checkpoint=last_checkpoint(args.output) if args.resume else None)
    # The model is now that of the best checkpoint (load_best_model_at_end).
    hand_over(args, trainer.model, task, parts)
    answers["adapter"] = task.answers(trainer.model, parts.test)
    keep_answers(args.output, task, parts.test, answers)
    report(task, parts, answers)
    looks = [row["eval_score"] for row in trainer.state.log_history if "eval_score" in row]
    if len(looks) > 1 and looks[-1] == max(looks) > looks[-2]:
        print("\nThe last look was the best: train longer, with more --passes.")
    print(f"\n{(time.perf_counter() - started) / 60:.1f} minutes; the adapter is in {args.output / 'adapter'}")


def check_output(args: argparse.Namespace, settings: dict[str, Any]) -> None:
    """See that the output folder is new, or that a run that goes on has the settings that it began with."""
    if args.output.exists() and not args.resume:
        raise ValueError(f"{args.output} exists already: give another --output, or --resume to go on with it")
    begun = read_object(args.output / "run.json") if args.resume else settings
    if changed := [f"{name} = {begun.get(name)!r}" for name, value in settings.items() if begun.get(name) != value]:
        raise ValueError(f"{args.output}: this run began with other settings: {', '.join(changed)}")


def minutes_of(model: Any, rows: list[dict[str, list[int]]], args: argparse.Namespace) -> float:
    """How long training will take: a step of LoRA is twice the arithmetic of reading the same tokens."""
    ids = torch.tensor([rows[0]["input_ids"]], device=model.device)
    for _ in range(2):  # the first call is slow
        start = time.perf_counter()
        with torch.no_grad():
            model(input_ids=ids).logits[0, 0, 0].item()  # a GPU has now really computed it
    a_token = (time.perf_counter() - start) / ids.numel()
    again = 1.5 if hardware()[1]["gradient_checkpointing"] else 1
    return 2 * again * a_token * args.passes * sum(len(row["input_ids"]) for row in rows) / 60


def base_answers(args: argparse.Namespace, model: Any, task: Task, parts: Splits[Record]) -> dict[str, list[str]]:
    """What the base answers to the test part, and what needs no model; from the run's file where it goes on."""
    kept = args.output / "answers.jsonl"
    if kept.exists():
        rows = [json.loads(line) for line in kept.read_text(encoding="utf8").splitlines()]
        return {name: [row[name] for row in rows] for name in rows[0] if name not in ("question", "wanted", "adapter")}
    print(f"asking the base the {len(parts.test)} test questions …")
    answers = {
        "commonest": [constant_answer([wanted_answer(record) for record in parts.train])] * len(parts.test),
        "base": task.answers(model, parts.test),
    }
    if args.shots:
        shown = parts.train[:: max(1, len(parts.train) // args.shots)][: args.shots]
        answers[f"base, {args.shots} shown"] = task.answers(model, parts.test, shown)
    keep_answers(args.output, task, parts.test, answers)
    return answers


def keep_answers(output: Path, task: Task, part: Sequence[Record], answers: dict[str, list[str]]) -> None:
    """Every question with the wanted answer and all that were given, a line each."""
    lines = []
    for i, record in enumerate(part):
        row = {"question": task.chat(record)[:-1], "wanted": wanted_answer(record)}
        lines.append(json.dumps(row | {who: texts[i] for who, texts in answers.items()}, ensure_ascii=False))
    with replaced(output / "answers.jsonl") as (new,):
        new.write_text("\n".join(lines) + "\n", encoding="utf8")


def report(task: Task, parts: Splits[Record], answers: dict[str, list[str]]) -> None:
    """The scores, what is gained over the best that needs no training, and some answers to read."""
    print_scores({who: task.judge(texts, parts.test) for who, texts in answers.items()}, "adapter", task.free)
    for record, answer in list(zip(parts.test, answers["adapter"]))[:5]:
        print(f"\n{task.chat(record)[-2]['content'][:200]}\n  wanted: {wanted_answer(record)}\n  answer: {answer}")


def print_scores(scores: dict[str, dict[str, list[float]]], ours: str, free: Sequence[str]) -> None:
    """The scores of several on the same rows, and what one gains over the best of the others."""
    named = {f: f"{f} (words)" for f in free if f != "answer"}
    scores = {who: {named.get(f, f): values for f, values in found.items()} for who, found in scores.items()}
    print(score_table(scores))
    if free:
        print("words: the share of words that answer and wanted text have in common (F1). It says little about facts")
    print(f"\n{ours}, and the best of the others:\n{gains_over_best(scores, ours)}")


def hand_over(args: argparse.Namespace, model: Any, task: Task, parts: Splits[Record]) -> None:
    """Save the adapter with its tokenizer and a card whose lines ask it."""
    folder = args.output / "adapter"
    model.peft_config["default"].base_model_name_or_path = NAME if args.model == "smollm2" else args.model
    model.save_pretrained(folder, save_embedding_layers=False)
    task.tokenizer.save_pretrained(folder)
    question = next(turn["content"] for turn in reversed(task.chat(parts.test[0])[:-1]) if turn["role"] == "user")
    card = model_card(folder, question, system=task.system, max_new_tokens=task.room)
    (folder / "README.md").write_text(card, encoding="utf8")


def last_checkpoint(output: Path) -> str | None:
    """The newest checkpoint that is complete: the trainer writes trainer_state.json last."""
    found = [path.parent for path in output.glob("checkpoint-*/trainer_state.json")]
    return str(max(found, key=lambda path: int(path.name.split("-")[1]))) if found else None


def make_trainer(
    args: argparse.Namespace, model: Any, task: Task, parts: Splits[Record], rows: dict[str, Any], every: int
) -> Any:
    """TRL's trainer, which also scores answers to the validation part at each evaluation and keeps the best."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    class ScoringTrainer(SFTTrainer):
        """SFTTrainer that writes answers when it evaluates: the lowest loss does not mean the best answers."""

        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            metrics = super().evaluate()
            watched = parts.validation[: args.watch]
            metrics["eval_score"] = mean_score(task.judge(task.answers(self.model, watched), watched))
            self.log({"eval_score": metrics["eval_score"]})
            return metrics

        def create_model_card(self, *_: Any, **__: Any) -> None:
            """None: the card with lines that run is `hand_over`'s."""

    settings = SFTConfig(
        str(args.output), max_steps=every * args.looks, per_device_train_batch_size=args.batch // args.accumulate,
        gradient_accumulation_steps=args.accumulate, learning_rate=args.learning_rate,
        lr_scheduler_type="cosine", warmup_steps=max(1, every * args.looks // 10), max_length=args.max_length,
        eval_strategy="steps", eval_steps=every, save_strategy="steps", save_steps=every, save_total_limit=2,
        load_best_model_at_end=True, metric_for_best_model="eval_score", greater_is_better=True, logging_steps=every,
        report_to="none", seed=args.seed, completion_only_loss=True, **hardware()[1],
    )  # fmt: skip
    lora = LoraConfig(
        r=args.rank, lora_alpha=args.alpha, lora_dropout=args.dropout, target_modules="all-linear",
        task_type="CAUSAL_LM",
    )  # fmt: skip
    return ScoringTrainer(
        model, settings, train_dataset=datasets.Dataset.from_list(rows["train"]),
        eval_dataset=datasets.Dataset.from_list(rows["validation"]), processing_class=task.tokenizer, peft_config=lora,
    )  # fmt: skip


# --- afterwards --------------------------------------------------------------------------------------------------


def open_run(folder: Path, *, plain: bool = False) -> tuple[dict[str, Any], Any, Any]:
    """The settings of a run, its model with the adapter, and its tokenizer. `plain`: the base without 4 bits."""
    run = read_object(folder / "run.json")
    model, tokenizer = load(run["model"], quantise=run["quantise"])
    if plain and run["quantise"]:
        model = model.dequantize()
    return run, PeftModel.from_pretrained(model, folder / "adapter").eval(), tokenizer


def ask(args: argparse.Namespace) -> None:
    """Put a question to a trained run."""
    run, model, tokenizer = open_run(args.run)
    chat = [{"role": "system", "content": run["system"]}] if run["system"] else []
    chat.append({"role": "user", "content": args.question})
    print(without_thinking(write_answers(model, tokenizer, [chat], 256)[0]))


def merge(args: argparse.Namespace) -> None:
    """Fold a run's adapter into the base that it was scored on, after --quantise the 4-bit one, dequantised."""
    if args.folder.exists():
        raise ValueError(f"{args.folder} exists already: give another name")
    run, model, tokenizer = open_run(args.run, plain=True)
    model.merge_and_unload(safe_merge=True).save_pretrained(args.folder)
    tokenizer.save_pretrained(args.folder)
    print(f"a plain model in {args.folder}; its system turn is {run['system']!r}")


def compare(args: argparse.Namespace) -> None:
    """The scores of two runs on the same test rows, and what the second gains over the first."""
    runs = [args.run, args.other]
    rows = [[json.loads(line) for line in (run / "answers.jsonl").read_text("utf8").splitlines()] for run in runs]
    asked = [[(row["question"][-1], row["wanted"]) for row in part] for part in rows]
    if asked[0] != asked[1] or not all("adapter" in row for part in rows for row in part):
        raise ValueError(f"{args.run} and {args.other}: two finished runs with the same file, seed and --held-out")
    wanted, free = [row["wanted"] for row in rows[0]], read_object(args.run / "run.json")["free"]
    found = {
        str(run): judge_answers([row["adapter"] for row in part], wanted, free=free) for run, part in zip(runs, rows)
    }
    print_scores(found, str(args.other), free)
    print("A test part that chose between runs is a validation part: score the one that you keep on new rows.")


# --- the command line --------------------------------------------------------------------------------------------


def allowed(kind: type, says: str, good: Callable[[Any], bool]) -> Callable[[str], Any]:
    """A type for argparse that refuses what would only fail after the base was scored."""

    def parse(text: str) -> Any:
        with suppress(ValueError):
            if good(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"expected {says}, got {text!r}")

    return parse


COUNT = allowed(int, "a whole number from 1", lambda n: n >= 1)
COUNT_OR_NONE = allowed(int, "a whole number from 0", lambda n: n >= 0)
ABOVE_ZERO = allowed(float, "a number above 0", lambda x: 0 < x < float("inf"))
BELOW_ONE = allowed(float, "a number from 0, below 1", lambda x: 0 <= x < 1)
A_THIRD = allowed(float, "a share above 0, up to a third", lambda x: 0 < x <= 1 / 3)


def main() -> None:
    """The command line."""
    sys.stdout.reconfigure(line_buffering=True)  # a log file is written line by line, too
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    add_train(commands.add_parser("train", help="from a file to an adapter and its score"))
    two = commands.add_parser("ask", help="put a question to a run")
    two.add_argument("run", type=Path)
    two.add_argument("question")
    two.set_defaults(do=ask)
    three = commands.add_parser("merge", help="fold a run's adapter into its base")
    three.add_argument("run", type=Path)
    three.add_argument("folder", type=Path, help="a new folder")
    three.set_defaults(do=merge)
    four = commands.add_parser("compare", help="two runs on the same test rows")
    four.add_argument("run", type=Path)
    four.add_argument("other", type=Path)
    four.set_defaults(do=compare)
    args = parser.parse_args()
    if args.do is train and args.system == "none":
        args.system = ""
    elif args.do is train and args.answer and not args.system:
        args.system = f"Answer with {'one JSON object' if len(args.answer) > 1 else 'nothing but the answer'}."
    try:
        args.do(args)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(str(error))


def add_train(one: argparse.ArgumentParser) -> None:
    """The settings of `train`."""
    one.add_argument("file", type=Path, help=".csv, .tsv, or .jsonl with one object a line; it is only read")
    one.add_argument("--ask", nargs="+", help="the columns that the model is given; none: a file of chats")
    one.add_argument("--answer", nargs="+", help="the columns to answer with; several make a JSON object")
    one.add_argument("--delimiter", help='what separates the columns, such as ";"; default: a comma, in .tsv a tab')
    one.add_argument("--output", type=Path, required=True, help="a new folder")
    one.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --output")
    one.add_argument("--model", default="smollm2", help='"smollm2", a folder, or a name on the Hub (%(default)s)')
    one.add_argument(
        "--system", default="", help='the task in one line; "none": no such turn. Default: "Answer with …"'
    )
    one.add_argument("--quantise", action="store_true", help="QLoRA: the base in 4 bits")
    one.add_argument("--rank", type=COUNT, default=16, help="%(default)s")
    one.add_argument("--alpha", type=ABOVE_ZERO, default=32.0, help="%(default)s")
    one.add_argument("--dropout", type=BELOW_ONE, default=0.0, help="%(default)s")
    one.add_argument("--learning-rate", type=ABOVE_ZERO, help="default: by the model's family and size")
    one.add_argument("--passes", type=ABOVE_ZERO, default=3.0, help="how often each row is seen (%(default)s)")
    one.add_argument("--batch", type=COUNT, default=8, help="rows of a step (%(default)s)")
    one.add_argument("--accumulate", type=COUNT, default=1, help="parts of a step, for less memory (%(default)s)")
    one.add_argument("--max-length", type=COUNT, default=512, help="tokens of a row with its template (%(default)s)")
    one.add_argument(
        "--held-out", type=A_THIRD, default=0.15, help="share of rows to validate, and to test (%(default)s)"
    )
    one.add_argument("--looks", type=COUNT, default=4, help="evaluations, each with a checkpoint (%(default)s)")
    one.add_argument("--watch", type=COUNT, default=32, help="validation rows scored each time (%(default)s)")
    one.add_argument("--shots", type=COUNT_OR_NONE, default=4, help="examples in the prompt of the base (%(default)s)")
    one.add_argument("--seed", type=COUNT_OR_NONE, default=0, help="%(default)s")
    one.set_defaults(do=train)


if __name__ == "__main__":
    main()

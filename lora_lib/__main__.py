"""Train an adapter from a small config, in one process or in several.

With a config in a file, of which more below::

    python -m lora_lib train run.json
    torchrun --nproc-per-node=2 -m lora_lib train run.json

The config is one JSON object. "data" and "output" must be in it; for the others the values here are the defaults::

    {
      "data": "examples.jsonl",
      "output": "my-adapter",
      "model": "gpt2-mini",
      "method": "lora",
      "max_length": 256,
      "gradient_checkpointing": false,
      "lora": {"lora_rank": 8},
      "fit": {"steps": 100}
    }

- "data": a file of examples. Its name says what it holds: .jsonl has one {"prompt": …, "completion": …} a line, or one
  chat, {"messages": [{"role": …, "content": …}, …]}; .csv and .tsv have the columns prompt and completion. Or
  "restaurants", the book's own task.
- "output": the folder that the adapter is written to (or the whole model, with the method "full").
- "model": a name or a folder that `load_pretrained` takes.
- "method": "lora", or "full", which trains every weight of the model.
- "max_length": how many tokens an example may have; one that is longer is an error.
- "gradient_checkpointing": true needs less memory and more time.
- "lora": what `get_peft_model` takes, as far as JSON can hold it.
- "fit": what `lora_lib.training.fit` takes, likewise; "steps" must be in it. With "checkpoint", the name of a file, a
  run that was killed goes on when it is started again.

With torchrun each process reads its share of every batch, on its own GPU where there is one (nccl), else on the
CPU (gloo): the adapter is the one that a single process with the same "batch_size" would make.

What cannot be used is said in one line, before the training starts, and the exit status is 2.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from lora_lib.adapters.config import LoRAConfig
from lora_lib.data.examples import Encoded, encode_examples, encode_records
from lora_lib.data.readers import read_object, read_records
from lora_lib.data.restaurants import restaurant_data, to_examples
from lora_lib.gpt2.pretrained import load_pretrained, save_pretrained_folder
from lora_lib.gpt2.tokenizer import Tokenizer
from lora_lib.peft_wrapper import PeftModel, get_peft_model
from lora_lib.training.checkpoints import check_writable
from lora_lib.training.distributed import process_group
from lora_lib.training.loop import History, check_settings, fit


def _names(function: Callable[..., Any], *not_in_json: str) -> list[str]:
    return [name for name in signature(function).parameters if name not in not_in_json]


LORA = _names(get_peft_model, "model", "settings")
LORA += [name for name in _names(LoRAConfig, "r", "kind") if name not in LORA]
FIT = _names(fit, "model", "train", "lr_ratio", "validation", "validate_every", "on_validation")
HELP = f"""{__doc__}
All settings of "lora":
{textwrap.fill(", ".join(LORA), 110)}
All settings of "fit":
{textwrap.fill(", ".join(FIT), 110)}
"""


@dataclass
class TrainConfig:
    """What `python -m lora_lib train` reads from its file; the module's own text explains each field."""

    data: str
    output: str
    model: str = "gpt2-mini"
    method: str = "lora"
    max_length: int = 256
    gradient_checkpointing: bool = False
    lora: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=lambda: {"steps": 100})

    @classmethod
    def read(cls, path: Path) -> TrainConfig:
        """The config in a JSON file. Raises ValueError, naming the field, for what cannot be used."""
        values = read_object(path)
        _check_names(path, "", values, [f.name for f in fields(cls)])
        for name in ("data", "output"):
            if name not in values:
                raise ValueError(f'{path}: "{name}" is missing, and must be given')
        config = cls(**values)
        wanted = {
            "data": (_is_text, "a text"),
            "output": (_is_text, "a text"),
            "model": (_is_text, "a text"),
            "method": (lambda value: value in ("lora", "full"), '"lora" or "full"'),
            "max_length": (lambda value: type(value) is int and value >= 1, "a whole number from 1"),
            "gradient_checkpointing": (lambda value: isinstance(value, bool), "true or false, without quotes"),
            "lora": (lambda value: isinstance(value, dict), "an object, {…}"),
            "fit": (lambda value: isinstance(value, dict), "an object, {…}"),
        }
        for name, (fine, expected) in wanted.items():
            value = getattr(config, name)
            if not fine(value):
                raise ValueError(
                    f"{path}: {name} = {json.dumps(value)} is not a value it can have: expected {expected}"
                )
        _check_names(path, "lora.", config.lora, LORA)
        _check_names(path, "fit.", config.fit, FIT)
        if "steps" not in config.fit:
            raise ValueError(f'{path}: "fit" needs "steps", the number of steps to train')
        try:
            check_settings(config.fit)
        except ValueError as error:
            raise ValueError(f"{path}: fit.{error}") from error
        return config


def train(config: TrainConfig) -> History:
    """Train what `config` says, in every process of a group alike, and write the result to its output folder."""
    check_writable(Path(config.output))
    model, tokenizer = load_pretrained(config.model)
    examples = read_examples(config.data, tokenizer, config.max_length)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    torch.manual_seed(config.fit.get("seed", 0))  # for A, which is drawn alike in every process
    with process_group() as (device, first):
        model.to(device)
        trained = model if config.method == "full" else get_peft_model(model, **config.lora)
        history = fit(trained, examples, **config.fit)
        if first and isinstance(trained, PeftModel):
            trained.save_pretrained(config.output)
        elif first:
            save_pretrained_folder(model, tokenizer, config.output)
        if first:
            print(history)
            print(f"gradients summed over the processes: {history.reduced_bytes / len(history.loss):,.0f} bytes a step")
    return history


def read_examples(source: str, tokenizer: Tokenizer, max_length: int) -> list[Encoded]:
    """The examples to train on: "restaurants", or a file, read as `lora_lib.data.readers.read_records` does."""
    if source == "restaurants":
        return encode_examples(to_examples(restaurant_data().train), tokenizer, max_length)
    return encode_records(read_records(source), tokenizer, max_length)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _check_names(path: Path, prefix: str, values: dict[str, Any], known: list[str]) -> None:
    for name in values:
        if name not in known:
            raise ValueError(f"{path}: there is no setting {prefix}{name}; expected one of {', '.join(known)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, and train. Exits with status 2, and one line, for what cannot be used."""
    parser = argparse.ArgumentParser("python -m lora_lib", description="The command line of the LoRA book's library.")
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser(
        "train",
        help="train what a JSON file says",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    training.add_argument("config", type=Path, help="the JSON file")
    args = parser.parse_args(arguments)
    try:
        train(TrainConfig.read(args.config))
    except (ValueError, OSError, FloatingPointError) as error:
        parser.exit(2, f"{' '.join(str(error).split())}\n")


if __name__ == "__main__":
    main()

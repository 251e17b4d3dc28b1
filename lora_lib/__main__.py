"""Train an adapter from a small config, in one process or in several.

With a config in a file, of which more below::

    python -m lora_lib train run.json
    torchrun --nproc-per-node=2 -m lora_lib train run.json

The config is one JSON object. Only "data" and "output" must be in it::

    {
      "data": "examples.jsonl",       one {"prompt": …, "completion": …} a line; or "restaurants", the book's own task
      "output": "my-adapter",         folder for the adapter (or for the whole model, where all of it is trained)
      "model": "gpt2-mini",           a name or folder that load_pretrained takes
      "method": "lora",               or "full": every weight of the model
      "max_length": 256,              tokens in an example, at most
      "gradient_checkpointing": false,
      "lora": {"lora_rank": 8},       what get_peft_model takes
      "fit": {"steps": 100}           what fit takes; "checkpoint" lets a run that was killed go on
    }

With torchrun each process reads its share of every batch, on its own GPU where there is one (nccl), else on the
CPU (gloo): the adapter is the one that a single process with the same "batch_size" would make.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field, fields
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from lora_lib.distributed import process_group
from lora_lib.examples import Example, encode_examples
from lora_lib.files import read_jsonl
from lora_lib.peft_wrapper import PeftModel, get_peft_model
from lora_lib.pretrained import load_pretrained, save_pretrained_folder
from lora_lib.restaurants import restaurant_data, to_examples
from lora_lib.training import History, fit


@dataclass
class TrainConfig:
    """What `python -m lora_lib train` reads from its file; see the module's own text."""

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
        try:
            values = json.loads(path.read_text(encoding="utf8"))
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path}: expected one JSON object, found {type(values).__name__}")
        _check_names(path, "", values, [f.name for f in fields(cls)])
        for name in ("data", "output"):
            if not isinstance(values.get(name), str):
                raise ValueError(f'{path}: "{name}" must be given, as a text; it is {values.get(name)!r}')
        config = cls(**values)
        if config.method not in ("lora", "full"):
            raise ValueError(f"{path}: method is {config.method!r}, expected 'lora' or 'full'")
        _check_names(path, "lora.", config.lora, list(signature(get_peft_model).parameters)[1:])
        _check_names(path, "fit.", config.fit, list(signature(fit).parameters)[2:])
        return config


def train(config: TrainConfig) -> History:
    """Train what `config` says, in every process of a group alike, and write the result to its output folder."""
    model, tokenizer = load_pretrained(config.model)
    examples = encode_examples(read_examples(config.data), tokenizer, config.max_length)
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


def read_examples(source: str) -> list[Example]:
    """The examples to train on: "restaurants", or a file, read as `files.read_jsonl` does."""
    if source == "restaurants":
        return to_examples(restaurant_data().train)
    return [example for record in read_jsonl(source) for example in record.exchanges]


def _check_names(path: Path, prefix: str, values: dict[str, Any], known: list[str]) -> None:
    for name in values:
        if name not in known:
            raise ValueError(f"{path}: there is no setting {prefix}{name}; expected one of {', '.join(known)}")


def main() -> None:
    """Read the command line, and train."""
    parser = argparse.ArgumentParser(
        "python -m lora_lib", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train what a JSON file says")
    training.add_argument("config", type=Path)
    args = parser.parse_args()
    try:
        train(TrainConfig.read(args.config))
    except (ValueError, OSError) as error:  # a wrong setting is told in a line
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()

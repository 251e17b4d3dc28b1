"""The three commands of `python -m lora_lib`, and the config that they read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lora_lib.adapters.config import LoRAConfig, config_of, refusal
from lora_lib.adapters.files import CONFIG_FILE
from lora_lib.data.chats import ask_records, encode_records, prompt_ids
from lora_lib.data.examples import Record, Splits, split
from lora_lib.data.readers import read_object, read_records
from lora_lib.data.scores import constant_answer, gains_over_best, judge_answers, mean_score, score_table
from lora_lib.gpt2.generation import generate_text
from lora_lib.gpt2.pretrained import save_pretrained_folder
from lora_lib.gpt2.tokenizer import Tokenizer
from lora_lib.peft_wrapper import PeftModel, get_peft_model
from lora_lib.run.models import load_any
from lora_lib.settings import FLAG, Rule, check, did_you_mean, one_of, optional, rules, setting, whole
from lora_lib.training.checkpoints import check_checkpoint_path, check_writable
from lora_lib.training.config import FitConfig
from lora_lib.training.distributed import process_group
from lora_lib.training.loop import History, fit

_TEXT = Rule("a text that is not empty", lambda value: isinstance(value, str) and value != "")
_NAMES = Rule(
    "a list of names", lambda value: isinstance(value, list) and all(isinstance(name, str) and name for name in value)
)
_PART = Rule(
    "a share of the data from 0, below 1, or the name of a file",
    lambda value: _TEXT.allows(value) or (type(value) in (int, float) and 0 <= value < 1),
)
_OBJECT = Rule("an object, {…}", lambda value: isinstance(value, dict))
FIT = [name for name in rules(FitConfig) if name != "lr_ratio"]  # a function cannot be written in JSON
RUN_FILE = "run.json"  # in the output: the config that it was trained with
LORA = [*(name for name in rules(LoRAConfig) if name != "adapter_cls"), "lora_rank", "adapter_name"]


@dataclass
class RunConfig:
    """What the commands read from their file. `python -m lora_lib train --help` lists the fields."""

    data: str = setting(_TEXT, help="a file of examples")
    output: str = setting(_TEXT, help='the folder for the adapter, or for the whole model with the method "full"')
    model: str = setting(_TEXT, "gpt2-mini", help="the name of a model, or its folder")
    ask: list[str] = setting(_NAMES, default_factory=list, help="columns to ask with, instead of prompt")
    answer: list[str] = setting(_NAMES, default_factory=list, help="columns to answer with, instead of completion")
    system: str | None = setting(optional(_TEXT), None, help="a system turn before every question, for a chat model")
    validation: float | str = setting(_PART, 0, help='a share of "data" to validate with, or another file')
    test: float | str = setting(_PART, 0, help='a share of "data" for the command score, or another file')
    dtype: str = setting(one_of("float32", "bfloat16"), "float32", help="the type of the model's weights")
    method: str = setting(one_of("lora", "full"), "lora", help='"lora", or "full", which trains every weight')
    max_length: int = setting(whole(1), 256, help="how many tokens an example may have; a longer one is an error")
    max_new_tokens: int = setting(whole(1), 64, help="how many tokens an answer may have")
    gradient_checkpointing: bool = setting(FLAG, False, help="true needs less memory and more time")
    select: str = setting(one_of("loss", "score"), "loss", help="what the best validation has: low loss, or high score")
    lora: dict[str, Any] = setting(_OBJECT, default_factory=dict, help="settings of `LoRAConfig`")
    overwrite: bool = setting(FLAG, False, help="true replaces the result of another run in the output folder")
    fit: dict[str, Any] = setting(_OBJECT, default_factory=lambda: {"steps": 100}, help="settings of `FitConfig`")

    def __post_init__(self) -> None:
        check(self)
        self.file: Path | None = None  # where it was read from
        self.lora_config, self.fit_config = _lora_config(self.lora), _fit_config(self.fit)
        if self.method == "full" and self.lora:
            raise ValueError('method is "full", which trains every weight, so "lora" would do nothing: leave it out')
        if bool(self.ask) != bool(self.answer):
            raise ValueError('"ask" and "answer" name columns together: give both, or leave both out')
        if self.select == "score" and not self.validation:
            raise ValueError('select is "score", which needs a "validation"')

    @classmethod
    def read(cls, path: Path) -> RunConfig:
        """The config in a JSON file. Raises ValueError, naming the field, for what cannot be used."""
        values = read_object(path)
        try:
            _check_names("", values, list(rules(cls)))
            for name in ("data", "output"):
                if name not in values:
                    raise ValueError(f'"{name}" is missing, and must be given')
            config = cls(**values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        config.file = path
        return config

    def check_paths(self) -> None:
        """Raise ValueError or OSError if training could not write its results, or would overwrite what it reads."""
        output, checkpoint = Path(self.output), self.fit_config.checkpoint
        if output.resolve() == Path(self.model).resolve():
            raise ValueError(f'"output" is the folder of "model", {output}, which would be overwritten: name another')
        if checkpoint is not None:
            read = [Path(p) for p in (self.file, self.data, self.validation, self.test) if isinstance(p, (str, Path))]
            if Path(checkpoint).resolve() in [p.resolve() for p in [*read, output]]:
                raise ValueError(f"fit.checkpoint is {checkpoint}, which is used for something else: name another file")
            check_checkpoint_path(Path(checkpoint))
        check_writable(output)
        holds = any((output / name).is_file() for name in (CONFIG_FILE, "config.json"))  # an adapter, or a whole model
        if not self.overwrite and (holds or self._trained_with()) and self._trained_with() != self._identity():
            raise ValueError(
                f'"output" {output} holds another run\'s result: name another folder, or set "overwrite": true'
            )

    def check_split(self) -> None:
        """Raise ValueError if the trained result may have seen items of this test part."""
        saved, now = self._trained_with() or {}, self._identity()
        for name in ("data", "ask", "answer", "validation", "test", "seed"):
            if saved.get(name, now[name]) != now[name]:
                raise ValueError(
                    f"{self.output} was trained with {name} = {saved[name]!r}, now it is {now[name]!r}: test items may "
                    "have been trained on. Put it back, or train again"
                )

    def write_identity(self) -> None:
        """Write the settings of this run into its output folder."""
        (Path(self.output) / RUN_FILE).write_text(json.dumps(self._identity(), indent=1) + "\n", encoding="utf8")

    def _identity(self) -> dict[str, Any]:
        values = {name: value for name, value in asdict(self).items() if name not in ("output", "overwrite")}
        return {**values, "seed": self.fit_config.seed}

    def _trained_with(self) -> dict[str, Any] | None:
        path = Path(self.output) / RUN_FILE
        return read_object(path) if path.is_file() else None


def _lora_config(values: dict[str, Any]) -> LoRAConfig:
    _check_names("lora.", {name: value for name, value in values.items() if not refusal(name)}, LORA)
    try:
        return config_of({name: value for name, value in values.items() if name != "adapter_name"})
    except (ValueError, TypeError) as error:
        raise ValueError(f"lora.{error}") from error


def _fit_config(values: dict[str, Any]) -> FitConfig:
    _check_names("fit.", values, FIT)
    try:
        return FitConfig(**values)
    except ValueError as error:
        raise ValueError(f"fit.{error}".replace("fit.fit ", "fit ")) from error


def _check_names(prefix: str, values: dict[str, Any], known: list[str]) -> None:
    for name in values:
        if name not in known:
            near = did_you_mean(name, known)
            raise ValueError(f"there is no setting {prefix}{name}.{near} Expected one of {', '.join(known)}")


def read_parts(config: RunConfig) -> Splits[Record]:
    """The records to train on, to validate with and to test on; the last two may be empty."""
    parts = Splits(_read(config.data, config), [], [])
    shares = {name: getattr(config, name) for name in ("validation", "test")}
    cut = {name: 0.0 if isinstance(share, str) else float(share) for name, share in shares.items()}
    if any(cut.values()):
        parts = split(parts.train, **cut, seed=config.fit_config.seed)
    files = {name: _read(share, config) for name, share in shares.items() if isinstance(share, str)}
    for name, records in files.items():
        trained = {record.prompts for record in parts.train}
        if shared := sum(record.prompts in trained for record in records):
            raise ValueError(f'{shared} of {len(records)} items in "{name}" are in "data" too: take them out of one')
    return Splits(parts.train, files.get("validation", parts.validation), files.get("test", parts.test))


def _read(path: str, config: RunConfig) -> list[Record]:
    if path == "restaurants":
        raise ValueError(
            'data is "restaurants", which is not a file: write one with '
            "python -m lora_book restaurants > restaurants.jsonl, and name it"
        )
    return read_records(path, config.ask or None, config.answer or None)


def train(config: RunConfig) -> History:
    """Train what `config` says, in every process of a group, and write the result to its output folder."""
    config.check_paths()
    model, tokenizer = load_any(config.model, config.dtype)
    parts = read_parts(config)
    examples, held_out = (
        encode_records(records, tokenizer, config.max_length, system=config.system) if records else []
        for records in (parts.train, parts.validation)
    )
    if config.gradient_checkpointing:  # the first name is that of newer releases of transformers
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    torch.manual_seed(config.fit_config.seed)  # for A, which every process draws in the same way
    with process_group() as (device, first):
        model.to(device)
        trained = model
        if config.method == "lora":
            trained = get_peft_model(model, config.lora_config, adapter_name=config.lora.get("adapter_name", "default"))
        by = _scorer(tokenizer, parts.validation, config) if config.select == "score" else None
        history = fit(trained, examples, config.fit_config, validation=held_out or None, score=by)
        if first:
            save(trained, tokenizer, config.output)
            config.write_identity()
            print(history)
            print(f"gradients summed over the processes: {history.reduced_bytes / len(history.loss):,.0f} bytes a step")
    return history


def save(trained: Any, tokenizer: Any, output: str) -> None:
    """Write an adapter, or a whole model with its tokenizer, to the output folder."""
    if isinstance(trained, PeftModel):
        trained.save_pretrained(output)
    elif isinstance(tokenizer, Tokenizer):
        save_pretrained_folder(trained, tokenizer, output)
    else:
        trained.save_pretrained(output)
        tokenizer.save_pretrained(output)


def _scorer(tokenizer: Any, records: list[Record], config: RunConfig) -> Any:
    """A function that gives a model's score on these records: the mean over JSON fields, or else over words."""
    prompts, wanted = ask_records(records, tokenizer, system=config.system)

    def score(model: Any) -> float:
        return mean_score(judge_answers(generate_text(model, tokenizer, prompts, config.max_new_tokens), wanted))

    return score


def open_trained(config: RunConfig, base: Any) -> Any:
    """The saved result of the training, in evaluation mode: the base with its adapter, or a whole model."""
    if config.method == "full":
        return load_any(config.output, config.dtype)[0].to(_device())
    return PeftModel.from_pretrained(base, config.output, config.lora.get("adapter_name", "default"))


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def generate(config: RunConfig, prompts: Sequence[str], *, base: bool = False, **how: Any) -> list[str]:
    """Answer these prompts with the trained model, or with the `base`; `how` goes to `generate_text`."""
    model, tokenizer = load_any(config.model, config.dtype)
    model.to(_device())
    asked: list[Any] = list(prompts)
    if not isinstance(tokenizer, Tokenizer) and tokenizer.chat_template:
        before = [{"role": "system", "content": config.system}] if config.system else []
        asked = [prompt_ids([*before, {"role": "user", "content": prompt}], tokenizer) for prompt in prompts]
    answering = model if base else open_trained(config, model)
    return generate_text(answering, tokenizer, asked, config.max_new_tokens, **how)


def score(config: RunConfig) -> str:
    """Score the commonest answer, the base and the trained model on the test part, with intervals over its items."""
    if not config.test:
        raise ValueError('there is nothing to score on: give "test", a share of the data or a file')
    config.check_split()
    parts = read_parts(config)
    model, tokenizer = load_any(config.model, config.dtype)
    model.to(_device())
    prompts, wanted = ask_records(parts.test, tokenizer, system=config.system)
    constant = constant_answer(ask_records(parts.train, tokenizer, system=config.system)[1])
    judged = {"constant": judge_answers([constant] * len(wanted), wanted)}
    judged |= {"base": judge_answers(generate_text(model, tokenizer, prompts, config.max_new_tokens), wanted)}
    trained = open_trained(config, model)
    answers = generate_text(trained, tokenizer, prompts, config.max_new_tokens)
    judged["trained"] = judge_answers(answers, wanted)
    gains = gains_over_best(judged, "trained")
    return f"{len(wanted)} test items\n{score_table(judged)}\nWhat training gained over the better of the two:\n{gains}"

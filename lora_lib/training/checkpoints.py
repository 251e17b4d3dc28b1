"""Checkpoints of a training run: a run that was killed resumes from the last one.

Everything random in `fit` follows from its seed and the number of the step. So a checkpoint needs only the trained
weights, the optimizer's averages, the best weights so far, and the history. It is one file of tensors and text (see
`lora_lib.tensor_files`), with a checksum over all of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from errno import ENOTDIR
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from torch import Tensor

from lora_lib.tensor_files import digest, read_tensors, replaced, write_tensors

Weights = Mapping[str, Tensor]
# The files of save_pretrained and save_pretrained_folder: a checkpoint of that name would overwrite them, or be lost.
TAKEN = ("adapter_model.safetensors", "adapter_config.json", "model.safetensors", "config.json")


def save_checkpoint(
    path: Path,
    weights: Weights,
    optimizer: torch.optim.Optimizer,
    settings: dict[str, Any],
    history: dict[str, Any],
    best: Weights | None = None,
) -> None:
    """Write the state of a run to the file `path`. If that fails, or the process is killed, the old file stays."""
    tensors = {f"{name}/weight": weight.detach() for name, weight in weights.items()}
    for name, weight in weights.items():
        tensors |= {f"{name}/{key}": value for key, value in optimizer.state[weight].items()}
    tensors |= {f"{name}/best": weight for name, weight in (best or {}).items()}
    texts = {"settings": json.dumps(settings), "history": json.dumps(history)}
    with replaced(path) as (part,):
        write_tensors(part, tensors, {**texts, "checksum": digest(tensors, json.dumps(texts, sort_keys=True))})


def load_checkpoint(
    path: Path, weights: Weights, optimizer: torch.optim.Optimizer, settings: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Load a saved state into `weights` and `optimizer`; returns the history and the best weights, if any were kept.

    Raises ValueError if the file is not a checkpoint, is damaged, or belongs to a run with other `settings`; nothing is
    changed then.
    """
    try:
        tensors, texts = read_tensors(path)
        checksum = texts.pop("checksum")
        saved, history = json.loads(texts["settings"]), json.loads(texts["history"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a checkpoint that fit wrote: {error!r}") from error
    if digest(tensors, json.dumps(texts, sort_keys=True)) != checksum:
        raise ValueError(f"{path} is damaged: its checksum does not fit. Delete it to start the run again")
    for name, value in settings.items():
        if saved.get(name, value) != value:  # a file of an earlier release may lack a name
            raise ValueError(
                f"{path} belongs to another run: its {name} is {saved.get(name)}, this run's is {value}. "
                "Use the same settings to go on with it, or another file to start again"
            )
    for name, weight in weights.items():
        if (found := tensors.get(f"{name}/weight")) is None or found.shape != weight.shape:
            raise ValueError(f"{path} belongs to another model: it has no weight {name} of {tuple(weight.shape)}")
    state, best = optimizer.state_dict(), {}
    for i, (name, weight) in enumerate(weights.items()):
        kept = {key.rpartition("/")[2]: tensor for key, tensor in tensors.items() if key.rpartition("/")[0] == name}
        weight.data.copy_(kept.pop("weight"))
        if "best" in kept:
            best[name] = kept.pop("best").to(weight.device)
        state["state"][i] = kept
    optimizer.load_state_dict(state)
    return history, best


def check_checkpoint_path(path: Path) -> None:
    """Raise ValueError or OSError if a checkpoint of this name could not be written, or would overwrite a model."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file in it, {path / 'run.safetensors'} for example")
    if path.name in TAKEN:
        raise ValueError(f"a checkpoint cannot be called {path.name}: a model or an adapter is saved under this name")
    check_writable(path.parent)


def check_writable(folder: Path) -> None:
    """Raise OSError, naming `folder`, if it could not be created or written to. Nothing is created."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        if not there.is_dir():
            raise OSError(ENOTDIR, f"{there} is not a folder")
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OSError(f"{folder} cannot be written to: {error.strerror}; choose another place") from error


def fingerprint(tensors: Iterable[Tensor], text: str = "") -> str:
    """Twelve hexadecimal digits (of SHA-256), the same for equal tensors and `text` and different otherwise."""
    return digest({str(i): tensor for i, tensor in enumerate(tensors)}, text)[:12]

"""Checkpoints of a training run: a run that was killed goes on from the last one.

What is random in `fit` follows from its seed and the number of the step. So a checkpoint needs only the trained
weights, the optimizer's averages, and the history. It is one file of tensors and text: see `lora_lib.tensor_files`.
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


def save_checkpoint(
    path: Path, weights: Weights, optimizer: torch.optim.Optimizer, settings: dict[str, Any], history: dict[str, Any]
) -> None:
    """Write the state of a run to the file `path`. A process that is killed while it writes keeps the old file.

    Raises OSError when the disk will not take the new file; the old one is then still there.
    """
    tensors = {f"{name}/weight": weight.detach() for name, weight in weights.items()}
    for name, weight in weights.items():
        tensors |= {f"{name}/{key}": value for key, value in optimizer.state[weight].items()}
    with replaced(path) as (part,):
        write_tensors(part, tensors, {"settings": json.dumps(settings), "history": json.dumps(history)})


def check_writable(folder: Path) -> None:
    """Raise OSError, naming `folder`, where it could not be made or written to; nothing is made."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        if not there.is_dir():
            raise OSError(ENOTDIR, f"{there} is no folder")
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OSError(f"{folder} cannot be written to: {error.strerror}; choose another place") from error


def load_checkpoint(
    path: Path, weights: Weights, optimizer: torch.optim.Optimizer, settings: dict[str, Any]
) -> dict[str, Any]:
    """Put a saved state into `weights` and `optimizer`; returns the history.

    Raises ValueError when the file is no checkpoint, or that of a run with other `settings`; nothing is changed then.
    """
    try:
        tensors, texts = read_tensors(path)
        saved, history = json.loads(texts["settings"]), json.loads(texts["history"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a checkpoint that fit wrote: {error!r}") from error
    for name, value in settings.items():
        if saved.get(name) != value:
            raise ValueError(
                f"{path} belongs to another run: its {name} is {saved.get(name)}, this run's is {value}. "
                "Use the same settings to go on with it, or another file to start anew"
            )
    state = optimizer.state_dict()
    for i, (name, weight) in enumerate(weights.items()):
        kept = {key.rpartition("/")[2]: tensor for key, tensor in tensors.items() if key.rpartition("/")[0] == name}
        weight.data.copy_(kept.pop("weight"))
        state["state"][i] = kept
    optimizer.load_state_dict(state)
    return history


def fingerprint(tensors: Iterable[Tensor], text: str = "") -> str:
    """Twelve hexadecimal digits that are equal for equal tensors and `text`, and differ for others (by SHA-256)."""
    return digest({str(i): tensor for i, tensor in enumerate(tensors)}, text)[:12]

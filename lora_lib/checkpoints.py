"""Checkpoints of a training run: a run that was killed goes on from the last one.

What is random in `fit` follows from its seed and the number of the step, so little has to be kept: the trained
weights, the optimizer's averages, and the history. They are one safetensors file, which holds tensors and text. A
pickle, as `torch.save` writes, would also hold code, and loading it would run that.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

Weights = Mapping[str, Tensor]


def save_checkpoint(
    path: Path, weights: Weights, optimizer: torch.optim.Optimizer, settings: dict[str, Any], history: dict[str, Any]
) -> None:
    """Write the state of a run. Whoever is killed meanwhile keeps the checkpoint before: the new one is whole first."""
    tensors = {f"{name}/weight": weight.detach() for name, weight in weights.items()}
    for name, weight in weights.items():
        tensors |= {f"{name}/{key}": value for key, value in optimizer.state[weight].items()}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_file(tensors, part, {"settings": json.dumps(settings), "history": json.dumps(history)})
    with part.open("rb") as file:
        os.fsync(file.fileno())  # on the disk, before it takes the old one's name
    os.replace(part, path)


def check_writable(folder: Path) -> None:
    """Raise OSError, naming `folder`, where it could not be made or written to; nothing is made."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
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
        with safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        saved, history = json.loads(texts["settings"]), json.loads(texts["history"])
    except (SafetensorError, KeyError, ValueError) as error:
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
    """A short name for these very numbers: equal for equal tensors, and different for any others."""
    found = hashlib.sha256(text.encode())
    for tensor in tensors:
        found.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:12]

"""Files of tensors: safetensors, written whole or not at all, and read with errors that say what is wrong.

A safetensors file holds tensors and text. A pickle, as `torch.save` writes, may also hold code that runs when it is
opened, so none is ever read.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def replaced(*paths: Path) -> Iterator[list[Path]]:
    """Write files beside those at `paths`, under names that nobody else has; in the end they take their place.

    Each is on the disk before it takes its place, in the order of `paths`. Whoever fails or is killed before that
    leaves the old files as they were. Raises OSError when the disk will not take the new ones.
    """
    mark = f".{os.getpid()}-{uuid.uuid4().hex[:8]}.part"
    parts = [path.with_name(path.name + mark) for path in paths]
    try:
        for folder in {path.parent for path in paths}:
            folder.mkdir(parents=True, exist_ok=True)
        yield parts
        for part in parts:
            with part.open("rb+") as file:
                os.fsync(file.fileno())
        for part, path in zip(parts, paths):
            os.replace(part, path)
    except (OSError, SafetensorError) as error:
        names = " and ".join(path.name for path in paths)
        raise OSError(
            f"{names} could not be saved to {paths[0].parent}: {error}; an older one there is unharmed"
        ) from error
    finally:
        for part in parts:
            with suppress(OSError):  # of no weight beside the error that brought us here
                part.unlink()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
    """Write tensors, from whatever device, and texts into a file. For a file that exists see `replaced`."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, dict(texts))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, on the CPU, and its texts. Raises ValueError when it is no whole safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 over tensors, with their names, types and shapes, and a text: equal for equal ones and no others."""
    found = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()

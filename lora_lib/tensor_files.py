"""Files of tensors: safetensors, written whole or not at all, and read with errors that say what is wrong.

A safetensors file holds tensors and text. A pickle, which `torch.save` writes, can also hold code that runs when the
file is opened, so this library reads none.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def replaced(*paths: Path) -> Iterator[list[Path]]:
    """Yield temporary paths to write to, beside `paths`; afterwards each new file replaces the old one, in this order.

    All are on the disk before the first is renamed. A process that dies before that leaves the old files, and one that
    dies between two renames leaves files of two saves. The weights notice that when they are read: pass them last.
    Raises OSError if the files cannot be written; the old ones are then unchanged.
    """
    mark = f".{os.getpid()}-{uuid.uuid4().hex[:8]}.part"
    parts = [path.with_name(path.name + mark) for path in paths]
    left = "an older one is unchanged"
    try:
        for folder in {path.parent for path in paths}:
            folder.mkdir(parents=True, exist_ok=True)
        yield parts
        for part in parts:
            with part.open("rb+") as file:
                os.fsync(file.fileno())
        for part, path in zip(parts, paths):
            os.replace(part, path)
            left = "some of these files are new already"
    except (OSError, SafetensorError) as error:
        names = " and ".join(path.name for path in reversed(paths))  # the weights first
        raise OSError(f"{names} could not be saved to {paths[0].parent}: {error}; {left}") from error
    finally:
        for part in parts:
            with suppress(OSError):  # the error that led here matters more
                part.unlink()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
    """Write tensors, from any device, and texts into a file. Use `replaced` to overwrite a file safely."""
    save_file({name: whole(tensor).cpu().contiguous() for name, tensor in tensors.items()}, path, dict(texts))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, on the CPU, and its texts.

    Raises ValueError if it is not a complete safetensors file, and OSError if it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error}; check its permissions") from error


def read_json(path: Path) -> Any:
    """What is in a JSON file. Raises OSError if it cannot be read, and ValueError if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error.strerror}") from error


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 of tensors, with their names, types and shapes, and of a text."""
    found = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(whole(tensor).cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def whole(tensor: Tensor) -> Tensor:
    """A tensor detached from the graph, and gathered if it is sharded over several processes (FSDP2)."""
    spread: Any = tensor.detach()
    return spread.full_tensor() if hasattr(spread, "full_tensor") else spread

"""Files of tensors: safetensors, written whole or not at all, and read with errors that say what is wrong.

A safetensors file holds tensors and text. A pickle, which `torch.save` writes, can also hold code that runs when the
file is opened, so this library reads none.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_LEFT_OVER = 3600  # seconds without a change after which an unfinished file belongs to a process that was killed


@contextmanager
def replaced(*paths: Path) -> Iterator[list[Path]]:
    """Yield temporary paths to write to, beside `paths`; afterwards the new files replace the old ones, all or none.

    All are on the disk before the first is renamed. If the process dies before that, the old files are still there. If
    it dies during the renames, some files are in place and the others end in `.new`: `current` finds the complete set.
    Raises OSError if the files cannot be written; the old ones are then unchanged.
    """
    mark = f".{os.getpid()}-{uuid.uuid4().hex[:8]}"
    parts, news = ([path.with_name(path.name + mark + end) for path in paths] for end in (".part", ".new"))
    complete = False
    try:
        for folder in {path.parent for path in paths}:
            folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            _remove_left_over(path, "part")
        yield parts
        for part in parts:
            with part.open("rb+") as file:
                os.fsync(file.fileno())
        for part, new in zip(parts, news):
            os.replace(part, new)
        complete = True  # from here on `current` finds the new version
        for new, path in zip(news, paths):
            os.replace(new, path)
        for path in paths:
            _remove_left_over(path, "new")
    except (OSError, SafetensorError) as error:
        names = " and ".join(path.name for path in paths)
        left = "the new version is complete, in part under names in .new" if complete else "an older one is unchanged"
        raise OSError(f"{names} could not be saved to {paths[0].parent}: {error}; {left}") from error
    finally:
        for path in parts if complete else parts + news:
            with suppress(OSError):  # the error that led here matters more
                path.unlink()


def current(*paths: Path) -> list[Path]:
    """The newest complete version of these files: `paths`, unless a save was killed while it renamed them.

    `paths` must be in the order in which `replaced` was given them.
    """
    last = paths[-1]
    for new in _unfinished(last, "new"):
        with suppress(FileNotFoundError):
            if new.stat().st_mtime_ns < last.stat().st_mtime_ns:
                continue  # a later save has been finished since
        if new.exists():
            mark = new.name.removeprefix(last.name)
            found = [path.with_name(path.name + mark) for path in paths]
            return [new if new.exists() else path for new, path in zip(found, paths)]
    return list(paths)


def _unfinished(path: Path, end: str) -> list[Path]:
    """Files beside `path` that `replaced` has not finished, the newest first."""
    name, found = re.compile(re.escape(path.name) + rf"\.\d+-[0-9a-f]{{8}}\.{end}"), {}
    for other in path.parent.glob("*." + end):
        if name.fullmatch(other.name):
            with suppress(FileNotFoundError):  # its writer has just finished
                found[other] = other.stat().st_mtime_ns
    return sorted(found, key=found.__getitem__, reverse=True)


def _remove_left_over(path: Path, end: str) -> None:
    for other in _unfinished(path, end):
        with suppress(OSError):  # another process may be removing it too
            if time.time() - other.stat().st_mtime > _LEFT_OVER:
                other.unlink()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
    """Write tensors, from any device, and texts into a file. Use `replaced` to overwrite a file safely."""
    save_file({name: whole(tensor).cpu().contiguous() for name, tensor in tensors.items()}, path, dict(texts))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, on the CPU, and its texts. Raises ValueError if it is not a complete safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


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

"""Processes of their own for tests, without the seconds that importing PyTorch takes in each.

A server process imports it once, before it computes anything, and each new process is a copy of that one. Windows has
no such copies, and on a Mac its own libraries do not stand them: there each process imports anew.
"""

import contextlib
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

_COPIES = sys.platform == "linux"
_CONTEXT = multiprocessing.get_context("forkserver" if _COPIES else "spawn")
if _COPIES:  # _dynamo is what the first optimizer of a process imports
    _CONTEXT.set_forkserver_preload(["torch", "torch._dynamo", "tqdm", "tiktoken", "safetensors.torch"])


class Ended(NamedTuple):
    """How a process ended, negative for a signal, and what it wrote."""

    status: int
    stdout: str
    stderr: str


def run_together(
    target: Callable[..., object], *calls: tuple[Any, ...], folder: Path, environment: dict[str, str] | None = None
) -> list[Ended]:
    """Call `target` once in a new process for each of `calls`, all at the same time, with one thread each.

    What they write goes to files in `folder`. As under torchrun, environment variables say which process is which.
    """
    port = _free_port()
    processes = []
    for number, arguments in enumerate(calls):
        variables = {"OMP_NUM_THREADS": "1", **(environment or {})}
        if len(calls) > 1:
            variables |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(len(calls)),
                            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
        outputs = [str(folder / f"{number}.{stream}") for stream in ("stdout", "stderr")]
        processes.append(_CONTEXT.Process(target=_call, args=(target, arguments, variables, outputs)))
    for process in processes:
        process.start()
    ended = []
    for number, process in enumerate(processes):
        process.join(timeout=300)
        if process.exitcode is None:
            process.kill()
            process.join()
        texts = [(folder / f"{number}.{stream}").read_text("utf8") for stream in ("stdout", "stderr")]
        ended.append(Ended(process.exitcode, *texts))
    return ended


def run(
    target: Callable[..., object], *arguments: Any, folder: Path, environment: dict[str, str] | None = None
) -> Ended:
    """Call `target` in a new process."""
    return run_together(target, arguments, folder=folder, environment=environment)[0]


def _call(
    target: Callable[..., object], arguments: tuple[Any, ...], variables: dict[str, str], outputs: list[str]
) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(variables)
    with contextlib.ExitStack() as files:
        for stream, path in enumerate(outputs, start=1):
            os.dup2(files.enter_context(open(path, "wb")).fileno(), stream)
        target(*arguments)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

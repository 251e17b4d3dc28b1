"""How the benchmarks measure: times in interleaved rounds, FLOPs, bytes kept for the backward pass, peak memory."""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Row = dict[str, Any]


def interleaved(
    contestants: Mapping[str, Callable[[], Any]],
    rounds: int,
    warm_up: int = 2,
    *,
    repeats: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round. All run once a round, in an order that chance decides anew.

    So what disturbs the machine for a while disturbs all of them, and a ratio within one round is a fair one. What is
    over too soon for the `clock` runs `repeats` times.
    """
    order, times = random.Random(0), {name: list[float]() for name in contestants}
    for i in range(warm_up + rounds):
        for name in order.sample(list(contestants), len(contestants)):
            _wait()
            start = clock()
            for _ in range(repeats):
                contestants[name]()
            _wait()
            if i >= warm_up:
                times[name].append((clock() - start) / repeats)
    return times


def summary(times: Mapping[str, list[float]], name: str, against: Mapping[str, str]) -> Row:
    """Median and quartiles of one contestant in milliseconds, and the median of its ratio to others, round by round."""
    low, middle, high = statistics.quantiles(times[name], n=4)
    row = {"median_ms": 1e3 * middle, "lower_quartile_ms": 1e3 * low, "upper_quartile_ms": 1e3 * high}
    for column, other in against.items():
        pairs = zip(times[name], times[other], strict=True) if other in times else ()
        row[column] = statistics.median(a / b for a, b in pairs) if other in times else ""
    return {key: value if value == "" else float(f"{value:.4g}") for key, value in row.items()}


def flops(run: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products and attentions in `run`."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def kept_bytes(forward: Callable[[], Any], *known: nn.Module | Tensor) -> int:
    """Bytes that `forward` keeps for the backward pass, each block of memory counted once, without `known` ones."""
    blocks: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        blocks[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    for owner in known:
        for tensor in owner.parameters() if isinstance(owner, nn.Module) else [owner]:
            blocks.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(blocks.values())


class Made(TorchDispatchMode):
    """Counts the bytes of all tensors that operations return while it is on, views included."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        self.bytes += sum(t.nbytes for t in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(t, Tensor))
        return out


def peak_bytes() -> int:
    """The most memory that this process has held: on the GPU where there is one, else all of it (Linux alone says)."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def held_bytes() -> int:
    """The memory that this process holds now."""
    return torch.cuda.memory_allocated() if DEVICE.type == "cuda" else _status("VmRSS")


def machine() -> Row:
    """What a reader has to know to compare these numbers with others."""
    return {
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "transformers", "peft", "loralib")},
    }


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def _processor() -> str:
    """The name that the processor gives itself, and its kind."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()} ({platform.machine()})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

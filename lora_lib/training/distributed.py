"""Training in several processes: each reads its share of every batch, and the gradients are summed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from lora_lib.gpt2.loss import IGNORE
from lora_lib.training.losses import loss_sum


def place() -> tuple[int, int]:
    """The rank of this process, and how many processes train together: (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class Objective(nn.Module):
    """The loss, summed over this process's share of a batch, as a module that DistributedDataParallel can wrap."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        rank, world_size = place()
        if rank >= len(ids):  # fewer rows than processes: this one computes on a row without targets
            return loss_sum(self.model, ids[:1], torch.full_like(targets[:1], IGNORE))
        return loss_sum(self.model, ids[rank::world_size], targets[rank::world_size])


def averaged(objective: Objective, count_bytes: Callable[[int], None]) -> DistributedDataParallel:
    """Wrap `objective` to average gradients over all processes; `count_bytes` gets the bytes of each exchange."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook  # not in every build

    def reduce(state, bucket):  # type: ignore[no-untyped-def] # PyTorch refuses an annotation written as a string
        count_bytes(bucket.buffer().nbytes)
        return allreduce_hook(state, bucket)

    wrapped = DistributedDataParallel(objective, gradient_as_bucket_view=True)
    wrapped.register_comm_hook(None, reduce)
    return wrapped


@contextmanager
def process_group() -> Iterator[tuple[torch.device, bool]]:
    """Join the other processes under torchrun; yields the device to train on, and whether this is rank 0.

    Raises ValueError if there are GPUs, but fewer of them than processes.
    """
    local_rank, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if 0 < gpus <= local_rank:
        raise ValueError(f"process {local_rank + 1} has no GPU: this machine has {gpus}; start torchrun with as many")
    device = torch.device("cuda", local_rank) if gpus else torch.device("cpu")
    if "WORLD_SIZE" not in os.environ:  # torchrun sets it
        yield device, True
        return
    if gpus:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpus else "gloo")
    try:
        yield device, dist.get_rank() == 0
    finally:
        dist.destroy_process_group()

"""A stage on all cores: as many processes as cores, of one thread each, that share every batch.

The networks are so small that two threads of one process mostly wait for each other: 21 pictures a second through the
U-Net, where two processes of one thread make 36 (2-core CPU, 2026-11-21).
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from torch import distributed

Task = TypeVar("Task")
MOST = 8  # processes; every batch is a multiple of it


def process_count() -> int:
    """The largest power of two of processes that the cores allow."""
    cores = min(MOST, len(os.sched_getaffinity(0)))
    return 1 << (cores.bit_length() - 1)


def part(count: int) -> Sequence[int]:
    """Which slots of a batch this process computes: all of them outside run_shared."""
    if not distributed.is_initialized():
        return range(count)
    return range(distributed.get_rank(), count, distributed.get_world_size())


def is_first() -> bool:
    """Whether this process writes states and logs."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def run_shared(train: Callable[[Task], object], task: Task, count: int | None = None) -> None:
    """Call `train(task)` in `count` processes at once, else in as many as the cores allow."""
    count = count or process_count()
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{Path(folder) / 'meeting'}"
        torch.multiprocessing.spawn(run_one, (count, meeting, train, task), nprocs=count)


def run_one(rank: int, count: int, meeting: str, train: Callable[[Task], object], task: Task) -> None:
    """One process of run_shared."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None
    threading.Thread(target=follow, args=(parent.pid,), daemon=True).start()
    # one process may draw and write for long on a busy machine, or all be stopped for a while: the others wait
    patience = timedelta(days=2)
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count, timeout=patience)
    try:
        train(task)
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def follow(parent: int) -> None:
    """End with the process that started this one: left alone, it would train on and overwrite its successor's state."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def sum_up(tensors: Sequence[torch.Tensor]) -> None:
    """Replace each tensor by its sum over the processes, in one message."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    distributed.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view(tensor.shape))


def average_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """The gradient of the whole batch's mean loss, in every process, if there are several."""
    if distributed.is_initialized():
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        sum_up(gradients)
        torch._foreach_div_(gradients, float(distributed.get_world_size()))

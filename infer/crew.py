"""Who draws: on a CPU, for a small network, threads side by side, each a picture of its own with one thread inside it.

The threads of one operation of a small network mostly wait for one another. Whether one draws or several, each has the
same number of threads inside its operations, so a picture's bits do not depend on how many are drawn at a time.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

SMALL = 50_000_000  # weights of the U-Net, as in train/workers.py: above, a layer has enough to do for all threads
AHEAD = 2  # tasks begun for each thread before the first of them is asked for

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stopped(Exception):
    """Raised in a thread whose result nobody waits for any more."""


@dataclass(frozen=True)
class Crew:
    """count: threads that draw side by side. threads: inside each one's operations."""

    count: int = 1
    threads: int = 1

    def each(self, work: Callable[[Item], Result], items: Iterable[Item], stop: threading.Event) -> Iterator[Result]:
        """work(item) of every item, in order; a few are begun ahead. When the caller leaves, `stop` is set.

        What one raises is raised here, in its place. At the end no thread is left.
        """
        pool = ThreadPoolExecutor(self.count, "crew", initializer=torch.set_num_threads, initargs=(self.threads,))
        begun: deque[Future[Result]] = deque()
        try:
            for item in items:
                begun.append(pool.submit(work, item))
                if len(begun) >= AHEAD * self.count:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(torch.get_num_threads())  # MKL has one number for all threads: give it back


def suited(unet: Any, device: torch.device) -> Crew:
    """Threads side by side for a small network on a CPU; else one, with all threads or the accelerator to itself."""
    available = threads_here()
    small = sum(weight.numel() for name, weight in unet.named_parameters() if ".lora_" not in name) <= SMALL
    return Crew(available, 1) if device.type == "cpu" and small else Crew(1, available)


def threads_here() -> int:
    """CPU threads of this process; launchers say 1 when they mean nothing, so of theirs it is a fair share."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes == 1:
        return torch.get_num_threads()
    return max(1, len(os.sched_getaffinity(0)) // processes)

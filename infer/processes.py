"""One job on several processes, as torchrun or accelerate starts them: who draws which pictures, and who speaks.

The pictures are divided by their place in the job, so no process needs to hear of another while it draws. What is on
the disk is not drawn again: killed at any moment and started again, with the same or another number of processes, the
job loses and repeats nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from data.errors import USAGE, InputError

LONGEST = timedelta(days=30)  # that one process waits for another's share
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """This process among those of the job. rank: from 0; the first one speaks and lays out the sheet."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def say(self, text: object) -> None:
        if self.is_first:
            print(text)

    def share(self, items: Sequence[Item], together: int) -> list[Item]:
        """What this process draws: every count-th micro-batch of `together` pictures."""
        return [item for place, item in enumerate(items) if place // together % self.count == self.rank]

    def agree(self, decide: Callable[[], Result]) -> Result:
        """What the first process decides, in all of them. An InputError there ends the others as well."""
        if self.count == 1:
            return decide()

        decided: list[Any] = [None]
        if self.is_first:
            try:
                decided = [(decide(), None)]
            except InputError as error:
                decided = [(None, error)]
        distributed.broadcast_object_list(decided, src=0)
        found, error = decided[0]
        if error is not None:
            raise error
        return found

    def wait(self) -> None:
        """Until all have come this far."""
        if self.count > 1:
            distributed.barrier()


@contextmanager
def started() -> Iterator[Processes]:
    """The processes that a launcher started, or this one alone. A mistake is said by the first of them only."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return

    distributed.init_process_group("gloo", timeout=LONGEST)
    rank = distributed.get_rank()
    local_count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # launchers set OMP_NUM_THREADS=1 unless told otherwise
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_count))
    try:
        yield Processes(rank, count, int(os.environ.get("LOCAL_RANK", "0")))
        distributed.destroy_process_group()
    except InputError:
        if rank == 0:
            raise
        sys.exit(USAGE)

"""Asking a run to stop: Ctrl-C, SIGTERM, or a launcher that died. The step is finished and saved; all processes agree.

The trouble this answers: accelerate's launcher does not hand SIGTERM on, torchrun's hands on what the terminal has
already sent, and a process that stops one step before another leaves the other waiting for it for ever.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed

ECHO = 1.0  # seconds within which a second signal is the first one's echo, from the terminal and from the launcher


class Asked:
    """Whether someone asked to stop. `parent`: the launcher that must not be outlived, if any; see launched.py."""

    def __init__(self, parent: int | None = None) -> None:
        self.parent = parent
        self.since: float | None = None
        self.group = control_group()

    def note(self, number: int, frame: object) -> None:
        """The signal handler. A second signal, unless it is an echo, stops at once: KeyboardInterrupt."""
        now = time.monotonic()
        if self.since is not None and now - self.since > ECHO:
            raise KeyboardInterrupt
        if self.since is None:
            self.since = now
            # os.write: print may be interrupted by this very handler in the middle of a line
            # and a launcher is gone after the first Ctrl-C: the terminal's second one would reach nobody
            again = "once more" if self.parent is None else f"kill {os.getpid()}"
            os.write(1, f"\nstopping after this step; {again} stops at once\n".encode())

    def __bool__(self) -> bool:
        """True in every process as soon as one was asked; to be called by all of them, once a step."""
        here = self.since is not None or (self.parent is not None and os.getppid() != self.parent)
        if self.group is None:
            return here
        flag = torch.tensor(int(here))
        distributed.all_reduce(flag, op=distributed.ReduceOp.MAX, group=self.group)
        return bool(flag)


def control_group() -> distributed.ProcessGroup | None:
    """A group of all processes that talks over the CPU: asking through a GPU would make it wait at every step."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return None
    group = distributed.new_group(backend="gloo")
    assert isinstance(group, distributed.ProcessGroup)
    return group


@contextmanager
def stop_signal(parent: int | None = None) -> Iterator[Asked]:
    """Ctrl-C or SIGTERM asks to stop after the step; a second one stops at once. `parent`: see Asked."""
    asked = Asked(parent)
    before = {number: signal.signal(number, asked.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

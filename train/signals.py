"""Asking a run to stop: Ctrl-C, SIGTERM, or a launcher that died. The step is finished and saved; all processes agree.

The trouble this answers: accelerate's launcher does not hand SIGTERM on, torchrun's hands on what the terminal has
already sent, and a process that stops one step before another leaves the other waiting for it for ever.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

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
            with suppress(OSError):  # who read it may have gone, by the same Ctrl-C
                os.write(1, f"\nstopping after this step; {again} stops at once\n".encode())

    def __bool__(self) -> bool:
        """True in every process as soon as one was asked; to be called by all of them, once a step."""
        here = self.since is not None or (self.parent is not None and os.getppid() != self.parent)
        if self.group is None:
            return here
        import torch
        from torch import distributed

        flag = torch.tensor(int(here))
        distributed.all_reduce(flag, op=distributed.ReduceOp.MAX, group=self.group)
        return bool(flag)


def control_group() -> Any:
    """A group of all processes that talks over the CPU: asking through a GPU would make it wait at every step."""
    from torch import distributed  # not at the top: entries import this file before torch

    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return None
    return distributed.new_group(backend="gloo")


class Outlasting:
    """An output stream whose reader may go (`| tee log`, a closed terminal): then what is written goes nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError:
            self.give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError:
            self.give_up()

    def give_up(self) -> None:
        """The file behind it becomes the null device, also for what is in its buffer and for whoever else writes."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def outlasting_readers() -> Iterator[None]:
    """Inside, words that nobody can read are no reason to lose a run: its numbers are in its folder."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, Outlasting(stream)) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


@contextmanager
def stop_signal(parent: int | None = None) -> Iterator[Asked]:
    """Ctrl-C, SIGTERM or a closed terminal asks to stop after the step; a second one stops at once.

    parent: see Asked.
    """
    asked = Asked(parent)
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # with nohup a closed terminal is nothing to stop for
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, asked.note) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

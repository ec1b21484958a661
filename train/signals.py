"""Launchers and signals. Entries import this file before anything slow: once a launcher is dead, its child has another
parent, and nothing tells which one it had before.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from data.errors import InputError

PARENT_PID = os.getppid()
LAUNCHER_VARIABLES = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")  # what they set for their children
LAUNCHER_FLAGS = ("--mixed-precision", "--num-processes", "--config-file", "--nproc-per-node")


def launcher_pid() -> int | None:
    """The launcher's process id, if this process was started by accelerate or torchrun."""
    return PARENT_PID if any(name in os.environ for name in LAUNCHER_VARIABLES) else None


def stop_with_launcher() -> None:
    """Raises KeyboardInterrupt if the launcher is gone: nobody waits for what this process would do."""
    if launcher_pid() not in (None, os.getppid()):
        raise KeyboardInterrupt


def check_process_count() -> None:
    """Raises InputError if accelerate was asked for several processes and started this one alone, without a word, as it
    does on machines without several GPUs. It then tells where they would meet, but not how many they are.
    """
    told = "MASTER_ADDR" in os.environ and "MASTER_ADDR" not in environment_names(PARENT_PID)
    if launcher_pid() is not None and told and "WORLD_SIZE" not in os.environ:
        what = "accelerate was asked for several processes and started one: this machine has not several GPUs"
        fix = "Start them with: torchrun --nproc-per-node N train/finetune.py ..., or leave --num_processes out."
        raise InputError(what, where="the launcher", fix=fix)


def environment_names(process: int) -> set[str]:
    """Names in the environment of another process as it was started; on other systems than Linux, those of this one."""
    try:
        entries = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return set(os.environ)
    return {os.fsdecode(entry.partition(b"=")[0]) for entry in entries}


def check_launcher_flags(typed: Sequence[str]) -> None:
    """Raises InputError for what was meant for accelerate or torchrun and stands behind the script's name."""
    for token in typed:
        flag = token.partition("=")[0].replace("_", "-")
        if flag in LAUNCHER_FLAGS:
            start = "torchrun" if flag == "--nproc-per-node" else "accelerate launch"
            fix = f"Put it before the script: {start} {token} ... train/finetune.py ..."
            raise InputError(f"this is a flag of {start}", where=token.partition("=")[0], fix=fix)


ECHO_SECONDS = 1.0  # a second signal within this time is the first one's echo, from the terminal and the launcher


class StopRequest:
    """True once a signal asked the run to stop, or its launcher is gone. parent: the launcher's process id, if any."""

    def __init__(self, parent: int | None = None) -> None:
        self.parent = parent
        self.since: float | None = None
        self.group = control_group()

    def note(self, number: int, frame: object) -> None:
        """The signal handler. A second signal, unless it is an echo, stops at once: KeyboardInterrupt."""
        now = time.monotonic()
        if self.since is not None and now - self.since > ECHO_SECONDS:
            raise KeyboardInterrupt
        if self.since is None:
            self.since = now
            # os.write: print may be interrupted by this very handler in the middle of a line
            # and a launcher is gone after the first Ctrl-C: the terminal's second one would reach nobody
            again = "once more" if self.parent is None else f"kill {os.getpid()}"
            with suppress(OSError):  # who read it may have gone, by the same Ctrl-C
                os.write(1, f"\nstopping after this step; {again} stops at once\n".encode())

    def __bool__(self) -> bool:
        """True in every process as soon as it is in one; all of them must call it, once a step."""
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


class DetachableStream:
    """An output stream whose reader may go (`| tee log`, a closed terminal): then what is written goes nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.attempt(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        self.attempt(self.stream.flush)

    def attempt(self, action: Callable[..., object], *args: str) -> None:
        """After an error the file behind it becomes the null device, also for what is in its buffer and for others."""
        try:
            action(*args)
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def survive_closed_output() -> Iterator[None]:
    """Inside, words that nobody can read are no reason to lose a run: its numbers are in its folder."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, DetachableStream(stream)) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


@contextmanager
def stop_requests(parent: int | None = None) -> Iterator[StopRequest]:
    """Inside, Ctrl-C, SIGTERM and a closed terminal stop after the step; a second one stops at once."""
    request = StopRequest(parent)
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # with nohup a closed terminal is nothing to stop for
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, request.note) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

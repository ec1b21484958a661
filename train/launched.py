"""Who started this process, asked before anything slow is imported: once a launcher is dead, its child's parent is
another one, and nothing tells it from before.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from data.errors import InputError

PARENT = os.getppid()
LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")  # what they set for their children
LAUNCHERS_OWN = ("--mixed-precision", "--num-processes", "--config-file", "--nproc-per-node")


def launcher() -> int | None:
    """The launcher's process id, if this process was started by accelerate or torchrun."""
    return PARENT if any(name in os.environ for name in LAUNCHERS) else None


def go_with_it() -> None:
    """Raises KeyboardInterrupt if the launcher is gone: nobody waits for what this process would do."""
    if launcher() not in (None, os.getppid()):
        raise KeyboardInterrupt


def refuse_missing_processes() -> None:
    """Raises InputError if accelerate was asked for several processes and started this one alone, without a word, as it
    does on machines without several GPUs. It then tells where they would meet, but not how many they are.
    """
    told = "MASTER_ADDR" in os.environ and "MASTER_ADDR" not in environment_of(PARENT)
    if launcher() is not None and told and "WORLD_SIZE" not in os.environ:
        what = "accelerate was asked for several processes and started one: this machine has not several GPUs"
        fix = "Start them with: torchrun --nproc-per-node N train/finetune.py ..., or leave --num_processes out."
        raise InputError(what, where="the launcher", fix=fix)


def environment_of(process: int) -> set[str]:
    """Names in the environment of another process as it was started; on other systems than Linux, those of this one."""
    try:
        entries = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return set(os.environ)
    return {os.fsdecode(entry.partition(b"=")[0]) for entry in entries}


def refuse_launchers_flags(typed: Sequence[str]) -> None:
    """Raises InputError for what was meant for accelerate or torchrun and stands behind the script's name."""
    for token in typed:
        flag = token.partition("=")[0].replace("_", "-")
        if flag in LAUNCHERS_OWN:
            start = "torchrun" if flag == "--nproc-per-node" else "accelerate launch"
            fix = f"Put it before the script: {start} {token} ... train/finetune.py ..."
            raise InputError(f"this is a flag of {start}", where=token.partition("=")[0], fix=fix)

"""Who started this process, asked before anything slow is imported: once a launcher is dead, its child's parent is
another one, and nothing tells it from before.
"""

from __future__ import annotations

import os

PARENT = os.getppid()
LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")  # what they set for their children


def launcher() -> int | None:
    """The launcher's process id, if this process was started by accelerate or torchrun."""
    return PARENT if any(name in os.environ for name in LAUNCHERS) else None


def go_with_it() -> None:
    """Raises KeyboardInterrupt if the launcher is gone: nobody waits for what this process would do."""
    if launcher() not in (None, os.getppid()):
        raise KeyboardInterrupt

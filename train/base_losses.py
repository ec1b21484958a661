"""The base's own losses, which every tuned one is compared with: worked out once for all runs that ask the same of it.

Before the first step the network is the base, whatever adapter it carries; its losses follow from its weights, the
questions and the machine alone. Measured 2026-11-21, embedded default on a busy 2-core CPU: 14 CPU seconds of 33 that
a start took.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch

from data import kept
from train.validation import Losses, Validator

VERSION = 3  # raise it when the same questions would get other answers

Found = dict[str, Losses]
Measure = Callable[[], Found]


def measured(measure: Measure) -> Found:
    """Without a memory: for several processes, which must all do the same."""
    return measure()


def remembered(validator: Validator, network: tuple[object, ...], device: torch.device) -> Callable[[Measure], Found]:
    """A function that measures unless this was measured before.

    network: everything besides the questions and the machine that the answers follow from.
    """
    key = kept.digest("look", VERSION, *network, *machine(device), contents(validator))

    def look(measure: Measure) -> Found:
        found = kept.value("looks", key, lambda: {side: losses.values.tolist() for side, losses in measure().items()})
        return {side: Losses(np.array(values, np.float64)) for side, values in found.items()}

    return look


def contents(validator: Validator) -> str:
    """A hash of the questions: the very numbers that the network is given."""
    digest = hashlib.sha256(validator.questions.encode())
    digest.update(f"{validator.objective!r} {validator.scaling_factor!r} {validator.timesteps}".encode())
    entries = [entry for entries in validator.sides.values() for entry in entries]
    given = [tensor for entry in entries for tensor in (entry.moments[0], entry.text_states[0])]
    for tensor in (validator.schedule.betas, *given):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def machine(device: torch.device) -> tuple[object, ...]:
    """What sums are rounded by: the processor's kind, the threads, the library."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return device.type, kind, torch.get_num_threads(), torch.__version__

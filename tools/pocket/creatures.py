"""The sample set at 64x64: the scorer learns types by it, and the autoencoder, late and in part, its lines."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from data import sample_set
from data.rng import integer

if TYPE_CHECKING:
    import numpy as np


@cache
def creature_pixels() -> np.ndarray:
    """The whole sample set at 64x64, uint8 (count, 64, 64, 3)."""
    import numpy as np

    return np.stack([np.asarray(sample_set.sample_image(index)) for index in range(sample_set.COUNT)])


def is_held_out_creature(row: int) -> bool:
    """One creature in ten is never trained on, so that errors and accuracies can be measured on it."""
    return integer(10, "pocket", "creatures", "held out", row) == 0


def seen_creatures() -> list[int]:
    """The rows that may be trained on."""
    return [row for row in range(len(creature_pixels())) if not is_held_out_creature(row)]

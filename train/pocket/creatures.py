"""The sample set at 64x64: the scorer learns types by it, and the autoencoder, late and in part, its lines."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from tqdm import tqdm

from data.files import replaced_file
from data.seeds import integer
from train.pocket.pictures import SIZE
from train.pocket.training import state_folder

if TYPE_CHECKING:
    import numpy as np


@cache
def creature_pixels() -> np.ndarray:
    """The whole sample set at 64x64, uint8 (count, 64, 64, 3), drawn at the first call."""
    import numpy as np

    from data.pocket import creatures

    path = state_folder() / "creatures" / f"{creatures.VERSION}.npy"
    if not path.exists():
        rows = tqdm(range(creatures.COUNT), desc="drawing the creatures", mininterval=5)
        pixels = np.stack([np.asarray(creatures.draw(row, SIZE).convert("RGB")) for row in rows])
        with replaced_file(path) as beside, beside.open("wb") as file:
            np.save(file, pixels)
    return np.load(path)


def is_held_out_creature(row: int) -> bool:
    """One creature in ten is never trained on, so that errors and accuracies can be measured on it."""
    return integer(10, "pocket", "creatures", "held out", row) == 0


def seen_creatures() -> list[int]:
    """The rows that may be trained on."""
    return [row for row in range(len(creature_pixels())) if not is_held_out_creature(row)]

"""Every noun in its first variants, drawn once and kept as bytes: what the text, U-Net and scorer stages train on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from tqdm import tqdm

from data.atomic_io import atomic_file, write_atomic
from tools.pocket.nouns import all_nouns
from tools.pocket.pictures import SIZE, picture
from tools.pocket.training import state_folder

if TYPE_CHECKING:
    import numpy as np
    import torch

VARIANTS = 24  # pictures of each noun in the pool: one full cycle of looks


@dataclass(frozen=True)
class Pool:
    """`pixels` (count, SIZE, SIZE, 3) uint8, with each picture's caption, noun number and look."""

    pixels: np.ndarray
    captions: list[str]
    nouns: list[int]
    looks: list[str]

    def tensor(self, indices: list[int]) -> torch.Tensor:
        """Pictures as float32 (batch, 3, SIZE, SIZE) in [-1, 1]."""
        import torch

        return torch.from_numpy(self.pixels[indices]).permute(0, 3, 1, 2).float() / 127.5 - 1.0


@cache
def load_pool() -> Pool:
    """The pool, drawn at the first call."""
    import numpy as np

    folder = state_folder() / "pool"
    if not (folder / "words.json").exists():
        draw_pool()
    words = json.loads((folder / "words.json").read_text(encoding="utf-8"))
    return Pool(np.load(folder / "pixels.npy"), words["captions"], words["nouns"], words["looks"])


def draw_pool() -> None:
    """Draw VARIANTS pictures of each noun, in the order of variants, then nouns."""
    import numpy as np

    folder, nouns = state_folder() / "pool", all_nouns()
    pixels = np.empty((VARIANTS * len(nouns), SIZE, SIZE, 3), dtype=np.uint8)
    words: dict[str, list] = {"captions": [], "nouns": [], "looks": []}
    for index in tqdm(range(len(pixels)), desc="drawing the pool", mininterval=5):
        chosen = picture(nouns[index % len(nouns)], index // len(nouns))
        pixels[index] = np.asarray(chosen.pixels)
        words["captions"].append(chosen.caption)
        words["nouns"].append(index % len(nouns))
        words["looks"].append(chosen.look)
    with atomic_file(folder / "pixels.npy") as beside, beside.open("wb") as file:
        np.save(file, pixels)
    write_atomic(folder / "words.json", json.dumps(words))

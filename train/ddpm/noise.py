"""Where a sampler's noise comes from: a position, never a generator that was used before.

So a picture is a function of its own seed: the same alone, in any batch, and on any number of devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from data import seeds
from data.shapes import Images


class Noise(Protocol):
    """A position -> (B, C, H, W) standard normal noise; the same position gives the same noise."""

    def __call__(self, *position: int | str) -> Images: ...


@dataclass(frozen=True)
class SeededNoise:
    """Each picture of a batch has a seed, and noise of its own that follows from it.

    seeds: one number a picture. shape: (C, H, W). The noise is drawn on the CPU, so that a GPU gets the same.
    """

    seeds: tuple[int, ...]
    shape: tuple[int, ...]
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32

    def __call__(self, *position: int | str) -> Images:
        drawn = [seeds.normal(self.shape, seed, "ddpm", *position) for seed in self.seeds]
        return torch.stack(drawn).to(self.device, self.dtype)

    def start(self) -> Images:
        """x_T, the (B, C, H, W) noise that a picture is made from."""
        return self("start")


def seeded(start: int, count: int, shape: Sequence[int], device: torch.device | str = "cpu") -> SeededNoise:
    """Noise for `count` pictures with the seeds start, start + 1, ...: picture i of one run is picture 0 of another."""
    return SeededNoise(tuple(range(start, start + count)), tuple(shape), device)

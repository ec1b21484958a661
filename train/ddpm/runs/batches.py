"""Batches of pictures that lie on the device: which, mirrored or not, with which noise and timestep, is a function of
(seed, optimiser step, slot), worked out where the pictures are. The host sends the positions and waits for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from data import rng
from data.dataset import BatchLayout
from train.ddpm.image_sets import ImageSet
from train.ddpm.image_sets import to_float
from data.shapes import Images
from data.shapes import PerSample
from data.shapes import Timesteps
from train.ddpm import guidance
from train.ddpm.runs.objective import TimestepSampler
from train.ddpm.runs.objective import UniformTimesteps

SLOTS = 2**24  # of a global batch, at most: a key is step * SLOTS + slot


@dataclass(frozen=True)
class Batch:
    """x0 in [-1, 1] and eps (B, C, S, S), t (B,) int64, labels (B,) int64 or None, all on the device.

    weights: (B,) float32 that the losses are multiplied with: 1, unless some timesteps are drawn more often.
    """

    x0: Images
    eps: Images
    t: Timesteps
    labels: Tensor | None
    weights: PerSample


@dataclass
class BatchStream:
    """The batches of a run. Every picture comes once before any comes twice.

    dropout: share of labels that are hidden, with the label len(classes). channels_last: how x0 lies in memory.
    """

    pictures: ImageSet  # on the device
    layout: BatchLayout
    seed: int
    steps: int  # T of the noise schedule
    conditional: bool = False
    dropout: float = 0.0
    channels_last: bool = True
    known: dict[int, Tensor] = field(default_factory=dict)  # the orders of the last two rounds

    def batch(self, step: int, draws: TimestepSampler | None = None) -> Batch:
        """What this process trains on in optimiser step 0, 1 ... draws: which timesteps; default: all as often."""
        device = self.pictures.pixels.device
        rows = self.positions(step).to(device, non_blocking=True)
        slots = self.layout.slots(0)
        keys = torch.arange(slots.start, slots.stop, device=device) + step * SLOTS
        chances = rng.counter_uniforms(keys, self.salt("chances"), 3)
        x0 = to_float(self.pictures.pixels[rows])
        if self.pictures.flip:
            x0 = torch.where((chances[:, 1] < 0.5)[:, None, None, None], x0.flip(-1), x0)
        eps = rng.counter_normals(keys, self.salt("noise"), tuple(x0.shape[1:]))
        t, weights = (draws or UniformTimesteps(self.steps)).draw(chances[:, 0])
        return Batch(self.laid(x0), self.laid(eps), t, self.labels(rows, chances[:, 2]), weights)

    def labels(self, rows: Tensor, uniforms: Tensor) -> Tensor | None:
        if not self.conditional:
            return None
        assert self.pictures.labels is not None
        labels = self.pictures.labels[rows]
        return guidance.drop_classes(labels, uniforms, self.dropout, len(self.pictures.classes))

    def laid(self, x: Images) -> Images:
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    def salt(self, word: str) -> int:
        return rng.seed_for(self.seed, "ddpm", word)

    def positions(self, step: int) -> Tensor:
        """(B,) int64 on the CPU: the places of this process' pictures."""
        slots, count = self.layout.slots(0), len(self.pictures)
        places = torch.arange(slots.start, slots.stop) + step * self.layout.global_batch
        rounds = places // count
        first, last = int(rounds[0]), int(rounds[-1])
        orders = torch.stack([self.order(round_) for round_ in range(first, last + 1)])
        return orders[rounds - first, places % count]

    def order(self, round_: int) -> Tensor:
        """The order of the pictures the round_-th time through."""
        if round_ not in self.known:
            for old in [number for number in self.known if number < round_ - 1]:
                del self.known[old]
            order = rng.permutation(len(self.pictures), self.seed, "ddpm", "order", round_)
            self.known[round_] = torch.tensor(order)
        return self.known[round_]

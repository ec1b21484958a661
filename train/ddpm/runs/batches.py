"""Training batches and validation at fixed noise, as functions of positions: a batch of (seed, optimiser step, slot).

Batches are made on the device that holds the images; the host sends positions and never waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from data import rng
from data.dataset import BatchLayout
from data.shapes import Images, PerSample, Timesteps
from train.ddpm import diffusion, guidance, losses
from train.ddpm.image_sets import ImageSet, to_float
from train.ddpm.losses import TimestepSampler
from train.ddpm.runs.model import Model
from train.validation import Losses

SLOTS = 2**24  # of a global batch, at most: a key is step * SLOTS + slot
VALIDATION_BATCH = 256


@dataclass(frozen=True)
class Batch:
    """x0 in [-1, 1] and eps (B, C, S, S), t (B,) int64, labels (B,) int64 or None, all on the device.

    weights: (B,) float32 weights of the losses: 1, unless some timesteps are sampled more often.
    """

    x0: Images
    eps: Images
    t: Timesteps
    labels: Tensor | None
    weights: PerSample


@dataclass(frozen=True)
class BatchStream:
    """The batches of a run, on the device of `images`. Every image comes once before any comes twice.

    class_dropout: share of labels that are dropped, None for unconditional batches.
    """

    images: ImageSet
    layout: BatchLayout
    seed: int
    timesteps: TimestepSampler
    class_dropout: float | None = None
    channels_last: bool = True

    def batch(self, step: int) -> Batch:
        """The batch of this process in optimiser step 0, 1 ..."""
        device = self.images.pixels.device
        rows = self.positions(step).to(device, non_blocking=True)
        slots = self.layout.slots(0)
        keys = torch.arange(slots.start, slots.stop, device=device) + step * SLOTS
        uniforms = rng.counter_uniforms(keys, rng.seed_for(self.seed, "ddpm", "chances"), 3)
        x0 = to_float(self.images.pixels[rows])
        if self.images.flip:
            x0 = torch.where((uniforms[:, 1] < 0.5)[:, None, None, None], x0.flip(-1), x0)
        eps = rng.counter_normals(keys, rng.seed_for(self.seed, "ddpm", "noise"), tuple(x0.shape[1:]))
        t, weights = self.timesteps.draw(uniforms[:, 0])
        labels = None
        if self.class_dropout is not None:
            assert self.images.labels is not None
            classes = len(self.images.classes)
            labels = guidance.drop_classes(self.images.labels[rows], uniforms[:, 2], self.class_dropout, classes)
        memory = torch.channels_last if self.channels_last else torch.contiguous_format
        return Batch(x0.contiguous(memory_format=memory), eps.contiguous(memory_format=memory), t, labels, weights)

    def positions(self, step: int) -> Tensor:
        """(B,) int64 on the CPU: the indices of this process' images."""
        slots, count = self.layout.slots(0), len(self.images)
        places = torch.arange(slots.start, slots.stop) + step * self.layout.global_batch
        epochs = places // count
        first, last = int(epochs[0]), int(epochs[-1])
        orders = torch.stack([epoch_order(count, self.seed, epoch) for epoch in range(first, last + 1)])
        return orders[epochs - first, places % count]


@lru_cache(maxsize=4)
def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of the images in one epoch."""
    return torch.tensor(rng.permutation(count, seed, "ddpm", "order", epoch))


# ---- validation: the error of x_0, which follows from any prediction, is the scale on which all networks are compared


def validation_set(images: ImageSet, count: int, model: Model) -> tuple[Images, Tensor | None]:
    """The `count` images with the smallest hashes, (n, C, S, S) in [-1, 1], and their classes if there are any."""
    some = images.select(sorted(range(len(images)), key=images.hashes.__getitem__)[:count]).to(model.device)
    return to_float(some.pixels), some.labels if model.info.classes else None


def spread_timesteps(steps: int, count: int) -> list[int]:
    """`count` timesteps at the middles of equal parts of [0, steps)."""
    count = min(count, steps)
    return [int((index + 0.5) * steps / count) for index in range(count)]


@torch.no_grad()
def measure_errors(model: Model, images: Images, labels: Tensor | None, timesteps: Sequence[int]) -> Losses:
    """Mean squared errors of x_0 of each image at each timestep, in units of [-1, 1].

    x_0 is clipped to [-1, 1] as in sampling: that of an eps network is far outside where x_t holds almost only noise.
    Noise is a function of an image's index and the timestep.
    """
    schedule = model.schedule.to(model.device)
    columns = []
    for t in timesteps:
        errors = []
        for rows in torch.arange(len(images), device=images.device).split(VALIDATION_BATCH):
            x0 = images[rows]
            eps = rng.counter_normals(rows, rng.seed_for("ddpm look", t), tuple(x0.shape[1:]))
            steps = torch.full_like(rows, t)
            predict = model.denoiser(None if labels is None else labels[rows])
            prediction = predict(diffusion.add_noise(schedule, x0, eps, steps), steps)
            errors.append(losses.mse(prediction.clipped().x0, x0))
        columns.append(torch.cat(errors).double().cpu().numpy())
    return Losses(np.stack(columns, axis=1))

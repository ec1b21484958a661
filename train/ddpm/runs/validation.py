"""The error of x_0 at fixed noise: the common scale on which all networks can be compared.

x_0 follows from any prediction; the mean squared error of that x_0, clipped to [-1, 1] as in sampling, means the same
for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data import rng
from data.shapes import Images
from train.ddpm import diffusion, losses
from train.ddpm.image_sets import ImageSet, to_float
from train.ddpm.runs.model import Model
from train.validation import Losses


@dataclass(frozen=True)
class X0Errors:
    """Mean squared errors of each image at each timestep, in units of [-1, 1]. x0, eps: (n, k) float64."""

    timesteps: tuple[int, ...]
    x0: Losses
    eps: Losses


@dataclass(frozen=True)
class ValidationSet:
    """x0 (n, C, S, S) in [-1, 1], labels (n,) or None, on the model's device."""

    x0: Images
    labels: Tensor | None


def validation_set(images: ImageSet, count: int, model: Model) -> ValidationSet:
    """The `count` images with the smallest hashes, with their classes if the model is conditional."""
    some = images.select(sorted(range(len(images)), key=images.hashes.__getitem__)[:count])
    labels = some.labels.to(model.device) if some.labels is not None and model.info.classes else None
    return ValidationSet(to_float(some.pixels).to(model.device), labels)


def spread_timesteps(steps: int, count: int) -> tuple[int, ...]:
    """`count` timesteps at the middles of equal parts of [0, steps)."""
    count = min(count, steps)
    return tuple(int((index + 0.5) * steps / count) for index in range(count))


@torch.no_grad()
def measure_errors(model: Model, images: ValidationSet, timesteps: Sequence[int], *, batch: int = 256) -> X0Errors:
    """The errors of a model; noise is a function of an image's index and the timestep."""
    schedule = model.schedule.to(model.device)
    x0_errors, eps_errors = [], []
    for t in timesteps:
        rows = []
        for start in range(0, len(images.x0), batch):
            x0 = images.x0[start : start + batch]
            labels = None if images.labels is None else images.labels[start : start + batch]
            keys = torch.arange(start, start + len(x0), device=x0.device)
            eps = rng.counter_normals(keys, rng.seed_for("ddpm look", t), tuple(x0.shape[1:]))
            steps = torch.full((len(x0),), t, dtype=torch.int64, device=x0.device)
            prediction = model.denoiser(labels)(diffusion.add_noise(schedule, x0, eps, steps), steps)
            # clipped: x_0 of an eps network is far outside [-1, 1] where x_t holds almost only noise
            rows.append((losses.mse(prediction.clipped().x0, x0), losses.mse(prediction.eps, eps)))
        for errors, parts in zip((x0_errors, eps_errors), zip(*rows, strict=True), strict=True):
            errors.append(torch.cat(parts).double().cpu().numpy())
    return X0Errors(tuple(timesteps), Losses(np.stack(x0_errors, axis=1)), Losses(np.stack(eps_errors, axis=1)))

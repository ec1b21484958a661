"""How far a network is from the truth at fixed noise: the common scale on which all networks can be compared.

Whatever a network predicts, its x_0 follows; the mean squared error of that x_0, kept within [-1, 1] as when drawing,
means the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data import rng
from train.ddpm.image_sets import ImageSet
from train.ddpm.image_sets import to_float
from data.shapes import Images
from train.ddpm import losses
from train.ddpm import diffusion
from train.ddpm.runs.model import Model
from train.ddpm.schedule import Schedule
from train.validation import HELD_OUT
from train.validation import TRAIN
from train.validation import Losses


@dataclass(frozen=True)
class X0Errors:
    """Mean squared errors of each picture at each timestep, in units of [-1, 1]. x0, eps: (n, k) float64."""

    timesteps: tuple[int, ...]
    x0: Losses
    eps: Losses


def spread_timesteps(steps: int, count: int) -> tuple[int, ...]:
    """`count` timesteps at the middles of equal parts of [0, steps)."""
    count = min(count, steps)
    return tuple(int((index + 0.5) * steps / count) for index in range(count))


@dataclass(frozen=True)
class ValidationSet:
    """Pictures to look at: x0 (n, C, S, S) in [-1, 1], labels (n,) or None, on the model's device."""

    x0: Images
    labels: Tensor | None


@torch.no_grad()
def measure_errors(model: Model, side: ValidationSet, timesteps: Sequence[int], *, batch: int = 256) -> X0Errors:
    """The errors of a model: noise follows from a picture's place and the timestep, and from nothing else."""
    schedule = model.schedule.to(model.device)
    columns = [errors_at(model, schedule, side, t, batch) for t in timesteps]
    x0_errors, eps_errors = (np.stack(list(column), axis=1) for column in zip(*columns, strict=True))
    return X0Errors(tuple(timesteps), Losses(x0_errors), Losses(eps_errors))


def errors_at(model: Model, schedule: Schedule, side: ValidationSet, t: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) errors of x_0 and of eps at one timestep."""
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(side.x0), batch):
        some = side.x0[start : start + batch]
        keys = torch.arange(start, start + len(some), device=some.device)
        eps = rng.counter_normals(keys, rng.seed_for("ddpm look", t), tuple(some.shape[1:]))
        steps = torch.full((len(some),), t, dtype=torch.int64, device=some.device)
        predict = model.predict(None if side.labels is None else side.labels[start : start + batch])
        seen = predict(diffusion.add_noise(schedule, some, eps, steps), steps)
        # an x_0 outside [-1, 1] is no picture; of an eps network it is far outside, where x_t holds almost only noise
        found.append((losses.mse(seen.clipped().x0, some), losses.mse(seen.eps, eps)))
    x0_errors, eps_errors = (torch.cat(list(column)).double().cpu().numpy() for column in zip(*found, strict=True))
    return x0_errors, eps_errors


def validation_sets(train: ImageSet, held_out: ImageSet, count: int, model: Model) -> dict[str, ValidationSet]:
    """At most `count` pictures of each side, if it has any."""
    named = {HELD_OUT: held_out, TRAIN: train}
    return {name: validation_set(pictures, count, model) for name, pictures in named.items() if len(pictures)}


def validation_set(pictures: ImageSet, count: int, model: Model) -> ValidationSet:
    """The `count` pictures of the smallest hashes, with their classes if the model was told any."""
    some = pictures.taken(sorted(range(len(pictures)), key=pictures.hashes.__getitem__)[:count])
    labels = some.labels.to(model.device) if some.labels is not None and model.classes else None
    return ValidationSet(to_float(some.pixels).to(model.device), labels)

"""What a prediction costs at its timestep: a distance, perhaps of a width that follows the timestep, perhaps weighted.

A Criterion is put together once, before the loop, from the schedule it will be used with: on the schedule's device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from data.errors import choose
from data.shapes import PerSample, Table, Timesteps
from train.ddpm.losses import Loss
from train.ddpm.process import gather
from train.ddpm.schedule import Schedule


class Criterion(Protocol):
    """(B, ...) prediction and target, (B,) timesteps -> (B,) one number a sample."""

    def __call__(self, prediction: Tensor, target: Tensor, t: Timesteps) -> PerSample: ...


@dataclass(frozen=True)
class Plain:
    """The same distance at every timestep."""

    distance: Loss

    def __call__(self, prediction: Tensor, target: Tensor, t: Timesteps) -> PerSample:
        return self.distance(prediction, target)


@dataclass(frozen=True)
class Scheduled:
    """A distance that turns from squared to absolute at an error of widths[t]."""

    distance: Callable[[Tensor, Tensor, PerSample], PerSample]
    widths: Table

    def __call__(self, prediction: Tensor, target: Tensor, t: Timesteps) -> PerSample:
        return self.distance(prediction, target, gather(self.widths, t, like=prediction).flatten())


@dataclass(frozen=True)
class Weighted:
    """A criterion times weights[t]."""

    criterion: Criterion
    weights: Table

    def __call__(self, prediction: Tensor, target: Tensor, t: Timesteps) -> PerSample:
        errors = self.criterion(prediction, target, t)
        return gather(self.weights, t, like=errors) * errors


# ---- widths of Huber losses, c(t): (T,) float64
# Source: Khrapov et al. 2024, arXiv 2403.16728; the curves as kohya-ss/sd-scripts has them (pull request 1228).


def constant(schedule: Schedule, c: float) -> Table:
    """c(t) = c."""
    return torch.full_like(schedule.betas, c)


def exponential(schedule: Schedule, c: float) -> Table:
    """c(t) = c^(t / T): 1 where there is no noise, about c where there is nothing else."""
    t = torch.arange(schedule.steps, dtype=schedule.betas.dtype, device=schedule.betas.device)
    return (t / schedule.steps * math.log(c)).exp()


def snr(schedule: Schedule, c: float) -> Table:
    """c(t) = (1 - c) / (1 + sigma_t)^2 + c, sigma_t^2 = 1 / SNR(t): from 1 without noise to exactly c at zero SNR."""
    sigma = ((1.0 - schedule.alphas_cumprod) / schedule.alphas_cumprod).sqrt()
    return (1.0 - c) / (1.0 + sigma) ** 2 + c


WIDTHS: dict[str, Callable[[Schedule, float], Table]] = {"constant": constant, "exponential": exponential, "snr": snr}


def widths(name: str, schedule: Schedule, c: float) -> Table:
    """c(t) by the name of its curve; InputError with a suggestion for an unknown one."""
    return WIDTHS[choose(name, WIDTHS, what="Huber schedule")](schedule, c)

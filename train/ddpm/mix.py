"""The corruption of a first lesson: a straight mix of picture and noise, with the amount of noise to choose.

Source: Hugging Face's diffusion-models-class, unit 1. samplers.Naive draws with a network trained on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from data.errors import choose
from data.shapes import Images, PerSample, Timesteps


def corrupt(picture: Images, noise: Images, amount: PerSample) -> Images:
    """(B, C, H, W) pictures and noise, (B,) amounts in [0, 1] -> 0: the picture, 1: the noise."""
    assert picture.shape == noise.shape, f"one shape, not {tuple(picture.shape)} and {tuple(noise.shape)}"
    amount = amount.to(picture.dtype).reshape(-1, *[1] * (picture.ndim - 1))
    # x = (1 - amount) x_0 + amount z
    return (1.0 - amount) * picture + amount * noise


def amount(t: Timesteps, steps: int) -> PerSample:
    """The amount of noise at timesteps (B,) of [0, steps): (t + 1) / steps, float32; the last is noise alone."""
    return (t + 1).to(torch.float32) / steps


def gaussian(z: Tensor) -> Tensor:
    """Standard normal noise as it is, for pictures in [-1, 1]."""
    return z


def uniform(z: Tensor) -> Tensor:
    """Noise even in [-1, 1), made of standard normal noise by its distribution function.

    For pictures in [-1, 1] it is what the course's noise in [0, 1) is for its pictures in [0, 1].
    """
    # u = erf(z / sqrt(2))
    return torch.erf(z / math.sqrt(2.0))


NOISES: dict[str, Callable[[Tensor], Tensor]] = {"gaussian": gaussian, "uniform": uniform}


def noise(name: str) -> Callable[[Tensor], Tensor]:
    """What makes the noise `name` of NOISES out of standard normal noise; InputError for an unknown one."""
    return NOISES[choose(name, NOISES, what="noise")]

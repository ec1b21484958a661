"""Classifier-free guidance: one network, asked with a class and without, and the difference between its answers.

Source: Ho & Salimans 2022, arXiv 2207.12598, eq. 6; the scale here is their 1 + w.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from data.errors import InputError
from data.shapes import Images, Timesteps
from train.ddpm.prediction import Network

Conditional = Callable[[Images, Timesteps, Tensor], Tensor]  # (B, C, H, W), (B,) timesteps, (B,) int64 classes


def condition(network: Conditional, classes: Tensor) -> Network:
    """The network for pictures of the (B,) classes, without guidance."""

    def answer(xt: Images, t: Timesteps) -> Tensor:
        return network(xt, t, classes)

    return answer


def guide(network: Conditional, classes: Tensor, nothing: int, scale: float) -> Network:
    """Towards the (B,) classes by `scale`: 0 is without a class, 1 the class as learned, more of it above 1.

    nothing: the class that the network learned for pictures whose class was hidden. Both questions go through the
    network in one batch of 2B. It holds for eps, x_0, v and the mean alike, which depend on one another linearly; a
    learned variance (channels beyond C) is that of the class. InputError for a scale that is not a number.
    """
    if not torch.isfinite(torch.tensor(scale)):
        raise InputError(f"guidance scale {scale}", allowed="a number; 0 without a class, 1 the class as learned")

    def answer(xt: Images, t: Timesteps) -> Tensor:
        asked = torch.cat([classes, torch.full_like(classes, nothing)])
        with_class, without = network(torch.cat([xt, xt]), torch.cat([t, t]), asked).chunk(2)
        C = xt.shape[1]
        # eps = eps(nothing) + scale (eps(class) - eps(nothing))
        towards = without[:, :C] + scale * (with_class[:, :C] - without[:, :C])
        return torch.cat([towards, with_class[:, C:]], dim=1)

    return answer


def drop_classes(classes: Tensor, uniforms: Tensor, rate: float, nothing: int) -> Tensor:
    """(B,) classes for training, `rate` of them replaced by `nothing`. uniforms: (B,) numbers in [0, 1)."""
    return torch.where(uniforms < rate, torch.full_like(classes, nothing), classes)

"""Classifier-free guidance: one network, evaluated with a class and without, and the difference of the two outputs.

Source: Ho & Salimans 2022, arXiv 2207.12598, eq. 6; the scale here is their 1 + w.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from data.errors import InputError
from data.shapes import Images, Timesteps
from train.ddpm.prediction import Network

Conditional = Callable[..., Tensor]  # (B, C, H, W), (B,) timesteps, (B,) int64 classes or None


def guide(network: Conditional, classes: Tensor | None, no_class: int, scale: float) -> Network:
    """Guidance towards the (B,) classes: a scale of 0 is unconditional, 1 the class as learned, above 1 stronger.

    no_class: the label that the network learned for dropped classes. Both predictions are made in one batch of 2B. It
    holds for eps, x_0, v and the mean alike, which depend on one another linearly; a learned variance (channels
    beyond C) is that of the class. InputError for a scale that is not finite.
    """
    if not math.isfinite(scale):
        raise InputError(f"guidance scale {scale}", allowed="a number; 0 without a class, 1 the class as learned")
    if classes is None or scale == 1.0:
        return lambda xt, t: network(xt, t, classes)

    def guided(xt: Images, t: Timesteps) -> Tensor:
        labels = torch.cat([classes, torch.full_like(classes, no_class)])
        with_class, without = network(torch.cat([xt, xt]), torch.cat([t, t]), labels).chunk(2)
        C = xt.shape[1]
        # eps = eps(no class) + scale (eps(class) - eps(no class))
        towards = without[:, :C] + scale * (with_class[:, :C] - without[:, :C])
        return torch.cat([towards, with_class[:, C:]], dim=1)

    return guided


def drop_classes(classes: Tensor, uniforms: Tensor, rate: float, no_class: int) -> Tensor:
    """(B,) classes for training, `rate` of them replaced by `no_class`. uniforms: (B,) numbers in [0, 1)."""
    return torch.where(uniforms < rate, torch.full_like(classes, no_class), classes)

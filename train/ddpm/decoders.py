"""The last step, p_theta(x_0 | x_1): a probability of each of 256 grey levels, or a density.

Source: Ho et al. 2020, arXiv 2006.11239, section 3.3 and eq. 13.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.special import log_ndtr

from data.errors import InputError
from data.shapes import Images
from train.ddpm.process import wide

HALF_BIN = 1.0 / 255.0  # in [-1, 1], where 256 levels lie 2 / 255 apart


@dataclass(frozen=True)
class Decoder:
    """log_likelihood(x0, mean, log_variance): (B, C, H, W), natural. check(x0): InputError for what it cannot judge."""

    log_likelihood: Callable[[Images, Images, Tensor], Tensor]
    check: Callable[[Images], None]


def log_bin(x0: Images, mean: Images, log_variance: Tensor) -> Tensor:
    """log of the mass that N(mean, exp(log_variance)) has within 1/255 of x0, one of 256 levels of [-1, 1]; eq. 13.

    The bins at -1 and 1 are open outwards, so that all 256 sum to 1. In float64 and from logarithms of the normal
    distribution function: finite however far off the mean and however small the variance.
    """
    x0, mean, scale = wide(x0), wide(mean), (-wide(log_variance) / 2.0).exp()
    centre = x0 - mean
    # Phi(b) - Phi(a) = Phi(-a) - Phi(-b): on the side where both are small, nothing cancels
    flip = torch.where(centre > 0, -1.0, 1.0)
    lower, upper = (flip * centre - HALF_BIN) * scale, (flip * centre + HALF_BIN) * scale
    # log(Phi(b) - Phi(a)) = log Phi(b) + log(1 - exp(log Phi(a) - log Phi(b)))
    below, above = log_ndtr(lower), log_ndtr(upper)
    inside = above + torch.log(-torch.expm1(below - above))
    # delta_+(1) = infinity, delta_-(-1) = -infinity
    at_one, at_minus_one = log_ndtr((HALF_BIN - centre) * scale), log_ndtr((centre + HALF_BIN) * scale)
    return torch.where(x0 > 1.0 - HALF_BIN, at_one, torch.where(x0 < HALF_BIN - 1.0, at_minus_one, inside))


def log_density(x0: Images, mean: Images, log_variance: Tensor) -> Tensor:
    """log N(x0; mean, exp(log_variance)), for data that are not of 256 levels."""
    # -(log 2 pi + log s^2 + (x - m)^2 / s^2) / 2
    return -(math.log(2.0 * math.pi) + log_variance + (x0 - mean).square() * (-log_variance).exp()) / 2.0


def refuse_other_levels(x0: Images) -> None:
    """Raise InputError unless every value is one of 256 even levels of [-1, 1]: others have no probability."""
    level = (x0.float() + 1.0) * 127.5
    off = (level - level.round()).abs().max().item()
    low, high = x0.min().item(), x0.max().item()
    if off > 0.01 or low < -1.0 - 1e-6 or high > 1.0 + 1e-6:
        raise InputError(
            f"bits per dimension of values from {low:g} to {high:g}, up to {off:.2g} of a grey level off the levels",
            allowed="8-bit pictures, level / 127.5 - 1",
        )


def accept(x0: Images) -> None:
    """Every value has a density."""


discretised = Decoder(log_bin, refuse_other_levels)
continuous = Decoder(log_density, accept)
DECODERS: dict[str, Decoder] = {"discretised": discretised, "continuous": continuous}

"""Normal noise without a generator: made where it is used, as a function of a key, so that nothing has to be kept."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from data import seeds

if TYPE_CHECKING:
    from torch import Tensor

ONE = 2.0**seeds.COUNTED_BITS


def uniforms(keys: Tensor, salt: int, count: int) -> Tensor:
    """(B,) int64 -> (B, count) float32 in [0, 1): for each key and salt its own numbers, equal on every device."""
    return seeds.counted(keys, salt, count).float() / ONE


def normals(keys: Tensor, salt: int, shape: tuple[int, ...]) -> Tensor:
    """(B,) int64 -> (B, *shape) float32, standard normal and never beyond 5.9; devices differ by rounding alone.

    Source: Box & Muller 1958, two numbers of each pair.
    """
    import torch

    count = math.prod(shape)
    pairs = (count + 1) // 2
    numbers = seeds.counted(keys, salt, 2 * pairs).float()
    # in (0, 1]: the logarithm of 0 would be infinite
    first, second = (numbers[:, :pairs] + 0.5) / ONE, numbers[:, pairs:] / ONE
    # sqrt(-2 log u_1) (cos, sin)(2 pi u_2)
    radius, angle = (-2.0 * first.log()).sqrt(), (2.0 * math.pi) * second
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count].reshape(-1, *shape)

"""Bytes that training keeps beside the weights: what an optimiser remembers of them, and an average of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from train.config import Averaging


@dataclass(frozen=True)
class AverageBytes:
    """What an average of the weights takes, on the training device and wherever it lies."""

    device: int
    anywhere: int


def ema_bytes(average: Averaging, trained: int) -> AverageBytes:
    """A float32 number a trained weight, if there is an average."""
    total = 4 * trained if average.decay else 0
    return AverageBytes(total if average.device == "same" else 0, total)


def optimizer_bytes(kind: str, shapes: Iterable[Sequence[int]]) -> int:
    """Bytes of optimiser state for weights of these shapes; a few for the steps it counts are left out."""
    return sum(STATE[kind](shape) for shape in shapes)


def two_moments(shape: Sequence[int]) -> int:
    return 8 * math.prod(shape)


def two_bytes(shape: Sequence[int]) -> int:
    """Two 8-bit moments, a float32 scale of each for every 256 numbers, and a table; small ones stay in float32."""
    numbers = math.prod(shape)
    return two_moments(shape) if numbers < 4096 else 2 * numbers + 2 * 4 * math.ceil(numbers / 256) + 2 * 4 * 256


def rows_and_columns(shape: Sequence[int]) -> int:
    """A number for each row and each column of the last two dimensions: little for a matrix, not for a convolution."""
    if len(shape) < 2:
        return 4 * math.prod(shape)
    *outer, rows, columns = shape
    return 4 * math.prod(outer) * (rows + columns)


def four_numbers(shape: Sequence[int]) -> int:
    """Two moments, the starting point and a running sum of gradients; at most: zeros to start from take one number."""
    return 16 * math.prod(shape)


STATE = {
    "adamw": two_moments,
    "adamw-8bit": two_bytes,
    "adafactor": rows_and_columns,
    "prodigy": four_numbers,
    "schedule-free": two_moments,
}

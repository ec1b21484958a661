"""Kernel distances, unbiased at any number of pictures: KID with a standard error, and CMMD.

KID's source: Binkowski et al. 2018, arXiv 1801.01401, section 4: the squared maximum mean discrepancy with the kernel
k(x, y) = (x y / d + 1)^3. It may come out below 0 by chance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data import seeds
from data.errors import InputError
from data.metrics.checks import Matrix, rows, same_width, unit

Kernel = Callable[[Matrix, Matrix], Matrix]
SIGMA = 10.0


@dataclass(frozen=True)
class KernelDistance:
    """value: of all pictures at once. error: standard error of it, over splits of the pictures into blocks."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.5f} ± {self.error:.5f}"


def kernel_distance(real: Matrix, drawn: Matrix, *, blocks: int = 10, seed: int = 0) -> KernelDistance:
    """Of (n, d) and (m, d) features. Raises InputError for fewer than two rows a block."""
    fewest = min(len(real), len(drawn))
    if fewest < 2 * blocks:
        raise InputError(f"a kernel distance of {fewest} pictures", allowed=f"{2 * blocks} or more on each side")
    x, y = np.asarray(real, np.float64), np.asarray(drawn, np.float64)
    parts = [np.array_split(side[seeds.permutation(len(side), seed, "blocks", name)], blocks) for side, name in
             ((x, "real"), (y, "drawn"))]  # fmt: skip
    each = [unbiased(a, b) for a, b in zip(*parts, strict=True)]
    return KernelDistance(unbiased(x, y), float(np.std(each, ddof=1) / np.sqrt(blocks)))


def kernel(x: Matrix, y: Matrix) -> Matrix:
    """k(x, y) = (x y / d + 1)^3, (n, d) and (m, d) -> (n, m)."""
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def unbiased(x: Matrix, y: Matrix, kernel: Kernel = kernel) -> float:
    """MMD^2_u: pictures are not compared with themselves. Source: Gretton et al. 2012, JMLR 13, eq. 3."""
    n, m = len(x), len(y)
    within_x, within_y = kernel(x, x), kernel(y, y)
    # sum_{i != j} k(x_i, x_j) / (n (n - 1)) + the same of y - 2 mean k(x_i, y_j)
    return float(
        (within_x.sum() - np.trace(within_x)) / (n * (n - 1))
        + (within_y.sum() - np.trace(within_y)) / (m * (m - 1))
        - 2.0 * kernel(x, y).mean()
    )


def gaussian(x: Matrix, y: Matrix) -> Matrix:
    """k(x, y) = exp(-|x - y|^2 / (2 10^2)) of rows of length 1. Source: Jayasumana et al. 2024, arXiv 2401.09603."""
    square = (x**2).sum(1)[:, None] + (y**2).sum(1)[None, :] - 2.0 * x @ y.T
    return np.exp(-np.clip(square, 0.0, None) / (2.0 * SIGMA**2))


def cmmd(real: Matrix, drawn: Matrix) -> float:
    """1000 MMD^2_u with the Gaussian kernel, of text-image features (n, d) and (m, d).

    The published number keeps pictures' likeness to themselves, which adds about 10 / n; this one is unbiased, so it
    may come out below 0. It sees means (about 10 |mean difference|^2) and hardly spread: read it beside coverage.
    """
    x, y = rows(real, "real", least=2), rows(drawn, "drawn", least=2)
    same_width(x, y)
    return 1000.0 * unbiased(unit(x), unit(y), gaussian)

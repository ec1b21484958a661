"""Precision and recall, density and coverage: is what was drawn like real pictures, and is every real one like some?

A set's manifold is the union of balls about its pictures, each reaching to its k-th nearest neighbour in the set.
Source: Kynkaanniemi et al. 2019, arXiv 1904.06991, section 3 (k = 3); Naeem et al. 2020, arXiv 2002.09797, section 3
(k = 5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.errors import InputError
from data.metrics.checks import Matrix

BLOCK = 2048  # rows compared at a time


@dataclass(frozen=True)
class Manifold:
    """precision, recall, coverage: shares in [0, 1]. density: balls over each drawn picture, by k; 1 is typical."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(real: Matrix, drawn: Matrix, *, k: int = 3) -> Manifold:
    """Of (n, d) and (m, d) features. Raises InputError for k or fewer rows on a side."""
    fewest = min(len(real), len(drawn))
    if fewest <= k:
        raise InputError(f"precision and recall of {fewest} pictures", allowed=f"{k + 1} or more on each side")
    x, y = np.asarray(real, np.float64), np.asarray(drawn, np.float64)
    real_reach, drawn_reach = reach(x, k), reach(y, k)
    inside = np.zeros(len(y))  # real balls that each drawn picture lies in
    covered = np.zeros(len(x), bool)
    recalled = np.zeros(len(x), bool)
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        gap = distances(x[rows], y)
        within = gap < real_reach[rows, None]
        inside += within.sum(axis=0)
        covered[rows] = within.any(axis=1)
        recalled[rows] = (gap < drawn_reach[None, :]).any(axis=1)
    return Manifold(
        precision=float((inside > 0).mean()),
        recall=float(recalled.mean()),
        density=float(inside.mean() / k),
        coverage=float(covered.mean()),
    )


def reach(x: Matrix, k: int) -> Matrix:
    """(n,) the distance of each row to its k-th nearest other row."""
    found = np.empty(len(x))
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        # the nearest row of all is the row itself
        found[rows] = np.partition(distances(x[rows], x), k, axis=1)[:, k]
    return found


def distances(x: Matrix, y: Matrix) -> Matrix:
    """(n, m) Euclidean distances."""
    square = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None, :] - 2.0 * x @ y.T
    return np.sqrt(np.clip(square, 0.0, None))

"""Precision and recall, density and coverage: is what was generated like real images, and is every real one like some?

A set's manifold is the union of balls about its images, each reaching to its k-th nearest neighbour in the set.
Source: Kynkaanniemi et al. 2019, arXiv 1904.06991, section 3 (k = 3); Naeem et al. 2020, arXiv 2002.09797, section 3
(k = 5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.errors import InputError
from data.metrics.distances import Matrix, check_features, unit_rows

BLOCK = 2048  # rows compared at a time


@dataclass(frozen=True)
class PrecisionRecall:
    """precision, recall, coverage: shares in [0, 1]. density: balls over each generated image, by k; 1 is typical."""

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(real: Matrix, generated: Matrix, *, k: int = 3) -> PrecisionRecall:
    """Of (n, d) and (m, d) features. Raises InputError for k or fewer rows on a side."""
    fewest = min(len(real), len(generated))
    if fewest <= k:
        raise InputError(f"precision and recall of {fewest} images", allowed=f"{k + 1} or more on each side")
    x, y = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    real_reach, drawn_reach = neighbour_radius(x, k), neighbour_radius(y, k)
    inside = np.zeros(len(y))  # real balls that each generated image lies in
    covered = np.zeros(len(x), bool)
    recalled = np.zeros(len(x), bool)
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        gap = pairwise_distances(x[rows], y)
        within = gap < real_reach[rows, None]
        inside += within.sum(axis=0)
        covered[rows] = within.any(axis=1)
        recalled[rows] = (gap < drawn_reach[None, :]).any(axis=1)
    return PrecisionRecall(
        precision=float((inside > 0).mean()),
        recall=float(recalled.mean()),
        density=float(inside.mean() / k),
        coverage=float(covered.mean()),
    )


def neighbour_radius(x: Matrix, k: int) -> Matrix:
    """(n,) the distance of each row to its k-th nearest other row."""
    found = np.empty(len(x))
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        # the nearest row of all is the row itself
        found[rows] = np.partition(pairwise_distances(x[rows], x), k, axis=1)[:, k]
    return found


def pairwise_distances(x: Matrix, y: Matrix) -> Matrix:
    """(n, m) Euclidean distances."""
    square = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None, :] - 2.0 * x @ y.T
    return np.sqrt(np.clip(square, 0.0, None))


def vendi_score(features: Matrix) -> float:
    """exp of the entropy of the eigenvalues of K / n, K the cosines: 1 for n copies, n for n unlike images.

    It grows with n, so only sets of equal n may be compared. Source: Friedman & Dieng 2023, arXiv 2210.02410, eq. 2.
    """
    x = unit_rows(check_features(features, "Vendi score"))
    # X X^T / n and X^T X / n have the same eigenvalues above 0; the smaller matrix is taken
    gram = (x @ x.T if len(x) <= x.shape[1] else x.T @ x) / len(x)
    values = np.linalg.eigvalsh(gram)
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def mean_pairwise_distance(features: Matrix) -> float:
    """The mean of 1 - cosine over all pairs, in [0, 2]."""
    x = unit_rows(check_features(features, "mean distance", least=2))
    total = x.sum(axis=0)
    return float(1.0 - (total @ total - (x**2).sum()) / (len(x) * (len(x) - 1)))

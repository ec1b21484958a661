"""How unlike each other the pictures of a set are."""

from __future__ import annotations

import numpy as np

from data.metrics.checks import Matrix, rows, unit


def vendi(features: Matrix) -> float:
    """exp of the entropy of the eigenvalues of K / n, K the cosines: 1 for n copies, n for n unlike pictures.

    It grows with n, so only sets of equal n may be compared. Source: Friedman & Dieng 2023, arXiv 2210.02410, eq. 2.
    """
    x = unit(rows(features, "Vendi score"))
    # X X^T / n and X^T X / n have the same eigenvalues above 0; the smaller matrix is taken
    gram = (x @ x.T if len(x) <= x.shape[1] else x.T @ x) / len(x)
    values = np.linalg.eigvalsh(gram)
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def mean_distance(features: Matrix) -> float:
    """The mean of 1 - cosine over all pairs, in [0, 2]."""
    x = unit(rows(features, "mean distance", least=2))
    total = x.sum(axis=0)
    return float(1.0 - (total @ total - (x**2).sum()) / (len(x) * (len(x) - 1)))

"""The Frechet distance between two sets of features, seen as Gaussians: with Inception features it is called FID.

Source: Heusel et al. 2017, arXiv 1706.08500, eq. 6; Dowson & Landau 1982. The number means nothing without the name of
the features and the number of pictures: it is biased upwards by about 1 / n.
"""

from __future__ import annotations

import numpy as np

from data import seeds
from data.errors import InputError
from data.metrics.checks import Matrix, rows, same_width


def frechet(real: Matrix, drawn: Matrix) -> float:
    """d^2 = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of (n, d) and (m, d) features, at least 0.

    Raises InputError for d or fewer rows on a side: their covariance has no inverse, and the distance would be of the
    few directions that they happen to span.
    """
    refuse_few(real, drawn)
    moments = [(side.mean(axis=0), np.cov(side, rowvar=False, ddof=1).reshape(side.shape[1], -1)) for side in
               (np.asarray(real, np.float64), np.asarray(drawn, np.float64))]  # fmt: skip
    return of_gaussians(*moments[0], *moments[1])


def of_gaussians(mean: Matrix, covariance: Matrix, other_mean: Matrix, other_covariance: Matrix) -> float:
    """The distance between N(mean, covariance) and another; (d,) and (d, d)."""
    gap = mean - other_mean
    # tr (C1 C2)^(1/2) = tr (C1^(1/2) C2 C1^(1/2))^(1/2), and that is symmetric: its eigenvalues are real
    root = symmetric_root(covariance)
    values = np.linalg.eigvalsh(root @ other_covariance @ root)
    cross = np.sqrt(np.clip(values, 0.0, None)).sum()
    return float(max(0.0, gap @ gap + np.trace(covariance) + np.trace(other_covariance) - 2.0 * cross))


def symmetric_root(matrix: Matrix) -> Matrix:
    """The square root of a positive semi-definite matrix; eigenvalues under 0 are rounding."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T


def refuse_few(*sides: Matrix) -> None:
    """Raise InputError unless each side has more rows than columns."""
    width, fewest = sides[0].shape[1], min(map(len, sides))
    assert all(side.ndim == 2 and side.shape[1] == width for side in sides), [side.shape for side in sides]
    if fewest <= width:
        raise InputError(
            f"a Frechet distance of {fewest} pictures in {width} features",
            allowed=f"{width + 1} pictures or more on each side",
            fix="Draw more, or take features of fewer dimensions.",
        )


def frechet_of_few(real: Matrix, drawn: Matrix) -> float:
    """The same distance where there are fewer rows than columns, in the time of the rows: a number for those who ask.

    tr (C1 C2)^(1/2) is the sum of the singular values of X Y^T / sqrt((n - 1)(m - 1)), X and Y the centred rows. It is
    far above the distance of the sources: print `bias` beside it, and use the kernel distance to conclude anything.
    """
    x, y = rows(real, "real", least=2), rows(drawn, "drawn", least=2)
    same_width(x, y)
    gap = x.mean(axis=0) - y.mean(axis=0)
    x, y = (x - x.mean(axis=0)) / np.sqrt(len(x) - 1), (y - y.mean(axis=0)) / np.sqrt(len(y) - 1)
    cross = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return float(max(0.0, gap @ gap + (x**2).sum() + (y**2).sum() - 2.0 * cross))


def bias(real: Matrix, *, draws: int = 10, seed: int = 0) -> float:
    """What two halves of the real set are apart: the mean over `draws` splits, a floor that no model can go under."""
    x = rows(real, "real", least=4)
    half = len(x) // 2
    orders = [seeds.permutation(len(x), seed, "halves", draw) for draw in range(draws)]
    return float(np.mean([frechet_of_few(x[order[:half]], x[order[half : 2 * half]]) for order in orders]))

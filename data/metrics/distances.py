"""Distances between two sets of features (Frechet or FID, kernel or KID, CMMD), and how far one covers the other.

A Frechet distance sees the sets as Gaussians; it means nothing without the name of the features and the number of
images: it is biased upwards by about 1 / n. Source: Heusel et al. 2017, arXiv 1706.08500, eq. 6; Dowson & Landau 1982.
Kernel distances are unbiased at any number of images, and may come out below 0 by chance.

Precision, recall, density, coverage: a set's manifold is the union of balls about its images, each reaching to its k-th
nearest neighbour in the set. Source: Kynkaanniemi et al. 2019, arXiv 1904.06991, section 3 (k = 3); Naeem et al. 2020,
arXiv 2002.09797, section 3 (k = 5).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data import rng
from data.errors import InputError

Matrix = NDArray[np.floating]
Vector = NDArray[np.floating]
Kernel = Callable[[Matrix, Matrix], Matrix]
SIGMA = 10.0  # of the Gaussian kernel
BLOCK = 2048  # rows compared at a time by precision and recall


def check_features(features: Matrix, what: str, *, least: int = 1) -> NDArray[np.float64]:
    """The (n, d) features as float64. Raises InputError for fewer than `least` rows and for NaN or infinity."""
    matrix = np.asarray(features, np.float64)
    assert matrix.ndim == 2, matrix.shape
    if len(matrix) < least:
        raise InputError(f"{what}: {len(matrix)} images", allowed=f"{least} or more")
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(bad):
        what = f"{what}: the features of {len(bad)} images are not finite, the first is number {bad[0]}"
        raise InputError(what, fix="Check these images, or run the extractor in fp32.")
    return matrix


def check_same_width(*sides: Matrix) -> None:
    """Raise InputError for features of different extractors."""
    widths = sorted({side.shape[1] for side in sides})
    if len(widths) > 1:
        what = f"features of different widths: {' and '.join(map(str, widths))}"
        raise InputError(what, fix="Encode all images with one extractor.")


def unit_rows(features: Matrix) -> NDArray[np.float64]:
    """Rows of length 1, so that a product of two is a cosine; a row of zeros stays zero."""
    matrix = np.asarray(features, np.float64)
    return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)


def frechet_distance(real: Matrix, generated: Matrix) -> float:
    """d^2 = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), at least 0. InputError for d or fewer rows on a side."""
    check_enough_rows(real, generated)
    (first, own), (second, other) = (
        (side.mean(axis=0), np.cov(side, rowvar=False, ddof=1).reshape(side.shape[1], -1))
        for side in (np.asarray(real, np.float64), np.asarray(generated, np.float64))
    )
    return gaussian_frechet_distance(first, own, second, other)


def gaussian_frechet_distance(mean: Matrix, covariance: Matrix, other_mean: Matrix, other_covariance: Matrix) -> float:
    """The distance between N(mean, covariance) and another; (d,) and (d, d)."""
    gap = mean - other_mean
    # tr (C1 C2)^(1/2) = tr (C1^(1/2) C2 C1^(1/2))^(1/2), which is symmetric: its eigenvalues are real
    root = symmetric_root(covariance)
    values = np.linalg.eigvalsh(root @ other_covariance @ root)
    cross = np.sqrt(np.clip(values, 0.0, None)).sum()
    return float(max(0.0, gap @ gap + np.trace(covariance) + np.trace(other_covariance) - 2.0 * cross))


def symmetric_root(matrix: Matrix) -> Matrix:
    """The square root of a positive semi-definite matrix; negative eigenvalues are rounding."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T


def check_enough_rows(*sides: Matrix) -> None:
    """Raise InputError unless each side has more rows than columns."""
    width, fewest = sides[0].shape[1], min(map(len, sides))
    assert all(side.ndim == 2 and side.shape[1] == width for side in sides), [side.shape for side in sides]
    if fewest <= width:
        what, allowed = f"a Frechet distance of {fewest} images in {width} features", f"{width + 1} images or more"
        raise InputError(what, allowed=f"{allowed} on each side", fix="Generate more, or use fewer features.")


def small_sample_frechet_distance(real: Matrix, generated: Matrix) -> float:
    """The same distance with fewer rows than columns, where it is far too large: print `frechet_bias` with it.

    tr (C1 C2)^(1/2) is the sum of the singular values of X Y^T / sqrt((n - 1)(m - 1)), X and Y the centred rows.
    """
    x, y = check_features(real, "real", least=2), check_features(generated, "generated", least=2)
    check_same_width(x, y)
    gap = x.mean(axis=0) - y.mean(axis=0)
    x, y = (x - x.mean(axis=0)) / np.sqrt(len(x) - 1), (y - y.mean(axis=0)) / np.sqrt(len(y) - 1)
    cross = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return float(max(0.0, gap @ gap + (x**2).sum() + (y**2).sum() - 2.0 * cross))


def frechet_bias(real: Matrix, *, draws: int = 10, seed: int = 0) -> float:
    """The distance of two halves of the real set: the mean over `draws` splits, a floor for any model."""
    x = check_features(real, "real", least=4)
    half = len(x) // 2
    orders = [rng.permutation(len(x), seed, "halves", draw) for draw in range(draws)]
    halves = [(x[order[:half]], x[order[half : 2 * half]]) for order in orders]
    return float(np.mean([small_sample_frechet_distance(a, b) for a, b in halves]))


@dataclass(frozen=True)
class KernelDistance:
    """value: of all images at once. error: its standard error, over splits of the images into blocks."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.5f} ± {self.error:.5f}"


def kernel_distance(real: Matrix, generated: Matrix, *, blocks: int = 10, seed: int = 0) -> KernelDistance:
    """KID (Binkowski et al. 2018, arXiv 1801.01401, section 4). InputError for fewer than two rows a block."""
    fewest = min(len(real), len(generated))
    if fewest < 2 * blocks:
        raise InputError(f"a kernel distance of {fewest} images", allowed=f"{2 * blocks} or more on each side")
    x, y = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    x_blocks = np.array_split(x[rng.permutation(len(x), seed, "blocks", "real")], blocks)
    y_blocks = np.array_split(y[rng.permutation(len(y), seed, "blocks", "drawn")], blocks)
    each = [unbiased_mmd(a, b) for a, b in zip(x_blocks, y_blocks, strict=True)]
    return KernelDistance(unbiased_mmd(x, y), float(np.std(each, ddof=1) / np.sqrt(blocks)))


def polynomial_kernel(x: Matrix, y: Matrix) -> Matrix:
    """k(x, y) = (x y / d + 1)^3, (n, d) and (m, d) -> (n, m)."""
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def unbiased_mmd(x: Matrix, y: Matrix, kernel: Kernel = polynomial_kernel) -> float:
    """MMD^2_u: images are not compared with themselves. Source: Gretton et al. 2012, JMLR 13, eq. 3."""
    n, m = len(x), len(y)
    within_x, within_y = kernel(x, x), kernel(y, y)
    # sum_{i != j} k(x_i, x_j) / (n (n - 1)) + the same of y - 2 mean k(x_i, y_j)
    return float(
        (within_x.sum() - np.trace(within_x)) / (n * (n - 1))
        + (within_y.sum() - np.trace(within_y)) / (m * (m - 1))
        - 2.0 * kernel(x, y).mean()
    )


def gaussian_kernel(x: Matrix, y: Matrix) -> Matrix:
    """k(x, y) = exp(-|x - y|^2 / (2 10^2)) of rows of length 1. Source: Jayasumana et al. 2024, arXiv 2401.09603."""
    return np.exp(-squared_distances(x, y) / (2.0 * SIGMA**2))


def cmmd(real: Matrix, generated: Matrix) -> float:
    """1000 MMD^2_u with the Gaussian kernel, of text-image features (n, d) and (m, d).

    The published number compares images with themselves, which adds about 10 / n; this one is unbiased. It sees means
    (about 10 |mean difference|^2) and hardly spread: read it with coverage.
    """
    x, y = check_features(real, "real", least=2), check_features(generated, "generated", least=2)
    check_same_width(x, y)
    return 1000.0 * unbiased_mmd(unit_rows(x), unit_rows(y), gaussian_kernel)


# ---- coverage


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
    precision, density = float((inside > 0).mean()), float(inside.mean() / k)
    return PrecisionRecall(precision, float(recalled.mean()), density, float(covered.mean()))


def neighbour_radius(x: Matrix, k: int) -> Matrix:
    """(n,) the distance of each row to its k-th nearest other row."""
    blocks = (x[start : start + BLOCK] for start in range(0, len(x), BLOCK))
    # the nearest row of all is the row itself
    return np.concatenate([np.partition(pairwise_distances(rows, x), k, axis=1)[:, k] for rows in blocks])


def squared_distances(x: Matrix, y: Matrix) -> Matrix:
    """(n, m) squares of Euclidean distances; rounding below 0 is clipped."""
    return np.clip((x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None, :] - 2.0 * x @ y.T, 0.0, None)


def pairwise_distances(x: Matrix, y: Matrix) -> Matrix:
    """(n, m) Euclidean distances."""
    return np.sqrt(squared_distances(x, y))


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

"""Confidence intervals and tests of evaluation numbers.

Images of one prompt are alike, so they are one observation: everything here counts *clusters* (prompts, runs), never
images. `tests/unit/test_metrics.py` shows by simulation that the intervals cover the truth 95 times in 100.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data import rng
from data.errors import InputError
from data.metrics.distances import Matrix, Vector, check_features, check_same_width, polynomial_kernel

Labels = Sequence[object] | NDArray[np.generic]
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its interval (95 % by default)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"

    def excludes(self, value: float) -> bool:
        return not self.low <= value <= self.high


def cluster_means(values: Vector, clusters: Labels) -> NDArray[np.float64]:
    """The mean of each cluster's values, in order of first appearance."""
    places: dict[object, int] = {}
    index = np.array([places.setdefault(label, len(places)) for label in clusters])
    assert len(index) == len(values), (len(index), len(values))
    return np.bincount(index, weights=np.asarray(values, np.float64)) / np.bincount(index)


def mean_interval(values: Vector, clusters: Labels, *, level: float = LEVEL) -> Interval:
    """The mean of cluster means, with Student's t over clusters. Raises InputError for fewer than two clusters."""
    means = cluster_means(values, clusters)
    if len(means) < 2:
        raise InputError(f"an interval over {len(means)} prompts", allowed="2 or more")
    error = float(means.std(ddof=1) / math.sqrt(len(means)))
    return student_interval(float(means.mean()), error, len(means) - 1, level)


def student_interval(value: float, error: float, degrees: int, level: float = LEVEL) -> Interval:
    """value +- t * error, t the quantile of Student's distribution."""
    from scipy.stats import t

    half = float(t.ppf(0.5 + level / 2.0, degrees)) * error
    return Interval(value, value - half, value + half)


def jackknife_interval(
    statistic: Callable[[NDArray[np.bool_]], float], clusters: Labels, *, level: float = LEVEL
) -> Interval:
    """The interval of a statistic of whole sets, by leaving out one cluster at a time.

    statistic: of a mask (n,) of the rows to use. The bootstrap would compare images with themselves, which unbiased
    distances take for closeness. Source: Efron & Tibshirani 1993, chapter 11.
    """
    labels = np.array([str(label) for label in clusters])
    names = np.unique(labels)
    count = len(names)
    if count < 3:
        raise InputError(f"leaving out one of {count} prompts", allowed="3 prompts or more")
    left_out = np.array([statistic(labels != name) for name in names])
    error = math.sqrt((count - 1) * float(left_out.var()))
    return student_interval(statistic(np.ones(len(labels), bool)), error, count - 1, level)


def wilson_interval(successes: int, trials: int, *, level: float = LEVEL) -> Interval:
    """The interval of a proportion. Source: Wilson 1927; holds its level from a handful of trials on."""
    from scipy.stats import binomtest

    if not 0 <= successes <= trials or trials == 0:
        raise InputError(f"{successes} of {trials}", allowed="0 to all of 1 or more")
    ends = binomtest(successes, trials).proportion_ci(level, method="wilson")
    return Interval(successes / trials, float(ends.low), float(ends.high))


def resampled_interval(differences: Vector, train: int, test: int, *, level: float = LEVEL) -> Interval:
    """The mean of J paired differences, each on a new split of the same images into train and test.

    Splits share images, so the differences are not independent: the variance counts 1/J + test/train times, not 1/J.
    Source: Nadeau & Bengio 2003, Machine Learning 52, eq. 8.
    """
    values = np.asarray(differences, np.float64)
    if len(values) < 2:
        raise InputError(f"an interval over {len(values)} repeats", allowed="2 or more")
    error = math.sqrt((1 / len(values) + test / train) * float(values.var(ddof=1)))
    return student_interval(float(values.mean()), error, len(values) - 1, level)


def kernel_two_sample_test(x: Matrix, y: Matrix, *, draws: int = 1000, seed: int = 0) -> float:
    """Permutation p-value of the kernel distance under "both sets come from the same distribution".

    p = (1 + permutations at least as far apart) / (1 + draws). Source: Gretton et al. 2012, JMLR 13, section 8.
    """
    x, y = check_features(x, "x", least=2), check_features(y, "y", least=2)
    check_same_width(x, y)
    pooled = np.concatenate([x, y])
    gram = polynomial_kernel(pooled, pooled)
    np.fill_diagonal(gram, 0.0)
    sides = np.zeros((draws + 1, len(pooled)))
    sides[:, : len(x)] = 1.0
    orders = np.random.default_rng(rng.seed_for(seed, "exchange")).permuted(sides, axis=1)
    orders[0] = sides[0]
    distances = permuted_mmd(gram, orders)
    return float((1 + (distances[1:] >= distances[0] - 1e-12 * abs(distances[0])).sum()) / (1 + draws))


def permuted_mmd(gram: Matrix, sides: Matrix) -> Vector:
    """MMD^2_u for each row of `sides` (1: first set, 0: second); the diagonal of gram is 0."""
    n, m = sides[0].sum(), (1.0 - sides[0]).sum()
    to_first = sides @ gram  # (draws, images): sum of kernels with the first set
    within_first = (to_first * sides).sum(axis=1)
    across = (to_first * (1.0 - sides)).sum(axis=1)
    within_second = gram.sum() - within_first - 2.0 * across
    return within_first / (n * (n - 1)) + within_second / (m * (m - 1)) - 2.0 * across / (n * m)


def sign_flip_test(differences: Vector, clusters: Labels, *, draws: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of "base and tuned differ by chance" (Fisher 1935, chapter III); exact for up to 13 prompts."""
    means = cluster_means(differences, clusters)
    count = len(means)
    if count < 2:
        raise InputError(f"a test over {count} prompts", allowed="2 or more")
    exact = 2**count <= draws
    signs = all_signs(count) if exact else random_signs(draws, count, seed)
    far = np.abs(signs @ means) >= abs(means.sum()) * (1 - 1e-12)
    return float(far.mean()) if exact else float((1 + far.sum()) / (1 + draws))


def all_signs(count: int) -> NDArray[np.float64]:
    """(2^count, count) of -1 and 1, every pattern once."""
    return 1.0 - 2.0 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)


def random_signs(draws: int, count: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(rng.seed_for(seed, "signs")).choice([-1.0, 1.0], size=(draws, count))


def equivalence_test(differences: Vector, clusters: Labels, margin: float) -> float:
    """The p-value of "they differ by `margin` or more": small means equal for all purposes, not just uncertain.

    Two one-sided t tests over clusters; the larger p counts. Source: Schuirmann 1987, J. Pharmacokin. Biopharm. 15.
    """
    from scipy.stats import t

    assert margin > 0, margin
    means = cluster_means(differences, clusters)
    if len(means) < 2:
        raise InputError(f"a test over {len(means)} prompts", allowed="2 or more")
    error, degrees = float(means.std(ddof=1) / math.sqrt(len(means))), len(means) - 1
    if error == 0.0:
        return 0.0 if abs(means.mean()) < margin else 1.0
    above = t.sf((means.mean() + margin) / error, degrees)  # against "below -margin"
    below = t.sf((margin - means.mean()) / error, degrees)
    return float(max(above, below))


def holm_correction(values: Mapping[str, float] | Sequence[float]) -> dict[str, float]:
    """p-values corrected for multiple comparisons; a sequence is named by place. Holm 1979, Scand. J. Statist. 6."""
    named = dict(values) if isinstance(values, Mapping) else {str(place): p for place, p in enumerate(values)}
    adjusted: dict[str, float] = {}
    highest = 0.0
    for place, (name, p) in enumerate(sorted(named.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(named) - place) * p))
        adjusted[name] = highest
    return {name: adjusted[name] for name in named}

"""Is a difference more than chance, and is no difference more than ignorance: permutations, sign flips, TOST, Holm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from data import seeds
from data.errors import InputError
from data.metrics.checks import Matrix, Vector, rows, same_width
from data.metrics.intervals import Labels, cluster_means
from data.metrics.kernel import kernel

DRAWS = 1000


def same_distribution(x: Matrix, y: Matrix, *, draws: int = DRAWS, seed: int = 0) -> float:
    """The p-value of the kernel distance under "both sets come from one source", by exchanging rows.

    p = (1 + how many exchanges are at least as far apart) / (1 + draws). Source: Gretton et al. 2012, JMLR 13, section
    8. The Gram matrix is computed once; every exchange only adds it up in another order.
    """
    x, y = rows(x, "x", least=2), rows(y, "y", least=2)
    same_width(x, y)
    pooled = np.concatenate([x, y])
    gram = kernel(pooled, pooled)
    np.fill_diagonal(gram, 0.0)
    sides = np.zeros((draws + 1, len(pooled)))
    sides[:, : len(x)] = 1.0
    orders = np.random.default_rng(seeds.seed_for(seed, "exchange")).permuted(sides, axis=1)
    orders[0] = sides[0]
    distances = exchanged(gram, orders)
    return float((1 + (distances[1:] >= distances[0] - 1e-12 * abs(distances[0])).sum()) / (1 + draws))


def exchanged(gram: Matrix, sides: Matrix) -> Vector:
    """MMD^2_u for each row of `sides`, which says by 1 and 0 to which set a picture belongs; the diagonal is 0."""
    n, m = sides[0].sum(), (1.0 - sides[0]).sum()
    to_first = sides @ gram  # (draws, pictures): sum of kernels with the first set
    within_first = (to_first * sides).sum(axis=1)
    across = (to_first * (1.0 - sides)).sum(axis=1)
    within_second = gram.sum() - within_first - 2.0 * across
    return within_first / (n * (n - 1)) + within_second / (m * (m - 1)) - 2.0 * across / (n * m)


def paired(differences: Vector, clusters: Labels, *, draws: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of "base and tuned differ by chance": the signs of whole prompts' differences are flipped.

    Exact (all sign patterns) for up to 13 prompts. Source: Fisher 1935, chapter III.
    """
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
    rng = np.random.default_rng(seeds.seed_for(seed, "signs"))
    return rng.choice([-1.0, 1.0], size=(draws, count))


def equivalent(differences: Vector, clusters: Labels, margin: float) -> float:
    """The p-value of "they differ by `margin` or more": small means equal for all purposes.

    A difference that is "not significant" may only be badly known; this test says which.
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


def holm(values: Mapping[str, float] | Sequence[float]) -> dict[str, float]:
    """p-values of several questions asked together, so that the chance of any false alarm is that of one.

    The k-th smallest of n is multiplied by n - k + 1, and none is below its forerunner. Source: Holm 1979, Scand. J.
    Statist. 6. Names are kept; a sequence is named by its places.
    """
    named = dict(values) if isinstance(values, Mapping) else {str(place): p for place, p in enumerate(values)}
    adjusted: dict[str, float] = {}
    highest = 0.0
    for place, (name, p) in enumerate(sorted(named.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(named) - place) * p))
        adjusted[name] = highest
    return {name: adjusted[name] for name in named}

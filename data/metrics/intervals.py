"""How sure a number is: intervals over prompts, leave-one-out errors of set metrics, shares, repeats on redrawn splits.

Pictures of one prompt are alike, so they are one observation: everything here counts *clusters* (prompts, runs), never
pictures. `tests/unit/test_metric_intervals.py` shows by simulation that the intervals hold the truth 95 times in 100.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.metrics.checks import Vector

Labels = Sequence[object] | NDArray[np.generic]
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its interval (95 % unless told)."""

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
    return student(float(means.mean()), float(means.std(ddof=1) / math.sqrt(len(means))), len(means) - 1, level)


def student(value: float, error: float, degrees: int, level: float = LEVEL) -> Interval:
    """value +- t * error, t the quantile of Student's distribution with so many degrees of freedom."""
    from scipy.stats import t

    half = float(t.ppf(0.5 + level / 2.0, degrees)) * error
    return Interval(value, value - half, value + half)


def jackknife(statistic: Callable[[NDArray[np.bool_]], float], clusters: Labels, *, level: float = LEVEL) -> Interval:
    """The interval of a number that only whole sets have, by leaving out one cluster at a time.

    statistic: of a mask (n,) of the rows to use. Drawing rows again (the bootstrap) would compare pictures with
    themselves, which unbiased distances take for closeness. Source: Efron & Tibshirani 1993, chapter 11.
    """
    labels = np.array([str(label) for label in clusters])
    names = np.unique(labels)
    count = len(names)
    if count < 3:
        raise InputError(f"leaving out one of {count} prompts", allowed="3 prompts or more")
    left_out = np.array([statistic(labels != name) for name in names])
    error = math.sqrt((count - 1) * float(left_out.var()))
    return student(statistic(np.ones(len(labels), bool)), error, count - 1, level)


def wilson(successes: int, trials: int, *, level: float = LEVEL) -> Interval:
    """The interval of a share. Source: Wilson 1927; holds its level from a handful of trials on."""
    from scipy.stats import norm

    if not 0 <= successes <= trials or trials == 0:
        raise InputError(f"{successes} of {trials}", allowed="0 to all of 1 or more")
    z = float(norm.ppf(0.5 + level / 2.0))
    share = successes / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    low = 0.0 if successes == 0 else middle - half
    return Interval(share, low, 1.0 if successes == trials else middle + half)


def redrawn_splits(differences: Vector, train: int, test: int, *, level: float = LEVEL) -> Interval:
    """The mean of J paired differences, each on a new split of the same pictures into train and test.

    Splits share pictures, so the differences are not independent: their variance is taken (1/J + test/train) times
    instead of 1/J. Source: Nadeau & Bengio 2003, Machine Learning 52, eq. 8.
    """
    values = np.asarray(differences, np.float64)
    if len(values) < 2:
        raise InputError(f"an interval over {len(values)} repeats", allowed="2 or more")
    error = math.sqrt((1 / len(values) + test / train) * float(values.var(ddof=1)))
    return student(float(values.mean()), error, len(values) - 1, level)

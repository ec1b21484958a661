"""Are generated images copies of training images? Nearest neighbours, calibrated by held-out images; loss gaps.

No number here proves copying or its absence: look at the nearest pairs as well (`nearest` names them).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.metrics.distances import Matrix, Vector, check_features, check_same_width, pairwise_distances, unit_rows

QUANTILE = 0.99  # of held-out images' likeness to the training set: what is above looks like a copy
ALARM = 0.5  # the likeness that Somepalli et al. 2023 count as a copy, in SSCD's features only


@dataclass(frozen=True)
class CopyReport:
    """likeness: (n,) cosine to the nearest training image, which `nearest` (n,) numbers.

    threshold: the held-out images' QUANTILE; above: share of generated images over it, QUANTILE says 0.01 by chance.
    quantiles: the generated images' 75, 90 and 95 per cent; alarm: share over ALARM.
    """

    likeness: NDArray[np.float64]
    nearest: NDArray[np.int64]
    threshold: float
    above: float
    quantiles: tuple[float, float, float]
    alarm: float


def find_copies(train: Matrix, held_out: Matrix, generated: Matrix) -> CopyReport:
    """Likeness of generated images to the training set, against that of held-out ones.

    Source: Somepalli et al. 2023, arXiv 2212.03860, section 4; the calibration by held-out images is ours.
    """
    x, y = check_features(train, "training set"), check_features(generated, "generated set")
    other = check_features(held_out, "held-out set", least=5)
    check_same_width(x, other, y)
    likeness, nearest = nearest_neighbours(y, x)
    threshold = float(np.quantile(nearest_neighbours(other, x)[0], QUANTILE))
    low, middle, high = (float(value) for value in np.quantile(likeness, [0.75, 0.90, 0.95]))
    above, alarm = float((likeness > threshold).mean()), float((likeness > ALARM).mean())
    return CopyReport(likeness, nearest, threshold, above, (low, middle, high), alarm)


def nearest_neighbours(images: Matrix, among: Matrix) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The highest cosine of each row with a row of `among`, and that row's number."""
    cosines = unit_rows(images) @ unit_rows(among).T
    return cosines.max(axis=1), cosines.argmax(axis=1)


def authenticity(train: Matrix, generated: Matrix) -> float:
    """Per cent of generated images farther from their nearest training image than that one is from its own nearest.

    0 for copies; compare with held-out images (50 in few dimensions, more in many).
    Source: Alaa et al. 2022, arXiv 2102.08921, section 3.
    """
    x, y = check_features(train, "training set", least=2), check_features(generated, "generated set")
    check_same_width(x, y)
    within = pairwise_distances(x, x)
    np.fill_diagonal(within, np.inf)
    across = pairwise_distances(y, x)
    nearest = across.argmin(axis=1)
    return float(100.0 * (across[np.arange(len(y)), nearest] > within.min(axis=1)[nearest]).mean())


def data_copying_score(train: Matrix, held_out: Matrix, generated: Matrix) -> float:
    """C_T, in standard deviations: well below 0 when generated images lie nearer to training images than held-out do.

    Mann-Whitney's U of the distances to the nearest training image, with ties at a half, over one cell.
    Source: Meehan et al. 2020, arXiv 2004.05675, section 3.
    """
    from scipy.stats import mannwhitneyu

    x, y = check_features(train, "training set"), check_features(generated, "generated set", least=5)
    other = check_features(held_out, "held-out set", least=5)
    check_same_width(x, other, y)
    own, fresh = pairwise_distances(y, x).min(axis=1), pairwise_distances(other, x).min(axis=1)
    n, m, u = len(y), len(other), mannwhitneyu(own, fresh, method="asymptotic").statistic
    return float((u - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12))


@dataclass(frozen=True)
class MembershipInference:
    """Does the denoising loss tell what was trained on? auc: 0.5 is not at all. found: share at 1 % false alarms."""

    auc: float
    found: float
    gap: float


def membership_inference(train_losses: Vector, held_out_losses: Vector, *, rate: float = 0.01) -> MembershipInference:
    """Of losses (n,), (m,) at equal timesteps and noise. Source: Carlini et al. 2023, arXiv 2301.13188, section 5."""
    from scipy.stats import mannwhitneyu

    members, others = np.asarray(train_losses, np.float64), np.asarray(held_out_losses, np.float64)
    n, m = len(members), len(others)
    if min(n, m) < 2:
        raise InputError(f"losses of {min(n, m)} images", allowed="2 or more on each side")
    u = mannwhitneyu(others, members, method="asymptotic").statistic  # pairs with the held-out loss above
    # the threshold lets at most rate of the held-out images through: with fewer than 1 / rate of them, none
    threshold = np.sort(others)[int(rate * m)]
    found, gap = float((members < threshold).mean()), float(others.mean() - members.mean())
    return MembershipInference(float(u / (n * m)), found, gap)

"""1. How much of the style was learned: distances to the training pictures with floor and ceiling, and who is nearer.

Style is told by the weight-free descriptors of data/features.py, every one at mean 0 and deviation 1 over base and
training pictures together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from data import rng
from data.features import DESCRIPTOR_NAMES, standardized
from data.metrics.distances import (
    Kernel,
    Matrix,
    Vector,
    cmmd,
    frechet_bias,
    gaussian_kernel,
    kernel,
    small_sample_frechet_distance,
    unit_rows,
)
from data.metrics.memorization import nearest_neighbours
from data.metrics.statistics import (
    Interval,
    cluster_means,
    equivalence_test,
    jackknife_interval,
    kernel_two_sample_test,
    mean_interval,
    sign_flip_test,
    wilson_interval,
)
from infer.evaluation.samples import Evidence, Seen, Shown
from infer.evaluation.section import ALARM, LEVEL, Alarm, Number, Section, Table, of, sided

Mask = NDArray[np.bool_]
HALVES = 5  # times the training pictures are cut in two for the floor
SHOWN = 8  # descriptors named in the table
MARGIN = 0.1  # of the way from base to training pictures: a trigger word that moves less is without effect
TITLE, ASKED = "Style", "How much of the training pictures' style is in what the tuned model draws?"


@dataclass(frozen=True)
class Distance:
    """The unbiased squared maximum mean discrepancy of any rows of `drawn` to `real`, from Gram matrices made once."""

    real: Matrix
    drawn: Matrix
    kernel: Kernel = kernel

    @cached_property
    def parts(self) -> tuple[float, Matrix, Vector]:
        """Mean within the real pictures, Gram matrix of the drawn ones without its diagonal, means across."""
        n = len(self.real)
        within, drawn = self.kernel(self.real, self.real), self.kernel(self.drawn, self.drawn)
        np.fill_diagonal(drawn, 0.0)
        own = float((within.sum() - np.trace(within)) / (n * (n - 1)))
        return own, drawn, self.kernel(self.real, self.drawn).mean(axis=0)

    def __call__(self, mask: Mask) -> float:
        own, drawn, across = self.parts
        used, m = mask.astype(np.float64), int(mask.sum())
        return float(own + used @ drawn @ used / (m * (m - 1)) - 2.0 * across[mask].mean())


@dataclass(frozen=True)
class Gap:
    """Distances of base and tuned to the training pictures, and the floor that two halves of these have."""

    base: Distance
    tuned: Distance
    floor: float

    def closed(self, mask: Mask) -> float:
        """(base - tuned) / (base - floor): 0 is as the base, 1 as the training pictures."""
        before = self.base(mask)
        return (before - self.tuned(mask)) / (before - self.floor)


def section(evidence: Evidence, seed: int = 0) -> Section:
    """Of the training captions, which base and tuned drew from the same seeds."""
    shown, train = evidence.captions.shown, evidence.train
    nearer, way = leans(train, shown)
    p = sign_flip_test(nearer, shown.prompts, seed=seed)
    moved = mean_interval(nearer, shown.prompts)
    numbers = [
        *distances(train, shown, seed),
        of("way of the means gone", moved, floor=0.0, ceiling=1.0, p=p,
           said=sided(moved, "towards the training pictures", "away from them")),
        *likeness(train, shown), wins(nearer, shown),
        Number("p that base and tuned draw alike", float("nan"),
               p=kernel_two_sample_test(shown.base.content, shown.tuned.content, seed=seed)),
    ]  # fmt: skip
    numbers[-1] = told_alike(numbers[-1])
    if evidence.trigger:
        numbers.append(trigger(evidence.trigger, way, seed))
    return Section(
        TITLE, ASKED, tuple(numbers), tuple(alarms(moved.value, p)), (descriptors(train, shown),),
        ("Distances are unbiased squared maximum mean discrepancies: 0 is alike, and chance may bring them below. "
         "Floor: two halves of the training pictures. Ceiling: the base.",),
        ("The Fréchet distance is biased upwards by as much as its floor says: compare it at equal n only.",),
    )  # fmt: skip


def alarms(moved: float, p: float) -> list[Alarm]:
    if p <= ALARM and moved > 0:
        return []
    return [Alarm("nothing-learned", f"The tuned model's pictures are not shown to be nearer to the training pictures "
                  f"than the base's (p = {p:.2g}): the adapter does nothing, or too few were drawn.")]  # fmt: skip


def leans(train: Seen, shown: Shown) -> tuple[Vector, Callable[[Matrix], Vector]]:
    """How much farther each tuned picture is than its base twin on the way to the training pictures' mean, in ways.

    The way begins at the mean of base and tuned together, so that a model without effect is as often ahead as behind.
    Also the function that says how far along the way, from base (0) to training pictures (1), any pictures are.
    """
    both = np.concatenate([shown.base.style, shown.tuned.style])
    pool = np.concatenate([both, train.style])
    middle, spread = pool.mean(axis=0), np.maximum(pool.std(axis=0), 1e-6)

    def scale(style: Matrix) -> Matrix:
        return (style - middle) / spread

    way = scale(train.style).mean(axis=0) - scale(both).mean(axis=0)
    start, end = scale(shown.base.style).mean(axis=0) @ way, scale(train.style).mean(axis=0) @ way
    length = max(float(end - start), 1e-12)

    def along(style: Matrix) -> Vector:
        return (scale(style) @ way - start) / length

    return along(shown.tuned.style) - along(shown.base.style), along


def distances(train: Seen, shown: Shown, seed: int) -> list[Number]:
    """The gap closed by two kernel distances, CMMD and the Fréchet distance."""
    base, tuned, real = standardized(*(seen.style.astype(np.float64) for seen in (shown.base, shown.tuned, train)))
    rows = [whole(seen.content) for seen in (shown.base, shown.tuned, train)]
    every = np.ones(len(shown), bool)
    found = []
    for name, sides in (("descriptors", (base, tuned, real)), ("content", tuple(rows))):
        gap = Gap(Distance(sides[2], sides[0]), Distance(sides[2], sides[1]), floor_of(sides[2], kernel, seed))
        found.append(
            Number(f"kernel distance of {name}", gap.tuned(every), jackknife_interval(gap.tuned, shown.prompts),
                   base=gap.base(every), floor=gap.floor, ceiling=gap.base(every))
        )  # fmt: skip
        found.append(closed(gap, name, shown))
    joint = [unit_rows(seen.joint) for seen in (shown.tuned, train)]
    of_tuned = Distance(joint[1], joint[0], gaussian_kernel)
    spread = jackknife_interval(of_tuned, shown.prompts)
    before = cmmd(train.joint, shown.base.joint)
    found.append(
        Number("CMMD", 1000 * spread.value, Interval(*(1000 * end for end in (spread.value, spread.low, spread.high))),
               base=before, floor=1000 * floor_of(joint[1], gaussian_kernel, seed), ceiling=before)
    )  # fmt: skip
    return [*found, fid(train, shown, seed)]


def closed(gap: Gap, name: str, shown: Shown) -> Number:
    """The share of the gap that tuning closed."""
    title = f"style gap closed, {name}"
    if gap.base(np.ones(len(shown), bool)) <= gap.floor:
        return Number(title, float("nan"), said="there is no gap: the base draws like the training pictures")
    share = jackknife_interval(gap.closed, shown.prompts)
    return of(title, share, floor=0.0, ceiling=1.0, said=sided(share, "nearer than the base", "farther than the base"))


def whole(content: Matrix) -> Matrix:
    """Rows of length sqrt(d), so that KID's kernel (x y / d + 1)^3 is (cosine + 1)^3 whatever the extractor."""
    return unit_rows(content) * np.sqrt(content.shape[1])


def floor_of(real: Matrix, kernel: Kernel, seed: int) -> float:
    """The mean distance of two halves of the real pictures."""
    half, found = len(real) // 2, []
    for draw in range(HALVES):
        order = rng.permutation(len(real), seed, "floor", draw)
        found.append(Distance(real[order[:half]], real[order[half : 2 * half]], kernel)(np.ones(half, bool)))
    return float(np.mean(found))


def fid(train: Seen, shown: Shown, seed: int) -> Number:
    """For those who ask: at equal n, with its bias beside it."""
    n = min(len(train), len(shown))
    rows = rng.permutation(len(train), seed, "fd")[:n]
    sides = [small_sample_frechet_distance(train.content[rows], seen.content[:n]) for seen in (shown.base, shown.tuned)]
    floor = frechet_bias(train.content[rows], draws=HALVES, seed=seed)
    return Number(f"Fréchet distance of content, {n} against {n}", sides[1], base=sides[0], floor=floor,
                  ceiling=sides[0], said="lower than the base's" if sides[1] < sides[0] else "not lower")  # fmt: skip


def likeness(train: Seen, shown: Shown) -> list[Number]:
    """Cosines to the nearest training picture and to the mean of all, tuned minus base."""
    middle = unit_rows(train.content).mean(axis=0, keepdims=True)
    found = []
    for name, among in (("nearest training picture", train.content), ("training pictures' mean", middle)):
        tuned, base = (nearest_neighbours(seen.content, among)[0] for seen in (shown.tuned, shown.base))
        change = mean_interval(tuned - base, shown.prompts)
        found.append(of(f"cosine to the {name}, change", change, base=float(base.mean()), ceiling=1.0,
                        said=sided(change, "nearer", "farther")))  # fmt: skip
    return found


def wins(nearer: Vector, shown: Shown) -> Number:
    """The share of prompts whose tuned pictures are farther along the way than the base's."""
    means = cluster_means(nearer, shown.prompts)
    share = wilson_interval(int((means > 0).sum()), len(means))
    return of("prompts at which tuned is nearer in style", share, floor=0.5, ceiling=1.0,
              said=sided(share, "most", "few", zero=0.5))  # fmt: skip


def told_alike(number: Number) -> Number:
    assert number.p is not None
    said = "they draw differently" if number.p <= LEVEL else "not told apart"
    return Number(number.name, number.p, p=number.p, said=said)


def trigger(shown: Shown, along: Callable[[Matrix], Vector], seed: int) -> Number:
    """What the trigger word adds, in ways; "without effect" needs a test of its own: not significant is not equal."""
    change = along(shown.tuned.style) - along(shown.base.style)
    interval = mean_interval(change, shown.prompts)
    p, same = sign_flip_test(change, shown.prompts, seed=seed), equivalence_test(change, shown.prompts, MARGIN)
    said = f"p of {MARGIN} of the way or more: {same:.2g}"
    if same <= LEVEL:
        said = f"without effect ({said})"
    elif p <= LEVEL:
        said = f"it changes the style ({said})"
    else:
        said = f"not known ({said})"
    return of("way that the trigger word adds", interval, floor=0.0, p=p, said=said)


def descriptors(train: Seen, shown: Shown) -> Table:
    """The descriptors in which the base is farthest from the training pictures: 1-D Wasserstein distances."""
    from scipy.stats import wasserstein_distance

    rows = []
    for column, name in enumerate(DESCRIPTOR_NAMES[: train.style.shape[1]]):
        real, base, tuned = (seen.style[:, column] for seen in (train, shown.base, shown.tuned))
        apart = [float(wasserstein_distance(side, real)) / max(float(real.std()), 1e-3) for side in (base, tuned)]
        rows.append((name, float(real.mean()), float(base.mean()), float(tuned.mean()), *apart))
    rows.sort(key=lambda row: -row[4])
    head = ("descriptor", "training", "base", "tuned", "base apart", "tuned apart")
    title = "What the style is: the descriptors in which the base is farthest off (apart: in deviations of training)"
    return Table(title, head, rows[:SHOWN])

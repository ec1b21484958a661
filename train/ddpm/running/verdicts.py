"""What may be concluded from paired errors: bootstrap intervals over seeds and pictures, and what they allow to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data import seeds
from train.validation import Interval

Grid = NDArray[np.float64]  # (seeds, pictures): the error of one network


@dataclass(frozen=True)
class Verdict:
    """A claim, whether the interval allows it, and the interval of the difference; below 0 speaks for the claim."""

    claim: str
    difference: Interval

    @property
    def word(self) -> str:
        if self.difference.high < 0:
            return "yes"
        return "no" if self.difference.low > 0 else "cannot tell"

    def __str__(self) -> str:
        return f"{self.claim} {self.word} ({self.difference.words})"


def bootstrap(statistic: Callable[[NDArray[np.intp], NDArray[np.intp]], float], shape: tuple[int, int], *,
              resamples: int, seed: int) -> Interval:  # fmt: skip
    """95 % percentile interval of statistic(rows, columns) over seeds and pictures, both drawn anew with repetition.

    The same seeds and pictures are taken for every network, so differences are paired. One seed alone is kept as it is:
    the interval is then about pictures only. Source: Efron 1979; both axes: Owen 2007, arXiv 0712.1111.
    """
    everything = np.arange(shape[0]), np.arange(shape[1])
    found = [statistic(rows, columns) for rows, columns in draws(shape, resamples, seed)]
    low, high = np.percentile(found, [2.5, 97.5])
    return Interval(statistic(*everything), float(low), float(high))


def draws(shape: tuple[int, int], resamples: int, seed: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Seeds and pictures, drawn with repetition, `resamples` times; the same for all who ask with one seed."""
    random = np.random.default_rng(seeds.seed_for(seed, "bootstrap"))
    for _ in range(resamples):
        rows, columns = (random.integers(0, size, size) for size in shape)
        yield rows, columns


def band(values: NDArray[np.float64], *, resamples: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ends of bootstrap()'s intervals for the means of k curves' points: (seeds, pictures, k) -> (k,) and (k,)."""
    shape = values.shape[0], values.shape[1]
    found = [values[np.ix_(rows, columns)].mean(axis=(0, 1)) for rows, columns in draws(shape, resamples, seed)]
    low, high = np.percentile(found, [2.5, 97.5], axis=0)
    return low, high


def smaller(claim: str, one: Grid, other: Grid, *, resamples: int, seed: int) -> Verdict:
    """Whether the numbers of one network are smaller than another's, over the same seeds and pictures."""
    assert one.shape == other.shape
    gap = one - other

    def mean(rows: NDArray[np.intp], columns: NDArray[np.intp]) -> float:
        return float(gap[np.ix_(rows, columns)].mean())

    return Verdict(claim, bootstrap(mean, (len(gap), len(gap[0])), resamples=resamples, seed=seed))


def judge(errors: dict[str, Grid], *, resamples: int, seed: int) -> list[Verdict]:
    """The course's two conclusions. errors: unet2d, basic and plain, over the same seeds and pictures."""
    unet2d, basic, plain = errors["unet2d"], errors["basic"], errors["plain"]
    assert unet2d.shape == basic.shape == plain.shape

    def mean(grid: Grid, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> float:
        return float(grid[np.ix_(rows, columns)].mean())

    def better(rows: NDArray[np.intp], columns: NDArray[np.intp]) -> float:
        return mean(unet2d, rows, columns) - mean(basic, rows, columns)

    def skips(rows: NDArray[np.intp], columns: NDArray[np.intp]) -> float:
        return mean(basic, rows, columns) - mean(plain, rows, columns)

    def less(rows: NDArray[np.intp], columns: NDArray[np.intp]) -> float:
        return abs(skips(rows, columns)) - abs(better(rows, columns))

    shape = (len(unet2d), len(unet2d[0]))
    claims = {
        "UNet2DModel's errors of x_0 are smaller than BasicUNet's:": better,
        "Skip connections make BasicUNet's errors smaller:": skips,
        "Skips matter less than the choice between BasicUNet and UNet2DModel:": less,
    }
    return [
        Verdict(claim, bootstrap(statistic, shape, resamples=resamples, seed=seed))
        for claim, statistic in claims.items()
    ]

"""Numbers on pictures: how far two are apart, how well one fits its prompt, and what an interval allows to say."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data import seeds
from data.encoders import Clip
from data.features import features

POCKET_SCORER = Path(__file__).parents[2] / "data" / "pocket" / "scorer"
SIDE = 64  # pixels to which pictures are shrunk before they are compared: grain is no difference
CONFIDENCE = 0.95
MOST_FLIPS = 2**14  # sign flips that are all tried; beyond, as many are drawn
Numbers = Sequence[float] | NDArray[np.floating]


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % t-interval over seeds. n: how many. NaN bounds for fewer than two."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:+.3f} (95 % {self.low:+.3f} to {self.high:+.3f}, {self.n} seeds)"

    @property
    def sign(self) -> int:
        """-1 or +1 where the whole interval lies on one side of 0, else 0."""
        return -1 if self.high < 0 else 1 if self.low > 0 else 0


def interval(values: Numbers) -> Interval:
    """The mean of independent values and Student's interval, mean ± t s / sqrt(n)."""
    from scipy import stats

    given = np.asarray(values, np.float64)
    mean, n = float(given.mean()), len(given)
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * given.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def distance(one: Image.Image, two: Image.Image) -> float:
    """Root mean square difference of two pictures' colours, 0 (equal) to 1 (black and white); no weights in it.

    Both are shrunk to SIDE x SIDE first, by averaging.
    """
    return float(np.sqrt(np.mean((small(one) - small(two)) ** 2)))


def small(picture: Image.Image) -> NDArray[np.float64]:
    """(SIDE, SIDE, 3) in [0, 1]."""
    shrunk = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(shrunk, np.float64) / 255


def between(pictures: Sequence[Image.Image]) -> float:
    """The mean distance of every two pictures; 0 for one alone."""
    pairs = list(itertools.combinations(pictures, 2))
    return float(np.mean([distance(*pair) for pair in pairs])) if pairs else 0.0


@dataclass(frozen=True)
class Scorer:
    """A CLIP model that judges pictures and drew none of them."""

    folder: Path = POCKET_SCORER

    @property
    def name(self) -> str:
        return "data/pocket/scorer" if self.folder == POCKET_SCORER else self.folder.name

    @cached_property
    def clip(self) -> Clip:
        return Clip(self.folder)

    def features(self, pictures: Sequence[Image.Image]) -> NDArray[np.floating]:
        """(n, d) unit rows, kept by the pictures' content."""
        return features(self.clip, pictures)

    def similarity(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> NDArray[np.float64]:
        """(n,) the cosine of each picture with its own prompt."""
        texts = list(dict.fromkeys(prompts))
        rows = dict(zip(texts, self.clip.encode_text(texts), strict=True))
        found = self.features(pictures)
        return np.einsum("nd,nd->n", found.astype(np.float64), np.stack([rows[prompt] for prompt in prompts]))


def flip_test(differences: NDArray[np.floating]) -> float:
    """The p-value of "paired rows do not differ in the mean": (n, d) differences, by flipping their signs.

    The statistic is the length of the mean difference. If with and without were the same, each sign were a coin's:
    the share of all 2^n flips whose mean is at least as long. Source: Fisher 1935, The design of experiments, §21.
    """
    rows = np.asarray(differences, np.float64)
    count = len(rows)
    if 2**count <= MOST_FLIPS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=count)))
    else:
        drawn = [[seeds.integer(2, "flip test", turn, row) for row in range(count)] for turn in range(MOST_FLIPS)]
        signs = np.vstack([np.ones(count), 1.0 - 2.0 * np.array(drawn)])
    lengths = np.linalg.norm(signs @ rows / count, axis=1)
    return float(np.mean(lengths >= lengths[0] * (1 - 1e-12)))

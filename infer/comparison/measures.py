"""Measures on images: the distance of two, the similarity to a prompt, intervals over seeds, and a sign-flip test."""

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

from data.features import Clip, extract_features
from data.metrics.statistics import all_signs, random_signs, student_interval
from infer.config import POCKET_SCORER

SIDE = 64  # pixels; images are reduced to it before they are compared, so that grain is no difference
MAX_FLIPS = 2**14  # sign patterns; if there are more, this many are drawn at random
Values = Sequence[float] | NDArray[np.floating]


@dataclass(frozen=True)
class SeedInterval:
    """A mean and its 95 % t-interval over n seeds; NaN bounds for a single seed."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:+.3f} (95 % {self.low:+.3f} to {self.high:+.3f}, {self.n} seeds)"

    @property
    def sign(self) -> int:
        """-1 or +1 if the whole interval lies on one side of 0, else 0."""
        return -1 if self.high < 0 else 1 if self.low > 0 else 0


def interval(values: Values) -> SeedInterval:
    """The mean of independent values with Student's interval, mean ± t s / sqrt(n)."""
    array = np.asarray(values, np.float64)
    mean, n = float(array.mean()), len(array)
    if n < 2:
        return SeedInterval(mean, math.nan, math.nan, n)
    found = student_interval(mean, float(array.std(ddof=1)) / math.sqrt(n), n - 1)
    return SeedInterval(mean, found.low, found.high, n)


def distance(one: Image.Image, two: Image.Image) -> float:
    """Root mean square difference of the colors at SIDE x SIDE pixels: 0 (equal) to 1 (black and white)."""
    return float(np.sqrt(np.mean((to_pixels(one) - to_pixels(two)) ** 2)))


def to_pixels(image: Image.Image) -> NDArray[np.float64]:
    """(SIDE, SIDE, 3) in [0, 1], reduced by averaging."""
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), np.float64) / 255


def mean_distance(images: Sequence[Image.Image]) -> float:
    """The mean distance over all pairs; 0 for a single image."""
    pairs = list(itertools.combinations(images, 2))
    return float(np.mean([distance(*pair) for pair in pairs])) if pairs else 0.0


@dataclass(frozen=True)
class Scorer:
    """A CLIP model that judges images; it generated none of them."""

    folder: Path = POCKET_SCORER

    @property
    def name(self) -> str:
        return "data/pocket/scorer" if self.folder == POCKET_SCORER else self.folder.name

    @cached_property
    def clip(self) -> Clip:
        return Clip(self.folder)

    def features(self, images: Sequence[Image.Image]) -> NDArray[np.floating]:
        """(n, d) unit rows, cached by content."""
        return extract_features(self.clip, images)

    def similarity(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> NDArray[np.float64]:
        """(n,) the cosine of each image with its own prompt."""
        texts = list(dict.fromkeys(prompts))
        rows = dict(zip(texts, self.clip.encode_text(texts), strict=True))
        own = np.stack([rows[prompt] for prompt in prompts])
        return np.einsum("nd,nd->n", self.features(images).astype(np.float64), own)


def flip_test(differences: NDArray[np.floating]) -> float:
    """The p-value of "paired rows do not differ in the mean", (n, d) differences, by flipping their signs.

    The statistic is the length of the mean difference; p is the share of sign patterns at least as long. Source: Fisher
    1935, The design of experiments, §21.
    """
    rows = np.asarray(differences, np.float64)
    count = len(rows)
    if 2**count <= MAX_FLIPS:
        signs = all_signs(count)
    else:
        signs = np.vstack([np.ones(count), random_signs(MAX_FLIPS, count, 0)])
    lengths = np.linalg.norm(signs @ rows / count, axis=1)
    return float(np.mean(lengths >= lengths[0] * (1 - 1e-12)))

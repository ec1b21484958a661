"""Style in numbers without any network: paper and border, palette, saturation, hue, lightness, line and flat areas.

Every number is a share or a correlation, named in NAMES, so that a difference between two sets can be told in words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Plane = NDArray[np.float32]  # (h, w) in [0, 1]
Rows = NDArray[np.float64]  # (images, descriptors)
AREA = 128 * 128  # pixels a picture is scaled to, its shape kept, so that line width and grain are comparable
WHITE = 0.85  # all three colours at or above: paper, cream included
DARK = 0.22  # luminance below: ink
FRAME = 1 / 16  # width of the border, as a share of the shorter side
SATURATIONS, HUES, LIGHTS, TURNS = 8, 12, 8, 4
LEVELS = 8  # a colour of the palette: one of 8 x 8 x 8 cells

NAMES = (
    "border white", "border unevenness", "white", "ink", "palette entropy", "colours of half", "colours of 90%",
    "colourfulness", "edges", "strong edges", "flat", "mirror symmetry",
    *(f"saturation {index + 1}/{SATURATIONS}" for index in range(SATURATIONS)),
    *(f"hue {360 * index // HUES} degrees" for index in range(HUES)),
    *(f"lightness {index + 1}/{LIGHTS}" for index in range(LIGHTS)),
    *(f"edge direction {180 * index // TURNS} degrees" for index in range(TURNS)),
)  # fmt: skip


@dataclass(frozen=True)
class Descriptors:
    """A feature extractor: (n, len(NAMES)) numbers in [-1, 1], one column a name."""

    @property
    def name(self) -> str:
        return "descriptors"

    @property
    def version(self) -> str:
        return "1"

    def encode(self, pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        return np.stack([np.asarray(describe(picture), np.float32) for picture in pictures])


def describe(picture: Image.Image) -> list[float]:
    """The numbers of one picture, in the order of NAMES."""
    colours = scaled(picture)
    luminance = colours @ np.array([0.299, 0.587, 0.114], np.float32)
    white = colours.min(axis=2) >= WHITE
    entropy, half, most = palette(colours)
    edges, strong, flat, directions = gradients(luminance)
    saturations, hues = tints(colours)
    return [
        *border(colours, white), float(white.mean()), float((luminance < DARK).mean()), entropy, half, most,
        colourfulness(colours), edges, strong, flat, symmetry(luminance),
        *saturations, *hues, *shares(luminance, LIGHTS), *directions,
    ]  # fmt: skip


def scaled(picture: Image.Image) -> NDArray[np.float32]:
    """(h, w, 3) in [0, 1] with h * w of about AREA; at least 3 pixels a side."""
    scale = math.sqrt(AREA / (picture.width * picture.height))
    size = (max(3, round(picture.width * scale)), max(3, round(picture.height * scale)))
    return np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BICUBIC), np.float32) / np.float32(255)


def border(colours: NDArray[np.float32], white: NDArray[np.bool_]) -> tuple[float, float]:
    """The share of white in the frame, and the standard deviation of the frame's colours about their mean."""
    frame = np.ones(white.shape, bool)
    width = max(1, round(min(white.shape) * FRAME))
    frame[width:-width, width:-width] = False
    return float(white[frame].mean()), float(colours[frame].std(axis=0).mean())


def palette(colours: NDArray[np.float32]) -> tuple[float, float, float]:
    """Entropy of the palette, and the log of how many colours cover 50 % and 90 % of it; all over their maxima."""
    cells = np.minimum((colours * LEVELS).astype(int), LEVELS - 1) @ np.array([LEVELS**2, LEVELS, 1])
    count = np.sort(np.bincount(cells.ravel()))[::-1]
    share = count[count > 0] / cells.size
    entropy = -(share * np.log(share)).sum()
    covered = np.cumsum(share)
    half, most = (1 + int(np.searchsorted(covered, goal - 1e-9)) for goal in (0.5, 0.9))
    top = math.log(LEVELS**3)
    return float(entropy / top), math.log(half) / top, math.log(most) / top


def colourfulness(colours: NDArray[np.float32]) -> float:
    """M3 of Hasler and Suesstrunk (2003), "Measuring colourfulness in natural images", of colours in [0, 1]."""
    red, green, blue = np.moveaxis(colours, 2, 0)
    against = red - green, (red + green) / 2 - blue
    deviation = math.hypot(*(float(axis.std()) for axis in against))
    return deviation + 0.3 * math.hypot(*(float(axis.mean()) for axis in against))


def gradients(luminance: Plane) -> tuple[float, float, float, list[float]]:
    """Shares of pixels on an edge, on a strong edge, in a flat area; and how the strength spreads over directions.

    A direction is that of the line, 0 degrees lying flat, 90 standing upright.
    """
    down, right = np.gradient(luminance)
    strength = np.hypot(down, right)
    lines = np.mod(np.arctan2(right, -down), np.pi) / np.pi * TURNS
    turn = np.mod(np.rint(lines).astype(int), TURNS)
    weight = np.bincount(turn.ravel(), strength.ravel(), TURNS)
    spread = (weight / max(float(weight.sum()), 1e-9)).tolist()
    return float((strength > 0.04).mean()), float((strength > 0.15).mean()), float((strength < 0.008).mean()), spread


def symmetry(luminance: Plane) -> float:
    """Correlation of the picture with its mirror image; 1 for a picture of one grey."""
    centred = luminance - luminance.mean()
    power = float((centred**2).mean())
    return float((centred * centred[:, ::-1]).mean()) / power if power > 1e-8 else 1.0


def tints(colours: NDArray[np.float32]) -> tuple[list[float], list[float]]:
    """Histograms of saturation (HSV), and of hue weighted by chroma: grey has no hue. No colour at all: all hues 0."""
    high, low = colours.max(axis=2), colours.min(axis=2)
    chroma = high - low
    red, green, blue = np.moveaxis(colours, 2, 0)
    hue = np.arctan2(math.sqrt(3) * (green - blue), 2 * red - green - blue) / (2 * np.pi)
    place = np.mod(np.rint(hue * HUES).astype(int), HUES)
    weight = np.bincount(place.ravel(), chroma.ravel(), HUES)
    total = float(weight.sum())
    saturation = chroma / np.maximum(high, 1e-6)
    return shares(saturation, SATURATIONS), (weight / total if total > 1e-3 * chroma.size else 0 * weight).tolist()


def shares(values: Plane, bins: int) -> list[float]:
    """The share of values in each of `bins` equal parts of [0, 1]."""
    place = np.minimum((np.clip(values, 0, 1) * bins).astype(int), bins - 1)
    return (np.bincount(place.ravel(), minlength=bins) / values.size).tolist()


def standardized(base: Rows, tuned: Rows, reference: Rows) -> tuple[Rows, Rows, Rows]:
    """All three with every descriptor at mean 0 and deviation 1 over base and reference together."""
    both = np.concatenate([base, reference])
    mean, deviation = both.mean(0), np.maximum(both.std(0), 1e-6)
    return (base - mean) / deviation, (tuned - mean) / deviation, (reference - mean) / deviation

"""Are two thumbnails one picture, up to a small crop, a mirror, brightness and contrast? Vectorised over pairs.

Thumbnails are (n, SIDE, SIDE, 3) float32 in [0, 1]. A view is the window of a thumbnail that a crop would have kept; it
is cut by two small interpolation matrices, one for rows and one for columns, so a whole set is cut at once.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Thumbs = Array  # (n, side, side, channels) in [0, 1]
Windows = Array  # (n, 4): left, top, right, bottom as shares of the picture

SIDE = 48  # pixels of a thumbnail
ROUGH = 24  # pixels on which windows are fitted: finer ones took nine times as long and found no other pairs
CROP = 0.06  # share cut from a side by the proposed views; fitting finds what lies between, and a little beyond
MOST = 0.14  # share of width or height that a copy may have lost
STEPS = 4  # Gauss-Newton steps; six moved no pair of the calibration across the threshold


@dataclass(frozen=True)
class View:
    """A window of the picture, seen as it is or in a mirror."""

    window: tuple[float, float, float, float]
    mirrored: bool

    def of(self, thumbs: Thumbs, side: int) -> Thumbs:
        windows = np.broadcast_to(np.array(self.window, np.float32), (len(thumbs), 4))
        return cut(thumbs[:, :, ::-1] if self.mirrored else thumbs, windows, side)


def views(mirrored: bool) -> list[View]:
    """The whole picture first, then all sides, each side and each corner cropped by CROP."""
    whole, inner, low, high = (0.0, 1.0), (CROP, 1 - CROP), (CROP, 1.0), (0.0, 1 - CROP)
    sides = [(whole, low), (whole, high), (low, whole), (high, whole)]
    corners = [(x, y) for x in (low, high) for y in (low, high)]
    spans = [(whole, whole), (inner, inner), *sides, *corners]
    return [View((x[0], y[0], x[1], y[1]), mirrored) for x, y in spans]


def interpolation(starts: Array, ends: Array, source: int, target: int) -> Array:
    """(n, target, source) matrices that resample the window [start, end] of a row linearly to `target` pixels."""
    places = (np.arange(target, dtype=np.float32) + 0.5) / target
    at = (starts[:, None] + (ends - starts)[:, None] * places) * source - 0.5
    reach = max(1.0, source / target)  # a wider triangle when shrinking, against aliasing
    distance = np.abs(np.clip(at, 0, source - 1)[..., None] - np.arange(source, dtype=np.float32))
    weights = np.maximum(0, 1 - distance / reach)
    return (weights / weights.sum(axis=2, keepdims=True)).astype(np.float32, copy=False)


def cut(thumbs: Thumbs, windows: Windows, side: int) -> Thumbs:
    """Each thumbnail's window, resampled to side x side."""
    count, height, width, channels = thumbs.shape
    columns = interpolation(windows[:, 0], windows[:, 2], width, side)
    rows = interpolation(windows[:, 1], windows[:, 3], height, side)
    narrow = columns[:, None] @ thumbs  # (n, height, side, channels)
    small = rows @ narrow.reshape(count, height, side * channels)
    return small.reshape(count, side, side, channels).astype(np.float32, copy=False)


def difference(source: Thumbs, target: Thumbs, windows: Windows) -> Array:
    """How much is left between target and source once the window, the contrast and the brightness are fitted: (n,).

    The mean of the largest 1 % of the differences (after a 3x3 mean), over the target's standard deviation: a copy is
    near 0 everywhere, another pose of the same creature is not. Infinite if the fit left what a crop may do.
    """
    windows, tone = fit(source.mean(axis=3, keepdims=True), target.mean(axis=3, keepdims=True), windows)
    left = np.abs(toned(cut(source, windows, SIDE), tone) - target).max(axis=3)
    blurred = box_mean(left).reshape(len(left), -1)
    worst = np.sort(blurred, axis=1)[:, -(SIDE * SIDE // 100) :].mean(axis=1)
    kept = windows[:, 2:] - windows[:, :2]
    slight = ((kept >= 1 - MOST) & (kept <= 1 + MOST / 2)).all(axis=1) & (tone[:, 0] > 0.3)
    return np.where(slight, worst / target.reshape(len(target), -1).std(axis=1), np.inf)


def fit(source: Thumbs, target: Thumbs, windows: Windows) -> tuple[Windows, Array]:
    """Gauss-Newton on six numbers a pair: the window's four sides, gain and offset; returns (n, 4) and (n, 2).

    What leaves [0, 1] is clipped, as an editor clips it.
    Source: Lucas and Kanade (1981); the window and tone are their warp and the usual affine photometric model.
    """
    tone = np.tile(np.array([1, 0], np.float32), (len(source), 1))
    goal = View((0, 0, 1, 1), False).of(target, ROUGH)
    for _ in range(STEPS):
        step = gauss_newton(cut(source, windows, ROUGH), goal, tone, windows)
        windows, tone = windows + np.clip(step[:, :4], -0.05, 0.05), tone + step[:, 4:]
    return windows, tone


def gauss_newton(seen: Thumbs, goal: Thumbs, tone: Array, windows: Windows) -> Array:
    """One step: (n, 6) changes of left, top, right, bottom, gain and offset."""
    size = (windows[:, 2:] - windows[:, :2]) / (tone[:, :1] * ROUGH)
    slope_x = np.gradient(seen, axis=2) / size[:, 0, None, None, None]
    slope_y = np.gradient(seen, axis=1) / size[:, 1, None, None, None]
    along = (np.arange(ROUGH, dtype=np.float32) + 0.5) / ROUGH
    x, y = along[None, None, :, None], along[None, :, None, None]
    slopes = [slope_x * (1 - x), slope_y * (1 - y), slope_x * x, slope_y * y, seen, np.ones_like(seen)]
    error = goal - toned(seen, tone)
    free = (toned(seen, tone) > 0) & (toned(seen, tone) < 1) | (error != 0)  # clipped and right: no say in the slopes
    columns = np.stack([(slope * free).reshape(len(seen), -1) for slope in slopes], axis=2)
    across = columns.transpose(0, 2, 1)
    normal = across @ columns + 1e-3 * np.eye(6, dtype=np.float32)  # the ridge keeps flat pictures solvable
    return np.linalg.solve(normal, across @ error.reshape(len(seen), -1, 1))[..., 0]


def toned(seen: Thumbs, tone: Array) -> Thumbs:
    """Contrast and brightness applied: tone is (n, 2), gain and offset."""
    return np.clip(tone[:, 0, None, None, None] * seen + tone[:, 1, None, None, None], 0, 1)


def box_mean(values: Array) -> Array:
    """3x3 means of (n, h, w), the edge repeated."""
    padded = np.pad(values, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return ((rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 9).astype(np.float32, copy=False)

"""Near-duplicates (one picture re-encoded, resized, cropped a little, brightened or mirrored), and the held-out split.

Each picture is a 48x48 colour thumbnail. Matrix products between small views of them (whole, slightly cropped,
mirrored) propose pairs; each proposed pair is then aligned to a fraction of a pixel and accepted only if nothing is
left over: another pose of the same creature differs somewhere, a copy nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data import kept, seeds
from data.alignment import SIDE, Array, Thumbs, View, difference, views
from data.errors import InputError
from data.features import Picture, content_key, features
from data.schema import Sample

VERSION = 1  # raise it when the same pictures would be other pairs
COARSE = 12  # pixels of the views that propose pairs
ALIKE = 0.9  # correlation of two views from which a pair is looked at closely
# Calibrated on 650 drawn creatures at 192 pixels and 15 kinds of copies of 300 of them: copies reach 0.67 (0.80 shrunk
# to a third without antialiasing, 0.82 textures at JPEG quality 10); different pictures start at 0.96, where nothing
# but the face differs, their lowest 1 % at 1.22. At 64 pixels they start at 1.06.
DIFFERENT = 0.85  # `difference` up to which two pictures are one
FLAT = 0.01  # standard deviation under which a picture counts as one flat colour ...
SAME_COLOUR = 0.02  # ... and the difference up to which two such colours are the same
BLOCK = 512  # rows, or pairs, compared at a time


@dataclass(frozen=True)
class Thumbnail:
    """A feature extractor: the picture at 48x48, lightly blurred so that a shift by half a pixel changes little."""

    @property
    def name(self) -> str:
        return "thumbnail"

    @property
    def version(self) -> str:
        return f"1-{SIDE}"

    def encode(self, pictures: Sequence[Image.Image]) -> Array:
        return np.stack([self.shrink(picture) for picture in pictures]).reshape(len(pictures), -1)

    def shrink(self, picture: Image.Image) -> Array:
        small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
        padded = np.pad(np.asarray(small, np.float32) / 255, ((1, 1), (1, 1), (0, 0)), mode="edge")
        rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
        return ((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4).astype(np.float32, copy=False)


@dataclass(frozen=True)
class Pair:
    """Two positions in the list that show the same picture; difference is 0 for equal bytes, DIFFERENT at the most."""

    first: int
    second: int
    difference: float


def near_duplicates(pictures: Sequence[Picture], *, cache: bool = True) -> list[Pair]:
    """Every pair of near-duplicates, first < second; of pictures with equal bytes the first stands for the others."""
    keys = [content_key(picture) for picture in pictures]
    if not cache:
        return compare(pictures, keys, cache=False)
    found = kept.value(
        "duplicates", kept.digest("duplicates", VERSION, *keys), lambda: as_rows(compare(pictures, keys))
    )
    return [Pair(*row) for row in found]


def as_rows(pairs: Sequence[Pair]) -> list[list[float]]:
    return [[pair.first, pair.second, pair.difference] for pair in pairs]


def compare(pictures: Sequence[Picture], keys: Sequence[str], *, cache: bool = True) -> list[Pair]:
    """As near_duplicates(); keys: of the pictures' contents."""
    first = {key: index for index, key in reversed(list(enumerate(keys)))}
    equal = [Pair(first[key], index, 0.0) for index, key in enumerate(keys) if first[key] < index]
    kept = sorted(first.values())
    thumbs = features(Thumbnail(), [pictures[index] for index in kept], cache=cache).reshape(len(kept), SIDE, SIDE, 3)
    best: dict[tuple[int, int], float] = {}
    for a, b, left in (*flat_pairs(thumbs), *close_pairs(thumbs)):
        pair = (kept[min(a, b)], kept[max(a, b)])
        best[pair] = min(left, best.get(pair, np.inf))
    return sorted(
        equal + [Pair(a, b, left) for (a, b), left in best.items()], key=lambda pair: (pair.first, pair.second)
    )


def flat_pairs(thumbs: Thumbs) -> Iterator[tuple[int, int, float]]:
    """Pictures of one flat colour have nothing to correlate: their colours are compared."""
    flat = np.flatnonzero(spread(thumbs) < FLAT)
    colours = thumbs[flat].mean(axis=(1, 2))
    for a, colour in zip(flat, colours, strict=True):
        apart = np.abs(colours - colour).max(axis=1)
        yield from ((int(a), int(b), float(d)) for b, d in zip(flat, apart, strict=True) if b > a and d <= SAME_COLOUR)


def close_pairs(thumbs: Thumbs) -> Iterator[tuple[int, int, float]]:
    """(source, target, difference) of the proposed pairs that are one picture; a pair may come more than once."""
    for mirrored in (False, True):
        shown = views(mirrored)
        windows = np.array([view.window for view in shown], np.float32)
        sources = np.ascontiguousarray(thumbs[:, :, ::-1]) if mirrored else thumbs
        for a, b, view in proposals(thumbs, shown):
            left = difference(sources[a], thumbs[b], windows[view])
            same = np.flatnonzero(left <= DIFFERENT)
            yield from ((int(a[k]), int(b[k]), float(left[k])) for k in same)


def proposals(thumbs: Thumbs, shown: Sequence[View]) -> Iterator[tuple[NDArray[np.intp], ...]]:
    """Blocks of (source, target, view of the source): that view correlates with the whole target by ALIKE or more."""
    textured = np.flatnonzero(spread(thumbs) >= FLAT)
    wholes = unit(View((0, 0, 1, 1), False).of(thumbs[textured], COARSE))
    for start in range(0, len(textured), BLOCK):
        rows = textured[start : start + BLOCK]
        seen = np.stack([unit(view.of(thumbs[rows], COARSE)) for view in shown])
        a, b = np.nonzero(best_correlation(seen, wholes) >= ALIKE)
        a, b = a[a + start != b], b[a + start != b]  # a picture is no copy of itself
        for at in range(0, len(a), BLOCK):
            x, y = a[at : at + BLOCK], b[at : at + BLOCK]
            yield rows[x], textured[y], np.einsum("vpd,pd->vp", seen[:, x], wholes[y]).argmax(axis=0)


def best_correlation(seen: Array, wholes: Array) -> Array:
    """(views, n, d) and (m, d) unit vectors -> (n, m): the largest correlation over the views."""
    best = seen[0] @ wholes.T
    other = np.empty_like(best)
    for view in seen[1:]:
        np.matmul(view, wholes.T, out=other)
        np.maximum(best, other, out=best)
    return best


def unit(pictures: Thumbs) -> Array:
    """Each picture as a vector of mean 0 and length 1 (over all colours: a change of hue is a difference)."""
    rows = pictures.reshape(len(pictures), COARSE * COARSE * 3)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def spread(thumbs: Thumbs) -> Array:
    """The standard deviation of each picture over its pixels and colours."""
    return thumbs.std(axis=(1, 2, 3))


def groups(pictures: Sequence[Picture], *, cache: bool = True) -> list[int]:
    """A group number for each picture, as they come: near-duplicates, and near-duplicates of those, share one."""
    parent = list(range(len(pictures)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for pair in near_duplicates(pictures, cache=cache):
        low, high = sorted((root(pair.first), root(pair.second)))
        parent[high] = low
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(index), len(numbers)) for index in range(len(pictures))]


@dataclass(frozen=True)
class Split:
    """Positions of the samples to train on and of those held out; ascending, disjoint, together all."""

    train: list[int]
    held_out: list[int]


def split(samples: Sequence[Sample], groups: Sequence[int], *, share: float, seed: int) -> Split:
    """Hold out about `share` of the near-duplicate groups, each whole.

    A group's side depends on the seed and its smallest SHA-256 alone, so other pictures may come and go: nobody moves.
    Exceptions: a new near-copy can redraw its own group; and where the draw leaves a side empty, the group nearest to
    the threshold is put there (one group alone is trained on; a share of 0 holds nothing out).
    """
    if not 0 <= share < 1:
        raise InputError(f"held-out share {share:g}", allowed="0 (none) up to, not including, 1")
    smallest: dict[int, str] = {}
    for sample, group in zip(samples, groups, strict=True):
        smallest[group] = min(sample.sha256, smallest.get(group, sample.sha256))
    draw = {group: seeds.uniform(seed, "held-out", key) for group, key in smallest.items()}
    held = {group for group, number in draw.items() if number < share}
    if share and not held and len(draw) > 1:
        held = {min(draw, key=draw.__getitem__)}
    if held and len(held) == len(draw):
        held -= {max(draw, key=draw.__getitem__)}
    sides = [group in held for group in groups]
    return Split([i for i, out in enumerate(sides) if not out], [i for i, out in enumerate(sides) if out])

"""Near-duplicates (an image re-encoded, resized, slightly cropped, brightened or mirrored), and the held-out split.

Each image is a 48x48 colour thumbnail. Matrix products between small views of them (whole, slightly cropped,
mirrored) propose pairs; each proposed pair is aligned to a fraction of a pixel and accepted only if no difference
remains: another pose of the same creature differs somewhere, a copy nowhere.
"""

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data import disk_cache, rng
from data.errors import InputError
from data.features import ImageSource, content_key, extract_features

Array = NDArray[np.float32]
Thumbs = Array  # (n, side, side, channels) in [0, 1]
Windows = Array  # (n, 4): left, top, right, bottom as shares of the image

SIDE = 48  # pixels of a thumbnail
WHOLE = np.array([0, 0, 1, 1], np.float32)
ROUGH = 24  # pixels on which windows are fitted: finer ones took nine times as long and found no other pairs
CROP = 0.06  # share cropped from a side by the proposed views; fitting finds what lies between, and a little beyond
MAX_CROP = 0.14  # share of width or height that a copy may have lost
STEPS = 4  # Gauss-Newton steps; six moved no pair of the calibration across the threshold
DUPLICATES_VERSION = 1  # raise it when the same images would give other pairs
COARSE = 12  # pixels of the views that propose pairs
ALIKE = 0.9  # correlation of two views from which a pair is examined
# Calibrated on 650 creatures at 192 pixels and 15 kinds of copies of 300 of them: copies reach 0.67 (0.80 shrunk to a
# third without antialiasing, 0.82 textures at JPEG quality 10); different images start at 0.96, where nothing but the
# face differs, their lowest 1 % at 1.22. At 64 pixels they start at 1.06.
DIFFERENT = 0.85  # `difference` up to which two images are the same
FLAT = 0.01  # standard deviation under which an image counts as one flat colour ...
SAME_COLOUR = 0.02  # ... and the difference up to which two such colours are the same
BLOCK = 512  # rows, or pairs, compared at a time


def crop_views() -> Windows:
    """The whole image first, then all sides, each side and each corner cropped by CROP."""
    whole, inner, low, high = (0.0, 1.0), (CROP, 1 - CROP), (CROP, 1.0), (0.0, 1 - CROP)
    sides = [(whole, low), (whole, high), (low, whole), (high, whole)]
    corners = [(x, y) for x in (low, high) for y in (low, high)]
    spans = [(whole, whole), (inner, inner), *sides, *corners]
    return np.array([(x[0], y[0], x[1], y[1]) for x, y in spans], np.float32)


def interpolation_matrices(starts: Array, ends: Array, source: int, target: int) -> Array:
    """(n, target, source) matrices that resample the window [start, end] of a row linearly to `target` pixels."""
    places = (np.arange(target, dtype=np.float32) + 0.5) / target
    at = (starts[:, None] + (ends - starts)[:, None] * places) * source - 0.5
    reach = max(1.0, source / target)  # a wider triangle when shrinking, against aliasing
    distance = np.abs(np.clip(at, 0, source - 1)[..., None] - np.arange(source, dtype=np.float32))
    weights = np.maximum(0, 1 - distance / reach)
    return (weights / weights.sum(axis=2, keepdims=True)).astype(np.float32, copy=False)


def crop_windows(thumbs: Thumbs, windows: Windows, side: int) -> Thumbs:
    """Each thumbnail's window, resampled to side x side."""
    count, height, width, channels = thumbs.shape
    columns = interpolation_matrices(windows[:, 0], windows[:, 2], width, side)
    rows = interpolation_matrices(windows[:, 1], windows[:, 3], height, side)
    narrow = columns[:, None] @ thumbs  # (n, height, side, channels)
    small = rows @ narrow.reshape(count, height, side * channels)
    return small.reshape(count, side, side, channels).astype(np.float32, copy=False)


def crop_all(thumbs: Thumbs, window: Array, side: int) -> Thumbs:
    """The same window of all thumbnails."""
    return crop_windows(thumbs, np.broadcast_to(window, (len(thumbs), 4)), side)


def alignment_difference(source: Thumbs, target: Thumbs, windows: Windows) -> Array:
    """(n,) the difference that remains between target and source after fitting window, contrast and brightness.

    The mean of the largest 1 % of the differences (after a 3x3 mean), over the target's standard deviation: a copy is
    near 0 everywhere, another pose of the same creature is not. Infinite if the fit is no slight crop.
    """
    windows, tone = fit_windows(source.mean(axis=3, keepdims=True), target.mean(axis=3, keepdims=True), windows)
    left = np.abs(apply_tone(crop_windows(source, windows, SIDE), tone) - target).max(axis=3)
    blurred = box_mean(left).reshape(len(left), -1)
    worst = np.sort(blurred, axis=1)[:, -(SIDE * SIDE // 100) :].mean(axis=1)
    kept = windows[:, 2:] - windows[:, :2]
    slight = ((kept >= 1 - MAX_CROP) & (kept <= 1 + MAX_CROP / 2)).all(axis=1) & (tone[:, 0] > 0.3)
    return np.where(slight, worst / target.reshape(len(target), -1).std(axis=1), np.inf)


def fit_windows(source: Thumbs, target: Thumbs, windows: Windows) -> tuple[Windows, Array]:
    """Gauss-Newton on six numbers a pair: the window's four sides, gain and offset; returns (n, 4) and (n, 2).

    Values outside [0, 1] are clipped, as an editor clips them.
    Source: Lucas and Kanade (1981); the window and tone are their warp and the usual affine photometric model.
    """
    tone = np.tile(np.array([1, 0], np.float32), (len(source), 1))
    goal = crop_all(target, WHOLE, ROUGH)
    for _ in range(STEPS):
        step = gauss_newton(crop_windows(source, windows, ROUGH), goal, tone, windows)
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
    error = goal - apply_tone(seen, tone)
    # pixels that are clipped and right have no say in the slopes
    free = (apply_tone(seen, tone) > 0) & (apply_tone(seen, tone) < 1) | (error != 0)
    columns = np.stack([(slope * free).reshape(len(seen), -1) for slope in slopes], axis=2)
    across = columns.transpose(0, 2, 1)
    normal = across @ columns + 1e-3 * np.eye(6, dtype=np.float32)  # the ridge keeps flat images solvable
    return np.linalg.solve(normal, across @ error.reshape(len(seen), -1, 1))[..., 0]


def apply_tone(seen: Thumbs, tone: Array) -> Thumbs:
    """Contrast and brightness applied: tone is (n, 2), gain and offset."""
    return np.clip(tone[:, 0, None, None, None] * seen + tone[:, 1, None, None, None], 0, 1)


def box_mean(values: Array) -> Array:
    """3x3 means of (n, h, w), the edge repeated."""
    padded = np.pad(values, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return ((rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 9).astype(np.float32, copy=False)


@dataclass(frozen=True)
class Thumbnail:
    """A feature extractor: the image at 48x48, lightly blurred so that a shift by half a pixel changes little."""

    name: str = "thumbnail"
    version: str = f"1-{SIDE}"

    def encode(self, images: Sequence[Image.Image]) -> Array:
        small = [image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX) for image in images]
        padded = np.pad(np.stack(small).astype(np.float32) / 255, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        rows = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
        return ((rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4).reshape(len(images), -1)


@dataclass(frozen=True)
class Pair:
    """Two positions in the list that show the same image; difference is 0 for equal bytes, DIFFERENT at the most."""

    first: int
    second: int
    difference: float


def near_duplicates(images: Sequence[ImageSource], *, cache: bool = True) -> list[Pair]:
    """Every pair of near-duplicates, first < second; of images with equal bytes only the first is compared further."""
    keys = [content_key(image) for image in images]
    if not cache:
        return compare_images(images, keys, cache=False)
    key = disk_cache.cache_key("duplicates", DUPLICATES_VERSION, *keys)
    rows = disk_cache.cached_value("duplicates", key, lambda: [astuple(p) for p in compare_images(images, keys)])
    return [Pair(*row) for row in rows]


def compare_images(images: Sequence[ImageSource], keys: Sequence[str], *, cache: bool = True) -> list[Pair]:
    """As near_duplicates(); keys: of the images' contents."""
    first = {key: index for index, key in reversed(list(enumerate(keys)))}
    equal = [Pair(first[key], index, 0.0) for index, key in enumerate(keys) if first[key] < index]
    unique = sorted(first.values())
    rows = extract_features(Thumbnail(), [images[index] for index in unique], cache=cache)
    thumbs = rows.reshape(len(unique), SIDE, SIDE, 3)
    best: dict[tuple[int, int], float] = {}
    for a, b, difference in (*flat_pairs(thumbs), *close_pairs(thumbs)):
        pair = (unique[min(a, b)], unique[max(a, b)])
        best[pair] = min(difference, best.get(pair, np.inf))
    close = [Pair(a, b, difference) for (a, b), difference in best.items()]
    return sorted(equal + close, key=lambda pair: (pair.first, pair.second))


def flat_pairs(thumbs: Thumbs) -> Iterator[tuple[int, int, float]]:
    """Images of one flat colour have nothing to correlate: their colours are compared."""
    flat = np.flatnonzero(thumbs.std(axis=(1, 2, 3)) < FLAT)
    colours = thumbs[flat].mean(axis=(1, 2))
    for a, colour in zip(flat, colours, strict=True):
        apart = np.abs(colours - colour).max(axis=1)
        yield from ((int(a), int(b), float(d)) for b, d in zip(flat, apart, strict=True) if b > a and d <= SAME_COLOUR)


def close_pairs(thumbs: Thumbs) -> Iterator[tuple[int, int, float]]:
    """(source, target, difference) of the proposed pairs that are the same image; a pair may come more than once."""
    windows = crop_views()
    for sources in (thumbs, np.ascontiguousarray(thumbs[:, :, ::-1])):
        for a, b, view in propose_pairs(sources, thumbs, windows):
            difference = alignment_difference(sources[a], thumbs[b], windows[view])
            same = np.flatnonzero(difference <= DIFFERENT)
            yield from ((int(a[k]), int(b[k]), float(difference[k])) for k in same)


def propose_pairs(sources: Thumbs, thumbs: Thumbs, windows: Windows) -> Iterator[tuple[NDArray[np.intp], ...]]:
    """Blocks of (source, target, view of the source): that view correlates with the whole target by ALIKE or more."""
    textured = np.flatnonzero(thumbs.std(axis=(1, 2, 3)) >= FLAT)
    wholes = unit_vectors(crop_all(thumbs[textured], WHOLE, COARSE))
    for start in range(0, len(textured), BLOCK):
        rows = textured[start : start + BLOCK]
        views = np.stack([unit_vectors(crop_all(sources[rows], window, COARSE)) for window in windows])
        a, b = np.nonzero(best_correlation(views, wholes) >= ALIKE)
        a, b = a[a + start != b], b[a + start != b]  # an image is no copy of itself
        for at in range(0, len(a), BLOCK):
            x, y = a[at : at + BLOCK], b[at : at + BLOCK]
            yield rows[x], textured[y], np.einsum("vpd,pd->vp", views[:, x], wholes[y]).argmax(axis=0)


def best_correlation(seen: Array, wholes: Array) -> Array:
    """(views, n, d) and (m, d) unit vectors -> (n, m): the largest correlation over the views."""
    best = seen[0] @ wholes.T
    for view in seen[1:]:
        np.maximum(best, view @ wholes.T, out=best)
    return best


def unit_vectors(images: Thumbs) -> Array:
    """Each image as a vector of mean 0 and length 1 (over all colours: a change of hue is a difference)."""
    rows = images.reshape(len(images), COARSE * COARSE * 3)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def duplicate_groups(images: Sequence[ImageSource], *, cache: bool = True) -> list[int]:
    """A group number for each image, in order: near-duplicates, and near-duplicates of those, share one."""
    if not images:
        return []
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = near_duplicates(images, cache=cache)
    ends = [pair.first for pair in pairs], [pair.second for pair in pairs]
    graph = coo_array((np.ones(len(pairs)), ends), shape=(len(images), len(images)))
    return connected_components(graph, directed=False)[1].tolist()


@dataclass(frozen=True)
class Split:
    """Positions of the samples to train on and of those held out; ascending, disjoint, together all.

    note: why the share that was asked for is impossible; empty if it was met.
    """

    train: list[int]
    held_out: list[int]
    note: str = ""


def split_held_out(hashes: Sequence[str], groups: Sequence[int], *, share: float, seed: int) -> Split:
    """Hold out round(share * n) images: at least 1, and at most a third unless the share is larger.

    hashes: SHA-256 of each image. Near-duplicate groups stay whole, so the largest go to training first; of groups of
    one size the seed and their smallest hash decide, so other images hardly move when one is added. If no choice of
    groups makes the number, the next smaller one that can be made is held out, or nothing, and `note` says so.
    """
    numbers = draw_groups(hashes, groups, share, seed)
    sizes = Counter(groups)
    wanted = held_out_count(len(hashes), share) if len(sizes) > 1 else 0
    held = {group for group, number in numbers.items() if number < share}
    if sum(sizes[group] for group in held) != wanted:
        held = choose_groups(sizes, wanted, numbers)
    count = sum(sizes[group] for group in held)
    note = ""
    if len(hashes) > 1 and count != (target := held_out_count(len(hashes), share)):
        whole = f"near-copies stay together, up to {max(sizes.values())} here"
        note = f"{count} of {len(hashes)} images are held out instead of {target}: {whole}"
    return make_split(groups, held, note)


def held_out_count(count: int, share: float) -> int:
    """How many of `count` images a share is."""
    limit = count // 3 if share <= 1 / 3 else count - 1
    return min(max(1, round(share * count)), max(1, limit)) if share else 0


def choose_groups(sizes: Mapping[int, int], wanted: int, numbers: Mapping[int, float]) -> set[int]:
    """Groups of `wanted` images together, or of as many as can be made below it; small ones first, then low numbers."""
    by_size: dict[int, list[int]] = {}
    for group in sorted(sizes, key=lambda group: (sizes[group], numbers[group])):
        by_size.setdefault(sizes[group], []).append(group)
    fitting = [size for size in by_size if size <= wanted]
    sums = [1]  # bit k of sums[-1 - i]: whether groups of the sizes fitting[i:] can hold k images
    for size in reversed(fitting):
        bits, left, step = sums[-1], len(by_size[size]), 1
        while left:  # powers of two and a rest make every number of groups
            step = min(step, left)
            bits |= bits << (size * step)
            left, step = left - step, 2 * step
        sums.append(bits & ((2 << wanted) - 1))
    rest = sums.pop().bit_length() - 1
    held: set[int] = set()
    for size in fitting:
        larger = sums.pop()
        most = min(len(by_size[size]), rest // size)
        taken = next(n for n in range(most, -1, -1) if larger >> (rest - n * size) & 1)
        held.update(by_size[size][:taken])
        rest -= taken * size
    return held


def sample_held_out(hashes: Sequence[str], groups: Sequence[int], *, share: float, seed: int) -> Split:
    """Hold out each group with probability `share`: about as many images, of a large set.

    A group's side depends on the seed and its smallest hash alone, so adding or removing images moves no other.
    Exceptions: a new near-duplicate can move its own group; and where a side would be empty, the group nearest to the
    threshold is put there (a single group is trained on; a share of 0 holds nothing out).
    """
    numbers = draw_groups(hashes, groups, share, seed)
    held = {group for group, number in numbers.items() if number < share}
    if share and not held and len(numbers) > 1:
        held = {min(numbers, key=numbers.__getitem__)}
    if held and len(held) == len(numbers):
        held -= {max(numbers, key=numbers.__getitem__)}
    return make_split(groups, held)


def draw_groups(hashes: Sequence[str], groups: Sequence[int], share: float, seed: int) -> dict[int, float]:
    """A number in [0, 1) for each group, by the seed and its smallest hash. Raises InputError for a bad share."""
    if not 0 <= share < 1:
        raise InputError(f"held-out share {share:g}", allowed="0 (none) up to, not including, 1")
    smallest: dict[int, str] = {}
    for key, group in zip(hashes, groups, strict=True):
        smallest[group] = min(key, smallest.get(group, key))
    return {group: rng.uniform(seed, "held-out", key) for group, key in smallest.items()}


def make_split(groups: Sequence[int], held: Container[int], note: str = "") -> Split:
    sides = [group in held for group in groups]
    return Split([i for i, out in enumerate(sides) if not out], [i for i, out in enumerate(sides) if out], note)

"""Aspect-ratio buckets: a few sizes of about equal area, so that wide and tall images train without losing much.

Source: NovelAI's aspect-ratio bucketing (2022), with sides that the U-Net can halve (step) instead of a fixed 64.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.errors import InputError

TOLERANCE = 0.05  # area over size*size that a bucket may have: memory stays that of the square


@dataclass(frozen=True, order=True)
class Bucket:
    """An image size in pixels."""

    width: int
    height: int

    @property
    def ratio(self) -> float:
        return self.width / self.height

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class BucketUse:
    """How a set of images uses one bucket."""

    bucket: Bucket
    count: int
    mean_cropped: float  # share of an image's area that is cut away, mean and worst, in [0, 1)
    worst_cropped: float
    enlarged: int  # images that are smaller than the bucket, and have to be enlarged


def make_buckets(size: int, *, step: int, longest: float = 2.0, tolerance: float = TOLERANCE) -> list[Bucket]:
    """Buckets with sides that are multiples of `step`, ratios in [1/longest, longest], area <= size^2 (1 + tolerance).

    size: side of the square bucket, which is always there and exact. step: factor of the autoencoder times the
    downsampling of the U-Net: 64 for Stable Diffusion v1. Raises InputError if size is no multiple of step.
    """
    if step < 1 or size < step or size % step:
        near = max(step, round(size / max(step, 1)) * step)
        raise InputError(f"size {size} does not fit the model", allowed=f"multiples of {step}", fix=f"Use {near}.")
    if longest < 1:
        raise InputError(f"longest ratio {longest} is below 1", allowed="1 (squares only) or more")
    area = size * size * (1 + tolerance)
    widest = int(math.sqrt(area * longest)) // step * step
    shapes = [Bucket(width, int(area / width) // step * step) for width in range(size, widest + 1, step)]
    wide = [shape for shape in shapes if shape.height >= step and 1 < shape.ratio <= longest]
    return sorted({Bucket(size, size), *wide, *(Bucket(shape.height, shape.width) for shape in wide)})


def assign_bucket(width: int, height: int, buckets: Sequence[Bucket]) -> Bucket:
    """The bucket of the nearest aspect ratio (in log space, so wide and tall count alike); of equals the larger."""
    ratio = math.log(width / height)
    return min(buckets, key=lambda bucket: (abs(math.log(bucket.ratio) - ratio), -bucket.width * bucket.height))


def cropped_share(width: int, height: int, bucket: Bucket) -> float:
    """The share of the image's area that is cut away when it is scaled to cover the bucket, in [0, 1)."""
    ratio = width / height
    return 1 - min(ratio / bucket.ratio, bucket.ratio / ratio)


def summarize_buckets(sizes: Iterable[tuple[int, int]], buckets: Sequence[Bucket]) -> list[BucketUse]:
    """The buckets that images of these (width, height) use, fullest first."""
    members: dict[Bucket, list[tuple[int, int]]] = {}
    for size in sizes:
        members.setdefault(assign_bucket(*size, buckets), []).append(size)
    return sorted(
        (bucket_use(bucket, held) for bucket, held in members.items()), key=lambda row: (-row.count, row.bucket)
    )


def bucket_use(bucket: Bucket, sizes: Sequence[tuple[int, int]]) -> BucketUse:
    """One row of the summary."""
    lost = [cropped_share(width, height, bucket) for width, height in sizes]
    enlarged = sum(width < bucket.width or height < bucket.height for width, height in sizes)
    return BucketUse(bucket, len(sizes), sum(lost) / len(lost), max(lost), enlarged)


def trained_side(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> int:
    """The side in pixels of the images that a model was trained on, from its configs.

    Two sides stand for the square of their area; without any it is Stable Diffusion's 64 latent positions.
    """
    size = unet.get("sample_size") or 64
    if isinstance(size, list | tuple):
        size = round(math.prod(size) ** 0.5)
    return int(size) * 2 ** (len(vae["block_out_channels"]) - 1)

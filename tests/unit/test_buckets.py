"""Buckets: sizes a U-Net can take, of about equal area, and pictures in the nearest."""

import math
from itertools import pairwise

import pytest

from data import buckets
from data.buckets import Bucket, assign_bucket, cropped_share, make_buckets, summarize_buckets
from data.errors import InputError

GRIDS = [(512, 64, 2.0), (768, 64, 2.0), (512, 8, 3.0), (64, 32, 2.0), (96, 32, 2.0), (128, 32, 4.0), (64, 64, 2.0)]


@pytest.mark.parametrize(("size", "step", "longest"), GRIDS)
@pytest.mark.parametrize("tolerance", [0.0, 0.05, 0.3])
def test_every_bucket_keeps_its_promises(size: int, step: int, longest: float, tolerance: float) -> None:
    buckets = make_buckets(size, step=step, longest=longest, tolerance=tolerance)
    assert Bucket(size, size) in buckets
    assert buckets == sorted(set(buckets))
    for bucket in buckets:
        assert bucket.width % step == bucket.height % step == 0
        assert bucket.width >= step <= bucket.height
        assert bucket.width * bucket.height <= size * size * (1 + tolerance)
        assert 1 / longest <= bucket.ratio <= longest
        assert Bucket(bucket.height, bucket.width) in buckets


def test_the_buckets_of_stable_diffusion() -> None:
    names = [str(bucket) for bucket in make_buckets(512, step=64)]
    assert names == ["384x640", "384x704", "448x576", "512x512", "576x448", "640x384", "704x384"]


def test_a_size_of_two_steps_has_the_square_alone() -> None:
    assert make_buckets(64, step=32) == [Bucket(64, 64)]


@pytest.mark.parametrize(("size", "step", "longest"), GRIDS)
def test_every_ratio_lands_in_the_nearest_bucket_and_its_loss_is_bounded(size: int, step: int, longest: float) -> None:
    buckets = make_buckets(size, step=step, longest=longest)
    logs = sorted(math.log(bucket.ratio) for bucket in buckets)
    half_gap = max((b - a for a, b in pairwise(logs)), default=0.0) / 2
    for degree in range(-400, 401):
        ratio = math.exp(degree / 200)  # 1/7.4 to 7.4
        chosen = assign_bucket(round(1e6 * ratio), 10**6, buckets)
        distances = {bucket: abs(math.log(bucket.ratio) - math.log(ratio)) for bucket in buckets}
        assert distances[chosen] <= min(distances.values()) + 1e-5
        outside = max(0.0, abs(math.log(ratio)) - logs[-1])
        assert cropped_share(round(1e6 * ratio), 10**6, chosen) <= 1 - math.exp(-max(half_gap, outside)) + 1e-5


def test_squares_stay_square_and_equally_near_buckets_give_the_larger() -> None:
    assert assign_bucket(333, 333, make_buckets(512, step=64)) == Bucket(512, 512)
    assert assign_bucket(1, 1, [Bucket(64, 64), Bucket(128, 128)]) == Bucket(128, 128)


def test_cropped_is_the_share_of_the_area_cut_away() -> None:
    assert cropped_share(200, 100, Bucket(64, 64)) == pytest.approx(0.5)
    assert cropped_share(100, 300, Bucket(64, 64)) == pytest.approx(2 / 3)
    assert cropped_share(128, 128, Bucket(64, 64)) == 0


def test_summary_counts_crops_and_enlargements() -> None:
    rows = summarize_buckets([(512, 512), (300, 300), (600, 500), (1280, 768)], make_buckets(512, step=64))
    found = [(str(row.bucket), row.count, row.enlarged) for row in rows]
    assert found == [("512x512", 2, 1), ("576x448", 1, 0), ("640x384", 1, 0)]
    assert rows[1].worst_cropped == pytest.approx(1 - 1.2 / (576 / 448))
    assert rows[0].mean_cropped == 0


@pytest.mark.parametrize(
    ("size", "step", "longest", "message"),
    [
        (500, 64, 2.0, r"size 500 does not fit the model; allowed: multiples of 64\. Use 512\."),
        (0, 64, 2.0, r"size 0 does not fit .* Use 64\."),
        (-64, 64, 2.0, r"size -64 does not fit"),
        (512, 64, 0.5, r"longest ratio 0\.5 is below 1"),
    ],
)
def test_sizes_the_model_cannot_take_are_refused(size: int, step: int, longest: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_buckets(size, step=step, longest=longest)


def test_the_side_a_model_was_trained_at() -> None:
    vae = {"block_out_channels": [1, 1, 1, 1]}
    sides = [buckets.trained_side({"sample_size": size}, vae) for size in (64, 96, None, [64, 64], [32, 128])]
    assert sides == [512, 768, 512, 512, 512]

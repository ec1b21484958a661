"""What runs leave: verdicts with intervals, the small classifier, grids and films, the report's numbers."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from train.ddpm import image_sets
from train.ddpm.image_sets import to_float
from train.ddpm.runs import comparison, scoring
from train.ddpm.runs.comparison import bootstrap
from train.ddpm.runs.report import (
    centred_mean,
    format_speed,
    image_grid,
    pick_evenly,
    state_frames,
    write_gif,
    write_mp4,
)
from train.ddpm.runs.scoring import Accuracy, ClassifierFeatures
from train.ddpm.samplers import FINISHED, SamplerState

# ---- verdicts


def course_words(*means: float, noise: float = 0.01) -> list[str]:
    """Verdicts on five seeds and 40 images that share how hard each image is."""
    random = np.random.default_rng(0)
    hard = random.normal(0, 1, 40)
    errors = {
        name: mean + hard + noise * random.normal(size=(5, 40))
        for name, mean in zip(("unet2d", "basic", "plain"), means, strict=True)
    }
    return [each.word for each in comparison.course_verdicts(errors, resamples=300, seed=0)]


def test_paired_differences_are_seen_through_hard_images() -> None:
    """Images differ by 1, networks by 0.1: only pairing can tell."""
    assert course_words(1.0, 1.1, 1.12) == ["yes", "yes", "yes"]
    assert course_words(1.1, 1.0, 1.3) == ["no", "yes", "no"]
    assert course_words(1.0, 1.0, 1.0, noise=0.5)[0] == "cannot tell"


def test_the_bootstrap_interval_is_as_wide_as_theory_says() -> None:
    """The mean of 1 x n independent numbers: +- 1.96 s / sqrt(n); five identical seeds do not make it narrower."""
    values = np.random.default_rng(1).normal(size=(1, 400))
    ends = []
    for seeds in (1, 1, 5):
        grid = np.repeat(values, seeds, axis=0)
        low, high = bootstrap(lambda r, c, g=grid: g[np.ix_(r, c)].mean(), grid.shape, resamples=2000, seed=0)
        assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
        ends.append((low, high))
    assert ends[0] == ends[1]


# ---- the classifier


def test_a_share_has_wilsons_interval() -> None:
    assert str(Accuracy(15, 20)) == "75.0 % [53.1, 88.8] of 20"


def test_the_classifier_learns_and_is_deterministic() -> None:
    images = image_sets.load_digit_images(8).only(["0", "1"])
    train, test = images.select(range(120)), images.select(range(200, 300))
    first, again = (scoring.train_on(train, seed=1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert test.labels is not None
    assert (first(to_float(test.pixels)).argmax(1) == test.labels).double().mean() > 0.9


def test_classifier_features_are_named_by_their_weights() -> None:
    images = image_sets.load_digit_images(8).select(range(12))
    one, other = (ClassifierFeatures(scoring.SmallClassifier(1, 2).eval(), 1) for _ in range(2))
    scaled, spatial = one.scaled_to(images), ClassifierFeatures(one.network, 1, spatial=True)
    assert len({one.version, other.version, scaled.version}) == 3
    rows = scaled.encode([image.convert("RGB") for image in images.images()])
    assert rows.shape == (12, 128) and rows.dtype == np.float32
    assert float((rows**2).mean()) == pytest.approx(1.0, rel=1e-4)
    assert spatial.encode(images.images()).shape == (12, 112)
    assert (spatial.name, one.name) == ("classifier-spatial", "classifier")


def test_the_published_table_ships() -> None:
    head, rows = scoring.published_table()
    assert head == ["set", "model", "FID", "sFID", "precision", "recall"]
    assert len(rows) == 32
    assert ["LSUN bedrooms 256", "DDPM", "4.89", "9.07", "0.60", "0.45"] in rows
    assert ["ImageNet 256", "ADM-G", "4.59", "5.25", "0.82", "0.52"] in rows


# ---- files


def test_a_grid_has_its_images_where_they_belong() -> None:
    shades = torch.arange(1, 6, dtype=torch.uint8)[:, None, None, None] * 10
    grid = image_grid(shades.repeat(1, 1, 48, 48), 3)
    assert grid.size == (3 * 48 + 2 * 2, 2 * 48 + 2)
    found = [[grid.getpixel((50 * column, 50 * row)) for column in range(3)] for row in range(2)]
    assert found == [[10, 20, 30], [40, 50, 255]]
    assert image_grid(shades.repeat(1, 1, 4, 4), 9).size == (12 * (5 * 6 - 2), 12 * 4)  # enlarged


def test_a_trajectory_becomes_a_gif_and_a_video(tmp_path: Path) -> None:
    ends = [(t, torch.full((2, 1, 5, 5), -t / 10)) for t in reversed(range(10))]
    states = [SamplerState(t, x, x) for t, x in [*ends, (FINISHED, torch.ones(2, 1, 5, 5))]]
    some = pick_evenly(states, 4)
    assert [state.t for state in some] == [9, 6, 2, FINISHED]
    frames = state_frames(some, 2)
    with Image.open(write_gif(frames, tmp_path / "walk.gif", seconds=0.4, pause=0.2)) as moving:
        durations = []
        for number in range(moving.n_frames):  # type: ignore[attr-defined]
            moving.seek(number)
            durations.append(moving.info["duration"])
        assert durations == [100, 100, 100, 300]
        assert moving.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    with av.open(str(write_mp4(frames, tmp_path / "walk.mp4"))) as video:
        shown = [frame.to_ndarray(format="gray") for frame in video.decode(video=0)]
    assert len(shown) == 4 and shown[0].shape[0] % 2 == 0 and shown[0].shape[1] % 2 == 0
    assert shown[-1][10, 10] > shown[1][10, 10]


def test_the_median_speed_of_a_run() -> None:
    lines = [{"images_per_second": 3000.0, "tflops": 112.0, "mfu": 0.113}, {"step": 3, "loss": 0.1}]
    lines += [{"images_per_second": 2000.0, "tflops": 74.6, "mfu": 0.075}, {"images_per_second": 3100.0}]
    assert format_speed(lines) == "speed:     3,000 images/s, 93.3 TFLOP/s, 9.4 % of the device's peak"
    assert format_speed([{"images_per_second": 12.5, "tflops": None, "mfu": None}]) == "speed:     12.5 images/s"
    assert format_speed([]) == ""


def test_a_running_mean_does_not_lag() -> None:
    assert centred_mean([4.0, 1.0, 4.0, 7.0, 0.0], reach=1) == [4.0, 3.0, 4.0, 4.0 - 1 / 3, 0.0]
    line = [float(value) for value in range(100)]
    means = centred_mean(line)
    assert means[:75] == line[:75]
    assert means[-1] == sum(line[-13:]) / 13  # an average too

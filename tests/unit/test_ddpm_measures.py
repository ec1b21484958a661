"""Verdicts, the small classifier, drawn files, and the published table."""

import numpy as np
import pytest
import torch
from PIL import Image

from train.ddpm import image_sets
from train.ddpm.image_sets import to_float
from train.ddpm.runs import scoring
from train.ddpm.runs.comparison import bootstrap, compare_smaller, course_verdicts, interval_band
from train.ddpm.runs.grids import image_grid, pick_states, state_frames, write_gif, write_mp4
from train.ddpm.runs.scoring import Accuracy, ClassifierFeatures
from train.ddpm.samplers import FINISHED, SamplerState


def grids(unet2d: float, basic: float, plain: float, *, noise: float = 0.01) -> dict[str, np.ndarray]:
    """Errors of five seeds and 40 pictures that share how hard each picture is."""
    random = np.random.default_rng(0)
    hard = random.normal(0, 1, 40)
    means = {"unet2d": unet2d, "basic": basic, "plain": plain}
    return {name: mean + hard + noise * random.normal(size=(5, 40)) for name, mean in means.items()}


def test_paired_differences_are_seen_through_hard_pictures() -> None:
    """Pictures differ by 1, networks by 0.1: only pairing can tell."""
    better, skips, less = course_verdicts(grids(1.0, 1.1, 1.12), resamples=300, seed=0)
    assert (better.word, skips.word, less.word) == ("yes", "yes", "yes")
    assert better.difference.mean == pytest.approx(-0.1, abs=0.01)
    assert less.difference.mean == pytest.approx(0.02 - 0.1, abs=0.01)
    assert better.difference.low < better.difference.mean < better.difference.high
    worse, _, more = course_verdicts(grids(1.1, 1.0, 1.3), resamples=300, seed=0)
    assert (worse.word, more.word) == ("no", "no")
    unknown, *_ = course_verdicts(grids(1.0, 1.0, 1.0, noise=0.5), resamples=300, seed=0)
    assert unknown.word == "cannot tell"
    assert "cannot tell" in str(unknown)


def test_bits_are_compared_in_pairs() -> None:
    random = np.random.default_rng(0)
    hard = random.normal(0, 5, 8)
    one, other = (mean + hard + 0.05 * random.normal(size=(5, 8)) for mean in (3.0, 3.4))
    found = compare_smaller("Fewer bits:", one, other, resamples=300, seed=0)
    assert (found.word, found.difference.mean) == ("yes", pytest.approx(-0.4, abs=0.05))
    assert compare_smaller("Fewer bits:", other, one, resamples=300, seed=0).word == "no"
    assert compare_smaller("Fewer bits:", one, one, resamples=300, seed=0).word == "cannot tell"


def test_the_bootstrap_interval_is_as_wide_as_theory_says() -> None:
    """The mean of 1 x n independent numbers: +- 1.96 s / sqrt(n)."""
    values = np.random.default_rng(1).normal(size=(1, 400))
    found = bootstrap(lambda r, c: float(values[np.ix_(r, c)].mean()), (1, 400), resamples=2000, seed=0)
    half = 1.96 * values.std() / 20
    assert found.mean == values.mean()
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)
    again = bootstrap(lambda r, c: float(values[np.ix_(r, c)].mean()), (1, 400), resamples=2000, seed=0)
    assert found == again


def test_bands_know_that_all_seeds_saw_the_same_pictures() -> None:
    """Pictures that differ by 1, seeds by nothing: as wide as of one seed, not sqrt(5) times narrower."""
    hard = np.random.default_rng(2).normal(size=(1, 200, 2))
    low, high = interval_band(np.repeat(hard, 5, axis=0), resamples=800, seed=0)
    assert (high - low) / 2 == pytest.approx(1.96 * hard.std(axis=(0, 1)) / 200**0.5, rel=0.1)
    interval = bootstrap(lambda r, c: float(hard[np.ix_(r, c)][..., 0].mean()), (1, 200), resamples=800, seed=0)
    assert interval_band(hard, resamples=800, seed=0)[0][0] == pytest.approx(interval.low)


def test_a_share_has_wilsons_interval() -> None:
    """81 of 263: 0.2553 to 0.3662. Source: Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    low, high = Accuracy(81, 263).interval
    assert (low, high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
    assert Accuracy(0, 20).interval[1] == pytest.approx(0.1611, abs=1e-4)
    assert str(Accuracy(15, 20)) == "75.0 % [53.1, 88.8] of 20"


def test_the_classifier_learns_and_is_the_same_again() -> None:
    found = image_sets.load_digit_images(8).only(["0", "1"])
    assert found.labels is not None
    train, test = found.taken(range(0, 120)), found.taken(range(200, 300))
    first, again = (scoring.train_on(train, seed=1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert test.labels is not None
    assert scoring.measure_accuracy(first, to_float(test.pixels), test.labels).share > 0.9


def test_classifier_features_are_named_by_their_weights() -> None:
    found = image_sets.load_digit_images(8).taken(range(12))
    one, other = (ClassifierFeatures(scoring.SmallNet(1, 2).eval(), 1) for _ in range(2))
    assert one.version != other.version
    scaled = one.scaled_to(found)
    assert scaled.version != one.version
    rows = scaled.encode([picture.convert("RGB") for picture in found.images()])
    assert rows.shape == (12, 128) and rows.dtype == np.float32
    assert float((rows**2).mean()) == pytest.approx(1.0, rel=1e-4)
    spatial = ClassifierFeatures(one.network, 1, spatial=True)
    assert spatial.encode(found.images()).shape == (12, 112)
    assert (spatial.name, one.name) == ("classifier-spatial", "classifier")


def test_a_grid_has_its_pictures_where_they_belong() -> None:
    pixels = torch.arange(1, 6, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 4, 4) * 10
    found = image_grid(pixels, 3, scale=1)
    assert found.size == (3 * 4 + 2 * 2, 2 * 4 + 2)
    shades = [[found.getpixel((6 * column, 6 * row)) for column in range(3)] for row in range(2)]
    assert shades == [[10, 20, 30], [40, 50, 255]]
    assert image_grid(pixels, 9).size == (12 * (5 * 6 - 2), 12 * 4)


def test_a_walk_becomes_a_gif_and_a_video(tmp_path) -> None:  # type: ignore[no-untyped-def]
    import av

    states = [SamplerState(t, torch.full((2, 1, 5, 5), -1 + t / 5), torch.zeros(2, 1, 5, 5)) for t in range(9, -1, -1)]
    states.append(SamplerState(FINISHED, torch.ones(2, 1, 5, 5), torch.ones(2, 1, 5, 5)))
    some = pick_states(states, len(states), 4)
    assert [state.t for state in some] == [9, 6, 2, FINISHED]
    frames = list(state_frames(some, 2))
    with Image.open(write_gif(frames, tmp_path / "walk.gif", seconds=0.4, rest=0.2)) as moving:
        assert moving.n_frames == 4  # type: ignore[attr-defined]
        durations = []
        for number in range(4):
            moving.seek(number)
            durations.append(moving.info["duration"])
        assert durations == [100, 100, 100, 300]
        assert moving.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    with av.open(str(write_mp4(frames, tmp_path / "walk.mp4"))) as video:
        shown = [frame.to_ndarray(format="gray") for frame in video.decode(video=0)]
    assert len(shown) == 4
    assert shown[0].shape[0] % 2 == 0 and shown[0].shape[1] % 2 == 0
    assert shown[-1][10, 10] > shown[1][10, 10]


def test_the_lecture_table_ships() -> None:
    head, rows = scoring.published_table()
    assert head == ["set", "model", "FID", "sFID", "precision", "recall"]
    assert len(rows) == 32
    assert ["LSUN bedrooms 256", "DDPM", "4.89", "9.07", "0.60", "0.45"] in rows
    assert ["ImageNet 256", "ADM-G", "4.59", "5.25", "0.82", "0.52"] in rows

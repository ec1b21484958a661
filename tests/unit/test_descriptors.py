"""Each number of the style descriptors on pictures where it is known."""

import math

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data import sample_set
from data.features import DESCRIPTOR_NAMES, HUES, StyleDescriptors


def of(picture: Image.Image) -> dict[str, float]:
    (row,) = StyleDescriptors().encode([picture])
    return dict(zip(DESCRIPTOR_NAMES, row.tolist(), strict=True))


def halves(left: str, right: str) -> Image.Image:
    picture = Image.new("RGB", (128, 128), left)
    picture.paste(right, (64, 0, 128, 128))
    return picture


def noise(size: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def test_one_colour() -> None:
    red = of(Image.new("RGB", (50, 50), (255, 0, 0)))
    assert red["hue 0 degrees"] == red["saturation 8/8"] == red["flat"] == red["mirror symmetry"] == 1
    assert red["palette entropy"] == red["colours of 90%"] == red["border white"] == red["edges"] == 0
    white = of(Image.new("RGB", (50, 50), "white"))
    assert white["border white"] == white["white"] == white["lightness 8/8"] == white["saturation 1/8"] == 1
    assert all(white[name] == 0 for name in DESCRIPTOR_NAMES if name.startswith("hue"))


@pytest.mark.parametrize("index", range(HUES))
def test_hues_are_those_of_the_colour_wheel(index: int) -> None:
    degrees = 360 * index // HUES
    assert of(Image.new("RGB", (20, 20), f"hsv({degrees}, 80%, 90%)"))[f"hue {degrees} degrees"] == 1


def test_two_halves() -> None:
    both = of(halves("black", "red"))
    assert both["palette entropy"] == pytest.approx(math.log(2) / math.log(512), rel=0.15)  # bicubic rims add a little
    assert both["colours of half"] == 0
    assert both["colours of 90%"] == pytest.approx(math.log(2) / math.log(512))
    assert both["ink"] == pytest.approx(0.5, abs=0.02)
    assert both["mirror symmetry"] == pytest.approx(-1, abs=0.05)
    assert both["edges"] == pytest.approx(2 / 128)
    assert both["edge direction 90 degrees"] == pytest.approx(1)  # the line between them stands upright
    assert of(halves("black", "red").rotate(90))["edge direction 0 degrees"] == pytest.approx(1)


def test_diagonals_are_told_apart() -> None:
    picture = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(picture).polygon([(0, 0), (128, 128), (0, 128)], fill="black")  # its rim falls to the right
    falling, rising = of(picture), of(picture.rotate(90))
    assert falling["edge direction 45 degrees"] > 0.9 or falling["edge direction 135 degrees"] > 0.9
    assert rising["edge direction 45 degrees"] == pytest.approx(falling["edge direction 135 degrees"], abs=0.02)


def test_border_is_apart_from_the_middle() -> None:
    picture = Image.new("RGB", (160, 160), "white")
    picture.paste("blue", (20, 20, 140, 140))
    assert of(picture)["border white"] == 1
    assert of(picture)["border unevenness"] == 0
    assert of(picture)["white"] == pytest.approx(1 - (120 / 160) ** 2, abs=0.02)


def test_colourfulness_is_hasler_and_suesstrunks() -> None:
    picture = noise(128)  # already of the size it is measured at
    red, green, blue = np.moveaxis(np.asarray(picture, np.float64), 2, 0) / 255
    first, second = red - green, (red + green) / 2 - blue
    expected = math.hypot(first.std(), second.std()) + 0.3 * math.hypot(first.mean(), second.mean())
    assert of(picture)["colourfulness"] == pytest.approx(expected, rel=1e-4)


def test_drawings_differ_from_noise_and_little_from_themselves_at_another_size() -> None:
    large = sample_set.sample_image(0, 256)
    small, row, grain = of(large.resize((140, 140), Image.Resampling.LANCZOS)), of(large), of(noise(256))
    assert max(abs(row[name] - small[name]) for name in DESCRIPTOR_NAMES) < 0.1
    assert row["flat"] > 0.4 > 0.1 > grain["flat"]
    assert row["palette entropy"] < 0.5 < 0.6 < grain["palette entropy"]
    assert row["border white"] > 0.9


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (16, 700)])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_odd_pictures_give_finite_numbers(size: tuple[int, int], mode: str) -> None:
    row = StyleDescriptors().encode([Image.new(mode, size)])
    assert row.shape == (1, len(DESCRIPTOR_NAMES))
    assert row.dtype == np.float32
    assert np.isfinite(row).all()

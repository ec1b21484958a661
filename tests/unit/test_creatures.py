"""The sample set: the same images everywhere, no two alike, and captions that say what is drawn."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import sample_set
from data.schema import Annotation
from tools.pocket import archive
from tools.pocket.drawing import creatures
from tools.pocket.drawing.paint import INK, PAPER, Part, Pen, Place, Ruler
from tools.pocket.drawing.shapes import ellipse
from tools.pocket.drawing.species import SPECIES

BRED = (0, 17, 35)  # species whose every image is looked at


@functools.cache
def drawn(index: int) -> np.ndarray:
    return np.asarray(creatures.draw(index, 64), dtype=np.int16)


@functools.cache
def captioned() -> list[Annotation]:
    return [creatures.annotation(index) for index in range(sample_set.COUNT)]


def test_another_seed_gives_another_image_of_the_same_species() -> None:
    assert creatures.annotation(7, seed=1).name == creatures.annotation(7).name
    assert np.abs(np.asarray(creatures.draw(7, 64, seed=1), dtype=np.int16) - drawn(7)).mean() > 3


def test_no_two_images_are_alike() -> None:
    indices = [kin + 100 * picture for kin in BRED for picture in range(6)] + list(range(60, 76))
    pictures = [drawn(index).reshape(-1) for index in indices]
    gaps = [np.abs(a - b).mean() for i, a in enumerate(pictures) for b in pictures[:i]]
    assert min(gaps) > 1.5


def test_every_type_and_species_is_present() -> None:
    assert len(creatures.TYPES) == len(set(creatures.TYPES)) == 10
    names = [species.name for species in SPECIES]
    assert len(names) == len(set(names)) == 100
    assert {row.type for row in captioned()} == set(creatures.TYPES)
    pictures = [sum(row.name == name for row in captioned()) for name in names]
    assert set(pictures) == {6, 7}


def test_a_species_keeps_its_plan_and_no_two_of_a_type_share_one() -> None:
    pairs = {(species.kind.word, species.plan) for species in SPECIES}
    assert len(pairs) == 100


def test_captions_name_type_and_species_and_stay_short() -> None:
    for row in captioned():
        assert f"{row.type} type" in row.text
        assert row.name is not None
        assert row.name in row.text
        assert 10 <= len(row.text.split()) < 60
        assert not {"{", "}"} & set(row.text)
        assert not any(f" a {vowel}" in f" {row.text}" for vowel in "aeio"), row.text
    assert len({row.text for row in captioned()}) == sample_set.COUNT


def test_the_same_image_at_two_sizes() -> None:
    large = creatures.draw(23, 256).resize((64, 64), Image.Resampling.BOX)
    error = np.asarray(large, dtype=float) - drawn(23)
    psnr = 10 * np.log10(255**2 / (error**2).mean())
    assert psnr > 30


@pytest.mark.parametrize("index", range(0, 100, 9))
def test_nothing_is_cut_off_and_the_paper_shows(index: int) -> None:
    picture = drawn(index)
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert np.abs(border - np.array(PAPER)).sum(axis=1).max() < 60  # paper, or the pale puddle, never ink
    assert np.abs(picture - np.array(INK)).sum(axis=2).min() < 40


def test_a_ruler_and_a_pen_agree() -> None:
    part = Part(ellipse(0.1 + 0.2j, 0.3, 0.2), (255, 0, 0))
    place = Place(0.05j, 0.9, 0.3, 1.1, True)
    ruler, pen = Ruler(place), Pen(256, place)
    ruler.figure(part)
    pen.figure(part)
    rows, columns = np.nonzero(np.abs(np.asarray(pen.finish(), dtype=int) - PAPER).sum(axis=2) > 200)
    seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 128 - 1
    assert seen == pytest.approx(ruler.box, abs=0.012)


def test_the_archives_hold_what_the_code_draws() -> None:
    for index in (0, 41, 649):
        drawing, shipped = creatures.draw(index, 64), sample_set.sample_image(index)
        assert drawing.tobytes() == shipped.tobytes()
        assert archive.encoded(drawing, ".png") == sample_set.sample_png(index)
        assert creatures.draw(index, 512).tobytes() == sample_set.sample_image(index, 512).tobytes()
    assert [sample_set.sample_annotation(index) for index in range(sample_set.COUNT)] == captioned()
    assert sample_set.TYPES == creatures.TYPES
    assert sum(path.stat().st_size for path in sample_set.POCKET.glob("*.zip")) <= 12 << 20


def test_packing_is_reproducible(tmp_path: Path) -> None:
    for name in ("one.zip", "two.zip"):
        archive.pack(tmp_path / name, {"a.png": b"1", "b.png": b"2"})
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


@pytest.mark.parametrize("size", [32, 64, 512, 600])
def test_a_written_folder_is_a_captioned_folder(tmp_path: Path, size: int) -> None:
    sample_set.write_sample_folder(tmp_path / "set", count=3, size=size)
    lines = (tmp_path / "set" / "metadata.jsonl").read_text().splitlines()
    rows = [Annotation.model_validate(json.loads(line)) for line in lines]
    assert rows == captioned()[:3]
    for row in rows:
        with Image.open(tmp_path / "set" / row.file_name) as picture:
            assert (picture.size, picture.mode) == ((size, size), "RGB")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]

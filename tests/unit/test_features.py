"""Extractors and the cache of their rows: keyed by content, name and version, and never wrong."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.atomic_io import cache_root
from data.errors import InputError
from data.features import Features, PixelFeatures, content_key, extract_features
from data.schema import Annotation, Sample


@dataclass
class Counting:
    """Mean colours, and a note of how many pictures each call was given."""

    name: str = "mean"
    version: str = "1"
    calls: list[int] = field(default_factory=list)

    def encode(self, pictures: Sequence[Image.Image]) -> Features:
        self.calls.append(len(pictures))
        return np.stack([np.asarray(picture, np.float32).mean(axis=(0, 1)) for picture in pictures])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Forty pictures of forty greys, and a cache of their own."""
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))
    paths = [tmp_path / f"{grey}.png" for grey in range(40)]
    for grey, path in enumerate(paths):
        Image.new("RGB", (20, 20), (grey, grey, grey)).save(path)
    return paths


def test_rows_come_in_the_order_of_the_pictures_and_once(files: list[Path]) -> None:
    extractor = Counting()
    asked = [*files[::-1], files[3]]
    rows = extract_features(extractor, asked)
    assert rows[:, 0].tolist() == [*range(39, -1, -1), 3]
    assert extractor.calls == [32, 8]
    assert np.array_equal(extract_features(extractor, asked), rows)
    assert extractor.calls == [32, 8]


def test_a_changed_byte_is_a_miss_and_a_moved_file_is_not(files: list[Path]) -> None:
    extractor = Counting()
    extract_features(extractor, files[:1])
    Image.new("RGB", (20, 20), (200, 0, 0)).save(files[0])
    assert extract_features(extractor, files[:1])[0].tolist() == [200, 0, 0]
    files[0].rename(files[0].with_name("moved.png"))
    extract_features(extractor, [files[0].with_name("moved.png")])
    assert extractor.calls == [1, 1]


def test_another_version_or_name_is_a_miss(files: list[Path]) -> None:
    for name, version in (("mean", "1"), ("mean", "2"), ("average", "1")):
        extractor = Counting(name, version)
        extract_features(extractor, files[:2])
        assert extractor.calls == [2], (name, version)


def test_without_a_cache_nothing_is_written(files: list[Path]) -> None:
    extractor = Counting()
    for _ in range(2):
        extract_features(extractor, files[:2], cache=False)
    assert extractor.calls == [2, 2]
    assert not cache_root().exists()


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"not an array"])
def test_a_damaged_row_is_a_miss(damage: bytes, files: list[Path]) -> None:
    extractor = Counting()
    extract_features(extractor, files[:1])
    (row,) = (path for path in cache_root().rglob("*") if path.is_file())
    row.write_bytes(damage)
    assert extract_features(extractor, files[:1])[0].tolist() == [0, 0, 0]
    assert extractor.calls == [1, 1]


def test_a_row_that_needs_pickle_is_never_loaded(files: list[Path]) -> None:
    extractor = Counting()
    extract_features(extractor, files[:1])
    (row,) = (path for path in cache_root().rglob("*") if path.is_file())
    np.save(row, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert extract_features(extractor, files[:1])[0].tolist() == [0, 0, 0]


def test_many_writers_at_once_leave_whole_rows(files: list[Path]) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: extract_features(Counting(), files), range(16)))
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
    assert len([path for path in cache_root().rglob("*") if path.is_file()]) == len(files)  # and no temporary file


def test_pictures_in_memory_are_keyed_by_size_and_pixels(files: list[Path]) -> None:
    wide, tall = Image.new("RGB", (4, 2), "red"), Image.new("RGB", (2, 4), "red")
    assert len({content_key(wide), content_key(tall), content_key(wide.convert("L"))}) == 3
    assert content_key(wide) == content_key(wide.copy())
    assert extract_features(Counting(), [wide, wide.convert("L")])[:, 1].tolist() == [0, 76]


def test_a_file_that_changed_since_its_sample_was_read_is_refused(files: list[Path]) -> None:
    annotation = Annotation.model_validate({"file_name": files[0].name})
    sample = Sample(files[0], annotation, "", content_key(files[0]), 8, 8)
    Image.new("RGB", (20, 20), "red").save(files[0])
    with pytest.raises(InputError, match=r"0\.png: changed while it was being read"):
        extract_features(Counting(), [sample])


def test_a_file_that_is_no_picture_is_refused(files: list[Path]) -> None:
    files[0].write_bytes(b"")
    with pytest.raises(InputError, match=r"0\.png: is empty"):
        extract_features(Counting(), files)


def test_no_pictures_are_no_rows(files: list[Path]) -> None:
    assert extract_features(Counting(), []).shape[0] == 0


def test_pixels_are_means_of_squares() -> None:
    picture = Image.fromarray(np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3) * 2)
    (row,) = PixelFeatures(2).encode([picture])
    expected = np.asarray(picture, np.float32).reshape(2, 2, 2, 2, 3).mean(axis=(1, 3)) / 255
    assert np.allclose(row.reshape(2, 2, 3), expected, atol=0.5 / 255)
    assert PixelFeatures(2).version != PixelFeatures(4).version

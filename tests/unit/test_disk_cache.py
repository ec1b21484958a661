"""Kept answers: worked out once, back bit for bit, again when damaged."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from data import disk_cache
from data.atomic_io import cache_root


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))


class Counted:
    """Answers, and how often it was asked."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.times = answer, 0

    def __call__(self) -> Any:
        self.times += 1
        return self.answer


def test_a_value_is_worked_out_once_and_comes_back_bit_for_bit() -> None:
    answer = Counted({"a": [0.1 + 0.2, 5e-324, -0.0, 1e308], "b": "words"})
    first, second = (disk_cache.cached_value("numbers", "ab12", answer) for _ in range(2))
    assert first == second == answer.answer and answer.times == 1
    assert math.copysign(1, second["a"][2]) == -1
    assert disk_cache.cached_value("numbers", "ab13", Counted(3)) == 3, "another key"
    assert disk_cache.cached_value("words", "ab12", Counted(4)) == 4, "another kind"


@pytest.mark.parametrize("damage", [b"", b'{"a": [0.3', b"\0" * 40, b"\xff\xfe"])
def test_a_damaged_value_is_worked_out_again(damage: bytes) -> None:
    answer = Counted([1.5])
    disk_cache.cached_value("numbers", "ab12", answer)
    (file,) = cache_root().rglob("*.json")
    file.write_bytes(damage)
    assert disk_cache.cached_value("numbers", "ab12", answer) == [1.5] and answer.times == 2
    assert disk_cache.cached_value("numbers", "ab12", answer) == [1.5] and answer.times == 2


def test_files_are_made_once_and_copied_without_the_manifest(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> list[str]:
        made.append(folder)
        (folder / "one.png").write_bytes(b"picture")
        (folder / "two.txt").write_text("words")
        return ["said"]

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        assert disk_cache.cached_files("drawn", "ab12", tmp_path / name, make) == ["said"]
        found = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        assert found == {"one.png": b"picture", "two.txt": b"words"}
    assert len(made) == 1


@pytest.mark.parametrize("damage", ["changed", "gone", "no manifest"])
def test_damaged_files_are_made_again(tmp_path: Path, damage: str) -> None:
    def make(folder: Path) -> None:
        (folder / "one.png").write_bytes(b"picture")

    disk_cache.cached_files("drawn", "ab12", tmp_path, make)
    (file,) = cache_root().rglob("one.png")
    if damage == "changed":
        file.write_bytes(b"pictur\0")
    elif damage == "gone":
        file.unlink()
    else:
        (file.parent / disk_cache.MANIFEST).unlink()
    (tmp_path / "one.png").unlink()
    disk_cache.cached_files("drawn", "ab12", tmp_path, make)
    assert (tmp_path / "one.png").read_bytes() == file.read_bytes() == b"picture"


def test_what_failed_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "one.png").write_bytes(b"half")
        raise RuntimeError("no")

    (tmp_path / "into").mkdir()
    with pytest.raises(RuntimeError):
        disk_cache.cached_files("drawn", "ab12", tmp_path / "into", fail)
    assert not list(cache_root().rglob("one.png")) and not list((tmp_path / "into").iterdir())
    shutil.rmtree(cache_root())

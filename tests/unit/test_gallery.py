"""The gallery: images known by content through moves and copies, found by fields and words."""

import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from data.errors import InputError
from infer import galleries
from infer.config import GalleryOptions
from infer.galleries import GalleryIndex, image_files, search_index
from tests.errors import error_of

COLOURS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200)}


class Judge:
    """Looks at the mean colour; a word is its colour."""

    version = "1"

    def __init__(self) -> None:
        self.seen = 0

    def encode(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        self.seen += len(pictures)
        return unit(np.array([np.asarray(picture, np.float32).mean((0, 1)) for picture in pictures]))

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        return unit(np.array([COLOURS[text] for text in texts], np.float32))


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def paint(path: Path, colour: str, parameters: str = "", side: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngImagePlugin.PngInfo()
    if parameters:
        info.add_itxt("parameters", parameters)
    Image.new("RGB", (side, side), COLOURS[colour]).save(path, pnginfo=info)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of A1111, one that says nothing, and things that are no pictures."""
    place = tmp_path / "outputs"
    for number, (colour, steps) in enumerate({"red": 10, "green": 20, "blue": 30}.items()):
        settings = f"Steps: {steps}, Sampler: Euler a, CFG scale: 7.5, Seed: {2**62 + number}, Size: 16x16"
        text = f"a {colour} fridge, 100%_real\n{settings}"
        paint(place / f"000{number}" / "00000.png", colour, text)
    paint(place / "plain.png", "red", side=20)
    (place / "broken.png").write_bytes(b"\x89PNG no picture")
    (place / "notes.txt").write_text("hello")
    return place


@pytest.fixture
def judge() -> Any:
    return Judge()


@pytest.fixture
def index(folder: Path, judge: Any, tmp_path: Path) -> GalleryIndex:
    found = GalleryIndex(folder, tmp_path / "index.sqlite")
    changes = found.update(judge)
    assert (changes.new, changes.gone, len(changes.unreadable)) == (4, 0, 1)
    assert "broken.png" in changes.unreadable[0]
    return found


def names(index: GalleryIndex, text: str, judge: Any) -> list[str]:
    return [hit.places[0] for hit in search_index(index, text, judge)]


def test_words_order_and_fields_narrow(index: GalleryIndex, judge: Any) -> None:
    assert names(index, "green", judge)[0] == "0001/00000.png"
    assert len(names(index, "green", judge)) == 4
    assert names(index, "green steps:>15", judge) == ["0001/00000.png", "0002/00000.png"]
    assert names(index, "blue prompt:red", judge) == ["0000/00000.png"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("steps:20", 1), ("steps:>=20", 2), ("steps:10..20", 2), ("steps:<10", 0), ("cfg:7.5", 3), ("width:20", 1),
        (f"seed:{2**62 + 1}", 1), ("sampler:euler", 3), ("prompt:", 3), ("-prompt:", 1), ("prompt:100%_", 3),
        ("prompt:1__%", 0), ('prompt:"green fridge"', 1), ("-prompt:red prompt:", 2), ("file:plain", 1), ("star:", 0),
        ("star:no", 4), ("program:A1111", 3), ("date:>1999-12-31", 4), ("date:<1999-12-31", 0), ("", 4),
        ("prompt:'; drop table pictures; --", 0),
    ],
)  # fmt: skip
def test_fields(text: str, found: int, index: GalleryIndex, judge: Any) -> None:
    assert len(names(index, text, judge)) == found


@pytest.mark.parametrize("text", ["stepps:3", "steps:many", "date:yesterday", "date:2026-13-41"])
def test_invalid_queries(text: str) -> None:
    error = error_of(galleries.parse_query, text)
    assert error.where == "--search" and error.allowed


def test_a_moved_image_keeps_its_star_and_is_not_encoded_again(index: GalleryIndex, judge: Any, folder: Path) -> None:
    index.star(folder / "0001" / "00000.png", True)
    shutil.move(folder / "0001" / "00000.png", folder / "best.png")
    seen = judge.seen
    changes = index.update(judge)
    assert (changes.new, changes.moved, changes.gone) == (0, 1, 1)
    assert judge.seen == seen
    assert names(index, "star:", judge) == ["best.png"]


def test_copies_are_one_picture(index: GalleryIndex, judge: Any, folder: Path) -> None:
    shutil.copy(folder / "plain.png", folder / "again.png")
    index.update(judge)
    (hit,) = search_index(index, "file:again", judge)
    assert (hit.row["copies"], len(index.rows())) == (1, 4)
    found = next(row for row in index.rows() if row["width"] == 20)
    assert set(found["places"].split("\n")) == {"again.png", "plain.png"}


def test_a_deleted_picture_goes_and_comes_back_with_its_star(index: GalleryIndex, judge: Any, folder: Path) -> None:
    index.star(folder / "plain.png", True)
    kept = (folder / "plain.png").read_bytes()
    (folder / "plain.png").unlink()
    assert index.update(judge).gone == 1
    assert len(index.rows()) == 3
    (folder / "back.png").write_bytes(kept)
    index.update(judge)
    assert names(index, "star:", judge) == ["back.png"]


def test_a_picture_that_was_painted_over_is_another(index: GalleryIndex, judge: Any, folder: Path) -> None:
    paint(folder / "plain.png", "blue", "a new prompt\nSteps: 5, Sampler: Euler, Seed: 1, Size: 33x33", side=33)
    assert index.update(judge).new == 1
    assert names(index, "width:33", judge) == ["plain.png"]
    assert names(index, "width:20", judge) == []


def test_a_killed_run_goes_on(folder: Path, judge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infer.galleries.INDEX_BATCH", 1)
    encode, calls = judge.encode, []

    def dies(pictures: Sequence[Image.Image]) -> np.ndarray:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(pictures)

    monkeypatch.setattr(judge, "encode", dies)
    index = GalleryIndex(folder, tmp_path / "i.sqlite")
    with pytest.raises(KeyboardInterrupt):
        index.update(judge)
    index.close()
    again = GalleryIndex(folder, tmp_path / "i.sqlite")
    assert len(again.rows()) == 2
    assert again.update(judge).new == 2


def test_another_judge_encodes_again(index: GalleryIndex, judge: Any) -> None:
    other: Any = Judge()
    other.version = "2"
    assert index.update(other).new == 0
    assert other.seen == 4
    assert {row["judge"] for row in index.rows()} == {"2"}


def test_links_out_of_the_folder_are_not_followed(folder: Path, judge: Any, tmp_path: Path) -> None:
    outside = paint(tmp_path / "secret" / "x.png", "blue", side=31)
    (folder / "link.png").symlink_to(outside)
    (folder / "way").symlink_to(outside.parent)
    index = GalleryIndex(folder, tmp_path / "i.sqlite")
    index.update(judge)
    assert names(index, "width:31", judge) == []


def test_sheets_of_a_drawing_are_left_out_and_other_files_of_their_names_are_not(folder: Path) -> None:
    (folder / "0001" / "run.jsonl").write_text("{}\n")
    for place in ("0001", "0002"):
        paint(folder / place / "grid.png", "blue", side=40)
        paint(folder / place / "compare.png", "red", side=41)
    found = {path.relative_to(folder).as_posix() for path in image_files(folder)}
    assert {"0002/grid.png", "0002/compare.png", "0001/00000.png"} <= found
    assert not found & {"0001/grid.png", "0001/compare.png"}


def test_the_page_shows_and_escapes(index: GalleryIndex, judge: Any, folder: Path, tmp_path: Path) -> None:
    paint(folder / "evil.png", "red", "<script>alert(1)</script>\nSteps: 5, Sampler: Euler, Seed: 1, Size: 9x9", side=9)
    index.update(judge)
    written = galleries.write_gallery_page(search_index(index, "red", judge), index.folder, "red", tmp_path / "g.html")
    text = written.read_text()
    assert "<script>alert" not in text and "&lt;script&gt;" in text
    assert text.count("data:image/") == 5 and "http://" not in text.replace("http://www.w3.org", "")


def test_wrong_folders_and_files(index: GalleryIndex, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--folder"):
        GalleryIndex(tmp_path / "nothing")
    with pytest.raises(InputError, match="--star"):
        index.star(tmp_path / "x.png", True)
    (tmp_path / "bad.sqlite").write_bytes(b"no database at all, just words" * 50)
    assert error_of(GalleryIndex, folder, tmp_path / "bad.sqlite").where == tmp_path / "bad.sqlite"


def test_the_command_with_the_real_judge(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = GalleryOptions(folder=folder, search="a green fridge", page=tmp_path / "g.html", index=tmp_path / "i.db")
    assert galleries.run_gallery(options) == 0
    output = capsys.readouterr().out
    assert "4 images (4 new" in output and "broken.png" in output and str(tmp_path / "g.html") in output
    with sqlite3.connect(tmp_path / "i.db") as base:
        assert base.execute("select count(*) from pictures where features is not null").fetchone() == (4,)
    base.close()

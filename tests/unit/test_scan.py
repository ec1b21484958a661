"""Names, links and sub-folders of a captioned folder."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data import captioned_folder
from data.errors import InputError
from tests.captioned import APART, COMPOSED, caption, draw, names, only, read, reported, table


def test_accents_match_however_they_are_stored(tmp_path: Path) -> None:
    draw(tmp_path, f"{APART}.png", f"{COMPOSED}2.png")
    (tmp_path / f"{APART}2.txt").write_text("beside")
    table(tmp_path, {"file_name": f"{COMPOSED}.png", "text": "in the table"})
    captioned = read(tmp_path)
    assert captioned.problems == []
    assert {sample.captions[0] for sample in captioned.samples} == {"beside", "in the table"}
    assert all(sample.path.exists() for sample in captioned.samples)


def test_names_that_differ_only_in_case_or_accents(tmp_path: Path) -> None:
    alike = ("Cat.png", "cat.png", f"{COMPOSED}.png", f"{APART}.png")
    draw(tmp_path, *alike)
    for name in alike:
        (tmp_path / name).with_suffix(".txt").write_text(name)
    captioned = read(tmp_path)
    assert names(captioned) == sorted(alike)
    assert all(sample.captions == [sample.annotation.file_name] for sample in captioned.samples)
    assert reported(captioned) == [("Cat.png", False), (f"{APART}.png", False)]
    assert "'cat.png'" in captioned.problems[0].what and f"'{COMPOSED}.png'" in captioned.problems[1].what


@pytest.mark.parametrize(
    "name", ["two words", "line\nbreak", "tab\t", "quote'\"", "😀", "-rf", "a,b", pytest.param("x" * 240, id="long")]
)
def test_unusual_names(tmp_path: Path, name: str) -> None:
    draw(tmp_path, f"in/{name}.png", f"beside/{name}.png")
    (tmp_path / "beside" / f"{name}.txt").write_text("beside")
    table(tmp_path, {"file_name": f"in/{name}.png", "text": "in"})
    captioned = read(tmp_path)
    assert captioned.problems == []
    assert sorted(names(captioned)) == [f"beside/{name}.png", f"in/{name}.png"]


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    draw(tmp_path, "a.png")
    caption(tmp_path, a="a")
    shutil.copy(tmp_path / "a.png", tmp_path / os.fsdecode(b"b\xff.png"))
    captioned = captioned_folder.read_folder(tmp_path)
    assert names(captioned) == ["a.png"]
    assert str(only(captioned)).startswith(f"{tmp_path}/b\\udcff.png: ") and only(captioned).refused


def test_hidden_files_are_ignored(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", ".hidden.png", ".cache/b.png")
    caption(tmp_path, a="a")
    (tmp_path / "._a.png").write_bytes(b"what macOS leaves on foreign disks")
    captioned = read(tmp_path)
    assert (captioned.found, captioned.problems, names(captioned)) == (1, [], ["a.png"])


def test_unsupported_formats_are_named(tmp_path: Path) -> None:
    draw(tmp_path, "a.png")
    (tmp_path / "b.HEIC").write_bytes(b"x")
    table(tmp_path, {"file_name": "a.png", "text": "a"}, {"file_name": "b.HEIC", "text": "b"})
    captioned = read(tmp_path)
    assert captioned.found == 2
    assert reported(captioned) == [("b.HEIC", True)] and ".heic" in only(captioned).what


def test_a_row_may_name_an_image_with_any_suffix(tmp_path: Path) -> None:
    draw(tmp_path, "0a1b2c")
    table(tmp_path, {"file_name": "0a1b2c", "text": "a hash for a name"})
    captioned = read(tmp_path)
    assert names(captioned) == ["0a1b2c"]
    assert reported(captioned) == [("0a1b2c", False)] and "PNG" in only(captioned).what


def test_links(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    draw(folder, "a.png")
    draw(tmp_path, "outside.png")
    links = {"inside.png": "a.png", "out.png": tmp_path / "outside.png", "dangling.png": "gone.png"}
    for name, target in {**links, "loop.png": "loop.png", "self": "."}.items():
        (folder / name).symlink_to(target)
    caption(folder, a="a", inside="inside", out="out", dangling="dangling", loop="loop")
    captioned = read(folder)
    assert names(captioned) == ["a.png", "inside.png"]
    expected = [("dangling.png", True), ("loop.png", True), ("out.png", True), ("self", False)]
    assert sorted(reported(captioned)) == expected
    dangling, loop = sorted(captioned.problems, key=lambda problem: problem.where)[:2]
    assert "No such file" in dangling.what and "Too many levels" in loop.what


def test_tables_and_captions_that_are_links_out_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    draw(folder, "a.png")
    (tmp_path / "secret.txt").write_text("root:x:0:0")
    (folder / "a.txt").symlink_to(tmp_path / "secret.txt")
    captioned = read(folder)
    assert (captioned.samples, reported(captioned)) == ([], [("a.txt", True)])
    (folder / "a.txt").unlink()
    (tmp_path / "other.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n')
    (folder / "metadata.jsonl").symlink_to(tmp_path / "other.jsonl")
    assert reported(read(folder))[0] == ("metadata.jsonl", True)


def test_a_folder_reached_through_a_link_is_fine(tmp_path: Path) -> None:
    draw(tmp_path / "real", "a.png")
    caption(tmp_path / "real", a="a")
    (tmp_path / "link").symlink_to("real")
    assert names(captioned_folder.read_folder(tmp_path / "link")) == ["a.png"]


def test_odd_entries(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", "folder.png/b.png")
    caption(tmp_path, a="a", pipe="p")
    caption(tmp_path / "folder.png", b="b")
    os.mkfifo(tmp_path / "pipe.png")
    captioned = captioned_folder.read_folder(tmp_path)
    assert (names(captioned), reported(captioned)) == (["a.png", "folder.png/b.png"], [("pipe.png", True)])


def test_a_table_further_down_is_named(tmp_path: Path) -> None:
    draw(tmp_path, "train/a.png")
    table(tmp_path / "train", {"file_name": "a.png", "text": "a"})
    assert ("train/metadata.jsonl", False) in reported(read(tmp_path))


def test_a_sub_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path, "a.png")
    caption(tmp_path, a="a")
    (tmp_path / "locked").mkdir()
    honest = os.scandir

    def guarded(path: str | Path) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return honest(path)

    monkeypatch.setattr(os, "scandir", guarded)
    captioned = captioned_folder.read_folder(tmp_path)
    assert names(captioned) == ["a.png"]
    assert reported(captioned) == [("locked", True)] and "Permission denied" in only(captioned).what


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no such folder"),
        (lambda path: path.write_text("x"), "is a file"),
        (lambda path: path.mkdir(), "no image"),
    ],
)
def test_an_unusable_folder(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    path = tmp_path / "set"
    make(path)
    with pytest.raises(InputError) as caught:
        captioned_folder.read_folder(path)
    assert caught.value.where == path and words in caught.value.what and caught.value.fix

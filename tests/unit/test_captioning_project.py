"""project.json, names and titles; which pictures are pushed, and in which order."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotation import intake, project
from annotation.backup import safe
from annotation.delivery import link, name_of
from annotation.offers import prediction
from annotation.server import Login, Server
from data import sample_set
from data.errors import InputError


def test_a_project_is_read_as_it_was_written(tmp_path: Path) -> None:
    new = project.new("my fridges", project.OWN, tmp_path / "pictures", ("water",))
    project.save(new, tmp_path)
    assert project.load(None, tmp_path) == project.load("my fridges", tmp_path) == new
    before = (tmp_path / "my fridges" / "project.json").read_bytes()
    project.save(new, tmp_path)
    assert (tmp_path / "my fridges" / "project.json").read_bytes() == before
    assert project.new("my fridges", project.OWN, tmp_path, ()).key != new.key


def test_titles_are_those_of_the_screens(tmp_path: Path) -> None:
    new = project.new("x", project.OWN, tmp_path, ("water", "fire"))
    titles = {screen: new.title(screen) for screen in new.wanted()}
    assert titles == {"text": "x captions", "name": "x names", "triage": "x triage"}
    assert set(project.new("x", project.OWN, tmp_path, ()).wanted()) == {"text", "name"}
    longest = "x" * project.LONGEST_NAME
    assert all(len(project.new(longest, project.OWN, tmp_path, ("a",)).title(screen)) <= 50 for screen in titles)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "c:", " x", "x ", "a\nb", "x" * 39])
def test_what_is_no_project_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no project name; allowed: up to 38 characters"):
        project.folder_of(name, tmp_path)


def test_which_project_is_meant(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no project here\. Make one: .* push --images FOLDER"):
        project.load(None, tmp_path)
    for name in ("one", "two"):
        project.save(project.new(name, project.OWN, tmp_path, ()), tmp_path)
    (tmp_path / ".server").mkdir()
    with pytest.raises(InputError, match="--name: several projects could be meant; allowed: one, two"):
        project.load(None, tmp_path)
    with pytest.raises(InputError, match=r"unknown project 'tow', did you mean 'two'\?"):
        project.load("tow", tmp_path)
    (tmp_path / "two").rename(tmp_path / "three")
    with pytest.raises(InputError, match="belongs to the project 'two'"):
        project.load("three", tmp_path)
    (tmp_path / "one" / "project.json").write_text('{"name": "one"}')
    with pytest.raises(InputError, match=r"project\.json: is not a project\. Restore it"):
        project.load("one", tmp_path)


# ---- which pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six creatures, a copy, a mirror image, a larger copy, and three files that are no pictures."""
    folder = tmp_path_factory.mktemp("intake") / "pictures"
    sample_set.write(folder, count=6, size=64)
    first = Image.open(folder / "00000.png")
    (folder / "copy.png").write_bytes((folder / "00000.png").read_bytes())
    first.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "mirrored.png")
    first.resize((128, 128)).save(folder / "0-larger.png")
    (folder / "broken.png").write_bytes((folder / "00001.png").read_bytes()[:300])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "drawing.svg").write_text("<svg/>")
    return folder


def test_each_picture_once_and_the_rest_by_name(folder: Path) -> None:
    taken = intake.take_in(folder)
    names = {each.annotation.file_name for each in taken.pictures}
    assert names == {"0-larger.png", *(f"0000{i}.png" for i in range(1, 6))}
    assert taken.twins == dict.fromkeys(("00000.png", "copy.png", "mirrored.png"), "0-larger.png")
    assert sorted(Path(problem.where).name for problem in taken.problems) == ["broken.png", "drawing.svg", "empty.jpg"]
    assert {taken.formats[each.sha256] for each in taken.pictures} == {"PNG"}


def test_what_was_pushed_before_stays(folder: Path) -> None:
    """A new name that comes first in the alphabet does not take the place of a picture that people have answered."""
    known = {each.annotation.file_name: each.sha256 for each in intake.take_in(folder, keep_twins=True).pictures}
    taken = intake.take_in(folder, {known["mirrored.png"]})
    assert taken.twins == dict.fromkeys(("0-larger.png", "00000.png", "copy.png"), "mirrored.png")
    both = intake.take_in(folder, {known["mirrored.png"], known["00000.png"]})
    assert both.twins == {"0-larger.png": "00000.png", "copy.png": "00000.png"}


def test_twins_are_kept_if_asked_for_but_no_file_twice(folder: Path) -> None:
    taken = intake.take_in(folder, keep_twins=True)
    assert len(taken.pictures) == 8
    assert taken.twins == {"copy.png": "00000.png"}


def test_a_folder_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no picture that can be used\. Give a folder of pictures"):
        intake.take_in(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="holds no picture that can be used; first: is empty"):
        intake.take_in(tmp_path)


def test_the_chain_goes_to_the_nearest_that_is_left() -> None:
    points = np.array([[0.0], [10.0], [1.0], [9.0], [3.0], [20.0]], np.float32)
    assert intake.chain(points) == [0, 2, 4, 3, 1, 5]
    assert intake.chain(points[:1]) == [0]


def test_like_pictures_come_one_after_the_other(tmp_path: Path) -> None:
    """Three colours in turn by name; in the order of the screen each colour is finished before the next begins."""
    for index in range(12):
        shade = [20, 20, 20]
        shade[index % 3] = 200 + index
        picture = Image.new("RGB", (48, 48), tuple(shade))
        picture.paste((255, 255, 255), (index * 3, index * 2, index * 3 + 12, index * 2 + 20))
        picture.save(tmp_path / f"{index:02}.png")
    order = [int(each.annotation.file_name[:2]) % 3 for each in intake.take_in(tmp_path, keep_twins=True).pictures]
    assert sum(a != b for a, b in pairwise(order)) == 2


# ---- how they are shown


def test_links_follow_the_pictures(folder: Path, tmp_path: Path) -> None:
    server = Server(tmp_path / ".server", 1, 1, Login("u", "p", "t"))
    taken = intake.take_in(folder)
    addresses = link(server, "key", taken.pictures, taken.formats)
    paths = [server.pictures / "key" / name_of(each, taken.formats) for each in taken.pictures]
    for each, path in zip(taken.pictures, paths, strict=True):
        assert addresses[each.sha256] == f"/data/local-files/?d=key/{each.sha256}.png"
        assert path.is_symlink() and path.read_bytes() == each.path.read_bytes()
    moved = folder.rename(tmp_path / "moved")
    try:
        assert not any(path.exists() for path in paths)
        link(server, "key", intake.take_in(moved).pictures, taken.formats)
        assert all(path.exists() for path in paths)
    finally:
        moved.rename(folder)


def test_what_no_browser_shows_is_shown_as_png(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "pictures" / "old.tif")
    server = Server(tmp_path / ".server", 1, 1, Login("u", "p", "t"))
    taken = intake.take_in(tmp_path / "pictures")
    (address,) = link(server, "key", taken.pictures, taken.formats).values()
    shown = Image.open(server.pictures / address.partition("=")[2])
    assert (shown.format, shown.getpixel((0, 0))) == ("PNG", (255, 0, 0))


def test_a_prediction_is_what_the_server_takes() -> None:
    """An empty one, too: without it the box has no focus."""
    assert prediction("text", None)["result"][0]["value"] == {"text": [""]}
    json.dumps(prediction("text", None))


@pytest.mark.parametrize(("title", "name"), [("../../x", "_x"), ("a/b:c", "a_b_c"), ("", "untitled"), ("ok", "ok")])
def test_a_title_in_a_file_name_leads_nowhere(title: str, name: str) -> None:
    assert safe(title) == name
    assert "/" not in safe(title) and ".." not in safe(title)

"""Projects on disk, their names and titles; which images are pushed, in which order, and how they are served."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotation import images, project
from annotation.client import safe_file_name
from annotation.labeling_config import labeling_configs
from annotation.push import link_images, prediction, served_name
from annotation.server import Login, Server
from data import sample_set
from data.errors import InputError
from tests import answers


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_project_is_read_as_it_was_written(here: Path) -> None:
    new = project.new_project("my fridges", project.LOCAL, here / "images", ("water",))
    project.save_project(new)
    assert project.load_project(None) == project.load_project("my fridges") == new
    before = (here / "captions" / "my fridges" / "project.json").read_bytes()
    project.save_project(new)
    assert (here / "captions" / "my fridges" / "project.json").read_bytes() == before
    assert project.new_project("my fridges", project.LOCAL, here, ()).key != new.key


def test_every_screen_has_a_title_that_fits(tmp_path: Path) -> None:
    new = project.new_project("x" * project.LONGEST_NAME, project.LOCAL, tmp_path, ("water", "fire"))
    screens = labeling_configs(new.types)
    titles = {new.title(screen) for screen in screens}
    assert len(titles) == len(screens)
    assert all(title.startswith(new.name) and len(title) <= 50 for title in titles)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "c:", " x", "x ", "a\nb", "x" * 39])
def test_invalid_project_names(name: str) -> None:
    with pytest.raises(InputError) as error:
        project.work_folder(name)
    assert error.value.where == "--name" and error.value.allowed


@pytest.mark.usefixtures("here")
def test_the_project_is_the_named_or_the_only_one(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        project.load_project(None)
    assert "push --images" in str(error.value.fix)
    for name in ("one", "two"):
        project.save_project(project.new_project(name, project.LOCAL, tmp_path, ()))
    (tmp_path / "captions" / ".server").mkdir()
    with pytest.raises(InputError) as error:
        project.load_project(None)
    assert (error.value.where, error.value.allowed) == ("--name", "one, two")
    with pytest.raises(InputError, match="did you mean 'two'"):
        project.load_project("tow")
    (tmp_path / "captions" / "two").rename(tmp_path / "captions" / "three")
    with pytest.raises(InputError, match="'two'"):
        project.load_project("three")
    for content in ('{"name": "one"}', "{", "[]"):
        (tmp_path / "captions" / "one" / "project.json").write_text(content)
        with pytest.raises(InputError, match=r"project\.json"):
            project.load_project("one")


@pytest.mark.usefixtures("here")
def test_a_work_folder_need_not_have_been_pushed(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        project.open_project(None)
    assert error.value.fix
    assert project.open_project(None, tmp_path / "foxes", new=True).folder == Path("captions/foxes")
    folder = answers.project(tmp_path, types=["water"])
    (tmp_path / "captions" / ".server").mkdir()
    work = project.open_project(None)
    assert (work.name, work.types) == ("set", ("water",))
    (tmp_path / "captions" / "other").mkdir()
    with pytest.raises(InputError) as error:
        project.open_project(None)
    assert error.value.allowed == "other, set"
    with pytest.raises(InputError) as error:
        project.open_project("other").image_folder()
    assert "--images" in str(error.value.fix)
    for text in ("{", "[]"):
        (folder / "project.json").write_text(text)
        with pytest.raises(InputError, match=r"project\.json"):
            project.open_project("set")


# ---- which images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six creatures, a copy, a mirror image, a larger copy, and three files that are not images."""
    folder = tmp_path_factory.mktemp("selection") / "images"
    sample_set.write_sample_folder(folder, count=6, size=64)
    first = Image.open(folder / "00000.png")
    (folder / "copy.png").write_bytes((folder / "00000.png").read_bytes())
    first.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "mirrored.png")
    first.resize((128, 128)).save(folder / "0-larger.png")
    (folder / "broken.png").write_bytes((folder / "00001.png").read_bytes()[:300])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "drawing.svg").write_text("<svg/>")
    return folder


def test_each_image_once_and_problems_by_name(folder: Path) -> None:
    found = images.select_images(folder)
    names = {each.annotation.file_name for each in found.samples}
    assert names == {"0-larger.png", *(f"0000{i}.png" for i in range(1, 6))}
    assert found.duplicates == dict.fromkeys(("00000.png", "copy.png", "mirrored.png"), "0-larger.png")
    assert sorted(Path(problem.where).name for problem in found.problems) == ["broken.png", "drawing.svg", "empty.jpg"]
    assert {found.formats[each.sha256] for each in found.samples} == {"PNG"}


def test_pushed_images_stay(folder: Path) -> None:
    """A new name that comes first in the alphabet does not replace an image that has answers."""
    known = {each.annotation.file_name: each.sha256 for each in images.examine_folder(folder)[0]}
    found = images.select_images(folder, {known["mirrored.png"]})
    assert found.duplicates == dict.fromkeys(("0-larger.png", "00000.png", "copy.png"), "mirrored.png")
    both = images.select_images(folder, {known["mirrored.png"], known["00000.png"]})
    assert both.duplicates == {"0-larger.png": "00000.png", "copy.png": "00000.png"}


def test_near_duplicates_are_kept_on_request_but_no_file_twice(folder: Path) -> None:
    found = images.select_images(folder, keep_duplicates=True)
    assert len(found.samples) == 8 and found.duplicates == {"copy.png": "00000.png"}
    by_sha256 = images.images_by_sha256(folder).values()
    assert "00000.png" in {each.file_name for each in by_sha256} and "copy.png" not in {e.file_name for e in by_sha256}


def test_a_folder_without_images(tmp_path: Path) -> None:
    for prepare in (lambda: None, lambda: (tmp_path / "a.png").write_bytes(b"")):
        prepare()
        with pytest.raises(InputError) as error:
            images.select_images(tmp_path)
        assert error.value.where == tmp_path and error.value.fix


def test_the_path_goes_to_the_nearest_that_is_left() -> None:
    points = np.array([[0.0], [10.0], [1.0], [9.0], [3.0], [20.0]], np.float32)
    assert images.greedy_path(points) == [0, 2, 4, 3, 1, 5]
    assert images.greedy_path(points[:1]) == [0]


def test_similar_images_follow_each_other(tmp_path: Path) -> None:
    """Three colours in turn by name; in the order of the screen each colour is finished before the next begins."""
    for index in range(12):
        shade = [20, 20, 20]
        shade[index % 3] = 200 + index
        image = Image.new("RGB", (48, 48), tuple(shade))
        image.paste((255, 255, 255), (index * 3, index * 2, index * 3 + 12, index * 2 + 20))
        image.save(tmp_path / f"{index:02}.png")
    samples = images.select_images(tmp_path, keep_duplicates=True).samples
    order = [int(each.annotation.file_name[:2]) % 3 for each in samples]
    assert sum(a != b for a, b in pairwise(order)) == 2


# ---- how they are served


def test_links_follow_the_images(folder: Path, tmp_path: Path) -> None:
    server = Server(tmp_path / ".server", 1, 1, Login("u", "p", "t"))
    found = images.select_images(folder)
    addresses = link_images(server, "key", found.samples, found.formats)
    paths = [server.images / "key" / served_name(each, found.formats) for each in found.samples]
    for each, path in zip(found.samples, paths, strict=True):
        assert addresses[each.sha256] == f"/data/local-files/?d=key/{each.sha256}.png"
        assert path.is_symlink() and path.read_bytes() == each.path.read_bytes()
    moved = folder.rename(tmp_path / "moved")
    try:
        assert not any(path.exists() for path in paths)
        link_images(server, "key", images.select_images(moved).samples, found.formats)
        assert all(path.exists() for path in paths)
    finally:
        moved.rename(folder)


def test_formats_that_browsers_do_not_show_become_png(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "images" / "old.tif")
    server = Server(tmp_path / ".server", 1, 1, Login("u", "p", "t"))
    found = images.select_images(tmp_path / "images")
    (address,) = link_images(server, "key", found.samples, found.formats).values()
    served = Image.open(server.images / address.partition("=")[2])
    assert (served.format, served.getpixel((0, 0))) == ("PNG", (255, 0, 0))


def test_without_a_draft_there_is_an_empty_prediction() -> None:
    """Without one the box has no focus."""
    assert prediction("text", None)["result"][0]["value"] == {"text": [""]}
    json.dumps(prediction("text", None))


@pytest.mark.parametrize(("title", "name"), [("../../x", "_x"), ("a/b:c", "a_b_c"), ("", "untitled"), ("ok", "ok")])
def test_a_title_in_a_file_name_has_no_separators(title: str, name: str) -> None:
    assert safe_file_name(title) == name

"""A captioned folder is read without losing or changing anything; everything that is wrong is listed at once."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from data import captioned_folder, images
from data.captioned_folder import CaptionedFolder
from data.errors import InputError
from data.schema import Annotation
from tests.captioned import APART, COMPOSED, caption, draw, names, only, read, reported, table


def row(**values: object) -> Annotation:
    return Annotation.model_validate(values)


def test_a_table(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", size=(40, 30))
    draw(tmp_path, "sub/b c.png")
    table(
        tmp_path,
        {"file_name": "sub/b c.png", "text": "a bee", "texts": ["one bee", "a bee"], "type": "bug", "quality": "good"},
        {"file_name": "a.png", "text": " an apple ", "licence": {"by": ["me", 1.5, None]}},
    )
    captioned = read(tmp_path)
    assert (captioned.problems, captioned.found, captioned.formats) == ([], 2, {"PNG": 2})
    apple, bee = captioned.samples
    assert (apple.where, bee.where) == (f"{tmp_path}/metadata.jsonl:2", f"{tmp_path}/metadata.jsonl:1")
    assert (apple.width, apple.height, apple.captions) == (40, 30, ["an apple"])
    assert (bee.captions, bee.path) == (["a bee", "one bee"], tmp_path / "sub" / "b c.png")
    assert apple.annotation.model_extra == {"licence": {"by": ["me", 1.5, None]}}


def test_images_with_a_reason_to_skip_are_no_samples(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", "b.png", "c.png", "d.png")
    skipped = [{"file_name": f"{name}.png", "skip_reason": "off-topic"} for name in "cb"]
    late = {"file_name": "d.png", "text": "a date", "skip_reason": "blurred"}
    table(tmp_path, {"file_name": "a.png", "text": "an apple"}, *skipped, late)
    captioned = read(tmp_path)
    assert (names(captioned), captioned.found, captioned.formats) == (["a.png"], 4, {"PNG": 1})
    assert captioned.skipped == {"off-topic": ["b.png", "c.png"], "blurred": ["d.png"]}
    assert reported(captioned) == [(".", False)]
    assert all(word in only(captioned).what for word in ("3 images", "1 blurred", "2 off-topic", "'b.png'"))


@pytest.mark.parametrize("suffix", [".txt", ".caption", ".TXT"])
def test_caption_files(tmp_path: Path, suffix: str) -> None:
    draw(tmp_path, "sub/a.b.png")
    (tmp_path / "sub" / f"a.b{suffix}").write_bytes("\ufeff\r\n a fridge \r\n\r\na cold caf\u00e9\rthird\n".encode())
    captioned = read(tmp_path, captions_per_line=True)
    assert (captioned.problems, names(captioned)) == ([], ["sub/a.b.png"])
    assert captioned.samples[0].captions == ["a fridge", "a cold café", "third"]
    assert captioned.samples[0].where == f"{tmp_path}/sub/a.b{suffix}:2"


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        (
            "a red fridge, seen from\nthe left, with an open\ndoor",
            ["a red fridge, seen from the left, with an open door"],
        ),
        ("A fridge stands here.\n\nIt is “cold.”\nIs it?", ["A fridge stands here.", "It is “cold.”", "Is it?"]),
        ("A fridge stands here. It\nis cold.", ["A fridge stands here. It is cold."]),
        ("1girl, solo,\nred hair", ["1girl, solo, red hair"]),
        ("one line", ["one line"]),
    ],
)
def test_a_wrapped_paragraph_is_one_caption(tmp_path: Path, text: str, captions: list[str]) -> None:
    draw(tmp_path, "a.png")
    caption(tmp_path, a=text)
    captioned = read(tmp_path)
    assert captioned.samples[0].captions == captions
    assert captioned.problems == []
    assert sum(captioned.caption_notes.values()) == ("\n" in text)


def test_images_without_any_caption_are_one_problem(tmp_path: Path) -> None:
    draw(tmp_path, "a_red_fridge.png", "sub/b.png")
    (tmp_path / "README.txt").write_text("about this set")
    assert reported(read(tmp_path)) == [(".", True)]
    assert "--pictures.prompt" in only(read(tmp_path)).fix
    for prompt, captions in (("a sks", [["a sks"]] * 2), ("filename", [["a red fridge"], ["b"]])):
        captioned = read(tmp_path, prompt=prompt)
        assert [sample.captions for sample in captioned.samples] == captions
        assert captioned.problems == []
        assert list(captioned.caption_notes.values()) == [2]


def test_repeats_in_the_names_of_folders(tmp_path: Path) -> None:
    draw(tmp_path, "10_red fridge/a.png", "2_door/b.png", "2_door/deep/c.png")
    (tmp_path / "2_door" / "b.txt").write_text("a door")
    captioned = read(tmp_path)
    found = {each.annotation.file_name: (each.captions, each.repeats) for each in captioned.samples}
    assert found == {
        "10_red fridge/a.png": (["red fridge"], 10),
        "2_door/b.png": (["a door"], 2),
        "2_door/deep/c.png": (["door"], 2),
    }
    assert any("10 times" in note for note in captioned.caption_notes)
    plain = read(tmp_path, folder_repeats=False)
    assert [(each.repeats, each.captions) for each in plain.samples] == [(1, ["a door"])]
    draw(tmp_path, "other/d.png")
    assert {sample.repeats for sample in read(tmp_path).samples} == {1}


def test_links_in_the_same_tree_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    draw(folder, ".store/a.png", "train/b.png")
    (folder / ".store" / "a.txt").write_text("a")
    (folder / "train" / "b.txt").write_text("b")
    (folder / "linked").symlink_to(".store")
    (folder / "again").symlink_to("train")
    (folder / "train" / "loop").symlink_to("..")
    captioned = read(folder)
    assert (names(captioned), captioned.problems) == (["linked/a.png", "train/b.png"], [])
    table(folder, {"file_name": "again/b.png", "text": "by the link"})
    assert [sample.captions for sample in read(folder).samples] == [["a"], ["by the link"]]


def test_a_snapshot_of_the_hub_is_read(tmp_path: Path) -> None:
    entry = tmp_path / "datasets--a--b"
    draw(entry / "blobs", "0123")
    (entry / "blobs" / "4567").write_text('{"file_name": "a.png", "text": "a"}')
    snapshot = entry / "snapshots" / "abc" / "data"
    snapshot.mkdir(parents=True)
    for name, blob in (("a.png", "0123"), ("metadata.jsonl", "4567")):
        (snapshot / name).symlink_to(f"../../../blobs/{blob}")
    captioned = read(snapshot)
    assert ([sample.captions for sample in captioned.samples], captioned.problems) == ([["a"]], [])


def test_the_table_takes_precedence_over_caption_files(tmp_path: Path) -> None:
    draw(tmp_path, *(f"{name}.png" for name in "abcd"))
    caption(tmp_path, **{name: f"{name} beside\n" for name in "abcd"})
    texts = {"a": "table", "b": "table", "d": "d beside"}
    table(tmp_path, *({"file_name": f"{name}.png", "text": text} for name, text in texts.items()))
    captioned = read(tmp_path)
    assert [sample.captions[0] for sample in captioned.samples] == ["table", "table", "c beside", "d beside"]
    assert reported(captioned) == [("a.txt", False)] and "1 more" in only(captioned).what


def test_jsonl_before_csv_and_txt_before_caption(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", "b.png")
    table(tmp_path, {"file_name": "a.png", "text": "lines"})
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,cells\n")
    (tmp_path / "b.caption").write_text("from caption")
    caption(tmp_path, b="from txt")
    captioned = read(tmp_path)
    assert [sample.captions for sample in captioned.samples] == [["lines"], ["from txt"]]
    assert reported(captioned) == [("metadata.csv", False), ("b.caption", False)]


@pytest.mark.parametrize(
    ("file_name", "words"),
    [
        *((name, "out of the folder") for name in ("../a.png", "sub/../../a.png", "..\\a.png")),
        *((name, "absolute") for name in ("/etc/passwd", "C:\\images\\a.png", "c:/a.png", "~/a.png")),
        *((name, "file name") for name in ("", "   ", "a\0.png")),
        *((name, "is a folder") for name in (".", "sub")),
        ("gone.png", "'gone.png'"),
        ("A.PNG", "fix: 'a.png'"),
        ("a.jpg", "fix: 'a.png'"),
        ("sub\\b.png", "fix: 'sub/b.png'"),
        ("x" * 5000, "'xxx"),
        ("https://example.org/a.png", "no image"),
        ("a\nerror: b.png", "\\n"),
        ("out/secret.png", "outside"),
    ],
)
def test_a_file_name_must_name_an_image_inside(tmp_path: Path, file_name: str, words: str) -> None:
    folder = tmp_path / "set"
    draw(folder, "a.png", "sub/b.png")
    draw(tmp_path, "secret/secret.png", "a.png")
    (folder / "out").symlink_to(tmp_path / "secret")
    good = [{"file_name": "a.png", "text": "a"}, {"file_name": "sub/b.png", "text": "b"}]
    table(folder, *good, {"file_name": file_name, "text": "x"})
    captioned = read(folder)
    assert names(captioned) == ["a.png", "sub/b.png"]
    assert sorted(reported(captioned)) == [("metadata.jsonl:3", True), ("out", False)]
    problem = next(problem for problem in captioned.problems if problem.refused)
    assert words.removeprefix("fix: ") in (problem.fix if words.startswith("fix: ") else problem.what)
    assert problem.fix and len(problem.what) < 300


def test_a_row_about_a_file_that_is_no_image(tmp_path: Path) -> None:
    draw(tmp_path, "a.png")
    (tmp_path / "notes.md").write_text("# not an image")
    table(tmp_path, {"file_name": "a.png", "text": "a"}, {"file_name": "notes.md", "text": "x"})
    captioned = read(tmp_path)
    assert (names(captioned), reported(captioned)) == (["a.png"], [("notes.md", True)])


def test_a_second_row_for_an_image_is_an_error(tmp_path: Path) -> None:
    draw(tmp_path, "a.png")
    table(tmp_path, {"file_name": "a.png", "text": "first"}, {"file_name": "./a.png", "text": "second"})
    captioned = read(tmp_path)
    assert [sample.captions for sample in captioned.samples] == [["first"]]
    assert reported(captioned) == [("metadata.jsonl:2", True)] and "metadata.jsonl:1" in only(captioned).what


def test_images_without_captions_and_captions_without_images(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", "sub/b.png", "c.png")
    caption(tmp_path, lonely="nobody", README="about this set", c="c")
    captioned = read(tmp_path)
    assert (len(captioned.samples), captioned.found) == (1, 3)
    assert reported(captioned) == [("a.png", True), ("sub/b.png", True), ("lonely.txt", False)]
    assert "'b.txt'" in captioned.problems[1].fix


# ---- images


def test_bad_images_are_named_once(tmp_path: Path) -> None:
    draw(tmp_path, "tiny.png", size=(1, 1))
    draw(tmp_path, "long.png", size=(100, 20))
    draw(tmp_path, "good.png", size=(256, 256))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:200])
    every = ["cut.png", "empty.png", "good.png", "long.png", "tiny.png"]
    table(tmp_path, *({"file_name": name, "text": name} for name in every))
    captioned = read(tmp_path)
    assert (names(captioned), captioned.found) == (["good.png", "long.png"], 5)
    errors = [("cut.png", True), ("empty.png", True), ("long.png", False), ("tiny.png", True)]
    assert reported(captioned) == errors


def test_what_opening_does_is_counted(tmp_path: Path) -> None:
    for name in "ab":
        Image.new("RGBA", (32, 32), (255, 0, 0, 100)).save(tmp_path / f"{name}.png")
    caption(tmp_path, a="red", b="red")
    captioned = read(tmp_path)
    assert (captioned.notes, captioned.problems) == ({"transparency is shown on white": 2}, [])


# ---- writing


def test_what_was_read_is_written_back_whole(tmp_path: Path) -> None:
    source, copy, again = tmp_path / "source", tmp_path / "copy", tmp_path / "again"
    odd = {"text": "x\u2028y\x85z", "texts": ["z"], "type": None, "Ünknown": [1, {"b": None}], "f": 0.1}
    quoted = {"text": '😀 "quoted" \\ back\nslash', "quality": "poor", "big": 10**30, "t": True}
    rows = [{"file_name": "a.png"} | odd, {"file_name": "sub/b c.png"} | quoted]
    draw(source, "a.png", "sub/b c.png")
    table(source, *rows)
    first = read(source)
    captioned_folder.write_folder(copy, ((sample.path, sample.annotation) for sample in first.samples))
    written = (copy / "metadata.jsonl").read_bytes()
    assert [json.loads(line) for line in written.split(b"\n") if line] == rows
    assert len(written.decode().splitlines()) == 2
    second = read(copy)
    assert [(s.annotation, s.sha256) for s in second.samples] == [(s.annotation, s.sha256) for s in first.samples]
    captioned_folder.write_folder(again, ((sample.path, sample.annotation) for sample in second.samples))
    assert (again / "metadata.jsonl").read_bytes() == written
    assert (again / "sub" / "b c.png").read_bytes() == (source / "sub" / "b c.png").read_bytes()


def test_images_in_memory_and_caption_files(tmp_path: Path) -> None:
    image = Image.linear_gradient("L").convert("RGB")
    annotation = row(file_name="a.png", text="one\ntwo", texts=["three"])
    for name in ("first", "second"):
        captioned_folder.write_folder(tmp_path / name, [(image, annotation)], captions_beside=True)
    assert (tmp_path / "first" / "a.txt").read_text() == "one two\nthree\n"
    assert (tmp_path / "first" / "a.png").read_bytes() == (tmp_path / "second" / "a.png").read_bytes()
    assert images.open_image(tmp_path / "first" / "a.png").tobytes() == image.tobytes()
    assert read(tmp_path / "first").samples[0].captions == ["one\ntwo", "three"]


@pytest.mark.parametrize(
    "file_names",
    [["a.png", "a.png"], ["a.png", "A.png"], [f"{COMPOSED}.png", f"{APART}.png"], ["../a.png"], ["/tmp/a.png"],
     ["metadata.jsonl"]],
)  # fmt: skip
def test_names_that_cannot_be_written_leave_nothing_behind(tmp_path: Path, file_names: list[str]) -> None:
    rows = [(Image.new("RGB", (32, 32)), row(file_name=name, text="x")) for name in file_names]
    with pytest.raises(InputError) as caught:
        captioned_folder.write_folder(tmp_path / "set", rows)
    assert file_names[-1] in caught.value.what and caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(InputError):
        captioned_folder.write_folder(tmp_path, [])
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_failure_half_way_leaves_nothing(tmp_path: Path) -> None:
    good = (Image.new("RGB", (32, 32)), row(file_name="a.png", text="x"))
    with pytest.raises(InputError):
        captioned_folder.write_folder(tmp_path / "set", [good, (tmp_path / "gone.png", row(file_name="b.png"))])
    assert list(tmp_path.iterdir()) == []


def test_reading_from_several_threads_at_once(tmp_path: Path) -> None:
    draw(tmp_path, *(f"{index:02}.png" for index in range(12)))
    caption(tmp_path, **{f"{index:02}": str(index) for index in range(12)})
    found: list[CaptionedFolder] = []
    threads = [threading.Thread(target=lambda: found.append(captioned_folder.read_folder(tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tuple(names(captioned)) for captioned in found}) == 1
    assert all(len(captioned.samples) == 12 and not captioned.problems for captioned in found)


# ---- names, links and sub-folders


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
    expected = [("dangling.png", True), ("loop.png", True), ("out.png", True)]
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

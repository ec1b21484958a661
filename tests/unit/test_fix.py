"""Bulk edits: every edit, the preview, what is refused, undo, and corrections that come too late."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from annotation import cli
from annotation.config import FixOptions
from annotation.fix import apply_all, diff, make_corrections, rename_term, replace_text, surround
from annotation.history import Answer, lay_over, read_corrections, read_history, write_history
from annotation.project import Project
from annotation.vocabulary import article, plural
from data.errors import InputError
from tests.answers import project, record


@pytest.mark.parametrize(
    ("singular", "several"),
    [
        ("fox", "foxes"), ("leaf", "leaves"), ("baby", "babies"), ("ray", "rays"), ("foot", "feet"), ("fish", "fish"),
        ("photo", "photos"), ("branch", "branches"), ("sky blue fox", "sky blue foxes"), ("horse", "horses"),
    ],
)  # fmt: skip
def test_plurals(singular: str, several: str) -> None:
    assert plural(singular) == several


@pytest.mark.parametrize(
    ("word", "expected"),
    [("apple", "an"), ("fox", "a"), ("hour", "an"), ("unicorn", "a"), ("uninvited guest", "an"), ("one", "a"),
     ("Ice", "an")],
)  # fmt: skip
def test_articles(word: str, expected: str) -> None:
    assert article(word) == expected


@pytest.mark.parametrize(
    ("old", "new", "text", "expected"),
    [
        ("photo", "image", "a photo, two photos", "an image, two images"),
        ("photo", "image", "A photo. Photo! PHOTO a  photo", "An image. Image! IMAGE an  image"),
        ("image", "photo", "an image and AN image", "a photo and A photo"),
        ("leaf", "frond", "leaf leaves leaflet four-leaf leaf's leaf", "frond fronds leaflet four-leaf leaf's frond"),
        ("sky blue", "azure", "a sky blue fox, Sky Blue eyes", "an azure fox, Azure eyes"),
        ("c++", "rust", "a c++ sign", "a rust sign"),
        ("fox", "f\\1x", "a fox", "a f\\1x"),
        ("big fox", "wolf", "the big foxes", "the wolves"),
        ("photo", "image", "the photo", "the image"),
        ("hen", "owl", "a hen when hens", "an owl when owls"),
        ("cat", "dog", "an cat", "an dog"),  # a wrong article is not this command's business
    ],
)
def test_rename(old: str, new: str, text: str, expected: str) -> None:
    assert rename_term(old, new).apply(text) == expected


def test_find_and_replace_prefix_and_suffix() -> None:
    assert replace_text(".", "!").apply("a.b.") == "a!b!"
    assert replace_text(r"(\w+) type", r"\1-type", regex=True).apply("a water type fox") == "a water-type fox"
    edit = surround("pkt, ", ".")
    assert edit.apply("a fox") == edit.apply(edit.apply("a fox")) == "pkt, a fox."
    assert apply_all([rename_term("fox", "cat"), surround("x ")], "a fox") == "x a cat"


@pytest.mark.parametrize(
    ("flags", "where"),
    [
        ({"find": "[", "replace": "", "regex": True}, "--find"),
        ({"find": "x*", "replace": "", "regex": True}, "--find"),
        ({"find": "x", "replace": "\\2", "regex": True}, "--replace"),
        ({"find": "", "replace": "x"}, "--find"),
        ({"find": "x"}, "--replace"),
        ({"replace": "x"}, "--find"),
        ({"rename": "x"}, "--to"),
        ({"rename": " ", "to": "x"}, "--rename, --to"),
        ({}, None),
        ({"undo": True, "prefix": "x"}, "--undo"),
        ({"undo": True}, "--undo"),
        ({"find": "a fox", "replace": " "}, "001.png"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, object], where: str | None
) -> None:
    project(tmp_path, [record(1, "a fox")], count=1)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        cli.run_fix(FixOptions.model_validate(flags))
    assert error.value.where == where and error.value.fix


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    history = [record(1, "a photo of a fox"), record(2, "photos"), record(3, "a cat"), record(4)]
    history.append(record(5, "a photo", status="skipped"))
    history.append(record(6, screen="name", values={"name": ["photo"]}))
    monkeypatch.chdir(tmp_path)
    return project(tmp_path, history, count=1)


def texts(work: Path) -> list[str]:
    return [answer.text for answer in lay_over(read_history(work), read_corrections(work)).captions()]


def run(capsys: pytest.CaptureFixture[str], **flags: object) -> str:
    assert cli.run_fix(FixOptions.model_validate(flags)) == 0
    return capsys.readouterr().out


def test_nothing_changes_without_apply(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, rename="photo", to="image").splitlines()
    assert lines[:3] == ["001.png", "  - [-a photo-] of a fox", "  + {+an image+} of a fox"]
    assert lines[3:-1] == ["002.png", "  - [-photos-]", "  + {+images+}"]
    assert lines[-1].startswith("2 captions") and "--apply" in lines[-1]
    assert not (work / "corrections.jsonl").exists()
    assert len(run(capsys, rename="dog", to="wolf").splitlines()) == 1


def test_apply_and_undo(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (work / "history.jsonl").read_bytes()
    assert "2 captions changed" in run(capsys, rename="photo", to="image", apply=True)
    run(capsys, prefix="pkt, ", apply=True)
    assert texts(work) == ["pkt, an image of a fox", "pkt, images", "pkt, a cat"]
    run(capsys, undo=True)
    assert texts(work) == ["an image of a fox", "images", "a cat"]
    run(capsys, undo=True)
    assert texts(work) == ["a photo of a fox", "photos", "a cat"]
    with pytest.raises(InputError):
        run(capsys, undo=True)
    assert (work / "history.jsonl").read_bytes() == before
    corrections = read_corrections(work)
    assert [each.undoes for each in corrections] == [None] * 5 + [2] * 3 + [1] * 2
    assert [each.batch for each in corrections] == [1] * 2 + [2] * 3 + [3] * 3 + [4] * 2


def test_undo_keeps_newer_work(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, rename="photo", to="image", apply=True)
    history = read_history(work)
    write_history(work, [*history, replace(history[0], values={"text": ["a wolf"]}, updated="t9")])
    assert texts(work) == ["a wolf", "images", "a cat"]
    output = run(capsys, undo=True)
    assert "1 earlier correction" in output and "1 captions, 1 changed since" in output
    assert texts(work) == ["a wolf", "photos", "a cat"]


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"having": "photo"}, ["001.png"]),
        ({"without": "photo"}, ["002.png", "003.png"]),
        ({"file": "*3.png"}, ["003.png"]),
        ({"annotator": "ben@lab"}, []),
        ({"show": 1}, ["001.png"]),
    ],
)
def test_only_selected_captions_are_shown(
    work: Path, capsys: pytest.CaptureFixture[str], options: dict[str, object], changed: list[str]
) -> None:
    output = run(capsys, suffix="!", **options)
    assert [line for line in output.splitlines() if line.endswith(".png")] == changed
    assert ("--show 3" in output) == ("show" in options)


def test_corrections_are_written_to_a_running_server(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_corrections(client: object, project: Project, folder: Path) -> tuple[list[Answer], list[Answer]]:
        first, second, *_ = lay_over(read_history(folder), read_corrections(folder)).all
        assert first.pending and second.pending
        return [second], [first]

    monkeypatch.setattr(cli, "is_reachable", lambda *_: True)
    monkeypatch.setattr(cli, "opened", lambda *_: nullcontext())
    monkeypatch.setattr(cli, "write_corrections", write_corrections)
    output = run(capsys, rename="photo", to="image", apply=True)
    assert "on the server: 1 changed, 1 changed by annotators since" in output


def test_the_diff_of_hostile_and_of_long_captions() -> None:
    assert diff("a b c", "a x c d") == ["  - a [-b-] c", "  + a {+x+} c {+d+}"]
    assert all(len(line) < 5000 for line in diff("word " * 20_000, "other " * 20_000))


def test_of_several_texts_only_the_selected_change() -> None:
    answers = lay_over([record(1, values={"text": ["a fox", "a cat"]})], [])
    (correction,) = make_corrections([surround("x ")], answers, [], FixOptions(having="cat"))
    assert (correction.old, correction.new) == (["a fox", "a cat"], ["a fox", "x a cat"])

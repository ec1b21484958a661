"""Bulk corrections: every edit, the preview, what is refused, undo, and corrections that come too late."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from annotation.commands import fix as command
from annotation.commands.fix import Options
from annotation.corrections import Correction, answers, read_corrections
from annotation.deliver import Way
from annotation.records import read_history, write_history
from annotation.review.edits import Around, Rename, in_turn, replacing
from annotation.review.fix import Choice, difference
from annotation.review.plurals import article, plural
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
        ("cat", "dog", "an cat", "an dog"),  # somebody's own slip is not this command's business
    ],
)
def test_rename(old: str, new: str, text: str, expected: str) -> None:
    assert Rename(old, new)(text) == expected


def test_find_and_replace_prefix_and_suffix() -> None:
    assert replacing(".", "!", regex=False)("a.b.") == "a!b!"
    assert replacing(r"(\w+) type", r"\1-type", regex=True)("a water type fox") == "a water-type fox"
    around = Around("pkt, ", ".")
    assert around("a fox") == around(around("a fox")) == "pkt, a fox."
    assert in_turn([Rename("fox", "cat"), Around("x ")])("a fox") == "x a cat"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"find": "[", "replace": "", "regex": True},
            "--find: '[' is no regular expression (unterminated character set at position 0). "
            "Mend it."),
        ({"find": "x*", "replace": "", "regex": True}, "--find: 'x*' matches nothing at all, so everywhere. "
            "Write + instead of *, or make a part of it required."),
        ({"find": "x", "replace": "\\2", "regex": True}, "--replace: '\\\\2' does not fit --find "
            "(invalid group reference 2 at position 1). Mend it."),
        ({"find": "", "replace": "x"}, "--find: is empty. Give the text to look for."),
        ({"find": "x"}, "--replace: --find and --replace belong together. Give --replace too."),
        ({"replace": "x"}, "--find: --find and --replace belong together. Give --find too."),
        ({"rename": "x"}, "--to: --rename and --to belong together. Give --to too."),
        ({"rename": " ", "to": "x"}, "--rename, --to: is empty. Give both terms."),
        ({}, "nothing to do; allowed: --find, --rename, --prefix, --suffix, --undo. See --help."),
        ({"undo": True, "prefix": "x"}, "--undo: --undo goes alone. Take back first, then correct."),
        ({"undo": True}, "--undo: there is nothing to take back. Only --apply makes corrections."),
        ({"find": "a fox", "replace": " "}, "001.png: nothing would be left of its caption. "
            "Narrow it down, e.g. --file."),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, object], expected: str
) -> None:
    project(tmp_path, [record(1, "a fox")], count=1)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as refused:
        command.run(Options.model_validate(flags))
    assert str(refused.value) == expected


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    history = [record(1, "a photo of a fox"), record(2, "photos"), record(3, "a cat"), record(4)]
    history.append(record(5, "a photo", status="skipped"))
    history.append(record(6, screen="name", values={"name": ["photo"]}))
    monkeypatch.chdir(tmp_path)
    return project(tmp_path, history, count=1)


def texts(work: Path) -> list[str]:
    return [answer.text for answer in answers(read_history(work), read_corrections(work)).captions()]


def run(capsys: pytest.CaptureFixture[str], **flags: object) -> str:
    assert command.run(Options.model_validate(flags)) == 0
    return capsys.readouterr().out


def test_nothing_is_changed_without_apply(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = run(capsys, rename="photo", to="image")
    assert said.splitlines() == [
        "001.png",
        "  - [-a photo-] of a fox",
        "  + {+an image+} of a fox",
        "002.png",
        "  - [-photos-]",
        "  + {+images+}",
        "2 captions would change. Nothing is changed yet: add --apply",
    ]
    assert not (work / "corrections.jsonl").exists()
    assert run(capsys, rename="dog", to="wolf") == "no caption would change\n"


def test_apply_and_undo(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (work / "history.jsonl").read_bytes()
    assert run(capsys, rename="photo", to="image", apply=True).endswith(
        "2 captions changed. Take it back: annotate.py fix --undo\n"
        "on the server: not yet, as it does not run; the next fix --apply or push takes them there\n"
    )
    run(capsys, prefix="pkt, ", apply=True)
    assert texts(work) == ["pkt, an image of a fox", "pkt, images", "pkt, a cat"]
    assert run(capsys, undo=True).startswith("taking back batch 2: 3 captions, 0 changed by somebody since\n")
    assert texts(work) == ["an image of a fox", "images", "a cat"]
    run(capsys, undo=True)
    assert texts(work) == ["a photo of a fox", "photos", "a cat"]
    with pytest.raises(InputError, match="nothing to take back"):
        run(capsys, undo=True)
    assert (work / "history.jsonl").read_bytes() == before
    assert [each.why for each in read_corrections(work)][-1] == "undo of 1: rename 'photo' to 'image'"


def test_undo_leaves_newer_work_alone(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, rename="photo", to="image", apply=True)
    history = read_history(work)
    write_history(work, [*history, replace(history[0], values={"text": ["a wolf"]}, updated="t9")])
    assert texts(work) == ["a wolf", "images", "a cat"]
    said = run(capsys, undo=True)
    assert "1 earlier corrections came too late, people's newer text stands (001.png)" in said
    assert "taking back batch 1: 1 captions, 1 changed by somebody since" in said
    assert texts(work) == ["a wolf", "photos", "a cat"]


def test_only_some_captions(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for chosen, changed in (
        ({"having": "photo"}, ["001.png"]), ({"without": "photo"}, ["002.png", "003.png"]),
        ({"file": "*3.png"}, ["003.png"]),
        ({"annotator": "ben@lab"}, []),
    ):  # fmt: skip
        said = run(capsys, suffix="!", **chosen)
        assert [line for line in said.splitlines() if line.endswith(".png")] == changed
    assert "... and 2 more (--show 3)" in run(capsys, suffix="!", show=1)


@pytest.mark.usefixtures("work")
def test_corrections_are_delivered_and_what_is_refused_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[Correction] = []

    def take(way: Way, corrections: Sequence[Correction]) -> Sequence[Correction]:
        sent.extend(corrections)
        return corrections[:1]

    monkeypatch.setattr(Way, "take", take)
    assert "on the server: 1 changed, 1 left as people have them now" in run(
        capsys, rename="photo", to="image", apply=True
    )
    assert [(each.annotation, each.old, each.new) for each in sent] == [
        (1, ["a photo of a fox"], ["an image of a fox"]),
        (2, ["photos"], ["images"]),
    ]


def test_the_difference_of_hostile_and_of_long_captions() -> None:
    assert difference("a b c", "a x c d") == ["  - a [-b-] c", "  + a {+x+} c {+d+}"]
    long = difference("word " * 20_000, "other " * 20_000)
    assert all(len(line) < 5000 for line in long)


def test_only_captions_of_several_texts_that_match_are_changed() -> None:
    from annotation.review.fix import corrections_by

    found = answers([record(1, values={"text": ["a fox", "a cat"]})], [])
    choice = Choice(having="cat")
    (made,) = corrections_by(Around("x "), found, batch=1, choice=choice, why="", made="")
    assert (made.old, made.new) == (["a fox", "a cat"], ["a fox", "x a cat"])

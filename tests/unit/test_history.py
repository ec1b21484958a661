"""The history and the corrections laid over it: they apply until somebody writes something else."""

from dataclasses import replace
from pathlib import Path

import pytest

from annotation.history import (
    Correction,
    Record,
    add_corrections,
    lay_over,
    read_corrections,
    read_history,
    write_history,
)
from data.errors import InputError
from tests.answers import record

FIRST = record(1, "a photograph", updated="t0")


def correction(old: str, new: str, version: str = "t0", batch: int = 1, undoes: int | None = None) -> Correction:
    return Correction(
        batch, FIRST.sha256, FIRST.file_name, "text", 1, "text", version, [old], [new], "why", "now", undoes
    )


def version(text: str, updated: str) -> Record:
    return replace(FIRST, values={"text": [text]}, updated=updated)


TO_PHOTO = correction("a photograph", "a photo")
UNDO = correction("a photo", "a photograph", batch=2, undoes=1)


@pytest.mark.parametrize(
    ("history", "corrections", "text", "late"),
    [
        ([FIRST], [], "a photograph", 0),
        ([FIRST], [TO_PHOTO], "a photo", 0),
        ([FIRST], [TO_PHOTO, UNDO], "a photograph", 0),
        ([FIRST, version("a cat", "t1")], [TO_PHOTO], "a cat", 1),  # a person was faster
        ([FIRST, version("a photo", "t1")], [TO_PHOTO], "a photo", 0),  # it came back from the server
        ([FIRST, version("a photo", "t1"), version("a photograph", "t2")], [TO_PHOTO], "a photograph", 0),
        ([FIRST, version("a photograph", "t1")], [TO_PHOTO], "a photo", 0),  # saved again, unchanged
        ([FIRST, version("a photo", "t1")], [TO_PHOTO, replace(UNDO, version="t1")], "a photograph", 0),
        ([FIRST, version("a photograph", "t1")], [TO_PHOTO, UNDO], "a photograph", 0),  # both were written back
        ([version("a photo", "t9")], [TO_PHOTO], "a photo", 0),  # the history was pulled anew
        ([FIRST], [TO_PHOTO, correction("a photo", "an image", batch=2)], "an image", 0),
        ([FIRST], [correction("something else", "a photo")], "a photograph", 1),
    ],
)
def test_which_text_applies(history: list[Record], corrections: list[Correction], text: str, late: int) -> None:
    answers = lay_over(history, corrections)
    assert [answer.text for answer in answers.all] == [text]
    assert len(answers.late) == late
    assert answers.all[0].pending == (text != history[-1].values["text"][0])
    assert answers.all[0].corrected == (text in {"a photo", "an image"})  # also if the server has it already


def test_a_deleted_answer_takes_its_corrections_along() -> None:
    deleted = replace(FIRST, status="deleted", updated="t1")
    assert lay_over([FIRST, deleted], [TO_PHOTO]).all == []


def test_corrections_are_appended(tmp_path: Path) -> None:
    assert read_corrections(tmp_path) == []
    add_corrections(tmp_path, [TO_PHOTO])
    before = (tmp_path / "corrections.jsonl").read_bytes()
    add_corrections(tmp_path, [UNDO])
    assert (tmp_path / "corrections.jsonl").read_bytes().startswith(before)
    assert read_corrections(tmp_path) == [TO_PHOTO, UNDO]


@pytest.mark.parametrize("line", ["{", '{"batch": 1}', "[]", "3"])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    add_corrections(tmp_path, [TO_PHOTO])
    with (tmp_path / "corrections.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError) as error:
        read_corrections(tmp_path)
    assert error.value.where == f"{tmp_path}/corrections.jsonl:2" and error.value.fix


HOSTILE = ["<script>alert(1)</script>", "a\u2028b\x85c\x0bd", "\x00\x1b[31m", "\u202eرأس", "x" * 100_000, '"\\\n\t']


def test_hostile_captions_survive_every_file(tmp_path: Path) -> None:
    history = [record(number, text) for number, text in enumerate(HOSTILE)]
    write_history(tmp_path, history)
    assert read_history(tmp_path) == history
    corrections = [
        replace(correction(text, text + "!"), annotation=number, version=history[number].updated)
        for number, text in enumerate(HOSTILE)
    ]
    add_corrections(tmp_path, corrections)
    answers = lay_over(read_history(tmp_path), read_corrections(tmp_path))
    assert [answer.text for answer in answers.all] == [f"{text}!" for text in HOSTILE]

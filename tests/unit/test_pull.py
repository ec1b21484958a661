"""What a pull adds to the history, without a server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from annotation.answers import Reader, fields_of
from annotation.pull import Reach, check_deleted, newest, read_reaches, rules_of, versions, with_draft, write_reaches
from annotation.records import Record, read_history, standing, write_history
from data.errors import InputError

KEY = "ab" * 32
TIME = "2026-01-01T10:00:00.000000Z"
LATER = "2026-01-01T11:00:00.000000Z"


def record(number: int, words: str = "words", **more: object) -> Record:
    known: dict[str, object] = {
        "sha256": KEY, "file_name": "a.png", "screen": "text", "annotation": number, "annotator": "user 1",
        "status": "written", "values": {"text": [words]}, "seconds": 1.0, "created": TIME, "updated": TIME,
    }  # fmt: skip
    return Record(**{**known, **more})  # type: ignore[arg-type]


def task(*answers: tuple[int, str, str], sha256: str = KEY) -> dict[str, object]:
    items = [
        {"id": number, "completed_by": 1, "lead_time": 1.0, "created_at": TIME, "updated_at": updated,
         "result": [{"from_name": "text", "value": {"text": [words]}}]}
        for number, words, updated in answers
    ]  # fmt: skip
    return {"id": 1, "data": {"sha256": sha256, "file_name": "a.png"}, "annotations": items, "updated_at": LATER}


def added(*tasks: dict[str, object], history: list[Record], whole: bool = False) -> list[Record]:
    return versions(tasks, Reader("text", fields_of("text", ())), history, whole=whole)


def test_the_same_answer_is_no_version() -> None:
    assert added(task((1, "words", TIME)), history=[]) == [record(1)]
    assert added(task((1, "words", TIME)), history=[record(1)]) == []


def test_a_changed_answer_is_a_version_and_the_old_one_stays() -> None:
    (new,) = added(task((1, "better", LATER)), history=[record(1)])
    assert (new.values, new.updated) == ({"text": ["better"]}, LATER)
    assert standing([record(1), new]) == [new]


def test_an_answer_is_gone_if_its_picture_is_there_without_it() -> None:
    history = [record(1), record(2), record(3, sha256="cd" * 32), record(4, screen="name")]
    (gone,) = added(task((1, "words", TIME)), history=history)
    assert gone == replace(record(2), status="deleted", values={})
    everything = added(task((1, "words", TIME)), history=history, whole=True)
    assert [(each.annotation, each.status) for each in everything] == [(2, "deleted"), (3, "deleted")]
    assert added(history=[*history, gone], whole=False) == [], "gone is gone once"


def test_an_answer_that_comes_back_is_a_version() -> None:
    gone = replace(record(1), status="deleted", values={})
    assert added(task((1, "words", TIME)), history=[record(1), gone]) == [record(1)]


def test_a_draft_that_was_known_stays_known() -> None:
    known = record(1, draft="a draft", draft_by="names-1")
    assert with_draft(record(1, "new", updated=LATER), known).draft_by == "names-1"
    assert with_draft(record(1, draft="other", draft_by="x"), known).draft == "other"
    assert with_draft(record(1), None).draft is None
    assert added(task((1, "words", TIME)), history=[known]) == [], "a draft taken away later is no new version"


def test_most_answers_gone_needs_a_word(tmp_path: Path) -> None:
    history = [record(number) for number in range(24)]
    gone = [replace(each, status="deleted") for each in history]
    check_deleted(gone[:10], history, "text", "http://127.0.0.1:1")
    check_deleted(gone[:12], history, "text", "http://127.0.0.1:1")
    with pytest.raises(InputError, match=r"13 of 24 answers on screen 'text' are gone\. Start the server with its old"):
        check_deleted(gone[:13], history, "text", "http://127.0.0.1:1")
    check_deleted(gone[:10], history[:10], "text", "http://127.0.0.1:1")


def test_the_newest_time_whatever_its_form() -> None:
    tasks = [{"updated_at": "2026-01-01T10:00:00Z"}, {"updated_at": "2026-01-01T10:00:00.5Z"}]
    assert newest(tasks, "") == "2026-01-01T10:00:00.5Z"
    assert newest(tasks, LATER) == LATER
    assert newest([], "") == ""


def test_how_far_is_kept_and_may_be_lost(tmp_path: Path) -> None:
    path = tmp_path / "pulled.json"
    reaches = {"text": Reach("rules", TIME, 2)}
    write_reaches(path, reaches)
    assert read_reaches(path) == reaches
    for content in ("", "[]", '{"text": 1}', '{"text": {"odd": 1}}'):
        path.write_text(content)
        assert read_reaches(path) == {}
    assert read_reaches(tmp_path / "none") == {}


def test_other_types_make_everything_be_read_again() -> None:
    one, two = (Reader("triage", fields_of("triage", types)) for types in (("water",), ("water", "fire")))
    assert rules_of(one) != rules_of(two)
    assert rules_of(one) == rules_of(Reader("triage", fields_of("triage", ("water",))))


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    records = [record(1, "line\u2028and\x85more\n<b>"), record(2, draft="d", draft_by="s", origin="prediction")]
    write_history(tmp_path, records)
    assert read_history(tmp_path) == records

"""Answers as the server gives them -> records. Every shape that Label Studio lets through is met here."""

from __future__ import annotations

from typing import Any

import pytest

from annotation.answers import Reader, fields_of
from annotation.records import Record

KEY = "ab" * 32


def answer(result: Any, **more: Any) -> dict[str, Any]:
    times = {"created_at": "2026-01-01T10:00:00.000000Z", "updated_at": "2026-01-01T10:00:01.000000Z"}
    return {"id": 7, "completed_by": 1, "lead_time": 4.5, "was_cancelled": False, "result": result, **times, **more}


def text(words: Any, name: str = "text", **more: Any) -> dict[str, Any]:
    return {"id": "x", "from_name": name, "to_name": "image", "type": "textarea", "value": {"text": words}, **more}


def choice(field: str, *chosen: str) -> dict[str, Any]:
    return {"from_name": field, "to_name": "image", "type": "choices", "value": {"choices": list(chosen)}}


def task(*answers: dict[str, Any], predictions: list[dict[str, Any]] | None = None, **data: Any) -> dict[str, Any]:
    values = {"sha256": KEY, "file_name": "a/b.png", "image": "/data/x.png", **data}
    return {"id": 3, "data": values, "annotations": list(answers), "predictions": predictions or []}


def reader(screen: str = "text", *types: str) -> Reader:
    return Reader(screen, fields_of(screen, types), {1: "ann@example.com"})


def only(read: Reader, *answers: dict[str, Any], **more: Any) -> Record:
    (record,) = read.records(task(*answers, **more))
    return record


def test_a_caption_as_it_was_written() -> None:
    read = reader()
    record = only(read, answer([text([" two  spaces\nand a line "])]))
    assert record == Record(
        sha256=KEY,
        file_name="a/b.png",
        screen="text",
        annotation=7,
        annotator="ann@example.com",
        status="written",
        values={"text": [" two  spaces\nand a line "]},
        seconds=4.5,
        created="2026-01-01T10:00:00.000000Z",
        updated="2026-01-01T10:00:01.000000Z",
    )
    assert not read.odd


@pytest.mark.parametrize(
    ("result", "cancelled", "status", "values"),
    [
        ([text(["one", "two"])], False, "written", {"text": ["one", "two"]}),
        ([text(["one"]), text(["two"])], False, "written", {"text": ["one", "two"]}),
        ([text("a plain string")], False, "written", {"text": ["a plain string"]}),
        ([text(["", "kept", "  "])], False, "written", {"text": ["kept"]}),
        ([text([""])], False, "blank", {}),
        ([text(["  \n\t "])], False, "blank", {}),
        ([text([])], False, "blank", {}),
        ([], False, "blank", {}),
        (None, False, "blank", {}),
        ([], True, "skipped", {}),
        ([text(["half a tho"])], True, "skipped", {"text": ["half a tho"]}),
    ],
)
def test_kinds_of_answers(result: Any, cancelled: bool, status: str, values: dict[str, list[str]]) -> None:
    read = reader()
    record = only(read, answer(result, was_cancelled=cancelled))
    assert (record.status, record.values) == (status, values)
    assert not read.odd


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (text(["x"], name="nope"), "unknown control 'nope'"),
        ({"type": "textarea"}, "unknown control 'None'"),
        ("not an object", "unknown control 'None'"),
        (text(7), "unreadable value of 'text'"),
        (text([7]), "unreadable value of 'text'"),
        (text({"a": 1}), "unreadable value of 'text'"),
        ({"from_name": "text", "value": "x"}, "unreadable value of 'text'"),
        ({"from_name": "text"}, "unreadable value of 'text'"),
    ],
)
def test_what_is_none_of_ours_is_counted_and_the_rest_kept(item: Any, said: str) -> None:
    read = reader()
    record = only(read, answer([item, text(["kept"])]))
    assert record.values == {"text": ["kept"]}
    assert read.odd == {said: 1}


def test_choices_are_those_of_the_screen() -> None:
    read = reader("triage", "water", "fire")
    record = only(read, answer([choice("type", "fire"), choice("quality", "good")]))
    assert record.values == {"type": ["fire"], "quality": ["good"]}
    assert not read.odd
    record = only(read, answer([choice("type", "ice"), choice("quality", "superb", "poor")]))
    assert record.values == {"quality": ["poor"]}
    assert read.odd == {"unknown choice 'ice' of 'type'": 1, "unknown choice 'superb' of 'quality'": 1}


def test_several_annotators_in_the_order_of_their_answers() -> None:
    first, second = answer([text(["b"])], id=12, completed_by={"id": 2}), answer([text(["a"])], id=4)
    records = reader().records(task(first, second))
    assert [(record.annotation, record.annotator) for record in records] == [(4, "ann@example.com"), (12, "user 2")]
    assert only(reader(), answer([], completed_by=None)).annotator == "unknown"


@pytest.mark.parametrize("data", [{"sha256": None}, {"sha256": "AB" * 32}, {"sha256": "x"}, {"file_name": 3}])
def test_tasks_that_push_did_not_make(data: dict[str, Any]) -> None:
    read = reader()
    assert read.records(task(answer([text(["x"])]), answer([text(["y"])]), **data)) == []
    assert read.odd == {"answer to a task that push did not make": 2}
    assert read.records({"id": 1, "annotations": [], "data": None}) == []


@pytest.mark.parametrize("name", ["../b.png", "/b.png", "a/../../b.png", "C:\\b.png", "..\\b.png", " ", "a\0b"])
def test_names_that_lead_out_of_the_folder(name: str) -> None:
    read = reader()
    assert read.records(task(answer([text(["x"])]), file_name=name)) == []
    assert sum(read.odd.values()) == 2


# ---- drafts


def prediction(number: int, words: str, created: str, source: str | None = "blip-1") -> dict[str, Any]:
    meta = {"meta": {"draft_by": source}} if source else {}
    when = f"2026-01-01T{created}.000000Z"
    return {"id": number, "created_at": when, "model_version": "drafts", "result": [text([words]) | meta]}


def test_the_draft_that_the_page_noted() -> None:
    drafts = [prediction(1, "old", "08:00:00"), prediction(2, "new", "09:00:00", "neighbours-2")]
    edited = [text(["newer"], origin="prediction-changed")]
    record = only(reader(), answer(edited, parent_prediction=1), predictions=drafts)
    assert (record.draft, record.draft_by, record.origin) == ("old", "blip-1", "prediction-changed")
    record = only(reader(), answer([text(["new"], origin="prediction")], parent_prediction=2), predictions=drafts)
    assert (record.draft, record.draft_by, record.origin) == ("new", "neighbours-2", "prediction")
    assert only(reader(), answer([], parent_prediction=9), predictions=drafts).draft is None


def test_without_a_note_it_is_the_newest_that_was_there_before() -> None:
    drafts = [prediction(1, "a", "08:00:00"), prediction(2, "b", "09:00:00"), prediction(3, "c", "11:00:00")]
    assert only(reader(), answer([text(["x"])]), predictions=drafts).draft == "b"
    assert only(reader(), answer([text(["x"])]), predictions=drafts[2:]).draft is None


def test_an_empty_draft_is_none_and_a_foreign_one_has_its_version() -> None:
    assert only(reader(), answer([]), predictions=[prediction(1, "", "08:00:00")]).draft is None
    record = only(reader(), answer([]), predictions=[prediction(1, "x", "08:00:00", None)])
    assert (record.draft, record.draft_by) == ("x", "drafts")
    shapes: list[Any] = [None, [], ["x"], {}]
    broken = [{"id": 1, "created_at": "2026-01-01T08:00:00Z", "result": result} for result in shapes]
    assert only(reader(), answer([]), predictions=broken).draft is None

"""What a pull adds to the history, and every shape of answer that Label Studio lets through; without a server."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from annotation import pull
from annotation.history import Record, latest
from data.errors import InputError

KEY = "ab" * 32
TIME = "2026-01-01T10:00:00.000000Z"
LATER = "2026-01-01T11:00:00.000000Z"


def record(number: int, words: str = "words", **more: object) -> Record:
    known: dict[str, object] = {
        "sha256": KEY, "file_name": "a/b.png", "screen": "text", "annotation": number, "annotator": "ann@example.com",
        "status": "written", "values": {"text": [words]}, "seconds": 4.5, "created": TIME, "updated": TIME,
    }  # fmt: skip
    return Record(**{**known, **more})  # type: ignore[arg-type]


def text(words: Any, name: str = "text", **more: Any) -> dict[str, Any]:
    return {"id": "x", "from_name": name, "to_name": "image", "type": "textarea", "value": {"text": words}, **more}


def choice(field: str, *chosen: str) -> dict[str, Any]:
    return {"from_name": field, "to_name": "image", "type": "choices", "value": {"choices": list(chosen)}}


def answer(result: Any, number: int = 7, **more: Any) -> dict[str, Any]:
    values = {"completed_by": 1, "lead_time": 4.5, "was_cancelled": False, "created_at": TIME, "updated_at": TIME}
    return {"id": number, "result": result, **values, **more}


def task(*answers: dict[str, Any], predictions: list[dict[str, Any]] | None = None, **data: Any) -> dict[str, Any]:
    values = {"sha256": KEY, "file_name": "a/b.png", "image": "/data/x.png", **data}
    return {"data": values, "annotations": list(answers), "predictions": predictions or [], "updated_at": LATER}


def parser(screen: str = "text", *types: str) -> pull.AnswerParser:
    return pull.AnswerParser(screen, pull.screen_fields(screen, types), {1: "ann@example.com"})


def parse(reader: pull.AnswerParser, *answers: dict[str, Any], **more: Any) -> Record:
    (found,) = reader.records(task(*answers, **more))
    return found


# ---- versions


def added(*tasks: dict[str, object], history: list[Record], whole: bool = False) -> list[Record]:
    return pull.new_versions(tasks, parser(), history, whole=whole)


def test_only_changed_answers_are_new_versions() -> None:
    unchanged = task(answer([text(["words"])], 1))
    assert added(unchanged, history=[]) == [record(1)]
    assert added(unchanged, history=[record(1)]) == []
    (new,) = added(task(answer([text(["better"])], 1, updated_at=LATER)), history=[record(1)])
    assert (new.values, new.updated) == ({"text": ["better"]}, LATER)
    assert latest([record(1), new]) == [new]


def test_an_answer_is_deleted_if_its_image_is_there_without_it() -> None:
    history = [record(1), record(2), record(3, sha256="cd" * 32), record(4, screen="name")]
    one = task(answer([text(["words"])], 1))
    (deleted,) = added(one, history=history)
    assert deleted == replace(record(2), status="deleted", values={})
    assert [(each.annotation, each.status) for each in added(one, history=history, whole=True)] == [
        (2, "deleted"), (3, "deleted")
    ]  # fmt: skip
    assert added(history=[*history, deleted]) == [], "only once"
    assert added(task(answer([text(["words"])], 2)), history=[record(2), deleted]) == [record(2)], "it came back"


def test_a_known_draft_is_kept() -> None:
    known = record(1, draft="a draft", draft_by="names-1")
    (new,) = added(task(answer([text(["better"])], 1, updated_at=LATER)), history=[known])
    assert (new.draft, new.draft_by) == ("a draft", "names-1")
    assert added(task(answer([text(["words"])], 1)), history=[known]) == [], "removing a draft is not a version"


def test_losing_most_answers_needs_consent() -> None:
    history = [record(number) for number in range(24)]
    deleted = [replace(each, status="deleted") for each in history]
    pull.check_deleted(deleted[:12], history, "text", "http://127.0.0.1:1")
    pull.check_deleted(deleted[:10], history[:10], "text", "http://127.0.0.1:1")
    with pytest.raises(InputError, match="13 of 24") as error:
        pull.check_deleted(deleted[:13], history, "text", "http://127.0.0.1:1")
    assert "--accept-deleted" in str(error.value.fix)


def test_the_newest_time_in_any_format() -> None:
    tasks = [{"updated_at": "2026-01-01T10:00:00Z"}, {"updated_at": "2026-01-01T10:00:00.5Z"}]
    assert pull.newest(tasks, "") == "2026-01-01T10:00:00.5Z"
    assert pull.newest(tasks, LATER) == LATER
    assert pull.newest([], "") == ""


def test_a_lost_or_broken_state_means_reading_everything(tmp_path: Path) -> None:
    path = tmp_path / "pulled.json"
    path.write_text('{"text": {"rules": "r", "until": "t", "others": 2}}')
    assert pull.read_states(path) == {"text": pull.ReadState("r", "t", 2)}
    for content in ("", "[]", '{"text": 1}', '{"text": {"odd": 1}}'):
        path.write_text(content)
        assert pull.read_states(path) == {}
    assert pull.read_states(tmp_path / "none") == {}


def test_other_types_mean_reading_everything() -> None:
    one, two = (pull.screen_fields("triage", types) for types in (("water",), ("water", "fire")))
    assert pull.rules_hash(one) != pull.rules_hash(two)
    assert pull.rules_hash(one) == pull.rules_hash(pull.screen_fields("triage", ("water",)))


# ---- parsing


@pytest.mark.parametrize(
    ("result", "cancelled", "status", "values"),
    [
        ([text([" two  spaces\nand a line "])], False, "written", {"text": [" two  spaces\nand a line "]}),
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
    reader = parser()
    found = parse(reader, answer(result, was_cancelled=cancelled))
    assert found == record(7, status=status, values=values)
    assert not reader.ignored


@pytest.mark.parametrize(
    "item",
    [
        text(["x"], name="nope"),
        {"type": "textarea"},
        "not an object",
        text(7),
        text([7]),
        text({"a": 1}),
        {"from_name": "text", "value": "x"},
        {"from_name": "text"},
    ],
)
def test_what_is_not_ours_is_counted_and_the_rest_kept(item: Any) -> None:
    reader = parser()
    assert parse(reader, answer([item, text(["kept"])])).values == {"text": ["kept"]}
    assert reader.ignored.total() == 1


def test_only_choices_of_the_screen_are_accepted() -> None:
    reader = parser("triage", "water", "fire")
    found = parse(reader, answer([choice("type", "fire"), choice("quality", "good")]))
    assert found.values == {"type": ["fire"], "quality": ["good"]} and not reader.ignored
    found = parse(reader, answer([choice("type", "ice"), choice("quality", "superb", "poor")]))
    assert found.values == {"quality": ["poor"]} and reader.ignored.total() == 2


def test_several_annotators_in_the_order_of_their_answers() -> None:
    answers = answer([text(["b"])], 12, completed_by={"id": 2}), answer([text(["a"])], 4)
    found = parser().records(task(*answers))
    assert [(each.annotation, each.annotator) for each in found] == [(4, "ann@example.com"), (12, "user 2")]
    assert parse(parser(), answer([], completed_by=None)).annotator == "unknown"


@pytest.mark.parametrize(
    "data",
    [
        {"sha256": None}, {"sha256": "AB" * 32}, {"sha256": "x"}, {"file_name": 3},
        *({"file_name": name} for name in ("../b.png", "/b.png", "a/../../b.png", "C:\\b.png", "..\\b", " ", "a\0b")),
    ],
)  # fmt: skip
def test_tasks_that_push_did_not_create_are_ignored(data: dict[str, Any]) -> None:
    reader = parser()
    assert reader.records(task(answer([text(["x"])]), **data)) == []
    assert reader.ignored
    assert reader.records({"id": 1, "annotations": [], "data": None}) == []


# ---- drafts


def prediction(number: int, words: str, created: str, source: str | None = "blip-1") -> dict[str, Any]:
    meta = {"meta": {"draft_by": source}} if source else {}
    when = f"2026-01-01T{created}.000000Z"
    return {"id": number, "created_at": when, "model_version": "drafts", "result": [text([words]) | meta]}


def test_the_draft_that_the_page_noted() -> None:
    drafts = [prediction(1, "old", "08:00:00"), prediction(2, "new", "09:00:00", "neighbours-2")]
    edited = [text(["newer"], origin="prediction-changed")]
    found = parse(parser(), answer(edited, parent_prediction=1), predictions=drafts)
    assert (found.draft, found.draft_by, found.origin) == ("old", "blip-1", "prediction-changed")
    found = parse(parser(), answer([text(["new"], origin="prediction")], parent_prediction=2), predictions=drafts)
    assert (found.draft, found.draft_by, found.origin) == ("new", "neighbours-2", "prediction")
    assert parse(parser(), answer([], parent_prediction=9), predictions=drafts).draft is None


def test_without_a_note_it_is_the_newest_earlier_draft() -> None:
    drafts = [prediction(1, "a", "08:00:00"), prediction(2, "b", "09:00:00"), prediction(3, "c", "11:00:00")]
    assert parse(parser(), answer([text(["x"])]), predictions=drafts).draft == "b"
    assert parse(parser(), answer([text(["x"])]), predictions=drafts[2:]).draft is None


def test_an_empty_draft_is_none_and_a_foreign_one_has_its_version() -> None:
    assert parse(parser(), answer([]), predictions=[prediction(1, "", "08:00:00")]).draft is None
    found = parse(parser(), answer([]), predictions=[prediction(1, "x", "08:00:00", None)])
    assert (found.draft, found.draft_by) == ("x", "drafts")
    shapes: list[Any] = [None, [], ["x"], {}]
    broken = [{"id": 1, "created_at": "2026-01-01T08:00:00Z", "result": result} for result in shapes]
    assert parse(parser(), answer([]), predictions=broken).draft is None

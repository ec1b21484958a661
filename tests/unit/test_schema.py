"""The one definition of an annotation: what is taken, what is kept, what is refused, and what is asked of people."""

import json
from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError

from data.schema import Annotation, annotator_field


def made(**fields: Any) -> Annotation:
    return Annotation.model_validate(fields)


def test_a_file_name_is_enough() -> None:
    row = made(file_name="a.png")
    assert row.captions == []
    assert row.model_dump(exclude_unset=True) == {"file_name": "a.png"}


def test_captions_are_the_main_one_then_the_others_once_each() -> None:
    row = made(file_name="a.png", text=" two ", texts=["one", "", "two", "  ", "one", "three"])
    assert row.captions == ["two", "one", "three"]
    assert made(file_name="a.png", texts=["only"]).captions == ["only"]


def test_spaces_around_are_dropped_and_those_within_are_kept() -> None:
    row = made(file_name=" a b .png", text="\n a  red\tdisc \r\n", type=" water ", name="\u00a0Aqua ")
    assert (row.text, row.type, row.name) == ("a  red\tdisc", "water", "Aqua")
    assert row.file_name == " a b .png"  # a name on disk may have them


def test_unknown_keys_are_kept_as_they_came() -> None:
    line = '{"file_name":"a.png","text":"x","licence":"CC0","boxes":[[1,2.5],null],"água":{"k":true}}'
    row = Annotation.model_validate_json(line)
    assert json.loads(row.model_dump_json(exclude_unset=True)) == json.loads(line)
    assert row.model_extra == {"licence": "CC0", "boxes": [[1, 2.5], None], "água": {"k": True}}


def test_a_row_cannot_be_changed() -> None:
    row = made(file_name="a.png")
    with pytest.raises(ValidationError, match="frozen"):
        row.text = "x"  # pyright: ignore[reportAttributeAccessIssue]


def test_what_is_asked_of_people_and_in_which_order() -> None:
    asked = Annotation.annotator_fields()
    assert [name for name, how in asked.items() if how["control"] == "caption"] == ["text"] == list(asked)[:1]
    assert {"type", "name", "quality", "skip_reason"} <= set(asked)
    assert all(how["help"] and "\n" not in how["help"] and "$" not in how["help"] for how in asked.values())
    # provenance is never asked for, it is recorded
    assert not {"file_name", "texts", "annotator", "source"} & set(asked)


def test_a_field_added_in_one_line_is_asked_checked_and_written() -> None:
    class Extended(Annotation):
        mood: Literal["calm", "fierce"] | None = Field(
            None, json_schema_extra=annotator_field("choice", "how does it feel?")
        )

    assert Extended.annotator_fields()["mood"] == {"control": "choice", "help": "how does it feel?"}
    assert list(Extended.annotator_fields())[:-1] == list(Annotation.annotator_fields())
    calm = Extended.model_validate({"file_name": "a.png", "mood": "calm"})
    assert json.loads(calm.model_dump_json())["mood"] == "calm"
    with pytest.raises(ValidationError, match="mood"):
        Extended.model_validate({"file_name": "a.png", "mood": "sad"})
    assert Annotation.model_validate({"file_name": "a.png", "mood": "sad"}).model_extra == {"mood": "sad"}

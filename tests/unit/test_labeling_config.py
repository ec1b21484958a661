"""Labeling configurations: every field once, no hotkey twice, everything escaped."""

from typing import Literal
from xml.etree import ElementTree as xml

import pytest
from pydantic import Field

from annotation import labeling_config as config
from data.errors import InputError, InputErrors
from data.schema import Annotation, Text, annotator_field

TYPES = ["water", "fire", "grass"]


class Extended(Annotation):
    """A schema with a field of each kind added, one line each."""

    mood: Literal["calm", "fierce"] | None = Field(
        None, json_schema_extra=annotator_field("choice", "how does it feel?")
    )
    place: Text | None = Field(None, json_schema_extra=annotator_field("text", 'where "it" is <seen> & when'))


SCHEMAS = pytest.mark.parametrize("schema", [Annotation, Extended])


def controls(screen: str) -> list[xml.Element]:
    return [element for element in xml.fromstring(screen).iter() if element.get("toName")]


def headers(screen: str) -> list[str]:
    return [header.attrib["value"] for header in xml.fromstring(screen).iter("Header")]


def keys(screen: str) -> dict[str, str | None]:
    return {choice.attrib["value"]: choice.get("hotkey") for choice in xml.fromstring(screen).iter("Choice")}


@SCHEMAS
def test_every_field_is_on_one_screen_with_one_text_box_or_choices(schema: type[Annotation]) -> None:
    screens = config.labeling_configs(TYPES, schema)
    assert screens == config.labeling_configs(tuple(TYPES), schema)
    assert next(iter(screens)) == config.caption_field(schema) == "text"
    fields = [element.attrib["name"] for screen in screens.values() for element in controls(screen)]
    assert sorted(fields) == sorted(schema.annotator_fields())
    for name, screen in screens.items():
        if name == config.TRIAGE:
            assert {element.tag for element in controls(screen)} == {"Choices"}
            continue
        (box,) = controls(screen)
        assert box.tag == "TextArea"
        assert "hotkey" not in screen  # without a modifier it would end up in the text
        assert (box.get("required") == "true") == (name == "text")
        # without these the box is not open when the image appears
        opened = {key: box.get(key) for key in ("editable", "transcription", "maxSubmissions")}
        assert opened == {"editable": "true", "transcription": "true", "maxSubmissions": "1"}


def test_an_added_field_has_its_control_and_its_help() -> None:
    screens = config.labeling_configs(TYPES, Extended)
    assert 'place: where "it" is <seen> & when' in headers(screens["place"])
    assert "mood: how does it feel?" in headers(screens["triage"])
    choices = xml.fromstring(screens["triage"]).findall(".//Choices[@name='mood']/Choice")
    assert [choice.attrib["value"] for choice in choices] == ["calm", "fierce"]
    assert config.TRIAGE not in config.labeling_configs([], Extended)


@SCHEMAS
def test_controls_refer_to_the_file_name_and_no_image_tag_is_rendered(schema: type[Annotation]) -> None:
    for screen in config.labeling_configs(TYPES, schema).values():
        root = xml.fromstring(screen)
        (name,) = root.iter("Text")
        assert name.attrib == {"name": "image", "value": "$file_name"}
        assert {element.attrib["toName"] for element in controls(screen)} == {"image"}
        assert "![the image](<$image>)" in [element.attrib["value"] for element in root.iter("Markdown")]
        assert [image.attrib["value"] for image in root.findall(".//Header/Image")] == ["$image"]
        assert len(list(root.iter("Image"))) == 1


@pytest.mark.parametrize("count", [1, 3, 10, 18, 23, 60])
def test_hotkeys_are_unique_single_keys(count: int) -> None:
    types = [f"type {i}" for i in range(count)]
    found = keys(config.triage_screen(types, Extended))
    choices = config.choices_by_field(types, Extended)
    assert list(found) == [option for options in choices.values() for option in options]
    given = [key for key in found.values() if key]
    available = config.DIGITS + config.LETTERS
    assert len(given) == len(set(given)) == min(len(found), len(available))
    assert set(given) <= set(available)


def test_fixed_values_keep_their_letters_and_types_get_the_digits() -> None:
    few, many = keys(config.triage_screen(["glacier"])), keys(config.triage_screen([f"g{i}" for i in range(15)]))
    assert [few[name] for name in ("good", "fair", "poor", "glacier")] == ["g", "f", "p", "1"]
    assert all(many[name] == few[name] for name in few if name != "glacier")
    assert [many[f"g{i}"] for i in range(10)] == list("1234567890")


@SCHEMAS
def test_style_and_key_legend_hold_only_our_own_text(schema: type[Annotation]) -> None:
    for name, screen in config.labeling_configs(["<b>bold</b>"], schema).items():
        root = xml.fromstring(screen)
        style = root.findtext("Style", default="")
        assert style == config.STYLE.read_text(encoding="utf-8")
        assert not set(style) & set("<>&")  # Label Studio would escape it and lose the rules after it
        (legend,) = [element.attrib["value"] for element in root.findall(".//*[@className='keys']/*")]
        save = "<kbd>Ctrl</kbd>+<kbd>Enter</kbd> save"
        assert (save if name == "triage" else f"<kbd>Tab</kbd>, {save}") in legend
        assert "$" not in legend and "bold" not in legend and "seen" not in legend


def test_awkward_types_are_kept() -> None:
    types = ['"quoted"', "<View/>", "a & b", "água", "水", "it's", "two words"]
    assert list(keys(config.triage_screen(types)))[: len(types)] == types


@pytest.mark.parametrize("types", [[], ["water", ""], ["water "], ["wa\nter"], ["$file_name"], ["water", "water"]])
def test_invalid_types(types: list[str]) -> None:
    with pytest.raises(InputError):
        config.triage_screen(types)


def test_all_invalid_types_are_reported_at_once() -> None:
    with pytest.raises(InputErrors) as error:
        config.triage_screen(["", "$a", "b", "b"])
    assert len(error.value.errors) == 3


def test_a_schema_that_cannot_be_shown_is_a_bug() -> None:
    class Free(Annotation):
        mood: str | None = Field(None, json_schema_extra=annotator_field("choice", "how does it feel?"))

    class Hiding(Annotation):
        image: str | None = Field(None, json_schema_extra=annotator_field("text", "which one?"))

    for schema in (Free, Hiding):
        with pytest.raises(AssertionError):
            config.labeling_configs(TYPES, schema)

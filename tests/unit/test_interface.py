"""The labelling screens as XML: every asked field once, no key twice, nothing unescaped."""

from typing import Literal
from xml.etree import ElementTree as xml

import pytest
from pydantic import Field

from annotation import interface
from data.errors import InputError, InputErrors
from data.schema import Annotation, Text, ask

TYPES = ["water", "fire", "grass"]
REASONS = list(interface.literals(Annotation.model_fields["skip_reason"].annotation))


class Extended(Annotation):
    """A schema with a field of each kind added, one line each."""

    mood: Literal["calm", "fierce"] | None = Field(None, json_schema_extra=ask("choice", "how does it feel?"))
    place: Text | None = Field(None, json_schema_extra=ask("text", 'where "it" is <seen> & when'))


def controls(screen: str) -> list[xml.Element]:
    """The elements an annotator answers in."""
    return [element for element in xml.fromstring(screen).iter() if element.get("toName")]


def names(screens: interface.Screens) -> list[str]:
    return [element.attrib["name"] for screen in screens.values() for element in controls(screen)]


def headers(screen: str) -> list[str]:
    return [header.attrib["value"] for header in xml.fromstring(screen).iter("Header")]


def keys(screen: str) -> dict[str, str | None]:
    return {choice.attrib["value"]: choice.get("hotkey") for choice in xml.fromstring(screen).iter("Choice")}


@pytest.mark.parametrize("schema", [Annotation, Extended])
def test_every_asked_field_is_on_one_screen_once(schema: type[Annotation]) -> None:
    screens = interface.screens(TYPES, schema)
    assert sorted(names(screens)) == sorted(schema.asked())
    assert next(iter(screens)) == "text"  # captions come first
    assert screens["text"] == interface.caption_screen(schema)
    assert screens["triage"] == interface.triage_screen(TYPES, schema)


def test_an_added_field_appears_with_its_control_and_its_help() -> None:
    screens = interface.screens(TYPES, Extended)
    (box,) = controls(screens["place"])
    assert box.tag == "TextArea"
    assert 'place: where "it" is <seen> & when' in headers(screens["place"])
    triage = xml.fromstring(screens["triage"])
    assert [choice.attrib["value"] for choice in triage.findall(".//Choices[@name='mood']/Choice")] == [
        "calm",
        "fierce",
    ]
    assert "mood: how does it feel?" in headers(screens["triage"])
    assert "mood" not in names(interface.screens(TYPES))


@pytest.mark.parametrize("schema", [Annotation, Extended])
def test_a_screen_has_one_open_box_or_choices_but_never_both(schema: type[Annotation]) -> None:
    for name, screen in interface.screens(TYPES, schema).items():
        tags = [element.tag for element in controls(screen)]
        assert set(tags) == {"Choices"} if name == "triage" else tags == ["TextArea"]
        if name != "triage":
            (box,) = controls(screen)
            assert "hotkey" not in screen  # a key without a modifier is lost to the text
            # without these three the box is not open when the picture appears
            opened = {key: box.get(key) for key in ("editable", "transcription", "maxSubmissions")}
            assert opened == {"editable": "true", "transcription": "true", "maxSubmissions": "1"}


@pytest.mark.parametrize("schema", [Annotation, Extended])
def test_every_control_hangs_on_the_name_and_the_picture_is_no_image_tag(schema: type[Annotation]) -> None:
    for screen in interface.screens(TYPES, schema).values():
        root = xml.fromstring(screen)
        (named,) = root.iter("Text")
        assert named.attrib == {"name": "image", "value": "$file_name"}
        assert {element.attrib["toName"] for element in controls(screen)} == {named.attrib["name"]}
        assert "![the picture](<$image>)" in [element.attrib["value"] for element in root.iter("Markdown")]
        # an Image that is drawn takes what was typed away; in a Header it is there for the list of tasks alone
        assert [image.attrib["value"] for image in root.findall(".//Header/Image")] == ["$image"]
        assert len(list(root.iter("Image"))) == 1


def test_only_the_caption_is_required() -> None:
    screens = interface.screens(TYPES, Extended)
    required = {
        e.attrib["name"] for screen in screens.values() for e in controls(screen) if e.get("required") == "true"
    }
    assert required == {"text"}


@pytest.mark.parametrize("count", [1, 3, 10, 18, 23])
def test_no_key_is_given_twice_and_all_are_single(count: int) -> None:
    types = [f"type {i}" for i in range(count)]
    found = keys(interface.triage_screen(types, Extended))
    assert list(found) == [*types, "good", "fair", "poor", *REASONS, "calm", "fierce"]
    given = list(found.values())
    assert len(set(given)) == len(given)
    assert set(given) <= set(interface.DIGITS + interface.LETTERS)


def test_fixed_values_keep_their_letters_and_types_take_the_digits() -> None:
    few, many = keys(interface.triage_screen(["glacier"])), keys(interface.triage_screen([f"g{i}" for i in range(15)]))
    assert [few[name] for name in ("good", "fair", "poor", "glacier")] == ["g", "f", "p", "1"]
    assert [many[name] for name in ("good", "fair", "poor")] == ["g", "f", "p"]
    assert [many[f"g{i}"] for i in range(12)] == [*"1234567890", "a", "e"]  # b, c and d stand for reasons
    assert [few[reason] for reason in REASONS] == ["b", "c", "w", "d", "o"]


def test_choices_beyond_the_keys_are_still_there() -> None:
    found = keys(interface.triage_screen([f"type {i}" for i in range(60)]))
    given = [key for key in found.values() if key]
    assert len(found) == 60 + 3 + len(REASONS)
    assert len(given) == len(set(given)) == len(interface.DIGITS + interface.LETTERS)


def test_the_look_holds_nothing_that_label_studio_escapes() -> None:
    for screen in interface.screens(TYPES, Extended).values():
        look = xml.fromstring(screen).findtext("Style", default="")
        assert look == interface.LOOK.read_text(encoding="utf-8")
        assert not set(look) & set("<>&")  # it would come out as &gt; and the rules after it would be lost
        assert look.count("{") == look.count("}")


@pytest.mark.parametrize("schema", [Annotation, Extended])
def test_every_screen_shows_its_keys_in_our_own_words_alone(schema: type[Annotation]) -> None:
    for name, screen in interface.screens(["<b>bold</b>"], schema).items():
        (legend,) = [element.attrib["value"] for element in xml.fromstring(screen).findall(".//*[@className='keys']/*")]
        pressed = "<kbd>Ctrl</kbd>+<kbd>Enter</kbd> save, next picture"
        assert (pressed if name == "triage" else f"<kbd>Tab</kbd>, {pressed}") in legend
        # Markdown shows HTML as HTML: no data of a task, no type and no help line may get there
        assert "$" not in legend and "bold" not in legend and "seen" not in legend


def test_awkward_types_come_through_unchanged() -> None:
    types = ['"quoted"', "<View/>", "a & b", "água", "水", "it's", "two words"]
    assert list(keys(interface.triage_screen(types)))[: len(types)] == types


def test_same_input_same_bytes() -> None:
    assert interface.screens(TYPES) == interface.screens(tuple(TYPES))
    assert interface.caption_screen().endswith("</View>\n")


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ([], "no types to choose from; allowed: at least one, e.g. water, fire, grass"),
        (["water", ""], "type '' is blank"),
        (["water "], "type 'water ' has spaces around it, which captioned folders do not keep"),
        (["wa\nter"], "type 'wa\\nter' has control characters"),
        (["$file_name"], "type '$file_name' holds a $, which Label Studio reads as the name of a data field"),
        (["water", "fire", "water"], "type 'water' is given twice"),
    ],
)
def test_types_that_a_screen_cannot_show(types: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        interface.triage_screen(types)
    assert str(caught.value) == message


def test_all_wrong_types_are_named_at_once() -> None:
    with pytest.raises(InputErrors) as caught:
        interface.triage_screen(["", "$a", "b", "b"])
    assert len(str(caught.value).splitlines()) == 3


def test_a_schema_that_cannot_be_shown_is_our_own_mistake() -> None:
    class Free(Annotation):
        mood: str | None = Field(None, json_schema_extra=ask("choice", "how does it feel?"))

    class Hiding(Annotation):
        image: str | None = Field(None, json_schema_extra=ask("text", "which one?"))

    with pytest.raises(AssertionError, match="mood is asked as a choice: give it a Literal"):
        interface.screens(TYPES, Free)
    with pytest.raises(AssertionError, match="a field called 'image' would hide the picture"):
        interface.screens(TYPES, Hiding)

"""The labelling screens: Label Studio configurations (XML) made from the fields that data/schema.py says are asked.

A screen has either one box to write in or choices, never both: beside an open box, the key of a choice ends up in the
text, and letters of the text are taken for keys (seen with Label Studio 1.23.2). So each written field is a pass of its
own, the caption first, and all choices share one pass, the triage, with a single key each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin
from xml.etree import ElementTree as xml

from data.errors import InputError, raise_all
from data.schema import Annotation

Screens = dict[str, str]  # name of the pass -> its configuration
Schema = type[Annotation]

TRIAGE = "triage"  # the pass with all choices; the other passes are named after their one field
PICTURE = "image"  # the control on which all others hang, and the key of the picture's address in a task's data
DIGITS = "1234567890"
LETTERS = "abcdefgijklmnopqstvwxyz"  # without h, r and u, which Label Studio keeps for itself


def screens(types: Sequence[str], schema: Schema = Annotation) -> Screens:
    """Every pass, in the order of the schema: one for each field that is written, and the triage for the rest.

    types: the allowed values of `type`, see triage_screen.
    """
    asked = schema.asked()
    written = {field: writing_screen(field, schema) for field, how in asked.items() if how["ask"] != "choice"}
    return written | ({TRIAGE: triage_screen(types, schema)} if len(written) < len(asked) else {})


def caption_screen(schema: Schema = Annotation) -> str:
    """The pass in which captions are written: the picture and one box, ready to type in."""
    (field,) = (field for field, how in schema.asked().items() if how["ask"] == "caption")
    return writing_screen(field, schema)


def writing_screen(field: str, schema: Schema = Annotation) -> str:
    """The pass in which `field`, a caption or a text, is written.

    Import each task with a prediction, an empty one if there is no draft: only then has the box the focus when the
    picture appears. Then: type, Tab, Ctrl+Enter; to skip: Tab, Ctrl+Space. Label Studio does not enforce `required`
    here, so whoever reads the answers back must treat a blank one as open.
    """
    how = schema.asked()[field]
    assert how["ask"] != "choice", f"{field} is chosen, not written"
    root, side = picture_and_side()
    caption = how["ask"] == "caption"
    xml.SubElement(
        side,
        "TextArea",
        # editable with transcription keeps a draft open, with the focus in it; as the last control, Tab leaves it for
        # a button, where Ctrl+Enter is heard
        control(field) | {"editable": "true", "transcription": "true"},
        rows="6" if caption else "2",
        maxSubmissions="1",
        showSubmitButton="false",
        required=as_xml(caption),
        placeholder=how["help"],
    )
    return as_text(root)


def triage_screen(types: Sequence[str], schema: Schema = Annotation) -> str:
    """The pass with every choice, one key each: press the keys, then Ctrl+Enter.

    types: the allowed values of `type`, in the order of their keys 1 to 9, 0, then letters; a choice beyond the keys is
    left to the mouse. A field with values of its own in the schema (a Literal) takes letters of those values, so that
    `g` stays `good` whatever the types are. InputError for types that the screen cannot show.
    """
    choices = offered(types, schema)
    keys = assign_keys(choices, schema)
    root, side = picture_and_side()
    for field, options in choices.items():
        xml.SubElement(side, "Header", value=f"{field}: {schema.asked()[field]['help']}", size="6")
        answer = xml.SubElement(side, "Choices", control(field), choice="single", showInline="true", required="false")
        for option in options:
            key = keys.get((field, option))
            xml.SubElement(answer, "Choice", {"value": option} | ({"hotkey": key} if key else {}))
    return as_text(root)


def offered(types: Sequence[str], schema: Schema) -> dict[str, list[str]]:
    """The values of each chosen field: those of its Literal, or `types` for `type`."""
    chosen = [field for field, how in schema.asked().items() if how["ask"] == "choice"]
    choices = {field: list(literals(schema.model_fields[field].annotation)) for field in chosen}
    if "type" in choices and not choices["type"]:
        choices["type"] = check_types(types)
    for field, options in choices.items():
        assert options, f"{field} is asked as a choice: give it a Literal of the allowed values, or ask for a text"
    return choices


def literals(annotation: Any) -> Iterator[str]:
    """The strings in a Literal, or in a union that holds one."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from literals(member)


def assign_keys(choices: dict[str, list[str]], schema: Schema) -> dict[tuple[str, str], str]:
    """(field, option) -> its key, none twice. Fields with fixed values come first and take a letter of the word."""
    free = DIGITS + LETTERS
    keys: dict[tuple[str, str], str] = {}
    fixed = {field: any(literals(schema.model_fields[field].annotation)) for field in choices}
    for field in sorted(choices, key=lambda field: not fixed[field]):
        for option in choices[field]:
            wishes = option.lower() + LETTERS + DIGITS if fixed[field] else DIGITS + LETTERS
            key = next((key for key in wishes if key in free), "")
            if key:
                keys[field, option], free = key, free.replace(key, "")
    return keys


def check_types(types: Sequence[str]) -> list[str]:
    """`types` as a list, or InputError for all that is wrong with them."""
    errors = [InputError(f"type {name!r} {wrong}") for name in dict.fromkeys(types) if (wrong := unfit(name))]
    twice = [name for name in dict.fromkeys(types) if types.count(name) > 1]
    errors += [InputError(f"type {name!r} is given twice") for name in twice]
    if not types:
        errors = [InputError("no types to choose from", allowed="at least one, e.g. water, fire, grass")]
    raise_all(errors)
    return list(types)


def unfit(name: str) -> str:
    """What keeps `name` from being a choice on a screen; empty if nothing does."""
    if not name.strip():
        return "is blank"
    if name != name.strip():
        return "has spaces around it, which captioned folders do not keep"
    if not name.isprintable():
        return "has control characters"
    return "holds a $, which Label Studio reads as the name of a data field" if "$" in name else ""


def picture_and_side() -> tuple[xml.Element, xml.Element]:
    """A screen with the picture on the left, and the column beside it, which starts with the file's name."""
    root = xml.Element("View", style="display:flex;gap:1rem;align-items:flex-start")
    left = xml.SubElement(root, "View", style="flex:3;min-width:0")
    # without the picture's own tools no key of theirs is in the way, and the picture fits the window
    plain = {"zoom": "false", "zoomControl": "false", "maxWidth": "100%", "maxHeight": "75vh"}
    xml.SubElement(left, "Image", plain, name=PICTURE, value=f"${PICTURE}")
    side = xml.SubElement(root, "View", style="flex:2;min-width:24rem")
    xml.SubElement(side, "Header", value="$file_name", size="6")
    return root, side


def control(field: str) -> dict[str, str]:
    """What ties a control to its field and to the picture."""
    assert field != PICTURE, f"a field called {PICTURE!r} would hide the picture"
    return {"name": field, "toName": PICTURE}


def as_xml(flag: bool) -> str:
    return "true" if flag else "false"


def as_text(root: xml.Element) -> str:
    """The configuration, one tag a line, ending with a line break; everything in it is escaped."""
    xml.indent(root)
    return xml.tostring(root, encoding="unicode") + "\n"

"""The labelling screens: Label Studio configurations (XML) made from the fields that data/schema.py says are asked.

A screen has either one box to write in or choices, never both: beside an open box, the key of a choice ends up in the
text, and letters of the text are taken for keys (seen with Label Studio 1.23.2). So each written field is a pass of its
own, the caption first, and all choices share one pass, the triage, with a single key each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin
from xml.etree import ElementTree as xml

from data.errors import InputError, raise_all
from data.schema import Annotation

Screens = dict[str, str]  # name of the pass -> its configuration
Schema = type[Annotation]

TRIAGE = "triage"  # the pass with all choices; the other passes are named after their one field
PICTURE = "image"  # the control on which all others hang, and the key of the picture's address in a task's data
LOOK = Path(__file__).with_name("screen.css")
DIGITS = "1234567890"
LETTERS = "abcdefgijklmnopqstvwxyz"  # without h, r and u, which Label Studio keeps for itself

# (keys, what they do), as Label Studio has them when nobody changed them
SAVE, SKIP = "save, next picture", "skip this one"
MAC = (("⌘+Enter", "and"), ("Alt+Enter", "on a Mac"))
WRITING_KEYS = (("Tab, Ctrl+Enter", SAVE), ("Tab, Ctrl+Space", SKIP), ("Esc", "take back what you typed"), *MAC)
CHOOSING_KEYS = (("[key]", "choose, again: take it back"), ("Ctrl+Enter", SAVE), ("Ctrl+Space", SKIP), *MAC)


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
    caption = how["ask"] == "caption"
    root, side = picture_and_side()
    ask_for(side, "caption" if caption else field, how["help"])
    xml.SubElement(
        block(side, "long" if caption else "short"),
        "TextArea",
        # editable with transcription keeps a draft open, with the focus in it; Tab leaves it for a button, where
        # Ctrl+Enter is heard
        control(field) | {"editable": "true", "transcription": "true"},
        rows="6" if caption else "2",
        maxSubmissions="1",
        showSubmitButton="false",
        required=as_xml(caption),
    )
    legend(side, WRITING_KEYS)
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
        ask_for(side, words(field), schema.asked()[field]["help"])
        answer = xml.SubElement(side, "Choices", control(field), choice="single", showInline="true", required="false")
        for option in options:
            key = keys.get((field, option))
            xml.SubElement(answer, "Choice", {"value": option} | ({"hotkey": key} if key else {}))
    legend(side, CHOOSING_KEYS)
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
    """A screen with the picture on the left, and the column beside it, which starts with the file's name.

    Label Studio's own Image is not drawn: when its picture arrives, and whenever the window changes its size, it makes
    every box anew, and what was typed until then is lost (seen with 1.23.2). Controls need something to hang on, which
    is the name of the file. Never put anything but the picture's address into the Markdown: it is taken as HTML.
    """
    root = xml.Element("View", className="atelier")
    xml.SubElement(root, "Style").text = LOOK.read_text(encoding="utf-8")
    xml.SubElement(block(root, "picture"), "Markdown", value=f"![the picture](<${PICTURE}>)")
    side = block(root, "side")
    name = block(side, "file")
    xml.SubElement(name, "Text", name=PICTURE, value="$file_name")
    # never drawn, because a Header has no inside; for its sake the list of tasks shows small pictures
    xml.SubElement(xml.SubElement(name, "Header", value=""), "Image", name="thumbnail", value=f"${PICTURE}")
    return root, side


def ask_for(side: xml.Element, name: str, help: str) -> None:
    """The question above a control. Label Studio shows no placeholder in a box that holds a draft."""
    xml.SubElement(block(side, "question"), "Header", value=f"{name}: {help}", size="5")


def legend(side: xml.Element, keys: Sequence[tuple[str, str]]) -> None:
    """The keys and what they do, in sight. Markdown takes HTML as it is: nothing but our own words may go in."""
    shown = [(re.sub(r"[^ ,+]+", r"<kbd>\g<0></kbd>", pressed), does) for pressed, does in keys]
    lines = [f"<span>{pressed} {does}</span>" for pressed, does in shown]
    xml.SubElement(block(side, "keys"), "Markdown", value="".join(lines))


def block(parent: xml.Element, name: str) -> xml.Element:
    """A part of the screen that screen.css knows by `name`."""
    return xml.SubElement(parent, "View", className=name)


def words(field: str) -> str:
    return field.replace("_", " ")


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

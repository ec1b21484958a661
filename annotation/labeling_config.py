"""Label Studio's labeling configurations (XML), made from the fields that data/schema.py marks as asked for.

A screen has either one text box or choices, never both: beside an open box, the hotkey of a choice ends up in the text,
and letters of the text are taken for hotkeys (seen with Label Studio 1.23.2). So each text field has a screen of its
own, the caption first, and all choices share one screen, the triage, with a single key each.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin
from xml.etree import ElementTree as xml

from data.errors import InputError, raise_all
from data.schema import Annotation

Schema = type[Annotation]

TRIAGE = "triage"  # the screen with all choices; every other screen is named after its field
IMAGE = "image"  # the control that the others refer to, and the key of the image's address in a task's data
STYLE = Path(__file__).with_name("screen.css")
DIGITS = "1234567890"
LETTERS = "abcdefgijklmnopqstvwxyz"  # without h, r and u, which Label Studio reserves

# (keys, what they do) by Label Studio's defaults
SAVE, SKIP = "save, next image", "skip this one"
MAC = (("⌘+Enter", "and"), ("Alt+Enter", "on a Mac"))
TEXT_KEYS = (("Tab, Ctrl+Enter", SAVE), ("Tab, Ctrl+Space", SKIP), ("Esc", "discard what you typed"), *MAC)
CHOICE_KEYS = (("[key]", "choose; again to undo"), ("Ctrl+Enter", SAVE), ("Ctrl+Space", SKIP), *MAC)


def labeling_configs(types: Sequence[str], schema: Schema = Annotation) -> dict[str, str]:
    """Screen -> its configuration: each text field in the order of the schema, and with any `types` the triage."""
    asked = schema.annotator_fields()
    screens = {field: text_screen(field, schema) for field, how in asked.items() if how["control"] != "choice"}
    return screens | ({TRIAGE: triage_screen(types, schema)} if types and len(screens) < len(asked) else {})


def caption_field(schema: Schema = Annotation) -> str:
    """The field that holds the caption, which is also the name of its screen."""
    (field,) = (field for field, how in schema.annotator_fields().items() if how["control"] == "caption")
    return field


def text_screen(field: str, schema: Schema = Annotation) -> str:
    """The screen on which `field`, a caption or another text, is written.

    Import each task with a prediction, an empty one if there is no draft: only then does the box have the focus when
    the image appears. Then: type, Tab, Ctrl+Enter; to skip: Tab, Ctrl+Space. Label Studio does not enforce `required`
    here, so whoever reads the answers must treat a blank one as open.
    """
    how = schema.annotator_fields()[field]
    caption = how["control"] == "caption"
    root, side = new_screen()
    add_question(side, "caption" if caption else field, how["help"])
    # editable with transcription keeps the draft open and focused; Tab moves on to a button, where Ctrl+Enter works
    settings = {"editable": "true", "transcription": "true", "rows": "6" if caption else "2", "maxSubmissions": "1"}
    settings |= {"showSubmitButton": "false", "required": "true" if caption else "false"}
    xml.SubElement(view(side, "long" if caption else "short"), "TextArea", control(field) | settings)
    add_key_legend(side, TEXT_KEYS)
    return to_xml(root)


def triage_screen(types: Sequence[str], schema: Schema = Annotation) -> str:
    """The screen with every choice, one key each: press the keys, then Ctrl+Enter. InputError for invalid types.

    types: the allowed values of `type`, in the order of their keys 1 to 9, 0, then letters; choices beyond that need
    the mouse. Fields with fixed values in the schema (a Literal) get letters of those values, so that `g` stays `good`
    whatever the types are.
    """
    choices = choices_by_field(types, schema)
    keys = assign_keys(choices, schema)
    root, side = new_screen()
    for field, options in choices.items():
        add_question(side, field.replace("_", " "), schema.annotator_fields()[field]["help"])
        answer = xml.SubElement(side, "Choices", control(field), choice="single", showInline="true", required="false")
        for option in options:
            key = keys.get((field, option))
            xml.SubElement(answer, "Choice", {"value": option} | ({"hotkey": key} if key else {}))
    add_key_legend(side, CHOICE_KEYS)
    return to_xml(root)


def choices_by_field(types: Sequence[str], schema: Schema = Annotation) -> dict[str, list[str]]:
    """The values of each field that is chosen: those of its Literal, or `types` for `type`."""
    fields = [field for field, how in schema.annotator_fields().items() if how["control"] == "choice"]
    choices = {field: list(literal_values(schema.model_fields[field].annotation)) for field in fields}
    if "type" in choices and not choices["type"]:
        choices["type"] = check_types(types)
    for field, options in choices.items():
        assert options, f"{field} is asked as a choice: give it a Literal of the allowed values, or ask for a text"
    return choices


def literal_values(annotation: Any) -> Iterator[str]:
    """The strings in a Literal, or in a union that holds one."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from literal_values(member)


def assign_keys(choices: dict[str, list[str]], schema: Schema) -> dict[tuple[str, str], str]:
    """(field, option) -> its unique key. Fields with fixed values come first and prefer a letter of the word."""
    free = DIGITS + LETTERS
    keys: dict[tuple[str, str], str] = {}
    fixed = {field: any(literal_values(schema.model_fields[field].annotation)) for field in choices}
    for field in sorted(choices, key=lambda field: not fixed[field]):
        for option in choices[field]:
            preferred = option.lower() + LETTERS + DIGITS if fixed[field] else DIGITS + LETTERS
            if key := next((key for key in preferred if key in free), ""):
                keys[field, option], free = key, free.replace(key, "")
    return keys


def check_types(types: Sequence[str]) -> list[str]:
    """`types` as a list, or InputError for everything that is wrong with them."""
    errors = [InputError(f"type {name!r} {why}") for name in dict.fromkeys(types) if (why := invalid_type(name))]
    errors += [InputError(f"type {name!r} is given twice") for name, count in Counter(types).items() if count > 1]
    if not types:
        errors = [InputError("no types to choose from", allowed="at least one, e.g. water, fire, grass")]
    raise_all(errors)
    return list(types)


def invalid_type(name: str) -> str:
    """Why `name` cannot be a choice on a screen; empty if it can."""
    if not name.strip():
        return "is blank"
    if name != name.strip():
        return "has spaces around it, which captioned folders do not keep"
    if not name.isprintable():
        return "has control characters"
    return "contains a $, which Label Studio reads as the name of a data field" if "$" in name else ""


def new_screen() -> tuple[xml.Element, xml.Element]:
    """A screen with the image on the left, and the column on the right, which starts with the file name.

    Label Studio's own Image tag is hidden: when its image arrives, and whenever the window is resized, it rebuilds
    every box, and what was typed until then is lost (seen with 1.23.2). Controls need an object to refer to, which is
    the file name. Put nothing but the image's address into the Markdown: it is rendered as HTML.
    """
    root = xml.Element("View", className="atelier")
    xml.SubElement(root, "Style").text = STYLE.read_text(encoding="utf-8")
    xml.SubElement(view(root, "picture"), "Markdown", value=f"![the image](<${IMAGE}>)")
    side = view(root, "side")
    name = view(side, "file")
    xml.SubElement(name, "Text", name=IMAGE, value="$file_name")
    # never rendered, as a Header has no children; it makes the task list show thumbnails
    xml.SubElement(xml.SubElement(name, "Header", value=""), "Image", name="thumbnail", value=f"${IMAGE}")
    return root, side


def add_question(side: xml.Element, name: str, help: str) -> None:
    """The question above a control. (Label Studio shows no placeholder in a box that holds a draft.)"""
    xml.SubElement(view(side, "question"), "Header", value=f"{name}: {help}", size="5")


def add_key_legend(side: xml.Element, keys: Sequence[tuple[str, str]]) -> None:
    """What the keys do. Markdown is rendered as HTML: only our own words may go in."""
    marked = [(re.sub(r"[^ ,+]+", r"<kbd>\g<0></kbd>", pressed), effect) for pressed, effect in keys]
    lines = [f"<span>{pressed} {effect}</span>" for pressed, effect in marked]
    xml.SubElement(view(side, "keys"), "Markdown", value="".join(lines))


def view(parent: xml.Element, name: str) -> xml.Element:
    return xml.SubElement(parent, "View", className=name)


def control(field: str) -> dict[str, str]:
    """The attributes that tie a control to its field and to the image."""
    assert field != IMAGE, f"a field called {IMAGE!r} would hide the image"
    return {"name": field, "toName": IMAGE}


def to_xml(root: xml.Element) -> str:
    xml.indent(root)
    return xml.tostring(root, encoding="unicode") + "\n"

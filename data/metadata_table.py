"""The rows that describe pictures: lines of metadata.jsonl, rows of metadata.csv, caption files beside the pictures.

Each reader gives the rows that are sound, each with its file and line, and a Problem for every one that is not.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data.errors import InputError, Problem, quoted, suggest
from data.images import read_bytes
from data.scan import nfc
from data.schema import Annotation

MAX_DEPTH = 32  # of nesting in unknown keys; pydantic cannot write back more than 255
MAX_CAPTION_FILE = 1 << 20  # bytes
CAPTION_KEYS = ("caption", "captions", "prompt", "description", "label", "title", "tags")
JSON_TYPES = {
    str: "a text",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}
CELL_LIMIT = 1 << 24  # characters in one CSV cell


@dataclass(frozen=True)
class Row:
    """An annotation and the file:line that it came from."""

    annotation: Annotation
    where: str


@dataclass
class Table:
    """What one reader found: sound rows, problems, and the pictures that a refused row was about."""

    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    spoiled: set[str] = field(default_factory=set)
    broken: bool = False  # the file as a whole cannot be read


def read_jsonl(path: Path) -> Table:
    """Read metadata.jsonl: one JSON object a line, UTF-8; blank lines, a byte order mark and CRLF are allowed."""
    found = Table()
    try:
        content = read_bytes(path)
        check_not_utf16(content, path)
    except InputError as error:
        return Table(problems=[Problem.of(error)], broken=True)
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            add_row(found, line, f"{path}:{number}", parse_line)
    return found


def add_row(found: Table, raw: Any, where: str, parse: Callable[[Any], Any]) -> None:
    """Parse and check one row; its problems are listed, and the row is kept if none of them refuses it."""
    try:
        values = parse(raw)
        check_values(values)
        row = Row(Annotation.model_validate(values), where)
    except ValidationError as error:
        problems = [Problem(where, *explain_validation_error(detail)) for detail in error.errors(include_url=False)]
    except InputError as error:
        problems = [Problem.of(error, where)]
    else:
        problems = list(check_captions(row))
        found.rows.extend([] if any(problem.refused for problem in problems) else [row])
    found.problems.extend(problems)
    if any(problem.refused for problem in problems):
        found.spoiled.update(guess_names(raw))


def guess_names(raw: Any) -> list[str]:
    """The picture that a refused row was about, so that it is not listed again as a picture without a row."""
    if isinstance(raw, dict):
        return [nfc(str(raw.get("file_name")))]
    text = raw.decode(errors="replace")
    return [nfc(name) for name in re.findall(r'"file_name"\s*:\s*"([^"]*)"', text)]


def parse_line(line: bytes) -> Any:
    """One JSON value, strictly: no NaN, no infinity, no key twice, no half characters."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise utf8_error(error) from error
    try:
        return json.loads(text, parse_constant=reject_constant, parse_float=finite_float, object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 12) : error.pos + 12].strip()
        what = f"is not JSON ({error.msg} at column {error.colno}, near {near!r})"
        raise InputError(what, fix="Mend the line.") from error
    except RecursionError as error:
        raise InputError("is nested too deep", allowed=f"{MAX_DEPTH} levels", fix="Flatten it.") from error
    except ValueError as error:  # a whole number of more than 4300 digits
        raise InputError("holds a number that is too long", fix="Write it as text.") from error


def reject_constant(name: str) -> float:
    raise InputError(f"holds {name}, which JSON does not know", fix="Write null, or leave the key out.")


def finite_float(text: str) -> float:
    """A float, unless it is too large to be one and would come back as infinity."""
    value = float(text)
    if not math.isfinite(value):
        raise InputError(f"holds the number {text[:24]}, which is too large", fix="Write it as text.")
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys all differ: of two equal keys one would be lost without a word."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(f"has the key {quoted(twice)} twice", fix="Keep one of them.")
    return values


def utf8_error(error: UnicodeDecodeError) -> InputError:
    byte = error.object[error.start]
    return InputError(f"is not UTF-8 (byte 0x{byte:02x} at position {error.start})", fix="Save the file as UTF-8.")


def check_values(values: Any) -> None:
    """What pydantic would let pass: not an object, half characters, nesting that cannot be written back."""
    if not isinstance(values, dict):
        raise InputError(f"is {type_name(values)}, not an object", fix='Write {"file_name": ..., "text": ...}.')
    stack: list[tuple[Any, int]] = [(values, 1)]
    while stack:
        value, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise InputError("is nested too deep", allowed=f"{MAX_DEPTH} levels", fix="Flatten it.")
        if isinstance(value, dict):
            stack.extend((part, depth + 1) for pair in value.items() for part in pair)
        elif isinstance(value, list):
            stack.extend((part, depth + 1) for part in value)
        elif isinstance(value, str) and not value.isascii() and re.search("[\ud800-\udfff]", value):
            raise InputError("holds half of a character (a lone surrogate)", fix="Write the character whole.")


def type_name(value: Any) -> str:
    """JSON's word for the type of a value, with its article."""
    return JSON_TYPES.get(type(value), type(value).__name__)


def explain_validation_error(detail: Any) -> tuple[str, str]:
    """One pydantic error as a person would say it: what is wrong, and what to do."""
    key = ".".join(str(part) for part in detail["loc"])
    given = type_name(detail["input"])
    sayings = {
        "missing": (f"has no {key!r}", "Write the picture's name in it."),
        "string_type": (f"{key!r} is {given}, not a text", "Write text in double quotes."),
        "list_type": (f"{key!r} is {given}, not a list of texts", 'Write ["...", "..."].'),
        "literal_error": (
            f"{key!r} is {quoted(str(detail['input']))}; allowed: {detail.get('ctx', {}).get('expected')}",
            "Choose one, or leave the key out.",
        ),
    }
    return sayings.get(detail["type"], (f"{key!r}: {detail['msg']}", ""))


def check_captions(row: Row) -> Iterator[Problem]:
    """A caption that is missing refuses the row; one with strange characters is kept as it is, with a warning.

    A picture that is to be left out needs no caption.
    """
    if not row.annotation.captions and not row.annotation.skip_reason:
        yield Problem(row.where, "has no caption", caption_hint(row.annotation))
    for caption in row.annotation.captions:
        strange = sorted({char for char in caption if is_strange(char)})
        if strange:
            named = ", ".join(f"U+{ord(char):04X}" for char in strange[:5])
            fix = "Check how the caption was saved; it is used as it is."
            yield Problem(row.where, f"its caption holds characters that nobody types ({named})", fix, refused=False)


def caption_hint(annotation: Annotation) -> str:
    """The key that was probably meant, if another one holds a text."""
    extra = annotation.model_extra or {}
    meant = next((key for key in extra if key.lower() in CAPTION_KEYS), None)
    return f"The key is 'text'; found {meant!r}." if meant else "Write one in 'text'."


def is_strange(char: str) -> bool:
    """Control characters other than white space, and the mark that a failed decoding leaves."""
    return char == "\ufffd" or (unicodedata.category(char) == "Cc" and char not in "\t\n\r")


def read_csv(path: Path) -> Table:
    """Read metadata.csv: a header with file_name and text, then a row a picture. Empty cells are left out.

    Every cell is text; `texts` holds a JSON list.
    """
    found = Table()
    try:
        text = decode_text(read_bytes(path), path)
    except InputError as error:
        return Table(problems=[Problem.of(error)], broken=True)
    csv.field_size_limit(CELL_LIMIT)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        check_header(reader.fieldnames or [], path)
        for cells in reader:
            add_row(found, cells, f"{path}:{reader.line_num}", from_cells)
    except csv.Error as error:
        found.problems.append(Problem(f"{path}:{reader.line_num}", f"is not CSV ({error})", "Mend the quotes."))
        found.broken = True
    except InputError as error:
        return Table(problems=[Problem.of(error)], broken=True)
    return found


def check_header(columns: Sequence[str], path: Path) -> None:
    """The header must name file_name, and no column twice."""
    where = f"{path}:1"
    if "file_name" not in columns:
        near = suggest("file_name", columns).replace("did you mean", "found")
        raise InputError(f"its header has no column 'file_name'{near}", where=where, fix="Separate columns by commas.")
    twice = next((column for column in columns if list(columns).count(column) > 1), None)
    if twice is not None:
        raise InputError(f"has the column {twice!r} twice", where=where, fix="Rename one of them.")


def from_cells(cells: dict[str | Any, Any]) -> dict[str, Any]:
    """One CSV row as the keys of an annotation."""
    if None in cells:
        raise InputError("has more cells than the header", fix="Put a caption that holds commas in double quotes.")
    values: dict[str, Any] = {key: cell for key, cell in cells.items() if cell}
    if "texts" in values:
        values["texts"] = parse_line(values["texts"].encode())
    return values


def decode_text(content: bytes, path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark, or InputError with the line of the first bad byte."""
    check_not_utf16(content, path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problem = utf8_error(error)
        line = content.count(b"\n", 0, error.start) + 1
        problem.where = f"{path}:{line}"
        raise problem from error


def check_not_utf16(content: bytes, path: Path) -> None:
    """What Windows' PowerShell writes unless told otherwise."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError("is UTF-16", where=path, fix="Save it as UTF-8.")


def read_caption_file(path: Path, file_name: str) -> Table:
    """Read the captions beside a picture: one a line, the main one first."""
    found = Table()
    try:
        content = read_bytes(path)
        if len(content) > MAX_CAPTION_FILE:
            raise InputError("is larger than 1 MiB, which is no caption", where=path, fix="Remove it or rename it.")
        lines = re.split(r"\r\n|\r|\n", decode_text(content, path))
    except InputError as error:
        return Table(problems=[Problem.of(error)])
    captions = [line.strip() for line in lines if line.strip()]
    number = next((number for number, line in enumerate(lines, start=1) if line.strip()), 1)
    if captions:
        values = {"file_name": file_name, "text": captions[0], "texts": captions[1:]}
        add_row(found, values, f"{path}:{number}", dict)
    else:
        found.problems.append(Problem(str(path), "is empty: there is no caption in it", "Write one caption a line."))
    return found

"""Rows of metadata tables and caption files: valid ones with their line, a Problem for each other."""

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
from data.schema import Annotation

MAX_DEPTH = 32  # of nesting in unknown keys; pydantic cannot write back more than 255
MAX_CAPTION_FILE = 1 << 20  # bytes
MAX_CELL = 1 << 24  # characters in one CSV cell
CAPTION_KEYS = ("caption", "captions", "prompt")  # taken as the caption where there is no text
CAPTION_NAMES = (*CAPTION_KEYS, "description", "label", "title", "tags", "blip", "blip_caption")  # likely ones
FILE_KEYS = (
    "image",
    "filename",
    "file",
    "path",
    "image_path",
    "file_path",
    "image_file",
)  # where there is no file_name
WHOLE_SENTENCE = re.compile(r"[.!?\u2026\u3002\uff01\uff1f][\"')\]\u201d\u2019\u00bb]*$")
JSON_TYPES = {str: "a text", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class Row:
    """An annotation and the file:line that it came from."""

    annotation: Annotation
    where: str


@dataclass
class Table:
    """What one reader found. spoiled: nfc(name) of the images whose row is invalid; broken: the file is unreadable.

    notes: how rows were read, one a row.
    """

    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    spoiled: set[str] = field(default_factory=set)
    broken: bool = False
    notes: list[str] = field(default_factory=list)


def broken_table(error: InputError) -> Table:
    return Table(problems=[Problem.of(error)], broken=True)


def nfc(name: str) -> str:
    """Unicode's composed form: macOS stores an accent apart from its letter, most other systems together."""
    return unicodedata.normalize("NFC", name)


def read_table_file(path: Path, column: str | None = None) -> Table:
    """Read a table by its suffix: .jsonl, .csv, .json or .parquet. column: that of the caption, by name."""
    readers = {".jsonl": read_jsonl, ".csv": read_csv, ".json": read_json, ".parquet": read_parquet}
    return readers[path.suffix.lower()](path, column)


def read_jsonl(path: Path, column: str | None = None) -> Table:
    """Read metadata.jsonl: one JSON object a line; blank lines, a byte order mark and CRLF are allowed."""
    table = Table()
    try:
        content = to_utf8(read_bytes(path), path)
    except InputError as error:
        return broken_table(error)
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            add_row(table, line, f"{path}:{number}", lambda raw: name_columns(parse_line(raw), column, table))
    return table


def read_json(path: Path, column: str | None = None) -> Table:
    """Read metadata.json: a list of objects, or one object of file names and captions (or objects)."""
    table = Table()
    try:
        values = parse_line(to_utf8(read_bytes(path), path))
        if isinstance(values, dict):
            values = [
                {"file_name": name} | (row if isinstance(row, dict) else {column or "text": row})
                for name, row in values.items()
            ]
        if not isinstance(values, list):
            raise InputError(f"is {json_type(values)}", allowed="a list of objects, or {file name: caption}")
    except InputError as error:
        error.where = error.where or str(path)
        return broken_table(error)
    for number, row in enumerate(values, start=1):
        add_row(table, row, f"{path}:row {number}", lambda raw: name_columns(raw, column, table))
    return table


def read_parquet(path: Path, column: str | None = None) -> Table:
    """Read metadata.parquet: a column of file names, and one of captions; empty cells are left out."""
    import pyarrow.parquet as parquet

    table = Table()
    try:
        rows = parquet.read_table(path).to_pylist()
    except Exception as error:  # pyarrow's errors and those of its codecs share no parent
        return broken_table(InputError(f"is not a parquet file ({str(error).splitlines()[0]})", where=path))
    for number, row in enumerate(rows, start=1):
        values = {key: value for key, value in row.items() if value is not None and not isinstance(value, bytes)}
        values = json.loads(json.dumps(values, default=str))  # dates and the like become text
        add_row(table, values, f"{path}:row {number}", lambda raw: name_columns(raw, column, table))
    return table


def name_columns(values: Any, column: str | None, table: Table) -> Any:
    """A row with its file name and caption under the keys file_name, text and texts; the other keys stay.

    column: the key of the caption; a list of captions is allowed. Raises InputError if the row lacks it.
    """
    if not isinstance(values, dict):
        return values
    values = dict(values)
    key = next((key for key in FILE_KEYS if isinstance(values.get(key), str)), None)
    if "file_name" not in values and key is not None:
        values["file_name"] = values.pop(key)
    if column is not None and column not in values and not values.get("skip_reason"):
        keys = ", ".join(key for key in values if key != "file_name")
        raise InputError(f"has no {column!r}, the caption column", allowed=keys or None)
    key = column or ("text" if "text" in values else next((k for k in CAPTION_KEYS if values.get(k)), "text"))
    if key != "text":
        values["text"] = values.get(key, "")
        if column is None:
            table.notes.append(f"its caption is {key!r}: there is no 'text'")
    if isinstance(values.get("text"), list):
        texts = [text for text in values["text"] if text]
        values |= {"text": texts[0] if texts else "", "texts": [*texts[1:], *values.get("texts", [])]}
    return values


def add_row(table: Table, raw: Any, where: str, parse: Callable[[Any], Any]) -> None:
    """Parse and check one row: add it if it is valid, and its problems."""
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
        if not any(problem.refused for problem in problems):
            table.rows.append(row)
    table.problems.extend(problems)
    if any(problem.refused for problem in problems):
        table.spoiled.update(guess_names(raw))


def guess_names(raw: Any) -> list[str]:
    """The image that an invalid row is about, so that it is not reported again as an image without a row."""
    if isinstance(raw, dict):
        return [nfc(str(raw[key])) for key in ("file_name", *FILE_KEYS) if key in raw]
    if not isinstance(raw, bytes):
        return []
    return [nfc(name) for name in re.findall(r'"file_name"\s*:\s*"([^"]*)"', raw.decode(errors="replace"))]


def parse_line(line: bytes) -> Any:
    """One JSON value, strictly: no NaN or infinity, no duplicate key, valid UTF-8."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise utf8_error(error) from error
    try:
        return json.loads(text, parse_constant=finite_float, parse_float=finite_float, object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 12) : error.pos + 12].strip()
        raise InputError(f"is not JSON ({error.msg} at column {error.colno}, near {near!r})", fix="Fix it.") from error
    except RecursionError as error:
        raise InputError("is nested too deep", allowed=f"{MAX_DEPTH} levels", fix="Flatten it.") from error
    except ValueError as error:  # an integer of more than 4300 digits
        raise InputError("holds a number that is too long", fix="Write it as text.") from error


def finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise InputError(f"holds the number {text[:24]}, which JSON does not have", fix="Write it as text.")
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two equal keys one would be lost silently."""
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise InputError(f"has the key {quoted(key)} twice", fix="Keep one of them.")
        values[key] = value
    return values


def utf8_error(error: UnicodeDecodeError, where: object = None) -> InputError:
    what = f"is not UTF-8 (byte 0x{error.object[error.start]:02x} at position {error.start})"
    return InputError(what, where=where, fix="Save the file as UTF-8.")


def check_values(values: Any) -> None:
    """What pydantic accepts and we cannot write back: no object, lone surrogates, deep nesting."""
    if not isinstance(values, dict):
        raise InputError(f"is {json_type(values)}, not an object", fix='Write {"file_name": ..., "text": ...}.')
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
            raise InputError("holds half a character (a lone surrogate)", fix="Write the whole character.")


def json_type(value: Any) -> str:
    return "null" if value is None else JSON_TYPES.get(type(value), type(value).__name__)


def explain_validation_error(detail: Any) -> tuple[str, str]:
    """One pydantic error: what is wrong, and how to fix it."""
    key = ".".join(str(part) for part in detail["loc"])
    given, allowed = json_type(detail["input"]), detail.get("ctx", {}).get("expected")
    messages = {
        "missing": (f"has no {key!r}", "Add the image's file name."),
        "string_type": (f"{key!r} is {given}, not a text", "Write text in double quotes."),
        "list_type": (f"{key!r} is {given}, not a list of texts", 'Write ["...", "..."].'),
        "literal_error": (
            f"{key!r} is {quoted(str(detail['input']))}; allowed: {allowed}",
            "Choose one of these, or leave the key out.",
        ),
    }
    return messages.get(detail["type"], (f"{key!r}: {detail['msg']}", ""))


def check_captions(row: Row) -> Iterator[Problem]:
    """A missing caption makes the row invalid, unless the image is to be skipped; strange characters are a warning."""
    annotation = row.annotation
    if not annotation.captions and not annotation.skip_reason:
        meant = next((key for key in annotation.model_extra or {} if key.lower() in CAPTION_NAMES), None)
        fix = f"Add --caption-column {meant}, if that is the caption." if meant else "Write one in 'text'."
        yield Problem(row.where, "has no caption", fix)
    for caption in annotation.captions:
        strange = sorted({char for char in caption if is_strange(char)})
        if strange:
            named = ", ".join(f"U+{ord(char):04X}" for char in strange[:5])
            fix = "Check how the caption was saved; it is used unchanged."
            yield Problem(row.where, f"its caption holds control characters ({named})", fix, refused=False)


def is_strange(char: str) -> bool:
    """Control characters other than white space, and the mark of a failed decoding."""
    return char == "\ufffd" or (unicodedata.category(char) == "Cc" and char not in "\t\n\r")


def read_csv(path: Path, column: str | None = None) -> Table:
    """Read metadata.csv: a header with file_name and text, then a row an image; `texts` holds a JSON list."""
    table = Table()
    csv.field_size_limit(MAX_CELL)
    try:
        reader = csv.DictReader(io.StringIO(decode_text(read_bytes(path), path), newline=""), strict=True)
        try:
            check_header(reader.fieldnames or [], path)
            for cells in reader:
                where = f"{path}:{reader.line_num}"
                add_row(table, cells, where, lambda raw: name_columns(from_cells(raw), column, table))
        except csv.Error as error:
            where = f"{path}:{reader.line_num}"
            raise InputError(f"is not CSV ({error})", where=where, fix="Fix the quotes.") from error
    except InputError as error:
        table.problems.append(Problem.of(error))
        table.broken = True
    return table


def check_header(columns: Sequence[str], path: Path) -> None:
    """The header must have file_name or one that means it, and no column twice."""
    if not {"file_name", *FILE_KEYS} & set(columns):
        near = suggest("file_name", columns).replace("did you mean", "found")
        what = f"its header has no column 'file_name'{near}"
        raise InputError(what, where=f"{path}:1", fix="Separate columns by commas.")
    if twice := [column for column in columns if list(columns).count(column) > 1]:
        raise InputError(f"has the column {twice[0]!r} twice", where=f"{path}:1", fix="Rename one of them.")


def from_cells(cells: dict[str | Any, Any]) -> dict[str, Any]:
    """One CSV row as the keys of an annotation."""
    if None in cells:
        raise InputError("has more cells than the header", fix="Put a caption that holds commas in double quotes.")
    values: dict[str, Any] = {key: cell for key, cell in cells.items() if cell}
    if "texts" in values:
        values["texts"] = parse_line(values["texts"].encode())
    return values


def decode_text(content: bytes, path: Path) -> str:
    """A text file in UTF-8 or UTF-16. Raises InputError with the line of the first bad byte."""
    content = to_utf8(content, path)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise utf8_error(error, f"{path}:{line}") from error


def to_utf8(content: bytes, path: Path) -> bytes:
    """The bytes of a text file without a byte order mark; UTF-16, as Windows writes it, becomes UTF-8.

    UTF-16 without a mark is known by its zeros: in most texts at least every fourth byte, and on one side alone.
    """
    sides = content[1::2].count(0), content[0::2].count(0)
    codec = None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        codec = "utf-16"
    elif min(sides) == 0 and 4 * max(sides) >= len(content) > 0:
        codec = "utf-16-le" if sides[0] else "utf-16-be"
    if codec is None:
        return content.removeprefix(b"\xef\xbb\xbf")
    try:
        return content.decode(codec).encode()
    except UnicodeDecodeError as error:
        raise InputError(f"is damaged UTF-16 ({error.reason})", where=path, fix="Save it as UTF-8.") from error


def read_caption_file(path: Path, file_name: str, *, per_line: bool = False) -> Table:
    """Read the caption file of an image: one caption, which may be wrapped.

    Its lines are captions of their own, the main one first, if each is a whole sentence, or with `per_line`.
    """
    table = Table()
    try:
        content = read_bytes(path)
        if len(content) > MAX_CAPTION_FILE:
            raise InputError("is larger than 1 MiB: not a caption", where=path, fix="Remove it or rename it.")
        lines = re.split(r"\r\n|\r|\n", decode_text(content, path))
    except InputError as error:
        return Table(problems=[Problem.of(error)])
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        table.problems.append(Problem(str(path), "holds no caption", "Write one."))
        return table
    texts = [text for _, text in numbered]
    if texts[1:] and not per_line:
        if all(map(WHOLE_SENTENCE.search, texts)):
            table.notes.append("its caption file has a whole sentence a line: each line is a caption")
        else:
            table.notes.append("its caption file has several lines: read as one caption (else: --captions-per-line)")
            texts = [" ".join(texts)]
    values = {"file_name": file_name, "text": texts[0], "texts": texts[1:]}
    add_row(table, values, f"{path}:{numbered[0][0]}", dict)
    return table

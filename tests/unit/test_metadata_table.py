"""Tables and caption files: valid rows are read, every invalid one is an error with its line."""

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pytest

from data import captioned_folder
from tests.captioned import caption, draw, names, only, read, reported, table


def test_a_csv_table(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", "b.png", "c.png")
    content = 'file_name,text,texts,quality,shelf\r\na.png,"one, ""two""\nthree",,good,7\r\n'
    content += 'b.png,bee,"[""a bee""]",,\r\nc.png,sea,,fine,\r\n'
    (tmp_path / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + content.encode())
    captioned = read(tmp_path)
    assert names(captioned) == ["a.png", "b.png"]
    first, second = captioned.samples
    assert (first.captions, first.annotation.texts) == (['one, "two"\nthree'], [])
    assert first.annotation.model_extra == {"shelf": "7"}
    assert second.captions == ["bee", "a bee"]
    assert reported(captioned) == [("metadata.csv:5", True)]
    assert "'good', 'fair' or 'poor'" in only(captioned).what


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b"files,text\na.png,x\n", 1, "'file_name'"),
        (b"file_name;text\na.png;x\n", 1, "'file_name;text'"),
        (b"file_name,text,text\na.png,x,y\n", 1, "'text' twice"),
        (b"file_name,text\na.png,x\nb.png,\xe9t\xe9\n", 3, "0xe9"),
        (b'file_name,text\na.png,"x\n', 1, "CSV"),
        (b"", 1, "'file_name'"),
    ],
)
def test_an_unreadable_csv_table_is_one_error_and_one_for_all_images(
    tmp_path: Path, content: bytes, line: int, words: str
) -> None:
    draw(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_bytes(content)
    captioned = read(tmp_path)
    assert reported(captioned) == [(f"metadata.csv:{line}", True), (".", True)]
    assert words in captioned.problems[0].what


def test_a_csv_row_with_an_unquoted_comma(tmp_path: Path) -> None:
    draw(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,red, round\n")
    captioned = read(tmp_path)
    assert reported(captioned) == [("metadata.csv:2", True)] and "quotes" in only(captioned).fix


BAD_ROWS: list[dict[str, Any]] = [
    ("{", "column 2"),
    ('{"file_name": "a.png" "text": "x"}', "column 23"),
    ("[]", "a list"),
    ("null", "null"),
    ('"a.png"', "a text"),
    (b'{"file_name": "a.png", "text": "\xe9t\xe9"}', "0xe9"),
    ('{"file_name": "a.png", "text": 5}', "'text' is a number"),
    ('{"file_name": "a.png", "text": null}', "'text' is null"),
    ('{"file_name": "a.png", "text": "x", "texts": "y"}', "'texts' is a text"),
    ('{"file_name": "a.png", "text": "x", "texts": ["y", 1]}', "'texts.1' is a number"),
    ('{"file_name": "a.png", "text": "x", "quality": "ok"}', "'good', 'fair' or 'poor'"),
    ('{"file_name": ["a.png"], "text": "x"}', "'file_name' is a list"),
    ('{"file_name": "a.png", "text": "x", "texts": null}', "'texts' is null"),
    ('{"file_name": "a.png", "text": "x", "type": 3}', "'type' is a number"),
    ('{"file_name": "a.png", "text": "x", "annotator": []}', "'annotator' is a list"),
    ('{"text": "x"}', "no 'file_name'"),
    ('{"file_name": "a.png", "text": "x", "text": "y"}', "'text' twice"),
    ('{"file_name": "a.png", "text": "x", "n": NaN}', "NaN"),
    ('{"file_name": "a.png", "text": "x", "n": -Infinity}', "-Infinity"),
    ('{"file_name": "a.png", "text": "x", "n": 1e999}', "1e999"),
    ('{"file_name": "a.png", "text": "x", "n": ' + "9" * 5000 + "}", "number"),
    ('{"file_name": "a.png", "text": "x", "n": ' + "[" * 99999 + "]" * 99999 + "}", "allowed: 32 levels"),
    ('{"file_name": "a.png", "text": "x", "n": ' + "[" * 40 + "]" * 40 + "}", "allowed: 32 levels"),
    ('{"file_name": "a.png", "text": "\\ud83d"}', "surrogate"),
    ('{"file_name": "a.png", "text": ""}', "no caption"),
    ('{"file_name": "a.png", "text": " \\n\\t ", "texts": [" "]}', "no caption"),
    ('{"file_name": "a.png"}', "no caption"),
    ('{"file_name": "a.png", "title": "x"}', "no caption"),
]
NAMELESS = ("{", "[]", "null", '"a.png"', '{"text": "x"}', '{"file_name": ["a.png"], "text": "x"}')


@pytest.mark.parametrize(("row", "words"), BAD_ROWS, ids=[str(row)[:60] for row, _ in BAD_ROWS])
def test_a_bad_row_is_an_error_with_its_line(tmp_path: Path, row: str | bytes, words: str) -> None:
    draw(tmp_path, "a.png", "b.png")
    table(tmp_path, {"file_name": "b.png", "text": "bee"}, "", row)
    captioned = read(tmp_path)
    # an image that the row names is not reported once more for having no row
    assert reported(captioned) == [("metadata.jsonl:3", True), *([("a.png", True)] if row in NAMELESS else [])]
    problem = captioned.problems[0]
    assert words in problem.what and problem.fix and len(problem.what) < 200
    assert names(captioned) == ["b.png"]


def test_a_caption_under_another_key(tmp_path: Path) -> None:
    draw(tmp_path, "a.png")
    table(tmp_path, {"file_name": "a.png", "caption": "x", "blip": "y"})
    captioned = read(tmp_path)
    (sample,) = captioned.samples
    assert (sample.captions, captioned.problems) == (["x"], [])
    assert sample.annotation.model_extra == {"caption": "x", "blip": "y"}  # both for templates
    assert any("'caption'" in note for note in captioned.caption_notes)
    assert read(tmp_path, caption_column="blip").samples[0].captions == ["y"]
    assert "'blib'" in read(tmp_path, caption_column="blib").problems[0].what
    table(tmp_path, {"file_name": "a.png", "title": "x"})
    assert "--caption-column title" in only(read(tmp_path)).fix


ROWS: list[dict[str, Any]] = [
    {"file_name": "a.png", "text": "one"},
    {"file_name": "b.png", "text": ["two", "zwei"], "shelf": 7},
]


@pytest.mark.parametrize("name", ["metadata.json", "metadata.parquet", "captions.json", "captions.jsonl"])
def test_tables_of_other_kinds(tmp_path: Path, name: str) -> None:
    draw(tmp_path, "a.png", "b.png")
    if name.endswith("parquet"):
        rows = [row | {"text": row["text"] if isinstance(row["text"], list) else [row["text"]]} for row in ROWS]
        datasets.Dataset.from_list(rows[::-1]).to_parquet(str(tmp_path / name))
    else:
        text = json.dumps(ROWS) if name.endswith("json") else "\n".join(map(json.dumps, ROWS))
        (tmp_path / name).write_text(text)
    captioned = read(tmp_path)
    assert ([sample.captions for sample in captioned.samples], captioned.problems) == ([["one"], ["two", "zwei"]], [])
    assert captioned.samples[1].annotation.model_extra == {"shelf": 7}


def test_a_json_object_of_file_names(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", "b.png")
    (tmp_path / "captions.json").write_text('{"a.png": "one", "b.png": {"text": "two", "type": "t"}}')
    captioned = read(tmp_path)
    assert ([sample.captions for sample in captioned.samples], captioned.problems) == ([["one"], ["two"]], [])


def test_a_csv_with_other_names_of_columns(tmp_path: Path) -> None:
    draw(tmp_path, "a.png")
    (tmp_path / "captions.csv").write_text("image,blip caption\na.png,a fridge\n")
    assert read(tmp_path, caption_column="blip caption").samples[0].captions == ["a fridge"]


@pytest.mark.parametrize(
    ("name", "content"), [("metadata.json", b"7"), ("metadata.json", b"[7]"), ("metadata.parquet", b"PAR1")]
)
def test_a_broken_table_of_another_kind(tmp_path: Path, name: str, content: bytes) -> None:
    draw(tmp_path, "a.png")
    (tmp_path / name).write_bytes(content)
    captioned = read(tmp_path)
    assert captioned.samples == []
    assert captioned.problems[0].where.startswith(str(tmp_path / name))


def test_every_mistake_of_a_row_is_listed(tmp_path: Path) -> None:
    draw(tmp_path, "a.png")
    table(tmp_path, {"file_name": "a.png", "text": 1, "texts": 2, "quality": "x"})
    assert reported(read(tmp_path)) == [("metadata.jsonl:1", True)] * 3


def test_byte_order_mark_crlf_blank_lines_and_strange_separators(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", "b.png")
    rows = '{"file_name": "a.png", "text": "one\u2028two\u0085"}\r\n\r\n{"file_name": "b.png", "text": "b"}'
    (tmp_path / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + rows.encode())
    captioned = read(tmp_path)
    assert (names(captioned), captioned.problems) == (["a.png", "b.png"], [])
    assert captioned.samples[1].where.endswith(":3")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_read(tmp_path: Path, encoding: str) -> None:
    draw(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "caf\u00e9"}\n', encoding=encoding)
    (tmp_path / "b.txt").write_text("\u732b, one cat of them", encoding=encoding)
    captioned = read(tmp_path)
    assert [sample.captions for sample in captioned.samples] == [["caf\u00e9"], ["\u732b, one cat of them"]]
    assert captioned.problems == []
    (tmp_path / "b.txt").write_bytes(b"\xff\xfea\0b")
    assert reported(read(tmp_path)) == [("b.txt", True)]


def test_unusual_values_are_kept(tmp_path: Path) -> None:
    draw(tmp_path, "a.png")
    odd = {"captions": ["kept"], "copy": 1, "model_config": {}, "where": -0.0, "big": 10**4000, "": "empty", "é": "😀"}
    table(tmp_path, {"file_name": "a.png", "text": "x"} | odd)
    captioned = read(tmp_path)
    assert captioned.problems == []
    assert captioned.samples[0].annotation.model_extra == odd
    assert captioned.samples[0].captions == ["x"]


def test_captions_with_strange_characters_are_kept_and_named(tmp_path: Path) -> None:
    draw(tmp_path, "a.png")
    text = "bell\x07 nul\x00 esc\x1b[31m broken\ufffd\tand\nfine"
    table(tmp_path, {"file_name": "a.png", "text": text})
    captioned = read(tmp_path)
    assert captioned.samples[0].captions == [text]
    assert reported(captioned) == [("metadata.jsonl:1", False)]
    assert "U+0000, U+0007, U+001B, U+FFFD" in only(captioned).what


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"", "a.txt"),
        (b"\xef\xbb\xbf \r\n\n", "a.txt"),
        (b"ok\n\xe9t\xe9", "a.txt:2"),
        (b"x" * ((1 << 20) + 1), "a.txt"),
    ],
    ids=["empty", "blank", "latin-1", "large"],
)
def test_a_bad_caption_file(tmp_path: Path, content: bytes, where: str) -> None:
    draw(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(content)
    captioned = read(tmp_path)
    assert captioned.samples == []
    assert reported(captioned) == [(where, True)] and only(captioned).fix


def test_a_caption_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path, "a.png", "b.png")
    caption(tmp_path, a="a", b="b")
    honest = os.open

    def guarded(path: object, *rest: int) -> int:  # the tests may run as root, who may read everything
        if str(path).endswith("a.txt"):
            raise PermissionError(13, "Permission denied")
        return honest(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", guarded)
    captioned = captioned_folder.read_folder(tmp_path)
    assert names(captioned) == ["b.png"]
    assert reported(captioned) == [("a.txt", True)] and "Permission denied" in only(captioned).what

"""A captioned folder is read without losing, changing or believing anything; what is wrong is listed all at once."""

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from PIL import Image

from data import captioned_folder, images
from data.captioned_folder import CaptionedFolder
from data.errors import InputError, Problem
from data.schema import Annotation

COMPOSED, APART = "caf\u00e9", "cafe\u0301"  # NFC and NFD of the same word


def draw(path: Path, colour: str = "teal", size: tuple[int, int] = (32, 24)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, "PNG")
    return path


def row(**values: object) -> Annotation:
    return Annotation.model_validate(values)


def table(folder: Path, *rows: object) -> None:
    """Write metadata.jsonl: rows that are bytes or text as they are, anything else as JSON."""
    lines = [
        row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows
    ]
    (folder / "metadata.jsonl").write_bytes(b"\n".join(lines) + b"\n")


def snapshot(folder: Path) -> dict[str, tuple[bytes | str, int]]:
    """Every entry below a folder with its content and time of change."""
    found: dict[str, tuple[bytes | str, int]] = {}
    for path in sorted(folder.rglob("*")):
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        found[str(path)] = (content, path.lstat().st_mtime_ns)
    return found


def read(folder: Path) -> CaptionedFolder:
    """store.read, with the promises that hold for every folder."""
    before = snapshot(folder)
    listing = captioned_folder.read_folder(folder)
    assert snapshot(folder) == before
    assert "".join(str(problem) for problem in listing.problems).isprintable()
    for sample in listing.samples:
        assert sample.sha256 == hashlib.sha256(sample.path.read_bytes()).hexdigest()
        assert sample.captions
    return listing


def said(listing: CaptionedFolder, folder: Path) -> list[str]:
    """The problems as a person reads them, without the folder's name."""
    return [str(problem).replace(f"{folder}/", "").replace(f"{folder}", "FOLDER") for problem in listing.problems]


def only(listing: CaptionedFolder, folder: Path) -> str:
    """The one problem there is."""
    lines = said(listing, folder)
    assert len(lines) == 1, lines
    return lines[0]


def names(listing: CaptionedFolder) -> list[str]:
    return [sample.annotation.file_name for sample in listing.samples]


# ---- where captions come from


def test_a_table(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", size=(40, 30))
    draw(tmp_path / "sub" / "b c.png")
    rows = [
        {"file_name": "sub/b c.png", "text": "a bee", "texts": ["one bee", "a bee"], "type": "bug", "quality": "good"},
        {"file_name": "a.png", "text": " an apple ", "licence": {"by": ["me", 1.5, None]}},
    ]
    table(tmp_path, *rows)
    listing = read(tmp_path)
    assert listing.problems == []
    assert (listing.found, listing.formats) == (2, {"PNG": 2})
    apple, bee = listing.samples
    assert (apple.where, bee.where) == (f"{tmp_path}/metadata.jsonl:2", f"{tmp_path}/metadata.jsonl:1")
    assert (apple.width, apple.height, apple.captions) == (40, 30, ["an apple"])
    assert bee.captions == ["a bee", "one bee"]
    assert apple.annotation.model_extra == {"licence": {"by": ["me", 1.5, None]}}
    assert bee.path == tmp_path / "sub" / "b c.png"


def test_pictures_with_a_reason_to_skip_are_no_samples(tmp_path: Path) -> None:
    for name in "abcd":
        draw(tmp_path / f"{name}.png")
    row = {"file_name": "a.png", "text": "an apple"}
    skipped = [{"file_name": f"{name}.png", "skip_reason": "off-topic"} for name in "cb"]
    table(tmp_path, row, *skipped, {"file_name": "d.png", "text": "a date", "skip_reason": "blurred"})
    listing = read(tmp_path)
    assert names(listing) == ["a.png"] and listing.found == 4 and listing.formats == {"PNG": 1}
    assert listing.skipped == {"off-topic": ["b.png", "c.png"], "blurred": ["d.png"]}
    what = "3 pictures are left out, as a 'skip_reason' is given (1 blurred, 2 off-topic; first 'b.png')"
    assert only(listing, tmp_path) == f"FOLDER: warning: {what}"


@pytest.mark.parametrize("suffix", [".txt", ".caption", ".TXT"])
def test_caption_files(tmp_path: Path, suffix: str) -> None:
    draw(tmp_path / "sub" / "a.b.png")
    (tmp_path / "sub" / f"a.b{suffix}").write_bytes("\ufeff\r\n a fridge \r\n\r\na cold caf\u00e9\rthird\n".encode())
    listing = read(tmp_path)
    assert listing.problems == []
    assert listing.samples[0].captions == ["a fridge", "a cold café", "third"]
    assert listing.samples[0].where == f"{tmp_path}/sub/a.b{suffix}:2"
    assert names(listing) == ["sub/a.b.png"]


def test_a_csv_table(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        draw(tmp_path / name)
    content = 'file_name,text,texts,quality,shelf\r\na.png,"one, ""two""\nthree",,good,7\r\n'
    content += 'b.png,bee,"[""a bee""]",,\r\nc.png,sea,,fine,\r\n'
    (tmp_path / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + content.encode())
    listing = read(tmp_path)
    assert names(listing) == ["a.png", "b.png"]
    assert listing.samples[0].captions == ['one, "two"\nthree']
    assert listing.samples[0].annotation.model_extra == {"shelf": "7"}
    assert listing.samples[0].annotation.texts == []
    assert listing.samples[1].captions == ["bee", "a bee"]
    assert only(listing, tmp_path) == (
        "metadata.csv:5: refused: 'quality' is 'fine'; allowed: 'good', 'fair' or 'poor'. "
        "Choose one, or leave the key out."
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"file,text\na.png,x\n", "metadata.csv:1: refused: its header has no column 'file_name'"),
        (
            b"file_name;text\na.png;x\n",
            "metadata.csv:1: refused: its header has no column 'file_name', found 'file_name;text'",
        ),
        (
            b"file_name,text,text\na.png,x,y\n",
            "metadata.csv:1: refused: has the column 'text' twice. Rename one of them.",
        ),
        (b"file_name,text\na.png,x\nb.png,\xe9t\xe9\n", "metadata.csv:3: refused: is not UTF-8 (byte 0xe9 at position"),
        (
            b'file_name,text\na.png,"x\n',
            "metadata.csv:1: refused: is not CSV (unexpected end of data). Mend the quotes.",
        ),
        (b"", "metadata.csv:1: refused: its header has no column 'file_name'"),
    ],
)
def test_a_csv_table_that_cannot_be_read(tmp_path: Path, content: bytes, expected: str) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_bytes(content)
    first, last = said(read(tmp_path), tmp_path)
    assert first.startswith(expected)
    assert last == "FOLDER: refused: 1 picture has no caption, since the table cannot be read. Mend the table first."


def test_a_csv_row_with_an_unquoted_comma(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,red, round\n")
    expected = (
        "metadata.csv:2: refused: has more cells than the header. Put a caption that holds commas in double quotes."
    )
    assert only(read(tmp_path), tmp_path) == expected


def test_the_table_wins_over_caption_files_and_says_so(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        draw(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"{name} beside\n")
    table(tmp_path, {"file_name": "a.png", "text": "table"}, {"file_name": "b.png", "text": "table"})
    with (tmp_path / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "d.png", "text": "d beside"}\n')
    listing = read(tmp_path)
    assert [sample.captions[0] for sample in listing.samples] == ["table", "table", "c beside", "d beside"]
    expected = (
        "a.txt: warning: says something else than the picture's row in the table, which is used "
        "(and 1 more such files). Remove the one that is out of date."
    )
    assert only(listing, tmp_path) == expected


def test_jsonl_wins_over_csv_and_txt_over_caption(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    table(tmp_path, {"file_name": "a.png", "text": "lines"})
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,cells\n")
    (tmp_path / "b.caption").write_text("from caption")
    (tmp_path / "b.txt").write_text("from txt")
    listing = read(tmp_path)
    assert [sample.captions for sample in listing.samples] == [["lines"], ["from txt"]]
    assert said(listing, tmp_path) == [
        "metadata.csv: warning: is not used: metadata.jsonl is. Remove one of the two.",
        "b.caption: warning: is not used: b.txt is. Keep one of the two.",
    ]


# ---- rows that are refused, each with its line


BAD_ROWS = [
    ("{", "is not JSON (Expecting property name enclosed in double quotes at column 2, near '{'). Mend the line."),
    ('{"file_name": "a.png" "text": "x"}', "is not JSON (Expecting ',' delimiter at column 23, near"),
    ("[]", 'is a list, not an object. Write {"file_name": ..., "text": ...}.'),
    ("null", "is null, not an object"),
    ('"a.png"', "is a text, not an object"),
    (
        b'{"file_name": "a.png", "text": "\xe9t\xe9"}',
        "is not UTF-8 (byte 0xe9 at position 32). Save the file as UTF-8.",
    ),
    ('{"file_name": "a.png", "text": 5}', "'text' is a number, not a text. Write text in double quotes."),
    ('{"file_name": "a.png", "text": null}', "'text' is null, not a text."),
    ('{"file_name": "a.png", "text": "x", "texts": "y"}', "'texts' is a text, not a list of texts."),
    ('{"file_name": "a.png", "text": "x", "texts": ["y", 1]}', "'texts.1' is a number, not a text."),
    ('{"file_name": "a.png", "text": "x", "quality": "ok"}', "'quality' is 'ok'; allowed: 'good', 'fair' or 'poor'."),
    ('{"file_name": ["a.png"], "text": "x"}', "'file_name' is a list, not a text."),
    ('{"text": "x"}', "has no 'file_name'. Write the picture's name in it."),
    ('{"file_name": "a.png", "text": "x", "text": "y"}', "has the key 'text' twice. Keep one of them."),
    (
        '{"file_name": "a.png", "text": "x", "n": NaN}',
        "holds NaN, which JSON does not know. Write null, or leave the key out.",
    ),
    ('{"file_name": "a.png", "text": "x", "n": -Infinity}', "holds -Infinity, which JSON does not know."),
    (
        '{"file_name": "a.png", "text": "x", "n": 1e999}',
        "holds the number 1e999, which is too large. Write it as text.",
    ),
    (
        '{"file_name": "a.png", "text": "x", "n": ' + "9" * 5000 + "}",
        "holds a number that is too long. Write it as text.",
    ),
    (
        '{"file_name": "a.png", "text": "x", "n": ' + "[" * 99999 + "]" * 99999 + "}",
        "is nested too deep; allowed: 32 levels.",
    ),
    (
        '{"file_name": "a.png", "text": "x", "n": ' + "[" * 40 + "]" * 40 + "}",
        "is nested too deep; allowed: 32 levels.",
    ),
    ('{"file_name": "a.png", "text": "\\ud83d"}', "holds half of a character (a lone surrogate)."),
    ('{"file_name": "a.png", "text": ""}', "has no caption. Write one in 'text'."),
    ('{"file_name": "a.png", "text": " \\n\\t ", "texts": [" "]}', "has no caption. Write one in 'text'."),
    ('{"file_name": "a.png"}', "has no caption. Write one in 'text'."),
    ('{"file_name": "a.png", "caption": "x"}', "has no caption. The key is 'text'; found 'caption'."),
]


@pytest.mark.parametrize(("row", "expected"), BAD_ROWS, ids=[str(row)[:60] for row, _ in BAD_ROWS])
def test_a_bad_row_is_refused_with_its_line(tmp_path: Path, row: str | bytes, expected: str) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    table(tmp_path, {"file_name": "b.png", "text": "bee"}, "", row)
    listing = read(tmp_path)
    about_row, *rest = said(listing, tmp_path)
    assert about_row.startswith(f"metadata.jsonl:3: refused: {expected}")
    assert len(about_row) < 250
    assert names(listing) == ["b.png"]
    known = b'"a.png"' in (row if isinstance(row, bytes) else row.encode()) and "[" not in str(row)[:15]
    assert rest == (
        []
        if known and row != '"a.png"'
        else [line for line in rest if line.startswith("a.png: refused: has no caption")]
    )


def test_every_mistake_of_a_row_is_listed(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    table(tmp_path, {"file_name": "a.png", "text": 1, "texts": 2, "quality": "x"})
    assert len(said(read(tmp_path), tmp_path)) == 3


@pytest.mark.parametrize(
    ("file_name", "expected"),
    [
        ("../a.png", "'../a.png' climbs out of the folder. Name a picture inside the folder."),
        ("sub/../../a.png", "'sub/../../a.png' climbs out of the folder."),
        ("..\\a.png", "'..\\\\a.png' climbs out of the folder."),
        ("/etc/passwd", "'/etc/passwd' is an absolute path. Write it relative to the folder."),
        ("C:\\pictures\\a.png", "'C:\\\\pictures\\\\a.png' is an absolute path."),
        ("c:/a.png", "'c:/a.png' is an absolute path."),
        ("~/a.png", "'~/a.png' is an absolute path."),
        ("", "'' is no file name. Write the picture's name in 'file_name'."),
        ("   ", "'   ' is no file name."),
        ("a\0.png", "'a\\x00.png' is no file name."),
        (".", "'.' is a folder, not a picture."),
        ("sub", "'sub' is a folder, not a picture. Name the picture in it."),
        ("gone.png", "there is no picture 'gone.png'. Mend the name, or remove the row."),
        ("A.PNG", "there is no picture 'A.PNG'. Write 'a.png', if that is meant."),
        ("a.jpg", "there is no picture 'a.jpg'. Write 'a.png', if that is meant."),
        ("sub\\b.png", "there is no picture 'sub\\\\b.png'. Write 'sub/b.png', if that is meant."),
        ("x" * 5000, "there is no picture 'xxx"),
        ("https://example.org/a.png", "there is no picture 'https://example.org/a.png'."),
        ("notes.md", "is not a picture that can be read"),
        ("a\nerror: b.png", "there is no picture 'a\\nerror: b.png'."),
        ("out/secret.png", "'out/secret.png' leads out of the folder through a link. Put the picture itself there."),
    ],
)
def test_a_file_name_must_name_a_picture_inside(tmp_path: Path, file_name: str, expected: str) -> None:
    folder = tmp_path / "set"
    draw(folder / "a.png")
    draw(folder / "sub" / "b.png")
    draw(tmp_path / "secret" / "secret.png")
    draw(tmp_path / "a.png")
    (folder / "notes.md").write_text("# not a picture")
    (folder / "out").symlink_to(tmp_path / "secret")
    good = [{"file_name": "a.png", "text": "a"}, {"file_name": "sub/b.png", "text": "b"}]
    table(folder, *good, {"file_name": file_name, "text": "x"})
    listing = read(folder)
    assert names(listing) == ["a.png", "sub/b.png"]
    about = [line for line in said(listing, folder) if not line.startswith("out: warning: is a link to a folder")]
    where = "notes.md" if file_name == "notes.md" else "metadata.jsonl:3"
    assert len(about) == 1
    assert about[0].startswith(f"{where}: refused: {expected}")
    assert len(about[0]) < 300


def test_a_second_row_for_a_picture_is_refused(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    table(tmp_path, {"file_name": "a.png", "text": "first"}, {"file_name": "./a.png", "text": "second"})
    listing = read(tmp_path)
    assert [sample.captions for sample in listing.samples] == [["first"]]
    expected = (
        "metadata.jsonl:2: refused: 'a.png' already has a row (metadata.jsonl:1). "
        "Keep one; further captions of a picture go into 'texts'."
    )
    assert only(listing, tmp_path) == expected


def test_byte_order_mark_crlf_blank_lines_and_strange_separators(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    rows = '{"file_name": "a.png", "text": "one\u2028two\u0085"}\r\n\r\n{"file_name": "b.png", "text": "b"}'
    (tmp_path / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + rows.encode())
    listing = read(tmp_path)
    assert names(listing) == ["a.png", "b.png"]
    assert listing.samples[1].where.endswith(":3")
    assert said(listing, tmp_path) == []


def test_utf16_is_named(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}', encoding="utf-16")
    assert said(read(tmp_path), tmp_path)[0] == "metadata.jsonl: refused: is UTF-16. Save it as UTF-8."
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "a.txt").write_text("x", encoding="utf-16")
    assert only(read(tmp_path), tmp_path) == "a.txt: refused: is UTF-16. Save it as UTF-8."


def test_unusual_values_are_kept(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    odd = {
        "captions": ["kept"],
        "copy": 1,
        "model_config": {},
        "where": -0.0,
        "big": 10**4000,
        "": "empty",
        "é": "\U0001f600",
    }
    table(tmp_path, {"file_name": "a.png", "text": "x"} | odd)
    listing = read(tmp_path)
    assert listing.problems == []
    assert listing.samples[0].annotation.model_extra == odd
    assert listing.samples[0].captions == ["x"]


# ---- captions


def test_captions_with_strange_characters_are_kept_and_named(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    text = "bell\x07 nul\x00 esc\x1b[31m broken\ufffd\tand\nfine"
    table(tmp_path, {"file_name": "a.png", "text": text})
    listing = read(tmp_path)
    assert listing.samples[0].captions == [text]
    expected = (
        "metadata.jsonl:1: warning: its caption holds characters that nobody types (U+0000, U+0007, U+001B, U+FFFD). "
        "Check how the caption was saved; it is used as it is."
    )
    assert only(listing, tmp_path) == expected


def test_ten_thousand_words_are_read(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("word " * 10_000)
    listing = read(tmp_path)
    assert listing.problems == []
    assert len(listing.samples[0].captions[0].split()) == 10_000


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "a.txt: refused: is empty: there is no caption in it. Write one caption a line."),
        (b"\xef\xbb\xbf \r\n\n", "a.txt: refused: is empty: there is no caption in it."),
        (b"ok\n\xe9t\xe9", "a.txt:2: refused: is not UTF-8 (byte 0xe9 at position 3). Save the file as UTF-8."),
        (b"x" * (1 << 20) + b"y", "a.txt: refused: is larger than 1 MiB, which is no caption. Remove it or rename it."),
    ],
)
def test_a_caption_file_that_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(content)
    listing = read(tmp_path)
    assert listing.samples == []
    assert only(listing, tmp_path).startswith(expected)


def test_a_caption_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    honest = os.open

    def guarded(path: object, *rest: int) -> int:  # the tests may run as root, who may read everything
        if str(path).endswith("a.txt"):
            raise PermissionError(13, "Permission denied")
        return honest(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", guarded)
    listing = captioned_folder.read_folder(tmp_path)
    assert names(listing) == ["b.png"]
    assert only(listing, tmp_path).startswith("a.txt: refused: cannot be read (Permission denied).")


def test_pictures_without_captions_and_captions_without_pictures(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "sub" / "b.png")
    (tmp_path / "lonely.txt").write_text("nobody")
    (tmp_path / "README.txt").write_text("about this set")
    listing = read(tmp_path)
    assert (listing.samples, listing.found) == ([], 2)
    assert said(listing, tmp_path) == [
        "a.png: refused: has no caption. Add a row to metadata.jsonl, or write a file 'a.txt' beside it.",
        "sub/b.png: refused: has no caption. Add a row to metadata.jsonl, or write a file 'b.txt' beside it.",
        "lonely.txt: warning: is a caption without a picture. Add the picture, or remove the caption.",
    ]


# ---- names


def test_accents_match_however_they_are_stored(tmp_path: Path) -> None:
    draw(tmp_path / f"{APART}.png")
    draw(tmp_path / f"{COMPOSED}2.png")
    (tmp_path / f"{APART}2.txt").write_text("beside")
    table(tmp_path, {"file_name": f"{COMPOSED}.png", "text": "in the table"})
    listing = read(tmp_path)
    assert listing.problems == []
    assert {sample.captions[0] for sample in listing.samples} == {"beside", "in the table"}
    assert all(sample.path.exists() for sample in listing.samples)


def test_names_that_differ_only_in_case_or_accents_are_read_and_named(tmp_path: Path) -> None:
    for name in ("Cat.png", "cat.png", f"{COMPOSED}.png", f"{APART}.png"):
        draw(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(name)
    listing = read(tmp_path)
    assert names(listing) == sorted(["Cat.png", "cat.png", f"{COMPOSED}.png", f"{APART}.png"])
    for sample in listing.samples:
        assert sample.captions == [sample.annotation.file_name]
    fix = "Rename one: macOS and Windows keep only one of them."
    assert said(listing, tmp_path) == [
        f"Cat.png: warning: differs from 'cat.png' only in case. {fix}",
        f"{APART}.png: warning: differs from '{COMPOSED}.png' only in how accents are stored. {fix}",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "two words.png",
        "line\nbreak.png",
        "tab\t.png",
        "quote'\".png",
        "😀.png",
        "-rf.png",
        "a,b.png",
        "x" * 240 + ".png",
    ],
)
def test_unusual_names(tmp_path: Path, name: str) -> None:
    draw(tmp_path / "in" / name)
    draw(tmp_path / "beside" / name)
    (tmp_path / "beside" / name).with_suffix(".txt").write_text("beside")
    table(tmp_path, {"file_name": f"in/{name}", "text": "in"})
    listing = read(tmp_path)
    assert listing.problems == []
    assert sorted(names(listing)) == [f"beside/{name}", f"in/{name}"]


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a")
    shutil.copy(tmp_path / "a.png", tmp_path / os.fsdecode(b"b\xff.png"))
    listing = captioned_folder.read_folder(tmp_path)
    assert names(listing) == ["a.png"]
    assert only(listing, tmp_path) == "b\\udcff.png: refused: its name is not UTF-8. Rename it."


def test_hidden_files_are_not_looked_at(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a")
    draw(tmp_path / ".hidden.png")
    draw(tmp_path / ".cache" / "b.png")
    (tmp_path / "._a.png").write_bytes(b"what macOS leaves on foreign disks")
    listing = read(tmp_path)
    assert (listing.found, listing.problems, names(listing)) == (1, [], ["a.png"])


def test_kinds_that_are_not_read_are_named(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "b.HEIC").write_bytes(b"x")
    table(tmp_path, {"file_name": "a.png", "text": "a"}, {"file_name": "b.HEIC", "text": "b"})
    listing = read(tmp_path)
    assert listing.found == 2
    assert (
        only(listing, tmp_path) == "b.HEIC: refused: is of a kind that is not read (.heic). Convert it to PNG or JPEG."
    )


def test_a_row_may_name_a_picture_with_any_suffix(tmp_path: Path) -> None:
    draw(tmp_path / "0a1b2c")
    table(tmp_path, {"file_name": "0a1b2c", "text": "a hash for a name"})
    listing = read(tmp_path)
    assert names(listing) == ["0a1b2c"]
    assert (
        only(listing, tmp_path)
        == "0a1b2c: warning: is a PNG file by its content, and used as such. Rename it to end in .png."
    )


# ---- links and folders


def test_links(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    draw(folder / "a.png")
    draw(tmp_path / "outside.png")
    (folder / "inside.png").symlink_to("a.png")
    (folder / "out.png").symlink_to(tmp_path / "outside.png")
    (folder / "dangling.png").symlink_to("gone.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "self").symlink_to(".")
    for name in ("a", "inside", "out", "dangling", "loop"):
        (folder / f"{name}.txt").write_text(name)
    listing = read(folder)
    assert names(listing) == ["a.png", "inside.png"]
    assert said(listing, folder) == [
        "dangling.png: refused: is a link that leads nowhere (No such file or directory). Put the file itself there.",
        "loop.png: refused: is a link that leads nowhere (Too many levels of symbolic links). "
        "Put the file itself there.",
        "out.png: refused: is a link that leads out of the folder. Put the file itself there.",
        "self: warning: is a link to a folder: it is not followed. Put the pictures themselves into the folder.",
    ]


def test_tables_and_captions_that_are_links_out_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    draw(folder / "a.png")
    (tmp_path / "secret.txt").write_text("root:x:0:0")
    (folder / "a.txt").symlink_to(tmp_path / "secret.txt")
    listing = read(folder)
    assert listing.samples == []
    assert only(listing, folder) == "a.txt: refused: is a link that leads out of the folder. Put the file itself there."
    (folder / "a.txt").unlink()
    (tmp_path / "other.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n')
    (folder / "metadata.jsonl").symlink_to(tmp_path / "other.jsonl")
    assert said(read(folder), folder)[0].startswith("metadata.jsonl: refused: is a link that leads out of the folder.")


def test_a_folder_reached_through_a_link_is_fine(tmp_path: Path) -> None:
    draw(tmp_path / "real" / "a.png")
    (tmp_path / "real" / "a.txt").write_text("a")
    (tmp_path / "link").symlink_to("real")
    assert names(captioned_folder.read_folder(tmp_path / "link")) == ["a.png"]


def test_odd_entries(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a")
    draw(tmp_path / "folder.png" / "b.png")
    (tmp_path / "folder.png" / "b.txt").write_text("b")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "pipe.txt").write_text("p")
    listing = captioned_folder.read_folder(tmp_path)
    assert names(listing) == ["a.png", "folder.png/b.png"]
    assert only(listing, tmp_path) == "pipe.png: refused: is not a file. Remove it, or rename it."


def test_a_table_further_down_is_named(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "a.png")
    table(tmp_path / "train", {"file_name": "a.png", "text": "a"})
    listing = read(tmp_path)
    first = next(line for line in said(listing, tmp_path) if "metadata.jsonl: warning" in line)
    assert first.startswith(
        "train/metadata.jsonl: warning: is not read: it is not at the top of the folder. Give train as"
    )


def test_a_sub_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "locked").mkdir()
    honest = os.scandir

    def guarded(path: str | Path) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return honest(path)

    monkeypatch.setattr(os, "scandir", guarded)
    listing = captioned_folder.read_folder(tmp_path)
    assert names(listing) == ["a.png"]
    assert only(listing, tmp_path) == "locked: refused: cannot be listed (Permission denied). Check its permissions."


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: None, "no such folder. Check the path."),
        (lambda path: path.write_text("x"), "is a file, not a folder. Give the folder that holds the pictures."),
        (lambda path: path.mkdir(), "holds no picture. Give a folder of pictures with metadata.jsonl, or with a .txt"),
    ],
)
def test_a_folder_of_no_use(tmp_path: Path, make: object, expected: str) -> None:
    path = tmp_path / "set"
    make(path)  # type: ignore[operator]
    with pytest.raises(InputError) as caught:
        captioned_folder.read_folder(path)
    assert str(caught.value).startswith(f"{path}: {expected}")


# ---- pictures


def test_bad_pictures_are_refused_and_named_once(tmp_path: Path) -> None:
    draw(tmp_path / "good.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(draw(tmp_path / "good.png", size=(256, 256)).read_bytes()[:200])
    draw(tmp_path / "tiny.png", size=(1, 1))
    draw(tmp_path / "long.png", size=(100, 20))
    all_names = ["cut.png", "empty.png", "good.png", "long.png", "tiny.png"]
    table(tmp_path, *({"file_name": name, "text": name} for name in all_names))
    listing = read(tmp_path)
    assert names(listing) == ["good.png", "long.png"]
    assert listing.found == 5
    assert [line.split(": ")[:2] for line in said(listing, tmp_path)] == [
        ["cut.png", "refused"],
        ["empty.png", "refused"],
        ["long.png", "warning"],
        ["tiny.png", "refused"],
    ]


def test_what_opening_does_is_counted(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGBA", (32, 32), (255, 0, 0, 100)).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("red")
    listing = read(tmp_path)
    assert listing.notes == {"transparency is shown on white": 2}
    assert listing.problems == []


# ---- writing


def test_what_was_read_is_written_back_whole(tmp_path: Path) -> None:
    source, copy, again = tmp_path / "source", tmp_path / "copy", tmp_path / "again"
    rows = [
        {
            "file_name": "a.png",
            "text": "x\u2028y\x85z",
            "texts": ["z"],
            "type": None,
            "Ünknown": [1, {"b": None}],
            "f": 0.1,
        },
        {"file_name": "sub/b c.png", "text": '😀 "quoted" \\ back\nslash', "quality": "poor", "big": 10**30, "t": True},
    ]
    for row in rows:
        draw(source / str(row["file_name"]), colour="red")
    table(source, *rows)
    listing = read(source)
    captioned_folder.write_folder(copy, ((sample.path, sample.annotation) for sample in listing.samples))
    written = (copy / "metadata.jsonl").read_bytes()
    assert [json.loads(line) for line in written.split(b"\n") if line] == rows
    assert len(written.decode().splitlines()) == 2
    second = read(copy)
    assert [sample.annotation for sample in second.samples] == [sample.annotation for sample in listing.samples]
    assert [sample.sha256 for sample in second.samples] == [sample.sha256 for sample in listing.samples]
    captioned_folder.write_folder(again, ((sample.path, sample.annotation) for sample in second.samples))
    assert (again / "metadata.jsonl").read_bytes() == written
    assert (again / "sub" / "b c.png").read_bytes() == (source / "sub" / "b c.png").read_bytes()


def test_pictures_in_memory_and_captions_beside(tmp_path: Path) -> None:
    picture = Image.linear_gradient("L").convert("RGB")
    annotation = row(file_name="a.png", text="one\ntwo", texts=["three"])
    for name in ("first", "second"):
        captioned_folder.write_folder(tmp_path / name, [(picture, annotation)], captions_beside=True)
    assert (tmp_path / "first" / "a.txt").read_text() == "one two\nthree\n"
    assert (tmp_path / "first" / "a.png").read_bytes() == (tmp_path / "second" / "a.png").read_bytes()
    assert images.open_image(tmp_path / "first" / "a.png").tobytes() == picture.tobytes()
    listing = read(tmp_path / "first")
    assert listing.samples[0].captions == ["one\ntwo", "three"]


@pytest.mark.parametrize(
    ("file_names", "expected"),
    [
        (["a.png", "a.png"], "two pictures would be written as 'a.png'. Rename one of them."),
        (["a.png", "A.png"], "two pictures would be written as 'A.png'."),
        ([f"{COMPOSED}.png", f"{APART}.png"], "two pictures would be written as"),
        (["../a.png"], "'../a.png' climbs out of the folder."),
        (["/tmp/a.png"], "'/tmp/a.png' is an absolute path."),
        (["metadata.jsonl"], "'metadata.jsonl' is the table's own name. Rename the picture."),
    ],
)
def test_names_that_cannot_be_written_leave_nothing_behind(
    tmp_path: Path, file_names: list[str], expected: str
) -> None:
    rows = [(Image.new("RGB", (32, 32)), row(file_name=name, text="x")) for name in file_names]
    with pytest.raises(InputError) as caught:
        captioned_folder.write_folder(tmp_path / "set", rows)
    assert str(caught.value).startswith(expected)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match=r"exists and is not empty\. Give the name of a new folder"):
        captioned_folder.write_folder(tmp_path, [])
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_failure_half_way_leaves_nothing(tmp_path: Path) -> None:
    rows = [
        (Image.new("RGB", (32, 32)), row(file_name="a.png", text="x")),
        (tmp_path / "gone.png", row(file_name="b.png")),
    ]
    with pytest.raises(InputError, match="cannot be written"):
        captioned_folder.write_folder(tmp_path / "set", rows)
    assert list(tmp_path.iterdir()) == []


def test_reading_from_several_threads_at_once(tmp_path: Path) -> None:
    for index in range(12):
        draw(tmp_path / f"{index:02}.png")
        (tmp_path / f"{index:02}.txt").write_text(str(index))
    found: list[CaptionedFolder] = []
    threads = [threading.Thread(target=lambda: found.append(captioned_folder.read_folder(tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tuple(names(listing)) for listing in found}) == 1
    assert all(len(listing.samples) == 12 and not listing.problems for listing in found)


def test_a_problem_is_one_line() -> None:
    problem = Problem("a\nb.png:3", "is\x1b[31m wrong", "Mend\nit.")
    assert str(problem) == "a\\nb.png:3: refused: is\\x1b[31m wrong. Mend\\nit."
    assert json.loads(json.dumps(problem.fields()))["refused"] is True

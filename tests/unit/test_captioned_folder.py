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
    """read_folder, with the promises that hold for every folder."""
    before = snapshot(folder)
    listing = captioned_folder.read_folder(folder)
    assert snapshot(folder) == before
    assert "".join(str(problem) for problem in listing.problems).isprintable()
    for sample in listing.samples:
        assert sample.sha256 == hashlib.sha256(sample.path.read_bytes()).hexdigest()
        assert sample.captions
    return listing


def reported(listing: CaptionedFolder, folder: Path) -> list[tuple[str, bool]]:
    """(where, below the folder; whether it is an error) of each problem."""
    return [
        (problem.where.replace(f"{folder}/", "").replace(f"{folder}", "."), problem.refused)
        for problem in listing.problems
    ]


def only(listing: CaptionedFolder) -> Problem:
    """The one problem there is."""
    (problem,) = listing.problems
    return problem


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


def test_images_with_a_reason_to_skip_are_no_samples(tmp_path: Path) -> None:
    for name in "abcd":
        draw(tmp_path / f"{name}.png")
    row = {"file_name": "a.png", "text": "an apple"}
    skipped = [{"file_name": f"{name}.png", "skip_reason": "off-topic"} for name in "cb"]
    table(tmp_path, row, *skipped, {"file_name": "d.png", "text": "a date", "skip_reason": "blurred"})
    listing = read(tmp_path)
    assert names(listing) == ["a.png"] and listing.found == 4 and listing.formats == {"PNG": 1}
    assert listing.skipped == {"off-topic": ["b.png", "c.png"], "blurred": ["d.png"]}
    assert reported(listing, tmp_path) == [(".", False)]
    assert all(word in only(listing).what for word in ("3 images", "1 blurred", "2 off-topic", "'b.png'"))


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
    assert reported(listing, tmp_path) == [("metadata.csv:5", True)]
    assert "'good', 'fair' or 'poor'" in only(listing).what


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b"file,text\na.png,x\n", 1, "'file_name'"),
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
    draw(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_bytes(content)
    listing = read(tmp_path)
    assert reported(listing, tmp_path) == [(f"metadata.csv:{line}", True), (".", True)]
    assert words in listing.problems[0].what


def test_a_csv_row_with_an_unquoted_comma(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,red, round\n")
    listing = read(tmp_path)
    assert reported(listing, tmp_path) == [("metadata.csv:2", True)]
    assert "quotes" in only(listing).fix


def test_the_table_wins_over_caption_files_and_says_so(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        draw(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"{name} beside\n")
    table(tmp_path, {"file_name": "a.png", "text": "table"}, {"file_name": "b.png", "text": "table"})
    with (tmp_path / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "d.png", "text": "d beside"}\n')
    listing = read(tmp_path)
    assert [sample.captions[0] for sample in listing.samples] == ["table", "table", "c beside", "d beside"]
    assert reported(listing, tmp_path) == [("a.txt", False)]
    assert "1 more" in only(listing).what


def test_jsonl_wins_over_csv_and_txt_over_caption(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    table(tmp_path, {"file_name": "a.png", "text": "lines"})
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,cells\n")
    (tmp_path / "b.caption").write_text("from caption")
    (tmp_path / "b.txt").write_text("from txt")
    listing = read(tmp_path)
    assert [sample.captions for sample in listing.samples] == [["lines"], ["from txt"]]
    assert reported(listing, tmp_path) == [("metadata.csv", False), ("b.caption", False)]


# ---- rows that are refused, each with its line


BAD_ROWS = [
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
    ('{"file_name": "a.png", "caption": "x"}', "no caption"),
]
NAMELESS = ("{", "[]", "null", '"a.png"', '{"text": "x"}', '{"file_name": ["a.png"], "text": "x"}')


@pytest.mark.parametrize(("row", "words"), BAD_ROWS, ids=[str(row)[:60] for row, _ in BAD_ROWS])
def test_a_bad_row_is_an_error_with_its_line(tmp_path: Path, row: str | bytes, words: str) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    table(tmp_path, {"file_name": "b.png", "text": "bee"}, "", row)
    listing = read(tmp_path)
    # an image that the row names is not reported once more for having no row
    missing = [("a.png", True)] if row in NAMELESS else []
    assert reported(listing, tmp_path) == [("metadata.jsonl:3", True), *missing]
    assert words in listing.problems[0].what and listing.problems[0].fix
    assert len(str(listing.problems[0])) < 250 + len(str(tmp_path))
    assert names(listing) == ["b.png"]


def test_a_caption_under_another_key_is_pointed_out(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    table(tmp_path, {"file_name": "a.png", "caption": "x"})
    assert "'caption'" in only(read(tmp_path)).fix and "'text'" in only(read(tmp_path)).fix


def test_every_mistake_of_a_row_is_listed(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    table(tmp_path, {"file_name": "a.png", "text": 1, "texts": 2, "quality": "x"})
    assert reported(read(tmp_path), tmp_path) == [("metadata.jsonl:1", True)] * 3


@pytest.mark.parametrize(
    ("file_name", "words"),
    [
        ("../a.png", "out of the folder"),
        ("sub/../../a.png", "out of the folder"),
        ("..\\a.png", "out of the folder"),
        ("/etc/passwd", "absolute"),
        ("C:\\images\\a.png", "absolute"),
        ("c:/a.png", "absolute"),
        ("~/a.png", "absolute"),
        ("", "file name"),
        ("   ", "file name"),
        ("a\0.png", "file name"),
        (".", "is a folder"),
        ("sub", "is a folder"),
        ("gone.png", "'gone.png'"),
        ("A.PNG", "fix: 'a.png'"),
        ("a.jpg", "fix: 'a.png'"),
        ("sub\\b.png", "fix: 'sub/b.png'"),
        ("x" * 5000, "'xxx"),
        ("https://example.org/a.png", "no image"),
        ("a\nerror: b.png", "\\n"),
        ("out/secret.png", "outside"),
    ],
)
def test_a_file_name_must_name_an_image_inside(tmp_path: Path, file_name: str, words: str) -> None:
    folder = tmp_path / "set"
    draw(folder / "a.png")
    draw(folder / "sub" / "b.png")
    draw(tmp_path / "secret" / "secret.png")
    draw(tmp_path / "a.png")
    (folder / "out").symlink_to(tmp_path / "secret")
    good = [{"file_name": "a.png", "text": "a"}, {"file_name": "sub/b.png", "text": "b"}]
    table(folder, *good, {"file_name": file_name, "text": "x"})
    listing = read(folder)
    assert names(listing) == ["a.png", "sub/b.png"]
    assert sorted(reported(listing, folder)) == [("metadata.jsonl:3", True), ("out", False)]
    problem = next(problem for problem in listing.problems if problem.refused)
    assert words.removeprefix("fix: ") in (problem.fix if words.startswith("fix: ") else problem.what)
    assert problem.fix and len(problem.what) < 300


def test_a_row_about_a_file_that_is_no_image(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "notes.md").write_text("# not an image")
    table(tmp_path, {"file_name": "a.png", "text": "a"}, {"file_name": "notes.md", "text": "x"})
    listing = read(tmp_path)
    assert (names(listing), reported(listing, tmp_path)) == (["a.png"], [("notes.md", True)])


def test_a_second_row_for_an_image_is_an_error(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    table(tmp_path, {"file_name": "a.png", "text": "first"}, {"file_name": "./a.png", "text": "second"})
    listing = read(tmp_path)
    assert [sample.captions for sample in listing.samples] == [["first"]]
    assert reported(listing, tmp_path) == [("metadata.jsonl:2", True)]
    assert "metadata.jsonl:1" in only(listing).what


def test_byte_order_mark_crlf_blank_lines_and_strange_separators(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    rows = '{"file_name": "a.png", "text": "one\u2028two\u0085"}\r\n\r\n{"file_name": "b.png", "text": "b"}'
    (tmp_path / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + rows.encode())
    listing = read(tmp_path)
    assert names(listing) == ["a.png", "b.png"]
    assert listing.samples[1].where.endswith(":3")
    assert listing.problems == []


def test_utf16_is_named(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}', encoding="utf-16")
    first = read(tmp_path).problems[0]
    assert first.where.endswith("metadata.jsonl") and "UTF-16" in first.what and "UTF-8" in first.fix
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "a.txt").write_text("x", encoding="utf-16")
    assert reported(read(tmp_path), tmp_path) == [("a.txt", True)]


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
    assert reported(listing, tmp_path) == [("metadata.jsonl:1", False)]
    assert "U+0000, U+0007, U+001B, U+FFFD" in only(listing).what


def test_ten_thousand_words_are_read(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("word " * 10_000)
    listing = read(tmp_path)
    assert listing.problems == []
    assert len(listing.samples[0].captions[0].split()) == 10_000


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
def test_a_caption_file_that_is_an_error(tmp_path: Path, content: bytes, where: str) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(content)
    listing = read(tmp_path)
    assert listing.samples == []
    assert reported(listing, tmp_path) == [(where, True)] and only(listing).fix


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
    assert reported(listing, tmp_path) == [("a.txt", True)] and "Permission denied" in only(listing).what


def test_images_without_captions_and_captions_without_images(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "sub" / "b.png")
    (tmp_path / "lonely.txt").write_text("nobody")
    (tmp_path / "README.txt").write_text("about this set")
    listing = read(tmp_path)
    assert (listing.samples, listing.found) == ([], 2)
    assert reported(listing, tmp_path) == [("a.png", True), ("sub/b.png", True), ("lonely.txt", False)]
    assert "'b.txt'" in listing.problems[1].fix


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
    assert reported(listing, tmp_path) == [("Cat.png", False), (f"{APART}.png", False)]
    assert "'cat.png'" in listing.problems[0].what and f"'{COMPOSED}.png'" in listing.problems[1].what


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
    assert str(only(listing)).startswith(f"{tmp_path}/b\\udcff.png: ") and only(listing).refused


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
    assert reported(listing, tmp_path) == [("b.HEIC", True)] and ".heic" in only(listing).what


def test_a_row_may_name_an_image_with_any_suffix(tmp_path: Path) -> None:
    draw(tmp_path / "0a1b2c")
    table(tmp_path, {"file_name": "0a1b2c", "text": "a hash for a name"})
    listing = read(tmp_path)
    assert names(listing) == ["0a1b2c"]
    assert reported(listing, tmp_path) == [("0a1b2c", False)] and "PNG" in only(listing).what


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
    assert sorted(reported(listing, folder)) == [
        ("dangling.png", True),
        ("loop.png", True),
        ("out.png", True),
        ("self", False),
    ]
    dangling, loop = sorted(listing.problems, key=lambda problem: problem.where)[:2]
    assert "No such file" in dangling.what and "Too many levels" in loop.what


def test_tables_and_captions_that_are_links_out_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    draw(folder / "a.png")
    (tmp_path / "secret.txt").write_text("root:x:0:0")
    (folder / "a.txt").symlink_to(tmp_path / "secret.txt")
    listing = read(folder)
    assert listing.samples == []
    assert reported(listing, folder) == [("a.txt", True)]
    (folder / "a.txt").unlink()
    (tmp_path / "other.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n')
    (folder / "metadata.jsonl").symlink_to(tmp_path / "other.jsonl")
    assert reported(read(folder), folder)[0] == ("metadata.jsonl", True)


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
    assert reported(listing, tmp_path) == [("pipe.png", True)]


def test_a_table_further_down_is_named(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "a.png")
    table(tmp_path / "train", {"file_name": "a.png", "text": "a"})
    assert ("train/metadata.jsonl", False) in reported(read(tmp_path), tmp_path)


def test_a_sub_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "locked").mkdir()
    honest = os.scandir

    def guarded(path: str | Path) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return honest(path)

    monkeypatch.setattr(os, "scandir", guarded)
    listing = captioned_folder.read_folder(tmp_path)
    assert names(listing) == ["a.png"]
    assert reported(listing, tmp_path) == [("locked", True)] and "Permission denied" in only(listing).what


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no such folder"),
        (lambda path: path.write_text("x"), "is a file"),
        (lambda path: path.mkdir(), "no image"),
    ],
)
def test_an_unusable_folder(tmp_path: Path, make: object, words: str) -> None:
    path = tmp_path / "set"
    make(path)  # type: ignore[operator]
    with pytest.raises(InputError) as caught:
        captioned_folder.read_folder(path)
    assert caught.value.where == path and words in caught.value.what and caught.value.fix


# ---- images


def test_bad_images_are_refused_and_named_once(tmp_path: Path) -> None:
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
    assert reported(listing, tmp_path) == [
        ("cut.png", True),
        ("empty.png", True),
        ("long.png", False),
        ("tiny.png", True),
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


def test_images_in_memory_and_captions_beside(tmp_path: Path) -> None:
    image = Image.linear_gradient("L").convert("RGB")
    annotation = row(file_name="a.png", text="one\ntwo", texts=["three"])
    for name in ("first", "second"):
        captioned_folder.write_folder(tmp_path / name, [(image, annotation)], captions_beside=True)
    assert (tmp_path / "first" / "a.txt").read_text() == "one two\nthree\n"
    assert (tmp_path / "first" / "a.png").read_bytes() == (tmp_path / "second" / "a.png").read_bytes()
    assert images.open_image(tmp_path / "first" / "a.png").tobytes() == image.tobytes()
    listing = read(tmp_path / "first")
    assert listing.samples[0].captions == ["one\ntwo", "three"]


@pytest.mark.parametrize(
    "file_names",
    [["a.png", "a.png"], ["a.png", "A.png"], [f"{COMPOSED}.png", f"{APART}.png"], ["../a.png"], ["/tmp/a.png"],
     ["metadata.jsonl"]],
)  # fmt: skip
def test_names_that_cannot_be_written_leave_nothing_behind(tmp_path: Path, file_names: list[str]) -> None:
    rows = [(Image.new("RGB", (32, 32)), row(file_name=name, text="x")) for name in file_names]
    with pytest.raises(InputError) as caught:
        captioned_folder.write_folder(tmp_path / "set", rows)
    assert file_names[-1] in caught.value.what and caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(InputError):
        captioned_folder.write_folder(tmp_path, [])
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_failure_half_way_leaves_nothing(tmp_path: Path) -> None:
    rows = [
        (Image.new("RGB", (32, 32)), row(file_name="a.png", text="x")),
        (tmp_path / "gone.png", row(file_name="b.png")),
    ]
    with pytest.raises(InputError):
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
    problem = Problem("a\nb.png:3", "is\x1b[31m wrong", "Fix\nit.")
    assert str(problem) == "a\\nb.png:3: error: is\\x1b[31m wrong. Fix\\nit."
    assert json.loads(json.dumps(problem.fields()))["refused"] is True

"""Existing captions: every supported form, its typical mistakes, and what is reported about them."""

import json
from pathlib import Path

import pytest

from annotation.cli import run_import
from annotation.config import ImportOptions
from annotation.drafts import add_short_names, from_files, read_captions, read_drafts
from annotation.images import images_by_sha256
from data.atomic_io import file_sha256
from data.errors import InputError, Problem
from tests.answers import project


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return project(tmp_path, count=3)


def drafted(work: Path, source: Path) -> dict[str, str]:
    """File name -> draft, after an import."""
    assert run_import(ImportOptions(source=source)) == 0
    names = {image.sha256: image.file_name for image in images_by_sha256(Path("pictures")).values()}
    return {names[key]: draft.text for key, draft in read_drafts(work).items()}


def test_a_folder_of_taggui_or_kohya(work: Path, tmp_path: Path) -> None:
    folder = tmp_path / "10_foxes"
    (folder / "sub").mkdir(parents=True)
    for number, suffix in ((0, ".txt"), (1, ".caption")):  # under other names: the content counts
        (folder / f"copy{number}.png").write_bytes((tmp_path / "pictures" / f"00{number}.png").read_bytes())
        (folder / f"copy{number}{suffix}").write_text("red fox, 1girl\nsecond line\n")
    (folder / "sub" / "002.txt").write_text("a caption without its image")
    (folder / "readme.txt").write_text("not a caption")
    assert drafted(work, folder) == {
        "000.png": "red fox, 1girl", "001.png": "red fox, 1girl", "002.png": "a caption without its image"
    }  # fmt: skip


def test_caption_files_alone(work: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "001.txt").write_text("\ufeffa fox\r\n", encoding="utf-8")
    (folder / "009.txt").write_text("of no image here")
    assert drafted(work, folder) == {"001.png": "a fox"}


def test_kohyas_json(work: Path, tmp_path: Path) -> None:
    file = tmp_path / "meta.json"
    entries = {
        "C:\\train\\10_x\\000": {"caption": " a  fox ", "tags": "fox"},
        "/train/001.png": {"tags": "cat, blue"},
        "002": {"train_resolution": [512, 512]},
    }
    file.write_text(json.dumps(entries))
    assert drafted(work, file) == {"000.png": "a fox", "001.png": "cat, blue"}


def test_tables(work: Path, tmp_path: Path) -> None:
    digest = file_sha256(tmp_path / "pictures" / "002.png")
    (tmp_path / "t.csv").write_text(f"file_name,text,sha256\nelsewhere.png,by content,{digest}\n001.png,by name,\n")
    assert drafted(work, tmp_path / "t.csv") == {"002.png": "by content", "001.png": "by name"}
    (tmp_path / "only a table").mkdir()
    (tmp_path / "only a table" / "metadata.jsonl").write_text('{"file_name": "x/000.png", "text": "a table"}\n')
    assert drafted(work, tmp_path / "only a table")["000.png"] == "a table"


def test_a_label_studio_export(work: Path, tmp_path: Path) -> None:
    result = [{"from_name": "text", "type": "textarea", "value": {"text": ["a fox"]}}]
    task = {"id": 1, "data": {"image": "/data/local-files/?d=x/000.png"}, "annotations": [{"id": 1, "result": result}]}
    (tmp_path / "pictures" / "export.json").write_text(json.dumps([task]))
    assert drafted(work, tmp_path / "pictures" / "export.json") == {"000.png": "a fox"}


def test_further_captions_are_counted(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = [
        {"file_name": "000.png", "text": "one", "texts": ["two", "three", "one"]},
        {"file_name": "001.png", "text": "four", "texts": ["five"]},
        {"file_name": "001.png", "text": "six"},
        {"file_name": "002.png", "skip_reason": "blurred"},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    assert drafted(work, tmp_path / "t.jsonl") == {"000.png": "one", "001.png": "four"}
    assert "t.jsonl: warning: 4 further captions of 2 images" in capsys.readouterr().out
    (tmp_path / "k.json").write_text(json.dumps({"000": {"caption": "a fox", "tags": "fox"}}))
    drafted(work, tmp_path / "k.json")
    assert "k.json: warning: 1 further caption of 1 image left out" in capsys.readouterr().out


def test_names_that_two_folders_share_are_not_shortened(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.txt").write_text(f"in {folder}")
    problems: list[Problem] = []
    captions = {key: text for key, (text,) in read_captions(tmp_path, problems)[1]}
    assert dict(add_short_names(captions, problems)) == {"a/1": "in a", "b/1": "in b"}
    assert [(problem.refused, problem.where) for problem in problems] == [(False, "a/1"), (False, "b/1")]


def test_climbing_and_hostile_names_are_names_only(work: Path, tmp_path: Path) -> None:
    entries = {"../../../etc/passwd": {"caption": "x"}, "..\\000": {"caption": "<script>"}, "\x00": {"caption": "y"}}
    (tmp_path / "k.json").write_text(json.dumps(entries))
    assert drafted(work, tmp_path / "k.json") == {"000.png": "<script>"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.json", "{", "JSON"),
        ("x.json", "3", "kohya"),
        ("x.json", '{"a": 1}', "kohya"),
        ("x.json", '{"a": {}}', "no usable caption"),
        ("x.json", "[1]", "list of tasks"),
        ("x.csv", "a,b\n1,2\n", "no usable caption; first: "),
        ("x.parquet", "no parquet", "Parquet"),
        ("x.xml", "<x/>", ".xml"),
        ("x", "", "suffix"),
        (None, "", "no such file"),
        ("", "", "neither"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str | None, content: str, words: str) -> None:
    path = tmp_path / "nowhere" if name is None else tmp_path / "source" / name
    (tmp_path / "source").mkdir()
    if name:
        path.write_text(content)
    with pytest.raises(InputError) as error:
        from_files(path, [])
    assert str(error.value.where) == str(path) and words in str(error.value)


def test_a_parquet_file_with_other_columns(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"image": ["x"], "text": ["y"]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="file_name") as error:
        from_files(tmp_path / "x.parquet", [])
    assert "image, text" in str(error.value.allowed)

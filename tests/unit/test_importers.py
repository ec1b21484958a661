"""Hugging Face datasets and Label Studio exports become captioned folders; what is left out is said."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data import captioned_folder
from data.errors import InputError
from data.importers import import_folder


def encoded(colour: str, kind: str = "PNG", size: int = 32) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(content, kind)
    return content.getvalue()


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def draw(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded("teal"))


# ---- Hugging Face


def dataset(columns: dict[str, list[Any]], image: str = "image") -> Any:
    """A datasets.Dataset with one column of images, given as encoded bytes."""
    import datasets

    cells = columns | {image: [cell and {"bytes": cell, "path": None} for cell in columns[image]]}
    return datasets.Dataset.from_dict(cells).cast_column(image, datasets.Image())


def test_a_dataset_keeps_bytes_captions_and_columns(tmp_path: Path) -> None:
    pictures = [encoded("red"), encoded("blue", "JPEG"), encoded("lime", "WEBP")]
    columns = {"image": pictures, "text": ["red", "blue", "lime"], "type": ["fire", None, "plant"], "n": [1, 2, 3]}
    dataset(columns).save_to_disk(str(tmp_path / "saved"))
    assert import_folder(tmp_path / "saved", tmp_path / "new") == []
    listing = captioned_folder.read_folder(tmp_path / "new")
    assert listing.problems == []
    assert [sample.path.read_bytes() for sample in listing.samples] == pictures
    assert rows(tmp_path / "new") == [
        {"file_name": "000000.png", "text": "red", "type": "fire", "n": 1},
        {"file_name": "000001.jpg", "text": "blue", "n": 2},
        {"file_name": "000002.webp", "text": "lime", "type": "plant", "n": 3},
    ]


def test_splits_and_several_captions_and_other_names(tmp_path: Path) -> None:
    import datasets

    halves: dict[Any, datasets.Dataset] = {
        name: dataset({"photo": [encoded(name)], "captions": [[f"{name} one", " ", f"{name} two"]]}, image="photo")
        for name in ("red", "blue")
    }
    datasets.DatasetDict(halves).save_to_disk(str(tmp_path / "saved"))
    assert import_folder(tmp_path / "saved", tmp_path / "new") == []
    names = {"split": "blue", "file_name": "blue/000000.png"}
    assert rows(tmp_path / "new")[1] == names | {"text": "blue one", "texts": ["blue two"]}


def test_rows_of_a_dataset_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    pictures = [encoded("red"), encoded("red")[:-30], None, encoded("red"), encoded("red", size=1), encoded("red")]
    texts = ["fine", "cut", "none", " ", "tiny", "wrong quality"]
    columns = {"image": pictures, "text": texts, "quality": ["good"] * 5 + ["superb"]}
    dataset(columns).save_to_disk(str(tmp_path / "saved"))
    problems = import_folder(tmp_path / "saved", tmp_path / "new")
    assert [row["text"] for row in rows(tmp_path / "new")] == ["fine"]
    assert [problem.where for problem in problems] == [f"{tmp_path}/saved: row {number}" for number in range(1, 6)]
    assert all(problem.refused for problem in problems)
    truncated, none, _, tiny, quality = problems
    assert "truncated" in truncated.what and "no image" in none.what
    assert "1 x 1" in tiny.what and "'good', 'fair' or 'poor'" in quality.what


def test_a_dataset_without_images_or_captions(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"text": ["x"], "n": [1]}).save_to_disk(str(tmp_path / "words"))
    with pytest.raises(InputError, match="has columns text, n: none is an image"):
        import_folder(tmp_path / "words", tmp_path / "new")
    dataset({"image": [encoded("red")], "n": [1]}).save_to_disk(str(tmp_path / "mute"))
    with pytest.raises(InputError, match="none is a text"):
        import_folder(tmp_path / "mute", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_broken_dataset(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be read as a Hugging Face dataset"):
        import_folder(tmp_path, tmp_path / "new")


# ---- Label Studio


def caption(*texts: str, name: str = "caption") -> dict[str, Any]:
    return {"from_name": name, "to_name": "image", "type": "textarea", "value": {"text": list(texts)}}


def choice(name: str, *chosen: str) -> dict[str, Any]:
    return {"from_name": name, "to_name": "image", "type": "choices", "value": {"choices": list(chosen)}}


def task(number: int, data: dict[str, Any], *results: dict[str, Any], **annotation: Any) -> dict[str, Any]:
    given = {"id": number, "completed_by": 7, "was_cancelled": False, "result": list(results)} | annotation
    return {"id": number, "data": data, "annotations": [given]}


def export(path: Path, *tasks: Any) -> Path:
    path.write_text(json.dumps(list(tasks)), encoding="utf-8")
    return path


def test_an_export_becomes_a_folder(tmp_path: Path) -> None:
    draw(tmp_path / "pictures", "a b.png", "sub/c.png", "d.png", "e.png")
    tasks = export(
        tmp_path / "export.json",
        task(1, {"image": "/data/local-files/?d=set1/a%20b.png"}, caption("one", "two"), choice("type", "water")),
        task(2, {"image": "/data/x", "file_name": "sub/c.png"}, caption("sea\n"), caption("Bulino", name="name")),
        task(3, {"image": "/data/upload/1/0a1b2c3d-d.png"}, caption("dee"), choice("tags", "x", "y")),
        task(4, {"image": "https://example.org/e.png?x=1"}, caption("eel"), choice("quality", "good")),
    )
    assert import_folder(tasks, tmp_path / "new", pictures=tmp_path / "pictures") == []
    same = {"source": "label-studio", "annotator": "7"}
    assert [row | same for row in rows(tmp_path / "new")] == rows(tmp_path / "new")
    assert [{key: row[key] for key in row if key not in same} for row in rows(tmp_path / "new")] == [
        {"file_name": "a b.png", "text": "one", "texts": ["two"], "type": "water"},
        {"file_name": "sub/c.png", "text": "sea", "name": "Bulino"},
        {"file_name": "d.png", "text": "dee", "tags": ["x", "y"]},
        {"file_name": "e.png", "text": "eel", "quality": "good"},
    ]
    assert captioned_folder.read_folder(tmp_path / "new").problems == []


def test_the_newest_annotation_counts_and_the_rest_is_named(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", "b.png", "c.png", "d.png")
    who = {"updated_at": "2026-01-01T00:00:00Z", "completed_by": {"email": "x@y.z"}}
    twice = task(1, {"image": "a.png"}, caption("old"), **who)
    newer = twice["annotations"][0] | {"result": [caption("new")], "updated_at": "2026-02-01T00:00:00Z", "id": 0}
    cancelled = newer | {"was_cancelled": True, "result": [caption("no")], "updated_at": "2026-03-01T00:00:00Z"}
    twice["annotations"] += [newer, cancelled]
    tasks = export(
        tmp_path / "export.json",
        twice,
        task(2, {"image": "b.png"}, caption("skipped"), was_cancelled=True),
        task(3, {"image": "c.png"}, caption("  ")),
        {"id": 4, "data": {"image": "d.png"}, "annotations": []},
        task(5, {"image": "gone.png"}, caption("x")),
        task(6, {"image": "a.png"}, caption("again")),
    )
    problems = import_folder(tasks, tmp_path / "new")
    (row,) = rows(tmp_path / "new")
    assert row == {"file_name": "a.png", "text": "new", "annotator": "x@y.z", "source": "label-studio"}
    assert [problem.where for problem in problems] == [f"{tmp_path}/export.json: task {n}" for n in range(1, 7)]
    assert [problem.refused for problem in problems] == [False, True, True, True, True, True]
    assert all(problem.fix for problem in problems[1:])
    assert "'gone.png'" in problems[4].what and "--pictures" in problems[4].fix and "task 1" in problems[5].what


def test_a_image_outside_the_folder_is_not_taken(tmp_path: Path) -> None:
    draw(tmp_path, "secret.png")
    draw(tmp_path / "pictures", "a.png")
    for name in ("../secret.png", str(tmp_path / "secret.png"), "/data/local-files/?d=../secret.png"):
        tasks = export(tmp_path / "export.json", task(1, {"image": name, "file_name": name}, caption("x")))
        with pytest.raises(InputError, match=r"first: .*no image"):
            import_folder(tasks, tmp_path / "new", pictures=tmp_path / "pictures")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "is not JSON"),
        ("{}", "is not a list of tasks"),
        ('[{"id": 1, "image": "/data/a.png", "caption": "x"}]', "is not a Label Studio export in the format JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "is not a list of tasks"),
    ],
)
def test_what_is_no_export(tmp_path: Path, content: str, expected: str) -> None:
    draw(tmp_path, "a.png")
    (tmp_path / "export.json").write_text(content)
    with pytest.raises(InputError, match=expected):
        import_folder(tmp_path / "export.json", tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ---- captioned folders


def test_a_folder_is_copied_without_what_cannot_be_used(tmp_path: Path) -> None:
    draw(tmp_path / "old", "a.png", "b.png")
    (tmp_path / "old" / "a.txt").write_text("One.\nTwo.")
    problems = import_folder(tmp_path / "old", tmp_path / "new")
    assert [problem.what for problem in problems] == ["has no caption"]
    assert rows(tmp_path / "new") == [{"file_name": "a.png", "text": "One.", "texts": ["Two."]}]
    assert captioned_folder.read_folder(tmp_path / "new").problems == []


def test_images_with_a_reason_to_skip_stay_behind(tmp_path: Path) -> None:
    draw(tmp_path / "old", "a.png", "b.png")
    table = [{"file_name": "a.png", "text": "one"}, {"file_name": "b.png", "skip_reason": "blurred"}]
    (tmp_path / "old" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    (problem,) = import_folder(tmp_path / "old", tmp_path / "new")
    assert "1 blurred" in problem.what and not problem.refused
    assert rows(tmp_path / "new") == table[:1]


def test_an_import_never_replaces_a_folder(tmp_path: Path) -> None:
    draw(tmp_path / "old", "a.png")
    (tmp_path / "old" / "a.txt").write_text("one")
    draw(tmp_path / "new", "mine.png")
    with pytest.raises(InputError, match="exists and is not empty"):
        import_folder(tmp_path / "old", tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mine.png"]

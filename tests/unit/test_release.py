"""Releases: what is joined, the bytes that are written, what is refused, and how two of them differ."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from annotation.cli import run_export
from annotation.config import ExportOptions, FixOptions
from annotation.drafts import from_files
from annotation.fix import make_corrections, replace_text
from annotation.history import Record, add_corrections, lay_over, read_history, write_history
from annotation.images import ImageFile
from annotation.release import FIELDS, Joined, Row, check_names, describe_changes, join, read_lock, read_release
from data import captioned_folder
from data.atomic_io import file_sha256
from data.errors import InputError, InputErrors
from data.schema import Annotation
from tests.answers import project, record, shown

BEN = {"annotator": "ben@lab"}


def history(root: Path) -> list[Record]:
    """Six of eight pictures: one written twice, one skipped, one poor, one blank, one with two texts."""
    made = [
        record(0, "a red fox", draft="a fox", draft_by="blip-1", origin="prediction-changed", seconds=12.5),
        record(1, "a cat", updated="t1"),
        record(51, "a grey cat", file_name="001.png", updated="t2", **BEN),
        record(2, "a poor one"),
        record(3, status="skipped"),
        record(4, " \n"),
        record(5, values={"text": ["a <b>dog</b>", "some dog, \u202eرأس"]}),
        record(60, screen="triage", file_name="000.png", values={"type": ["water"], "quality": ["good"]}),
        record(61, screen="triage", file_name="001.png", values={"type": ["fire"], "quality": ["good"]}, updated="t1"),
        record(62, screen="triage", file_name="001.png", values={"type": ["ice"]}, updated="t2", **BEN),
        record(63, screen="triage", file_name="001.png", values={"type": ["fire"]}, updated="t0", annotator="c"),
        record(64, screen="triage", file_name="002.png", values={"quality": ["poor"]}),
        record(65, screen="name", file_name="000.png", values={"name": ["Bulino"]}),
    ]
    return shown(root, made)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = project(tmp_path, count=8)
    write_history(folder, history(tmp_path))
    return folder


def rows(folder: Path) -> dict[str, dict[str, object]]:
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    return {row["file_name"]: row for row in map(json.loads, lines)}


def export(into: str, **flags: object) -> Path:
    assert run_export(ExportOptions.model_validate({"into": into} | flags)) == 0
    return Path(into)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_release_contains_answers_and_provenance(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = export("out")
    output = capsys.readouterr().out
    assert "3 images, 4 captions" in output and "next: python data/prepare.py out" in output
    assert read_lock(out)["left_out"] == {
        "blank": ["004.png"], "not captioned": ["006.png", "007.png"], "poor": ["002.png"], "skipped": ["003.png"]
    }  # fmt: skip
    table = rows(out)
    name = read_lock(out)["release"]
    assert table["000.png"] == {
        "file_name": "000.png", "text": "a red fox", "type": "water", "name": "Bulino", "quality": "good",
        "annotator": "annotator 1", "source": "label-studio", "seconds": 12.5, "corrected": False,
        "origin": "prediction-changed", "draft_source": "blip-1", "release": name,
        "sha256": file_sha256(out / "000.png"),
    }  # fmt: skip
    assert (table["001.png"]["text"], table["001.png"]["type"]) == ("a grey cat", "fire")  # newest; majority
    assert table["005.png"]["texts"] == ["some dog, \u202eرأس"]
    assert (out / "005.txt").read_text() == "a <b>dog</b>\nsome dog, \u202eرأس\n"
    cells = list(csv.DictReader(io.StringIO((out / "captions.csv").read_text(), newline="")))
    assert [row["text"] for row in cells] == ["a red fox", "a grey cat", "a <b>dog</b>"]
    found = cells[0]["seconds"], cells[0]["corrected"], json.loads(cells[2]["texts"])[0][:4]
    assert found == ("12.5", "false", "some")
    import pyarrow.parquet

    assert pyarrow.parquet.read_table(out / "captions.parquet").to_pylist()[2]["texts"] == ["some dog, \u202eرأس"]


def test_the_readers_of_the_project_read_a_release(work: Path) -> None:
    listing = captioned_folder.read_folder(export("out"))
    assert [sample.annotation.text for sample in listing.samples] == ["a red fox", "a grey cat", "a <b>dog</b>"]
    assert [problem for problem in listing.problems if problem.refused] == []


def test_the_same_input_gives_the_same_bytes(work: Path, tmp_path: Path) -> None:
    one, two = export("one"), export("deep/two")
    assert contents(one) == contents(two)
    shutil.copytree(tmp_path / "pictures", tmp_path / "moved")
    assert contents(export("three", images=tmp_path / "moved")) == contents(one)


def test_exporting_again_changes_nothing_and_other_folders_are_refused(work: Path) -> None:
    out = export("out")
    before = contents(out)
    export("out")
    assert contents(out) == before
    with pytest.raises(InputError) as error:
        export("out", others=True)
    assert error.value.where == out and "--into" in str(error.value.fix)
    (out / "metadata.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"metadata\.jsonl") as error:
        export("out")
    assert error.value.where == out
    Path("full").mkdir()
    (Path("full") / "x").write_text("mine")
    with pytest.raises(InputError, match=r"dataset\.lock") as error:
        export("full")
    assert error.value.where == Path("full")
    assert contents(Path("full")) == {"x": b"mine"}


def test_options_decide_what_is_taken(work: Path) -> None:
    assert rows(export("a", wins="first"))["001.png"]["text"] == "a cat"
    preferred = rows(export("b", prefer=("ana@lab", "ben@lab")))["001.png"]
    assert (preferred["text"], preferred["type"]) == ("a cat", "fire")
    assert rows(export("c", others=True))["001.png"]["texts"] == ["a cat"]
    assert "002.png" in rows(export("d", poor=True))
    with pytest.raises(InputError, match="'ana@lab'") as error:
        export("e", prefer=("anna@lab",))
    assert error.value.where == "--prefer"
    bare = contents(export("f", sidecars=False, csv=False, parquet=False))
    assert sorted(bare) == ["000.png", "001.png", "005.png", "README.md", "dataset.lock", "metadata.jsonl"]


def test_addresses_are_published_on_request_only(work: Path) -> None:
    out = export("out", prefer=("ben@lab",), others=True)
    assert not any(b"@lab" in content for content in contents(out).values())
    assert "annotator 2" in (out / "README.md").read_text()
    assert {row["annotator"] for row in rows(out).values()} == {"annotator 1", "annotator 2"}
    assert contents(export("by number", prefer=("annotator 2",), others=True)) == contents(out)
    assert {row["annotator"] for row in rows(export("named", names=True)).values()} == {"ana@lab", "ben@lab"}


def test_a_newcomer_changes_no_number(work: Path) -> None:
    before = {name: row["annotator"] for name, row in rows(export("before")).items()}
    late = record(70, "the newest", file_name="006.png", annotator="aaa@lab", created="2026-12")
    gone = replace(read_history(work)[0], status="deleted")  # Ana's first answer
    write_history(work, [*read_history(work), *shown(work.parent.parent, [late]), gone])
    after = {name: row["annotator"] for name, row in rows(export("after")).items()}
    assert after == {name: who for name, who in before.items() if name != "000.png"} | {"006.png": "annotator 4"}


def test_images_that_the_triage_leaves_out(work: Path) -> None:
    def triage(number: int, name: str, reason: str = "", **more: object) -> Record:
        values = {"skip_reason": [reason]} if reason else {"quality": ["good"]}
        changes: dict[str, object] = {"screen": "triage", "file_name": name, "values": values}
        return record(number, **changes | more)  # type: ignore[arg-type]

    history = [record(number, f"image {number}") for number in range(8)]
    history += [triage(20, "000.png", "blurred"), triage(21, "001.png", "cropped"), triage(22, "001.png", **BEN)]
    history += [triage(23, "002.png"), triage(24, "002.png", **BEN), triage(25, "002.png", "cropped", annotator="c")]
    history += [triage(26, "003.png", values={}, status="skipped"), triage(27, "004.png", "cropped", status="skipped")]
    write_history(work, shown(work.parent.parent, history))
    out = export("out", strict=True)
    assert sorted(rows(out)) == ["002.png", "005.png", "006.png", "007.png"]
    assert read_lock(out)["left_out"] == {
        "skip_reason blurred": ["000.png"],
        "skip_reason cropped": ["001.png", "004.png"],
        "skipped in the triage": ["003.png"],
    }
    assert not any("skip_reason" in row for row in rows(out).values())
    assert "- skip_reason cropped: 2" in (out / "README.md").read_text()


def test_card_and_lock_describe_the_release(work: Path) -> None:
    out = export("out", prefer=("ben@lab",), names=True)
    card, lock = (out / "README.md").read_text(), read_lock(out)
    assert lock["rule"] == "the caption that shares most words with the others (mean token F1); of equals the newest"
    assert lock["rule"] in card and "ben@lab" in card and "token F1 0.80, ROUGE-L 0.80" in card
    counts = {name: lock["counts"][name] for name in ("pictures", "captions", "left_out", "types", "qualities")}
    assert counts == {
        "pictures": 3, "captions": 4, "left_out": {"blank": 1, "not captioned": 2, "poor": 1, "skipped": 1},
        "types": {"": 1, "ice": 1, "water": 1}, "qualities": {"": 1, "good": 2},
    }  # fmt: skip
    assert lock["settings"]["forms"] == {"sidecars": True, "csv": True, "parquet": True}
    assert lock["files"]["captions.parquet"] == file_sha256(out / "captions.parquet")
    assert "| water | 1 |" in card and "| not given | 1 |" in card
    assert all(f"`{field}`" in card for field in FIELDS)


def test_corrections_are_exported(work: Path) -> None:
    answers = lay_over(read_history(work), [])
    add_corrections(work, make_corrections([replace_text("fox", "wolf")], answers, [], FixOptions()))
    row = rows(export("out"))["000.png"]
    assert (row["text"], row["corrected"]) == ("a red wolf", True)


def test_images_that_changed_or_went_are_left_out(work: Path, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "pictures" / "007.png", tmp_path / "pictures" / "000.png")
    (tmp_path / "pictures" / "001.png").rename(tmp_path / "pictures" / "renamed.png")
    out = export("out")
    assert read_lock(out)["left_out"]["picture gone or changed"] == ["000.png"]
    assert sorted(rows(out)) == ["005.png", "renamed.png"]
    with pytest.raises(InputErrors) as error:
        export("strict", strict=True)
    assert {each.where for each in error.value.errors} == {"000.png", "004.png"}
    assert not Path("strict").exists()


def test_path_traversal_in_a_name_has_no_effect(work: Path, tmp_path: Path) -> None:
    climbing = [replace(each, file_name=f"../../{each.file_name}") for each in read_history(work)]
    write_history(work, climbing)
    out = export("deep/out")
    assert sorted(rows(out)) == ["000.png", "001.png", "005.png"]  # by content: the record's name is not used
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"out"}


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (["../x.png"], "'../x.png'"),
        (["/etc/x.png"], "'/etc/x.png'"),
        (["a.png", "A.png"], "'A.png'"),
        (["a.png", "a.jpg"], "--no-sidecars"),
        (["x/readme.md"], "'x/readme.md'"),
    ],
)
def test_names_that_a_release_cannot_have(names: list[str], word: str) -> None:
    rows = [Row(ImageFile("0", name, Path(name)), Annotation(file_name=name, text="x")) for name in names]
    with pytest.raises(InputError) as error:
        check_names(rows, ExportOptions())
    assert word in str(error.value)
    with pytest.raises(InputErrors):
        check_names([*rows, *rows], ExportOptions())


def test_nothing_to_export_leaves_no_folder(work: Path) -> None:
    write_history(work, [])
    with pytest.raises(InputError, match="not captioned: 8") as error:
        export("out")
    assert "annotate.py pull" in str(error.value.fix)
    assert not Path("out").exists()
    write_history(work, history(work.parent.parent))
    with pytest.raises(InputError, match=r"'\.\./x'") as error:
        run_export(ExportOptions(release="../x"))
    assert error.value.where == "--release"


def test_images_with_invalid_values_are_left_out(work: Path, tmp_path: Path) -> None:
    odd = [record(0, "a fox"), record(9, screen="triage", file_name="000.png", values={"quality": ["superb"]})]
    images = {"a": ImageFile("a", "000.png", tmp_path / "pictures" / "000.png")}
    found = join(lay_over([replace(each, sha256="a") for each in odd], []), images, ExportOptions())
    assert found == Joined([], {"quality is 'superb'": ["000.png"]})


def test_the_changes_between_two_releases(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_export(ExportOptions())
    first = next((work / "releases").iterdir())
    ice = record(66, screen="triage", file_name="000.png", values={"type": ["ice"]}, updated="t9")
    later = [
        replace(read_history(work)[0], values={"text": ["a red wolf"]}, updated="t9"),
        replace(read_history(work)[5], status="skipped", updated="t9", values={}),
        *shown(tmp_path, [record(5, status="deleted"), record(6, "a new one"), ice]),
    ]
    write_history(work, [*read_history(work), *later])
    capsys.readouterr()
    run_export(ExportOptions(wins="newest"))
    second = next(path for path in (work / "releases").iterdir() if path != first)
    lines = describe_changes(read_release(first), read_release(second))
    assert "\n".join(lines) in capsys.readouterr().out  # compared with the last release
    assert lines[0] == f"{first.name} -> {second.name}: 3 -> 3 images, 1 with the same captions"
    assert lines[1:4] == ["added: 1 (006.png)", "removed: 1 (005.png)", "captions changed: 1"]
    assert lines[4:6] == ["    000.png: 'a red fox' -> 'a red wolf'", "type changed: 1 (water -> ice (1))"]
    assert "new words: 3 (new, one, wolf)" in lines
    assert len(describe_changes(read_release(first), read_release(first))) == 1


def test_what_is_not_a_release(tmp_path: Path, work: Path) -> None:
    out = export("out")
    for spoil, where in (
        (lambda: (out / "metadata.jsonl").write_text(""), out / "dataset.lock"),
        (lambda: (out / "dataset.lock").write_text("["), out / "dataset.lock"),
        (lambda: (out / "dataset.lock").write_text("[]"), out / "dataset.lock"),
        (lambda: (out / "dataset.lock").unlink(), out),
        (lambda: shutil.rmtree(out), out),
    ):
        spoil()
        with pytest.raises(InputError) as error:
            read_release(out)
        assert error.value.where == where and error.value.fix


def test_a_release_can_be_imported_as_drafts(work: Path) -> None:
    out = export("out")
    image = ImageFile(file_sha256(out / "001.png"), "any name", out / "001.png")
    for source in (out, out / "metadata.jsonl", out / "captions.csv", out / "captions.parquet"):
        assert from_files(source, []).suggest([image]) == [("a grey cat", 1.0)], source

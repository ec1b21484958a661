"""Releases: what is joined, which bytes come of it, what is refused, and how two of them differ."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from annotation.commands import export as command
from annotation.commands.export import Options
from annotation.corrections import add_corrections, answers
from annotation.drafts.source import Picture
from annotation.records import Record, read_history, write_history
from annotation.release.changes import in_words, read_release
from annotation.release.export import Forms, check, read_lock
from annotation.release.join import Joined, Policy, Row, join
from annotation.review.fix import Choice, corrections_by
from data import store
from data.errors import InputError
from data.files import sha256
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
    assert command.run(Options.model_validate({"into": into} | flags)) == 0
    return Path(into)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_release_holds_what_people_wrote_and_where_it_came_from(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = export("out")
    said = capsys.readouterr().out
    assert "  left out, blank: 1 (004.png)\n" in said
    assert "  left out, not captioned: 2 (006.png, 007.png)\n" in said
    assert "  left out, poor: 1 (002.png)\n" in said and "  left out, skipped: 1 (003.png)\n" in said
    assert "3 pictures, 4 captions; written" in said and "next: python data/prepare.py out" in said
    table = rows(out)
    name = read_lock(out)["release"]
    assert table["000.png"] == {
        "file_name": "000.png", "text": "a red fox", "type": "water", "name": "Bulino", "quality": "good",
        "annotator": "annotator 1", "source": "label-studio", "seconds": 12.5, "corrected": False,
        "origin": "prediction-changed", "draft_source": "blip-1", "sha256": sha256(out / "000.png"), "release": name,
    }  # fmt: skip
    assert (table["001.png"]["text"], table["001.png"]["type"]) == ("a grey cat", "fire")  # newest; majority
    assert table["005.png"]["texts"] == ["some dog, \u202eرأس"]
    assert (out / "005.txt").read_text() == "a <b>dog</b>\nsome dog, \u202eرأس\n"
    cells = list(csv.DictReader(io.StringIO((out / "captions.csv").read_text(), newline="")))
    assert [row["text"] for row in cells] == ["a red fox", "a grey cat", "a <b>dog</b>"]
    assert (cells[0]["seconds"], cells[0]["corrected"], json.loads(cells[2]["texts"])[0][:4]) == (
        "12.5",
        "false",
        "some",
    )
    import pyarrow.parquet

    assert pyarrow.parquet.read_table(out / "captions.parquet").to_pylist()[2]["texts"] == ["some dog, \u202eرأس"]


def test_the_readers_of_the_project_read_a_release(work: Path) -> None:
    listing = store.read(export("out"))
    assert [sample.annotation.text for sample in listing.samples] == ["a red fox", "a grey cat", "a <b>dog</b>"]
    assert [problem for problem in listing.problems if problem.refused] == []


def test_the_same_input_gives_the_same_bytes(work: Path, tmp_path: Path) -> None:
    one, two = export("one"), export("deep/two")
    assert contents(one) == contents(two)
    shutil.copytree(tmp_path / "pictures", tmp_path / "moved")
    assert contents(export("three", images=tmp_path / "moved")) == contents(one)


def test_again_changes_nothing_and_another_folder_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = export("out")
    before = contents(out)
    export("out")
    assert "was there already, nothing changed" in capsys.readouterr().out and contents(out) == before
    with pytest.raises(
        InputError, match=r"^out: holds release '\w+', made otherwise. Give a new folder: --into FOLDER"
    ):
        export("out", others=True)
    (out / "metadata.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"^out: holds this release, but metadata.jsonl was changed since"):
        export("out")
    Path("full").mkdir()
    (Path("full") / "x").write_text("mine")
    with pytest.raises(InputError, match=r"^full: is no release \(it has no dataset.lock\). Give a new folder"):
        export("full")
    assert contents(Path("full")) == {"x": b"mine"}


def test_choices_of_policy(work: Path) -> None:
    assert rows(export("a", wins="first"))["001.png"]["text"] == "a cat"
    preferred = rows(export("b", prefer=("ana@lab", "ben@lab")))["001.png"]
    assert (preferred["text"], preferred["type"]) == ("a cat", "fire")
    assert rows(export("c", others=True))["001.png"]["texts"] == ["a cat"]
    assert "002.png" in rows(export("d", poor=True))
    with pytest.raises(InputError, match=r"--prefer: unknown annotator 'anna@lab', did you mean 'ana@lab'\?"):
        export("e", prefer=("anna@lab",))
    bare = contents(export("f", sidecars=False, csv=False, parquet=False))
    assert sorted(bare) == ["000.png", "001.png", "005.png", "README.md", "dataset.lock", "metadata.jsonl"]


def test_addresses_stay_here_unless_they_are_asked_for(work: Path) -> None:
    out = export("out", prefer=("ben@lab",), others=True)
    assert not any(b"@lab" in content for content in contents(out).values())
    assert "the captions of annotator 2 are taken" in (out / "README.md").read_text()
    assert {row["annotator"] for row in rows(out).values()} == {"annotator 1", "annotator 2"}
    assert contents(export("by number", prefer=("annotator 2",), others=True)) == contents(out)
    assert {row["annotator"] for row in rows(export("named", names=True)).values()} == {"ana@lab", "ben@lab"}


def test_who_comes_later_changes_no_number(work: Path) -> None:
    before = {name: row["annotator"] for name, row in rows(export("before")).items()}
    late = record(70, "the newest", file_name="006.png", annotator="aaa@lab", created="2026-12")
    gone = replace(read_history(work)[0], status="deleted")  # Ana's first answer
    write_history(work, [*read_history(work), *shown(work.parent.parent, [late]), gone])
    after = {name: row["annotator"] for name, row in rows(export("after")).items()}
    assert after == {name: who for name, who in before.items() if name != "000.png"} | {"006.png": "annotator 4"}


def test_pictures_that_the_triage_leaves_out(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def triage(number: int, name: str, reason: str = "", **more: object) -> Record:
        values = {"skip_reason": [reason]} if reason else {"quality": ["good"]}
        changes: dict[str, object] = {"screen": "triage", "file_name": name, "values": values}
        return record(number, **changes | more)  # type: ignore[arg-type]

    history = [record(number, f"picture {number}") for number in range(8)]
    history += [triage(20, "000.png", "blurred"), triage(21, "001.png", "cropped"), triage(22, "001.png", **BEN)]
    history += [triage(23, "002.png"), triage(24, "002.png", **BEN), triage(25, "002.png", "cropped", annotator="c")]
    history += [triage(26, "003.png", values={}, status="skipped"), triage(27, "004.png", "cropped", status="skipped")]
    write_history(work, shown(work.parent.parent, history))
    out = export("out", strict=True)
    said = capsys.readouterr().out
    assert sorted(rows(out)) == ["002.png", "005.png", "006.png", "007.png"]
    assert "left out, skip_reason blurred: 1 (000.png)" in said
    assert "left out, skip_reason cropped: 2 (001.png, 004.png)" in said
    assert "left out, skipped in the triage: 1 (003.png)" in said
    assert not any("skip_reason" in row for row in rows(out).values())
    assert "- skip_reason cropped: 2" in (out / "README.md").read_text()


def test_the_rule_stands_in_the_card_and_the_lock(work: Path) -> None:
    out = export("out", prefer=("ben@lab",), names=True)
    card, lock = (out / "README.md").read_text(), read_lock(out)
    assert lock["rule"] == "the caption that shares most words with the others (mean token F1); of equals the newest"
    assert lock["rule"] in card and "Before that, the captions of ben@lab are taken." in card
    assert "1 pictures were captioned by several people; they agree with token F1 0.80, ROUGE-L 0.80" in card
    assert lock["counts"]["left_out"] == {"blank": 1, "not captioned": 2, "poor": 1, "skipped": 1}
    assert lock["files"]["captions.parquet"] == sha256(out / "captions.parquet")
    assert "| water | 1 |" in card and "| not given | 1 |" in card


def test_corrections_are_in_and_counted(work: Path) -> None:
    found = answers(read_history(work), [])
    made = corrections_by(lambda text: text.replace("fox", "wolf"), found, batch=1, choice=Choice(), why="", made="")
    add_corrections(work, list(made))
    row = rows(export("out"))["000.png"]
    assert (row["text"], row["corrected"]) == ("a red wolf", True)


def test_pictures_that_changed_or_went_are_left_out(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(tmp_path / "pictures" / "007.png", tmp_path / "pictures" / "000.png")
    (tmp_path / "pictures" / "001.png").rename(tmp_path / "pictures" / "renamed.png")
    out = export("out")
    assert "left out, picture gone or changed: 1 (000.png)" in capsys.readouterr().out
    assert sorted(rows(out)) == ["005.png", "renamed.png"]
    with pytest.raises(InputError, match="picture gone or changed: 1 pictures"):
        export("strict", strict=True)
    assert not Path("strict").exists()


def test_a_name_that_climbs_leads_nowhere(work: Path, tmp_path: Path) -> None:
    climbing = [replace(each, file_name=f"../../{each.file_name}") for each in read_history(work)]
    write_history(work, climbing)
    out = export("deep/out")
    assert sorted(rows(out)) == ["000.png", "001.png", "005.png"]  # by content: the record's name is not used
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"out"}


def row(name: str) -> Row:
    return Row(Picture("0", name, Path(name)), Annotation(file_name=name, text="x"))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["../x.png"], "'../x.png' climbs out of the folder. Name a picture inside the folder."),
        (["/etc/x.png"], "'/etc/x.png' is an absolute path. Write it relative to the folder."),
        (["a.png", "A.png"], "two pictures would be written as 'A.png'. Rename one of them."),
        (["a.png", "a.jpg"], "'a.jpg' and 'a.png' would share one caption file. "
            "Rename one, or leave the caption files out: --no-sidecars"),
        (["x/readme.md"], "'x/readme.md' is the name of a release's own file. Rename the picture."),
    ],
)  # fmt: skip
def test_names_that_a_release_cannot_have(names: list[str], expected: str) -> None:
    with pytest.raises(InputError) as refused:
        check([row(name) for name in names], Forms())
    assert expected in str(refused.value).splitlines()


def test_nothing_to_export_leaves_no_folder(work: Path) -> None:
    write_history(work, [])
    with pytest.raises(InputError) as refused:
        export("out")
    assert str(refused.value) == "there is nothing to export (not captioned: 8). Pull first: annotate.py pull"
    assert not Path("out").exists()
    write_history(work, history(work.parent.parent))
    with pytest.raises(InputError, match=r"--release: '../x' is no name for a release"):
        command.run(Options(release="../x"))


def test_values_that_no_screen_offers_are_left_out(work: Path, tmp_path: Path) -> None:
    odd = [record(0, "a fox"), record(9, screen="triage", file_name="000.png", values={"quality": ["superb"]})]
    pictures = {"a": Picture("a", "000.png", tmp_path / "pictures" / "000.png")}
    found = join(answers([replace(each, sha256="a") for each in odd], []), pictures, Policy())
    assert found == Joined([], {"quality is 'superb'": ["000.png"]})


def test_the_difference_of_two_releases_in_words(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command.run(Options())
    first = next((work / "releases").iterdir())
    ice = record(66, screen="triage", file_name="000.png", values={"type": ["ice"]}, updated="t9")
    later = [
        replace(read_history(work)[0], values={"text": ["a red wolf"]}, updated="t9"),
        replace(read_history(work)[5], status="skipped", updated="t9", values={}),
        *shown(tmp_path, [record(5, status="deleted"), record(6, "a new one"), ice]),
    ]
    write_history(work, [*read_history(work), *later])
    capsys.readouterr()
    command.run(Options(wins="newest"))
    said = capsys.readouterr().out
    second = next(path for path in (work / "releases").iterdir() if path != first)
    lines = in_words(read_release(first), read_release(second))
    assert "\n".join(lines) in said  # the last release is what a new one is held against
    assert lines[0] == f"{first.name} -> {second.name}: 3 -> 3 pictures, 1 with the same captions"
    assert lines[1:6] == [
        "added: 1 (006.png)",
        "removed: 1 (005.png)",
        "captions changed: 1",
        "    000.png: 'a red fox' -> 'a red wolf'",
        "type changed: 1 (water -> ice (1))",
    ]
    assert "new words: 3 (new, one, wolf)" in lines
    assert lines[-1].startswith("another caption wins: the caption that shares most words")
    assert in_words(read_release(first), read_release(first)) == [
        f"{first.name} -> {first.name}: 3 -> 3 pictures, 3 with the same captions"
    ]


def test_what_is_no_release(tmp_path: Path, work: Path) -> None:
    out = export("out")
    for spoil, expected in (
        (lambda: (out / "metadata.jsonl").write_text(""), "its rows are not those that its lock tells of."),
        (lambda: (out / "dataset.lock").write_text("["), "is not JSON ("),
        (lambda: (out / "dataset.lock").write_text("[]"), "is not a lock. Give the folder of a release."),
        (lambda: (out / "dataset.lock").unlink(), "is no release (it has no dataset.lock). Give the folder"),
        (lambda: shutil.rmtree(out), "no such folder. Give the folder of a release."),
    ):  # fmt: skip
        spoil()
        with pytest.raises(InputError) as refused:
            read_release(out)
        assert expected in str(refused.value)


def test_a_release_comes_back_as_drafts(work: Path, tmp_path: Path) -> None:
    from annotation.drafts.existing import existing

    out = export("out")
    digest = sha256(out / "001.png")
    for source in (out, out / "metadata.jsonl", out / "captions.csv", out / "captions.parquet"):
        assert existing(source, []).captions[digest] == "a grey cat", source

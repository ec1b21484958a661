"""`python data/prepare.py` as a person and as a program uses it: exit codes, one line a problem, and the true split."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import captioned_folder, sample_set, validate
from data.cli import parse
from data.errors import InputError
from data.schema import Annotation
from data.validate import ALIASES, PrepareOptions
from tests.tiny import tiny_tokenizer
from train.config import ALIASES as TRAIN_ALIASES
from train.config import Config

ROOT = Path(__file__).parents[2]


def row(**values: object) -> Annotation:
    return Annotation.model_validate(values)


def clean_set(folder: Path, count: int = 12) -> Path:
    """Pictures that are all different, each with its caption."""
    colours = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    drawn = [Image.fromarray(picture).resize((64, 64), Image.Resampling.BICUBIC) for picture in colours]
    names = [f"creature {index}" for index in range(count)]
    rows = [row(file_name=f"{name}.png", text=name) for name in names]
    captioned_folder.write_folder(folder, zip(drawn, rows, strict=True))
    return folder


def prepare(*arguments: object, cache: Path) -> subprocess.CompletedProcess[str]:
    """The command itself, from another folder, with a cache of its own."""
    command = [sys.executable, str(ROOT / "data" / "prepare.py"), *map(str, arguments)]
    environment = os.environ | {"ATELIER_CACHE": str(cache)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cache.parent, timeout=120)


def check(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """The same in this process: exit code and what was printed."""
    options = parse(PrepareOptions, [str(argument) for argument in arguments], prog="prepare.py", aliases=ALIASES)
    code = validate.validate_folder(options)
    return code, capsys.readouterr().out


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_command_on_a_clean_and_on_a_bad_folder(tmp_path: Path, cache: Path) -> None:
    folder = clean_set(tmp_path / "a set")
    clean = prepare(folder, cache=cache)
    assert (clean.returncode, clean.stderr) == (0, "")
    assert "12 of 12 usable (12 PNG); 0 errors, 0 warnings" in clean.stdout
    assert clean.stdout.splitlines()[-1] == f"next: python train/finetune.py --data '{folder}'"
    (folder / "creature 3.png").write_bytes(b"")
    with (folder / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "gone.png", "text": "x"}\n')
    bad = prepare(folder, cache=cache)
    assert (bad.returncode, bad.stderr) == (1, "")
    row, image = bad.stdout.splitlines()[:2]
    assert row.startswith(f"{folder}/metadata.jsonl:13: error: ") and "'gone.png'" in row
    assert image.startswith(f"{folder}/creature 3.png: error: ")
    assert "11 of 12 usable (11 PNG); 2 errors, 0 warnings" in bad.stdout
    assert bad.stdout.splitlines()[-1].endswith(f"python train/finetune.py --data '{folder}'")


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["nowhere"], "nowhere"),
        (["--sed", "3"], "--sed"),
        (["--held-out", "1"], "--held-out"),
        (["--size", "100"], "size 100 does not fit the model; allowed"),
    ],
)
def test_a_wrong_path_or_flag_is_one_line(cache: Path, arguments: list[str], where: str) -> None:
    cache.mkdir()
    refused = prepare(*arguments, cache=cache)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"error: {where}: ")
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "where", "words"),
    [
        (["FOLDER", "--tokenizer", "FOLDER"], "FOLDER", "no tokenizer"),
        (["FOLDER", "--model", "FOLDER"], "FOLDER", "not a Stable Diffusion model"),
        (["FOLDER", "--caption", "{txt}"], "template '{txt}'", "'text'"),
        (["FOLDER", "--pictures", "x"], "--pictures", "importing"),
        (["--into", "x"], "--into", "import"),
        (["FOLDER", "--html", "FOLDER/../set/page.html"], "--html FOLDER/../set/page.html", "inside the folder"),
        (["FOLDER", "--into", "FOLDER/new"], "--into FOLDER/new", "inside the folder"),
        (["FOLDER", "--html", "FOLDER"], "--html FOLDER", "is a folder"),
        (["FOLDER/metadata.jsonl"], "FOLDER/metadata.jsonl", "is a file"),
        (["FOLDER/export.json"], "FOLDER/export.json", "is a file"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, arguments: list[str], where: str, words: str) -> None:
    folder = clean_set(tmp_path / "set", count=2)
    (folder / "export.json").write_text("[]")
    given = [argument.replace("FOLDER", str(folder)) for argument in arguments]
    with pytest.raises(InputError) as caught:
        validate.validate_folder(parse(PrepareOptions, given, prog="prepare.py", aliases=ALIASES))
    assert str(caught.value.where) == where.replace("FOLDER", str(folder))
    assert words in caught.value.what and (caught.value.fix or caught.value.allowed)


def test_json_tells_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = clean_set(tmp_path / "set")
    (folder / "creature 3.png").write_bytes(b"")
    code, text = check(capsys, folder, "--json", "--seed", 3, "--held-out", 0.25, "--size", 128)
    facts = json.loads(text)
    assert code == 1
    assert (facts["found"], facts["usable"], facts["seed"], facts["held_out_share"]) == (12, 11, 3, 0.25)
    (problem,) = facts["problems"]
    assert set(problem) == {"where", "what", "fix", "refused"}
    assert (problem["where"], problem["refused"]) == (f"{folder}/creature 3.png", True)
    names = {f"creature {index}.png" for index in range(12) if index != 3}
    assert set(facts["train"]) | set(facts["held_out"]) == names
    assert not set(facts["train"]) & set(facts["held_out"])
    assert facts["buckets"][0]["bucket"] == {"width": 128, "height": 128}
    assert facts["buckets"][0]["enlarged"] == 11


def test_the_split_is_stable_and_keeps_copies_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = clean_set(tmp_path / "set", count=20)
    before = json.loads(check(capsys, folder, "--json", "--held-out", 0.4)[1])
    assert before["near_duplicates"] == []
    with Image.open(folder / f"{before['held_out'][0]}") as held:
        held.resize((80, 80)).save(folder / "zz copy.jpg", quality=85)
    (folder / "zz copy.txt").write_text("a copy")
    after = json.loads(check(capsys, folder, "--json", "--held-out", 0.4)[1])
    assert after["near_duplicates"] == [[before["held_out"][0], "zz copy.jpg"]]
    side = {name: name in after["held_out"] for name in after["held_out"] + after["train"]}
    assert side["zz copy.jpg"] == side[before["held_out"][0]]
    others = [name for name in before["train"] + before["held_out"] if name != before["held_out"][0]]
    assert sum((name in before["held_out"]) != side[name] for name in others) <= 1


def test_captions_that_would_be_cut_are_named_with_what_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = clean_set(tmp_path / "set", count=3)
    tiny_tokenizer(tmp_path / "tokenizer").save_pretrained(tmp_path / "tokenizer")
    long = "fire " * 75 + "water " * 10_000
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "creature 0.png", "text": long}) + "\n")
    (folder / "creature 1.txt").write_text("water type")
    (folder / "creature 2.txt").write_text("fire type")
    code, text = check(capsys, folder, "--tokenizer", tmp_path / "tokenizer", "--caption", "{text}")
    assert code == 1
    first = text.splitlines()[0]
    assert first.startswith(f"{folder}/metadata.jsonl:1: warning: ")
    assert "10075" in first and "75" in first and "'water" in first
    assert len(first) < 400
    assert "3 captions: median 2, longest 10075 of 75 tokens, 1 truncated (tokenizer " in text


def test_images_of_which_a_template_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = clean_set(tmp_path / "set", count=3)
    first = {"file_name": "creature 0.png", "text": "water type", "mood": "sad"}
    (folder / "metadata.jsonl").write_text(json.dumps(first) + "\n")
    (folder / "creature 1.txt").write_text("water type")
    (folder / "creature 2.txt").write_text("fire type")
    _, text = check(capsys, folder, "--caption", "{mood}")
    assert text.count("warning: its caption is empty") == 2 and "'{mood}'" in text
    assert "is empty" not in check(capsys, folder, "--caption", "{mood} {text}")[1]


def test_sizes_and_tokenizer_come_from_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    folder = clean_set(tmp_path / "set", count=3)
    code, text = check(capsys, folder, "--model", tiny_model, "--json")
    facts = json.loads(text)
    assert code == 0
    assert (facts["size"], facts["step"]) == (64, 8)
    assert facts["captions"]["limit"] == 75


def test_the_page_shows_problems_images_and_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = clean_set(tmp_path / "set", count=5)
    (folder / "creature 1.png").write_bytes(b"")
    (folder / "twin.png").write_bytes((folder / "creature 2.png").read_bytes())
    (folder / "twin.txt").write_text("<script>alert(1)</script>")
    code, text = check(capsys, folder, "--html", tmp_path / "out" / "page.html")
    assert code == 1
    assert f"{tmp_path}/out/page.html" in text
    page = (tmp_path / "out" / "page.html").read_text()
    assert page.count("<img") == 5 + 2  # every usable picture once, and the twins once more
    for shown in ("is empty", "creature 4.png: creature 4", "&lt;script&gt;", "Near-duplicates", "Held out"):
        assert shown in page
    assert "<script" not in page


def test_an_import_is_looked_at_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = clean_set(tmp_path / "set", count=4)
    (folder / "creature 1.png").write_bytes(b"")
    code, text = check(capsys, folder, "--into", tmp_path / "new")
    assert code == 1
    assert "3 of 3 usable (3 PNG); 1 errors, 0 warnings" in text
    assert text.splitlines()[-1].endswith(f"python train/finetune.py --data {tmp_path}/new")
    assert check(capsys, tmp_path / "new")[0] == 0


def test_without_a_folder_the_sample_set_is_unpacked_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text = check(capsys, "--size", 64)
    assert code == 0
    assert "650 of 650 usable" in text
    folder = tmp_path / "cache" / "pocket" / f"sample-{sample_set.VERSION}-64"
    assert len(list(folder.iterdir())) == 651
    monkeypatch.setattr(sample_set, "sample_png", None)  # unpacking again would fail
    assert sample_set.sample_folder(size=64) == folder
    monkeypatch.setattr(sample_set, "VERSION", "another")
    with pytest.raises(TypeError):
        sample_set.sample_folder(size=64)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # nothing half written is left


def test_the_next_command_has_what_was_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    folder = clean_set(tmp_path / "set", count=3)
    (folder / "metadata.jsonl").unlink()
    flags = ["--model", tiny_model, "--pictures.prompt", "a sks", "--held-out", "0.2", "--no-folder-repeats"]
    code, text = check(capsys, folder, *flags, "--captions-per-line")
    assert code == 0
    command = text.splitlines()[-1].removeprefix("next: python train/finetune.py ")
    config = parse(Config, shlex.split(command), prog="finetune.py", aliases=TRAIN_ALIASES)
    assert (str(config.data[0]), config.model) == (str(folder), str(tiny_model))
    pictures = config.pictures
    assert (pictures.prompt, pictures.held_out, pictures.folder_repeats) == ("a sks", 0.2, False)
    assert pictures.captions_per_line
    assert text.count("a sks") >= 3, "examples"


def test_an_archive_with_another_column_is_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = clean_set(tmp_path / "set", count=3)
    table = folder / "metadata.jsonl"
    table.write_text(table.read_text().replace('"text"', '"said"'))
    archive = shutil.make_archive(str(tmp_path / "set"), "zip", folder)
    code, text = check(capsys, archive, "--into", tmp_path / "new", "--caption-column", "said", "--held-out", 0.3)
    assert code == 0
    assert text.splitlines()[-1] == f"next: python train/finetune.py --data {tmp_path}/new --pictures.held-out 0.3"

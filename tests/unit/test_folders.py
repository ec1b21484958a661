"""--data once or several times, with weights; whatever makes no sense is refused in a sentence."""

from pathlib import Path

import pytest

from data.cli import parse
from data.errors import InputError
from train.config import ALIASES, CONFIGS, Config, Folder
from train.run_folder import run_identity
from train.training_set import folder_labels


def read(*flags: str, preset: Path = CONFIGS / "pocket.yaml") -> Config:
    return parse(Config, flags, prog="finetune.py", preset=preset, aliases=ALIASES)


def yaml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "preset.yaml"
    path.write_text(text + "\n")
    return path


def test_one_folder_is_typed_as_ever(tmp_path: Path) -> None:
    assert read().data == [Folder("pocket")]
    assert read("--data", "cats").data == [Folder("cats")]
    assert read("--train-data-dir=cats").data == [Folder("cats")]
    assert read(preset=yaml(tmp_path, "data: cats")).data == [Folder("cats")]


def test_several_folders_with_weights(tmp_path: Path) -> None:
    expected = [Folder("cats"), Folder("dogs", 2), Folder("anything", 0.25)]
    assert read("--data", "cats", "--data", "dogs=2", "--data=anything=0.25").data == expected
    text = "data:\n- cats\n- {path: dogs, weight: 2}\n- anything=0.25"
    assert read(preset=yaml(tmp_path, text)).data == expected
    assert read("--data", "mice", preset=yaml(tmp_path, text)).data == [Folder("mice")], "a flag replaces the preset's"


def test_a_config_that_was_written_is_read_back(tmp_path: Path) -> None:
    import yaml as library

    config = read("--data", "cats", "--data", "dogs=0.1")
    text = library.safe_dump(config.model_dump(mode="json", include={"data"}))
    assert read(preset=yaml(tmp_path, text)).data == config.data


def test_a_folder_whose_name_ends_in_a_number_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=2").mkdir()
    assert read("--data", "lr=2").data == [Folder("lr=2")]
    assert read("--data", "lr=2=3").data == [Folder("lr=2", 3)]
    assert read("--data", "a=b").data == [Folder("a=b")]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["a=0"], "--data: a has weight 0; allowed: a number above 0 (leave the folder out instead of 0)"),
        (["a=-2"], "--data: a has weight -2; allowed: a number above 0"),
        (["a=nan"], "--data: a has weight nan; allowed"),
        (["a=inf"], "--data: a has weight inf; allowed"),
        (["=2"], "--data: '=2' names no folder"),
        ([""], "--data: '' names no folder"),
        (["a", "b", "./a=3"], "--data: ./a=3 is the same folder as a; name it once, with a weight: ./a=2"),
        (["pocket", "pocket"], "--data: pocket is the same folder as pocket"),
    ],
)
def test_nonsense_is_refused(flags: list[str], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        read(*(part for flag in flags for part in ("--data", flag)))
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: []", ":1: no folder is given"),
        ("data: 3", ":1: 3 is not a folder: write a path, or path: and weight:"),
        ("data: [{path: a, wieght: 2}]", ":1: unknown key 'wieght', did you mean 'weight'?; allowed: path, weight"),
        ("data: [{weight: 2}]", ":1: {'weight': 2} names no folder: it needs path:"),
        ("data: [{path: a, weight: two}]", ":1: a has weight two; allowed: a number above 0"),
        ("data: [{path: a, weight: true}]", ":1: a has weight True; allowed"),
    ],
)
def test_nonsense_in_a_preset_is_refused_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    path = yaml(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read(preset=path)
    assert str(caught.value).startswith(f"{path}{expected}")


def test_labels_are_short_and_different() -> None:
    assert folder_labels([Folder("/x/cats")]) == [""]
    assert folder_labels([Folder("/x/cats"), Folder("/x/dogs"), Folder("pocket")]) == ["cats", "dogs", "pocket"]
    assert folder_labels([Folder("/x/a/cats"), Folder("/x/b/cats"), Folder("/x/b/dogs")]) == [
        "a/cats",
        "b/cats",
        "b/dogs",
    ]
    several = folder_labels([Folder("/cats"), Folder("/x/cats")])
    assert len(set(several)) == 2


def test_where_pictures_are_kept_makes_no_other_run() -> None:
    plain, disk = read(), read("--pictures.keep", "disk")
    assert run_identity(plain, "data", "model") == run_identity(disk, "data", "model")
    assert run_identity(plain, "data", "model") == run_identity(read("--strict"), "data", "model")
    assert run_identity(plain, "data", "model") != run_identity(read("--pictures.flip"), "data", "model")

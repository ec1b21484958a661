"""Several folders become one set: names apart, near-duplicates together, weights in the fingerprint."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.errors import InputError
from train.config import Config
from train.model import BaseModel, load_model
from train.training_set import TrainingSet, keep_split, load_training_set


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> BaseModel:
    return load_model(str(tiny_model))


@pytest.fixture
def folders(tiny_data: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of six creatures each, whose files have the same names."""
    rows = (tiny_data / "metadata.jsonl").read_text().splitlines()
    made = (tmp_path / "water", tmp_path / "fire")
    for folder, part in zip(made, (rows[:6], rows[6:]), strict=True):
        folder.mkdir()
        lines = []
        for number, row in enumerate(map(json.loads, part)):
            shutil.copy(tiny_data / row["file_name"], folder / f"{number}.png")
            lines.append(json.dumps(row | {"file_name": f"{number}.png"}) + "\n")
        (folder / "metadata.jsonl").write_text("".join(lines))
    return made


def read(model: BaseModel, *data: Any, **changes: Any) -> TrainingSet:
    return load_training_set(Config.model_validate({"data": [str(item) for item in data], **changes}), model)


def ids(samples: list[Any]) -> list[str]:
    return [sample.annotation.file_name for sample in samples]


def copied(picture: Path, target: Path, caption: str) -> None:
    """Put a picture into a folder, with a caption of its own."""
    if picture.suffix == target.suffix:
        shutil.copy(picture, target)
    else:
        Image.open(picture).convert("RGB").save(target, quality=92)
    with (target.parent / "metadata.jsonl").open("a") as table:
        table.write(json.dumps({"file_name": target.name, "text": caption}) + "\n")


def test_equal_file_names_stay_apart(model: BaseModel, folders: tuple[Path, Path]) -> None:
    found = read(model, *folders, pictures={"held_out": 0.2})
    names = {f"{folder.name}/{number}.png" for folder in folders for number in range(6)}
    assert set(ids(found.train) + ids(found.held_out)) == names == found.prompts.keys() == found.weights.keys()
    assert len(found.train) + len(found.held_out) == found.found == 12
    facts = found.facts()
    assert facts["train"].keys() | facts["held_out"].keys() == names
    assert sum(share["training"] + share["held_out"] for share in facts["folders"]) == 12
    for sample in found.train:
        assert sample.path.parent.name == sample.annotation.file_name.partition("/")[0]


def test_an_earlier_run_keeps_its_split(model: BaseModel, folders: tuple[Path, Path]) -> None:
    """Of versions that held out about the share, a run goes on with the images that it has."""
    now = read(model, *folders)
    facts = now.facts()
    assert keep_split(now, facts, model, several=True) is now
    assert keep_split(now, {}, model, several=True) is now
    earlier = facts["train"].copy()
    facts["held_out"] = {name: earlier.pop(name) for name in sorted(earlier)[:3]}
    facts["train"] = earlier | now.facts()["held_out"]
    facts["folders"] = [row | {"training": 9 - row["training"]} for row in facts["folders"]]
    then = keep_split(now, facts, model, several=True)
    assert then.facts() == facts
    assert sorted(name for bucket in then.buckets.values() for name in ids(bucket)) == sorted(facts["train"])


def test_training_captions_have_variants_and_held_out_ones_none(model: BaseModel, folders: tuple[Path, Path]) -> None:
    plain = read(model, folders[0])
    varied = read(model, folders[0], pictures={"caption": "a, b, {text}, c", "shuffle_tags": True, "tag_variants": 3})
    for sample in varied.train:
        first, *others = varied.prompts[sample.annotation.file_name]
        assert first == f"a, b, {sample.captions[0]}, c"
        assert 1 <= len(others) <= 3
        assert {tuple(sorted(text.split(", "))) for text in others} == {tuple(sorted(first.split(", ")))}
    assert all(len(varied.prompts[sample.annotation.file_name]) == 1 for sample in varied.held_out)
    assert ids(plain.train) == ids(varied.train)
    with pytest.raises(InputError) as error:
        Config.model_validate({"pictures": {"keep_tags": 1}})
    assert error.value.where == "--pictures.keep-tags"


def test_repeats_of_folders_are_weights(model: BaseModel, folders: tuple[Path, Path]) -> None:
    a, b = folders
    for folder, name in ((a, "3_water"), (b, "1_fire")):
        (folder / "metadata.jsonl").unlink()
        folder.rename(folder.parent / name)
    found = read(model, a.parent)
    assert {name.partition("/")[0]: weight for name, weight in found.weights.items()} == {"3_water": 3.0, "1_fire": 1.0}
    assert found.prompts["3_water/0.png"] == ["water"]
    assert any("used 3 times" in warning for warning in found.warnings)


def test_one_folder_keeps_its_names(model: BaseModel, folders: tuple[Path, Path]) -> None:
    found = read(model, folders[0], pictures={"held_out": 0})
    assert sorted(ids(found.train)) == [f"{number}.png" for number in range(6)]


def test_prompts_are_those_of_the_file_and_not_of_its_label(model: BaseModel, folders: tuple[Path, Path]) -> None:
    found = read(model, *folders, pictures={"caption": "{file_name}"})
    assert found.prompts["fire/3.png"] == ["3.png"]


def test_images_with_a_reason_to_skip_are_not_trained_on(model: BaseModel, folders: tuple[Path, Path]) -> None:
    table = folders[0] / "metadata.jsonl"
    first, *others = table.read_text().splitlines()
    table.write_text("\n".join([json.dumps(json.loads(first) | {"skip_reason": "blurred"}), *others]))
    short = {"caption": "{type}"}
    found = read(model, folders[0], strict=True, pictures=short)  # somebody meant it, so --strict lets it pass
    assert len(found.train) + len(found.held_out) == found.found - 1 == 5 and found.left_out == []
    assert any("'skip_reason'" in warning for warning in found.warnings)


def test_weights_are_relative_and_in_the_fingerprint(model: BaseModel, folders: tuple[Path, Path]) -> None:
    a, b = folders
    plain = read(model, a, b)
    assert set(plain.weights.values()) == {1.0}
    assert read(model, f"{a}=2", f"{b}=2").fingerprint == plain.fingerprint == read(model, b, a).fingerprint
    weighted = read(model, f"{a}=3", f"{b}=1.5")
    assert {name.partition("/")[0]: weight for name, weight in weighted.weights.items()} == {"water": 2.0, "fire": 1.0}
    assert weighted.fingerprint == read(model, f"{a}=2", b).fingerprint != plain.fingerprint
    assert weighted.fingerprint != read(model, a, f"{b}=2").fingerprint


def test_renaming_a_image_or_its_folder_is_no_other_set(model: BaseModel, folders: tuple[Path, Path]) -> None:
    a, b = folders
    before = read(model, a, f"{b}=2").fingerprint
    moved = a.rename(a.with_name("elsewhere"))
    (moved / "0.png").rename(moved / "first.png")
    table = moved / "metadata.jsonl"
    table.write_text(table.read_text().replace('"0.png"', '"first.png"'))
    assert read(model, moved, f"{b}=2").fingerprint == before


def test_near_duplicates_in_two_folders_are_on_one_side(model: BaseModel, folders: tuple[Path, Path]) -> None:
    a, b = folders
    for number in range(6):
        copied(a / f"{number}.png", b / f"copy {number}.jpg", "the same again")
    for seed in range(4):
        found = read(model, a, b, seed=seed, pictures={"held_out": 0.4})
        out = set(ids(found.held_out))
        assert found.near_duplicates == 12 and 0 < len(out) < 18
        for number in range(6):
            assert (f"water/{number}.png" in out) == (f"fire/copy {number}.jpg" in out)


def test_the_same_image_in_two_folders_is_said(model: BaseModel, folders: tuple[Path, Path]) -> None:
    a, b = folders
    assert not read(model, a, b).warnings
    copied(a / "2.png", b / "again.png", "the same bytes")
    (warning,) = read(model, a, b).warnings
    assert warning.startswith("1 image ") and warning.endswith("(e.g. water/2.png and fire/again.png)")
    copied(a / "3.png", b / "and again.png", "the same bytes")
    assert read(model, a, b).warnings[0].startswith("2 images ")


def test_a_column_of_one_folder_is_empty_in_the_other(model: BaseModel, folders: tuple[Path, Path]) -> None:
    copied(folders[0] / "0.png", folders[0] / "odd.png", "odd")
    table_of_b = folders[1] / "metadata.jsonl"
    table_of_b.write_text(table_of_b.read_text().replace('"file_name": "0.png"', '"file_name": "0.png", "mood": "sad"'))
    found = read(model, *folders, pictures={"caption": "{mood} {text}"})
    assert found.prompts["fire/0.png"][0].startswith("sad ")
    assert found.prompts["water/odd.png"] == ["odd"]


def test_images_of_which_a_template_says_nothing(model: BaseModel, folders: tuple[Path, Path]) -> None:
    """Two folders, of which one has the field: the others are named, and trained with the empty prompt."""
    table = folders[1] / "metadata.jsonl"
    table.write_text(table.read_text().replace('"file_name"', '"mood": "sad", "file_name"'))
    asked = {"pictures": {"caption": "{mood}"}}
    found = read(model, *folders, **asked)
    assert found.prompts["fire/0.png"] == ["sad"] and found.prompts["water/0.png"] == [""]
    (warning,) = found.warnings
    assert warning.startswith("6 images ") and "'{mood}'" in warning
    with pytest.raises(InputError, match=r"water/metadata\.jsonl:1: .*template.*\(--strict\)"):
        read(model, *folders, strict=True, **asked)


def test_weights_of_the_same_proportion_are_the_same_set(model: BaseModel, folders: tuple[Path, Path]) -> None:
    a, b = folders
    assert read(model, f"{a}=3", f"{b}=1").fingerprint == read(model, f"{a}=0.3", f"{b}=0.1").fingerprint


def test_every_folder_that_cannot_be_used_is_named(
    model: BaseModel, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        read(model, folders[0], tmp_path / "none", tmp_path / "nowhere=2")
    lines = str(caught.value).splitlines()
    assert len(lines) == 2 and "none" in lines[0] and "nowhere" in lines[1]
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(folders[0] / "0.png", bare / "0.png")
    with pytest.raises(InputError, match=rf"--data {bare}=0.5: no usable image: {bare}/.* has no caption. See"):
        read(model, folders[0], f"{bare}=0.5")

"""The study's sets: classes by name, groups never parted, halves nested and shared by all arms, steps by recipe."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.errors import InputError
from train.study import class_folders, experiment
from train.study.arms import ARMS, arm_members, pick_counts, pick_share
from train.study.config import StudyOptions, Training
from train.study.experiment import Material, Task
from train.study.training import batch_rows, learning_rate_at, training_steps


def write_set(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Noise pictures, so many of each class."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    return write_set(tmp_path / "real", {"cane": 12, "farfalla": 10, "ragno": 11})


def test_italian_folders_are_the_classes_they_mean(animals: Path, tmp_path: Path) -> None:
    """Sorted folder names would pair real butterflies with drawn dogs."""
    real = class_folders.read_class_folders(animals, per_class=100)
    assert real.names == ("butterfly", "dog", "spider")
    drawn = class_folders.read_class_folders(
        write_set(tmp_path / "drawn", {"spider": 3, "dog": 4, "butterfly": 5}, 1), per_class=100
    )
    assert class_folders.match_classes(real, drawn).counts == {"butterfly": 5, "dog": 4, "spider": 3}
    by_label = {real.names[label]: file.parent.name for file, label in zip(real.files, real.labels, strict=True)}
    assert by_label == {"dog": "cane", "butterfly": "farfalla", "spider": "ragno"}


def test_at_most_so_many_a_class_and_always_the_same_ones(animals: Path) -> None:
    few = class_folders.read_class_folders(animals, per_class=6)
    assert set(few.counts.values()) == {6}
    assert few.files == class_folders.read_class_folders(animals, per_class=6).files
    assert set(few.files) != set(class_folders.read_class_folders(animals, per_class=6, seed=1).files)


def test_near_duplicates_are_one_group(animals: Path) -> None:
    Image.open(animals / "cane" / "0.png").save(animals / "cane" / "copy.png")
    found = class_folders.read_class_folders(animals, per_class=100)
    places = [index for index, file in enumerate(found.files) if file.name in ("0.png", "copy.png")
              and file.parent.name == "cane"]  # fmt: skip
    assert len(set(found.groups[places])) == 1
    assert len(set(found.groups)) == len(found) - 1


def test_a_species_is_never_on_both_sides() -> None:
    from data.sample_set import sample_folder

    found = class_folders.read_class_folders(sample_folder(), per_class=1000, duplicates=False)
    assert len(found.names) == 10 and len(found) == 650 and len(set(found.groups)) == 100
    for repeat in range(3):
        cut = class_folders.split(found, 0.2, repeat, seed=0)
        assert not set(found.groups[cut.train]) & set(found.groups[cut.test])
        assert sorted([*cut.train, *cut.test]) == list(range(650))
        assert len(cut.test) == pytest.approx(130, abs=40)
        assert set(found.labels[cut.test]) == set(range(10))
    cuts = [tuple(class_folders.split(found, 0.2, repeat, seed=0).test) for repeat in range(3)]
    assert len(set(cuts)) == 3, "a new cut each repeat"
    assert cuts[0] == tuple(class_folders.split(found, 0.2, 0, seed=0).test)


def test_halves_are_of_each_class_nested_and_shared() -> None:
    labels = np.repeat([0, 1, 2], [40, 20, 10])
    half, whole = pick_share(labels, 0.5, 3, "real"), pick_share(labels, 1.0, 3, "real")
    assert np.bincount(labels[half]).tolist() == [20, 10, 5]
    assert set(half) < set(whole) == set(range(70))
    assert len(pick_share(labels, 0.0, 3, "real")) == 0
    assert pick_counts(labels, {0: 5, 2: 99}, 1).size == 15, "all there are, where too few"


def test_every_arm_has_what_its_name_says() -> None:
    labels, drawn = np.repeat([0, 1], [30, 20]), np.repeat([0, 1], [60, 60])
    rows, other = np.arange(50), np.arange(120)
    found = {name: arm_members(arm, rows, labels, other, drawn, 0, "repeat", 1) for name, arm in ARMS.items()}
    sizes = {name: (len(each.real), len(each.artificial)) for name, each in found.items()}
    assert sizes == {
        "real": (50, 0), "half": (25, 0), "half-twice": (25, 0), "half-augmented": (25, 0), "artificial": (0, 50),
        "mixed": (25, 25), "real-and-artificial": (50, 50),
    }  # fmt: skip
    halves = [found[name].real.tolist() for name in ("half", "half-twice", "half-augmented", "mixed")]
    assert halves.count(halves[0]) == 4, "the very same half, as in the thesis"
    assert set(found["mixed"].artificial) < set(found["artificial"].artificial)
    assert np.bincount(drawn[found["artificial"].artificial]).tolist() == [30, 20], "the real classes' shares"


def test_steps() -> None:
    equal, thesis = Training(steps=300), Training(recipe="thesis")
    assert {name: training_steps(equal, arm, 100) for name, arm in ARMS.items()} == {
        name: 150 if name == "half" else 300 for name in ARMS
    }
    assert training_steps(thesis, ARMS["real"], 800) == 30 * 800 // 32
    assert training_steps(thesis, ARMS["half"], 400) == training_steps(thesis, ARMS["real"], 800) // 2
    assert training_steps(thesis, ARMS["half-twice"], 400) == training_steps(thesis, ARMS["real"], 800)


def test_learning_rates() -> None:
    thesis = Training(recipe="thesis", learning_rate=1e-3)
    assert [learning_rate_at(thesis, step, 300) for step in (0, 69, 70, 139, 140, 299)] == pytest.approx(
        [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-7]
    ), "a tenth every 7 of 30 passes"
    equal = Training(learning_rate=1e-3)
    assert learning_rate_at(equal, 0, 300) == 1e-3
    assert learning_rate_at(equal, 150, 300) == pytest.approx(5e-4)


def test_all_pictures_before_any_again() -> None:
    rows = [row for step in range(10) for row in batch_rows(20, 6, step, seed=4)]
    assert sorted(rows[:20]) == sorted(rows[20:40]) == sorted(rows[40:60]) == list(range(20))
    assert rows[:20] != rows[20:40]


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({"a": 8}, "only the class 'a'; allowed: two folders of pictures or more, one a class"),
        ({}, "no classes; allowed: two folders"),
        ({"a": 8, "b": 0}, "no pictures of 'b'; allowed:"),
    ],
)
def test_folders_that_are_no_classes(counts: dict[str, int], text: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(InputError) as caught:
        class_folders.read_class_folders(write_set(tmp_path / "set", counts), per_class=9)
    assert text in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        class_folders.read_class_folders(tmp_path / "nothing", per_class=9)


def test_classes_that_do_not_match(animals: Path, tmp_path: Path) -> None:
    real = class_folders.read_class_folders(animals, per_class=9)
    drawn = class_folders.read_class_folders(write_set(tmp_path / "drawn", {"spider": 2, "dogs": 2}), per_class=9)
    with pytest.raises(InputError) as caught:
        class_folders.match_classes(real, drawn)
    assert "classes that real has not: dogs, did you mean 'dog'?; no pictures of: butterfly, dog" in str(caught.value)


def test_too_few_groups_to_test_on(tmp_path: Path) -> None:
    found = class_folders.read_class_folders(write_set(tmp_path / "set", {"a": 9, "b": 3}), per_class=9)
    with pytest.raises(InputError, match=r"'b' of set has 3 groups .*; allowed: 5 or more"):
        class_folders.split(found, 0.2, 0, seed=0)


def test_options() -> None:
    assert StudyOptions().arms == tuple(ARMS)


def test_what_a_generator_copied_is_not_learnt_where_it_is_tested_on(animals: Path, tmp_path: Path) -> None:
    """A real picture among the drawn ones, mirrored and darker; and a drawn twin of that."""
    real = class_folders.read_class_folders(animals, per_class=100)
    drawn = write_set(tmp_path / "drawn", dict.fromkeys(real.names, 6), 7)
    copied, kind = real.files[3], real.names[real.labels[3]]
    with Image.open(copied) as picture:
        mirrored = picture.convert("RGB").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.point([round(0.95 * value) for value in range(256)] * 3).save(drawn / kind / "copy.png")
    mirrored.save(drawn / kind / "copy2.png")
    read = class_folders.match_classes(real, class_folders.read_class_folders(drawn, per_class=100, duplicates=False))
    twins = class_folders.find_copies(real, read)
    names = [read.files[row].name for row in np.flatnonzero(twins >= 0)]
    assert names == ["copy.png", "copy2.png"] and set(twins[twins >= 0].tolist()) == {3}
    material = Material(real, (read,), {}, {read.name: twins})
    options = StudyOptions(test_share=0.5)
    sides = []
    for repeat in range(4):
        task = Task(repeat, "artificial", read.name)
        mine, cut, _ = experiment.task_members(options, material, task)
        learnt = set(np.flatnonzero(twins >= 0).tolist()) & set(mine.artificial.tolist())
        sides.append(3 in cut.test)
        assert not (learnt and sides[-1])
    assert any(sides)

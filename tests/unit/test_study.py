"""The study on planted domains: sets and arms, what it finds and stores, that it resumes, what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.errors import InputError
from data.sample_set import sample_folder
from train.study import commands, experiment, report
from train.study.config import ARMS, ClassifyOptions, StudyOptions, TrainingOptions
from train.study.experiment import (
    NEEDS_NONE,
    Answer,
    Material,
    Task,
    arm_members,
    find_copies,
    match_classes,
    pick_rows,
    read_class_folders,
    split,
)
from train.study.training import NETS, batch_rows, learning_rate_at, make_network, measure, training_steps

COLOURS = ((200, 60, 60), (60, 200, 60), (60, 60, 200))
FEW = ("real", "artificial", "mixed")


def write_noise(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Noise images, so many of each class."""
    random = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(random.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / name / f"{number}.png")
    return folder


def write_domain(folder: Path, count: int, *, wrong: float, seed: int) -> Path:
    """Three classes by their colour, in noise; a share `wrong` of the images has another class' colour."""
    random = np.random.default_rng(seed)
    for label in range(3):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(count):
            shown = (label + random.integers(1, 3)) % 3 if random.random() < wrong else label
            noisy = np.asarray(COLOURS[shown]) + random.normal(0, 55, (24, 24, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"class{label}" / f"{number}.png")
    return folder


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    return write_noise(tmp_path / "real", {"cane": 12, "farfalla": 10, "ragno": 11})


# ---- sets


def test_italian_folders_are_the_classes_they_mean(animals: Path, tmp_path: Path) -> None:
    """Sorted folder names would pair real butterflies with generated dogs."""
    real = read_class_folders(animals, per_class=100)
    assert real.names == ("butterfly", "dog", "spider")
    generated = write_noise(tmp_path / "generated", {"spider": 3, "dog": 4, "butterfly": 5}, 1)
    matched = match_classes(real, read_class_folders(generated, per_class=100))
    assert matched.counts == {"butterfly": 5, "dog": 4, "spider": 3}
    by_label = {real.names[label]: file.parent.name for file, label in zip(real.files, real.labels, strict=True)}
    assert by_label == {"dog": "cane", "butterfly": "farfalla", "spider": "ragno"}


def test_at_most_so_many_of_a_class_and_always_the_same_ones(animals: Path) -> None:
    few = read_class_folders(animals, per_class=6)
    assert set(few.counts.values()) == {6}
    assert few.files == read_class_folders(animals, per_class=6).files
    assert set(few.files) != set(read_class_folders(animals, per_class=6, seed=1).files)


def test_near_duplicates_are_one_group(animals: Path) -> None:
    Image.open(animals / "cane" / "0.png").save(animals / "cane" / "copy.png")
    images = read_class_folders(animals, per_class=100)
    copies = [
        row
        for row, file in enumerate(images.files)
        if file.name in ("0.png", "copy.png") and file.parent.name == "cane"
    ]
    assert len(copies) == 2 and len(set(images.groups[copies])) == 1
    assert len(set(images.groups)) == len(images) - 1


def test_a_species_is_never_on_both_sides() -> None:
    images = read_class_folders(sample_folder(), per_class=1000, duplicates=False)
    assert len(images.names) == 10 and len(images) == 650 and len(set(images.groups)) == 100
    tests = []
    for repeat in range(3):
        parts = split(images, 0.2, repeat, seed=0)
        assert not set(images.groups[parts.train]) & set(images.groups[parts.test])
        assert sorted([*parts.train, *parts.test]) == list(range(650))
        assert len(parts.test) == pytest.approx(130, abs=40)
        assert set(images.labels[parts.test]) == set(range(10))
        tests.append(tuple(parts.test))
    assert len(set(tests)) == 3, "a new split each repeat"
    assert tests[0] == tuple(split(images, 0.2, 0, seed=0).test)


@pytest.mark.parametrize(
    ("counts", "what"), [({"a": 8}, "only the class 'a'"), ({}, "no classes"), ({"a": 8, "b": 0}, "no images of 'b'")]
)
def test_folders_without_classes(counts: dict[str, int], what: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_class_folders(write_noise(tmp_path / "set", counts), per_class=9)
    assert what in caught.value.what and caught.value.allowed
    with pytest.raises(InputError, match="no such folder"):
        read_class_folders(tmp_path / "nothing", per_class=9)


def test_classes_that_do_not_match(animals: Path, tmp_path: Path) -> None:
    real = read_class_folders(animals, per_class=9)
    generated = read_class_folders(write_noise(tmp_path / "generated", {"spider": 2, "dogs": 2}), per_class=9)
    with pytest.raises(InputError, match=r"dogs, did you mean 'dog'\?; .*: butterfly, dog"):
        match_classes(real, generated)


def test_too_few_groups_to_test_on(tmp_path: Path) -> None:
    images = read_class_folders(write_noise(tmp_path / "set", {"a": 9, "b": 3}), per_class=9)
    with pytest.raises(InputError, match=r"'b' of set has 3 groups .*; allowed: 5 or more"):
        split(images, 0.2, 0, seed=0)


# ---- arms


def test_rows_are_of_each_class_nested_and_shared() -> None:
    labels = np.repeat([0, 1, 2], [40, 20, 10])
    half = pick_rows(labels, {0: 20, 1: 10, 2: 5}, 3, "real")
    whole = pick_rows(labels, {0: 40, 1: 20, 2: 10}, 3, "real")
    assert np.bincount(labels[half]).tolist() == [20, 10, 5]
    assert set(half) < set(whole) == set(range(70))
    assert pick_rows(labels, {0: 5, 2: 99}, 1).size == 15, "all there are, where too few"


def test_every_arm_has_what_its_name_says() -> None:
    labels, other_labels = np.repeat([0, 1], [30, 20]), np.repeat([0, 1], [60, 60])
    rows, other = np.arange(50), np.arange(120)
    members = {name: arm_members(arm, rows, labels, other, other_labels, 0, "repeat", 1) for name, arm in ARMS.items()}
    sizes = {"real": (50, 0), "half": (25, 0), "half-twice": (25, 0), "half-augmented": (25, 0)}
    sizes |= {"artificial": (0, 50), "mixed": (25, 25), "real-and-artificial": (50, 50)}
    assert {name: (len(own), len(other)) for name, (own, other) in members.items()} == sizes
    halves = [members[name][0].tolist() for name in ("half", "half-twice", "half-augmented", "mixed")]
    assert halves.count(halves[0]) == 4, "the very same half, as in the thesis"
    assert set(members["mixed"][1]) < set(members["artificial"][1])
    assert np.bincount(other_labels[members["artificial"][1]]).tolist() == [30, 20], "the real classes' shares"
    assert all(arm.explained for arm in ARMS.values())


def test_steps_and_learning_rates() -> None:
    equal, thesis = TrainingOptions(steps=300, learning_rate=1e-3), TrainingOptions(recipe="thesis", learning_rate=1e-3)
    steps = {name: training_steps(equal, arm, 100) for name, arm in ARMS.items()}
    assert steps == dict.fromkeys(ARMS, 300) | {"half": 150}
    assert training_steps(thesis, ARMS["real"], 800) == 30 * 800 // 32
    assert training_steps(thesis, ARMS["half"], 400) == training_steps(thesis, ARMS["real"], 800) // 2
    assert training_steps(thesis, ARMS["half-twice"], 400) == training_steps(thesis, ARMS["real"], 800)
    rates = [learning_rate_at(thesis, step, 300) for step in (0, 69, 70, 139, 140, 299)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-7]), "a tenth every 7 of 30 passes"
    assert [learning_rate_at(equal, step, 300) for step in (0, 150)] == pytest.approx([1e-3, 5e-4])


def test_all_images_before_any_again() -> None:
    rows = [row for step in range(10) for row in batch_rows(20, 6, step, seed=4)]
    assert sorted(rows[:20]) == sorted(rows[20:40]) == sorted(rows[40:60]) == list(range(20))
    assert rows[:20] != rows[20:40]


def test_copies_of_test_images_are_not_trained_on(animals: Path, tmp_path: Path) -> None:
    """A real image among the generated ones, mirrored and darker, twice."""
    real = read_class_folders(animals, per_class=100)
    folder = write_noise(tmp_path / "generated", dict.fromkeys(real.names, 6), 7)
    kind = real.names[real.labels[3]]
    with Image.open(real.files[3]) as image:
        mirrored = image.convert("RGB").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.point([round(0.95 * value) for value in range(256)] * 3).save(folder / kind / "copy.png")
    mirrored.save(folder / kind / "copy2.png")
    generated = match_classes(real, read_class_folders(folder, per_class=100, duplicates=False))
    twins = find_copies(real, generated)
    copies = np.flatnonzero(twins >= 0)
    assert [generated.files[row].name for row in copies] == ["copy.png", "copy2.png"] and set(twins[copies]) == {3}
    material, options = Material(real, (generated,), {}, {generated.name: twins}), StudyOptions(test_share=0.5)
    tested = []
    for repeat in range(4):
        _, learned, parts = experiment.task_members(options, material, Task(repeat, "artificial", generated.name))
        tested.append(3 in parts.test)
        assert not (set(copies) & set(learned.tolist()) and tested[-1])
    assert any(tested)


# ---- the whole study


def no_generation(options: StudyOptions) -> Path:
    raise AssertionError("nothing is to be generated")


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyOptions, Path]:
    """A finished study: generated images are right once in three times."""
    place = tmp_path_factory.mktemp("study")
    options = StudyOptions(
        real=write_domain(place / "real", 20, wrong=0.0, seed=0),
        artificial=(write_domain(place / "drawn", 24, wrong=0.67, seed=1),),
        arms=FEW, repeats=5, size=16, steps=25, batch_size=16, threads=1, outdir=place / "out", device="cpu"
    )  # fmt: skip
    commands.run_study(options, no_generation)
    return options, place / "out"


def material_of(options: StudyOptions) -> Material:
    assert options.real
    return experiment.load_material(options, options.artificial, options.real)


def answers_of(options: StudyOptions) -> list[Answer]:
    assert options.outdir
    return experiment.train_all(options, material_of(options), options.outdir)


def test_the_planted_gap_is_found(studied: tuple[StudyOptions, Path]) -> None:
    options, out = studied
    rows = {row.arm: row for row in report.arm_rows(answers_of(options))}
    assert rows["real"].accuracy.value > 0.9 and rows["artificial"].accuracy.value < 0.7
    facts = json.loads((out / "report.json").read_text())
    first = next(each for each in facts["differences"] if each["arm"] == "artificial")
    assert first["word"] == "less" and first["points"]["high"] < 0
    assert facts["sets"]["drawn"] == {"class0": 24, "class1": 24, "class2": 24}
    assert 0.5 < facts["domain gap (AUC)"]["drawn"] <= 1.0
    page = (out / "report.html").read_text()
    assert "0.7281" in page and "Openjourney v4" in page, "the thesis' table"
    assert all(f"figure {figure}" in page for figure in ("3.2", "3.3", "3.4", "3.5"))


def test_a_killed_study_resumes_to_the_same_answers(studied: tuple[StudyOptions, Path]) -> None:
    options, out = studied
    files = sorted((out / "answers").iterdir())
    assert len(files) == 5 * len(FEW)
    with np.load(files[4]) as arrays:
        before = arrays["real"]
    kept = files[5].stat().st_mtime_ns
    files[4].unlink()
    answers_of(options)
    with np.load(files[4]) as again:
        assert np.array_equal(again["real"], before)
    assert files[5].stat().st_mtime_ns == kept, "nothing is trained twice"
    assert sorted((out / "answers").iterdir()) == files
    with np.load(out / "answers" / "000-mixed-drawn.npz") as stored:
        assert len(stored["files"]) == len(stored["real"]) == len(stored["real_labels"]) == 12
        assert stored["artificial/drawn"].shape[1] == 3, "the second test column"
        assert stored["files"][0].endswith(".png")


def test_training_depends_on_the_seed_alone(studied: tuple[StudyOptions, Path], tmp_path: Path) -> None:
    options, _ = studied
    torch.manual_seed(99)
    again = options.model_copy(update={"outdir": tmp_path, "repeats": 2, "arms": ("mixed",)})
    first = {(each.repeat, each.arm): each.real for each in answers_of(options)}
    assert all(np.array_equal(each.real, first[each.repeat, each.arm]) for each in answers_of(again))


def test_mistakes_are_named(studied: tuple[StudyOptions, Path], tmp_path: Path) -> None:
    options, _ = studied
    with pytest.raises(InputError, match="study of other settings or images"):
        answers_of(options.model_copy(update={"steps": 26}))
    with pytest.raises(InputError, match="did you mean 'half'") as caught:
        answers_of(options.model_copy(update={"arms": ("halve",)}))
    assert caught.value.where == "--arms"
    with pytest.raises(InputError, match="no artificial images") as caught:
        commands.run_study(StudyOptions(real=tmp_path), no_generation)
    assert caught.value.where == "--artificial" and "infer/synthesize.py" in str(caught.value.fix)


def test_as_many_real_images_as_are_generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without folders both sides have --drawn-per-class: "artificial" does not mean "fewer" as well."""
    real = write_domain(tmp_path / "real", 20, wrong=0.0, seed=0)
    monkeypatch.setattr(commands, "sample_folder", lambda size: real)
    few = {"arms": FEW, "repeats": 2, "size": 16, "steps": 1, "batch_size": 4, "threads": 1, "device": "cpu"}
    options = StudyOptions.model_validate({**few, "drawn_per_class": 6, "outdir": tmp_path / "out"})
    commands.run_study(
        options, lambda asked: write_domain(tmp_path / "drawn", asked.drawn_per_class, wrong=0.5, seed=1)
    )
    facts = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [set(counts.values()) for counts in facts["sets"].values()] == [{6}, {6}]
    trained = {row["arm"]: row["pictures"] for row in facts["arms"]}
    assert trained["real"] == trained["artificial"]
    assert facts["copies of real pictures"] == {"drawn": 0}


def test_a_theme_is_ten_classifiers(studied: tuple[StudyOptions, Path]) -> None:
    """Figure 3.1 of the thesis: real, half, artificial and mixed of four generators; the other theme makes twenty."""
    options, _ = studied
    material = material_of(options)
    four = tuple(replace(material.artificial[0], name=f"generator {number}") for number in range(4))
    asked = options.model_copy(update={"arms": ("real", "half", "artificial", "mixed"), "repeats": 3})
    tasks = experiment.list_tasks(asked, replace(material, artificial=four))
    assert len(tasks) == 3 * 10 and len({(task.arm, task.generator) for task in tasks}) == 10


# ---- conclusions and measures


def answer(repeat: int, arm: str, right: float, generator: str = NEEDS_NONE) -> Answer:
    """An answer that is right so often, of 200 images."""
    labels = np.arange(200) % 2
    predicted = np.where(np.arange(200) < round(200 * right), labels, 1 - labels)
    return Answer(repeat, arm, generator, 1, 1, np.eye(2, dtype=np.float32)[predicted], labels, {}, {})


def test_differences_are_paired_and_named() -> None:
    answers = [answer(r, "real", 0.8 + 0.01 * r) for r in range(5)]
    answers += [answer(r, "mixed", 0.795 + 0.01 * r, "g") for r in range(5)]
    answers += [answer(r, "artificial", (0.3, 0.35, 0.32, 0.31, 0.36)[r], "g") for r in range(5)]
    found = {each.arm: each for each in report.differences(answers, test_share=0.2, margin=4.0)}
    assert found["mixed"].points.value == pytest.approx(-0.5)
    assert found["mixed"].within < 0.05 and found["artificial"].word == "less"
    noisy = [answer(r, "real", 0.5) for r in range(5)]
    noisy += [answer(r, "mixed", (0.4, 0.6, 0.45, 0.58, 0.5)[r], "g") for r in range(5)]
    assert report.differences(noisy, test_share=0.2, margin=4.0)[0].word == "not known"


def test_measures_are_by_hand() -> None:
    labels = np.array([0, 0, 0, 1])
    found = measure(np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])), labels)
    assert (found.accuracy, found.majority) == (0.75, 0.75)
    assert found.recalls == pytest.approx((2 / 3, 1.0))
    assert found.balanced == pytest.approx(5 / 6)
    assert found.macro_f1 == pytest.approx((0.8 + 2 / 3) / 2)
    assert found.calibration == pytest.approx(0.15), "confidence 0.9, right in 0.75"


def test_the_networks() -> None:
    count = {name: sum(p.numel() for p in make_network(name, 10, 0).parameters()) for name in NETS}
    assert count["resnet34"] == 21_289_802
    assert count["tiny"] == pytest.approx(60_000, rel=0.05)
    before = torch.get_rng_state()
    one, two = (make_network("tiny", 4, seed=3) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert make_network("resnet34", 5, 0)(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_the_thesis_numbers() -> None:
    cells = report.published_table()
    assert len(cells) == 2 * (2 + 2 * 4)
    assert report.spread(cells, theme="animals", arm="artificial").value == pytest.approx(0.264, abs=1e-3), "figure 3.2"
    assert report.spread(cells, theme="fruits", arm="mixed").value == pytest.approx(0.701, abs=1e-3), "figure 3.3"


def test_one_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = write_domain(tmp_path / "set", 12, wrong=0.0, seed=3), tmp_path / "out"
    options = ClassifyOptions(train=folder, size=16, steps=20, batch_size=8, threads=1, outdir=out)
    assert commands.classify(options) == 0
    assert "class2" in capsys.readouterr().out
    lines = (out / "predictions.csv").read_text().splitlines()
    assert lines[0] == "file,class,said" and len(lines) > 5
    assert (out / "model.safetensors").is_file()
    with pytest.raises(InputError, match="36 of 36 test images are in --train as well"):
        commands.classify(options.model_copy(update={"test": folder}))

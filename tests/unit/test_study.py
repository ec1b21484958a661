"""The whole study on planted domains: what it finds, what it stores, that it goes on, what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.errors import InputError
from train.study import commands, conclusions, experiment, measures, report, training
from train.study.arms import ARMS
from train.study.config import ClassifyOptions, StudyOptions
from train.study.experiment import NEEDS_NONE, Answer

COLOURS = ((200, 60, 60), (60, 200, 60), (60, 60, 200))
FEW = ("real", "artificial", "mixed")


def write_domain(folder: Path, count: int, *, wrong: float, seed: int) -> Path:
    """Three classes by their colour, in noise; a share `wrong` of the pictures has another class' colour."""
    rng = np.random.default_rng(seed)
    for label in range(3):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(count):
            shown = (label + rng.integers(1, 3)) % 3 if rng.random() < wrong else label
            noisy = np.asarray(COLOURS[shown]) + rng.normal(0, 55, (24, 24, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"class{label}" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyOptions, Path]:
    """A finished study: drawn pictures are right twice in three times."""
    place = tmp_path_factory.mktemp("study")
    options = StudyOptions(
        real=write_domain(place / "real", 20, wrong=0.0, seed=0),
        artificial=(write_domain(place / "drawn", 24, wrong=0.67, seed=1),),
        arms=FEW, repeats=5, size=16, steps=25, batch_size=16, threads=1, outdir=place / "out", device="cpu",
    )  # fmt: skip
    commands.run_study(options, refuse_to_draw)
    return options, place / "out"


def refuse_to_draw(options: StudyOptions) -> Path:
    raise AssertionError("nothing is to be drawn")


def answers_of(options: StudyOptions) -> list[Answer]:
    assert options.outdir
    return experiment.train_all(options, answers_material(options), options.outdir)


def test_the_planted_gap_is_found(studied: tuple[StudyOptions, Path]) -> None:
    options, out = studied
    table = {row.arm: row for row in conclusions.arm_rows(answers_of(options))}
    assert table["real"].accuracy.value > 0.9
    assert table["artificial"].accuracy.value < 0.7
    told = json.loads((out / "report.json").read_text())
    first = next(each for each in told["differences"] if each["arm"] == "artificial")
    assert first["word"] == "less" and first["points"]["high"] < 0
    assert told["sets"]["drawn"] == {"class0": 24, "class1": 24, "class2": 24}
    assert 0.5 < told["domain gap (AUC)"]["drawn"] <= 1.0


def test_the_page_says_it_in_words(studied: tuple[StudyOptions, Path]) -> None:
    page = (studied[1] / "report.html").read_text()
    assert "No, it is worse: -" in page
    assert "0.7281" in page and "Openjourney v4" in page, "the thesis' table beside ours"
    for figure in ("3.2", "3.3", "3.4", "3.5"):
        assert f"figure {figure}" in page
    assert "<script" not in page


def test_a_killed_study_goes_on_to_the_same_answers(studied: tuple[StudyOptions, Path]) -> None:
    options, out = studied
    before = {file.name: file.read_bytes() for file in (out / "answers").iterdir()}
    assert len(before) == 5 * len(FEW)
    lost = sorted((out / "answers").iterdir())[4]
    kept = sorted((out / "answers").iterdir())[5].stat().st_mtime_ns
    lost.unlink()
    answers_of(options)
    with np.load(lost) as again, np.load(out / "answers" / lost.name) as first:
        assert np.array_equal(again["real"], first["real"])
    assert sorted((out / "answers").iterdir())[5].stat().st_mtime_ns == kept, "nothing is trained twice"
    assert {file.name for file in (out / "answers").iterdir()} == set(before)


def test_training_depends_on_the_seed_alone(studied: tuple[StudyOptions, Path], tmp_path: Path) -> None:
    options, _ = studied
    torch.manual_seed(99)
    again = options.model_copy(update={"outdir": tmp_path, "repeats": 2, "arms": ("mixed",)})
    first = {(each.repeat, each.arm): each.real for each in answers_of(options)}
    for each in answers_of(again):
        assert np.array_equal(each.real, first[each.repeat, each.arm])


def test_every_test_picture_is_stored_with_its_name(studied: tuple[StudyOptions, Path]) -> None:
    with np.load(studied[1] / "answers" / "000-mixed-drawn.npz") as stored:
        assert len(stored["files"]) == len(stored["real"]) == len(stored["real_labels"]) == 12
        assert stored["artificial/drawn"].shape[1] == 3, "the second test column"
        assert stored["files"][0].endswith(".png")


def test_another_study_in_the_same_folder(studied: tuple[StudyOptions, Path]) -> None:
    options, _ = studied
    with pytest.raises(InputError, match="holds a study of other settings or pictures"):
        answers_of(options.model_copy(update={"steps": 26}))


def test_real_pictures_without_artificial_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--artificial: no artificial pictures .* infer/synthesize.py"):
        commands.run_study(StudyOptions(real=tmp_path), refuse_to_draw)


def test_as_many_real_pictures_as_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no folders at all both sides have --drawn-per-class: "artificial" is not "fewer" as well."""
    place = write_domain(tmp_path / "real", 20, wrong=0.0, seed=0)
    monkeypatch.setattr(commands, "sample_folder", lambda size: place)
    few = {"arms": FEW, "repeats": 2, "size": 16, "steps": 1, "batch_size": 4, "threads": 1, "device": "cpu"}
    options = StudyOptions.model_validate({**few, "drawn_per_class": 6, "outdir": tmp_path / "out"})
    commands.run_study(
        options, lambda asked: write_domain(tmp_path / "drawn", asked.drawn_per_class, wrong=0.5, seed=1)
    )
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [set(counts.values()) for counts in told["sets"].values()] == [{6}, {6}]
    trained = {row["arm"]: row["pictures"] for row in told["arms"]}
    assert trained["real"] == trained["artificial"]
    assert told["copies of real pictures"] == {"drawn": 0}


def test_a_theme_is_ten_classifiers(studied: tuple[StudyOptions, Path]) -> None:
    """Figure 3.1 of the thesis: real, half, artificial and mixed of four generators; the other theme makes twenty."""
    options, _ = studied
    material = answers_material(options)
    four = tuple(replace(material.artificial[0], name=f"generator {number}") for number in range(4))
    asked = options.model_copy(update={"arms": ("real", "half", "artificial", "mixed"), "repeats": 3})
    found = experiment.list_tasks(asked, replace(material, artificial=four))
    assert len(found) == 3 * 10 and len({(task.arm, task.generator) for task in found}) == 10


def answers_material(options: StudyOptions) -> experiment.Material:
    assert options.real
    return experiment.load_material(options, options.artificial, options.real)


def test_an_unknown_arm(studied: tuple[StudyOptions, Path]) -> None:
    with pytest.raises(InputError, match="--arms: unknown arm 'halve', did you mean 'half'"):
        answers_of(studied[0].model_copy(update={"arms": ("halve",)}))


def answer(repeat: int, arm: str, right: float, generator: str = NEEDS_NONE) -> Answer:
    """An answer that is right so often, of 200 pictures."""
    labels = np.arange(200) % 2
    said = np.where(np.arange(200) < round(200 * right), labels, 1 - labels)
    return Answer(repeat, arm, generator, 1, 1, np.eye(2, dtype=np.float32)[said], labels, {}, {})


def test_differences_are_paired_and_named() -> None:
    answers = [answer(r, "real", 0.8 + 0.01 * r) for r in range(5)]
    answers += [answer(r, "mixed", 0.795 + 0.01 * r, "g") for r in range(5)]
    answers += [answer(r, "artificial", (0.3, 0.35, 0.32, 0.31, 0.36)[r], "g") for r in range(5)]
    found = {each.arm: each for each in conclusions.differences(answers, test_share=0.2, margin=4.0)}
    assert found["mixed"].points.value == pytest.approx(-0.5)
    assert found["mixed"].within < 0.05 and found["artificial"].word == "less"
    noisy = [answer(r, "real", 0.5) for r in range(5)]
    noisy += [answer(r, "mixed", (0.4, 0.6, 0.45, 0.58, 0.5)[r], "g") for r in range(5)]
    assert conclusions.differences(noisy, test_share=0.2, margin=4.0)[0].word == "not known"


def test_measures_are_by_hand() -> None:
    labels = np.array([0, 0, 0, 1])
    logits = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]]))
    found = measures.measure(logits, labels)
    assert (found.accuracy, found.majority) == (0.75, 0.75)
    assert found.recalls == pytest.approx((2 / 3, 1.0))
    assert found.balanced == pytest.approx(5 / 6)
    assert found.macro_f1 == pytest.approx((0.8 + 2 / 3) / 2)
    assert found.calibration == pytest.approx(0.15), "says 0.9, is right in 0.75"


def test_the_nets() -> None:
    count = {name: sum(p.numel() for p in training.make_network(name, 10, 0).parameters()) for name in training.NETS}
    assert count["resnet34"] == 21_289_802
    assert count["tiny"] == pytest.approx(60_000, rel=0.05)
    before = torch.get_rng_state()
    one, two = (training.make_network("tiny", 4, seed=3) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert training.make_network("resnet34", 5, 0)(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_the_thesis_numbers() -> None:
    cells = report.published_table()
    assert len(cells) == 2 * (2 + 2 * 4)
    mean = np.mean([float(c["accuracy"]) for c in cells if c["theme"] == "animals" and c["arm"] == "artificial"])
    assert mean == pytest.approx(0.264, abs=1e-3), "figure 3.2"
    mixed = report.spread(cells, "fruits", "mixed").value
    assert mixed == pytest.approx(0.701, abs=1e-3), "figure 3.3"


def test_one_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_domain(tmp_path / "set", 12, wrong=0.0, seed=3)
    options = ClassifyOptions(train=folder, size=16, steps=20, batch_size=8, threads=1, outdir=tmp_path / "out")
    assert commands.classify(options) == 0
    said = capsys.readouterr().out
    assert "accuracy" in said and "class2" in said
    lines = (tmp_path / "out" / "predictions.csv").read_text().splitlines()
    assert lines[0] == "file,class,said" and len(lines) > 5
    assert (tmp_path / "out" / "model.safetensors").is_file()
    with pytest.raises(InputError, match="36 of 36 test pictures are in --train as well"):
        commands.classify(options.model_copy(update={"test": folder}))


def test_all_arms_are_explained() -> None:
    assert all(arm.explained for arm in ARMS.values())

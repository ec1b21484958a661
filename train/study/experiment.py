"""All repeats of all arms: each trained once and its answers stored, so that a killed study goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from data import rng
from data.atomic_io import atomic_file, write_atomic
from data.errors import InputError, check_choice
from train.study import class_folders
from train.study.arms import ARMS, ArmMembers, arm_members
from train.study.class_folders import LabelledImages
from train.study.config import StudyOptions
from train.study.training import LabelledPixels, predict_logits, train_classifier, training_steps

NEEDS_NONE = "real only"


@dataclass(frozen=True)
class Material:
    """The real set, and one artificial set a generator, all under the real classes' numbers."""

    real: LabelledImages
    artificial: tuple[LabelledImages, ...]
    pixels: dict[str, NDArray[np.uint8]]  # by the name of the set
    twins: dict[str, NDArray[np.int64]]  # by the name of an artificial set: the real picture that each copies, or -1


@dataclass(frozen=True)
class Answer:
    """One trained classifier's logits. generator: of the artificial pictures it learnt from, or NEEDS_NONE."""

    repeat: int
    arm: str
    generator: str
    steps: int
    pictures: int
    real: NDArray[np.float32]  # (test pictures, classes)
    real_labels: NDArray[np.int64]
    artificial: dict[str, NDArray[np.float32]]  # by generator, on pictures that it did not learn
    artificial_labels: dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Task:
    repeat: int
    arm: str
    generator: str

    @property
    def file(self) -> str:
        return f"answers/{self.repeat:03d}-{self.arm}-{self.generator.replace('/', '-')}.npz"


def load_material(options: StudyOptions, artificial: Sequence[Path], real: Path) -> Material:
    """Read all sets once. Raises InputError where classes do not match by name."""
    truth = class_folders.read_class_folders(real, per_class=options.per_class, seed=options.seed)
    drawn = [
        class_folders.read_class_folders(each, per_class=2 * options.per_class, seed=options.seed, duplicates=False)
        for each in artificial
    ]
    drawn = [class_folders.match_classes(truth, each) for each in drawn]
    names = [each.name for each in (truth, *drawn)]
    if len(set(names)) < len(names):
        raise InputError(
            f"two folders of one name: {', '.join(names)}", where="--artificial", fix="Rename one of them."
        )
    pixels = {each.name: class_folders.load_pixels(each.files, options.size) for each in (truth, *drawn)}
    return Material(truth, tuple(drawn), pixels, {each.name: class_folders.find_copies(truth, each) for each in drawn})


def list_tasks(options: StudyOptions, material: Material) -> list[Task]:
    """Every classifier of the study, all arms of a repeat together."""
    for arm in options.arms:
        check_choice(arm, ARMS, what="arm", where="--arms")
    found = []
    for repeat in range(options.repeats):
        for arm in options.arms:
            generators = [each.name for each in material.artificial] if ARMS[arm].artificial else [NEEDS_NONE]
            found += [Task(repeat, arm, generator) for generator in generators]
    return found


def train_all(options: StudyOptions, material: Material, outdir: Path) -> list[Answer]:
    """Train what is not stored yet; returns the answers of all."""
    check_outdir(options, material, outdir)
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads or threads)
    found = []
    for task in tqdm(list_tasks(options, material), "classifiers", unit="net", disable=None):
        found.append(load_answer(outdir / task.file, task) or train_task(options, material, task, outdir))
    torch.set_num_threads(threads)
    return found


def check_outdir(options: StudyOptions, material: Material, outdir: Path) -> None:
    """Refuse a folder that holds another study: its answers must not be mixed with these."""
    skipped = {"repeats", "arms", "threads", "device", "outdir", "margin"}
    facts = {
        "settings": {name: value for name, value in options.model_dump(mode="json").items() if name not in skipped},
        "pictures": {name: hashlib.sha256(pixels.tobytes()).hexdigest() for name, pixels in material.pixels.items()},
    }
    file = outdir / "study.json"
    if file.exists() and json.loads(file.read_text(encoding="utf-8")) != facts:
        raise InputError(
            "holds a study of other settings or pictures", where=outdir, fix="Give another --outdir, or delete it."
        )
    outdir.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(facts, indent=1) + "\n")


def task_members(
    options: StudyOptions, material: Material, task: Task
) -> tuple[ArmMembers, class_folders.Split, class_folders.Split | None]:
    """The rows of an arm, the cut of the real set, and that of the generator's pictures if there is one."""
    real = class_folders.split(material.real, options.test_share, task.repeat, options.seed)
    drawn = next((each for each in material.artificial if each.name == task.generator), None)
    position = (options.seed, "study", "repeat", task.repeat)
    if drawn is None:
        empty = np.empty(0, np.int64)
        return arm_members(ARMS[task.arm], real.train, material.real.labels, empty, empty, *position), real, None
    other = split_artificial(drawn, options, task.repeat)
    # what the generator copied out of the test pictures is not learnt: it would be tested on what it knows
    learnt = other.train[~np.isin(material.twins[drawn.name][other.train], real.test)]
    found = arm_members(ARMS[task.arm], real.train, material.real.labels, learnt, drawn.labels, *position)
    return found, real, other


def split_artificial(drawn: LabelledImages, options: StudyOptions, repeat: int) -> class_folders.Split:
    """A fifth of a generator's pictures is never trained on: the second column of the thesis' plan, never reported."""
    return class_folders.split(drawn, options.test_share, repeat, options.seed)


def train_task(options: StudyOptions, material: Material, task: Task, outdir: Path) -> Answer:
    """Train one classifier and store what it says of every test picture."""
    mine, cut, _ = task_members(options, material, task)
    drawn = {each.name: each for each in material.artificial}
    pixels, labels = [material.pixels[material.real.name][mine.real]], [material.real.labels[mine.real]]
    if len(mine.artificial):
        pixels.append(material.pixels[task.generator][mine.artificial])
        labels.append(drawn[task.generator].labels[mine.artificial])
    pictures = LabelledPixels(np.concatenate(pixels), np.concatenate(labels))
    seed = rng.seed_for(options.seed, "study", "classifier", task.repeat)
    net = train_classifier(pictures, len(material.real.names), ARMS[task.arm], options, seed)
    apart = {name: split_artificial(each, options, task.repeat).test for name, each in drawn.items()}
    found = Answer(
        *(task.repeat, task.arm, task.generator, training_steps(options, ARMS[task.arm], len(pictures)), len(pictures)),
        real=predict_logits(net, material.pixels[material.real.name][cut.test]),
        real_labels=material.real.labels[cut.test],
        artificial={name: predict_logits(net, material.pixels[name][rows]) for name, rows in apart.items()},
        artificial_labels={name: drawn[name].labels[rows] for name, rows in apart.items()},
    )
    store_answer(outdir / task.file, found, [str(material.real.files[row]) for row in cut.test])
    return found


def store_answer(file: Path, found: Answer, files: Sequence[str]) -> None:
    """Logits and labels of every test picture, so that any test can be redone without training."""
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"artificial/{name}": logits for name, logits in found.artificial.items()}
    arrays |= {f"labels/{name}": labels for name, labels in found.artificial_labels.items()}
    with atomic_file(file) as beside, beside.open("wb") as handle:
        np.savez_compressed(
            handle, real=found.real, real_labels=found.real_labels, steps=found.steps, pictures=found.pictures,
            files=np.array(files), **arrays,  # pyright: ignore[reportArgumentType]
        )  # fmt: skip


def load_answer(file: Path, task: Task) -> Answer | None:
    """A classifier's answers of an earlier run, or None."""
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as arrays:
        return Answer(
            *(task.repeat, task.arm, task.generator, int(arrays["steps"]), int(arrays["pictures"])),
            real=arrays["real"], real_labels=arrays["real_labels"],
            artificial=strip_prefix(arrays, "artificial/"), artificial_labels=strip_prefix(arrays, "labels/"),
        )  # fmt: skip


def strip_prefix(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """The arrays whose names begin so, without that beginning."""
    return {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}

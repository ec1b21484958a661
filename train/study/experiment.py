"""All arms and repeats: each classifier is trained once and its logits stored, so that a killed study resumes.

All arms of one repeat share split, halves, first weights and order of batches.
"""

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

from data import rng
from data.atomic_io import atomic_file, write_atomic
from data.errors import InputError, check_choice
from data.progress import ProgressBar
from train.study.class_folders import (
    LabelledImages,
    Rows,
    Split,
    find_copies,
    load_pixels,
    match_classes,
    read_class_folders,
    split,
)
from train.study.config import ARMS, Arm, StudyOptions
from train.study.training import LabelledPixels, predict_logits, train_classifier, training_steps

NEEDS_NONE = "real only"  # the generator of arms without artificial images

# ---- which images an arm is trained on


@dataclass(frozen=True)
class ArmMembers:
    """The rows of an arm, in the real and in the artificial images."""

    real: Rows
    artificial: Rows

    def __len__(self) -> int:
        return len(self.real) + len(self.artificial)


def pick_rows(labels: Sequence[int] | Rows, counts: Mapping[int, int], *position: int | str) -> Rows:
    """So many rows of each class as `counts` says, or all there are: the first of a fixed permutation.

    A smaller count at the same position is always part of a larger one, so that arms are paired.
    """
    labels = np.asarray(labels)
    picked: list[int] = []
    for label, count in counts.items():
        rows = np.flatnonzero(labels == label)
        picked += rows[rng.permutation(len(rows), *position, label)][:count].tolist()
    return np.array(sorted(picked), np.int64)


def arm_members(
    arm: Arm, real: Rows, labels: Rows, artificial: Rows, artificial_labels: Rows, *position: int | str
) -> ArmMembers:
    """real, artificial: rows that may be trained on; labels, artificial_labels: of all rows.

    Both shares are of the real count of each class: as many artificial images as the real ones they replace.
    """
    available = {int(label): int((labels[real] == label).sum()) for label in np.unique(labels)}
    own = {label: max(1, round(arm.real * count)) for label, count in available.items()} if arm.real else {}
    other = {label: round(arm.artificial * count) for label, count in available.items()} if arm.artificial else {}
    return ArmMembers(
        real[pick_rows(labels[real], own, *position, "real")],
        artificial[pick_rows(artificial_labels[artificial], other, *position, "artificial")],
    )


# ---- the material and the tasks


@dataclass(frozen=True)
class Material:
    """The real set, and one artificial set for each generator, under the real classes' numbers.

    pixels: by the name of the set. twins: by the name of an artificial set, the real image that each copies, or -1.
    """

    real: LabelledImages
    artificial: tuple[LabelledImages, ...]
    pixels: dict[str, NDArray[np.uint8]]
    twins: dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Task:
    """One classifier to train. generator: of the artificial images, or NEEDS_NONE."""

    repeat: int
    arm: str
    generator: str

    @property
    def file(self) -> str:
        return f"answers/{self.repeat:03d}-{self.arm}-{self.generator.replace('/', '-')}.npz"


@dataclass(frozen=True)
class Answer:
    """One trained classifier's logits on real test images and on artificial ones (by generator) not trained on."""

    repeat: int
    arm: str
    generator: str
    steps: int
    pictures: int
    real: NDArray[np.float32]  # (test images, classes)
    real_labels: NDArray[np.int64]
    artificial: dict[str, NDArray[np.float32]]
    artificial_labels: dict[str, NDArray[np.int64]]

    @property
    def accuracy(self) -> float:
        return float((self.real.argmax(1) == self.real_labels).mean())

    @property
    def accuracy_on_artificial(self) -> float:
        """The mean over generators."""
        right = [logits.argmax(1) == self.artificial_labels[name] for name, logits in self.artificial.items()]
        return float(np.mean([each.mean() for each in right]))


def load_material(options: StudyOptions, artificial: Sequence[Path], real: Path) -> Material:
    """Read all sets once. Raises InputError if classes do not match by name."""
    per_class, seed = options.per_class, options.seed
    truth = read_class_folders(real, per_class=per_class, seed=seed)
    sets = [read_class_folders(each, per_class=2 * per_class, seed=seed, duplicates=False) for each in artificial]
    sets = [match_classes(truth, each) for each in sets]
    names = [each.name for each in (truth, *sets)]
    if len(set(names)) < len(names):
        fix = "Rename one of them."
        raise InputError(f"two folders of one name: {', '.join(names)}", where="--artificial", fix=fix)
    pixels = {each.name: load_pixels(each.files, options.size) for each in (truth, *sets)}
    return Material(truth, tuple(sets), pixels, {each.name: find_copies(truth, each) for each in sets})


def list_tasks(options: StudyOptions, material: Material) -> list[Task]:
    """Every classifier of the study, all arms of a repeat together."""
    for arm in options.arms:
        check_choice(arm, ARMS, what="arm", where="--arms")
    generators = [each.name for each in material.artificial]
    return [
        Task(repeat, arm, generator)
        for repeat in range(options.repeats)
        for arm in options.arms
        for generator in (generators if ARMS[arm].artificial else [NEEDS_NONE])
    ]


# ---- training


def train_all(options: StudyOptions, material: Material, outdir: Path) -> list[Answer]:
    """Train the classifiers that are not stored yet; returns the answers of all."""
    check_outdir(options, material, outdir)
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads or threads)
    answers = []
    for task in ProgressBar(list_tasks(options, material), "classifiers", unit="net"):
        answers.append(load_answer(outdir / task.file, task) or train_task(options, material, task, outdir))
    torch.set_num_threads(threads)
    return answers


def check_outdir(options: StudyOptions, material: Material, outdir: Path) -> None:
    """Raise InputError for a folder with another study, whose answers must not be mixed with these."""
    skipped = {"repeats", "arms", "threads", "device", "outdir", "margin"}
    facts = {
        "settings": options.model_dump(mode="json", exclude=skipped),
        "pictures": {name: hashlib.sha256(pixels.tobytes()).hexdigest() for name, pixels in material.pixels.items()},
    }
    file = outdir / "study.json"
    if file.exists() and json.loads(file.read_text(encoding="utf-8")) != facts:
        fix = "Give another --outdir, or delete it."
        raise InputError("contains a study of other settings or images", where=outdir, fix=fix)
    outdir.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(facts, indent=1) + "\n")


def task_members(options: StudyOptions, material: Material, task: Task) -> tuple[ArmMembers, Split]:
    """The rows of an arm, and the split of the real set."""
    real = split(material.real, options.test_share, task.repeat, options.seed)
    empty = np.empty(0, np.int64)
    learned, labels = empty, empty
    for each in material.artificial:
        if each.name == task.generator:
            rows, labels = split(each, options.test_share, task.repeat, options.seed).train, each.labels
            learned = rows[~np.isin(material.twins[each.name][rows], real.test)]  # no copies of test images
    position = (options.seed, "study", "repeat", task.repeat)
    return arm_members(ARMS[task.arm], real.train, material.real.labels, learned, labels, *position), real


def train_task(options: StudyOptions, material: Material, task: Task, outdir: Path) -> Answer:
    """Train one classifier and store its logits on every test image."""
    members, real = task_members(options, material, task)
    sets, truth = {each.name: each for each in material.artificial}, material.real
    pixels, labels = [material.pixels[truth.name][members.real]], [truth.labels[members.real]]
    if len(members.artificial):
        pixels.append(material.pixels[task.generator][members.artificial])
        labels.append(sets[task.generator].labels[members.artificial])
    images = LabelledPixels(np.concatenate(pixels), np.concatenate(labels))
    seed = rng.seed_for(options.seed, "study", "classifier", task.repeat)
    network = train_classifier(images, len(truth.names), ARMS[task.arm], options, seed)
    # a fifth of a generator's images is never trained on: the second column of the thesis' plan, never reported
    tests = {name: split(each, options.test_share, task.repeat, options.seed).test for name, each in sets.items()}
    answer = Answer(
        task.repeat,
        task.arm,
        task.generator,
        training_steps(options, ARMS[task.arm], len(images)),
        len(images),
        real=predict_logits(network, material.pixels[truth.name][real.test]),
        real_labels=truth.labels[real.test],
        artificial={name: predict_logits(network, material.pixels[name][rows]) for name, rows in tests.items()},
        artificial_labels={name: sets[name].labels[rows] for name, rows in tests.items()},
    )
    store_answer(outdir / task.file, answer, [str(truth.files[row]) for row in real.test])
    return answer


def store_answer(file: Path, answer: Answer, files: Sequence[str]) -> None:
    """Logits and labels of every test image, so that any statistic can be recomputed without training."""
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {f"artificial/{name}": logits for name, logits in answer.artificial.items()}
    arrays |= {f"labels/{name}": labels for name, labels in answer.artificial_labels.items()}
    arrays |= {"real": answer.real, "real_labels": answer.real_labels, "files": np.array(files)}
    with atomic_file(file) as beside, beside.open("wb") as handle:
        np.savez_compressed(handle, steps=answer.steps, pictures=answer.pictures, **arrays)


def load_answer(file: Path, task: Task) -> Answer | None:
    """A classifier's stored answer, or None."""
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as arrays:
        by_prefix = [
            {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}
            for prefix in ("artificial/", "labels/")
        ]
        counts = int(arrays["steps"]), int(arrays["pictures"])
        return Answer(task.repeat, task.arm, task.generator, *counts, arrays["real"], arrays["real_labels"], *by_prefix)

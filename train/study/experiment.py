"""All arms and repeats: each classifier is trained once and its logits stored, so that a killed study resumes.

All arms of one repeat share split, halves, first weights and order of batches. Images are in a folder for each class,
or in a captioned folder with types; classes are matched by name: the Animals-10 archive names its folders in Italian.
Numbered by sorted folder names, as in the thesis, real "cane" and generated "butterfly" share a number and only three
of ten classes agree.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data import rng
from data.atomic_io import atomic_file, write_atomic
from data.captioned_folder import read_folder
from data.duplicates import duplicate_groups
from data.errors import InputError, check_choice, suggest
from data.images import SUFFIXES, open_image
from data.progress import ProgressBar
from train.study.config import ARMS, Arm, StudyOptions
from train.study.training import LabelledPixels, predict_logits, train_classifier, training_steps

NEEDS_NONE = "real only"  # the generator of arms without artificial images
Rows = NDArray[np.int64]
ITALIAN = {
    "cane": "dog", "cavallo": "horse", "elefante": "elephant", "farfalla": "butterfly", "gallina": "chicken",
    "gatto": "cat", "mucca": "cow", "pecora": "sheep", "ragno": "spider", "scoiattolo": "squirrel"
}  # fmt: skip


@dataclass(frozen=True)
class LabelledImages:
    """files[i] is of class names[labels[i]]; images of one group (near-duplicates, one species) are never separated."""

    name: str
    files: tuple[Path, ...]
    labels: Rows
    names: tuple[str, ...]
    groups: Rows

    def __len__(self) -> int:
        return len(self.files)

    @property
    def counts(self) -> dict[str, int]:
        return {name: int((self.labels == number).sum()) for number, name in enumerate(self.names)}


def read_class_folders(folder: Path, *, per_class: int, seed: int = 0, duplicates: bool = True) -> LabelledImages:
    """A folder of class folders, or a captioned folder whose rows have a type.

    per_class: at most so many of a class, drawn by the seed. duplicates: group near-duplicates.
    Raises InputError for fewer than two classes, an empty class, or a folder that is neither.
    """
    by_class = read_captioned(folder) if (folder / "metadata.jsonl").is_file() else read_folders(folder)
    names = sorted(by_class)
    if len(names) < 2:
        have = f"only the class {names[0]!r}" if names else "no classes"
        raise InputError(have, where=folder, allowed="two or more folders of images, one for each class")
    rows: list[tuple[Path, str, int]] = []  # file, species, label
    for number, name in enumerate(names):
        if not by_class[name]:
            raise InputError(f"no images of {name!r}", where=folder / name, allowed=", ".join(sorted(SUFFIXES)))
        kept = sorted(rng.permutation(len(by_class[name]), seed, "capped", name)[:per_class])
        rows += [(*by_class[name][place], number) for place in kept]
    files, species, labels = zip(*rows, strict=True)
    groups = merge_groups(files, species, duplicates=duplicates)
    return LabelledImages(folder.name, files, np.array(labels), tuple(names), groups)


def read_folders(folder: Path) -> dict[str, list[tuple[Path, str]]]:
    """Class -> its images, each a group of its own."""
    if not folder.is_dir():
        raise InputError("no such folder", where=folder, fix="Give a folder with one folder of images for each class.")
    by_class: dict[str, list[tuple[Path, str]]] = {}
    for place in sorted(folder.iterdir()):
        if place.is_dir() and not place.name.startswith("."):
            files = sorted(file for file in place.rglob("*") if file.suffix.lower() in SUFFIXES)
            by_class[ITALIAN.get(place.name.lower(), place.name)] = [(file, str(file)) for file in files]
    return by_class


def read_captioned(folder: Path) -> dict[str, list[tuple[Path, str]]]:
    """Type -> its images; images of one name (a species) are one group."""
    by_class: dict[str, list[tuple[Path, str]]] = {}
    for sample in read_folder(folder).samples:
        if sample.annotation.type:
            group = sample.annotation.name or str(sample.path)
            by_class.setdefault(sample.annotation.type, []).append((sample.path, group))
    return by_class


def merge_groups(files: Sequence[Path], species: Sequence[str], *, duplicates: bool) -> Rows:
    """One number a group: files of one species, and near-duplicates, transitively."""
    rows, ends = range(len(files)), []
    for key in (species, duplicate_groups(files) if duplicates else rows):
        _, first, inverse = np.unique(np.asarray(key), return_index=True, return_inverse=True)
        ends += first[inverse].tolist()  # an edge from each file to the first one of its species, and of its duplicates
    graph = coo_array((np.ones(len(ends)), ([*rows, *rows], ends)), shape=(len(files), len(files)))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def match_classes(real: LabelledImages, artificial: LabelledImages) -> LabelledImages:
    """The artificial images under the real ones' class numbers. Raises InputError for classes without a counterpart."""
    unknown = [name for name in artificial.names if name not in real.names]
    missing = [name for name in real.names if name not in artificial.names]
    if unknown or missing:
        hint = suggest(unknown[0], missing) if unknown else ""
        problems = [f"classes that {real.name} does not have: {', '.join(unknown)}{hint}"] if unknown else []
        problems += [f"no images of: {', '.join(missing)}"] if missing else []
        raise InputError("; ".join(problems), where=artificial.files[0].parents[1], allowed=", ".join(real.names))
    number = np.array([real.names.index(name) for name in artificial.names])
    return replace(artificial, labels=number[artificial.labels], names=real.names)


def find_copies(real: LabelledImages, artificial: LabelledImages) -> Rows:
    """For each artificial image the row of a real one that it is a near-duplicate of, or -1."""
    numbers = duplicate_groups([*real.files, *artificial.files])
    first = {number: row for row, number in reversed(list(enumerate(numbers[: len(real)])))}
    return np.array([first.get(number, -1) for number in numbers[len(real) :]], np.int64)


def load_pixels(files: Sequence[Path], size: int) -> NDArray[np.uint8]:
    """(n, size, size, 3), resized with an antialiased filter. Raises InputError naming an unusable file."""

    def load(file: Path) -> NDArray[np.uint8]:
        return np.asarray(open_image(file).resize((size, size), Image.Resampling.BICUBIC), np.uint8)

    with ThreadPoolExecutor(4) as threads:
        images = ProgressBar(threads.map(load, files), "reading images", len(files), delay=2)
        return np.stack(list(images)) if files else np.empty((0, size, size, 3), np.uint8)


# ---- training and test images


@dataclass(frozen=True)
class Split:
    """Rows to train on and to test on."""

    train: Rows
    test: Rows


def split(images: LabelledImages, share: float, repeat: int, seed: int) -> Split:
    """The split of one repeat, by whole groups, with every class on both sides. Raises InputError if impossible."""
    from sklearn.model_selection import StratifiedGroupKFold

    folds = max(2, round(1 / share))
    for number, name in enumerate(images.names):
        count = len(set(images.groups[images.labels == number]))
        if count < folds:
            what = f"{name!r} of {images.name} has {count} groups of images (near-duplicates, one species, are one)"
            raise InputError(what, allowed=f"{folds} or more, to keep 1 / {folds} for testing")
    state = rng.seed_for(seed, "study", "cut", repeat) % 2**32
    parts = StratifiedGroupKFold(folds, shuffle=True, random_state=state)
    classes = set(range(len(images.names)))
    for train, test in parts.split(np.arange(len(images)), images.labels, images.groups):
        if set(images.labels[train]) == set(images.labels[test]) == classes:
            return Split(train, test)
    what = f"no split has every class of {images.name} on both sides"
    raise InputError(what, fix="Give more images of each class.")


# ---- which images an arm is trained on


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
) -> tuple[Rows, Rows]:
    """The rows of an arm in the real and in the artificial images, of those that may be trained on; labels: of all.

    Both shares are of the real count of each class: as many artificial images as the real ones they replace.
    """
    available = {int(label): int((labels[real] == label).sum()) for label in np.unique(labels)}
    own = {label: max(1, round(arm.real * count)) for label, count in available.items()} if arm.real else {}
    other = {label: round(arm.artificial * count) for label, count in available.items()} if arm.artificial else {}
    return (
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
class Answer(Task):
    """One trained classifier's logits on real test images and on artificial ones (by generator) not trained on."""

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


def task_members(options: StudyOptions, material: Material, task: Task) -> tuple[Rows, Rows, Split]:
    """The rows of an arm, in the real and in the artificial images, and the split of the real set."""
    real = split(material.real, options.test_share, task.repeat, options.seed)
    empty = np.empty(0, np.int64)
    learned, labels = empty, empty
    for each in material.artificial:
        if each.name == task.generator:
            rows, labels = split(each, options.test_share, task.repeat, options.seed).train, each.labels
            learned = rows[~np.isin(material.twins[each.name][rows], real.test)]  # no copies of test images
    position = (options.seed, "study", "repeat", task.repeat)
    return *arm_members(ARMS[task.arm], real.train, material.real.labels, learned, labels, *position), real


def train_task(options: StudyOptions, material: Material, task: Task, outdir: Path) -> Answer:
    """Train one classifier and store its logits on every test image."""
    chosen, artificial, real = task_members(options, material, task)
    sets, truth = {each.name: each for each in material.artificial}, material.real
    pixels, labels = [material.pixels[truth.name][chosen]], [truth.labels[chosen]]
    if len(artificial):
        pixels.append(material.pixels[task.generator][artificial])
        labels.append(sets[task.generator].labels[artificial])
    images = LabelledPixels(np.concatenate(pixels), np.concatenate(labels))
    seed = rng.seed_for(options.seed, "study", "classifier", task.repeat)
    network = train_classifier(images, len(truth.names), ARMS[task.arm], options, seed)
    # a fifth of a generator's images is never trained on: the second column of the thesis' plan, never reported
    tests = {name: split(each, options.test_share, task.repeat, options.seed).test for name, each in sets.items()}
    answer = Answer(
        **vars(task),
        steps=training_steps(options, ARMS[task.arm], len(images)),
        pictures=len(images),
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
        return Answer(*vars(task).values(), *counts, arrays["real"], arrays["real_labels"], *by_prefix)

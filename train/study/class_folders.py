"""Labelled images: a folder for each class, or a captioned folder with types; classes are matched by name.

The Animals-10 archive names its folders in Italian. Numbered by sorted folder names, as in the thesis, real "cane" and
generated "butterfly" share a number and only three of ten classes agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data import rng
from data.captioned_folder import read_folder
from data.duplicates import duplicate_groups
from data.errors import InputError, suggest
from data.images import SUFFIXES, open_image
from data.progress import ProgressBar

Rows = NDArray[np.int64]
ITALIAN = {
    "cane": "dog", "cavallo": "horse", "elefante": "elephant", "farfalla": "butterfly", "gallina": "chicken",
    "gatto": "cat", "mucca": "cow", "pecora": "sheep", "ragno": "spider", "scoiattolo": "squirrel",
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
    files, species, labels = [], [], []
    for number, name in enumerate(names):
        if not by_class[name]:
            raise InputError(f"no images of {name!r}", where=folder / name, allowed=", ".join(sorted(SUFFIXES)))
        kept = sorted(rng.permutation(len(by_class[name]), seed, "capped", name)[:per_class])
        for file, group in (by_class[name][place] for place in kept):
            files.append(file)
            species.append(group)
            labels.append(number)
    groups = merge_groups(files, species, duplicates=duplicates)
    return LabelledImages(folder.name, tuple(files), np.array(labels), tuple(names), groups)


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

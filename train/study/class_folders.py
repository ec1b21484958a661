"""Labelled pictures: a folder a class, or a captioned folder with types; the same classes under the same numbers.

The Animals-10 archive names its folders in Italian. Numbered by sorted folder names, as the thesis did, real "cane" and
generated "butterfly" share a number and only three of ten classes agree: here classes are matched by name or refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from data import rng
from data.duplicates import duplicate_groups
from data.errors import InputError, suggest
from data.images import SUFFIXES, open_image

Rows = NDArray[np.int64]
ITALIAN = {
    "cane": "dog", "cavallo": "horse", "elefante": "elephant", "farfalla": "butterfly", "gallina": "chicken",
    "gatto": "cat", "mucca": "cow", "pecora": "sheep", "ragno": "spider", "scoiattolo": "squirrel",
}  # fmt: skip


@dataclass(frozen=True)
class LabelledImages:
    """files[i] is of class names[labels[i]]; pictures of one group (near-duplicates, one species) are never parted."""

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

    per_class: at most so many of a class, drawn by the seed. duplicates: group near-duplicates (else each by itself).
    Raises InputError for fewer than two classes, an empty class, or a folder that is neither.
    """
    found = read_captioned(folder) if (folder / "metadata.jsonl").is_file() else read_folders(folder)
    kinds = sorted(found)
    if len(kinds) < 2:
        have = f"only the class {kinds[0]!r}" if kinds else "no classes"
        raise InputError(f"{have}", where=folder, allowed="two folders of pictures or more, one a class")
    for kind in kinds:
        if not found[kind]:
            raise InputError(f"no pictures of {kind!r}", where=folder / kind, allowed=", ".join(sorted(SUFFIXES)))
    kept = {kind: cap_class(found[kind], per_class, seed, kind) for kind in kinds}
    files = [file for kind in kinds for file, _ in kept[kind]]
    own = [group for kind in kinds for _, group in kept[kind]]
    labels = np.repeat(np.arange(len(kinds)), [len(kept[kind]) for kind in kinds])
    return LabelledImages(
        folder.name, tuple(files), labels, tuple(kinds), merge_groups(files, own, duplicates=duplicates)
    )


def cap_class(files: Sequence[tuple[Path, str]], most: int, seed: int, kind: str) -> list[tuple[Path, str]]:
    """At most so many, drawn by position, in their old order."""
    return [files[place] for place in sorted(rng.permutation(len(files), seed, "capped", kind)[:most])]


def read_folders(folder: Path) -> dict[str, list[tuple[Path, str]]]:
    """Class -> its pictures, each a group of its own."""
    if not folder.is_dir():
        raise InputError("no such folder", where=folder, fix="Give a folder with one folder of pictures a class.")
    found: dict[str, list[tuple[Path, str]]] = {}
    for place in sorted(folder.iterdir()):
        if place.is_dir() and not place.name.startswith("."):
            files = sorted(file for file in place.rglob("*") if file.suffix.lower() in SUFFIXES)
            found[ITALIAN.get(place.name.lower(), place.name)] = [(file, str(file)) for file in files]
    return found


def read_captioned(folder: Path) -> dict[str, list[tuple[Path, str]]]:
    """Type -> its pictures; pictures of one name (a species) are one group."""
    from data.captioned_folder import read_folder

    found: dict[str, list[tuple[Path, str]]] = {}
    for sample in read_folder(folder).samples:
        kind = sample.annotation.type
        if kind:
            found.setdefault(kind, []).append((sample.path, sample.annotation.name or str(sample.path)))
    return found


def merge_groups(files: Sequence[Path], own: Sequence[str], *, duplicates: bool) -> Rows:
    """One number a group: files of one own group, and near-duplicates, however they are chained."""
    near = duplicate_groups(files) if duplicates else list(range(len(files)))
    parent: dict[object, object] = {}

    def root(item: object) -> object:
        while parent.setdefault(item, item) != item:
            item = parent[item]
        return item

    for name, number in zip(own, near, strict=True):
        parent[root(("own", name))] = root(("near", number))
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(root(("own", name)), len(numbers)) for name in own], np.int64)


def match_classes(real: LabelledImages, drawn: LabelledImages) -> LabelledImages:
    """The drawn pictures under the real ones' class numbers. Raises InputError naming what has no counterpart."""
    strange = [name for name in drawn.names if name not in real.names]
    missing = [name for name in real.names if name not in drawn.names]
    if strange or missing:
        hint = suggest(strange[0], missing) if strange else ""
        told = [f"classes that {real.name} has not: {', '.join(strange)}{hint}"] if strange else []
        told += [f"no pictures of: {', '.join(missing)}"] if missing else []
        raise InputError("; ".join(told), where=drawn.files[0].parents[1], allowed=", ".join(real.names))
    number = np.array([real.names.index(name) for name in drawn.names])
    return LabelledImages(drawn.name, drawn.files, number[drawn.labels], real.names, drawn.groups)


def find_copies(real: LabelledImages, drawn: LabelledImages) -> Rows:
    """Of each drawn picture the row of a real one that it is a near-duplicate of, or -1.

    The generator may have seen the pictures that its own are tested on.
    """
    numbers = duplicate_groups([*real.files, *drawn.files])
    first = {number: row for row, number in reversed(list(enumerate(numbers[: len(real)])))}
    return np.array([first.get(number, -1) for number in numbers[len(real) :]], np.int64)


def load_pixels(files: Sequence[Path], size: int) -> NDArray[np.uint8]:
    """(n, size, size, 3), squashed with an antialiased filter; decoded in threads.

    Raises InputError naming a file that is no usable picture.
    """
    with ThreadPoolExecutor(4) as threads:
        shown = tqdm(threads.map(lambda file: load_square(file, size), files), "reading pictures", len(files), delay=2)
        return np.stack(list(shown)) if files else np.empty((0, size, size, 3), np.uint8)


def load_square(file: Path, size: int) -> NDArray[np.uint8]:
    picture = open_image(file)
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC), np.uint8)


SplitRows = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Rows to train on and to test on."""

    train: SplitRows
    test: SplitRows


def split(pictures: LabelledImages, share: float, repeat: int, seed: int) -> Split:
    """The cut of one repeat. Every class is on both sides. Raises InputError where its groups are too few for that."""
    from sklearn.model_selection import StratifiedGroupKFold

    folds = max(2, round(1 / share))
    check_groups(pictures, folds)
    state = rng.seed_for(seed, "study", "cut", repeat) % 2**32
    parts = StratifiedGroupKFold(folds, shuffle=True, random_state=state)
    rows = np.arange(len(pictures))
    for train, test in parts.split(rows, pictures.labels, pictures.groups):
        sides = (set(pictures.labels[train]), set(pictures.labels[test]))
        if sides[0] == sides[1] == set(range(len(pictures.names))):
            return Split(train, test)
    raise InputError(
        f"no cut has every class of {pictures.name} on both sides", fix="Give more pictures of each class."
    )


def check_groups(pictures: LabelledImages, folds: int) -> None:
    """Raise InputError for a class of fewer groups than folds."""
    for number, name in enumerate(pictures.names):
        count = len(set(pictures.groups[pictures.labels == number]))
        if count < folds:
            raise InputError(
                f"{name!r} of {pictures.name} has {count} groups of pictures (near-duplicates, one species, are one)",
                allowed=f"{folds} or more, to keep 1 / {folds} for testing",
            )

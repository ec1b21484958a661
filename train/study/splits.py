"""Training and test pictures: classes in their shares, groups never parted, a new cut for each repeat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data import seeds
from data.errors import InputError
from train.study.folders import Labelled

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Cut:
    """Rows to train on and to test on."""

    train: Rows
    test: Rows


def cut(pictures: Labelled, share: float, repeat: int, seed: int) -> Cut:
    """The cut of one repeat. Every class is on both sides. Raises InputError where its groups are too few for that."""
    from sklearn.model_selection import StratifiedGroupKFold

    folds = max(2, round(1 / share))
    refuse_few(pictures, folds)
    state = seeds.seed_for(seed, "study", "cut", repeat) % 2**32
    parts = StratifiedGroupKFold(folds, shuffle=True, random_state=state)
    rows = np.arange(len(pictures))
    for train, test in parts.split(rows, pictures.labels, pictures.groups):
        sides = (set(pictures.labels[train]), set(pictures.labels[test]))
        if sides[0] == sides[1] == set(range(len(pictures.names))):
            return Cut(train, test)
    raise InputError(
        f"no cut has every class of {pictures.name} on both sides", fix="Give more pictures of each class."
    )


def refuse_few(pictures: Labelled, folds: int) -> None:
    """Raise InputError for a class of fewer groups than folds."""
    for number, name in enumerate(pictures.names):
        count = len(set(pictures.groups[pictures.labels == number]))
        if count < folds:
            raise InputError(
                f"{name!r} of {pictures.name} has {count} groups of pictures (near-duplicates, one species, are one)",
                allowed=f"{folds} or more, to keep 1 / {folds} for testing",
            )

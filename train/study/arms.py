"""The training sets that are compared: which real and which artificial pictures, and how long they are learnt.

Real, Artificial, Mixed and Half are the thesis' four. It trained each for 30 passes, so Half took half as many steps as
Mixed, and "artificial pictures help" could not be told from "longer training helps": Half-twice, Half+augmentation and
Real+Artificial tell them apart. All arms of one repeat share split, halves, weights and order of batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data import rng

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Arm:
    """real, artificial: the shares of each that are used.

    steps: of the recipe `equal`, 0.5 is half as long. passes: of the recipe `thesis`, 2 is twice as often.
    augmented: pictures are mirrored and shifted at each step.
    """

    real: float
    artificial: float
    steps: float = 1.0
    passes: int = 1
    augmented: bool = False
    explained: str = ""


ARMS = {
    "real": Arm(1.0, 0.0, explained="all real training pictures"),
    "half": Arm(0.5, 0.0, steps=0.5, explained="half of them, trained half as long (the thesis' Subset_real)"),
    "half-twice": Arm(0.5, 0.0, passes=2, explained="the same half, trained as long as all others"),
    "half-augmented": Arm(0.5, 0.0, passes=2, augmented=True, explained="the same half, mirrored and shifted"),
    "artificial": Arm(0.0, 1.0, explained="as many artificial pictures, no real one"),
    "mixed": Arm(0.5, 0.5, explained="the same half and as many artificial pictures"),
    "real-and-artificial": Arm(1.0, 1.0, explained="all real and as many artificial pictures"),
}


def pick_share(labels: Sequence[int] | Rows, share: float, *position: int | str) -> Rows:
    """Rows of each class in equal share, rounded to the nearest and at least one, in the order of a fixed permutation.

    A smaller share of the same position is always part of a larger one, so that arms are paired.
    """
    labels = np.asarray(labels)
    picked: list[int] = []
    for label in np.unique(labels) if share > 0 else ():
        rows = np.flatnonzero(labels == label)
        order = rows[rng.permutation(len(rows), *position, int(label))]
        picked += order[: max(1, round(share * len(rows)))].tolist()
    return np.array(sorted(picked), np.int64)


def pick_counts(labels: Sequence[int] | Rows, counts: dict[int, int], *position: int | str) -> Rows:
    """So many rows of each class as `counts` says, or all there are."""
    labels = np.asarray(labels)
    picked: list[int] = []
    for label, count in counts.items():
        rows = np.flatnonzero(labels == label)
        picked += rows[rng.permutation(len(rows), *position, label)][:count].tolist()
    return np.array(sorted(picked), np.int64)


@dataclass(frozen=True)
class ArmMembers:
    """The rows of an arm, in the real and in the artificial pictures."""

    real: Rows
    artificial: Rows

    def __len__(self) -> int:
        return len(self.real) + len(self.artificial)


def arm_members(
    arm: Arm, real: Rows, labels: Rows, artificial: Rows, drawn_labels: Rows, *position: int | str
) -> ArmMembers:
    """real, artificial: rows that may be trained on; labels, drawn_labels: of all rows.

    The artificial share is of the *real* count of each class: as many as the real pictures they stand for.
    """
    own = real[pick_share(labels[real], arm.real, *position, "real")]
    counts = {int(label): round(arm.artificial * int((labels[real] == label).sum())) for label in np.unique(labels)}
    drawn = artificial[pick_counts(drawn_labels[artificial], counts, *position, "artificial")]
    return ArmMembers(own, drawn if arm.artificial else np.empty(0, np.int64))

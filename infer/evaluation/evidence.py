"""What the sections are computed from: features of images, row for row, and what is known about each row.

Nothing here knows files, networks or the wording of prompts, so every section can be tested on planted faults.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.metrics.distances import Matrix, Vector, check_features, check_same_width

SPACES = ("style", "content", "joint")
Rows = Sequence[int] | NDArray[np.integer] | NDArray[np.bool_]
Words = NDArray[np.str_]


@dataclass(frozen=True)
class Features:
    """Of n images: style (n, s) weight-free descriptors, content (n, d), joint (n, e) in one space with texts.

    Raises InputError for features that are not finite.
    """

    style: Matrix
    content: Matrix
    joint: Matrix

    def __post_init__(self) -> None:
        for name, matrix in vars(self).items():
            object.__setattr__(self, name, check_features(matrix, name, least=0))
        assert len(self.style) == len(self.content) == len(self.joint), "one row per image"

    def __len__(self) -> int:
        return len(self.style)

    def take(self, rows: Rows) -> Features:
        return Features(self.style[rows], self.content[rows], self.joint[rows])


@dataclass(frozen=True)
class Pairs:
    """Images of base and tuned for the same prompts and seeds, row for row. prompts: (n,), the clusters."""

    prompts: Words
    base: Features
    tuned: Features

    def __post_init__(self) -> None:
        assert len(self.prompts) == len(self.base) == len(self.tuned), "base and tuned are paired"
        for name in SPACES:
            check_same_width(getattr(self.base, name), getattr(self.tuned, name))

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def first(self) -> NDArray[np.int64]:
        """The row of each prompt's first image."""
        return np.sort(np.unique(self.prompts, return_index=True)[1])


@dataclass(frozen=True)
class PromptedPairs:
    """Pairs with the texts that each image is matched against. texts: (k, e) of the k different `candidates`."""

    pairs: Pairs
    candidates: Words
    texts: Matrix

    @property
    def own(self) -> NDArray[np.int64]:
        """(n,) the row of each image's text."""
        row = {str(text): index for index, text in enumerate(self.candidates)}
        return np.array([row[str(prompt)] for prompt in self.pairs.prompts], np.int64)


@dataclass(frozen=True)
class ProbeLabels:
    """What the probes see in one model's images: (n,) names. direction: (n,) cosines, see directional_similarity."""

    types: Words
    objects: Words
    direction: Vector | None = None


@dataclass(frozen=True)
class ProbeAccuracy:
    """On images that the probe was not trained on."""

    name: str
    right: int
    trials: int
    classes: int


@dataclass(frozen=True)
class TypeGrid:
    """Types on objects: what the prompts asked for, (n,), and what the probes see."""

    types: Words
    objects: Words
    base: ProbeLabels
    tuned: ProbeLabels
    probes: Sequence[ProbeAccuracy] = ()


@dataclass(frozen=True)
class NameMixes:
    """Two names in one prompt. pairs: (n, 2) columns; base, tuned: (n, names) similarity to each name's images."""

    prompts: Words
    pairs: NDArray[np.int64]
    base: Matrix
    tuned: Matrix


@dataclass(frozen=True)
class DenoisingLosses:
    """(images,), at the same timesteps and noise."""

    train: Vector
    held_out: Vector
    base_train: Vector
    base_held_out: Vector


@dataclass(frozen=True)
class NearDuplicates:
    """Found by alignment: (image, training image), as names."""

    held_out: Sequence[tuple[str, str]] = ()
    generated: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Evidence:
    """Everything that was measured. trigger: of the tuned model, `base` without the word and `tuned` with it.

    Raises InputError for features of different extractors, and for fewer than 10 training or 5 held-out images.
    """

    train: Features
    held_out: Features
    captions: PromptedPairs
    plain: PromptedPairs
    variety: Pairs
    copies: NearDuplicates
    trigger: Pairs | None = None
    grid: TypeGrid | None = None
    mixes: NameMixes | None = None
    losses: DenoisingLosses | None = None

    def __post_init__(self) -> None:
        for what, features, least in (("training", self.train, 10), ("held-out", self.held_out, 5)):
            if len(features) < least:
                raise InputError(f"{len(features)} {what} images", allowed=f"{least} or more to evaluate a run")
        for name in SPACES:
            check_same_width(*(getattr(each, name) for each in (self.train, self.held_out, self.captions.pairs.tuned)))

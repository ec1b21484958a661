"""What the sections are worked out of: features of pictures, row for row, and what is known of each row.

Nothing here knows files, networks or prompts' wording, so every section can be tested on planted faults.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.metrics.distances import Matrix, Vector, check_features, check_same_width

Rows = Sequence[int] | NDArray[np.integer] | NDArray[np.bool_]
Words = NDArray[np.str_]


@dataclass(frozen=True)
class Seen:
    """Pictures: style (n, s) weight-free descriptors, content (n, d), joint (n, e) in one space with texts.

    Raises InputError for features that are not finite.
    """

    style: Matrix
    content: Matrix
    joint: Matrix

    def __post_init__(self) -> None:
        for name, matrix in vars(self).items():
            object.__setattr__(self, name, check_features(matrix, name, least=0))
        assert len({len(matrix) for matrix in vars(self).values()}) == 1, "one row a picture"

    def __len__(self) -> int:
        return len(self.style)

    def take(self, which: Rows) -> Seen:
        return Seen(self.style[which], self.content[which], self.joint[which])


@dataclass(frozen=True)
class Shown:
    """What base and tuned drew for the same prompts and seeds, row for row. prompts: (n,), they are the clusters."""

    prompts: Words
    base: Seen
    tuned: Seen

    def __post_init__(self) -> None:
        assert len(self.prompts) == len(self.base) == len(self.tuned), "base and tuned are paired"
        for name in ("style", "content", "joint"):
            check_same_width(getattr(self.base, name), getattr(self.tuned, name))

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class Asked:
    """Pictures with the texts that they are told among. texts: (k, e) of `wordings` (k,), each different."""

    shown: Shown
    wordings: Words
    texts: Matrix

    @property
    def own(self) -> NDArray[np.int64]:
        """(n,) the row of each picture's text."""
        place = {str(text): number for number, text in enumerate(self.wordings)}
        return np.array([place[str(prompt)] for prompt in self.shown.prompts], np.int64)


@dataclass(frozen=True)
class Said:
    """What the probes take the pictures of one model for: (n,) names. direction: (n,) cosines, see adherence."""

    types: Words
    objects: Words
    direction: Vector | None = None


@dataclass(frozen=True)
class Probe:
    """How often a probe is right on pictures that it did not learn from: of `trials`, `right`."""

    name: str
    right: int
    trials: int
    classes: int


@dataclass(frozen=True)
class Grid:
    """Types on objects: what was asked for, (n,), and what base and tuned are taken for."""

    types: Words
    objects: Words
    base: Said
    tuned: Said
    probes: Sequence[Probe] = ()


@dataclass(frozen=True)
class Mixes:
    """Two names in one prompt. pairs: (n, 2) columns; likeness: (n, names) of each picture to each name's pictures."""

    prompts: Words
    pairs: NDArray[np.int64]
    base: Matrix
    tuned: Matrix


@dataclass(frozen=True)
class Losses:
    """Denoising losses, (pictures,), at the same timesteps and noise."""

    train: Vector
    held_out: Vector
    base_train: Vector
    base_held_out: Vector


@dataclass(frozen=True)
class Copied:
    """Near-duplicates found by alignment: (picture, training picture), as names."""

    held_out: Sequence[tuple[str, str]] = ()
    drawn: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Evidence:
    """Everything that was seen. trigger: tuned alone, `base` without the word and `tuned` with it.

    Raises InputError for features of different extractors, and for fewer than 10 training or 5 held-out pictures.
    """

    train: Seen
    held_out: Seen
    captions: Asked
    plain: Asked
    variety: Shown
    copied: Copied
    trigger: Shown | None = None
    grid: Grid | None = None
    mixes: Mixes | None = None
    losses: Losses | None = None

    def __post_init__(self) -> None:
        for what, seen, least in (("training pictures", self.train, 10), ("held-out pictures", self.held_out, 5)):
            if len(seen) < least:
                raise InputError(f"{len(seen)} {what}", allowed=f"{least} or more to evaluate a run")
        for name in ("style", "content", "joint"):
            check_same_width(*(getattr(seen, name) for seen in (self.train, self.held_out, self.captions.shown.tuned)))

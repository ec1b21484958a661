"""Drafts from the pictures that people have captioned already and that look most alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from annotation.drafts.source import Draft, Picture, label
from annotation.review.likeness import token_f1
from data.features import Extractor, features

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Neighbours:
    """The consensus caption of the nearest captioned pictures; better the more captions there are.

    Of the `count` nearest, the caption that shares most words (token F1) with the others, each weighted by its
    picture's likeness, is offered (Devlin et al. 2015, arXiv:1505.04467, section 3.2, with their BLEU replaced by F1).
    Likeness is the cosine of features that were centred and scaled over all pictures, in [-1, 1]; below `threshold` a
    picture is no neighbour. The score is the likeness of the picture whose caption is taken.
    """

    captioned: Sequence[tuple[Picture, str]]
    extractor: Extractor
    threshold: float = 0.5
    count: int = 5

    @property
    def name(self) -> str:
        return "neighbours"

    @property
    def at_a_time(self) -> int:
        return 0

    @property
    def version(self) -> str:
        return f"1-{self.extractor.name}-{self.extractor.version}"

    def draft(self, pictures: Sequence[Picture]) -> list[Draft | None]:
        if not self.captioned or not pictures:
            return [None] * len(pictures)
        captions = [caption for _, caption in self.captioned]
        likeness = self.likeness(pictures)
        source = label(self)
        return [self.consensus(row, captions, source) for row in likeness]

    def likeness(self, pictures: Sequence[Picture]) -> Rows:
        """(pictures, captioned) cosines; a picture is no neighbour of itself."""
        paths = [picture.path for picture, _ in self.captioned] + [picture.path for picture in pictures]
        rows = scaled(features(self.extractor, paths))
        known, asked = rows[: len(self.captioned)], rows[len(self.captioned) :]
        cosines = asked @ known.T
        keys = np.array([picture.sha256 for picture, _ in self.captioned])
        cosines[np.array([picture.sha256 for picture in pictures])[:, None] == keys[None, :]] = -1
        return cosines

    def consensus(self, likeness: Rows, captions: Sequence[str], source: str) -> Draft | None:
        """The draft of one picture, from its likeness to each captioned one."""
        nearest = np.argsort(-likeness, kind="stable")[: self.count]
        near = [int(place) for place in nearest if likeness[place] >= self.threshold]
        if not near:
            return None
        votes = [
            sum(float(likeness[other]) * token_f1(captions[place], captions[other]) for other in near) for place in near
        ]
        best = near[int(np.argmax(votes))]  # of equals the nearest
        return Draft(captions[best], source, min(1.0, float(likeness[best])))


def scaled(rows: Rows) -> Rows:
    """Columns of mean 0 and deviation 1 (those that never change are 0), rows of length 1."""
    spread = rows.std(axis=0)
    standard = (rows - rows.mean(axis=0)) / np.where(spread > 0, spread, 1)
    lengths = np.linalg.norm(standard, axis=1, keepdims=True)
    return (standard / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def captioned(pictures: Mapping[str, Picture], captions: Mapping[str, str]) -> list[tuple[Picture, str]]:
    """Pairs for Neighbours, in the order of SHA-256 so that equal input gives equal drafts."""
    return [(pictures[sha256], text) for sha256, text in sorted(captions.items()) if sha256 in pictures]

"""Prompt adherence, from the text and image features of a model other than the generator."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from data import rng
from data.errors import InputError
from data.metrics.distances import Matrix, Vector, check_features, check_same_width, unit_rows

CANDIDATES = 100


def clip_text_similarity(images: Matrix, texts: Matrix) -> Vector:
    """CLIP-T: (n,) the cosine of each image and its own text, in [-1, 1].

    Others print 2.5 max(cos, 0) (Hessel et al. 2021, CLIPScore) or 100 cos (torchmetrics) of the same thing.
    """
    x, y = check_features(images, "images"), check_features(texts, "texts")
    check_same_width(x, y)
    assert len(x) == len(y), (len(x), len(y))
    return (unit_rows(x) * unit_rows(y)).sum(axis=1)


def r_precision(images: Matrix, texts: Matrix, own: NDArray[np.integer], *, seed: int = 0) -> NDArray[np.bool_]:
    """R-precision: (n,) whether an image's own text comes first among CANDIDATES of the texts, its own among them.

    texts: (k, d), each different; own: (n,) the row of each image's text. The others are chosen by position, alike for
    all images of a text, so that base and tuned answer the same question. A tie is not first.
    Source: Park et al. 2021, "Benchmark for Compositional Text-to-Image Synthesis", with K = 100.
    """
    x, y = check_features(images, "images"), check_features(texts, "texts", least=2)
    check_same_width(x, y)
    cosines = unit_rows(x) @ unit_rows(y).T
    won = np.zeros(len(x), bool)
    for text in np.unique(own):
        others = distractors(int(text), len(y), seed)
        mine = own == text
        won[mine] = cosines[mine][:, [text]].ravel() > cosines[mine][:, others].max(axis=1)
    return won


@cache
def distractors(text: int, count: int, seed: int) -> list[int]:
    """The other rows among which a text has to be found."""
    order = rng.permutation(count, seed, "candidates", text)
    return [other for other in order if other != text][: CANDIDATES - 1]


def directional_similarity(before: Matrix, after: Matrix, text_before: Matrix, text_after: Matrix) -> Vector:
    """(n,) the cosine of what changed in the images and what changed in the words: "a fridge", "a water type fridge".

    Pairs of one seed. Source: Gal et al. 2022, arXiv 2108.00946, eq. 2. Raises InputError where nothing changed.
    """
    shown = check_features(after, "images") - check_features(before, "images")
    said = check_features(text_after, "texts") - check_features(text_before, "texts")
    if not np.abs(said).sum(axis=1).all():
        raise InputError("a prompt and its changed twin have equal text features", fix="Give prompts that differ.")
    return (unit_rows(shown) * unit_rows(said)).sum(axis=1)

"""What no metric can use: empty sets, features that are not numbers, rows of different lengths, too few pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError

Matrix = NDArray[np.floating]
Vector = NDArray[np.floating]


def rows(features: Matrix, what: str, *, least: int = 1) -> NDArray[np.float64]:
    """The (n, d) features as float64. Raises InputError for fewer than `least` rows and for NaN or infinity."""
    matrix = np.asarray(features, np.float64)
    assert matrix.ndim == 2, matrix.shape
    if len(matrix) < least:
        raise InputError(f"{what}: {len(matrix)} pictures", allowed=f"{least} or more")
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(bad):
        raise InputError(
            f"{what}: the features of {len(bad)} pictures are not finite, the first is number {bad[0]}",
            fix="The extractor failed on them: look at the pictures, or run it in fp32.",
        )
    return matrix


def same_width(*sides: Matrix) -> None:
    """Raise InputError for features of different extractors."""
    widths = sorted({side.shape[1] for side in sides})
    if len(widths) > 1:
        raise InputError(
            f"features of {' and '.join(map(str, widths))} numbers were put together",
            fix="Encode all pictures with one extractor.",
        )


def unit(features: Matrix) -> NDArray[np.float64]:
    """Rows of length 1, so that a product of two is a cosine; a row of zeros stays one."""
    matrix = np.asarray(features, np.float64)
    return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)

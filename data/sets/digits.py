"""scikit-learn's handwritten digits: 1,797 pictures of 8 x 8 pixels and 17 grey levels, on every machine at once.

Source: Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI repository (its test part). They come
from the writing of 43 people, shrunk by counting the ink of 4 x 4 blocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from data.errors import InputError
from data.sets.pictures import Pictures, from_images

SIDE, INK = 8, 16  # pixels, and the value of the darkest
ENLARGED = "8 x 8 pixels enlarged {factor} times (bicubic): nothing between them was ever seen by a camera"


def load(size: int | None = None) -> Pictures:
    """White digits on black at size x size pixels, 8 if nothing is asked for: enlarged by a whole factor, with an even
    black margin.

    At 8 they are what was measured; every larger picture is interpolated, so bits per dimension at another size are of
    other pictures. Raises InputError under 8 pixels.
    """
    from sklearn.datasets import load_digits

    size = size or SIDE
    if size < SIDE:
        raise InputError(f"the digits have {SIDE} x {SIDE} pixels", where=f"--data.size {size}", allowed="8 and more")
    found: Any = load_digits()
    values = np.rint(np.asarray(found.images) * (255.0 / INK)).astype(np.uint8)
    factor = size // SIDE
    pixels = from_images([framed(Image.fromarray(value), factor, size) for value in values])
    labels = torch.from_numpy(np.asarray(found.target)).long()
    notes = (ENLARGED.format(factor=factor),) if factor > 1 else ()
    return Pictures("digits", pixels, labels, tuple(map(str, range(10))), notes=notes)


def framed(digit: Image.Image, factor: int, size: int) -> Image.Image:
    """A digit enlarged by a whole factor in the middle of a black square."""
    side = SIDE * factor
    larger = digit.resize((side, side), Image.Resampling.BICUBIC) if factor > 1 else digit
    paper = Image.new("L", (size, size))
    paper.paste(larger, ((size - side) // 2, (size - side) // 2))
    return paper

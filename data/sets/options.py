"""Which set of pictures, and how it is cut: read before torch is loaded."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from data.options import Options


class SetOptions(Options):
    """Pictures to train on. What is not said follows from the set."""

    set: str = "digits"
    """digits (scikit-learn's 1,797 handwritten ones, at once and offline); creatures (this project's sample pictures);
    a folder of pictures; a folder saved by the library datasets; a preset, e.g. fashion_mnist, cifar10 or cars (all of
    them: docs/ddpm-runs.md); or OWNER/NAME of a data set on the Hugging Face hub"""
    size: int | None = Field(default=None, ge=4, le=1024)
    """pixels of a side; pictures are scaled and cut to a square"""
    mode: Literal["L", "RGB"] | None = None
    """L: grey, one channel; RGB: colour, three"""
    flip: bool | None = None
    """mirror half of the pictures while training (not where left and right matter)"""
    only: list[str] = Field(default=[])
    """class to keep, by its name; may be repeated"""
    column: str | None = None
    """column of the pictures in a Hugging Face data set; default: the first one of pictures"""
    label_column: str | None = None
    """column of the classes in a Hugging Face data set; default: the first one of classes"""
    subset: str | None = None
    """configuration of a Hugging Face data set"""
    split: str = "train"
    """split of a Hugging Face data set"""
    most: int | None = Field(default=None, gt=1)
    """use no more pictures than this, drawn by the seed"""
    held_out: float = Field(default=0.1, ge=0, lt=1)
    """share of the pictures that is kept out of training; near-duplicates stay on one side"""

"""The options of gallery.py. Nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from data.options import Options


class GalleryOptions(Options):
    """What gallery.py can be told."""

    folder: Path = Path("outputs")
    """the pictures, in this folder and all below it"""
    search: str = ""
    """words are what the picture shows; field:value narrows: prompt: negative: model: lora: sampler: seed: steps: cfg:
    width: height: date: star: file:, numbers with > and <, -field:value for what it must not be"""
    star: tuple[Path, ...] = ()
    """mark these pictures as favourites"""
    unstar: tuple[Path, ...] = ()
    """and take the mark away again"""
    most: int = Field(default=20, ge=1)
    """pictures that are listed"""
    page: Path | None = None
    """write what was found as one HTML file"""
    judge: Path | None = None
    """folder of a CLIP model that compares words and pictures; default: the embedded scorer"""
    index: Path | None = None
    """the index; default: one for each folder, in the cache"""

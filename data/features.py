"""Pictures -> feature matrices: pluggable extractors, and a cache keyed by picture bytes, extractor name and version.

To add an extractor: a class with `name`, `version` and `encode`, and its word in `make`. Whatever changes its output
changes its version, so that features of two versions never meet in one matrix.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.errors import InputError, choose
from data.files import cache_root, write_atomic
from data.images import decode, read_bytes
from data.progress import ProgressBar
from data.schema import Sample

Features = NDArray[np.float32]  # (n, d), one row a picture
Picture = Sample | Path | Image.Image
BATCH = 32  # pictures decoded and encoded at a time


class Extractor(Protocol):
    """Turns pictures into rows. Equal name and version promise equal rows for equal pictures."""

    @property
    def name(self) -> str: ...  # a word, also a folder of the cache

    @property
    def version(self) -> str: ...  # of the code, and a hash of the weights if there are any

    def encode(self, pictures: Sequence[Image.Image]) -> Features: ...  # RGB pictures of any size -> (n, d) float32


def features(extractor: Extractor, pictures: Sequence[Picture], *, cache: bool = True) -> Features:
    """The (n, d) float32 features of samples, files or pictures in memory; rows are cached under cache_root()/features.

    Raises InputError for a file that is no usable picture, or that changed since its sample was read.
    """
    folder = cache_root() / "features" / f"{extractor.name}-{extractor.version}"
    rows: dict[str, Features] = {}
    keys = [content_key(picture) for picture in pictures]
    if cache:
        rows = {key: row for key in set(keys) if (row := load(folder, key)) is not None}
    missing = list({key: picture for key, picture in zip(keys, pictures, strict=True) if key not in rows}.items())
    for start in ProgressBar(range(0, len(missing), BATCH), desc=extractor.name, unit="batch"):
        batch = missing[start : start + BATCH]
        encoded = extractor.encode([picture_of(picture, key) for key, picture in batch])
        assert encoded.dtype == np.float32 and encoded.ndim == 2 and len(encoded) == len(batch), extractor.name
        for (key, _), row in zip(batch, encoded, strict=True):
            rows[key] = row
            if cache:
                save(folder, key, row)
    return np.stack([rows[key] for key in keys]) if keys else np.empty((0, 0), np.float32)


def content_key(picture: Picture) -> str:
    """The SHA-256 of a file's bytes, or of a picture's mode, size and pixels: never a name."""
    if isinstance(picture, Sample):
        return picture.sha256
    if isinstance(picture, Path):
        return hashlib.sha256(read_bytes(picture)).hexdigest()
    head = f"pixels {picture.mode} {picture.width} {picture.height} "
    return hashlib.sha256(head.encode() + picture.tobytes()).hexdigest()


def picture_of(picture: Picture, key: str) -> Image.Image:
    """The picture as RGB, decoded from the very bytes that were hashed."""
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    path = picture.path if isinstance(picture, Sample) else picture
    content = read_bytes(path)
    if hashlib.sha256(content).hexdigest() != key:
        raise InputError("changed while it was being read", where=path, fix="Run the command again.")
    return decode(content, path)[0]


def load(folder: Path, key: str) -> Features | None:
    """A cached row, or None if there is none or the disk gave back something else."""
    try:
        row = np.load(folder / key[:2] / f"{key}.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return row if row.ndim == 1 and row.dtype == np.float32 else None


def save(folder: Path, key: str, row: Features) -> None:
    content = io.BytesIO()
    np.save(content, row, allow_pickle=False)
    write_atomic(folder / key[:2] / f"{key}.npy", content.getvalue())


@dataclass(frozen=True)
class Pixels:
    """The picture itself, shrunk to size x size (squashed, antialiased): (n, 3 size^2) in [0, 1]."""

    size: int = 32

    @property
    def name(self) -> str:
        return "pixels"

    @property
    def version(self) -> str:
        return f"1-{self.size}"

    def encode(self, pictures: Sequence[Image.Image]) -> Features:
        shrunk = [picture.convert("RGB").resize((self.size, self.size), Image.Resampling.BOX) for picture in pictures]
        return np.stack([np.asarray(picture, np.float32).ravel() / np.float32(255) for picture in shrunk])


EXTRACTORS = ("pixels", "descriptors", "clip", "dinov2")


def make(name: str, folder: Path | None = None) -> Extractor:
    """The extractor of that name; `clip` and `dinov2` need the folder of a model on this machine."""
    from data.descriptors import Descriptors
    from data.encoders import Clip, Dinov2

    choose(name, EXTRACTORS, what="extractor")
    if name in ("clip", "dinov2"):
        if folder is None:
            raise InputError(f"extractor {name!r} needs a model", fix="Give the folder where its weights lie.")
        return Clip(folder) if name == "clip" else Dinov2(folder)
    return Pixels() if name == "pixels" else Descriptors()

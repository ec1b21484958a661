"""The sample set: 650 captioned images of pocket creatures, shipped as two archives.

pocket/creatures-64.zip holds the PNG files that the embedded model is trained on and metadata.jsonl;
pocket/creatures-512.zip the same images at 512 pixels as lossless WebP. tools/pocket/archive.py draws and packs both.
"""

import io
import json
from functools import cache
from pathlib import Path
from zipfile import ZipFile

from PIL import Image

from data.atomic_io import atomic_folder, cache_root
from data.schema import Annotation

POCKET = Path(__file__).with_name("pocket")
SIZE, LARGE = 64, 512  # pixels; SIZE is what the embedded base model generates
COUNT = 650
VERSION = "4"  # raise it when an image or a caption changes: cached sample folders are keyed by it
TYPES = ("water", "fire", "grass", "electric", "ice", "rock", "ghost", "poison", "fairy", "metal")


def sample_folder(*, size: int = SIZE) -> Path:
    """The captioned folder of the sample set at size x size pixels, unpacked into the cache on first use."""
    folder = cache_root() / "pocket" / f"sample-{VERSION}-{size}"
    if not (folder / "metadata.jsonl").is_file():  # the folder appears whole, so its table means that all is there
        write_sample_folder(folder, size=size)
    return folder


def write_sample_folder(folder: Path, *, count: int = COUNT, size: int = SIZE) -> None:
    """Write the first `count` images of `size` pixels and their metadata.jsonl as a folder that appears whole."""
    with atomic_folder(folder) as partial:
        for index in range(count):
            (partial / f"{index:05d}.png").write_bytes(sample_png(index, size))
        lines = _archive(SIZE)["metadata.jsonl"].splitlines(keepends=True)
        (partial / "metadata.jsonl").write_bytes(b"".join(lines[:count]))


def sample_png(index: int, size: int = SIZE) -> bytes:
    """Image `index` as a PNG file of size x size pixels."""
    if size == SIZE:
        return _archive(SIZE)[f"{index:05d}.png"]
    encoded = io.BytesIO()
    sample_image(index, size).save(encoded, "PNG")
    return encoded.getvalue()


def sample_image(index: int, size: int = SIZE) -> Image.Image:
    """Image `index` as RGB, size x size pixels: as shipped at 64 and 512, resized from these otherwise."""
    content = _archive(SIZE)[f"{index:05d}.png"] if size == SIZE else _archive(LARGE)[f"{index:05d}.webp"]
    stored = Image.open(io.BytesIO(content)).convert("RGB")
    if size in (SIZE, LARGE):
        return stored
    return stored.resize((size, size), Image.Resampling.BOX if size < LARGE else Image.Resampling.LANCZOS)


def sample_annotation(index: int) -> Annotation:
    """The reference caption of image `index`, its type and its name."""
    return _annotations()[index]


@cache
def _annotations() -> tuple[Annotation, ...]:
    lines = _archive(SIZE)["metadata.jsonl"].splitlines()
    return tuple(Annotation.model_validate(json.loads(line)) for line in lines)


@cache
def _archive(size: int) -> dict[str, bytes]:
    with ZipFile(POCKET / f"creatures-{size}.zip") as archive:
        return {name: archive.read(name) for name in archive.namelist()}

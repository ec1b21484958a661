"""Latent moments and text states on disk, keyed by content; and where they are kept during training.

The key is a hash of everything an entry depends on: the image's bytes, crop, flip, the encoder's weights and the
version of this code. Entries are encoded one at a time, so that a value does not depend on which others were missing.
"""

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from data import images
from data.atomic_io import atomic_file, cache_root
from data.dataset import EncodedImage, moments_to_posterior
from data.disk_cache import cache_key
from data.errors import InputError
from data.progress import ProgressBar
from data.shapes import Images, Moments, TextStates

VERSION = 2  # raise it when the same inputs would give other values, or the files another form
PROGRESS_DELAY = 2.0  # seconds of reading before a progress bar appears
GIB = 2**30
ROOM_IN_MEMORY = 0.5  # share of the free memory that the set may take by itself
MEMORY_LIMITS = ((Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),)


@dataclass(frozen=True)
class ImageCrop:
    """An image as the autoencoder sees it: scaled to cover width x height pixels, centre-cropped, perhaps mirrored."""

    path: Path
    sha256: str
    width: int
    height: int
    flip: bool = False

    def cache_path(self, encoder: str) -> Path:
        return entry_path("latents", "latent", encoder, self.sha256, self.width, self.height, self.flip)

    def pixels(self) -> Images:
        """(1, 3, height, width) in [-1, 1]. Raises InputError if the file is no longer the one that was hashed."""
        content = images.read_bytes(self.path)
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise InputError("changed while it was being read", where=self.path, fix="Start again.")
        image = images.resize_and_crop(images.decode(content, self.path)[0], self.width, self.height)
        pixels = images.image_to_tensor(image)[None]
        return pixels.flip(-1) if self.flip else pixels


@dataclass(frozen=True)
class CacheResult:
    """The paths of the entries, in the order of the inputs, and those that were damaged and encoded again."""

    places: list[Path]
    damaged: list[Path]


def cache_latents(crops: Sequence[ImageCrop], encode: Callable[[Images], Moments], encoder: str) -> CacheResult:
    """Cache the autoencoder's (2C, h, w) mean and log-variance of each crop, encoding those that are missing.

    encode: (1, 3, H, W) in [-1, 1] -> (1, 2C, h, w). encoder: a hash of its weights.
    Raises InputError naming the image if the encoder gives NaN or infinity.
    """

    def make(index: int) -> Moments:
        moments = encode(crops[index].pixels())[0]
        if not bool(torch.isfinite(moments).all()):
            what, fix = "the autoencoder gives NaN or infinity for this image", "Leave it out, or fix the autoencoder."
            raise InputError(what, where=crops[index].path, fix=fix)
        return moments

    return fill_cache([crop.cache_path(encoder) for crop in crops], make, "encoding images")


def cache_text_states(texts: Sequence[str], encode: Callable[[str], TextStates], encoder: str) -> CacheResult:
    """Cache the text encoder's (L, D) states of each text. encoder: a hash of its weights and its tokenizer.

    Raises InputError naming the text if the encoder gives NaN or infinity.
    """

    def make(index: int) -> TextStates:
        states = encode(texts[index])
        if not bool(torch.isfinite(states).all()):
            raise InputError(f"the text encoder gives NaN or infinity for {texts[index]!r}", fix="Fix the model.")
        return states

    return fill_cache([text_path(text, encoder) for text in texts], make, "encoding captions")


def fill_cache(paths: list[Path], make: Callable[[int], Tensor], label: str) -> CacheResult:
    """Make what is missing. Each entry is saved as soon as it is made, so an interrupted encoding resumes."""
    missing: list[int] = []
    damaged: dict[Path, None] = {}
    for index, path in enumerate(ProgressBar(paths, desc="reading the cache", delay=PROGRESS_DELAY)):
        existed = path.exists()  # before it is read: another process may write it at any moment
        if read_entry(path) is None:
            missing.append(index)
            damaged |= {path: None} if existed else {}
    for index in ProgressBar(missing, desc=label) if missing else ():
        if read_entry(paths[index]) is None:  # not made meanwhile by another process, or for equal content
            save_entry(paths[index], make(index))
    return CacheResult(paths, list(damaged))


def has_latents(crop: ImageCrop, encoder: str) -> bool:
    return crop.cache_path(encoder).is_file()


def has_text_states(text: str, encoder: str) -> bool:
    return text_path(text, encoder).is_file()


def text_path(text: str, encoder: str) -> Path:
    return entry_path("texts", "text", encoder, text)


def entry_path(folder: str, kind: str, *parts: object) -> Path:
    key = cache_key(kind, VERSION, *parts)
    return cache_root() / folder / key[:2] / f"{key}.safetensors"


def save_entry(path: Path, value: Tensor) -> None:
    """Write a value as float32, atomically, with its checksum."""
    value = value.detach().to("cpu", torch.float32).contiguous()
    with atomic_file(path, durable=False) as partial:
        save_file({"value": value}, partial, {"crc32": checksum(value)})


def checksum(value: Tensor) -> str:
    return f"{zlib.crc32(value.numpy().data):08x}"


def read_entry(path: Path) -> Tensor | None:
    """A cached value, or None if there is none or it is damaged, e.g. short after a power cut."""
    try:
        with safe_open(path, framework="pt") as file:
            value, expected = file.get_tensor("value"), file.metadata()["crc32"]
    except Exception:  # safetensors' own errors share no parent but Exception; whatever is wrong, it is encoded again
        return None
    return value.clone() if checksum(value) == expected else None


def load_entry(path: Path) -> Tensor:
    """A cached value. Raises InputError if it is gone or damaged."""
    value = read_entry(path)
    if value is None:
        fix = "Run the same command again: it encodes the entry and resumes."
        raise InputError("this cache entry is gone or damaged", where=path, fix=fix)
    return value


# ---- during training


@dataclass(frozen=True)
class EntryPaths:
    """Where one image's encoded forms lie in the cache; see EncodedImage."""

    sample_id: str
    moments: tuple[Path, ...]
    text_states: tuple[Path, ...]


@dataclass(frozen=True)
class DiskEntries(Sequence[EncodedImage]):
    """Entries that are read from the cache each time: for sets larger than the memory."""

    records: Sequence[EntryPaths]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        assert isinstance(index, int)
        return MemoryEntries(torch.device("cpu")).entries([self.records[index]])[0]


class MemoryEntries:
    """Reads entries onto a device, each file once: captions that several images have in common are shared."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.known: dict[Path, Tensor] = {}

    def entries(self, records: Sequence[EntryPaths]) -> Sequence[EncodedImage]:
        found: list[EncodedImage] = []
        for record in records:
            moments = tuple(self.value(path, is_moments=True) for path in record.moments)
            states = tuple(self.value(path) for path in record.text_states)
            found.append(EncodedImage(record.sample_id, moments, states))
        return found

    def value(self, path: Path, *, is_moments: bool = False) -> Tensor:
        if path not in self.known:
            value = load_entry(path)
            self.known[path] = (moments_to_posterior(value) if is_moments else value).to(self.device)
        return self.known[path]


def total_bytes(records: Iterable[EntryPaths]) -> int:
    """Bytes of the encoded set: its files, each counted once."""
    paths = {path for record in records for path in (*record.moments, *record.text_states)}
    return sum(path.stat().st_size for path in paths)


def choose_storage(keep: str, size: int) -> str:
    """memory or disk for `size` bytes; auto: memory if there is ample room; device: memory. InputError if too small."""
    free = free_memory()
    if keep == "auto":
        return "memory" if size <= ROOM_IN_MEMORY * free else "disk"
    if keep == "disk":
        return keep
    if size > free:
        what = f"the encoded images take {size / GIB:.2f} GiB, {free / GIB:.2f} GiB of memory are free"
        raise InputError(what, where=f"--pictures.keep {keep}", fix="Use --pictures.keep disk.")
    return "memory"


def free_memory() -> int:
    """Bytes of main memory available to each process of this machine, within the limit of its control group."""
    free = [psutil.virtual_memory().available]
    for limit, used in MEMORY_LIMITS:
        if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
            free.append(max(0, int(text) - int(used.read_text())))
    return min(free) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

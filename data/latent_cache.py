"""Latent moments and text states on disk, keyed by content.

The key of an entry is a hash of everything it is a function of: the picture's bytes, the crop, the flip, the encoder's
weights and the version of this code. A changed input is therefore a miss; nothing is ever stale. Entries are encoded
one at a time, so that a value does not depend on which neighbours happened to be missing: measured 2026-11-21, embedded
autoencoder, one CPU thread, batches of 8 take half the time a picture (5 ms, not 10) and differ by 1e-5.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class ImageCrop:
    """A picture as the autoencoder sees it: scaled to cover width x height pixels, centre-cropped, perhaps mirrored."""

    path: Path
    sha256: str
    width: int
    height: int
    flip: bool = False

    def key(self, encoder: str) -> str:
        return cache_key("latent", VERSION, encoder, self.sha256, self.width, self.height, self.flip)

    def pixels(self) -> Images:
        """(1, 3, height, width) in [-1, 1]. Raises InputError if the file is no longer the one that was hashed."""
        content = images.read_bytes(self.path)
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise InputError("changed while it was being read", where=self.path, fix="Start again.")
        picture = images.resize_and_crop(images.decode(content, self.path)[0], self.width, self.height)
        pixels = images.image_to_tensor(picture)[None]
        return pixels.flip(-1) if self.flip else pixels


@dataclass(frozen=True)
class CacheResult:
    """Where the entries lie, in the order they were asked for, and which were found damaged and made again."""

    places: list[Path]
    damaged: list[Path]


def cache_latents(frames: Sequence[ImageCrop], encode: Callable[[Images], Moments], encoder: str) -> CacheResult:
    """Keep the autoencoder's (2C, h, w) mean and log-variance of each frame; `encode` is called for those not kept yet.

    encode: (1, 3, H, W) in [-1, 1] -> (1, 2C, h, w). encoder: a hash of its weights.
    Raises InputError naming the picture if the encoder gives NaN or infinity.
    """

    def make(index: int) -> Moments:
        moments = encode(frames[index].pixels())[0]
        if not bool(torch.isfinite(moments).all()):
            fix = "Leave it out, or mend the model's autoencoder."
            raise InputError("the autoencoder gave NaN or infinity for this picture", where=frames[index].path, fix=fix)
        return moments

    return fill_cache([entry_path("latents", frame.key(encoder)) for frame in frames], make, "encoding pictures")


def cache_text_states(texts: Sequence[str], encode: Callable[[str], TextStates], encoder: str) -> CacheResult:
    """Keep the text encoder's (L, D) states of each text. encoder: a hash of its weights and its tokenizer.

    Raises InputError naming the text if the encoder gives NaN or infinity.
    """

    def make(index: int) -> TextStates:
        states = encode(texts[index])
        if not bool(torch.isfinite(states).all()):
            raise InputError(f"the text encoder gave NaN or infinity for {texts[index]!r}", fix="Mend the model.")
        return states

    return fill_cache([text_path(text, encoder) for text in texts], make, "encoding captions")


def fill_cache(places: list[Path], make: Callable[[int], Tensor], label: str) -> CacheResult:
    """Make and keep what is not there. Each entry is kept as soon as it is made: an interrupted encoding goes on."""
    look = ProgressBar(places, desc="looking into the cache", delay=PROGRESS_DELAY)
    missing = [index for index, path in enumerate(look) if read_entry(path) is None]
    damaged = list(dict.fromkeys(places[index] for index in missing if places[index].exists()))
    for index in ProgressBar(missing, desc=label) if missing else ():
        if (
            read_entry(places[index]) is None
        ):  # another process, or the same content further up, may have made it by now
            save_entry(places[index], make(index))
    return CacheResult(places, damaged)


def has_latents(frame: ImageCrop, encoder: str) -> bool:
    """Whether a frame's moments were encoded before, without reading them."""
    return entry_path("latents", frame.key(encoder)).is_file()


def has_text_states(text: str, encoder: str) -> bool:
    """Whether a text's states were encoded before, without reading them."""
    return text_path(text, encoder).is_file()


def text_path(text: str, encoder: str) -> Path:
    return entry_path("texts", cache_key("text", VERSION, encoder, text))


def entry_path(kind: str, key: str) -> Path:
    return cache_root() / kind / key[:2] / f"{key}.safetensors"


def save_entry(path: Path, value: Tensor) -> None:
    """Write a value as float32, whole or not at all, with its checksum."""
    value = value.detach().to("cpu", torch.float32).contiguous()
    with atomic_file(path, durable=False) as beside:
        save_file({"value": value}, beside, {"crc32": checksum(value)})


def checksum(value: Tensor) -> str:
    return f"{zlib.crc32(value.numpy().data):08x}"


def read_entry(path: Path) -> Tensor | None:
    """A kept value, or None if there is none or it is damaged.

    A cache file is not flushed to the disk at once: after a power cut it may be short, or of the right length and full
    of zeros; hence the checksum.
    """
    try:
        with safe_open(path, framework="pt") as file:
            value, expected = file.get_tensor("value"), file.metadata()["crc32"]
    except Exception:  # safetensors' own errors share no parent but Exception; whatever is wrong, it is encoded again
        return None
    return value.clone() if checksum(value) == expected else None


def load_entry(path: Path) -> Tensor:
    """A value that was kept. Raises InputError if it has gone since, or was damaged."""
    value = read_entry(path)
    if value is None:
        fix = "The same command encodes it again and goes on."
        raise InputError("an entry of the cache has gone or is damaged", where=path, fix=fix)
    return value


GIB = 2**30
ROOM_IN_MEMORY = 0.5  # share of the free memory that the set may take by itself
MEMORY_LIMITS = ((Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),)


@dataclass(frozen=True)
class EntryPaths:
    """Where one picture's encoded forms lie in the cache; see Entry."""

    sample_id: str
    moments: tuple[Path, ...]
    text_states: tuple[Path, ...]


class DiskEntries(Sequence[EncodedImage]):
    """Entries that are read from the cache each time they are asked for: for sets larger than the memory."""

    def __init__(self, records: Sequence[EntryPaths]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        assert isinstance(index, int)
        record = self.records[index]
        moments = tuple(moments_to_posterior(load_entry(path)) for path in record.moments)
        return EncodedImage(record.sample_id, moments, tuple(load_entry(path) for path in record.text_states))


class MemoryEntries:
    """Reads entries onto a device, each file once: captions that several pictures share are shared."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.known: dict[Path, Tensor] = {}

    def entries(self, records: Sequence[EntryPaths]) -> Sequence[EncodedImage]:
        return [self.entry(record) for record in records]

    def entry(self, record: EntryPaths) -> EncodedImage:
        moments = tuple(self.value(path, is_moments=True) for path in record.moments)
        return EncodedImage(record.sample_id, moments, tuple(self.value(path) for path in record.text_states))

    def value(self, path: Path, *, is_moments: bool = False) -> Tensor:
        if path not in self.known:
            value = load_entry(path)
            self.known[path] = (moments_to_posterior(value) if is_moments else value).to(self.device)
        return self.known[path]


def total_bytes(records: Iterable[EntryPaths]) -> int:
    """Bytes of the encoded set: its files, each counted once."""
    places = {path for record in records for path in (*record.moments, *record.text_states)}
    return sum(path.stat().st_size for path in places)


def choose_storage(keep: str, size: int) -> str:
    """memory or disk for `size` bytes; `auto` is memory while there is ample room, `device` another name for memory.

    Raises InputError if memory was asked for and has no room.
    """
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
    """Bytes of main memory available to each process of this machine, within the limit of our control group."""
    free = [psutil.virtual_memory().available]
    for limit, used in MEMORY_LIMITS:
        if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
            free.append(max(0, int(text) - int(used.read_text())))
    return min(free) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

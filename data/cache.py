"""Latent moments and text states on disk, keyed by content.

The key of an entry is a hash of everything it is a function of: the picture's bytes, the crop, the flip, the encoder's
weights and the version of this code. A changed input is therefore a miss; nothing is ever stale. Entries are encoded
one at a time, so that a value does not depend on which neighbours happened to be missing: measured 2026-11-21, embedded
autoencoder, one CPU thread, batches of 8 take half the time a picture (5 ms, not 10) and differ by 1e-5.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from data import images
from data.errors import InputError
from data.files import cache_root, replaced_file
from data.kept import digest
from data.progress import ProgressBar
from data.shapes import Images, Moments, TextStates

VERSION = 2  # raise it when the same inputs would give other values, or the files another form
PATIENCE = 2.0  # seconds of reading before a progress bar appears


@dataclass(frozen=True)
class Frame:
    """A picture as the autoencoder sees it: scaled to cover width x height pixels, centre-cropped, perhaps mirrored."""

    path: Path
    sha256: str
    width: int
    height: int
    flip: bool = False

    def key(self, encoder: str) -> str:
        return digest("latent", VERSION, encoder, self.sha256, self.width, self.height, self.flip)

    def pixels(self) -> Images:
        """(1, 3, height, width) in [-1, 1]. Raises InputError if the file is no longer the one that was hashed."""
        content = images.read_bytes(self.path)
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise InputError("changed while it was being read", where=self.path, fix="Start again.")
        picture = images.fit(images.decode(content, self.path)[0], self.width, self.height)
        pixels = images.to_tensor(picture)[None]
        return pixels.flip(-1) if self.flip else pixels


@dataclass(frozen=True)
class Filled:
    """Where the entries lie, in the order they were asked for, and which were found damaged and made again."""

    places: list[Path]
    damaged: list[Path]


def latent_moments(frames: Sequence[Frame], encode: Callable[[Images], Moments], encoder: str) -> Filled:
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

    return fill([place("latents", frame.key(encoder)) for frame in frames], make, "encoding pictures")


def text_states(texts: Sequence[str], encode: Callable[[str], TextStates], encoder: str) -> Filled:
    """Keep the text encoder's (L, D) states of each text. encoder: a hash of its weights and its tokenizer.

    Raises InputError naming the text if the encoder gives NaN or infinity.
    """

    def make(index: int) -> TextStates:
        states = encode(texts[index])
        if not bool(torch.isfinite(states).all()):
            raise InputError(f"the text encoder gave NaN or infinity for {texts[index]!r}", fix="Mend the model.")
        return states

    return fill([text_place(text, encoder) for text in texts], make, "encoding captions")


def fill(places: list[Path], make: Callable[[int], Tensor], label: str) -> Filled:
    """Make and keep what is not there. Each entry is kept as soon as it is made: an interrupted encoding goes on."""
    look = ProgressBar(places, desc="looking into the cache", delay=PATIENCE)
    missing = [index for index, path in enumerate(look) if read(path) is None]
    damaged = list(dict.fromkeys(places[index] for index in missing if places[index].exists()))
    for index in ProgressBar(missing, desc=label) if missing else ():
        if read(places[index]) is None:  # another process, or the same content further up, may have made it by now
            keep(places[index], make(index))
    return Filled(places, damaged)


def is_kept(frame: Frame, encoder: str) -> bool:
    """Whether a frame's moments were encoded before, without reading them."""
    return place("latents", frame.key(encoder)).is_file()


def is_read(text: str, encoder: str) -> bool:
    """Whether a text's states were encoded before, without reading them."""
    return text_place(text, encoder).is_file()


def text_place(text: str, encoder: str) -> Path:
    return place("texts", digest("text", VERSION, encoder, text))


def place(kind: str, key: str) -> Path:
    return cache_root() / kind / key[:2] / f"{key}.safetensors"


def keep(path: Path, value: Tensor) -> None:
    """Write a value as float32, whole or not at all, with its checksum."""
    value = value.detach().to("cpu", torch.float32).contiguous()
    with replaced_file(path, durable=False) as beside:
        save_file({"value": value}, beside, {"crc32": checksum(value)})


def checksum(value: Tensor) -> str:
    return f"{zlib.crc32(value.numpy().data):08x}"


def read(path: Path) -> Tensor | None:
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


def load(path: Path) -> Tensor:
    """A value that was kept. Raises InputError if it has gone since, or was damaged."""
    value = read(path)
    if value is None:
        fix = "The same command encodes it again and goes on."
        raise InputError("an entry of the cache has gone or is damaged", where=path, fix=fix)
    return value

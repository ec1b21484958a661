"""Latent moments and text states on disk, keyed by content.

The key of an entry is a hash of everything it is a function of: the picture's bytes, the crop, the flip, the encoder's
weights and the version of this code. A changed input is therefore a miss; nothing is ever stale. Entries are encoded
one at a time, so that a value does not depend on which neighbours happened to be missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from data import images
from data.errors import InputError
from data.files import cache_root, replaced_file
from data.shapes import Images, Moments, TextStates

VERSION = 1  # raise it when the same inputs would give other values


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
        """(1, 3, height, width) in [-1, 1]."""
        picture = images.fit(images.open_picture(self.path), self.width, self.height)
        pixels = images.to_tensor(picture)[None]
        return pixels.flip(-1) if self.flip else pixels


def latent_moments(frames: Sequence[Frame], encode: Callable[[Images], Moments], encoder: str) -> list[Moments]:
    """The autoencoder's (2C, h, w) mean and log-variance for each frame; `encode` is called for those not kept yet.

    encode: (1, 3, H, W) in [-1, 1] -> (1, 2C, h, w). encoder: a hash of its weights.
    Raises InputError naming the picture if the encoder gives NaN or infinity.
    """
    places = [place("latents", frame.key(encoder)) for frame in frames]
    values = [read(path) for path in places]
    for index in progress([i for i, value in enumerate(values) if value is None], "encoding pictures"):
        moments = encode(frames[index].pixels())[0]
        if not bool(torch.isfinite(moments).all()):
            raise InputError("the autoencoder gave NaN for this picture", where=frames[index].path, fix="Leave it out.")
        values[index] = keep(places[index], moments)
    return [value for value in values if value is not None]


def text_states(texts: Iterable[str], encode: Callable[[str], TextStates], encoder: str) -> dict[str, TextStates]:
    """The text encoder's (L, D) states of each different text. encoder: a hash of its weights and its tokenizer."""
    places = {text: place("texts", digest("text", VERSION, encoder, text)) for text in texts}
    values = {text: read(path) for text, path in places.items()}
    for text in progress([text for text, value in values.items() if value is None], "encoding captions"):
        states = encode(text)
        assert bool(torch.isfinite(states).all()), f"the text encoder gave NaN for {text!r}"
        values[text] = keep(places[text], states)
    return {text: value for text, value in values.items() if value is not None}


def is_kept(frame: Frame, encoder: str) -> bool:
    """Whether a frame's moments were encoded before, without reading them."""
    return place("latents", frame.key(encoder)).is_file()


def progress(items: list, label: str) -> Iterable:
    """A bar that appears only if there is work."""
    return tqdm(items, desc=label, leave=False) if items else items


def digest(*parts: object) -> str:
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()


def place(kind: str, key: str) -> Path:
    return cache_root() / kind / key[:2] / f"{key}.safetensors"


def keep(path: Path, value: Tensor) -> Tensor:
    """Write a value as float32, whole or not at all, and return it as it will be read."""
    value = value.detach().to("cpu", torch.float32).contiguous()
    with replaced_file(path, durable=False) as beside:
        save_file({"value": value}, beside)
    return value


def read(path: Path) -> Tensor | None:
    """A kept value, or None if there is none or it is damaged (a cache file is not flushed to the disk at once)."""
    try:
        return load_file(path)["value"]
    except Exception:  # safetensors' own errors share no parent but Exception; whatever is wrong, it is encoded again
        return None

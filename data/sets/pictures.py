"""Pictures as one uint8 tensor, with their classes if they have any."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data import seeds
from data.errors import InputError, choose
from data.shapes import Images

UNKNOWN = -1  # label of a picture without a class, where others have one


@dataclass(frozen=True, eq=False)
class Pictures:
    """pixels: (N, C, S, S) uint8. labels: (N,) int64 into `classes`, or None. groups: near-duplicates share a number.

    flip: whether mirrored pictures belong to the set as well. notes: what a person should know of them.
    """

    name: str
    pixels: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    flip: bool = False
    groups: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.pixels.dtype == torch.uint8 and self.pixels.ndim == 4, "uint8 (N, C, S, S)"
        assert self.pixels.shape[1] in (1, 3) and self.pixels.shape[2] == self.pixels.shape[3]
        assert self.labels is None or (len(self.labels) == len(self.pixels) and self.classes)

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def channels(self) -> int:
        return self.pixels.shape[1]

    @property
    def size(self) -> int:
        return self.pixels.shape[2]

    @cached_property
    def hashes(self) -> list[str]:
        """SHA-256 of each picture's pixels."""
        return [hashlib.sha256(picture.numpy().tobytes()).hexdigest() for picture in self.pixels.cpu()]

    @property
    def fingerprint(self) -> str:
        """Of the pixels, their order and classes: what a run depends on."""
        labels = None if self.labels is None else self.labels.tolist()
        return hashlib.sha256(repr((self.hashes, labels, self.classes)).encode()).hexdigest()

    def taken(self, positions: Sequence[int]) -> Pictures:
        """The pictures at these positions."""
        rows = torch.tensor(list(positions), dtype=torch.int64)
        labels = None if self.labels is None else self.labels[rows]
        groups = None if self.groups is None else tuple(self.groups[row] for row in positions)
        return replace(self, pixels=self.pixels[rows], labels=labels, groups=groups)

    def only(self, names: Sequence[str]) -> Pictures:
        """The pictures of some classes, which are numbered anew. Raises InputError for a class that is not there."""
        if not names:
            return self
        if self.labels is None:
            raise InputError(f"the pictures of {self.name} have no classes", where="--data.only", fix="Leave it out.")
        kept = [choose(name, self.classes, what="class", where="--data.only") for name in dict.fromkeys(names)]
        numbers = {self.classes.index(name): new for new, name in enumerate(kept)}
        positions = [place for place, label in enumerate(self.labels.tolist()) if label in numbers]
        if not positions:
            raise InputError(f"no picture of {', '.join(kept)} in {self.name}", where="--data.only")
        some = self.taken(positions)
        assert some.labels is not None
        labels = torch.tensor([numbers[label] for label in some.labels.tolist()])
        return replace(some, labels=labels, classes=tuple(kept))

    def split(self, share: float, seed: int) -> tuple[Pictures, Pictures]:
        """Those to train on and about `share` held out, near-duplicates on one side.

        A group's side depends on the seed and its smallest hash alone, as data/duplicates.py has it for samples.
        """
        first = {key: place for place, key in reversed(list(enumerate(self.hashes)))}
        groups = self.groups or tuple(first[key] for key in self.hashes)
        smallest: dict[int, str] = {}
        for key, group in zip(self.hashes, groups, strict=True):
            smallest[group] = min(key, smallest.get(group, key))
        draw = {group: seeds.uniform(seed, "held-out", key) for group, key in smallest.items()}
        held = {group for group, number in draw.items() if number < share}
        if share and not held and len(draw) > 1:
            held = {min(draw, key=draw.__getitem__)}
        if held and len(held) == len(draw):
            held -= {max(draw, key=draw.__getitem__)}
        sides = [group in held for group in groups]
        chosen = ([i for i, out in enumerate(sides) if out is side] for side in (False, True))
        train, held_out = (self.taken(rows) for rows in chosen)
        return train, held_out

    def at_most(self, count: int | None, seed: int) -> Pictures:
        """All, or `count` of them, drawn by the seed and in their old order."""
        if count is None or count >= len(self):
            return self
        return self.taken(sorted(seeds.permutation(len(self), seed, "most")[:count]))

    def to(self, device: torch.device | str) -> Pictures:
        """The same pictures and classes resident on a device, where batches are then made."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, pixels=self.pixels.to(device), labels=labels)

    def images(self) -> list[Image.Image]:
        """Pillow pictures, L or RGB."""
        return [to_image(picture) for picture in self.pixels.cpu()]


def unit(pixels: Tensor) -> Images:
    """uint8 (B, C, S, S) -> float32 in [-1, 1]: value / 127.5 - 1. Source: arXiv 2006.11239, section 3.3."""
    return pixels.float() / 127.5 - 1.0


def levels(images: Images) -> Tensor:
    """float in [-1, 1] -> uint8, rounded to the nearest of 256 values and clipped beyond.

    A plain cast would cut off: 254.9 would become 254. Raises InputError for NaN, which a cast would hide.
    """
    if not bool(images.isfinite().all()):
        raise InputError("the network's pictures hold NaN or infinity", fix="Train with a smaller --learning-rate.")
    return images.float().add(1.0).mul(127.5).round().clamp(0, 255).byte()


def to_image(pixels: Tensor) -> Image.Image:
    """uint8 (1, H, W) or (3, H, W) as an L or RGB picture."""
    values = pixels.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)


def from_images(images: Sequence[Image.Image]) -> Tensor:
    """L or RGB pictures of one size -> uint8 (N, C, H, W)."""
    values = np.stack([np.asarray(image) for image in images])
    tensor = torch.from_numpy(values[..., None] if values.ndim == 3 else values)
    return tensor.permute(0, 3, 1, 2).contiguous()


def labels_of(names: Sequence[Any]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Names or None for each picture -> labels and the classes in order; None if nobody has a name."""
    classes = tuple(sorted({str(name) for name in names if name is not None}))
    if not classes:
        return None, ()
    numbers = {name: number for number, name in enumerate(classes)}
    return torch.tensor([UNKNOWN if name is None else numbers[str(name)] for name in names]), classes

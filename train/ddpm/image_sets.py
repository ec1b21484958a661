"""Small images as one uint8 tensor with classes: digits, the sample creatures, a folder, or a Hugging Face data set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from data import images, rng
from data.captioned_folder import match_rows, read_table
from data.duplicates import duplicate_groups, sample_held_out
from data.errors import InputError, check_choice, suggest
from data.folder_scan import missing_folder_error, no_images_error, scan_folder
from data.progress import ProgressBar
from data.sample_set import sample_folder
from data.shapes import Images
from train.ddpm.config import HUB_PRESETS, ImageSetOptions

UNKNOWN_LABEL = -1  # of an image without a class in a set with classes
DEFAULT_SIZE = 32  # pixels
MAX_COMPARED = 20_000  # images; in larger sets only identical ones are grouped, not near-duplicates
DIGIT_SIDE, DIGIT_MAX = 8, 16  # pixels, and the value of white


@dataclass(frozen=True, eq=False)
class ImageSet:
    """pixels: (N, C, S, S) uint8. labels: (N,) int64 into `classes`, or None. groups: near-duplicates share a number.

    flip: whether mirrored images belong to the set as well. notes: for the user.
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
        """SHA-256 of each image's pixels."""
        return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in self.pixels.cpu()]

    @property
    def fingerprint(self) -> str:
        """Of the pixels, their order and classes: what a run depends on."""
        labels = None if self.labels is None else self.labels.tolist()
        return hashlib.sha256(repr((self.hashes, labels, self.classes)).encode()).hexdigest()

    def select(self, positions: Sequence[int]) -> ImageSet:
        rows = torch.tensor(list(positions), dtype=torch.int64)
        labels = None if self.labels is None else self.labels[rows]
        groups = None if self.groups is None else tuple(self.groups[row] for row in positions)
        return replace(self, pixels=self.pixels[rows], labels=labels, groups=groups)

    def only(self, names: Sequence[str]) -> ImageSet:
        """The images of some classes, renumbered. Raises InputError for an unknown class."""
        if not names:
            return self
        if self.labels is None:
            raise InputError(f"the images of {self.name} have no classes", where="--data.only", fix="Leave it out.")
        kept = [check_choice(name, self.classes, what="class", where="--data.only") for name in dict.fromkeys(names)]
        numbers = {self.classes.index(name): new for new, name in enumerate(kept)}
        labels = self.labels.tolist()
        positions = [place for place, label in enumerate(labels) if label in numbers]
        if not positions:
            raise InputError(f"no image of {', '.join(kept)} in {self.name}", where="--data.only")
        renumbered = torch.tensor([numbers[labels[place]] for place in positions])
        return replace(self.select(positions), labels=renumbered, classes=tuple(kept))

    def split(self, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
        """Training images and about `share` held out, near-duplicates on one side."""
        first = {key: place for place, key in reversed(list(enumerate(self.hashes)))}
        groups = self.groups or tuple(first[key] for key in self.hashes)
        split = sample_held_out(self.hashes, groups, share=share, seed=seed)
        return self.select(split.train), self.select(split.held_out)

    def at_most(self, count: int | None, seed: int) -> ImageSet:
        """All, or `count` of them, drawn by the seed and in their old order."""
        if count is None or count >= len(self):
            return self
        return self.select(sorted(rng.permutation(len(self), seed, "most")[:count]))

    def to(self, device: torch.device | str) -> ImageSet:
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, pixels=self.pixels.to(device), labels=labels)

    def images(self) -> list[Image.Image]:
        """Pillow images, L or RGB."""
        return [to_image(image) for image in self.pixels.cpu()]


# ---- conversions


def to_float(pixels: Tensor) -> Images:
    """uint8 (B, C, S, S) -> float32 in [-1, 1]: value / 127.5 - 1. Source: arXiv 2006.11239, section 3.3."""
    return pixels.float() / 127.5 - 1.0


def to_uint8(images: Images) -> Tensor:
    """float in [-1, 1] -> uint8, rounded to the nearest of 256 values and clipped. Raises InputError for NaN."""
    if not bool(images.isfinite().all()):
        raise InputError("the network's images contain NaN or infinity", fix="Train with a smaller --learning-rate.")
    return images.float().add(1.0).mul(127.5).round().clamp(0, 255).byte()  # a plain cast would truncate


def to_image(pixels: Tensor) -> Image.Image:
    """uint8 (1, H, W) or (3, H, W) as an L or RGB image."""
    values = pixels.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)


def from_images(images: Sequence[Image.Image]) -> Tensor:
    """L or RGB images of one size -> uint8 (N, C, H, W)."""
    tensor = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return (tensor[..., None] if tensor.ndim == 3 else tensor).permute(0, 3, 1, 2).contiguous()


def make_labels(names: Sequence[Any], order: Sequence[str] = ()) -> tuple[Tensor | None, tuple[str, ...]]:
    """A name or None for each image -> labels, and the classes that occur, in `order` or sorted; None without names."""
    found = {str(name) for name in names if name is not None}
    classes = tuple(name for name in order or sorted(found) if name in found)
    numbers = {name: number for number, name in enumerate(classes)}
    labels = [UNKNOWN_LABEL if name is None else numbers[str(name)] for name in names]
    return (torch.tensor(labels), classes) if classes else (None, ())


# ---- sets by name


def load_image_set(options: ImageSetOptions, *, seed: int) -> ImageSet:
    """The images that the options describe, not yet split. Raises InputError naming the flag."""
    # a data set of the hub is filtered and cut to --data.most before its images are decoded
    image_set = choose_image_set(options, seed).only(options.only).at_most(options.most, seed)
    if len(image_set) < 2:
        what = f"{len(image_set)} image in {options.set}"
        raise InputError(what, where="--data.set", allowed="2 or more, to train on one and hold one out")
    return image_set if options.flip is None else replace(image_set, flip=options.flip)


def choose_image_set(options: ImageSetOptions, seed: int) -> ImageSet:
    """The whole set by its name or path."""
    name, path, size = options.set, Path(options.set).expanduser(), options.size or DEFAULT_SIZE
    if name == "digits":
        digits = load_digit_images(options.size)
        return replace(digits, pixels=digits.pixels.repeat(1, 3, 1, 1)) if options.mode == "RGB" else digits
    if name == "creatures":
        return replace(load_image_folder(sample_folder(size=size), size, options.mode, name=name), flip=True)
    if name in HUB_PRESETS:
        preset = HUB_PRESETS[name]
        given = {key: getattr(options, key) or getattr(preset, key) for key in ("size", "mode", "subset", "only")}
        hub = options.model_copy(update=given | {"set": preset.set})
        return replace(load_hub_dataset(hub, seed=seed), name=name, flip=bool(preset.flip))
    if path.is_dir() and not is_saved_dataset(path):
        return load_image_folder(path, size, options.mode)
    if not path.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1 or path.exists()):
        raise missing_folder_error(path)
    if "/" in name or path.is_dir():
        return load_hub_dataset(options, seed=seed)
    names = ["digits", "creatures", *HUB_PRESETS]
    allowed = f"{', '.join(names)}, a folder, or OWNER/NAME of a data set on the hub"
    raise InputError(f"unknown set {name!r}{suggest(name, names)}", where="--data.set", allowed=allowed)


def load_digit_images(size: int | None = None) -> ImageSet:
    """scikit-learn's 1,797 handwritten digits, white on black: by default at the 8 x 8 pixels they were measured at.

    Larger ones are enlarged by a whole factor with a black margin; bits per dimension are then of other images.
    Raises InputError under 8 pixels. Source: Alpaydin & Kaynak 1998, UCI repository.
    """
    from sklearn.datasets import load_digits

    size = size or DIGIT_SIDE
    if size < DIGIT_SIDE:
        raise InputError("the digits have 8 x 8 pixels", where=f"--data.size {size}", allowed="8 and more")
    loaded: Any = load_digits()
    values = np.rint(np.asarray(loaded.images) * (255.0 / DIGIT_MAX)).astype(np.uint8)
    factor = size // DIGIT_SIDE
    side, margin = DIGIT_SIDE * factor, size - DIGIT_SIDE * factor
    digits = [Image.fromarray(value).resize((side, side), Image.Resampling.BICUBIC) for value in values]
    pixels = functional.pad(from_images(digits), (margin // 2, margin - margin // 2) * 2)
    labels = torch.from_numpy(np.asarray(loaded.target)).long()
    notes = (f"8 x 8 pixels enlarged {factor} times (bicubic)",) if factor > 1 else ()
    return ImageSet("digits", pixels, labels, tuple("0123456789"), notes=notes)


def load_image_folder(
    folder: Path, size: int, mode: Literal["L", "RGB"] | None, *, name: str | None = None
) -> ImageSet:
    """Every readable image, resized and center-cropped to a square, RGB by default; classes from `type` or sub-folders.

    Unreadable ones are left out and named in `notes`. Raises InputError if nothing is left.
    """
    scan = scan_folder(folder)
    rows, _ = match_rows(read_table(scan), scan)
    notes = [f"{problem.where}: {problem.what}" for problem in scan.problems if problem.refused]
    kept: dict[str, Image.Image] = {}
    for file in ProgressBar(sorted(scan.images), "reading images", unit="image", delay=2.0):
        try:
            image = images.open_image(scan.images[file])
            kept[file] = images.resize_and_crop(image, size, size).convert(mode or "RGB")
        except InputError as error:
            notes.append(str(error))
    if not kept:
        what = f"none of its {len(notes)} images can be used; the first: {notes[0]}" if notes else ""
        raise InputError(what, where=folder) if notes else no_images_error(folder)
    types = [rows[file].annotation.type if file in rows else None for file in kept]
    names = [kind or PurePosixPath(file).parent.name or None for kind, file in zip(types, kept, strict=True)]
    labels, classes = make_labels(names)
    paths = [scan.images[file] for file in kept]
    groups = tuple(duplicate_groups(paths)) if len(paths) <= MAX_COMPARED else None
    pixels = from_images(list(kept.values()))
    return ImageSet(name or str(folder), pixels, labels, classes, groups=groups, notes=tuple(notes))


# ---- Hugging Face data sets


def is_saved_dataset(folder: Path) -> bool:
    """Whether Dataset.save_to_disk wrote the folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def load_hub_dataset(options: ImageSetOptions, *, seed: int) -> ImageSet:
    """The images of a split, resized and center-cropped to a square.

    Raises InputError for an unknown set, split, column or class, and for a column without images.
    """
    rows = open_split(options)
    column, label = find_columns(rows, options)
    rows = rows.select_columns([column, *([label] if label else [])])
    classes = (getattr(rows.features[label], "names", None) if label else None) or ()  # else the values are names
    names = [value if value is None or not classes else classes[value] for value in rows[label]] if label else []
    places = list(range(len(rows)))
    if options.only:
        if label is None:
            fix = "Give --data.label-column."
            raise InputError(f"{options.set} has no column of classes", where="--data.only", fix=fix)
        known = classes or sorted(map(str, set(names)))
        wanted = {check_choice(name, known, what="class", where="--data.only") for name in options.only}
        places = [place for place in places if str(names[place]) in wanted]
    if options.most is not None and options.most < len(places):
        places = [places[i] for i in sorted(rng.permutation(len(places), seed, "most")[: options.most])]
    size, mode = options.size or DEFAULT_SIZE, options.mode or "RGB"
    kept = [
        images.resize_and_crop(to_rgb_image(row[column], options), size, size).convert(mode)
        for row in ProgressBar(rows.select(places), f"reading {options.set}", unit="image", delay=2.0)
    ]
    if not kept:
        raise InputError(f"split {options.split!r} of {options.set} is empty", where="--data.split")
    labels, classes = make_labels([names[place] for place in places] if label else [], classes)
    return ImageSet(options.set, from_images(kept), labels, classes)


def open_split(options: ImageSetOptions) -> Any:
    """The split, from disk or from the hub."""
    import datasets

    folder = Path(options.set).expanduser()
    try:
        saved = is_saved_dataset(folder)
        found = datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(options.set, options.subset)
    except (OSError, ValueError, RuntimeError) as error:  # no such set, no network, a script, a damaged file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what, where = f"the data set cannot be opened ({reason})", f"--data.set {options.set}"
        fix = f"With a network: python -c \"import datasets; datasets.load_dataset('{options.set}')\" downloads it."
        raise InputError(what, where=where, fix=fix) from None
    if isinstance(found, datasets.DatasetDict):
        found = found[check_choice(options.split, map(str, found), what="split", where="--data.split")]
    return found


def find_columns(rows: Any, options: ImageSetOptions) -> tuple[str, str | None]:
    """The given columns of images and of classes, or the first of each type; None if there are no classes."""
    import datasets

    with_images, with_classes = (
        [name for name, feature in rows.features.items() if isinstance(feature, kind)]
        for kind in (datasets.Image, datasets.ClassLabel)
    )
    column, label = options.column, options.label_column
    if column is not None:
        check_choice(column, rows.features, what="column", where="--data.column")
        if column not in with_images:
            what = f"column {column!r} of {options.set} has no images"
            raise InputError(what, where="--data.column", allowed=", ".join(with_images) or "none here")
    elif not with_images:
        what = f"{options.set} has no column of images, only {', '.join(rows.features)}"
        raise InputError(what, where="--data.set")
    if label is not None:
        check_choice(label, rows.features, what="column", where="--data.label-column")
    return column or with_images[0], label or (with_classes[0] if with_classes else None)


def to_rgb_image(image: Any, options: ImageSetOptions) -> Image.Image:
    """An upright 8-bit RGB image. Raises InputError for anything else."""
    if not isinstance(image, Image.Image):
        raise InputError(f"a row of {options.set} has no image", where="--data.column")
    return images.upright(images.to_rgb(image, Path(options.set), []), image, [])

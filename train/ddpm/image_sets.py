"""Pictures as one uint8 tensor, with their classes if they have any."""

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

from data import captioned_folder, duplicates, images, rng
from data.errors import InputError, check_choice, suggest
from data.progress import ProgressBar
from data.scan import missing_folder_error, scan_folder
from data.shapes import Images
from train.ddpm.image_set_options import HUB_PRESETS, ImageSetOptions

UNKNOWN_LABEL = -1  # label of a picture without a class, where others have one


@dataclass(frozen=True, eq=False)
class ImageSet:
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

    def taken(self, positions: Sequence[int]) -> ImageSet:
        """The pictures at these positions."""
        rows = torch.tensor(list(positions), dtype=torch.int64)
        labels = None if self.labels is None else self.labels[rows]
        groups = None if self.groups is None else tuple(self.groups[row] for row in positions)
        return replace(self, pixels=self.pixels[rows], labels=labels, groups=groups)

    def only(self, names: Sequence[str]) -> ImageSet:
        """The pictures of some classes, which are numbered anew. Raises InputError for a class that is not there."""
        if not names:
            return self
        if self.labels is None:
            raise InputError(f"the pictures of {self.name} have no classes", where="--data.only", fix="Leave it out.")
        kept = [check_choice(name, self.classes, what="class", where="--data.only") for name in dict.fromkeys(names)]
        numbers = {self.classes.index(name): new for new, name in enumerate(kept)}
        positions = [place for place, label in enumerate(self.labels.tolist()) if label in numbers]
        if not positions:
            raise InputError(f"no picture of {', '.join(kept)} in {self.name}", where="--data.only")
        some = self.taken(positions)
        assert some.labels is not None
        labels = torch.tensor([numbers[label] for label in some.labels.tolist()])
        return replace(some, labels=labels, classes=tuple(kept))

    def split(self, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
        """Those to train on and about `share` held out, near-duplicates on one side.

        A group's side depends on the seed and its smallest hash alone, as data/duplicates.py has it for samples.
        """
        first = {key: place for place, key in reversed(list(enumerate(self.hashes)))}
        groups = self.groups or tuple(first[key] for key in self.hashes)
        smallest: dict[int, str] = {}
        for key, group in zip(self.hashes, groups, strict=True):
            smallest[group] = min(key, smallest.get(group, key))
        draw = {group: rng.uniform(seed, "held-out", key) for group, key in smallest.items()}
        held = {group for group, number in draw.items() if number < share}
        if share and not held and len(draw) > 1:
            held = {min(draw, key=draw.__getitem__)}
        if held and len(held) == len(draw):
            held -= {max(draw, key=draw.__getitem__)}
        sides = [group in held for group in groups]
        chosen = ([i for i, out in enumerate(sides) if out is side] for side in (False, True))
        train, held_out = (self.taken(rows) for rows in chosen)
        return train, held_out

    def at_most(self, count: int | None, seed: int) -> ImageSet:
        """All, or `count` of them, drawn by the seed and in their old order."""
        if count is None or count >= len(self):
            return self
        return self.taken(sorted(rng.permutation(len(self), seed, "most")[:count]))

    def to(self, device: torch.device | str) -> ImageSet:
        """The same pictures and classes resident on a device, where batches are then made."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, pixels=self.pixels.to(device), labels=labels)

    def images(self) -> list[Image.Image]:
        """Pillow pictures, L or RGB."""
        return [to_image(picture) for picture in self.pixels.cpu()]


def to_float(pixels: Tensor) -> Images:
    """uint8 (B, C, S, S) -> float32 in [-1, 1]: value / 127.5 - 1. Source: arXiv 2006.11239, section 3.3."""
    return pixels.float() / 127.5 - 1.0


def to_uint8(images: Images) -> Tensor:
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


def make_labels(names: Sequence[Any]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Names or None for each picture -> labels and the classes in order; None if nobody has a name."""
    classes = tuple(sorted({str(name) for name in names if name is not None}))
    if not classes:
        return None, ()
    numbers = {name: number for number, name in enumerate(classes)}
    return torch.tensor([UNKNOWN_LABEL if name is None else numbers[str(name)] for name in names]), classes


SIDE, INK = 8, 16  # pixels, and the value of the darkest
ENLARGED = "8 x 8 pixels enlarged {factor} times (bicubic): nothing between them was ever seen by a camera"


def load_digit_images(size: int | None = None) -> ImageSet:
    """White digits on black at size x size pixels, 8 if nothing is asked for: enlarged by a whole factor, with an even
    black margin.

    At 8 they are what was measured; every larger picture is interpolated, so bits per dimension at another size are of
    other pictures. Raises InputError under 8 pixels.
    """
    from sklearn.datasets import load_digits

    size = size or SIDE
    if size < SIDE:
        raise InputError(f"the digits have {SIDE} x {SIDE} pixels", where=f"--data.size {size}", allowed="8 and more")
    found: Any = load_digits()
    values = np.rint(np.asarray(found.images) * (255.0 / INK)).astype(np.uint8)
    factor = size // SIDE
    pixels = from_images([enlarge_digit(Image.fromarray(value), factor, size) for value in values])
    labels = torch.from_numpy(np.asarray(found.target)).long()
    notes = (ENLARGED.format(factor=factor),) if factor > 1 else ()
    return ImageSet("digits", pixels, labels, tuple(map(str, range(10))), notes=notes)


def enlarge_digit(digit: Image.Image, factor: int, size: int) -> Image.Image:
    """A digit enlarged by a whole factor in the middle of a black square."""
    side = SIDE * factor
    larger = digit.resize((side, side), Image.Resampling.BICUBIC) if factor > 1 else digit
    paper = Image.new("L", (size, size))
    paper.paste(larger, ((size - side) // 2, (size - side) // 2))
    return paper


DEFAULT_SIZE = 32  # pixels, unless something else is asked for
MAX_COMPARED = 20_000  # pictures; beyond, near-duplicates are not looked for, only equal ones


def load_image_folder(
    folder: Path, size: int | None, mode: Literal["L", "RGB"] | None, *, name: str | None = None
) -> ImageSet:
    """Every picture that can be read, scaled to cover size x size pixels and cut at the centre; mode RGB by default.

    What cannot be read is left out and named in `notes`. Raises InputError if nothing is left.
    """
    found = scan_folder(folder)
    rows, _ = captioned_folder.match_rows(captioned_folder.read_table(found), found)
    size, mode = size or DEFAULT_SIZE, mode or "RGB"
    kept: list[Image.Image] = []
    paths: list[Path] = []
    names: list[str | None] = []
    notes = [f"{problem.where}: {problem.what}" for problem in found.problems if problem.refused]
    for file in ProgressBar(sorted(found.images), "reading pictures", unit="picture", delay=2.0):
        try:
            picture = images.open_image(found.images[file])
        except InputError as error:
            notes.append(str(error))
            continue
        kept.append(images.resize_and_crop(picture, size, size).convert(mode))
        paths.append(found.images[file])
        row = rows.get(file)
        names.append((row.annotation.type if row else None) or sub_folder(file))
    if not kept:
        raise no_usable_image_error(folder, notes) if notes else captioned_folder.no_images_error(folder)
    labels, classes = make_labels(names)
    groups = tuple(duplicates.duplicate_groups(paths)) if len(paths) <= MAX_COMPARED else None
    return ImageSet(name or str(folder), from_images(kept), labels, classes, groups=groups, notes=tuple(notes))


def sub_folder(file: str) -> str | None:
    """The folder that a picture lies in, if it is not the top one."""
    parent = PurePosixPath(file).parent.name
    return parent or None


def no_usable_image_error(folder: Path, notes: list[str]) -> InputError:
    return InputError(f"none of its {len(notes)} pictures can be used; the first: {notes[0]}", where=folder)


SAVED_FILES = ("dataset_dict.json", "state.json")  # what Dataset.save_to_disk leaves


def is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in SAVED_FILES)


def load_hub_dataset(options: ImageSetOptions, *, seed: int) -> ImageSet:
    """The pictures of a split, scaled to cover a square and cut at the centre.

    Raises InputError for a set, split, column or class that is not there, and for a column that holds no pictures.
    """
    rows = open_split(options)
    column = image_column(rows, options)
    label = label_column(rows, options)
    rows = rows.select_columns([column, *([label] if label else [])])
    names = class_names(rows, label)
    rows, names = select_classes(rows, label, names, options)
    if options.most is not None and options.most < len(rows):
        rows = rows.select(sorted(rng.permutation(len(rows), seed, "most")[: options.most]))
    size, mode = options.size or DEFAULT_SIZE, options.mode or "RGB"
    kept = [
        images.resize_and_crop(to_rgb_image(row[column], options), size, size).convert(mode)
        for row in ProgressBar(rows, f"reading {options.set}", unit="picture", delay=2.0)
    ]
    if not kept:
        raise InputError(f"split {options.split!r} of {options.set} is empty", where="--data.split")
    labels, classes = labels_of_rows(rows, label, names)
    return ImageSet(options.set, from_images(kept), labels, classes)


def open_split(options: ImageSetOptions) -> Any:
    """The split, from this disk or from the hub."""
    import datasets

    where = f"--data.set {options.set}"
    folder = Path(options.set).expanduser()
    try:
        if is_saved(folder):
            found = datasets.load_from_disk(str(folder))
        else:
            found = datasets.load_dataset(options.set, options.subset)
    except (OSError, ValueError, RuntimeError) as error:  # no such set, no network, a script, a damaged file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        fix = f"With a network: python -c \"import datasets; datasets.load_dataset('{options.set}')\" fetches it once."
        raise InputError(f"the data set cannot be opened here ({reason})", where=where, fix=fix) from None
    if isinstance(found, datasets.DatasetDict):
        found = found[check_choice(options.split, map(str, found), what="split", where="--data.split")]
    return found


def image_column(rows: Any, options: ImageSetOptions) -> str:
    """The column asked for, or the first that holds pictures."""
    import datasets

    pictures = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    if options.column is not None:
        check_choice(options.column, rows.features, what="column", where="--data.column")
        if options.column not in pictures:
            what = f"column {options.column!r} of {options.set} holds no pictures"
            raise InputError(what, where="--data.column", allowed=", ".join(pictures) or "none here")
        return options.column
    if not pictures:
        what = f"{options.set} has no column of pictures, only {', '.join(rows.features)}"
        raise InputError(what, where="--data.set")
    return pictures[0]


def label_column(rows: Any, options: ImageSetOptions) -> str | None:
    """The column asked for, or the first of classes; None if there is none."""
    import datasets

    if options.label_column is not None:
        return check_choice(options.label_column, rows.features, what="column", where="--data.label-column")
    found = [name for name, feature in rows.features.items() if isinstance(feature, datasets.ClassLabel)]
    return found[0] if found else None


def class_names(rows: Any, label: str | None) -> list[str] | None:
    """Names of the numbers in a column of classes; None for a column of words or numbers, which name themselves."""
    return getattr(rows.features[label], "names", None) if label else None


def select_classes(rows: Any, label: str | None, names: list[str] | None, options: ImageSetOptions) -> tuple[Any, Any]:
    """The rows of the classes asked for; only the column of classes is read to find them."""
    if not options.only:
        return rows, names
    if label is None:
        raise InputError(
            f"{options.set} has no column of classes", where="--data.only", fix="Give --data.label-column."
        )
    values = [names[value] if names else str(value) for value in rows[label]]
    known = names or sorted(set(values))
    wanted = {check_choice(name, known, what="class", where="--data.only") for name in options.only}
    return rows.select([place for place, value in enumerate(values) if value in wanted]), names


def labels_of_rows(
    rows: Any, label: str | None, names: list[str] | None
) -> tuple[torch.Tensor | None, tuple[str, ...]]:
    """Labels into the classes that occur, in the data set's own order of them."""
    if label is None:
        return None, ()
    values = list(rows[label])
    if names is None:
        return make_labels(values)
    there = sorted(set(values))
    numbers = {value: number for number, value in enumerate(there)}
    return torch.tensor([numbers[value] for value in values]), tuple(names[value] for value in there)


def to_rgb_image(picture: Any, options: ImageSetOptions) -> Image.Image:
    """An upright 8-bit RGB picture. Raises InputError for what is none."""
    if not isinstance(picture, Image.Image):
        raise InputError(f"a row of {options.set} holds no picture", where="--data.column")
    rgb, _ = images.to_rgb(picture, Path(options.set))
    return images.upright(rgb, picture)[0]


OWN = ("digits", "creatures")
FEWEST = 2  # pictures: one to train on, one to hold out


def load_image_set(options: ImageSetOptions, *, seed: int) -> ImageSet:
    """The pictures that the options ask for, not yet split. Raises InputError, naming the flag, for what cannot be."""
    # a set of the hub is already filtered and cut to --data.most, before its pictures were decoded
    found = choose_image_set(options, seed).only(options.only).at_most(options.most, seed)
    if len(found) < FEWEST:
        raise InputError(f"{len(found)} picture in {options.set}", where="--data.set", allowed=f"{FEWEST} or more")
    flip = found.flip if options.flip is None else options.flip
    return replace(found, flip=flip)


def choose_image_set(options: ImageSetOptions, seed: int) -> ImageSet:
    """The whole set, by the word for it."""
    word, path = options.set, Path(options.set).expanduser()
    if word == "digits":
        return match_mode(load_digit_images(options.size), options)
    if word == "creatures":
        return load_sample_images(options)
    if word in HUB_PRESETS:
        return load_preset(options, seed)
    if path.is_dir():
        return (
            load_hub_dataset(options, seed=seed)
            if is_saved(path)
            else load_image_folder(path, options.size, options.mode)
        )
    if word.startswith((".", "/", "~")) or word.count("/") > 1 or path.exists():
        raise missing_folder_error(path)
    if "/" in word:
        return load_hub_dataset(options, seed=seed)
    words = [*OWN, *HUB_PRESETS]
    allowed = f"{', '.join(words)}, a folder, or OWNER/NAME of a data set on the hub"
    raise InputError(f"unknown set {word!r}{suggest(word, words)}", where="--data.set", allowed=allowed)


def match_mode(found: ImageSet, options: ImageSetOptions) -> ImageSet:
    """Grey pictures in three equal channels, if colour was asked for."""
    return replace(found, pixels=found.pixels.repeat(1, 3, 1, 1)) if options.mode == "RGB" else found


def load_sample_images(options: ImageSetOptions) -> ImageSet:
    """The sample set, drawn at the size that is trained on."""
    from data.sample_set import sample_folder

    size = options.size or DEFAULT_SIZE
    found = load_image_folder(sample_folder(size=size), size, options.mode, name="creatures")
    return replace(found, flip=True)


def load_preset(options: ImageSetOptions, seed: int) -> ImageSet:
    """A data set of the hub as its preset has it, but for what was asked for."""
    known = HUB_PRESETS[options.set]
    asked = options.model_copy(
        update={
            "set": known.hub,
            "size": options.size or known.size,
            "mode": options.mode or known.mode,
            "subset": options.subset or known.subset,
            "only": options.only or list(known.only),
        }
    )
    return replace(load_hub_dataset(asked, seed=seed), name=options.set, flip=known.flip)

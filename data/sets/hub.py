"""A data set of the Hugging Face hub by its name, or a folder that the library saved: pictures and classes by type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from data import images, seeds
from data.errors import InputError, choose
from data.progress import ProgressBar
from data.sets.folder import SIZE
from data.sets.options import SetOptions
from data.sets.pictures import Pictures, from_images, labels_of

SAVED = ("dataset_dict.json", "state.json")  # what Dataset.save_to_disk leaves


def is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in SAVED)


def load(options: SetOptions, *, seed: int) -> Pictures:
    """The pictures of a split, scaled to cover a square and cut at the centre.

    Raises InputError for a set, split, column or class that is not there, and for a column that holds no pictures.
    """
    rows = opened(options)
    column = picture_column(rows, options)
    label = label_column(rows, options)
    rows = rows.select_columns([column, *([label] if label else [])])
    names = class_names(rows, label)
    rows, names = of_classes(rows, label, names, options)
    if options.most is not None and options.most < len(rows):
        rows = rows.select(sorted(seeds.permutation(len(rows), seed, "most")[: options.most]))
    size, mode = options.size or SIZE, options.mode or "RGB"
    kept = [
        images.fit(plain(row[column], options), size, size).convert(mode)
        for row in ProgressBar(rows, f"reading {options.set}", unit="picture", delay=2.0)
    ]
    if not kept:
        raise InputError(f"split {options.split!r} of {options.set} is empty", where="--data.split")
    labels, classes = labelled(rows, label, names)
    return Pictures(options.set, from_images(kept), labels, classes)


def opened(options: SetOptions) -> Any:
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
        found = found[choose(options.split, map(str, found), what="split", where="--data.split")]
    return found


def picture_column(rows: Any, options: SetOptions) -> str:
    """The column asked for, or the first that holds pictures."""
    import datasets

    pictures = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    if options.column is not None:
        choose(options.column, rows.features, what="column", where="--data.column")
        if options.column not in pictures:
            what = f"column {options.column!r} of {options.set} holds no pictures"
            raise InputError(what, where="--data.column", allowed=", ".join(pictures) or "none here")
        return options.column
    if not pictures:
        what = f"{options.set} has no column of pictures, only {', '.join(rows.features)}"
        raise InputError(what, where="--data.set")
    return pictures[0]


def label_column(rows: Any, options: SetOptions) -> str | None:
    """The column asked for, or the first of classes; None if there is none."""
    import datasets

    if options.label_column is not None:
        return choose(options.label_column, rows.features, what="column", where="--data.label-column")
    found = [name for name, feature in rows.features.items() if isinstance(feature, datasets.ClassLabel)]
    return found[0] if found else None


def class_names(rows: Any, label: str | None) -> list[str] | None:
    """Names of the numbers in a column of classes; None for a column of words or numbers, which name themselves."""
    return getattr(rows.features[label], "names", None) if label else None


def of_classes(rows: Any, label: str | None, names: list[str] | None, options: SetOptions) -> tuple[Any, Any]:
    """The rows of the classes asked for; only the column of classes is read to find them."""
    if not options.only:
        return rows, names
    if label is None:
        raise InputError(
            f"{options.set} has no column of classes", where="--data.only", fix="Give --data.label-column."
        )
    values = [names[value] if names else str(value) for value in rows[label]]
    known = names or sorted(set(values))
    wanted = {choose(name, known, what="class", where="--data.only") for name in options.only}
    return rows.select([place for place, value in enumerate(values) if value in wanted]), names


def labelled(rows: Any, label: str | None, names: list[str] | None) -> tuple[torch.Tensor | None, tuple[str, ...]]:
    """Labels into the classes that occur, in the data set's own order of them."""
    if label is None:
        return None, ()
    values = list(rows[label])
    if names is None:
        return labels_of(values)
    there = sorted(set(values))
    numbers = {value: number for number, value in enumerate(there)}
    return torch.tensor([numbers[value] for value in values]), tuple(names[value] for value in there)


def plain(picture: Any, options: SetOptions) -> Image.Image:
    """An upright 8-bit RGB picture. Raises InputError for what is none."""
    if not isinstance(picture, Image.Image):
        raise InputError(f"a row of {options.set} holds no picture", where="--data.column")
    rgb, _ = images.to_rgb(picture, Path(options.set))
    return images.upright(rgb, picture)[0]

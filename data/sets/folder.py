"""A folder of pictures as a set: classes from metadata.jsonl's `type`, else from the sub-folders they lie in."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Literal

from PIL import Image

from data import duplicates, images, store
from data.errors import InputError
from data.progress import ProgressBar
from data.sets.pictures import Pictures, from_images, labels_of
from data.walk import walk

SIZE = 32  # pixels, unless something else is asked for
MOST_COMPARED = 20_000  # pictures; beyond, near-duplicates are not looked for, only equal ones


def load(folder: Path, size: int | None, mode: Literal["L", "RGB"] | None, *, name: str | None = None) -> Pictures:
    """Every picture that can be read, scaled to cover size x size pixels and cut at the centre; mode RGB by default.

    What cannot be read is left out and named in `notes`. Raises InputError if nothing is left.
    """
    found = walk(folder)
    rows, _ = store.match(store.read_table(found), found)
    size, mode = size or SIZE, mode or "RGB"
    kept: list[Image.Image] = []
    paths: list[Path] = []
    names: list[str | None] = []
    notes = [f"{problem.where}: {problem.what}" for problem in found.problems if problem.refused]
    for file in ProgressBar(sorted(found.pictures), "reading pictures", unit="picture", delay=2.0):
        try:
            picture = images.open_picture(found.pictures[file])
        except InputError as error:
            notes.append(str(error))
            continue
        kept.append(images.fit(picture, size, size).convert(mode))
        paths.append(found.pictures[file])
        row = rows.get(file)
        names.append((row.annotation.type if row else None) or sub_folder(file))
    if not kept:
        raise notes_as_error(folder, notes) if notes else store.no_picture(folder)
    labels, classes = labels_of(names)
    groups = tuple(duplicates.groups(paths)) if len(paths) <= MOST_COMPARED else None
    return Pictures(name or str(folder), from_images(kept), labels, classes, groups=groups, notes=tuple(notes))


def sub_folder(file: str) -> str | None:
    """The folder that a picture lies in, if it is not the top one."""
    parent = PurePosixPath(file).parent.name
    return parent or None


def notes_as_error(folder: Path, notes: list[str]) -> InputError:
    return InputError(f"none of its {len(notes)} pictures can be used; the first: {notes[0]}", where=folder)

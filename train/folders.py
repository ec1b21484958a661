"""The folders of a run as they are typed: `--data FOLDER`, `--data FOLDER=2`, or `{path: FOLDER, weight: 2}`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from data.errors import suggest
from data.files import cache_root

POCKET = "pocket"  # stands for the sample creatures
KEYS = ("path", "weight")


@dataclass(frozen=True, repr=False)
class Folder:
    """A captioned folder, and how often each of its pictures comes relative to those of weight 1."""

    path: str
    weight: float = 1.0

    @property
    def place(self) -> Path:
        """Where it is; the sample set's stands for a folder that depends on the picture size."""
        return cache_root() / POCKET if self.path == POCKET else Path(self.path).expanduser().resolve()

    def __str__(self) -> str:
        return self.path if self.weight == 1 else f"{self.path}={self.weight:g}"

    __repr__ = __str__  # what --help shows as the default


def as_folders(given: Any) -> list[Folder]:
    """One folder or a list, each a word or a mapping. Raises ValueError, in a sentence, for what makes no sense."""
    items = given if isinstance(given, list | tuple) else [given]
    if not items:
        raise ValueError("no folder is given")
    folders = [as_folder(item) for item in items]
    seen: dict[Path, Folder] = {}
    for folder in folders:
        if (first := seen.setdefault(folder.place, folder)) is not folder:
            raise ValueError(f"{folder} is the same folder as {first}; name it once, with a weight: {folder.path}=2")
    return folders


def as_folder(item: Any) -> Folder:
    """A folder as it is typed, or as YAML has it."""
    if isinstance(item, Folder):
        return Folder(item.path, weight_of(item.weight, item.path))
    if isinstance(item, str):
        return Folder(*split_weight(item))
    if not isinstance(item, Mapping):
        raise ValueError(f"{item!r} is no folder: write a path, or path: and weight:")
    for key in item:
        if key not in KEYS:
            raise ValueError(f"unknown key {key!r}{suggest(str(key), KEYS)}; allowed: {', '.join(KEYS)}")
    if not isinstance(item.get("path"), str) or not item["path"]:
        raise ValueError(f"{dict(item)!r} names no folder: it needs path:")
    return Folder(item["path"], weight_of(item.get("weight", 1), item["path"]))


def split_weight(text: str) -> tuple[str, float]:
    """`FOLDER=2` -> FOLDER, 2. A folder that is really called `lr=2` is taken as it is."""
    path, equals, number = text.rpartition("=")
    if not equals or Path(text).expanduser().is_dir() or not is_number(number):
        path, number = text, "1"
    if not path:
        raise ValueError(f"{text!r} names no folder")
    return path, weight_of(number, path)


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def weight_of(given: Any, path: str) -> float:
    """A weight: above zero and finite. Raises ValueError naming the folder."""
    weight = float(given) if isinstance(given, str | int | float) and is_number(str(given)) else math.nan
    if not (0 < weight < math.inf):
        raise ValueError(f"{path} has weight {given}; allowed: a number above 0 (leave the folder out instead of 0)")
    return weight


def labels(folders: list[Folder]) -> list[str]:
    """A short name for each, all different: as many parts from the end of the path as it takes. [""] for one alone."""
    if len(folders) == 1:
        return [""]
    parts = [folder.place.parts for folder in folders]
    length = next(n for n in range(1, max(map(len, parts)) + 1) if len({part[-n:] for part in parts}) == len(parts))
    return ["/".join(part[-length:]) for part in parts]


Folders = Annotated[list[Folder], BeforeValidator(as_folders)]

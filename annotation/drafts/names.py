"""Drafts from file names, cleaned of counters, dates and what cameras and programs put into them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from annotation.drafts.source import Draft, Picture, label

NOISE = {
    "img", "image", "dsc", "dscn", "dscf", "pxl", "mvimg", "photo", "pic", "picture", "scan", "screenshot", "untitled",
    "copy", "kopie", "final", "edit", "edited", "new", "export", "render", "output", "download", "thumb", "thumbnail",
    "resized", "cropped", "compressed", "wa", "whats", "app", "file", "frame", "jpg", "jpeg", "png", "webp", "x", "px",
}  # fmt: skip
HEX = re.compile(r"^(?=.*\d)[0-9a-f]{6,}$")
SCORE = 0.3  # a name is rarely a caption


@dataclass(frozen=True)
class FileNames:
    """`IMG_2041-redFox_in snow (2).JPG` -> `red fox in snow`; a name without a word gives no draft."""

    @property
    def name(self) -> str:
        return "names"

    @property
    def at_a_time(self) -> int:
        return 0

    @property
    def version(self) -> str:
        return "1"

    def draft(self, pictures: Sequence[Picture]) -> list[Draft | None]:
        texts = [cleaned(picture.file_name) for picture in pictures]
        return [Draft(text, label(self), SCORE) if text else None for text in texts]


def cleaned(file_name: str) -> str:
    """The words of a file name in small letters: no noise, number, size, date or hash, and no counter at a word."""
    stem = PurePosixPath(file_name).stem
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem)
    letters = [word.strip("0123456789") for word in re.split(r"[\W_]+", parted.lower()) if not HEX.match(word)]
    return " ".join(word for word in letters if word in ("a", "i") or (len(word) > 1 and word not in NOISE))

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
    "resized", "cropped", "compressed", "wa", "whatsapp", "file", "frame", "jpg", "jpeg", "png", "webp", "x", "px",
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
    def version(self) -> str:
        return "1"

    def draft(self, pictures: Sequence[Picture]) -> list[Draft | None]:
        texts = [cleaned(picture.file_name) for picture in pictures]
        return [Draft(text, label(self), SCORE) if text else None for text in texts]


def cleaned(file_name: str) -> str:
    """The words of a file name, in small letters."""
    stem = PurePosixPath(file_name).stem
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem)
    kept = [word for word in re.split(r"[\W_]+", parted.lower()) if is_word(word)]
    return " ".join(kept)


def is_word(word: str) -> bool:
    """Neither noise nor a number, a size, a date or a hash; digits around letters are counters."""
    letters = word.strip("0123456789")
    return len(letters) > 1 and letters not in NOISE and not HEX.match(word) or word in ("a", "i")

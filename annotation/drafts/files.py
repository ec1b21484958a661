"""Drafts from captions that exist already: by the picture's content where it is known, else by its file name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from annotation.drafts.source import Draft, Picture, label


@dataclass(frozen=True)
class FromFiles:
    """captions: SHA-256, file name, with or without folder and suffix -> caption. origin: what was read."""

    captions: Mapping[str, str]
    origin: str  # a word for the form, e.g. "sidecars"
    fingerprint: str  # of the captions

    @property
    def name(self) -> str:
        return self.origin

    @property
    def at_a_time(self) -> int:
        return 0

    @property
    def version(self) -> str:
        return self.fingerprint

    def draft(self, pictures: Sequence[Picture]) -> list[Draft | None]:
        return [self.of(picture) for picture in pictures]

    def of(self, picture: Picture) -> Draft | None:
        path = PurePosixPath(picture.file_name)
        for key in (picture.sha256, picture.file_name, str(path.with_suffix("")), path.name, path.stem):
            if text := self.captions.get(key, ""):
                return Draft(text, label(self), 1.0)
        return None

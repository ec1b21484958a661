"""What a source of drafts is, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Picture:
    """A picture of the project: its key, its name below the picture folder, and where it lies."""

    sha256: str
    file_name: str
    path: Path


@dataclass(frozen=True)
class Draft:
    """A caption that is offered to the annotator. score: how far the source trusts it, in [0, 1]."""

    text: str
    source: str  # name and version, e.g. "neighbours-1": kept with the answer that is made from it
    score: float


class Source(Protocol):
    """Where drafts come from. To add one: a class with these four, and its word in commands/draft.py."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...  # of the code, with a hash of the weights or of the file it reads

    @property
    def at_a_time(self) -> int: ...  # pictures it is asked about at a time; 0: all, as it looks at the set as a whole

    def draft(self, pictures: Sequence[Picture]) -> Sequence[Draft | None]: ...  # one each, in order; None: no idea


def label(source: Source) -> str:
    """How a source is named in a draft."""
    return f"{source.name}-{source.version}"

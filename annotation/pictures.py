"""The pictures of a project, by content."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from annotation.drafts.source import Picture
from data.errors import InputError
from data.files import sha256
from data.problems import Problem
from data.store import examine_all
from data.walk import walk


def pictures_in(folder: Path) -> dict[str, Picture]:
    """SHA-256 -> picture, in the order of names; of equal files the first. Raises InputError for a missing folder."""
    found: Mapping[str, Path] = walk(folder).pictures
    with ThreadPoolExecutor(4) as threads:
        hashes = threads.map(sha256, (found[name] for name in sorted(found)))
        pictures: dict[str, Picture] = {}
        for name, digest in zip(sorted(found), hashes, strict=True):
            pictures.setdefault(digest, Picture(digest, name, found[name]))
    return pictures


def sound(pictures: Iterable[Picture], problems: list[Problem]) -> list[Picture]:
    """Those that can be opened; what is wrong with the others is added to `problems`."""
    asked = list(pictures)
    verdicts = list(examine_all([picture.path for picture in asked]))
    problems += [Problem.of(verdict) for verdict in verdicts if isinstance(verdict, InputError)]
    return [picture for picture, verdict in zip(asked, verdicts, strict=True) if not isinstance(verdict, InputError)]

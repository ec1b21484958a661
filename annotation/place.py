"""Where a captioning project lies on this machine: captions/NAME, its picture folder and its types."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from annotation.corrections import Answers, answers, read_corrections
from annotation.records import Record, read_history
from annotation.review.agreement import by_picture
from data.errors import InputError, choose

ROOT = Path("captions")
PROJECT = "project.json"


@dataclass(frozen=True)
class Place:
    """A work folder. pictures: the folder with the project's pictures; None if it is not known yet."""

    folder: Path
    pictures: Path | None
    types: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.folder.name

    def history(self) -> list[Record]:
        return read_history(self.folder)

    def answers(self) -> Answers:
        """What people wrote, with the corrections that hold."""
        return answers(self.history(), read_corrections(self.folder))

    def picture_folder(self) -> Path:
        """Raises InputError if it is not known."""
        if self.pictures is None:
            raise InputError("the picture folder is not known yet", where=self.folder, fix="Say --images FOLDER.")
        return self.pictures


def place(name: str | None, images: Path | None = None, *, new: bool = False) -> Place:
    """The work folder of that name, or the only one there is.

    new: with `images` it need not be there yet, and is called after the picture folder unless there is a name.
    Raises InputError if there is none, or if several could be meant.
    """
    folder = ROOT / checked(name) if name else only_one(images if new else None)
    if not (new and images) and not folder.is_dir():
        choose(folder.name, there(), what="project", where="--name")
    values = read_project(folder / PROJECT)
    told = images or values.get("pictures")
    types = values.get("types", [])
    return Place(folder, Path(told).expanduser() if told else None, tuple(map(str, types)))


def checked(name: str) -> str:
    """A project's name is one folder's name."""
    if name in (".", "..") or "/" in name or "\\" in name or not name.isprintable() or name.startswith("."):
        raise InputError(f"{name!r} is no project name", where="--name", allowed="the name of a folder in captions/")
    return name


def only_one(images: Path | None) -> Path:
    """The one project in captions/, or the one that --images would make."""
    if images is not None:
        return ROOT / checked(images.expanduser().resolve().name)
    if len(there()) == 1:
        return ROOT / there()[0]
    if not there():
        fix = "Make one: annotate.py push --images FOLDER"
        raise InputError("there is no project here", where=ROOT.resolve(), fix=fix)
    raise InputError("several projects could be meant", where="--name", allowed=", ".join(there()))


def there() -> list[str]:
    """The projects in captions/; what begins with a dot is the server's."""
    return sorted(path.name for path in ROOT.glob("[!.]*") if path.is_dir())


def read_project(path: Path) -> dict[str, Any]:
    """project.json, or nothing if it was not made yet."""
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"is not JSON ({error})", where=path, fix="Restore it, or push again.") from error
    if not isinstance(values, dict):
        raise InputError("is not a project", where=path, fix="Restore it, or push again.")
    return values


def triage_types(answers: Answers) -> dict[str, str]:
    """SHA-256 -> the type that the newest triage gives a picture."""
    triaged = (answer for answer in answers.all if answer.record.screen == "triage" and answer.values.get("type"))
    groups = by_picture(triaged)
    return {
        sha256: max(group, key=lambda answer: answer.record.updated).values["type"][0]
        for sha256, group in groups.items()
    }

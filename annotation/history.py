"""Answers as pull keeps them, and the bulk corrections that are laid over them.

captions/NAME/             the work folder, created by `annotate.py push` in the current folder
    project.json             server, project ids, image folder, types
    history.jsonl            every version of every answer ever pulled, oldest first; nothing is removed
    corrections.jsonl        bulk corrections, oldest first; undoing one adds another

A correction records the text it was made for. It applies as long as that is still the answer's text, and until a
version with its new text was pulled.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from data.atomic_io import write_atomic
from data.errors import InputError

HISTORY = "history.jsonl"
CORRECTIONS = "corrections.jsonl"
Status = Literal["written", "blank", "skipped", "deleted"]
Key = tuple[str, int]  # screen and annotation id: one person's answer about one image
T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """One version of one person's answer about one image, on one screen."""

    sha256: str  # of the image file: the key that joins screens, servers and releases
    file_name: str  # below the image folder
    screen: str  # a key of labeling_configs(): "text", "name" or "triage"
    annotation: int  # the server's id; the same id again is a later version of the same answer
    annotator: str  # e-mail address
    status: Status
    values: dict[str, list[str]]  # field of data/schema.py -> what was written or chosen, in order
    seconds: float  # of active work, measured by the page
    created: str  # ISO 8601, UTC
    updated: str
    draft: str | None = None  # the text that was offered
    draft_by: str | None = None  # the source of the draft, e.g. "neighbours-1"
    origin: str | None = None  # "prediction": unchanged, "prediction-changed": edited; None: not known

    @property
    def key(self) -> Key:
        return self.screen, self.annotation


@dataclass(frozen=True)
class Correction:
    """One field of one answer, from `old` to `new`."""

    batch: int  # corrections made together share a number and are undone together
    sha256: str
    file_name: str
    screen: str
    annotation: int
    field: str
    version: str  # `updated` of the record it was made for
    old: list[str]
    new: list[str]
    why: str  # the edit that made it
    made: str  # ISO 8601, UTC
    undoes: int | None = None  # the batch that it undoes

    @property
    def key(self) -> Key:
        return self.screen, self.annotation


@dataclass(frozen=True)
class Answer:
    """One person's current answer about one image."""

    record: Record  # as pulled last
    values: dict[str, list[str]]  # with the corrections that apply
    corrected: bool  # its last change was a correction, whether the server has it or not

    @property
    def pending(self) -> bool:
        """Whether a correction is still to be written to the server."""
        return self.values != self.record.values

    @property
    def text(self) -> str:
        """The caption; the first if there are several."""
        return next(iter(self.values.get("text", [])), "")


@dataclass(frozen=True)
class Answers:
    """All current answers, the corrections that came too late, and e-mail address -> "annotator 1", for publication."""

    all: list[Answer]
    late: list[Correction]
    pseudonyms: dict[str, str] = field(default_factory=dict)

    def captions(self) -> list[Answer]:
        return [answer for answer in self.all if answer.record.screen == "text" and answer.record.status == "written"]


# ---- files


def read_history(folder: Path) -> list[Record]:
    """All records of a work folder, oldest first; empty if nothing was pulled yet. Raises InputError."""
    return read_lines(folder / HISTORY, Record, "an answer", "Restore the file, or pull again.")


def write_history(folder: Path, records: Iterable[Record]) -> None:
    write_lines(folder / HISTORY, records)


def read_corrections(folder: Path) -> list[Correction]:
    """All corrections of a work folder, oldest first; empty if none was made. Raises InputError."""
    return read_lines(folder / CORRECTIONS, Correction, "a correction", "Restore the file, or remove the line.")


def add_corrections(folder: Path, new: Sequence[Correction]) -> None:
    write_lines(folder / CORRECTIONS, (*read_corrections(folder), *new))


def read_lines(path: Path, kind: Callable[..., T], what: str, fix: str) -> list[T]:
    if not path.exists():
        return []
    found: list[T] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):  # captions may contain U+2028
        try:
            found += [kind(**json.loads(line))] if line else []
        except (ValueError, TypeError) as error:
            raise InputError(f"is not {what}", where=f"{path}:{number}", fix=fix) from error
    return found


def write_lines(path: Path, values: Iterable[Any]) -> None:
    lines = (json.dumps(asdict(value), ensure_ascii=False, sort_keys=True) for value in values)
    write_atomic(path, "".join(f"{line}\n" for line in lines))


# ---- current answers


def latest(records: Iterable[Record]) -> list[Record]:
    """The last version of each answer, in the order of first appearance, without deleted ones."""
    last = {record.key: record for record in records}
    return [record for record in last.values() if record.status != "deleted"]


def lay_over(history: Sequence[Record], corrections: Iterable[Correction]) -> Answers:
    """The last version of each answer, with the corrections that apply."""
    versions: dict[Key, list[Record]] = defaultdict(list)
    for record in history:
        versions[record.key].append(record)
    corrections_of: dict[Key, list[Correction]] = defaultdict(list)
    for correction in corrections:
        corrections_of[correction.key].append(correction)
    late: list[Correction] = []
    answers = [apply(versions[record.key], corrections_of[record.key], late) for record in latest(history)]
    return Answers(answers, late, pseudonyms(history))


def pseudonyms(history: Iterable[Record]) -> dict[str, str]:
    """Address -> number, in the order of people's first answers, also deleted ones: a newcomer changes no number."""
    first: dict[str, tuple[str, int]] = {}
    for record in history:
        moment = record.created, record.annotation
        first[record.annotator] = min(moment, first.get(record.annotator, moment))
    return {person: f"annotator {number}" for number, person in enumerate(sorted(first, key=first.__getitem__), 1)}


def apply(versions: Sequence[Record], corrections: Sequence[Correction], late: list[Correction]) -> Answer:
    """One answer with its corrections; those whose text somebody has changed since are added to `late`."""
    values = dict(versions[-1].values)
    # A correction that came back from the server is done with, and so is everything before it: people come last.
    done = max((index for index, each in enumerate(corrections) if came_back(each, versions)), default=-1)
    for correction in corrections[done + 1 :]:
        current = values.get(correction.field, [])
        if current == correction.old:
            values[correction.field] = correction.new
        elif current != correction.new:
            late.append(correction)
    corrected = any(each.undoes is None and values.get(each.field) == each.new for each in corrections)
    return Answer(versions[-1], values, corrected)


def came_back(correction: Correction, versions: Sequence[Record]) -> bool:
    """Whether a version later than the one it was made for has its text."""
    seen = [index for index, record in enumerate(versions) if record.updated == correction.version]
    later = versions[seen[-1] + 1 :] if seen else versions
    return any(record.values.get(correction.field) == correction.new for record in later)

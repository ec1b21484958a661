"""Bulk corrections of captions: records of their own, laid over the history, each told from newer work of people.

captions/NAME/corrections.jsonl is only ever added to; taking a correction back is another one. A correction keeps the
text it saw. It holds as long as that is still the answer's text, and until a version with its new text was pulled.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from annotation.records import Record, standing
from data.errors import InputError
from data.files import write_atomic

CORRECTIONS = "corrections.jsonl"
Key = tuple[str, int]  # screen and the server's id: one person's answer about one picture


@dataclass(frozen=True)
class Correction:
    """One field of one answer, from `old` to `new`."""

    batch: int  # corrections made together have one number, and are taken back together
    sha256: str
    file_name: str
    screen: str
    annotation: int
    field: str
    version: str  # `updated` of the record it was made on
    old: list[str]
    new: list[str]
    why: str  # the command that made it
    made: str  # ISO 8601, UTC
    undoes: int | None = None  # the batch that it takes back


@dataclass(frozen=True)
class Answer:
    """What counts as one person's answer about one picture now."""

    record: Record  # as it was pulled last
    values: dict[str, list[str]]  # with the corrections that hold
    corrected: bool  # a correction has the last word about it, whether the server knows of it or not

    @property
    def pending(self) -> bool:
        """Whether a correction waits to be put on the server."""
        return self.values != self.record.values

    @property
    def text(self) -> str:
        """The caption; the first if there are several."""
        return next(iter(self.values.get("text", [])), "")


@dataclass(frozen=True)
class Answers:
    """All answers that stand, in the order of first appearance, and corrections that came too late.

    pseudonyms: e-mail address -> "annotator 1", for what leaves this house.
    """

    all: list[Answer]
    late: list[Correction]
    pseudonyms: dict[str, str] = field(default_factory=dict)

    def captions(self) -> list[Answer]:
        """The written captions."""
        return [answer for answer in self.all if answer.record.screen == "text" and answer.record.status == "written"]


def read_corrections(folder: Path) -> list[Correction]:
    """All corrections of a work folder, the oldest first; empty if none was made. Raises InputError."""
    path = folder / CORRECTIONS
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [read_line(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line]


def read_line(line: str, where: str) -> Correction:
    try:
        return Correction(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise InputError("is not a correction", where=where, fix="Restore the file, or take the line out.") from error


def add_corrections(folder: Path, new: Sequence[Correction]) -> None:
    """Add to the file, which appears whole."""
    every = (*read_corrections(folder), *new)
    lines = (json.dumps(asdict(correction), ensure_ascii=False, sort_keys=True) for correction in every)
    write_atomic(folder / CORRECTIONS, "".join(f"{line}\n" for line in lines))


def answers(history: Iterable[Record], corrections: Iterable[Correction]) -> Answers:
    """Lay the corrections over the last version of each answer."""
    versions: dict[Key, list[Record]] = defaultdict(list)
    for record in (records := list(history)):
        versions[record.screen, record.annotation].append(record)
    made: dict[Key, list[Correction]] = defaultdict(list)
    for correction in corrections:
        made[correction.screen, correction.annotation].append(correction)
    late: list[Correction] = []
    found: list[Answer] = []
    for record in standing(records):
        key = record.screen, record.annotation
        found.append(replay(versions[key], made[key], late))
    return Answers(found, late, pseudonyms(records))


def pseudonyms(history: Iterable[Record]) -> dict[str, str]:
    """Address -> number, in the order in which people gave their first answers: who comes later changes no number.

    Answers that were deleted count, so a number stays with its person for as long as the history does.
    """
    first: dict[str, tuple[str, int]] = {}
    for record in history:
        moment = record.created, record.annotation
        first[record.annotator] = min(moment, first.get(record.annotator, moment))
    return {person: f"annotator {number}" for number, person in enumerate(sorted(first, key=first.__getitem__), 1)}


def replay(versions: Sequence[Record], corrections: Sequence[Correction], late: list[Correction]) -> Answer:
    """One answer with its corrections; those whose text somebody has changed since are added to `late`."""
    last = versions[-1]
    values = dict(last.values)
    # What came back from the server is spent, and with it all that was made before: the person has the last word.
    spent = max((place for place, made in enumerate(corrections) if came_back(made, versions)), default=-1)
    for correction in corrections[spent + 1 :]:
        now = values.get(correction.field, [])
        if now == correction.old:
            values[correction.field] = correction.new
        elif now != correction.new:
            late.append(correction)
    corrected = any(made.undoes is None and values.get(made.field) == made.new for made in corrections)
    return Answer(last, values, corrected)


def came_back(correction: Correction, versions: Sequence[Record]) -> bool:
    """Whether a version later than the one it was made on has its text."""
    seen = [place for place, record in enumerate(versions) if record.updated == correction.version]
    later = versions[seen[-1] + 1 :] if seen else versions
    return any(record.values.get(correction.field) == correction.new for record in later)

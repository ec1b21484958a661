"""What people wrote, as pull keeps it: the history of a project, one line of JSON a version of an answer.

captions/NAME/             the work folder, made by `annotate.py push` in the current folder
    project.json             server, project ids, picture folder, types
    history.jsonl            every version of every answer ever pulled, the oldest first; nothing is taken out
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from data.errors import InputError
from data.files import write_atomic

HISTORY = "history.jsonl"
Status = Literal["written", "blank", "skipped", "deleted"]


@dataclass(frozen=True)
class Record:
    """One version of one person's answer about one picture, on one screen."""

    sha256: str  # of the picture's bytes: the key that joins screens, servers and releases
    file_name: str  # below the picture folder
    screen: str  # a key of interface.screens(): "text", "name" or "triage"
    annotation: int  # the server's id; the same id again is a later version of the same answer
    annotator: str  # e-mail address
    status: Status
    values: dict[str, list[str]]  # field of data/schema.py -> what was written or chosen, in order
    seconds: float  # of active work, as the page measured it
    created: str  # ISO 8601, UTC
    updated: str
    draft: str | None = None  # the text that was offered
    draft_by: str | None = None  # the source that made the draft, e.g. "neighbours-v1"
    origin: str | None = None  # "prediction": taken as it was, "prediction-changed": edited; None: not known


def read_history(folder: Path) -> list[Record]:
    """All records of a work folder, the oldest first; empty if nothing was pulled yet. Raises InputError."""
    path = folder / HISTORY
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: a caption may hold U+2028 or U+0085
    return [read_line(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line]


def read_line(line: str, where: str) -> Record:
    """One line of history.jsonl."""
    try:
        return Record(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise InputError("is not a record of an answer", where=where, fix="Restore the file, or pull again.") from error


def write_history(folder: Path, records: Iterable[Record]) -> None:
    """Replace the history as a whole."""
    lines = (json.dumps(asdict(record), ensure_ascii=False, sort_keys=True) for record in records)
    write_atomic(folder / HISTORY, "".join(f"{line}\n" for line in lines))


def standing(records: Iterable[Record]) -> list[Record]:
    """The last version of each answer, in the order of first appearance; deleted ones are left out."""
    last = {(record.screen, record.annotation): record for record in records}
    return [record for record in last.values() if record.status != "deleted"]

"""captions/NAME/drafts.jsonl: the draft of each picture, one line of JSON a picture, in the order of file names.

This file is what `draft` makes and `push` reads; keys: sha256, file_name, text, source, score.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from annotation.drafts.source import Draft, Picture
from data.errors import InputError
from data.files import write_atomic

DRAFTS = "drafts.jsonl"


def read_drafts(folder: Path) -> dict[str, Draft]:
    """sha256 -> draft; empty if none were made. Raises InputError."""
    return {sha256: draft for sha256, (_, draft) in read_lines(folder).items()}


def read_lines(folder: Path) -> dict[str, tuple[str, Draft]]:
    """sha256 -> file name and draft."""
    path = folder / DRAFTS
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")
    return dict(read_line(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line)


def read_line(line: str, where: str) -> tuple[str, tuple[str, Draft]]:
    try:
        values = json.loads(line)
        draft = Draft(str(values["text"]), str(values["source"]), float(values["score"]))
        return str(values["sha256"]), (str(values["file_name"]), draft)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError("is not a draft", where=where, fix="Take the line out, or draft again.") from error


def add_drafts(folder: Path, pictures: Mapping[str, Picture], drafts: Mapping[str, Draft]) -> None:
    """Put `drafts` (sha256 -> draft) into the file, over older ones of the same pictures; the file appears whole."""
    known = read_lines(folder) | {sha256: (pictures[sha256].file_name, draft) for sha256, draft in drafts.items()}
    lines = []
    for sha256, (file_name, draft) in sorted(known.items(), key=lambda item: (item[1][0], item[0])):
        values = {"sha256": sha256, "file_name": file_name, "text": draft.text, "source": draft.source}
        lines.append(json.dumps(values | {"score": round(draft.score, 4)}, ensure_ascii=False) + "\n")
    write_atomic(folder / DRAFTS, "".join(lines))

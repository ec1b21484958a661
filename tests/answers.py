"""Invented answers, and a project on disk that has them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from PIL import Image

from annotation.history import Record, write_history
from annotation.project import LOCAL, Project
from data.atomic_io import file_sha256

STAMP = "2026-11-01T08:00:{:02d}.000000Z"


def record(number: int, text: str = "", **changes: object) -> Record:
    """One person's answer about image `number`; a caption unless `screen` and `values` say otherwise."""
    values = {"text": [text]} if text else {}
    made = Record(
        sha256=f"{number:064x}",
        file_name=f"{number:03d}.png",
        screen="text",
        annotation=number,
        annotator="ana@lab",
        status="written" if text or changes.get("values") else "blank",
        values=values,
        seconds=30.0,
        created=STAMP.format(number % 60),
        updated=STAMP.format(number % 60),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def project(root: Path, history: Sequence[Record] = (), *, count: int = 12, types: Sequence[str] = ()) -> Path:
    """captions/set below `root` with `count` images of one colour each; returns the work folder."""
    images = root / "pictures"
    images.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (16, 16), (number * 19 % 256, 255 - number * 7, number)).save(images / f"{number:03d}.png")
    folder = root / "captions" / "set"
    folder.mkdir(parents=True)
    made = Project("set", "0123456789abcdef", LOCAL, str(images), tuple(types), {}, {"text": "abc"})
    (folder / "project.json").write_text(json.dumps(asdict(made)))
    write_history(folder, history)
    return folder


def shown(root: Path, records: Sequence[Record]) -> list[Record]:
    """The records with the true SHA-256 of project()'s images."""
    return [replace(each, sha256=file_sha256(root / "pictures" / each.file_name)) for each in records]

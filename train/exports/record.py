"""export.json beside the exported files: which step's weights they are, in which precision, and their names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from data.files import write_atomic
from train.exports.options import Export

NAME = "export.json"


def write(folder: Path, step: int, options: Export, files: Sequence[Path]) -> None:
    facts = {"step": step, "precision": options.precision, "files": [file.name for file in files]}
    write_atomic(folder / NAME, json.dumps(facts, indent=2) + "\n")


def read(folder: Path) -> dict:
    """The record, or nothing if there is none or it cannot be read."""
    try:
        return json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def step(folder: Path) -> int | None:
    """The optimiser step whose weights lie in a folder."""
    return read(folder).get("step")

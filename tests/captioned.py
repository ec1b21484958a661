"""Captioned folders for tests: written in a line, and read with the promises that hold for every folder."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from PIL import Image

from data import captioned_folder
from data.captioned_folder import CaptionedFolder
from data.config import FolderOptions
from data.errors import Problem

COMPOSED, APART = "caf\u00e9", "cafe\u0301"  # NFC and NFD of the same word


def draw(folder: Path, *names: str, size: tuple[int, int] = (32, 24)) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "teal").save(folder / name, "PNG")


def caption(folder: Path, **texts: str) -> None:
    """Write caption files: caption(folder, a="a cat") writes a.txt."""
    for stem, text in texts.items():
        (folder / f"{stem}.txt").write_text(text)


def table(folder: Path, *rows: object) -> None:
    """Write metadata.jsonl: bytes and text unchanged, anything else as JSON."""
    texts = [row if isinstance(row, bytes | str) else json.dumps(row) for row in rows]
    lines = [text if isinstance(text, bytes) else text.encode() for text in texts]
    (folder / "metadata.jsonl").write_bytes(b"\n".join(lines) + b"\n")


def snapshot(folder: Path) -> dict[str, tuple[bytes | str, int]]:
    """Every entry below a folder with its content and time of change."""
    found: dict[str, tuple[bytes | str, int]] = {}
    for path in sorted(folder.rglob("*")):
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        found[str(path)] = (content, path.lstat().st_mtime_ns)
    return found


def read(folder: Path, **options: Any) -> CaptionedFolder:
    """read_folder, with the promises that hold for every folder."""
    before = snapshot(folder)
    captioned = captioned_folder.read_folder(folder, FolderOptions(**options))
    assert snapshot(folder) == before
    assert "".join(map(str, captioned.problems)).isprintable()
    for sample in captioned.samples:
        assert sample.sha256 == hashlib.sha256(sample.path.read_bytes()).hexdigest() and sample.captions
    return captioned


def reported(captioned: CaptionedFolder) -> list[tuple[str, bool]]:
    """(where, below the folder; whether it is an error) of each problem."""
    folder = str(captioned.folder)
    return [(p.where.replace(f"{folder}/", "").replace(folder, "."), p.refused) for p in captioned.problems]


def only(captioned: CaptionedFolder) -> Problem:
    (problem,) = captioned.problems
    return problem


def names(captioned: CaptionedFolder) -> list[str]:
    return [sample.annotation.file_name for sample in captioned.samples]

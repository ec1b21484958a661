"""Answers that take long to work out, kept on disk and keyed by everything that they follow from.

A key is the digest of the inputs' contents, the settings, the versions of what computes and, where rounding counts,
the kind of machine: something else is a miss, and nothing is ever stale. What is damaged is worked out again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.atomic_io import atomic_folder, cache_root, file_sha256, write_atomic

MANIFEST = "kept.json"


def cache_key(*parts: object) -> str:
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()


def cached_value(kind: str, key: str, work_out: Callable[[], Any]) -> Any:
    """A JSON value: as it was kept, else worked out and kept. Numbers come back bit for bit."""
    found = read_value(kind, key)
    if found is None:
        found = work_out()
        write_value(kind, key, found)
    return found


def value_path(kind: str, key: str) -> Path:
    return cache_root() / kind / key[:2] / f"{key}.json"


def read_value(kind: str, key: str) -> Any:
    """A kept JSON value, or None."""
    try:
        return json.loads(value_path(kind, key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_value(kind: str, key: str, value: Any) -> None:
    write_atomic(value_path(kind, key), json.dumps(value))


def cached_files(kind: str, key: str, folder: Path, make: Callable[[Path], Any]) -> Any:
    """Fill `folder` with the files that `make` writes into an empty one, and return the JSON value that it returns."""
    kept = cache_root() / kind / key[:2] / key
    manifest = read_manifest(kept)
    if manifest is None:
        with atomic_folder(kept) as beside:
            returned = make(beside)
            manifest = {"returned": returned, "files": {file.name: file_sha256(file) for file in beside.iterdir()}}
            (beside / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    for name in manifest["files"]:
        shutil.copyfile(kept / name, folder / name)
    return manifest["returned"]


def read_manifest(kept: Path) -> dict[str, Any] | None:
    """What is known of a kept folder; None if there is none, or one of its files is not as it was written."""
    try:
        manifest = json.loads((kept / MANIFEST).read_text(encoding="utf-8"))
        whole = all(file_sha256(kept / name) == digest for name, digest in manifest["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return manifest if whole else None

"""Expensive results on disk, keyed by everything they depend on.

A key is the digest of the inputs' contents, the settings, the versions of the code and, where rounding counts, the kind
of machine: any change is a miss, and nothing is ever stale. Damaged entries are computed again.
"""

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


def cached_value(kind: str, key: str, compute: Callable[[], Any]) -> Any:
    """A cached JSON value, computed if it is missing. Numbers come back bit for bit."""
    value = read_value(kind, key)
    if value is None:
        value = compute()
        write_value(kind, key, value)
    return value


def value_path(kind: str, key: str) -> Path:
    return cache_root() / kind / key[:2] / f"{key}.json"


def read_value(kind: str, key: str) -> Any:
    """A cached JSON value, or None."""
    try:
        return json.loads(value_path(kind, key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_value(kind: str, key: str, value: Any) -> None:
    write_atomic(value_path(kind, key), json.dumps(value))


def cached_files(kind: str, key: str, folder: Path, make: Callable[[Path], Any]) -> Any:
    """Copy into `folder` the cached files that `make` wrote into an empty one, and return its JSON value."""
    cached = cache_root() / kind / key[:2] / key
    manifest = read_manifest(cached)
    if manifest is None:
        with atomic_folder(cached) as partial:
            returned = make(partial)
            manifest = {"returned": returned, "files": {file.name: file_sha256(file) for file in partial.iterdir()}}
            (partial / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    for name in manifest["files"]:
        shutil.copyfile(cached / name, folder / name)
    return manifest["returned"]


def read_manifest(cached: Path) -> dict[str, Any] | None:
    """The manifest of a cached folder; None if there is none, or one of its files has changed."""
    try:
        manifest = json.loads((cached / MANIFEST).read_text(encoding="utf-8"))
        whole = all(file_sha256(cached / name) == digest for name, digest in manifest["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return manifest if whole else None

"""Hashes of a model's files, each worked out once."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path

from data.files import cache_root, sha256, write_atomic


def folder_hash(folder: Path) -> str:
    """A hash over the names and contents of a part's files."""
    files = sorted(file for file in folder.iterdir() if file.suffix in {".json", ".safetensors", ".txt"})
    return hashlib.sha256("".join(f"{file.name}:{file_hash(file)};" for file in files).encode()).hexdigest()


SETTLED = 2_000_000_000  # ns: a file written a moment ago may change again within one tick of its file system's clock


def file_hash(file: Path) -> str:
    """SHA-256 of a file, remembered by its path, size and times so that 3 GB are read once and not at every start."""
    found = file.resolve().stat()
    key = f"{file.resolve()}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}:{found.st_ino}"
    memo = cache_root() / "hashes.json"
    known = read_memo(memo)
    if key in known:
        return known[key]
    found_hash = sha256(file)
    if time.time_ns() - found.st_mtime_ns > SETTLED:
        write_atomic(memo, json.dumps({**read_memo(memo), key: found_hash}))
    return found_hash


def read_memo(memo: Path) -> Mapping[str, str]:
    """The remembered hashes; a damaged memo is only a slower start."""
    try:
        return json.loads(memo.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}

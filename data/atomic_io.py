"""Files and folders that appear whole or not at all: written under a temporary name, flushed, then renamed."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from data.errors import InputError

FSYNC_THREADS = 16  # files of a folder that are flushed to the disk at the same time


def cache_root() -> Path:
    """Where caches live: $ATELIER_CACHE, else ~/.cache/atelier."""
    return Path(os.environ.get("ATELIER_CACHE") or Path.home() / ".cache" / "atelier")


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content` in one step; a reader sees the old file or the new one, never a part of it."""
    with atomic_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary file in the same folder to write to; renamed to `path` when the block succeeds, else removed.

    durable: flush it to the disk first; faster without, for a cache whose reader notices a torn file.
    Raises InputError if the disk is full or `path` cannot be written.
    """
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".part", dir=path.parent)
        os.close(handle)
        partial = Path(name)
        yield partial
        if durable:
            fsync_path(partial)
        apply_umask(partial)
        os.replace(partial, path)
        if durable:
            fsync_path(path.parent)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; it replaces `path` when the block succeeds, else it is removed. Raises InputError."""
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}.", suffix=".part", dir=path.parent))
        yield partial
        with ThreadPoolExecutor(FSYNC_THREADS) as threads:  # many flushes at once are faster
            list(threads.map(fsync_path, partial.rglob("*")))
        fsync_path(partial)
        for file in partial.rglob("*.safetensors"):
            apply_umask(file)
        partial.chmod(0o777 & ~current_umask())
        swap_folder(partial, path)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def swap_folder(partial: Path, path: Path) -> None:
    """Rename `partial` to `path`, replacing an old folder; if that fails, the old one is restored."""
    if not path.exists():
        os.replace(partial, path)
        fsync_path(path.parent)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}.", suffix=".old", dir=path.parent))
    os.replace(path, aside / path.name)
    try:
        os.replace(partial, path)
    except OSError:
        os.replace(aside / path.name, path)
        raise
    fsync_path(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def fsync_path(path: Path) -> None:
    """Flush a file or a folder's entries to the disk, so that the following rename cannot overtake the content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_error(error: OSError, path: Path) -> InputError:
    """A full disk or a missing permission; `where` is the file that the system names, if that is another one."""
    culprit = Path(error.filename) if isinstance(error.filename, str) and error.filename else path
    elsewhere = culprit != path and path.parent not in culprit.parents
    what = f"{'cannot be used' if elsewhere else 'cannot be written'} ({error.strerror or error})"
    return InputError(what, where=culprit if elsewhere else path, fix="The previous state is unchanged.")


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def apply_umask(file: Path) -> None:
    """Give a file the permissions of any new file: mkstemp and safetensors make theirs private."""
    file.chmod(0o666 & ~current_umask())


def current_umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask

"""Files and folders that appear whole or not at all: written beside, flushed to the disk, then renamed."""

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
BLOCK = 1 << 20  # bytes read at a time while hashing


def cache_root() -> Path:
    """Where caches live: $ATELIER_CACHE, else ~/.cache/atelier."""
    return Path(os.environ.get("ATELIER_CACHE") or Path.home() / ".cache" / "atelier")


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content` in one step; a reader sees the old file or the new one, never a part of it."""
    with atomic_file(path) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed over `path` when the block ends well, else removed.

    durable: flush it to the disk first. A cache whose reader notices a torn file may go without, which is faster.
    Raises InputError if the disk is full or `path` cannot be written.
    """
    beside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".part", dir=path.parent)
        os.close(handle)
        beside = Path(name)
        yield beside
        if durable:
            fsync_path(beside)
        apply_umask(beside)
        os.replace(beside, path)
        if durable:
            fsync_path(path.parent)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` to fill; when the block ends well it takes the place of `path`, else it is removed.

    An old `path` is moved aside first, back if anything fails, and removed last.
    Raises InputError if the disk is full or `path` cannot be written.
    """
    beside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}.", suffix=".part", dir=path.parent))
        yield beside
        with ThreadPoolExecutor(FSYNC_THREADS) as threads:  # the disk takes many files' flushes in one go
            list(threads.map(fsync_path, beside.rglob("*")))
        fsync_path(beside)
        for file in beside.rglob("*.safetensors"):
            apply_umask(file)
        beside.chmod(0o777 & ~current_umask())
        swap_folder(beside, path)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)


def swap_folder(beside: Path, path: Path) -> None:
    """Rename folder `beside` to `path`, replacing what stands there; if that fails, what stood there is put back."""
    if not path.exists():
        os.replace(beside, path)
        fsync_path(path.parent)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}.", suffix=".old", dir=path.parent))
    os.replace(path, aside / path.name)
    try:
        os.replace(beside, path)
    except OSError:
        os.replace(aside / path.name, path)
        raise
    fsync_path(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def fsync_path(path: Path) -> None:
    """Push a file or a folder's entries to the disk, so that the rename after it cannot overtake the content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_error(error: OSError, path: Path) -> InputError:
    """A full disk or a missing right, said as one line; another file's trouble is blamed on that file."""
    culprit = Path(error.filename) if isinstance(error.filename, str) and error.filename else path
    elsewhere = culprit != path and path.parent not in culprit.parents
    what = "cannot be used" if elsewhere else "cannot be written"
    where = culprit if elsewhere else path
    return InputError(f"{what} ({error.strerror or error})", where=where, fix="The old state was left as it was.")


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def apply_umask(file: Path) -> None:
    """The rights that any new file has: mkstemp and the safetensors library make theirs their owner's alone."""
    file.chmod(0o666 & ~current_umask())


def current_umask() -> int:
    """The process' umask."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask

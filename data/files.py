"""Files and folders that appear whole or not at all: written beside, flushed to the disk, then renamed."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import InputError

BLOCK = 1 << 20  # bytes read at a time while hashing


def cache_root() -> Path:
    """Where caches live: $ATELIER_CACHE, else ~/.cache/atelier."""
    return Path(os.environ.get("ATELIER_CACHE") or Path.home() / ".cache" / "atelier")


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content` in one step; a reader sees the old file or the new one, never a part of it."""
    with replaced_file(path) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replaced_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed over `path` when the block ends well, else removed.

    durable: flush it to the disk first. A cache whose reader notices a torn file may go without, which is faster.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".part", dir=path.parent)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        if durable:
            flush(beside)
        beside.chmod(0o666 & ~current_umask())
        os.replace(beside, path)
        if durable:
            flush(path.parent)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` to fill; when the block ends well it takes the place of `path`, else it is removed.

    An old `path` is moved aside first and removed last, so a whole folder exists at any moment but one rename.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        yield beside
        for file in beside.rglob("*"):
            flush(file)
        flush(beside)
        beside.chmod(0o777 & ~current_umask())
        swap_in(beside, path)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def swap_in(beside: Path, path: Path) -> None:
    """Rename folder `beside` to `path`, replacing what stands there."""
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.exists():
        os.replace(path, old)
    os.replace(beside, path)
    flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def flush(path: Path) -> None:
    """Push a file or a folder's entries to the disk, so that the rename after it cannot overtake the content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_error(error: OSError, path: Path) -> InputError:
    """A full disk or a missing right, said as one line."""
    return InputError(
        f"cannot be written ({error.strerror or error})", where=path, fix="The old state was left as it was."
    )


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def current_umask() -> int:
    """The process' umask: mkstemp makes files 0600, and people expect their own default."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask

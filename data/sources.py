"""Read images as people have them: a captioned folder in place; a .zip or .tar (WebDataset too), a folder of tars, a
Hugging Face dataset (save_to_disk, or the Hub's parquet files) unpacked once into the cache under their content's hash.
"""

import gzip
import json
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from data import disk_cache
from data.atomic_io import atomic_folder, cache_root, file_sha256
from data.captioned_folder import DEFAULTS, CaptionedFolder, check_file_name, read_folder, write_folder
from data.config import FolderOptions
from data.errors import InputError, Problem, quoted
from data.folder_scan import CAPTION_SUFFIXES, REPEATS, TABLE_NAMES, scan_folder
from data.images import MAX_BYTES, SUFFIXES, SUFFIXES_NOT_READ
from data.importers import import_folder, is_hf_dataset, read_hf_dataset, read_parquet_files, require_rows
from data.metadata_table import CAPTION_KEYS
from data.progress import ProgressBar

VERSION = 1  # raise it when the same source would be unpacked as other files
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
WANTED = {*SUFFIXES, *SUFFIXES_NOT_READ, *CAPTION_SUFFIXES, ".json", ".jsonl", ".csv", ".parquet", ".arrow", ".tar"}
MAX_ENTRIES = 10_000_000
MAX_RATIO, FREE_BYTES = 200, 1 << 30  # an archive may unpack to so many times its size, or to so many bytes
PIECE = 1 << 20  # bytes copied at a time
DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, gzip.BadGzipFile),
    *(EOFError, ValueError, NotImplementedError, RuntimeError),
)
Entry = tuple[str, int, Callable[[], IO[bytes] | None]]  # name, size, open


def read_source(path: Path, options: FolderOptions = DEFAULTS) -> CaptionedFolder:
    """As read_folder, also of what is not a folder of images. Raises InputError."""
    folder, problems = path, list[Problem]()
    for _ in range(2):  # an archive may hold a dataset
        files = find_files(folder)
        if not files:
            break
        is_archive = files[0].name.lower().endswith(ARCHIVES)
        folder, more = (unpack if is_archive else import_rows)(folder, files, options)
        problems += more
        if not is_archive:
            options = options.model_copy(update={"caption_column": None})  # its captions are `text` now
            break
    if folder == path:
        return read_folder(path, options)
    listing = read_folder(folder, options)
    notes = listing.caption_notes + Counter({f"unpacked from {path.name} into {folder}": listing.found})
    return replace(listing, folder=path, problems=[*problems, *listing.problems], caption_notes=notes)


def import_source(source: Path, into: Path, *, pictures: Path | None, options: FolderOptions) -> list[Problem]:
    """As import_folder, also of archives and parquet files."""
    if is_hf_dataset(source) or not find_files(source):
        return import_folder(source, into, pictures=pictures, options=options)
    listing = read_source(source, options)
    problems = [problem for problem in listing.problems if problem.refused]
    pairs = ((sample.path, sample.annotation) for sample in listing.samples)
    write_folder(into, require_rows(pairs, source, problems))
    return problems


def find_files(path: Path) -> list[Path]:
    """The files to unpack; none if `path` is a plain folder, or nothing that can be unpacked."""
    if path.is_file():
        return [path] if path.name.lower().endswith((*ARCHIVES, ".parquet")) else []
    if not path.is_dir():
        return []
    if is_hf_dataset(path):
        return sorted(file for file in path.rglob("*") if file.is_file())
    scan = scan_folder(path)
    if scan.images or scan.refused:
        return []
    for suffix in (".tar", ".parquet"):
        files = sorted(file for file in path.rglob(f"*{suffix}") if is_visible(file.relative_to(path).parts))
        files = [file for file in files if file.name not in TABLE_NAMES]
        for file in files:
            scan.check_link(file)
        if files:
            return files
    return []


def is_visible(parts: tuple[str, ...]) -> bool:
    return not any(part.startswith((".", "__MACOSX")) for part in parts)


# ---- the cache


def unpack(source: Path, files: list[Path], options: FolderOptions) -> tuple[Path, list[Problem]]:
    """The folder that holds what is in archives, and what was left out."""
    return cached(source, files, [], lambda folder: unpack_archives(files, folder))


def import_rows(source: Path, files: list[Path], options: FolderOptions) -> tuple[Path, list[Problem]]:
    """The captioned folder of a Hugging Face dataset, and the rows that were left out."""

    def fill(folder: Path) -> list[Problem]:
        problems: list[Problem] = []
        if files[0].suffix == ".parquet":
            rows = read_parquet_files(source, files, options, problems)
        else:
            rows = read_hf_dataset(source, problems, options)
        write_folder(folder, require_rows(rows, source, problems))
        return problems

    return cached(source, files, [options.caption_column, options.prompt], fill)


def cached(
    source: Path, files: list[Path], facts: list[Any], fill: Callable[[Path], list[Problem]]
) -> tuple[Path, list[Problem]]:
    """The cached folder of some files, filled if there is none yet, and the problems of filling it."""
    bar = ProgressBar(files, f"reading {source.name}", unit="file", delay=2.0)
    key = disk_cache.cache_key("source", VERSION, facts, *((file.suffix, file_sha256(file)) for file in bar))
    folder = cache_root() / "sources" / key
    known = disk_cache.read_value("source-problems", key)
    if known is None or not folder.is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        known = [problem.fields() for problem in fill(folder)]
        disk_cache.write_value("source-problems", key, known)  # last: it tells that the folder is whole
    return folder, [Problem(**fields) for fields in known]


# ---- archives


def unpack_archives(archives: list[Path], folder: Path) -> list[Problem]:
    """Unpack images, captions and tables of archives; of several, each into a sub-folder. Raises InputError."""
    problems: list[Problem] = []
    with atomic_folder(folder) as unpacked:
        for number, archive in enumerate(archives):
            target = unpacked if len(archives) == 1 else unpacked / f"{number:05d}"
            count = unpack_archive(archive, target, problems)
            if not count:
                raise InputError("holds no image, caption or table", where=archive, allowed="images with captions")
        add_webdataset_rows(unpacked)
    return problems


def unpack_archive(archive: Path, target: Path, problems: list[Problem]) -> int:
    """Unpack what is wanted, below the one folder that holds all of it; returns the number of files."""
    target.mkdir(parents=True, exist_ok=True)
    count = 0
    try:
        top = common_top([name for name, _, _ in list_entries(archive)])
        for name, size, open_entry in ProgressBar(
            list_entries(archive), f"unpacking {archive.name}", unit="file", delay=2.0
        ):
            count += 1
            try:
                check_file_name(name)
            except InputError as error:
                problems.append(Problem.of(error, str(archive)))
                continue
            path = target / name.removeprefix(top)
            path.parent.mkdir(parents=True, exist_ok=True)
            content = open_entry()
            assert content is not None, "only files are listed"
            with content, path.open("wb") as file:
                copy_at_most(content, file, size, archive)
    except DAMAGED as error:
        what = "is encrypted" if "password" in str(error) else f"is damaged ({error})"
        raise InputError(what, where=archive, fix="Copy it again, or unpack it yourself.") from error
    return count


def copy_at_most(content: IO[bytes], file: IO[bytes], size: int, archive: Path) -> None:
    """Copy an entry; one that is longer than it declares is an error, before it fills the disk."""
    written = 0
    while piece := content.read(PIECE):
        written += len(piece)
        if written > size:
            raise InputError("holds an entry that is longer than it says", where=archive, fix="Pack it again.")
        file.write(piece)


def list_entries(archive: Path) -> Iterator[Entry]:
    """The files in an archive that may be of use; links, devices and hidden files are none.

    Raises InputError for an archive that unpacks to far more than its size, before it fills the disk.
    """
    limit, total = max(FREE_BYTES, MAX_RATIO * archive.stat().st_size), 0
    for count, (name, size, open_entry) in enumerate(all_entries(archive)):
        total += size
        if total > limit or count > MAX_ENTRIES:
            what = f"unpacks to too much ({total >> 20} MiB in {count + 1} files, up to {quoted(name)})"
            raise InputError(what, where=archive, allowed=f"{limit >> 20} MiB", fix="Unpack it yourself.")
        if is_wanted(name) and (size <= MAX_BYTES or not name.lower().endswith(tuple(SUFFIXES))):
            yield name, size, open_entry


def all_entries(archive: Path) -> Iterator[Entry]:
    """The regular files of a zip or tar, in order; each is to be opened before the next is asked for."""
    if archive.suffix.lower() != ".zip":
        with tarfile.open(archive, "r:*") as tar:
            for member in filter(tarfile.TarInfo.isfile, tar):
                yield member.name.removeprefix("./"), member.size, partial(tar.extractfile, member)
        return
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            if not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16):
                yield info.filename, info.file_size, partial(opened.open, info)


def is_wanted(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in WANTED and is_visible(tuple(part for part in path.parts if part != ".."))


def common_top(names: list[str]) -> str:
    """`set/` if all names are in that folder, whose name is not one of kohya's repeats; else nothing."""
    tops = {name.partition("/")[0] if "/" in name else "" for name in names}
    top = tops.pop() if len(tops) == 1 else ""
    return f"{top}/" if top and top != ".." and not REPEATS.match(top) else ""


def add_webdataset_rows(folder: Path) -> None:
    """Make metadata.jsonl of WebDataset's and img2dataset's samples: a .json with an image of its name beside it."""
    if any((folder / name).is_file() for name in TABLE_NAMES):
        return
    images = {path.with_suffix(""): path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES}
    lines: list[str] = []
    for path in sorted(folder.rglob("*.json")):
        image = images.get(path.with_suffix(""))
        if image is None:
            continue
        try:
            values = json.loads(path.read_bytes())
        except ValueError:
            continue
        path.unlink()
        if isinstance(values, dict):
            values = {key: value for key, value in values.items() if value is not None}
            beside = path.with_suffix(".txt")
            if not any(values.get(key) for key in ("text", *CAPTION_KEYS)) and beside.is_file():
                values["text"] = beside.read_bytes().decode(errors="replace").strip()
            values["file_name"] = image.relative_to(folder).as_posix()
            lines.append(json.dumps(values) + "\n")
    if lines:
        (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")

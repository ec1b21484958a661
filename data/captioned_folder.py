"""Read and write a captioned folder: images with metadata.jsonl, metadata.csv, or caption files.

Reading never writes into the folder, never stops at the first mistake and never drops anything silently.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path, PurePosixPath

from PIL import Image

from data.atomic_io import atomic_folder
from data.errors import InputError, Problem, quoted
from data.images import ImageInfo, decode, read_bytes
from data.metadata_table import Row, Table, broken_table, read_caption_file, read_csv, read_jsonl
from data.progress import ProgressBar
from data.scan import NOT_CAPTIONS, TABLE_NAMES, FolderScan, caption_stem, nfc, scan_folder
from data.schema import Annotation, Sample

MAX_THREADS = 8  # each may hold an image of MAX_PIXELS
PROGRESS_DELAY = 2.0  # seconds of work before a progress bar appears
ImageContent = Path | Image.Image | bytes


@dataclass(frozen=True)
class CaptionedFolder:
    """What can be used of a captioned folder, in the order of names, and everything that is wrong with it.

    found: image files, usable or not. notes: what opening an image did ("transparency is shown on white") -> how many
    images. formats: "PNG" -> how many of the usable ones. skipped: `skip_reason` -> the names of these images, which
    are not samples.
    """

    folder: Path
    samples: list[Sample]
    problems: list[Problem]
    found: int
    notes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, list[str]] = field(default_factory=dict)


def read_folder(folder: Path) -> CaptionedFolder:
    """Read a captioned folder. Every image is hashed and decoded once.

    Raises InputError only if the folder itself is unusable: missing, not a folder, or without a single image.
    """
    scan = scan_folder(folder)
    table = read_table(scan)
    rows, problems = match_rows(table, scan)
    found = len(scan.images) + len(scan.refused)
    if not found:
        raise no_images_error(folder)
    problems += scan.problems
    problems += add_caption_files(rows, scan, table)
    captioned = CaptionedFolder(folder, [], problems, found)
    names = sorted(scan.images)
    for name, result in zip(names, decode_all([scan.images[name] for name in names]), strict=True):
        add_sample(captioned, scan.images[name], rows.get(name), result)
    problems.extend(skipped_warning(captioned))
    return captioned


def skipped_warning(captioned: CaptionedFolder) -> Iterator[Problem]:
    """One warning for all images with a skip_reason."""
    names = [name for skipped in captioned.skipped.values() for name in skipped]
    if names:
        reasons = ", ".join(f"{len(skipped)} {reason}" for reason, skipped in sorted(captioned.skipped.items()))
        count = "1 image is" if len(names) == 1 else f"{len(names)} images are"
        what = f"{count} skipped because of a 'skip_reason' ({reasons}; first {quoted(min(names))})"
        yield Problem(str(captioned.folder), what, refused=False)


def decode_all(paths: list[Path]) -> Iterator[tuple[str, ImageInfo] | InputError]:
    """SHA-256 and properties of each image, or why it cannot be used, in order. Decodes in several threads."""
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
        results = threads.map(decode_file, paths)
        yield from ProgressBar(results, "reading images", len(paths), unit="image", delay=PROGRESS_DELAY)


def decode_file(path: Path) -> tuple[str, ImageInfo] | InputError:
    try:
        content = read_bytes(path)
        return sha256(content).hexdigest(), decode(content, path)[1]
    except InputError as error:
        return error


# ---- rows


def read_table(scan: FolderScan) -> Table:
    """The rows of metadata.jsonl, else of metadata.csv, else none."""
    paths = [scan.folder / name for name in TABLE_NAMES if os.path.lexists(scan.folder / name)]
    if not paths:
        return Table()
    path, *others = paths
    try:
        scan.check_link(path)
        table = read_jsonl(path) if path.suffix == ".jsonl" else read_csv(path)
    except InputError as error:
        table = broken_table(error)
    table.problems += [ignored_file(other, path) for other in others]
    return table


def ignored_file(path: Path, instead: Path) -> Problem:
    return Problem(str(path), f"is ignored: {instead.name} is used", "Remove one of the two.", refused=False)


def match_rows(table: Table, scan: FolderScan) -> tuple[dict[str, Row], list[Problem]]:
    """Find the image of each row: name of the image -> its row, and a problem for each row that has none."""
    rows: dict[str, Row] = {}
    problems = list(table.problems)
    for row in table.rows:
        try:
            name = find_image(row.annotation.file_name, scan)
        except InputError as error:
            problems.append(Problem.of(error, row.where))
            continue
        if name in rows:
            fix = "Keep one; further captions of an image go into 'texts'."
            problems.append(Problem(row.where, f"{quoted(name)} already has a row ({rows[name].where})", fix))
        elif name is not None:
            rows[name] = row
    return rows, sorted(problems, key=line_of)


def line_of(problem: Problem) -> int:
    """The line of the table that a problem is on; 0 for the table as a whole."""
    number = problem.where.rpartition(":")[2]
    return int(number) if number.isdecimal() else 0


def find_image(file_name: str, scan: FolderScan) -> str | None:
    """The image of a row; None if that image is refused already. Raises InputError if there is none."""
    check_file_name(file_name)
    name = PurePosixPath(file_name).as_posix()
    if (known := scan.find(name)) is not None:
        return known
    if nfc(name) in scan.refused:
        return None
    path = scan.folder / name
    if os.path.isdir(path):
        raise InputError(f"{quoted(file_name)} is a folder, not an image", fix="Name the image in it.")
    if not os.path.exists(path):
        near = scan.similar(name)
        fix = f"Did you mean {quoted(near)}?" if near else "Correct the name, or remove the row."
        raise InputError(f"there is no image {quoted(file_name)}", fix=fix)
    if not scan.is_inside(path):
        what = f"{quoted(file_name)} is a link that points outside the folder"
        raise InputError(what, fix="Replace the link by the file itself.")
    scan.images[name] = path  # an image with an unusual suffix, or a hidden one: named, hence meant
    return name


def check_file_name(file_name: str) -> None:
    """A file name must stay in the folder on every system: relative, forward slashes, no way up, no NUL."""
    name = quoted(file_name)
    if not file_name.strip() or "\0" in file_name:
        raise InputError(f"{name} is not a file name", fix="Write the image's name in 'file_name'.")
    if file_name.startswith(("/", "~/")) or (file_name[1:2] == ":" and file_name[2:3] in {"\\", "/"}):
        raise InputError(f"{name} is an absolute path", fix="Write it relative to the folder.")
    if ".." in file_name.split("/") or ".." in file_name.split("\\"):
        raise InputError(f"{name} leads out of the folder", fix="Name an image inside the folder.")


# ---- caption files


def add_caption_files(rows: dict[str, Row], scan: FolderScan, table: Table) -> list[Problem]:
    """Give each image without a row the captions of its caption file; a row of the table takes precedence."""
    problems: list[Problem] = []
    overruled: list[Path] = []
    bare: list[str] = []
    for name in sorted(scan.images):
        files = scan.captions_of(name)
        problems += [ignored_file(extra, files[0]) for extra in files[1:]]
        if nfc(name) in table.spoiled and name not in rows:
            continue
        if not files:
            bare += [] if name in rows else [name]
        elif name in rows:
            overruled += [files[0]] if has_other_caption(files[0], rows[name]) else []
        else:
            problems += add_caption_file(rows, name, files[0], scan)
    return [*problems, *missing_captions(bare, scan.folder, table), *overruled_files(overruled), *orphan_captions(scan)]


def add_caption_file(rows: dict[str, Row], name: str, file: Path, scan: FolderScan) -> list[Problem]:
    """Read a caption file: add its row if it is valid, and return its problems."""
    try:
        scan.check_link(file)
    except InputError as error:
        return [Problem.of(error)]
    table = read_caption_file(file, name)
    if table.rows:
        rows[name] = table.rows[0]
    return table.problems


def has_other_caption(file: Path, row: Row) -> bool:
    """Whether a caption file holds a caption that the table's row does not have, white space aside."""
    table = read_caption_file(file, row.annotation.file_name)
    known = {" ".join(caption.split()) for caption in row.annotation.captions}
    return any(" ".join(caption.split()) not in known for own in table.rows for caption in own.annotation.captions)


def missing_captions(names: list[str], folder: Path, table: Table) -> Iterator[Problem]:
    """One problem an image; a single one if the table itself is unreadable."""
    if table.broken and names:
        count = "1 image has" if len(names) == 1 else f"{len(names)} images have"
        yield Problem(str(folder), f"{count} no caption, because the table is unreadable", "Fix the table first.")
        return
    for name in names:
        caption_file = PurePosixPath(name).with_suffix(".txt").name
        yield Problem(str(folder / name), "has no caption", f"Add a row to metadata.jsonl, or a file {caption_file!r}.")


def overruled_files(files: list[Path]) -> Iterator[Problem]:
    if files:
        others = f" (and {len(files) - 1} more such files)" if len(files) > 1 else ""
        what = f"differs from the image's row in the table, which is used{others}"
        yield Problem(str(files[0]), what, "Remove the one that is out of date.", refused=False)


def orphan_captions(scan: FolderScan) -> Iterator[Problem]:
    known = {caption_stem(name) for name in (*scan.images, *scan.refused)}
    for name, files in sorted(scan.captions.items()):
        if name not in known and PurePosixPath(name).name.lower() not in NOT_CAPTIONS:
            fix = "Add the image, or remove the caption."
            yield Problem(str(files[0]), "is a caption without an image", fix, refused=False)


def no_images_error(folder: Path) -> InputError:
    """The folder holds nothing to read; if it is a known format, how to import it."""
    if (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists():
        fix = f"Import it: python data/prepare.py {folder} --into NEW_FOLDER"
        return InputError("is a Hugging Face dataset, not a folder of images", where=folder, fix=fix)
    fix = "Give a folder of images with metadata.jsonl, or with a .txt file for each image."
    return InputError("holds no image", where=folder, fix=fix)


def add_sample(
    folder: CaptionedFolder, path: Path, row: Row | None, result: tuple[str, ImageInfo] | InputError
) -> None:
    """Add a decoded image as a sample if it can be used and has a row."""
    if isinstance(result, InputError):
        folder.problems.append(Problem.of(result))
        return
    digest, info = result
    if row is not None and row.annotation.skip_reason:
        folder.skipped.setdefault(row.annotation.skip_reason, []).append(row.annotation.file_name)
        return
    folder.problems.extend(Problem(str(path), warning, refused=False) for warning in info.warnings)
    if row is not None:
        folder.formats[info.format] += 1
        folder.notes.update(info.notes)
        folder.samples.append(Sample(path, row.annotation, row.where, digest, info.width, info.height))


# ---- writing


def write_folder(
    folder: Path, rows: Iterable[tuple[ImageContent, Annotation]], *, captions_beside: bool = False
) -> None:
    """Write a captioned folder atomically: the images under their file_name, and metadata.jsonl in order.

    An image given as a path or as bytes is copied; one in memory is saved in the format of its name. The same input
    gives the same bytes. captions_beside: also a .txt for each image, one caption a line.
    Raises InputError if the folder exists and is not empty, or if two rows have the same name.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("exists and is not empty", where=folder, fix="Give the name of a new folder.")
    names: set[str] = set()
    with atomic_folder(folder) as partial:
        lines: list[str] = []
        for image, annotation in rows:
            claim_name(annotation.file_name, names)
            save_image(image, partial / annotation.file_name)
            lines.append(to_json_line(annotation))
            if captions_beside:
                text = "".join(" ".join(caption.split()) + "\n" for caption in annotation.captions)
                (partial / annotation.file_name).with_suffix(".txt").write_text(text, encoding="utf-8")
        (partial / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


def claim_name(file_name: str, taken: set[str]) -> None:
    """A name may be used once, ignoring case and the form of accents, and not for the table itself."""
    check_file_name(file_name)
    name = nfc(PurePosixPath(file_name).as_posix()).casefold()
    if name in TABLE_NAMES:
        raise InputError(f"{file_name!r} is the name of the table", fix="Rename the image.")
    if name in taken:
        raise InputError(f"two images would be written as {file_name!r}", fix="Rename one of them.")
    taken.add(name)


def save_image(image: ImageContent, path: Path) -> None:
    """Copy, or encode with settings that depend on nothing but the image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, Path):
        shutil.copyfile(image, path)
    elif isinstance(image, bytes):
        path.write_bytes(image)
    else:
        encoded = io.BytesIO()
        kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(path.suffix.lower(), "PNG")
        image.save(encoded, kind, **({"quality": 95} if kind != "PNG" else {}))
        path.write_bytes(encoded.getvalue())


def to_json_line(annotation: Annotation) -> str:
    """One line of metadata.jsonl: the keys that were given, unknown ones too, without any kind of line break in it."""
    text = json.dumps(annotation.model_dump(exclude_unset=True), ensure_ascii=False, allow_nan=False)
    for char in "\x85\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text + "\n"

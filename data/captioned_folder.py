"""Read and write a captioned folder: pictures with metadata.jsonl, metadata.csv, or caption files beside them.

Reading never writes into the folder, never stops at the first mistake and never drops anything without saying so.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path, PurePosixPath

from PIL import Image

from data.atomic_io import atomic_folder
from data.errors import InputError, Problem, quoted
from data.images import ImageInfo, decode, read_bytes
from data.metadata_table import Row, Table, read_caption_file, read_csv, read_jsonl
from data.progress import ProgressBar
from data.scan import NOT_CAPTIONS, TABLE_NAMES, FolderScan, caption_stem, check_link, nfc, scan_folder
from data.schema import Annotation, Sample

MAX_THREADS = 8  # each may hold a picture of MAX_PIXELS
PROGRESS_DELAY = 2.0  # seconds of work before a progress bar appears


@dataclass(frozen=True)
class CaptionedFolder:
    """A captioned folder as it was found: what can be used, in the order of names, and everything that is wrong.

    found: picture files seen, usable or not. notes: what opening a picture does to it ("transparency is shown on
    white") -> how many pictures. formats: "PNG" -> how many of the usable ones. skipped: the reason that a row gives
    to leave its picture out -> the names of these pictures, which are no samples.
    """

    folder: Path
    samples: list[Sample]
    problems: list[Problem]
    found: int
    notes: dict[str, int] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)


def read_folder(folder: Path) -> CaptionedFolder:
    """Read a captioned folder. Every picture is hashed and decoded once.

    Raises InputError only if the folder itself is of no use: missing, not a folder, or without a single picture.
    """
    seen = scan_folder(folder)
    table = read_table(seen)
    rows, problems = match_rows(table, seen)
    found = len(seen.pictures) + len(seen.refused)
    if not found:
        raise no_images_error(folder)
    problems += seen.problems
    problems += add_caption_files(rows, seen, table)
    listing = CaptionedFolder(folder, [], problems, found)
    names = sorted(seen.pictures)
    for name, verdict in zip(names, decode_all([seen.pictures[name] for name in names]), strict=True):
        add_sample(listing, seen.pictures[name], rows.get(name), verdict)
    listing.problems.extend(skipped_warning(listing))
    return listing


def skipped_warning(listing: CaptionedFolder) -> Iterator[Problem]:
    """One line for all pictures that somebody meant to leave out: a warning, as nothing is to be mended."""
    names = [name for skipped in listing.skipped.values() for name in skipped]
    if names:
        reasons = ", ".join(f"{len(skipped)} {reason}" for reason, skipped in sorted(listing.skipped.items()))
        count = "1 picture is" if len(names) == 1 else f"{len(names)} pictures are"
        what = f"{count} left out, as a 'skip_reason' is given ({reasons}; first {quoted(min(names))})"
        yield Problem(str(listing.folder), what, refused=False)


def decode_all(paths: list[Path]) -> Iterator[tuple[str, ImageInfo] | InputError]:
    """SHA-256 and findings of each picture, or why it cannot be used, in order. Decoding runs in several threads."""
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
        verdicts = threads.map(decode_file, paths)
        title = "reading pictures"
        yield from ProgressBar(verdicts, title, len(paths), unit="picture", delay=PROGRESS_DELAY)


def decode_file(path: Path) -> tuple[str, ImageInfo] | InputError:
    """Read a picture's bytes once, hash them and decode them."""
    try:
        content = read_bytes(path)
        return sha256(content).hexdigest(), decode(content, path)[1]
    except InputError as error:
        return error


def read_table(seen: FolderScan) -> Table:
    """The rows of metadata.jsonl, else of metadata.csv, else none."""
    there = [seen.folder / name for name in TABLE_NAMES if os.path.lexists(seen.folder / name)]
    if not there:
        return Table()
    try:
        check_link(there[0], seen)
        table = read_jsonl(there[0]) if there[0].suffix == ".jsonl" else read_csv(there[0])
    except InputError as error:
        table = Table(problems=[Problem.of(error)], broken=True)
    for other in there[1:]:
        problem = Problem(str(other), f"is not used: {there[0].name} is", "Remove one of the two.", refused=False)
        table.problems.append(problem)
    return table


def match_rows(table: Table, seen: FolderScan) -> tuple[dict[str, Row], list[Problem]]:
    """Find the picture of each row: name of the picture -> its row, and a problem for each row that has none."""
    rows: dict[str, Row] = {}
    problems = list(table.problems)
    for row in table.rows:
        try:
            name = find_image(row.annotation.file_name, seen)
        except InputError as error:
            problems.append(Problem.of(error, row.where))
            continue
        if name in rows:
            fix = "Keep one; further captions of a picture go into 'texts'."
            problems.append(Problem(row.where, f"{quoted(name)} already has a row ({rows[name].where})", fix))
        elif name is not None:
            rows[name] = row
    return rows, sorted(problems, key=line_of)


def line_of(problem: Problem) -> int:
    """The line that a problem of the table is on; 0 for the table as a whole."""
    number = problem.where.rpartition(":")[2]
    return int(number) if number.isdecimal() else 0


def find_image(file_name: str, seen: FolderScan) -> str | None:
    """The picture a row is about; None if that picture is refused already. Raises InputError if there is none."""
    check_file_name(file_name)
    plain = PurePosixPath(file_name).as_posix()
    if (name := seen.find(plain)) is not None:
        return name
    if nfc(plain) in seen.refused:
        return None
    path = seen.folder / plain
    if os.path.isdir(path):
        raise InputError(f"{quoted(file_name)} is a folder, not a picture", fix="Name the picture in it.")
    if not os.path.exists(path):
        near = seen.near(plain)
        fix = f"Write {quoted(near)}, if that is meant." if near else "Mend the name, or remove the row."
        raise InputError(f"there is no picture {quoted(file_name)}", fix=fix)
    if not seen.inside(path):
        raise InputError(
            f"{quoted(file_name)} leads out of the folder through a link", fix="Put the picture itself there."
        )
    seen.pictures[plain] = path  # a picture with an unusual suffix, or a hidden one: named, hence meant
    return plain


def check_file_name(file_name: str) -> None:
    """A file name must stay in the folder on every system: relative, forward slashes, no way up, no NUL."""
    parts = file_name.split("/")
    name = quoted(file_name)
    if not file_name.strip() or "\0" in file_name:
        raise InputError(f"{name} is no file name", fix="Write the picture's name in 'file_name'.")
    if file_name.startswith(("/", "~/")) or (file_name[1:2] == ":" and file_name[2:3] in {"\\", "/"}):
        raise InputError(f"{name} is an absolute path", fix="Write it relative to the folder.")
    if ".." in parts or ".." in file_name.split("\\"):
        raise InputError(f"{name} climbs out of the folder", fix="Name a picture inside the folder.")


def add_caption_files(rows: dict[str, Row], seen: FolderScan, table: Table) -> list[Problem]:
    """Give each picture without a row the captions beside it; a row of the table wins over a caption file."""
    problems: list[Problem] = []
    overruled: list[Path] = []
    bare: list[str] = []
    for name in sorted(seen.pictures):
        files = seen.captions_of(name)
        problems += extra_caption_files(files)
        if nfc(name) in table.spoiled and name not in rows:
            continue
        if not files:
            bare += [] if name in rows else [name]
        elif name in rows:
            overruled += [files[0]] if has_other_caption(files[0], rows[name]) else []
        else:
            problems += add_caption_file(rows, name, files[0], seen)
    return [
        *problems,
        *missing_captions(bare, seen.folder, table),
        *overruled_caption_files(overruled),
        *orphan_captions(seen),
    ]


def add_caption_file(rows: dict[str, Row], name: str, file: Path, seen: FolderScan) -> list[Problem]:
    """Read a caption file; its row is added if it is sound, its problems are returned."""
    try:
        check_link(file, seen)
    except InputError as error:
        return [Problem.of(error)]
    beside = read_caption_file(file, name)
    if beside.rows:
        rows[name] = beside.rows[0]
    return beside.problems


def has_other_caption(file: Path, row: Row) -> bool:
    """Whether a caption file holds a caption that the table's row does not have, white space aside."""
    beside = read_caption_file(file, row.annotation.file_name)
    known = {" ".join(caption.split()) for caption in row.annotation.captions}
    return any(" ".join(caption.split()) not in known for found in beside.rows for caption in found.annotation.captions)


def extra_caption_files(files: list[Path]) -> Iterator[Problem]:
    """A picture has one caption file: of a .txt and a .caption, the .txt."""
    for extra in files[1:]:
        yield Problem(str(extra), f"is not used: {files[0].name} is", "Keep one of the two.", refused=False)


def missing_captions(names: list[str], folder: Path, table: Table) -> Iterator[Problem]:
    """One problem a picture; a single one if it is the table that cannot be read."""
    if table.broken and names:
        count = "1 picture has" if len(names) == 1 else f"{len(names)} pictures have"
        yield Problem(str(folder), f"{count} no caption, since the table cannot be read", "Mend the table first.")
        return
    for name in names:
        beside = PurePosixPath(name).with_suffix(".txt").name
        fix = f"Add a row to metadata.jsonl, or write a file {beside!r} beside it."
        yield Problem(str(folder / name), "has no caption", fix)


def overruled_caption_files(files: list[Path]) -> Iterator[Problem]:
    """Caption files that say something else than the table, in one line."""
    if files:
        others = f" (and {len(files) - 1} more such files)" if len(files) > 1 else ""
        what = f"says something else than the picture's row in the table, which is used{others}"
        yield Problem(str(files[0]), what, "Remove the one that is out of date.", refused=False)


def orphan_captions(seen: FolderScan) -> Iterator[Problem]:
    """Caption files without a picture."""
    known = {caption_stem(name) for name in (*seen.pictures, *seen.refused)}
    for name, files in sorted(seen.captions.items()):
        if name not in known and PurePosixPath(name).name.lower() not in NOT_CAPTIONS:
            fix = "Add the picture, or remove the caption."
            yield Problem(str(files[0]), "is a caption without a picture", fix, refused=False)


def no_images_error(folder: Path) -> InputError:
    """The folder holds nothing to read; if it is a known form, say how to import it."""
    if (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists():
        fix = f"Import it: python data/prepare.py {folder} --into NEW_FOLDER"
        return InputError("is a Hugging Face dataset, not a folder of pictures", where=folder, fix=fix)
    fix = "Give a folder of pictures with metadata.jsonl, or with a .txt beside each picture."
    return InputError("holds no picture", where=folder, fix=fix)


def add_sample(
    listing: CaptionedFolder, path: Path, row: Row | None, verdict: tuple[str, ImageInfo] | InputError
) -> None:
    """Add an examined picture to the listing if it can be used and has a row."""
    if isinstance(verdict, InputError):
        listing.problems.append(Problem.of(verdict))
        return
    digest, info = verdict
    if row is not None and row.annotation.skip_reason:
        listing.skipped.setdefault(row.annotation.skip_reason, []).append(row.annotation.file_name)
        return
    listing.problems.extend(Problem(str(path), warning, refused=False) for warning in info.warnings)
    if row is not None:
        count_format(listing, info)
        listing.samples.append(Sample(path, row.annotation, row.where, digest, info.width, info.height))


def count_format(listing: CaptionedFolder, info: ImageInfo) -> None:
    """Tally a usable picture's format and notes."""
    listing.formats[info.format] = listing.formats.get(info.format, 0) + 1
    for note in info.notes:
        listing.notes[note] = listing.notes.get(note, 0) + 1


ImageContent = Path | Image.Image | bytes


def write_folder(
    folder: Path, rows: Iterable[tuple[ImageContent, Annotation]], *, captions_beside: bool = False
) -> None:
    """Write a captioned folder, whole or not at all: the pictures under their file_name, and metadata.jsonl in order.

    A picture given as a path or as bytes is copied as it is; one in memory is saved in the format of its name. The same
    input gives the same bytes. captions_beside: also a .txt beside each picture, one caption a line.
    Raises InputError if the folder exists and is not empty, or if two rows have the same name.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("exists and is not empty", where=folder, fix="Give the name of a new folder.")
    names: set[str] = set()
    with atomic_folder(folder) as beside:
        lines: list[str] = []
        for picture, annotation in rows:
            claim_name(annotation.file_name, names)
            save_image(picture, beside / annotation.file_name)
            lines.append(to_json_line(annotation))
            if captions_beside:
                text = "".join(" ".join(caption.split()) + "\n" for caption in annotation.captions)
                (beside / annotation.file_name).with_suffix(".txt").write_text(text, encoding="utf-8")
        (beside / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


def claim_name(file_name: str, taken: set[str]) -> None:
    """A name may be used once, also where case and the form of accents do not count, and not for the table itself."""
    check_file_name(file_name)
    plain = nfc(PurePosixPath(file_name).as_posix()).casefold()
    if plain in TABLE_NAMES:
        raise InputError(f"{file_name!r} is the table's own name", fix="Rename the picture.")
    if plain in taken:
        raise InputError(f"two pictures would be written as {file_name!r}", fix="Rename one of them.")
    taken.add(plain)


def save_image(picture: ImageContent, path: Path) -> None:
    """Copy, or encode with settings that depend on nothing but the picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(picture, Path):
        shutil.copyfile(picture, path)
    elif isinstance(picture, bytes):
        path.write_bytes(picture)
    else:
        encoded = io.BytesIO()
        kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(path.suffix.lower(), "PNG")
        picture.save(encoded, kind, **({"quality": 95} if kind != "PNG" else {}))
        path.write_bytes(encoded.getvalue())


def to_json_line(annotation: Annotation) -> str:
    """One line of metadata.jsonl: the keys that were given, unknown ones too. No reader may see a line break in it."""
    values = annotation.model_dump(exclude_unset=True)
    text = json.dumps(values, ensure_ascii=False, allow_nan=False)
    for char in "\x85\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text + "\n"

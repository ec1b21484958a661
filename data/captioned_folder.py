"""Read and write a captioned folder: images with a table such as metadata.jsonl, or with caption files.

Reading never writes into the folder, never stops at the first mistake and never drops anything silently.
"""

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path, PurePosixPath

from PIL import Image

from data.atomic_io import atomic_folder
from data.config import FolderOptions
from data.errors import InputError, Problem, quoted
from data.folder_scan import (
    NO_LINK,
    NOT_CAPTIONS,
    TABLE_NAMES,
    FolderScan,
    caption_stem,
    find_repeats,
    no_images_error,
    scan_folder,
)
from data.images import ImageInfo, decode, read_bytes
from data.metadata_table import Row, Table, broken_table, nfc, read_caption_file, read_table_file
from data.progress import ProgressBar
from data.schema import Annotation, Sample

DEFAULTS = FolderOptions()
FILE_NAME = "filename"  # as a prompt: the name of the file
MAX_THREADS = 8  # each may hold an image of MAX_PIXELS
PROGRESS_DELAY = 2.0  # seconds of work before a progress bar appears
ImageContent = Path | Image.Image | bytes
Pair = tuple[ImageContent, Annotation]


@dataclass(frozen=True)
class CaptionedFolder:
    """What can be used of a captioned folder, in the order of names, and everything that is wrong with it.

    found: image files, usable or not. notes: what opening did ("transparency is shown on white") -> how many images;
    caption_notes: likewise how captions were found.
    formats: "PNG" -> how many usable ones. skipped: `skip_reason` -> names of these images, which are not samples.
    """

    folder: Path
    samples: list[Sample]
    problems: list[Problem]
    found: int
    notes: Counter[str] = field(default_factory=Counter)
    caption_notes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, list[str]] = field(default_factory=dict)


def read_folder(folder: Path, options: FolderOptions = DEFAULTS) -> CaptionedFolder:
    """Read a captioned folder, each image hashed and decoded once. InputError only if the folder itself is unusable."""
    scan = scan_folder(folder)
    table = read_table(scan, options)
    rows, problems = match_rows(table, scan)
    found = len(scan.images) + len(scan.refused)
    if not found:
        raise no_images_error(folder)
    repeats = find_repeats(scan) if options.folder_repeats else {}
    problems += scan.problems + add_caption_files(rows, scan, table, options, repeats)
    table.notes += [f"in a folder {times}_{name}: used {times} times" for name, times in repeats.values()]
    captioned = CaptionedFolder(folder, [], problems, found, caption_notes=Counter(table.notes))
    names = sorted(scan.images)
    for name, result in zip(names, decode_all([scan.images[name] for name in names]), strict=True):
        add_sample(captioned, scan.images[name], rows.get(name), result, repeats.get(name, ("", 1))[1])
    captioned.problems.extend(skipped_warning(captioned))
    return captioned


def add_sample(
    into: CaptionedFolder, path: Path, row: Row | None, result: tuple[str, ImageInfo] | InputError, repeats: int
) -> None:
    """Add a decoded image as a sample if it can be used and has a row."""
    if isinstance(result, InputError):
        into.problems.append(Problem.of(result))
        return
    digest, info = result
    if row is not None and row.annotation.skip_reason:
        into.skipped.setdefault(row.annotation.skip_reason, []).append(row.annotation.file_name)
        return
    into.problems.extend(Problem(str(path), warning, refused=False) for warning in info.warnings)
    if row is not None:
        into.formats[info.format] += 1
        into.notes.update(info.notes)
        into.samples.append(Sample(path, row.annotation, row.where, digest, info.width, info.height, repeats))


def skipped_warning(captioned: CaptionedFolder) -> Iterator[Problem]:
    """One warning for all images with a skip_reason."""
    names = [name for skipped in captioned.skipped.values() for name in skipped]
    if names:
        reasons = ", ".join(f"{len(skipped)} {reason}" for reason, skipped in sorted(captioned.skipped.items()))
        what = f"{count_images(names)} skipped because of a 'skip_reason' ({reasons}; first {quoted(min(names))})"
        yield Problem(str(captioned.folder), what, refused=False)


def count_images(names: list[str]) -> str:
    return "1 image" if len(names) == 1 else f"{len(names)} images"


def decode_all(paths: list[Path]) -> Iterator[tuple[str, ImageInfo] | InputError]:
    """SHA-256 and properties of each image, or why it cannot be used, in order. Decodes in several threads."""

    def decode_file(path: Path) -> tuple[str, ImageInfo] | InputError:
        try:
            content = read_bytes(path)
            return sha256(content).hexdigest(), decode(content, path)[1]
        except InputError as error:
            return error

    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
        results = threads.map(decode_file, paths)
        yield from ProgressBar(results, "reading images", len(paths), unit="image", delay=PROGRESS_DELAY)


# ---- rows


def read_table(scan: FolderScan, options: FolderOptions = DEFAULTS) -> Table:
    """The rows of the first of TABLE_NAMES that there is, else none."""
    paths = [scan.folder / name for name in TABLE_NAMES if os.path.lexists(scan.folder / name)]
    if not paths:
        return Table()
    path, *others = paths
    try:
        scan.check_link(path)
        table = read_table_file(path, options.caption_column)
    except InputError as error:
        table = broken_table(error)
    # a release has captions.csv beside metadata.jsonl
    table.problems += [ignored_file(other, path) for other in others if other.stem == path.stem]
    return table


def ignored_file(path: Path, instead: Path) -> Problem:
    return Problem(str(path), f"is ignored: {instead.name} is used", "Remove one of the two.", refused=False)


def match_rows(table: Table, scan: FolderScan) -> tuple[dict[str, Row], list[Problem]]:
    """Find the image of each row: its name -> its row, and a problem for each row that has none, in order of lines."""
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

    def line(problem: Problem) -> int:
        number = problem.where.rpartition(":")[2]
        return int(number) if number.isdecimal() else 0  # the table as a whole

    return rows, sorted(problems, key=line)


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
    if (known := scan.real_name(path)) is not None:
        return known
    if not scan.is_inside(path):
        raise InputError(f"{quoted(file_name)} is a link that points outside the folder", fix=NO_LINK)
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


def add_caption_files(
    rows: dict[str, Row], scan: FolderScan, table: Table, options: FolderOptions, repeats: Mapping[str, tuple[str, int]]
) -> list[Problem]:
    """Give each image without a row the captions of its caption file; a row of the table takes precedence.

    Without a file it gets the prompt of the options, or of its folder (see find_repeats).
    """
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
            try:
                scan.check_link(files[0])
                own = read_caption_file(files[0], name, per_line=options.captions_per_line)
            except InputError as error:
                own = broken_table(error)
            problems += own.problems
            table.notes += own.notes
            if own.rows:
                rows[name] = own.rows[0]
    if overruled:
        others = f" (and {len(overruled) - 1} more such files)" if len(overruled) > 1 else ""
        what = f"differs from the image's row in the table, which is used{others}"
        problems.append(Problem(str(overruled[0]), what, "Remove the one that is out of date.", refused=False))
    if not table.broken:
        bare = [name for name in bare if not add_prompt(name, rows, scan, table, options.prompt, repeats)]
    return [*problems, *missing_captions(bare, scan, table), *orphan_captions(scan)]


def add_prompt(
    name: str,
    rows: dict[str, Row],
    scan: FolderScan,
    table: Table,
    prompt: str | None,
    repeats: Mapping[str, tuple[str, int]],
) -> bool:
    """Give an image without a caption the prompt for such, if there is one, with a note."""
    if prompt == FILE_NAME:
        text, what = name_to_prompt(name), "its file name"
    else:
        text = prompt or repeats.get(name, ("", 1))[0]
        what = repr(text) if prompt else f"the folder's name, {text!r}"
    if text:
        rows[name] = Row(Annotation(file_name=name, text=text), str(scan.images[name]))
        table.notes.append(f"has no caption: {what} is its prompt")
    return bool(text)


def name_to_prompt(name: str) -> str:
    return " ".join(PurePosixPath(name).stem.replace("_", " ").split())


def has_other_caption(file: Path, row: Row) -> bool:
    """Whether a caption file holds a caption that the table's row does not have, white space aside."""
    table = read_caption_file(file, row.annotation.file_name)
    known = {" ".join(caption.split()) for caption in (*row.annotation.captions, " ".join(row.annotation.captions))}
    return any(" ".join(caption.split()) not in known for own in table.rows for caption in own.annotation.captions)


def missing_captions(names: list[str], scan: FolderScan, table: Table) -> Iterator[Problem]:
    """One problem an image; a single one if the table itself is unreadable, or there is no caption at all."""
    folder = scan.folder
    if table.broken and names:
        what = f"{count_images(names)} without a caption, because the table is unreadable"
        yield Problem(str(folder), what, "Fix the table first.")
        return
    if len(names) > 1 and not table.rows and not table.problems and not any(map(scan.captions_of, scan.images)):
        fix = 'Write a .txt file for each, or give one prompt: --pictures.prompt "..." (filename: the files\' names).'
        yield Problem(str(folder), f"{count_images(names)}, and no caption of any", fix)
        return
    for name in names:
        caption_file = PurePosixPath(name).with_suffix(".txt").name
        yield Problem(str(folder / name), "has no caption", f"Add a row to metadata.jsonl, or a file {caption_file!r}.")


def orphan_captions(scan: FolderScan) -> Iterator[Problem]:
    known = {caption_stem(name) for name in (*scan.images, *scan.refused)}
    for name, files in sorted(scan.captions.items()):
        if name not in known and PurePosixPath(name).name.lower() not in NOT_CAPTIONS:
            fix = "Add the image, or remove the caption."
            yield Problem(str(files[0]), "is a caption without an image", fix, refused=False)


# ---- writing


def write_folder(folder: Path, rows: Iterable[Pair], *, captions_beside: bool = False) -> None:
    """Write a captioned folder atomically: the images under their file_name, and metadata.jsonl in order.

    An image given as a path or as bytes is copied; one in memory is saved in the format of its name, equal input as
    equal bytes. captions_beside: also a .txt an image. Raises InputError if the folder is not empty, or two rows
    have the same name.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("exists and is not empty", where=folder, fix="Give the name of a new folder.")
    names: set[str] = set()
    with atomic_folder(folder) as partial:
        lines: list[str] = []
        for image, annotation in rows:
            claim_name(annotation.file_name, names)
            write_image(image, annotation, partial, caption_beside=captions_beside)
            lines.append(to_json_line(annotation))
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


def write_image(image: ImageContent, annotation: Annotation, folder: Path, *, caption_beside: bool) -> None:
    """Copy, or encode with settings that depend on nothing but the image; with its caption file."""
    path = folder / annotation.file_name
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
    if caption_beside:
        lines = "".join(" ".join(caption.split()) + "\n" for caption in annotation.captions)
        path.with_suffix(".txt").write_text(lines, encoding="utf-8")


def to_json_line(annotation: Annotation) -> str:
    """One line of metadata.jsonl: the keys that were given, unknown ones too, without any kind of line break in it."""
    text = json.dumps(annotation.model_dump(exclude_unset=True), ensure_ascii=False, allow_nan=False)
    for char in "\x85\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text + "\n"

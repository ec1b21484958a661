"""Read and write a captioned folder: images with metadata.jsonl, metadata.csv, or caption files.

Reading never writes into the folder, never stops at the first mistake and never drops anything silently.
"""

import io
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path, PurePosixPath

from PIL import Image

from data.atomic_io import atomic_folder
from data.errors import InputError, Problem, quoted
from data.images import SUFFIXES, SUFFIXES_NOT_READ, ImageInfo, decode, read_bytes
from data.metadata_table import Row, Table, broken_table, nfc, read_caption_file, read_csv, read_jsonl
from data.progress import ProgressBar
from data.schema import Annotation, Sample

CAPTION_SUFFIXES = (".txt", ".caption")  # in order of precedence
TABLE_NAMES = ("metadata.jsonl", "metadata.csv")  # likewise
NOT_CAPTIONS = {"readme", "license", "licence", "notes", "changelog", "requirements"}
MAX_THREADS = 8  # each may hold an image of MAX_PIXELS
PROGRESS_DELAY = 2.0  # seconds of work before a progress bar appears
NO_LINK = "Replace the link by the file itself."
ImageContent = Path | Image.Image | bytes
Pair = tuple[ImageContent, Annotation]


@dataclass(frozen=True)
class CaptionedFolder:
    """What can be used of a captioned folder, in the order of names, and everything that is wrong with it.

    found: image files, usable or not. notes: what opening did ("transparency is shown on white") -> how many images.
    formats: "PNG" -> how many usable ones. skipped: `skip_reason` -> names of these images, which are not samples.
    """

    folder: Path
    samples: list[Sample]
    problems: list[Problem]
    found: int
    notes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, list[str]] = field(default_factory=dict)


def read_folder(folder: Path) -> CaptionedFolder:
    """Read a captioned folder, each image hashed and decoded once. InputError only if the folder itself is unusable."""
    scan = scan_folder(folder)
    table = read_table(scan)
    rows, problems = match_rows(table, scan)
    found = len(scan.images) + len(scan.refused)
    if not found:
        raise no_images_error(folder)
    captioned = CaptionedFolder(folder, [], problems + scan.problems + add_caption_files(rows, scan, table), found)
    names = sorted(scan.images)
    for name, result in zip(names, decode_all([scan.images[name] for name in names]), strict=True):
        add_sample(captioned, scan.images[name], rows.get(name), result)
    captioned.problems.extend(skipped_warning(captioned))
    return captioned


def add_sample(into: CaptionedFolder, path: Path, row: Row | None, result: tuple[str, ImageInfo] | InputError) -> None:
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
        into.samples.append(Sample(path, row.annotation, row.where, digest, info.width, info.height))


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


# ---- the files of a folder, by name


@dataclass
class FolderScan:
    """Names are relative to `folder`, with forward slashes. Hidden files and folders are ignored."""

    folder: Path
    images: dict[str, Path] = field(default_factory=dict)
    captions: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))  # by caption_stem(name)
    refused: set[str] = field(default_factory=set)  # nfc(name) of images that cannot be used; problems says why
    problems: list[Problem] = field(default_factory=list)
    spellings: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # nfc(name) -> names

    def find(self, name: str) -> str | None:
        """The image of that name, however its accents are stored; None if there is none, or several."""
        if name in self.images:
            return name
        alike = self.spellings.get(nfc(name), [])
        return alike[0] if len(alike) == 1 else None

    def similar(self, name: str) -> str | None:
        """An image whose name differs only in case, slashes or suffix."""
        wanted = nfc(name).replace("\\", "/").casefold()
        return self.without_case.get(wanted) or self.without_case.get(caption_stem(wanted))

    @cached_property
    def without_case(self) -> dict[str, str]:
        whole = {nfc(name).casefold(): name for name in reversed(self.images)}
        return {caption_stem(name).casefold(): name for name in reversed(self.images)} | whole

    def captions_of(self, name: str) -> list[Path]:
        """The caption files of an image, best first; of two that differ in how accents are stored, its own."""
        files = self.captions.get(caption_stem(name), [])
        stem = name.rpartition(".")[0]
        own = [file for file in files if file.relative_to(self.folder).as_posix().rpartition(".")[0] == stem]
        return sorted(own or files, key=lambda file: CAPTION_SUFFIXES.index(file.suffix.lower()))

    @cached_property
    def root(self) -> str:
        return os.path.realpath(self.folder)

    def is_inside(self, path: Path) -> bool:
        """Whether a file is in the folder once links are followed; raises OSError for a dangling link."""
        return os.path.commonpath([self.root, os.path.realpath(path, strict=True)]) == self.root

    def check_link(self, path: Path) -> None:
        """Raise InputError for a link that is dangling, or points out of the folder: copying the folder breaks it."""
        try:
            if path.is_symlink() and not self.is_inside(path):
                raise InputError("is a link that points outside the folder", where=path, fix=NO_LINK)
        except OSError as error:
            raise InputError(f"is a dangling link ({error.strerror})", where=path, fix=NO_LINK) from error

    def add_file(self, path: Path) -> None:
        """Put one file where it belongs: image, caption, or the table of a sub-folder; other files are ignored."""
        name, suffix = path.relative_to(self.folder).as_posix(), path.suffix.lower()
        if suffix in SUFFIXES or suffix in SUFFIXES_NOT_READ:
            try:
                self.check_image_name(name, path)
            except InputError as error:
                self.refused.add(nfc(name))
                self.problems.append(Problem.of(error, str(path)))
            else:
                self.images[name] = path
                self.spellings[nfc(name)].append(name)
        elif suffix in CAPTION_SUFFIXES:
            self.captions[caption_stem(name)].append(path)
        elif path.name in TABLE_NAMES and path.parent != self.folder:
            fix = f"Give {path.parent} as the folder, or move its rows to the top with longer names."
            self.problems.append(Problem(str(path), "is ignored: it is not at the top of the folder", fix, False))

    def check_image_name(self, name: str, path: Path) -> None:
        """Raise InputError for a format that is not read, a name that no table can hold, and a link that leads out."""
        if path.suffix.lower() in SUFFIXES_NOT_READ:
            raise InputError(f"has an unsupported format ({path.suffix.lower()})", fix="Convert it to PNG or JPEG.")
        if any("\udc80" <= char <= "\udcff" for char in name):
            raise InputError("its name is not UTF-8", fix="Rename it.")
        self.check_link(path)

    def warn_of_similar_names(self) -> None:
        """Names that are the same on macOS and Windows: copied there, one image overwrites the other."""
        alike: dict[str, list[str]] = defaultdict(list)
        for name in self.images:
            alike[nfc(name).casefold()].append(name)
        for first, *others in (names for names in alike.values() if len(names) > 1):
            how = "in how accents are stored" if len({nfc(name) for name in (first, *others)}) == 1 else "in case"
            what = f"differs from {', '.join(map(quoted, others))} only {how}"
            fix = "Rename one: macOS and Windows keep only one of them."
            self.problems.append(Problem(str(self.folder / first), what, fix, refused=False))


def caption_stem(name: str) -> str:
    """What an image and its caption file share: the name without its last suffix, in composed form."""
    return nfc(name.rpartition(".")[0])


def scan_folder(folder: Path) -> FolderScan:
    """List a folder and its sub-folders without opening a file or following a link to a folder. Raises InputError."""
    if not folder.is_dir():
        raise missing_folder_error(folder)
    scan = FolderScan(folder)

    def report(error: OSError) -> None:
        refused = InputError(f"cannot be listed ({error.strerror})", where=error.filename, fix="Check its permissions.")
        if Path(error.filename) == folder:
            raise refused from error
        scan.problems.append(Problem.of(refused))

    for parent, folders, files in os.walk(folder, onerror=report):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (os.path.join(parent, name) for name in folders):
            if os.path.islink(path):
                what, fix = "is a link to a folder: it is not followed", "Move the images themselves into the folder."
                scan.problems.append(Problem(path, what, fix, refused=False))
        for name in sorted(files):
            if not name.startswith("."):
                scan.add_file(Path(parent, name))
    scan.warn_of_similar_names()
    return scan


def missing_folder_error(folder: Path) -> InputError:
    if folder.exists():
        export = "Import a Label Studio export with --into NEW_FOLDER." if folder.suffix.lower() == ".json" else None
        return InputError("is a file, not a folder", where=folder, fix=export or "Give the folder with the images.")
    return InputError("no such folder", where=folder, fix="Check the path.")


def no_images_error(folder: Path) -> InputError:
    """The folder holds nothing to read; if it is a known format, how to import it."""
    if (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists():
        fix = f"Import it: python data/prepare.py {folder} --into NEW_FOLDER"
        return InputError("is a Hugging Face dataset, not a folder of images", where=folder, fix=fix)
    fix = "Give a folder of images with metadata.jsonl, or with a .txt file for each image."
    return InputError("holds no image", where=folder, fix=fix)


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
            try:
                scan.check_link(files[0])
                own = read_caption_file(files[0], name)
            except InputError as error:
                own = broken_table(error)
            problems += own.problems
            if own.rows:
                rows[name] = own.rows[0]
    if overruled:
        others = f" (and {len(overruled) - 1} more such files)" if len(overruled) > 1 else ""
        what = f"differs from the image's row in the table, which is used{others}"
        problems.append(Problem(str(overruled[0]), what, "Remove the one that is out of date.", refused=False))
    return [*problems, *missing_captions(bare, scan.folder, table), *orphan_captions(scan)]


def has_other_caption(file: Path, row: Row) -> bool:
    """Whether a caption file holds a caption that the table's row does not have, white space aside."""
    table = read_caption_file(file, row.annotation.file_name)
    known = {" ".join(caption.split()) for caption in row.annotation.captions}
    return any(" ".join(caption.split()) not in known for own in table.rows for caption in own.annotation.captions)


def missing_captions(names: list[str], folder: Path, table: Table) -> Iterator[Problem]:
    """One problem an image; a single one if the table itself is unreadable."""
    if table.broken and names:
        what = f"{count_images(names)} without a caption, because the table is unreadable"
        yield Problem(str(folder), what, "Fix the table first.")
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

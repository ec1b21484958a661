"""List a captioned folder: images and caption files by name, without opening them or leaving the folder."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from data.errors import InputError, Problem, quoted
from data.images import SUFFIXES, SUFFIXES_NOT_READ

CAPTION_SUFFIXES = (".txt", ".caption")  # in order of precedence
TABLE_NAMES = ("metadata.jsonl", "metadata.csv")  # likewise
NOT_CAPTIONS = {"readme", "license", "licence", "notes", "changelog", "requirements"}


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
        fix = "Replace the link by the file itself."
        try:
            if path.is_symlink() and not self.is_inside(path):
                raise InputError("is a link that points outside the folder", where=path, fix=fix)
        except OSError as error:
            raise InputError(f"is a dangling link ({error.strerror})", where=path, fix=fix) from error


def nfc(name: str) -> str:
    """Unicode's composed form: macOS stores an accent apart from its letter, most other systems together."""
    return unicodedata.normalize("NFC", name)


def caption_stem(name: str) -> str:
    """What an image and its caption file share: the name without its last suffix, in composed form."""
    return nfc(name.rpartition(".")[0])


def scan_folder(folder: Path) -> FolderScan:
    """List a folder and its sub-folders. Raises InputError if the folder itself is missing or cannot be listed."""
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
                add_file(Path(parent, name), scan)
    warn_of_similar_names(scan)
    return scan


def missing_folder_error(folder: Path) -> InputError:
    if folder.exists():
        export = "Import a Label Studio export with --into NEW_FOLDER." if folder.suffix.lower() == ".json" else None
        return InputError("is a file, not a folder", where=folder, fix=export or "Give the folder with the images.")
    return InputError("no such folder", where=folder, fix="Check the path.")


def add_file(path: Path, scan: FolderScan) -> None:
    """Put one file where it belongs: image, caption, or the table of a sub-folder; other files are ignored."""
    name = path.relative_to(scan.folder).as_posix()
    suffix = path.suffix.lower()
    if suffix in SUFFIXES or suffix in SUFFIXES_NOT_READ:
        try:
            check_image_name(name, path, scan)
        except InputError as error:
            scan.refused.add(nfc(name))
            scan.problems.append(Problem.of(error, str(path)))
        else:
            scan.images[name] = path
            scan.spellings[nfc(name)].append(name)
    elif suffix in CAPTION_SUFFIXES:
        scan.captions[caption_stem(name)].append(path)
    elif path.name in TABLE_NAMES and path.parent != scan.folder:
        fix = f"Give {path.parent} as the folder, or move its rows to the top with longer names."
        scan.problems.append(Problem(str(path), "is ignored: it is not at the top of the folder", fix, refused=False))


def check_image_name(name: str, path: Path, scan: FolderScan) -> None:
    """Raise InputError for a format that is not read, a name that no table can hold, and a link that leads out."""
    if path.suffix.lower() in SUFFIXES_NOT_READ:
        raise InputError(f"has an unsupported format ({path.suffix.lower()})", fix="Convert it to PNG or JPEG.")
    if any("\udc80" <= char <= "\udcff" for char in name):
        raise InputError("its name is not UTF-8", fix="Rename it.")
    scan.check_link(path)


def warn_of_similar_names(scan: FolderScan) -> None:
    """Names that are the same on macOS and Windows: copied there, one image overwrites the other."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in scan.images:
        alike[nfc(name).casefold()].append(name)
    for first, *others in (names for names in alike.values() if len(names) > 1):
        how = "in how accents are stored" if len({nfc(name) for name in (first, *others)}) == 1 else "in case"
        what = f"differs from {', '.join(map(quoted, others))} only {how}"
        fix = "Rename one: macOS and Windows keep only one of them."
        scan.problems.append(Problem(str(scan.folder / first), what, fix, refused=False))

"""What lies in a captioned folder: pictures and caption files, by name, without opening them or leaving the folder."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
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
    """Names are relative to `folder`, with forward slashes. Hidden files and folders are not looked at."""

    folder: Path
    root: str  # the folder with every link resolved
    pictures: dict[str, Path] = field(default_factory=dict)
    captions: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))  # by stem(name)
    refused: set[str] = field(default_factory=set)  # pictures that are there but cannot be used; problems says why
    problems: list[Problem] = field(default_factory=list)
    spellings: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # composed form -> pictures

    def find(self, name: str) -> str | None:
        """The picture of that name, however its accents are stored; None if there is none, or several."""
        if name in self.pictures:
            return name
        alike = self.spellings.get(nfc(name), [])
        return alike[0] if len(alike) == 1 else None

    def near(self, name: str) -> str | None:
        """A picture whose name differs only in case, slashes or suffix."""
        wanted = nfc(name).replace("\\", "/").casefold()
        return self.without_case.get(wanted) or self.without_case.get(caption_stem(wanted))

    @cached_property
    def without_case(self) -> dict[str, str]:
        """Each picture by its whole name and by its stem, in small letters; of equals the first."""
        whole = {nfc(name).casefold(): name for name in reversed(self.pictures)}
        return {caption_stem(name).casefold(): name for name in reversed(self.pictures)} | whole

    def captions_of(self, name: str) -> list[Path]:
        """The caption files of a picture, best first; of two that differ in how accents are stored, its own."""
        files = self.captions.get(caption_stem(name), [])
        own = [
            file
            for file in files
            if file.relative_to(self.folder).as_posix().rpartition(".")[0] == name.rpartition(".")[0]
        ]
        return sorted(own or files, key=lambda file: CAPTION_SUFFIXES.index(file.suffix.lower()))

    def inside(self, path: Path) -> bool:
        """Whether a file lies in the folder once links are followed; raises OSError for a link that leads nowhere."""
        real = os.path.realpath(path, strict=True)
        return os.path.commonpath([self.root, real]) == self.root

    def refuse(self, name: str, what: str, fix: str) -> None:
        """Note a picture that cannot be used."""
        self.refused.add(nfc(name))
        self.problems.append(Problem(str(self.folder / name), what, fix))


def nfc(name: str) -> str:
    """Unicode's composed form (NFC): macOS stores an accent apart from its letter, most other systems together."""
    return unicodedata.normalize("NFC", name)


def caption_stem(name: str) -> str:
    """What a picture and its caption file share: the name without its last suffix, in composed form."""
    return nfc(name.rpartition(".")[0])


def scan_folder(folder: Path) -> FolderScan:
    """List a folder and its sub-folders. Raises InputError if the folder itself is missing or cannot be listed."""
    if not folder.is_dir():
        raise missing_folder_error(folder)
    found = FolderScan(folder, os.path.realpath(folder))
    for entry in visible_files(found):
        add_file(entry, found)
    warn_of_similar_names(found)
    return found


def missing_folder_error(folder: Path) -> InputError:
    """The folder that was asked for is not one."""
    if folder.exists():
        export = "Import a Label Studio export with --into NEW_FOLDER." if folder.suffix.lower() == ".json" else None
        fix = export or "Give the folder that holds the pictures."
        return InputError("is a file, not a folder", where=folder, fix=fix)
    return InputError("no such folder", where=folder, fix="Check the path.")


def visible_files(found: FolderScan) -> Iterator[os.DirEntry[str]]:
    """Every visible file, folder by folder in the order of names. Links to folders are named and not followed."""
    waiting = [found.folder]
    while waiting:
        folder = waiting.pop()
        below: list[Path] = []
        for entry in sorted_entries(folder, found):
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                below.append(Path(entry.path))
            elif entry.is_symlink() and os.path.isdir(entry.path):
                fix = "Put the pictures themselves into the folder."
                what = "is a link to a folder: it is not followed"
                found.problems.append(Problem(entry.path, what, fix, refused=False))
            else:
                yield entry
        waiting.extend(reversed(below))


def sorted_entries(folder: Path, found: FolderScan) -> list[os.DirEntry[str]]:
    """The entries of one folder, sorted. If that fails: a problem for a sub-folder, else an error."""
    try:
        with os.scandir(folder) as scanned:
            return sorted(scanned, key=lambda entry: entry.name)
    except OSError as error:
        unlisted = InputError(f"cannot be listed ({error.strerror})", where=folder, fix="Check its permissions.")
        if folder == found.folder:
            raise unlisted from error
        found.problems.append(Problem.of(unlisted))
        return []


def add_file(entry: os.DirEntry[str], found: FolderScan) -> None:
    """Put one file where it belongs: picture, caption, table of a sub-folder; anything else is not ours."""
    path = Path(entry.path)
    name = path.relative_to(found.folder).as_posix()
    suffix = path.suffix.lower()
    if suffix in SUFFIXES_NOT_READ:
        found.refuse(name, f"is of a kind that is not read ({suffix})", "Convert it to PNG or JPEG.")
    elif suffix in SUFFIXES:
        if is_utf8_name(name, found) and check_stays_inside(path, name, found):
            found.pictures[name] = path
            found.spellings[nfc(name)].append(name)
    elif suffix in CAPTION_SUFFIXES:
        found.captions[caption_stem(name)].append(path)
    elif entry.name in TABLE_NAMES and path.parent != found.folder:
        fix = f"Give {path.parent} as the folder, or move its rows to the top with longer names."
        what = "is not read: it is not at the top of the folder"
        found.problems.append(Problem(entry.path, what, fix, refused=False))


def is_utf8_name(name: str, found: FolderScan) -> bool:
    """A name that is not UTF-8 can stand in no table of captions."""
    if name.isascii() or not any("\udc80" <= char <= "\udcff" for char in name):
        return True
    found.refuse(name, "its name is not UTF-8", "Rename it.")
    return False


def check_stays_inside(path: Path, name: str, found: FolderScan) -> bool:
    """Follow a link only to a file inside the folder: one that leads out breaks when the folder is copied."""
    try:
        check_link(path, found)
    except InputError as error:
        found.refuse(name, error.what, error.fix or "")
        return False
    return True


def check_link(path: Path, found: FolderScan) -> None:
    """Raise InputError if `path` is a link that leads nowhere or out of the folder."""
    if not path.is_symlink():
        return
    fix = "Put the file itself there."
    try:
        inside = found.inside(path)
    except OSError as error:
        raise InputError(f"is a link that leads nowhere ({error.strerror})", where=path, fix=fix) from error
    if not inside:
        raise InputError("is a link that leads out of the folder", where=path, fix=fix)


def warn_of_similar_names(found: FolderScan) -> None:
    """Names that are one and the same on macOS and Windows: copied there, one picture overwrites the other."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in found.pictures:
        alike[nfc(name).casefold()].append(name)
    for names in alike.values():
        if len(names) > 1:
            others = ", ".join(quoted(name) for name in names[1:])
            how = "in how accents are stored" if len({nfc(name) for name in names}) == 1 else "in case"
            what = f"differs from {others} only {how}"
            fix = "Rename one: macOS and Windows keep only one of them."
            found.problems.append(Problem(str(found.folder / names[0]), what, fix, refused=False))

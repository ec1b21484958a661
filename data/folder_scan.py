"""The files of a captioned folder by name: images, caption files and tables; links that lead out are refused."""

import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from data.errors import InputError, Problem, quoted
from data.images import PLUGINS, SUFFIXES, SUFFIXES_NOT_READ
from data.metadata_table import nfc

CAPTION_SUFFIXES = (".txt", ".caption")  # in order of precedence
TABLE_NAMES = tuple(f"{stem}.{end}" for stem in ("metadata", "captions") for end in ("jsonl", "csv", "parquet", "json"))
REPEATS = re.compile(r"^([1-9]\d{0,2})_(.+)$")  # kohya's names of folders
NOT_CAPTIONS = {"readme", "license", "licence", "notes", "changelog", "requirements"}
NO_LINK = "Replace the link by the file itself."


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
    def roots(self) -> list[str]:
        """The folder once links are followed; for a snapshot of the Hub's cache also the blobs that its links name."""
        root = os.path.realpath(self.folder)
        entry = next((up.parent for up in (Path(root), *Path(root).parents) if up.name == "snapshots"), None)
        return [root, str(entry / "blobs")] if entry and (entry / "blobs").is_dir() else [root]

    def is_inside(self, path: Path | str) -> bool:
        """Whether a file is in the folder once links are followed; raises OSError for a dangling link."""
        real = os.path.realpath(path, strict=True)
        return any(os.path.commonpath([root, real]) == root for root in self.roots)

    def real_name(self, path: Path) -> str | None:
        """The image that a path below a linked folder leads to, if it was found at its own place."""
        name = os.path.relpath(os.path.realpath(path), self.roots[0])
        return self.find(Path(name).as_posix())

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
            suffix = path.suffix.lower()
            plugin = next((name for name, (_, own) in PLUGINS.items() if suffix in own), "")
            install = f"Install Pillow's plugin (pip install {plugin.replace('_', '-')}), or convert"
            fix = f"{install if plugin else 'Convert'} it to PNG or JPEG."
            raise InputError(f"has an unsupported format ({suffix})", fix=fix)
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
    """List a folder and its sub-folders without opening a file. Raises InputError."""
    if not folder.is_dir():
        raise missing_folder_error(folder)
    scan = FolderScan(folder)
    entered: set[str] = set()

    def report(error: OSError) -> None:
        refused = InputError(f"cannot be listed ({error.strerror})", where=error.filename, fix="Check its permissions.")
        if Path(error.filename) == folder:
            raise refused from error
        scan.problems.append(Problem.of(refused))

    def follow(link: Path) -> bool:
        """Whether to enter a linked folder: in the same tree, where it is not found without the link."""
        if not scan.is_inside(link):
            fix = "Give that folder too, or copy it here."
            scan.problems.append(Problem(str(link), "is a link to a folder outside: it is not followed", fix, False))
            return False
        real = os.path.realpath(link)
        hidden = any(part.startswith(".") for part in Path(os.path.relpath(real, scan.roots[0])).parts)
        new = hidden and real not in entered and not Path(os.path.realpath(link.parent)).is_relative_to(real)
        entered.add(real)
        return new

    for parent, folders, files in os.walk(folder, onerror=report, followlinks=True):
        folders[:] = [name for name in sorted(folders) if not name.startswith(".")]
        folders[:] = [name for name in folders if not os.path.islink(Path(parent, name)) or follow(Path(parent, name))]
        for name in sorted(files):
            if not name.startswith("."):
                scan.add_file(Path(parent, name))
    scan.warn_of_similar_names()
    return scan


def missing_folder_error(folder: Path) -> InputError:
    if folder.exists():
        fix = "Give the folder, .zip, .tar or .parquet with the images."
        export = "Import a Label Studio export with --into NEW_FOLDER." if folder.suffix.lower() == ".json" else None
        return InputError("is a file, not a folder", where=folder, fix=export or fix)
    return InputError("no such folder", where=folder, fix="Check the path.")


def no_images_error(folder: Path) -> InputError:
    """The folder holds nothing to read; if it is a known format, how to import it."""
    fix = "Give a folder of images with metadata.jsonl, or with a .txt file for each image."
    return InputError("holds no image", where=folder, fix=fix)


def find_repeats(scan: FolderScan) -> dict[str, tuple[str, int]]:
    """The folder and repeats of each image, if all images lie in sub-folders that kohya's scripts would repeat."""
    tops = {name: name.partition("/")[0] if "/" in name else "" for name in scan.images}
    found = {top: REPEATS.match(top) for top in set(tops.values())}
    if not all(found.values()):
        return {}
    return {name: (match[2], int(match[1])) for name, top in tops.items() if (match := found[top])}

"""Captions that were written elsewhere, as a source of drafts.

Supported: a captioned folder (metadata.jsonl, metadata.csv, .txt or .caption beside the images, as taggui, kohya and
OneTrainer write it), a folder of caption files only, kohya's JSON of captions and tags, a release's captions.csv or
captions.parquet, a Hugging Face dataset on disk, a Label Studio export.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from annotation.drafts import HUMAN, Source, Suggestion
from annotation.images import ImageFile
from data import captioned_folder
from data.captioned_folder import NOT_CAPTIONS, caption_stem, scan_folder
from data.errors import InputError, Problem
from data.images import read_bytes
from data.importers import is_hf_dataset, read_hf_dataset, read_label_studio
from data.metadata_table import Row, read_caption_file, read_csv, read_jsonl

Captions = Iterator[tuple[str, Sequence[str]]]  # key of the image (SHA-256 or file name), its captions


def from_files(path: Path, problems: list[Problem]) -> Source:
    """Drafts from the captions in `path`, found by the image's content if known, else by its file name.

    What cannot be used is added to `problems`. Raises InputError if there is nothing to read.
    """
    if not path.exists():
        raise InputError("no such file or folder", where=path, fix="Check the path.")
    form, found = read_captions(path, problems)
    captions = dict(add_short_names(first_of_each(found, path, problems), problems))
    if not captions:
        first = f"; first: {problems[0]}" if problems else ""
        raise InputError(f"contains no usable caption{first}", where=path)
    content = json.dumps(sorted(captions.items()), ensure_ascii=False)

    def suggest(images: Sequence[ImageFile]) -> list[Suggestion]:
        texts = [find_caption(captions, image) for image in images]
        return [(text, HUMAN) if text else None for text in texts]

    return Source(f"{form}-{hashlib.sha256(content.encode()).hexdigest()[:8]}", suggest)


def find_caption(captions: Mapping[str, str], image: ImageFile) -> str:
    """captions: SHA-256, or file name with or without folder and suffix -> caption. Empty if there is none."""
    path = PurePosixPath(image.file_name)
    keys = (image.sha256, image.file_name, str(path.with_suffix("")), path.name, path.stem)
    return next((text for key in keys if (text := captions.get(key, ""))), "")


def first_of_each(found: Captions, path: Path, problems: list[Problem]) -> dict[str, str]:
    """The first caption of each image, as a draft is one text; the number of others is a problem."""
    captions: dict[str, str] = {}
    others: dict[str, set[str]] = {}
    for key, texts in found:
        if not texts:  # a row that only says why its image is skipped
            continue
        first = captions.setdefault(key, texts[0])
        if more := {text for text in texts if text != first}:
            others.setdefault(key, set()).update(more)
    if others:
        count, images = sum(map(len, others.values())), len(others)
        what = f"{count} further caption{'s' * (count > 1)} of {images} image{'s' * (images > 1)} left out"
        problems.append(Problem(str(path), f"{what}: a draft is one text", refused=False))
    return captions


def add_short_names(captions: Mapping[str, str], problems: list[Problem]) -> Iterator[tuple[str, str]]:
    """Every key, and the file name without folder and suffix where only one image has it."""
    uses = Counter(PurePosixPath(key).stem for key in captions)
    for key, text in captions.items():
        name = PurePosixPath(key).stem
        if uses[name] == 1:
            yield name, text
        else:
            what = f"{uses[name]} captions in different folders have this file name: each is used in its folder only"
            problems.append(Problem(key, what, "", refused=False))
        yield key, text


def read_captions(path: Path, problems: list[Problem]) -> tuple[str, Captions]:
    """The form of `path` as a word, and its captions."""
    suffix = path.suffix.lower()
    if path.is_dir():
        if is_hf_dataset(path):
            return "dataset", by_content(read_hf_dataset(path, problems))
        return read_folder(path, problems)
    if suffix in (".jsonl", ".csv"):
        table = read_jsonl(path) if suffix == ".jsonl" else read_csv(path)
        problems += [problem for problem in table.problems if problem.refused]
        return "table", from_rows(table.rows)
    if suffix == ".parquet":
        return "table", read_parquet(path)
    if suffix == ".json":
        try:
            loaded = json.loads(read_bytes(path))
        except (ValueError, RecursionError) as error:
            raise InputError(f"is not JSON ({error})", where=path) from error
        if isinstance(loaded, list):
            return "label-studio", by_content(read_label_studio(path, None, problems))
        return "kohya", read_kohya(loaded, path)
    allowed = "a folder, .json, .jsonl, .csv, .parquet"
    raise InputError(f"unknown file type ({suffix or 'no suffix'})", where=path, allowed=allowed)


def read_folder(path: Path, problems: list[Problem]) -> tuple[str, Captions]:
    """A captioned folder by the content of its images, or caption files alone by their names."""
    found = scan_folder(path)
    if not found.images and (path / "metadata.jsonl").exists():
        return read_captions(path / "metadata.jsonl", problems)
    if not found.images and not found.captions:
        raise InputError("contains neither images nor captions", where=path, fix="Give a folder that does.")
    known = set(map(caption_stem, found.images))
    alone = {name: files for name, files in found.captions.items() if name not in known}
    if not found.images:
        return "sidecars", read_sidecars(alone, problems)
    listing = captioned_folder.read_folder(path)
    problems += [problem for problem in listing.problems if problem.refused]
    with_images = ((sample.sha256, sample.captions) for sample in listing.samples)
    return "folder", chain(with_images, read_sidecars(alone, problems))


def read_sidecars(files: Mapping[str, list[Path]], problems: list[Problem]) -> Captions:
    """(name without suffix, captions) of caption files without their images."""
    for name, paths in files.items():
        if PurePosixPath(name).name.lower() in NOT_CAPTIONS:
            continue
        rows = read_caption_file(paths[0], name)
        problems += [problem for problem in rows.problems if problem.refused]
        yield from ((name, row.annotation.captions) for row in rows.rows)


def from_rows(rows: list[Row]) -> Captions:
    """A table's rows, by `sha256` if it has that column."""
    for row in rows:
        digest = (row.annotation.model_extra or {}).get("sha256")
        yield digest if isinstance(digest, str) and digest else row.annotation.file_name, row.annotation.captions


def read_parquet(path: Path) -> Captions:
    """The rows of a release's captions.parquet, or of any with file_name and text."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"is not Parquet ({str(error).splitlines()[0]})", where=path) from error
    if missing := {"file_name", "text"} - set(table.column_names):
        what = f"has no column {', '.join(sorted(missing))}"
        raise InputError(what, where=path, allowed=f"it has {', '.join(table.column_names)}")
    for row in table.to_pylist():
        if texts := not_blank([row["text"], *(row.get("texts") or [])]):
            yield str(row.get("sha256") or row["file_name"]), texts


def not_blank(values: Iterable[Any]) -> list[str]:
    return [value.strip() for value in values if isinstance(value, str) and value.strip()]


def read_kohya(loaded: Any, path: Path) -> Captions:
    """kohya's meta_cap.json and meta_clean.json: path, with or without suffix -> {"caption": ..., "tags": ...}."""
    if not isinstance(loaded, dict) or not all(isinstance(entry, dict) for entry in loaded.values()):
        fix = "Give kohya's JSON of captions, or a Label Studio export in the format JSON."
        raise InputError("is JSON of another kind", where=path, fix=fix)
    for name, entry in loaded.items():
        if texts := not_blank([entry.get("caption"), entry.get("tags")]):
            yield name.replace("\\", "/"), [" ".join(text.split()) for text in texts]


def by_content(pairs: Iterator[tuple[Any, Any]]) -> Captions:
    for image, annotation in pairs:
        content = image if isinstance(image, bytes) else read_bytes(image)
        if annotation.captions:
            yield hashlib.sha256(content).hexdigest(), annotation.captions

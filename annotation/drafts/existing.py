"""Captions that somebody has written elsewhere: captioned folders, tables, and what other programs keep.

Read are: a captioned folder (metadata.jsonl, metadata.csv, .txt or .caption beside the pictures: taggui, kohya,
OneTrainer), a folder of caption files alone, kohya's JSON of captions and tags, captions.csv and captions.parquet of an
export, a Hugging Face dataset on disk, a Label Studio export.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from annotation.drafts.files import FromFiles
from data.errors import InputError
from data.images import read_bytes
from data.problems import Problem
from data.rows import Row, read_caption_file, read_csv, read_jsonl
from data.walk import NOT_CAPTIONS, stem, walk

Found = Iterator[tuple[str, Sequence[str]]]  # key of the picture (SHA-256 or file name), its captions


def existing(source: Path, problems: list[Problem]) -> FromFiles:
    """Read `source`; what cannot be used is added to `problems`. Raises InputError if there is nothing to read."""
    if not source.exists():
        raise InputError("no such file or folder", where=source, fix="Check the path.")
    origin, found = recognised(source, problems)
    captions = dict(with_short_names(one_each(found, source, problems), problems))
    if not captions:
        first = f"; first: {problems[0]}" if problems else ""
        raise InputError(f"holds no caption that can be used{first}", where=source)
    content = json.dumps(sorted(captions.items()), ensure_ascii=False)
    return FromFiles(captions, origin, hashlib.sha256(content.encode()).hexdigest()[:8])


def one_each(found: Found, source: Path, problems: list[Problem]) -> dict[str, str]:
    """The first caption of each picture: a draft is one text. How many others there were is a problem."""
    captions: dict[str, str] = {}
    others: dict[str, set[str]] = {}
    for key, texts in found:
        if not texts:  # a row that only says why its picture is left out
            continue
        first = captions.setdefault(key, texts[0])
        if more := {text for text in texts if text != first}:
            others.setdefault(key, set()).update(more)
    if others:
        count, pictures = sum(map(len, others.values())), len(others)
        which = f"{count} further caption{'s' * (count > 1)} of {pictures} picture{'s' * (pictures > 1)}"
        problems.append(Problem(str(source), f"{which} left out: a draft is one text", refused=False))
    return captions


def recognised(source: Path, problems: list[Problem]) -> tuple[str, Found]:
    """The form of `source` in a word, and its captions."""
    from data.importers import dataset_on_disk, is_dataset, label_studio

    readers = {".jsonl": read_jsonl, ".csv": read_csv}
    suffix = source.suffix.lower()
    if source.is_dir():
        return (
            ("dataset", by_content(dataset_on_disk(source, problems)))
            if is_dataset(source)
            else folder(source, problems)
        )
    if suffix in readers:
        table = readers[suffix](source)
        problems += [problem for problem in table.problems if problem.refused]
        return "table", from_rows(table.rows)
    if suffix == ".parquet":
        return "table", parquet(source)
    if suffix == ".json":
        loaded = read_json(source)
        if isinstance(loaded, list):
            return "label-studio", by_content(label_studio(source, None, problems))
        return "kohya", kohya(loaded, source)
    allowed = "a folder, .json, .jsonl, .csv, .parquet"
    raise InputError(f"is of an unknown kind ({suffix or 'no suffix'})", where=source, allowed=allowed)


def folder(source: Path, problems: list[Problem]) -> tuple[str, Found]:
    """A captioned folder by the content of its pictures, or caption files alone by their names."""
    from data import store

    seen = walk(source)
    if not seen.pictures and (source / "metadata.jsonl").exists():
        return recognised(source / "metadata.jsonl", problems)
    if not seen.pictures and not seen.captions:
        raise InputError("holds neither pictures nor captions", where=source, fix="Give a folder that has some.")
    known = set(map(stem, seen.pictures))
    alone = {name: files for name, files in seen.captions.items() if name not in known}
    if not seen.pictures:
        return "sidecars", sidecars(alone, problems)
    listing = store.read(source)
    problems += [problem for problem in listing.problems if problem.refused]
    with_pictures = ((sample.sha256, sample.captions) for sample in listing.samples)
    return "folder", chain(with_pictures, sidecars(alone, problems))


def sidecars(files: Mapping[str, list[Path]], problems: list[Problem]) -> Found:
    """(name without suffix, caption) of caption files without their pictures."""
    for name, paths in files.items():
        if PurePosixPath(name).name.lower() in NOT_CAPTIONS:
            continue
        beside = read_caption_file(paths[0], name)
        problems += [problem for problem in beside.problems if problem.refused]
        yield from ((name, row.annotation.captions) for row in beside.rows)


def from_rows(rows: list[Row]) -> Found:
    """A table's rows, by `sha256` if it has that column."""
    for row in rows:
        digest = (row.annotation.model_extra or {}).get("sha256")
        yield digest if isinstance(digest, str) and digest else row.annotation.file_name, row.annotation.captions


def parquet(source: Path) -> Found:
    """The rows of an export's captions.parquet, or of any with file_name and text."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(source)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"is not Parquet ({str(error).splitlines()[0]})", where=source) from error
    if missing := {"file_name", "text"} - set(table.column_names):
        what = f"has no column {', '.join(sorted(missing))}"
        raise InputError(what, where=source, allowed=f"it has {', '.join(table.column_names)}")
    for row in table.to_pylist():
        if texts := written([row["text"], *(row.get("texts") or [])]):
            yield str(row.get("sha256") or row["file_name"]), texts


def written(values: Iterable[Any]) -> list[str]:
    """The texts among some values that say anything."""
    return [value.strip() for value in values if isinstance(value, str) and value.strip()]


def read_json(source: Path) -> Any:
    try:
        return json.loads(read_bytes(source))
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON ({error})", where=source) from error


def kohya(loaded: Any, source: Path) -> Found:
    """kohya's meta_cap.json and meta_clean.json: path, with or without suffix -> {"caption": ..., "tags": ...}."""
    if not isinstance(loaded, dict) or not all(isinstance(entry, dict) for entry in loaded.values()):
        fix = "Give kohya's JSON of captions, or a Label Studio export in the format JSON."
        raise InputError("is a JSON file of another kind", where=source, fix=fix)
    for path, entry in loaded.items():
        if texts := written([entry.get("caption"), entry.get("tags")]):
            yield path.replace("\\", "/"), [" ".join(text.split()) for text in texts]


def by_content(pairs: Iterator[tuple[Any, Any]]) -> Found:
    """Pictures with their annotations, as data.importers gives them, by SHA-256."""
    for picture, annotation in pairs:
        content = picture if isinstance(picture, bytes) else read_bytes(picture)
        if annotation.captions:
            yield hashlib.sha256(content).hexdigest(), annotation.captions


def with_short_names(full: Mapping[str, str], problems: list[Problem]) -> Iterator[tuple[str, str]]:
    """Every key as it came and, where only one picture has it, the file name without folder and suffix."""
    uses = Counter(PurePosixPath(key).stem for key in full)
    for key, text in full.items():
        stem = PurePosixPath(key).stem
        if uses[stem] == 1:
            yield stem, text
        else:
            what = f"{uses[stem]} captions have this file name in different folders: it is taken in its own folder only"
            problems.append(Problem(key, what, "", refused=False))
        yield key, text

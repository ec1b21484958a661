"""A release: the joined answers as a captioned folder that finetune.py trains on, with tables, lock and card.

RELEASE/
    pictures, metadata.jsonl       an imagefolder, as Hugging Face datasets and data/store.py read it
    *.txt beside the pictures      one caption a line, as kohya, OneTrainer and taggui read it
    captions.csv captions.parquet  the same rows as tables
    dataset.lock                   counts, hashes, settings
    README.md                      the card: what it is, which answer won, what was left out

The same answers, pictures and settings give the same bytes: no time, no path, no host is written.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from annotation.release.card import card
from annotation.release.join import Joined, Policy, Row
from annotation.release.tables import as_csv, write_parquet
from annotation.review.agreement import RULES, Agreement
from data import store
from data.errors import InputError, raise_all
from data.files import replaced_folder, sha256
from data.schema import Annotation
from data.walk import composed

LOCK = "dataset.lock"
CARD = "README.md"
TABLES = ("metadata.jsonl", "captions.csv", "captions.parquet")
FORMAT = 1  # of the lock


@dataclass(frozen=True)
class Forms:
    """What is written besides pictures and metadata.jsonl."""

    sidecars: bool = True
    csv: bool = True
    parquet: bool = True


@dataclass(frozen=True)
class Release:
    """A release that was written, or that had been before."""

    folder: Path
    name: str
    lock: dict[str, Any]
    new: bool


def release_name(rows: Sequence[Row]) -> str:
    """Twelve hex digits of everything that a person reads or sees: equal content, equal name."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(store.to_line(row.annotation).encode())
    return digest.hexdigest()[:12]


def export(
    joined: Joined, folder: Path, *, name: str, policy: Policy, forms: Forms, agreement: Agreement, settings_hash: str
) -> Release:
    """Write a release; `folder` must be new, or hold this very release already, which is then left as it is.

    settings_hash: of the labelling configuration, or "" where there is none. Raises InputError, and leaves no folder.
    """
    if not joined.rows:
        reasons = "; ".join(f"{reason}: {len(names)}" for reason, names in joined.left_out.items())
        raise InputError(f"there is nothing to export ({reasons or 'no answers'})", fix="Pull first: annotate.py pull")
    rows = [named(row, name) for row in joined.rows]
    check(rows, forms)
    lock = lock_of(rows, joined, name, policy, forms, settings_hash)
    if folder.exists() and any(folder.iterdir()):
        return standing(folder, lock)
    with replaced_folder(folder) as beside:
        write_rows(rows, beside, forms)
        if forms.csv:
            (beside / "captions.csv").write_text(as_csv(rows), encoding="utf-8", newline="")
        if forms.parquet:
            write_parquet(rows, beside / "captions.parquet")
        check_pictures(rows, beside)
        lock["files"] = {file: sha256(beside / file) for file in TABLES if (beside / file).exists()}
        (beside / CARD).write_text(card(rows, lock, agreement), encoding="utf-8")
        (beside / LOCK).write_text(as_text(lock), encoding="utf-8")
    return Release(folder, name, lock, new=True)


def write_rows(rows: Sequence[Row], folder: Path, forms: Forms) -> None:
    """The pictures, metadata.jsonl and the caption files, as store.write has them, into a folder of this process."""
    for row in rows:
        path = folder / row.annotation.file_name
        store.save_picture(row.picture.path, path)
        if forms.sidecars:
            lines = "".join(" ".join(caption.split()) + "\n" for caption in row.annotation.captions)
            path.with_suffix(".txt").write_text(lines, encoding="utf-8")
    table = "".join(store.to_line(row.annotation) for row in rows)
    (folder / "metadata.jsonl").write_text(table, encoding="utf-8")


def named(row: Row, release: str) -> Row:
    """The row with the name of its release."""
    values = row.annotation.model_dump(exclude_unset=True) | {"release": release}
    return replace(row, annotation=Annotation.model_validate(values))


def check(rows: Sequence[Row], forms: Forms) -> None:
    """Names that a release cannot have, all at once."""
    errors: list[InputError] = []
    beside: dict[str, str] = {}
    taken: set[str] = set()
    for row in rows:
        name = row.annotation.file_name
        try:
            store.claim_name(name, taken)
        except InputError as error:
            errors.append(error)
        stem = composed(str(PurePosixPath(name).with_suffix(""))).casefold()
        if forms.sidecars and stem in beside:
            fix = "Rename one, or leave the caption files out: --no-sidecars"
            errors.append(InputError(f"{name!r} and {beside[stem]!r} would share one caption file", fix=fix))
        if PurePosixPath(name).name.casefold() in {LOCK, CARD.casefold(), *TABLES}:
            errors.append(InputError(f"{name!r} is the name of a release's own file", fix="Rename the picture."))
        beside.setdefault(stem, name)
    raise_all(errors)


def check_pictures(rows: Sequence[Row], folder: Path) -> None:
    """What was copied is what people saw."""
    for row in rows:
        if sha256(folder / row.annotation.file_name) != row.picture.sha256:
            raise InputError("changed while it was being copied", where=row.picture.path, fix="Run the command again.")


def lock_of(
    rows: Sequence[Row], joined: Joined, name: str, policy: Policy, forms: Forms, settings_hash: str
) -> dict[str, Any]:
    """Everything that identifies a release; `files` is added once they are written."""
    captions = [caption for row in rows for caption in row.annotation.captions]
    told = asdict(policy) | {"prefer": list(joined.prefer)}
    settings = {"policy": told, "forms": asdict(forms), "labelling": settings_hash}
    return {
        "format": FORMAT,
        "release": name,
        "rule": RULES[policy.wins],
        "counts": {
            "pictures": len(rows),
            "captions": len(captions),
            "left_out": {reason: len(names) for reason, names in joined.left_out.items()},
            "types": tally(row.annotation.type for row in rows),
            "qualities": tally(row.annotation.quality for row in rows),
            "annotators": tally(row.annotation.annotator for row in rows),
        },
        "left_out": joined.left_out,
        "settings": settings,
        "settings_hash": hashed(settings),
        "captions_hash": hashed(captions),
        "pictures_hash": hashed([row.picture.sha256 for row in rows]),
        "pictures": {row.picture.sha256: row.annotation.file_name for row in rows},
    }


def tally(values: Iterator[str | None]) -> dict[str, int]:
    """How often each value comes; "" where there is none."""
    return dict(sorted(Counter(value or "" for value in values).items()))


def hashed(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def as_text(lock: dict[str, Any]) -> str:
    return json.dumps(lock, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def standing(folder: Path, lock: dict[str, Any]) -> Release:
    """The release that the folder holds, if it is this one and its tables are as they were written."""
    fix = "Give a new folder: --into FOLDER"
    old = read_lock(folder, fix)
    files = old.pop("files", {})
    if old != json.loads(as_text(lock)):
        raise InputError(f"holds release {old.get('release')!r}, made otherwise", where=folder, fix=fix)
    changed = [
        file for file, digest in files.items() if not (folder / file).exists() or sha256(folder / file) != digest
    ]
    if changed:
        raise InputError(f"holds this release, but {', '.join(changed)} was changed since", where=folder, fix=fix)
    return Release(folder, str(lock["release"]), lock | {"files": files}, new=False)


def read_lock(folder: Path, fix: str = "Give the folder of a release.") -> dict[str, Any]:
    """The lock of a release. Raises InputError if the folder is none."""
    try:
        lock = json.loads((folder / LOCK).read_text(encoding="utf-8"))
    except OSError:
        raise InputError("is no release (it has no dataset.lock)", where=folder, fix=fix) from None
    except ValueError as error:
        raise InputError(f"is not JSON ({error})", where=folder / LOCK, fix=fix) from error
    if not isinstance(lock, dict):
        raise InputError("is not a lock", where=folder / LOCK, fix=fix)
    return lock

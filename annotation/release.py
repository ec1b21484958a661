"""A release: the answers of all screens joined to a captioned folder that finetune.py trains on.

RELEASE/
    images, metadata.jsonl         an imagefolder, as Hugging Face datasets and data/captioned_folder.py read it
    *.txt beside the images        one caption per line, as kohya, OneTrainer and taggui read it
    captions.csv captions.parquet  the same rows as tables
    dataset.lock                   counts, hashes, settings
    README.md                      the dataset card

The same answers, images and settings give the same bytes: no time, path or host is written.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from annotation.agreement import WINNERS, Agreement, by_image, rank
from annotation.config import ExportOptions
from annotation.history import Answer, Answers
from annotation.images import ImageFile
from annotation.labeling_config import TRIAGE
from annotation.release_notes import CHOICES, FIELDS, LOCK, REASON, dataset_card, read_lock
from annotation.vocabulary import plural
from data import captioned_folder
from data.atomic_io import atomic_folder, file_sha256
from data.errors import InputError, check_choice, raise_all
from data.metadata_table import nfc
from data.schema import Annotation

CARD = "README.md"
TABLES = ("metadata.jsonl", "captions.csv", "captions.parquet")
FORMAT = 1  # of the lock
SOURCE = "label-studio"
POLICY = ("wins", "prefer", "others", "poor", "names")  # options that the lock records
FORMS = ("sidecars", "csv", "parquet")
COLUMNS = {"file_name": "string", "text": "string", "texts": "list"} | dict.fromkeys(FIELDS, "string")
COLUMNS |= {
    "annotator": "string", "source": "string", "seconds": "number", "corrected": "boolean", "origin": "string",
    "draft_source": "string", "sha256": "string", "release": "string",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    image: ImageFile
    annotation: Annotation


@dataclass(frozen=True)
class Joined:
    """The rows in the order of file names, and the images that were left out: reason -> file names.

    prefer: the preferred annotators, under the names that the release uses.
    """

    rows: list[Row]
    left_out: dict[str, list[str]]
    prefer: tuple[str, ...] = ()


# ---- join


def join(answers: Answers, images: Mapping[str, ImageFile], options: ExportOptions) -> Joined:
    """images: SHA-256 -> the image as it is in the folder now; captions of others are left out.

    Raises InputError for a preferred annotator without answers.
    """
    address = {pseudonym: email for email, pseudonym in answers.pseudonyms.items()}
    prefer = tuple(address.get(each, each) for each in options.prefer)
    for each in prefer:
        check_choice(each, answers.pseudonyms, what="annotator", where="--prefer")
    options = options.model_copy(update={"prefer": prefer})
    names = {} if options.names else answers.pseudonyms
    rows: list[Row] = []
    left_out: dict[str, list[str]] = defaultdict(list)
    groups = by_image(answers.all)
    for digest, group in groups.items():
        row = make_row(group, images.get(digest), options, names)
        if isinstance(row, str):
            left_out[row].append(group[-1].record.file_name)
        else:
            rows.append(row)
    left_out["not captioned"] += [image.file_name for digest, image in images.items() if digest not in groups]
    in_order = {reason: sorted(files) for reason, files in sorted(left_out.items()) if files}
    return Joined(sorted(rows, key=lambda row: row.image.file_name), in_order, tuple(names.get(p, p) for p in prefer))


def make_row(
    group: Sequence[Answer], image: ImageFile | None, options: ExportOptions, names: Mapping[str, str]
) -> Row | str:
    """The row of one image, or why it is left out."""
    captions = [answer for answer in group if answer.record.screen == "text"]
    written = [answer for answer in captions if answer.record.status == "written" and answer.text.strip()]
    if reason := reason_to_skip(group):
        return reason
    if not written:
        return "blank" if captions else "not captioned"
    if image is None:
        return "picture gone or changed"
    best, *others = rank(written, options.wins, options.prefer)
    values = caption_values(best, others if options.others else [], names) | other_values(group, options)
    if values.get("quality") == "poor" and not options.poor:
        return "poor"
    try:
        annotation = Annotation.model_validate({"file_name": image.file_name} | values | {"sha256": image.sha256})
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        return f"{detail['loc'][0]} is {detail['input']!r}"
    return Row(image, annotation)


def reason_to_skip(group: Sequence[Answer]) -> str:
    """Why annotators left an image out; empty if they did not.

    One caption is enough to keep an image that others skipped. In the triage, half of the annotators are enough to
    leave it out, by a reason or by skipping it; the reason is the most common one, of equals the first.
    """
    statuses = [answer.record.status for answer in group if answer.record.screen == "text"]
    if "skipped" in statuses and "written" not in statuses:
        return "skipped"
    triage = [answer for answer in group if answer.record.screen == TRIAGE and answer.record.status != "blank"]
    reasons = [reason for answer in triage for reason in answer.values.get(REASON, [])[:1]]
    skipped = [each for each in triage if each.values.get(REASON) or each.record.status == "skipped"]
    if not skipped or 2 * len(skipped) < len(triage):
        return ""
    return f"{REASON} {Counter(reasons).most_common(1)[0][0]}" if reasons else "skipped in the triage"


def caption_values(best: Answer, others: Sequence[Answer], names: Mapping[str, str]) -> dict[str, Any]:
    """The best caption, further ones, and their provenance."""
    record = best.record
    every = [*best.values["text"], *(text for answer in others for text in answer.values["text"])]
    texts = list(dict.fromkeys(text.strip() for text in every if text.strip()))
    values: dict[str, Any] = {"text": texts[0]} | ({"texts": texts[1:]} if texts[1:] else {})
    values |= {"annotator": names.get(record.annotator, record.annotator), "source": SOURCE}
    values |= {"seconds": round(record.seconds, 3), "corrected": best.corrected}
    values |= {"origin": record.origin} if record.origin else {}
    return values | ({"draft_source": record.draft_by} if record.draft_by else {})


def other_values(group: Sequence[Answer], options: ExportOptions) -> dict[str, Any]:
    """The fields of the other screens: for choices the majority; for texts and ties the best ranked answer."""
    values: dict[str, Any] = {}
    answers = [answer for answer in group if answer.record.screen != "text" and answer.record.status == "written"]
    for name in FIELDS:
        given = [answer for answer in answers if any(value.strip() for value in answer.values.get(name, []))]
        if not given:
            continue
        ranked = rank(given, "first" if options.wins == "first" else "newest", options.prefer)
        by_rank = [next(value for value in answer.values[name] if value.strip()) for answer in ranked]
        vote = name in CHOICES and ranked[0].record.annotator not in options.prefer
        counts = Counter(by_rank if vote else by_rank[:1])
        values[name] = max(counts, key=lambda value: (counts[value], -by_rank.index(value)))
    return values


# ---- export


def release_name(rows: Sequence[Row]) -> str:
    """Twelve hex digits of the annotations: equal content, equal name."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(captioned_folder.to_json_line(row.annotation).encode())
    return digest.hexdigest()[:12]


def export(
    joined: Joined, folder: Path, *, name: str, options: ExportOptions, agreement: Agreement, config_hash: str
) -> tuple[dict[str, Any], bool]:
    """Write a release; `folder` must be new, or contain this very release, which is then left as it is.

    Returns the lock, and whether the release was written just now.
    config_hash: of the labeling configuration, or "" if there is none. Raises InputError, and leaves no folder.
    """
    if not joined.rows:
        reasons = "; ".join(f"{reason}: {len(names)}" for reason, names in joined.left_out.items())
        raise InputError(f"there is nothing to export ({reasons or 'no answers'})", fix="Pull first: annotate.py pull")
    values = [row.annotation.model_dump(exclude_unset=True) | {"release": name} for row in joined.rows]
    rows = [Row(row.image, Annotation.model_validate(each)) for row, each in zip(joined.rows, values, strict=True)]
    check_names(rows, options)
    lock = make_lock(rows, joined, name, options, config_hash)
    if folder.exists() and any(folder.iterdir()):
        return check_existing(folder, lock), False
    with atomic_folder(folder) as temporary:
        write_rows(rows, temporary, options)
        for row in rows:  # after copying: a file may have changed since its caption was written
            if file_sha256(temporary / row.annotation.file_name) != row.image.sha256:
                raise InputError("changed while it was copied", where=row.image.path, fix="Run the command again.")
        lock["files"] = {file: file_sha256(temporary / file) for file in TABLES if (temporary / file).exists()}
        (temporary / CARD).write_text(dataset_card([row.annotation for row in rows], lock, agreement), encoding="utf-8")
        (temporary / LOCK).write_text(lock_text(lock), encoding="utf-8")
    return lock, True


def check_names(rows: Sequence[Row], options: ExportOptions) -> None:
    """Raise InputError for every file name that a release cannot have."""
    errors: list[InputError] = []
    same_stem: dict[str, str] = {}
    taken: set[str] = set()
    for row in rows:
        name = row.annotation.file_name
        try:
            captioned_folder.claim_name(name, taken)
        except InputError as error:
            errors.append(error)
        stem = nfc(str(PurePosixPath(name).with_suffix(""))).casefold()
        if options.sidecars and stem in same_stem:
            fix = "Rename one, or omit the caption files: --no-sidecars"
            errors.append(InputError(f"{name!r} and {same_stem[stem]!r} would share one caption file", fix=fix))
        if PurePosixPath(name).name.casefold() in {LOCK, CARD.casefold(), *TABLES}:
            errors.append(InputError(f"{name!r} is the name of a release's own file", fix="Rename the image."))
        same_stem.setdefault(stem, name)
    raise_all(errors)


def make_lock(
    rows: Sequence[Row], joined: Joined, name: str, options: ExportOptions, config_hash: str
) -> dict[str, Any]:
    """Everything that identifies a release; `files` is added once they are written."""
    captions = [caption for row in rows for caption in row.annotation.captions]
    policy = options.model_dump(include=set(POLICY)) | {"prefer": list(joined.prefer)}
    settings = {"policy": policy, "forms": options.model_dump(include=set(FORMS)), "labelling": config_hash}
    values = {field: Counter(getattr(row.annotation, field) or "" for row in rows) for field in (*CHOICES, "annotator")}
    return {
        "format": FORMAT,
        "release": name,
        "rule": WINNERS[options.wins],
        "counts": {
            "pictures": len(rows),
            "captions": len(captions),
            "left_out": {reason: len(names) for reason, names in joined.left_out.items()},
            **{plural(field): dict(sorted(counts.items())) for field, counts in values.items()},  # types, qualities ...
        },
        "left_out": joined.left_out,
        "settings": settings,
        "settings_hash": hash_json(settings),
        "captions_hash": hash_json(captions),
        "pictures_hash": hash_json([row.image.sha256 for row in rows]),
        "pictures": {row.image.sha256: row.annotation.file_name for row in rows},
    }


def hash_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def lock_text(lock: dict[str, Any]) -> str:
    return json.dumps(lock, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def check_existing(folder: Path, lock: dict[str, Any]) -> dict[str, Any]:
    """The lock of the release in the folder, if it is this one and its tables are unchanged. Raises InputError."""
    fix = "Give a new folder: --into FOLDER"
    old = read_lock(folder, fix)
    files = old.pop("files", {})
    if old != json.loads(lock_text(lock)):
        what = f"contains release {old.get('release')!r}, made from other answers or settings"
        raise InputError(what, where=folder, fix=fix)
    changed = [
        file for file, digest in files.items() if not (folder / file).exists() or file_sha256(folder / file) != digest
    ]
    if changed:
        what = f"contains this release, but {', '.join(changed)} changed since"
        raise InputError(what, where=folder, fix=fix)
    return lock | {"files": files}


# ---- files


def write_rows(rows: Sequence[Row], folder: Path, options: ExportOptions) -> None:
    """Images, caption files and tables."""
    for row in rows:
        captioned_folder.write_image(row.image.path, row.annotation, folder, caption_beside=options.sidecars)
    table = "".join(captioned_folder.to_json_line(row.annotation) for row in rows)
    (folder / "metadata.jsonl").write_text(table, encoding="utf-8")
    if options.csv:
        (folder / "captions.csv").write_text(to_csv(rows), encoding="utf-8", newline="")
    if options.parquet:
        write_parquet(rows, folder / "captions.parquet")


def columns_of(rows: Sequence[Row]) -> dict[str, str]:
    """Column -> its kind: those above, and a string for every other key."""
    more = {key for row in rows for key in dict(row.annotation) if key not in COLUMNS}
    return COLUMNS | dict.fromkeys(sorted(more), "string")


def to_csv(rows: Sequence[Row]) -> str:
    """A header and a row per image; `texts` as JSON, as metadata.csv is read; missing values are empty."""
    names = columns_of(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = dict(row.annotation)
        writer.writerow([csv_cell(values.get(name)) for name in names])
    return text.getvalue()


def csv_cell(value: Any) -> str:
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False) if value else ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def write_parquet(rows: Sequence[Row], path: Path) -> None:
    """One file with a row group per thousand rows; equal rows give equal bytes."""
    import pyarrow
    import pyarrow.parquet

    types = {
        "string": pyarrow.string(),
        "list": pyarrow.list_(pyarrow.string()),
        "number": pyarrow.float64(),
        "boolean": pyarrow.bool_(),
    }

    def cell(value: Any, kind: str) -> Any:
        return value if value is None or kind != "string" else str(value)

    columns = columns_of(rows)
    arrays = [
        pyarrow.array([cell(dict(row.annotation).get(name), kind) for row in rows], types[kind])
        for name, kind in columns.items()
    ]
    table = pyarrow.table(arrays, names=list(columns))
    pyarrow.parquet.write_table(table, path, compression="zstd", row_group_size=1000)

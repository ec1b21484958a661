"""A release: the answers of all screens joined to a captioned folder that finetune.py trains on.

RELEASE/
    images, metadata.jsonl         an imagefolder, as Hugging Face datasets and data/captioned_folder.py read it
    *.txt beside the images        one caption per line, as kohya, OneTrainer and taggui read it
    captions.csv captions.parquet  the same rows as tables
    dataset.lock                   counts, hashes, settings
    README.md                      the dataset card

The same answers, images and settings give the same bytes: no time, path or host is written.
"""

import csv
import difflib
import hashlib
import io
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from statistics import median
from typing import Any

from pydantic import ValidationError

from annotation.agreement import WINNERS, Agreement, by_image, rank, words
from annotation.config import ExportOptions
from annotation.history import Answer, Answers
from annotation.images import ImageFile
from annotation.labeling_config import TRIAGE
from annotation.vocabulary import plural
from data import captioned_folder
from data.atomic_io import atomic_folder, file_sha256
from data.errors import InputError, check_choice, printable, quoted, raise_all
from data.metadata_table import nfc, read_jsonl
from data.schema import Annotation

LOCK = "dataset.lock"
REASON = "skip_reason"  # a choice that keeps an image out, so that no row has it
FIELDS = tuple(
    name for name, how in Annotation.annotator_fields().items() if how["control"] != "caption" and name != REASON
)
CHOICES = tuple(name for name in FIELDS if Annotation.annotator_fields()[name]["control"] == "choice")
EXAMPLES = 5
LEFT_OUT_SHOWN = 8  # names in the card; the lock has all of them
LONGEST_DIFF = 400  # words of a caption that is compared word by word
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
    """The rows by file name, and what was left out: reason -> file names. prefer: under the names the release uses."""

    rows: list[Row]
    left_out: dict[str, list[str]]
    prefer: tuple[str, ...] = ()


# ---- join


def join(answers: Answers, images: Mapping[str, ImageFile], options: ExportOptions) -> Joined:
    """images: by SHA-256, as they are in the folder. Raises InputError for a preferred annotator without answers."""
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


def make_row(group: list[Answer], image: ImageFile | None, options: ExportOptions, names: dict[str, str]) -> Row | str:
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

    One caption keeps an image that others skipped. In the triage, half of the annotators leave it out, by a reason
    (the most common counts) or by skipping it.
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
    lines = "".join(captioned_folder.to_json_line(row.annotation) for row in rows)
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def export(
    joined: Joined, folder: Path, *, name: str, options: ExportOptions, agreement: Agreement, config_hash: str
) -> tuple[dict[str, Any], bool]:
    """Write a release: the lock, and whether it is new. `folder` must be new or hold this very release. InputError."""
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


def make_lock(rows: list[Row], joined: Joined, name: str, options: ExportOptions, config_hash: str) -> dict[str, Any]:
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


def read_lock(folder: Path, fix: str = "Give the folder of a release.") -> dict[str, Any]:
    """The lock of a release. Raises InputError if the folder is not one."""
    try:
        lock = json.loads((folder / LOCK).read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"is not a release (it has no {LOCK})", where=folder, fix=fix) from None
    except ValueError as error:
        raise InputError(f"is not JSON ({error})", where=folder / LOCK, fix=fix) from error
    if not isinstance(lock, dict):
        raise InputError("is not a lock file", where=folder / LOCK, fix=fix)
    return lock


def check_existing(folder: Path, lock: dict[str, Any]) -> dict[str, Any]:
    """The lock of the release in the folder, if it is this one and its tables are unchanged. Raises InputError."""
    fix = "Give a new folder: --into FOLDER"
    old = read_lock(folder, fix)
    files = old.pop("files", {})
    changed = [file for file, sha in files.items() if not (folder / file).exists() or file_sha256(folder / file) != sha]
    what = f"contains this release, but {', '.join(changed)} changed since" if changed else ""
    if old != json.loads(lock_text(lock)):
        what = f"contains release {old.get('release')!r}, made from other answers or settings"
    if what:
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
    writer.writerows([csv_cell(dict(row.annotation).get(name)) for name in names] for row in rows)
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

    text, columns = pyarrow.string(), columns_of(rows)
    types = {"string": text, "list": pyarrow.list_(text), "number": pyarrow.float64(), "boolean": pyarrow.bool_()}

    def cell(name: str, value: Any) -> Any:
        return value if value is None or columns[name] != "string" else str(value)

    values = [{name: cell(name, value) for name, value in row.annotation} for row in rows]
    table = pyarrow.Table.from_pylist(values, pyarrow.schema([(name, types[kind]) for name, kind in columns.items()]))
    pyarrow.parquet.write_table(table, path, compression="zstd", row_group_size=1000)


# ---- dataset card


def dataset_card(annotations: Sequence[Annotation], lock: dict[str, Any], agreement: Agreement) -> str:
    """Markdown; nothing in it depends on time or place."""
    counts, policy = lock["counts"], lock["settings"]["policy"]
    lengths = [len(words(caption)) for each in annotations for caption in each.captions]
    seconds = sum(dict(each).get("seconds") or 0.0 for each in annotations)
    how = [f"Which caption is taken if several annotators captioned an image: {lock['rule']}."]
    if policy["prefer"]:
        how.append(f"The captions of {', '.join(map(plain, policy['prefer']))} take precedence.")
    how.append(f"Other captions of the image are {'kept in `texts`' if policy['others'] else 'left out'}.")
    how.append(f"For choices ({', '.join(CHOICES)}) the majority wins, of equals the newest.")
    several = f"{agreement.images} images were captioned by several annotators; mean agreement: {agreement}."
    none = "No image was captioned by more than one annotator, so their agreement is not known."
    how.append(several if agreement.pairs else none)
    left_out: list[str] = []
    for reason, names in lock["left_out"].items():
        shown = [f"`{plain(name)}`" for name in names[:LEFT_OUT_SHOWN]] + ["..."] * (len(names) > LEFT_OUT_SHOWN)
        left_out.append(f"{plain(reason)}: {len(names)} ({', '.join(shown)})")
    parts = [
        f"# Captioned images, release {lock['release']}",
        f"{counts['pictures']} images, {counts['captions']} captions of {min(lengths)} to {max(lengths)} words "
        f"(median {median(lengths):g}), written in {seconds / 3600:.1f} hours of active work.",
        "Load it with `datasets.load_dataset(\"imagefolder\", data_dir=...)`, or train on it: "
        "`python train/finetune.py --data FOLDER`.",
        "## How it was made",
        "\n".join(f"- {line}" for line in how),
        "## Content",
        *(table for field in (*CHOICES, "annotator") for table in count_table(field, counts[plural(field)])),
        *([] if policy["names"] else ["Annotators are numbered, the same in every release of this project."]),
        "## Left out",
        "\n".join(f"- {line}" for line in left_out) or "Nothing.",
        "## Columns",
        f"`text` the caption, `texts` further ones, {', '.join(f'`{field}`' for field in FIELDS)}; provenance: "
        "`annotator`, `seconds` of active work, `origin` (`prediction`: the draft unchanged, `prediction-changed`: "
        "edited), `draft_source`, `corrected` (by a bulk edit afterwards), `sha256` of the image, `release`.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def count_table(head: str, counts: dict[str, int]) -> list[str]:
    """A Markdown table of value counts; nothing if no row has a value."""
    if set(counts) <= {""}:
        return []
    lines = [f"| {plain(value) or 'not given'} | {count} |" for value, count in counts.items()]
    return ["\n".join([f"| {head} | images |", "|---|---|", *lines])]


def plain(text: str) -> str:
    """A value that cannot break out of its line or its cell."""
    return printable(text).replace("`", "'").replace("|", "/").replace("<", "(").replace(">", ")")


# ---- changes


@dataclass(frozen=True)
class Version:
    """A release on disk: SHA-256 -> row."""

    name: str
    rule: str
    rows: Mapping[str, Annotation]


def read_release(folder: Path) -> Version:
    """Raises InputError if the folder is not a release."""
    if not folder.is_dir():
        raise InputError("no such folder", where=folder, fix="Give the folder of a release.")
    lock = read_lock(folder)
    rows = [row.annotation for row in read_jsonl(folder / "metadata.jsonl").rows]
    by_sha256 = {str((row.model_extra or {}).get("sha256")): row for row in rows}
    if len(by_sha256) != lock.get("counts", {}).get("pictures"):
        raise InputError("does not match the rows of the release", where=folder / LOCK, fix="Export it again.")
    return Version(str(lock["release"]), str(lock["rule"]), by_sha256)


def describe_changes(old: Version, new: Version) -> list[str]:
    """The differences as lines, the largest first; the first line says how much is unchanged."""
    pairs = [(old.rows[sha256], new.rows[sha256]) for sha256 in new.rows if sha256 in old.rows]
    same = sum(a.captions == b.captions for a, b in pairs)
    names = [f"{a.file_name} -> {b.file_name}" for a, b in pairs if a.file_name != b.file_name]
    return [
        f"{old.name} -> {new.name}: {len(old.rows)} -> {len(new.rows)} images, {same} with the same captions",
        *list_line("added", [row.file_name for sha256, row in new.rows.items() if sha256 not in old.rows]),
        *list_line("removed", [row.file_name for sha256, row in old.rows.items() if sha256 not in new.rows]),
        *list_line("renamed", names),
        *caption_changes([(a, b) for a, b in pairs if a.captions != b.captions]),
        *field_changes(pairs),
        *vocabulary_changes(old, new),
        *([f"another caption is taken: {old.rule} -> {new.rule}"] if old.rule != new.rule else []),
    ]


def list_line(what: str, names: Sequence[str]) -> list[str]:
    more = f", and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else ""
    return [f"{what}: {len(names)} ({', '.join(map(printable, sorted(names)[:EXAMPLES]))}{more})"] if names else []


def caption_changes(pairs: Sequence[tuple[Annotation, Annotation]]) -> list[str]:
    """How many captions changed, the most common replacements, and one example."""
    if not pairs:
        return []
    swaps = Counter(swap for a, b in pairs for swap in replacements(a.text, b.text))
    frequent = swaps.most_common(EXAMPLES)
    common = [f"{quoted(old)} -> {quoted(new)} in {count}" for (old, new), count in frequent if count > 1]
    suffix = f"; most often {', '.join(common)}" if common else ""
    first, second = min(pairs, key=lambda pair: pair[1].file_name)
    example = f"    {printable(second.file_name)}: {quoted(first.text)} -> {quoted(second.text)}"
    return [f"captions changed: {len(pairs)}{suffix}", example]


def replacements(old: str, new: str) -> set[tuple[str, str]]:
    a, b = words(old)[:LONGEST_DIFF], words(new)[:LONGEST_DIFF]
    blocks = difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    return {(" ".join(a[i:j]), " ".join(b[k:m])) for kind, i, j, k, m in blocks if kind == "replace"}


def field_changes(pairs: Sequence[tuple[Annotation, Annotation]]) -> list[str]:
    lines: list[str] = []
    for name in FIELDS:
        values = [(getattr(a, name), getattr(b, name)) for a, b in pairs]
        moves = Counter(f"{old or 'nothing'} -> {new or 'nothing'}" for old, new in values if old != new)
        listed = ", ".join(f"{printable(move)} ({count})" for move, count in moves.most_common(EXAMPLES))
        lines += [f"{name} changed: {moves.total()} ({listed})"] if moves else []
    return lines


def vocabulary_changes(old: Version, new: Version) -> list[str]:
    before, after = (
        {word for row in version.rows.values() for caption in row.captions for word in words(caption)}
        for version in (old, new)
    )
    lines = list_line("new words", sorted(after - before)) + list_line("words gone", sorted(before - after))
    lengths = [median(len(words(row.text)) for row in version.rows.values()) for version in (old, new) if version.rows]
    if len(lengths) == 2 and lengths[0] != lengths[1]:
        lines.append(f"median length: {lengths[0]:g} -> {lengths[1]:g} words")
    return lines

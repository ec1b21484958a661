"""What a release says about itself: the fields it has, its dataset card, and the changes since an earlier release."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from annotation.agreement import Agreement, words
from annotation.vocabulary import plural
from data.errors import InputError, printable, quoted
from data.metadata_table import read_jsonl
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
    how.append(agreement_line(agreement))
    left_out: list[str] = []
    for reason, names in lock["left_out"].items():
        shown = ", ".join(f"`{plain(name)}`" for name in names[:LEFT_OUT_SHOWN])
        more = ", ..." if len(names) > LEFT_OUT_SHOWN else ""
        left_out.append(f"{plain(reason)}: {len(names)} ({shown}{more})")
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


def agreement_line(agreement: Agreement) -> str:
    if not agreement.pairs:
        return "No image was captioned by more than one annotator, so their agreement is not known."
    scores = f"token F1 {agreement.token_f1:.2f}, ROUGE-L {agreement.rouge_l:.2f}"
    return f"{agreement.images} images were captioned by several annotators; mean agreement: {scores}."


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
    if not names:
        return []
    more = f", and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else ""
    return [f"{what}: {len(names)} ({', '.join(map(printable, sorted(names)[:EXAMPLES]))}{more})"]


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
        moves = Counter((str(old or "nothing"), str(new or "nothing")) for old, new in values if old != new)
        listed = ", ".join(
            f"{printable(old)} -> {printable(new)} ({n})" for (old, new), n in moves.most_common(EXAMPLES)
        )
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

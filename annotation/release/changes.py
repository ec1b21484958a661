"""What changed from one release to the next, in words."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from annotation.release.export import LOCK, read_lock
from annotation.review.likeness import words
from data.errors import InputError, show
from data.problems import quoted
from data.rows import read_jsonl
from data.schema import Annotation

MANY = 5  # examples of anything
MOST_WORDS = 400  # of a caption that is compared word by word


@dataclass(frozen=True)
class Version:
    """A release as it lies on the disk: SHA-256 -> row."""

    name: str
    rule: str
    rows: Mapping[str, Annotation]


def read_release(folder: Path) -> Version:
    """Raises InputError if the folder is no release."""
    if not folder.is_dir():
        raise InputError("no such folder", where=folder, fix="Give the folder of a release.")
    lock = read_lock(folder)
    rows = [row.annotation for row in read_jsonl(folder / "metadata.jsonl").rows]
    keyed = {str((row.model_extra or {}).get("sha256")): row for row in rows}
    if len(keyed) != lock.get("counts", {}).get("pictures"):
        raise InputError("its rows are not those that its lock tells of", where=folder / LOCK, fix="Export it again.")
    return Version(str(lock["release"]), str(lock["rule"]), keyed)


def in_words(old: Version, new: Version) -> list[str]:
    """The differences as lines, the largest first; the first line says how much stayed."""
    both = [sha256 for sha256 in new.rows if sha256 in old.rows]
    same = [sha256 for sha256 in both if old.rows[sha256].captions == new.rows[sha256].captions]
    head = f"{old.name} -> {new.name}: {len(old.rows)} -> {len(new.rows)} pictures, {len(same)} with the same captions"
    pairs = [(old.rows[sha256], new.rows[sha256]) for sha256 in both]
    return [
        head,
        *list_line("added", [new.rows[sha256].file_name for sha256 in new.rows if sha256 not in old.rows]),
        *list_line("removed", [old.rows[sha256].file_name for sha256 in old.rows if sha256 not in new.rows]),
        *renamed(pairs),
        *captions_changed([(a, b) for a, b in pairs if a.captions != b.captions]),
        *fields_changed(pairs),
        *vocabulary_changed(old, new),
        *([f"another caption wins: {old.rule} -> {new.rule}"] if old.rule != new.rule else []),
    ]


def list_line(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f", and {len(names) - MANY} more" if len(names) > MANY else ""
    return [f"{what}: {len(names)} ({', '.join(map(show, sorted(names)[:MANY]))}{more})"]


def renamed(pairs: Sequence[tuple[Annotation, Annotation]]) -> list[str]:
    names = [f"{a.file_name} -> {b.file_name}" for a, b in pairs if a.file_name != b.file_name]
    return list_line("renamed", names)


def captions_changed(pairs: Sequence[tuple[Annotation, Annotation]]) -> list[str]:
    """How many captions changed, the commonest replacements, and one example."""
    if not pairs:
        return []
    swaps = Counter(swap for a, b in pairs for swap in replacements(a.text, b.text))
    common = [
        f"{quoted(old)} -> {quoted(new)} in {count}" for (old, new), count in swaps.most_common(MANY) if count > 1
    ]
    often = f"; most often {', '.join(common)}" if common else ""
    first, second = min(pairs, key=lambda pair: pair[1].file_name)
    example = f"    {show(second.file_name)}: {quoted(first.text)} -> {quoted(second.text)}"
    return [f"captions changed: {len(pairs)}{often}", example]


def replacements(old: str, new: str) -> set[tuple[str, str]]:
    """The runs of words of `old` that others took the place of."""
    a, b = words(old)[:MOST_WORDS], words(new)[:MOST_WORDS]
    blocks = difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    return {(" ".join(a[i:j]), " ".join(b[k:m])) for kind, i, j, k, m in blocks if kind == "replace"}


def fields_changed(pairs: Sequence[tuple[Annotation, Annotation]]) -> list[str]:
    """Choices and texts beside the caption: which values became which."""
    lines: list[str] = []
    for name in ("type", "name", "quality"):
        moves = Counter(
            (str(getattr(a, name) or "nothing"), str(getattr(b, name) or "nothing"))
            for a, b in pairs
            if getattr(a, name) != getattr(b, name)
        )
        told = ", ".join(f"{show(old)} -> {show(new)} ({count})" for (old, new), count in moves.most_common(MANY))
        lines += [f"{name} changed: {moves.total()} ({told})"] if moves else []
    return lines


def vocabulary_changed(old: Version, new: Version) -> list[str]:
    """Words that came and went, and the median length."""
    before, after = vocabulary(old), vocabulary(new)
    lines = list_line("new words", [word for word in after if word not in before])
    lines += list_line("words gone", [word for word in before if word not in after])
    lengths = [median(len(words(row.text)) for row in version.rows.values()) for version in (old, new) if version.rows]
    if len(lengths) == 2 and lengths[0] != lengths[1]:
        lines.append(f"median length: {lengths[0]:g} -> {lengths[1]:g} words")
    return lines


def vocabulary(version: Version) -> set[str]:
    return {word for row in version.rows.values() for caption in row.captions for word in words(caption)}

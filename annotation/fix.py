"""Bulk edits of captions: computed, previewed, stored beside the history, and undone."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from annotation.agreement import whole_word
from annotation.config import FixOptions
from annotation.history import Answer, Answers, Correction
from annotation.vocabulary import article, plural
from data.errors import InputError, printable

LONGEST_DIFF = 400  # words of a caption that is compared word by word; the time grows with the square
LONGEST_SHOWN = 4000  # characters


@dataclass(frozen=True)
class Edit:
    description: str
    apply: Callable[[str], str]


# ---- edits


def edits_of(options: FixOptions) -> list[Edit]:
    """The requested edits. Raises InputError if there are none, or an option lacks its partner."""
    pairs = (("--find", options.find, "--replace", options.replace), ("--rename", options.rename, "--to", options.to))
    for first, value, second, partner in pairs:
        if (value is None) != (partner is None):
            missing = second if partner is None else first
            raise InputError(f"{first} and {second} belong together", where=missing, fix=f"Give {missing} too.")
    edits: list[Edit] = []
    if options.find is not None and options.replace is not None:
        edits.append(replace_text(options.find, options.replace, regex=options.regex))
    if options.rename is not None and options.to is not None:
        if not options.rename.strip() or not options.to.strip():
            raise InputError("is empty", where="--rename, --to", fix="Give both terms.")
        edits.append(rename_term(options.rename.strip(), options.to.strip()))
    if options.prefix or options.suffix:
        edits.append(surround(options.prefix, options.suffix))
    if not edits and not options.undo:
        raise InputError("nothing to do", allowed="--find, --rename, --prefix, --suffix, --undo", fix="See --help.")
    if edits and options.undo:
        raise InputError("--undo cannot be combined with edits", where="--undo", fix="Undo first, then edit.")
    return edits


def replace_text(find: str, replacement: str, *, regex: bool = False) -> Edit:
    """Find and replace. Raises InputError for an empty text, or an invalid or always matching expression."""
    if not find:
        raise InputError("is empty", where="--find", fix="Give the text to find.")
    if not regex:
        return Edit(f"replace {find!r} by {replacement!r}", lambda text: text.replace(find, replacement))
    try:
        pattern = re.compile(find)
    except re.error as error:
        what = f"{find!r} is not a regular expression ({error})"
        raise InputError(what, where="--find", fix="Correct it.") from None
    if pattern.match(""):
        fix = "Write + instead of *, or make a part of it mandatory."
        raise InputError(f"{find!r} matches the empty text, so everywhere", where="--find", fix=fix)
    try:
        pattern.sub(replacement, "")  # parses the template even where nothing matches
    except (re.error, IndexError) as error:
        what = f"{replacement!r} does not fit --find ({error})"
        raise InputError(what, where="--replace", fix="Correct it.") from None
    return Edit(f"replace matches of {find!r} by {replacement!r}", lambda text: pattern.sub(replacement, text))


def surround(prefix: str, suffix: str = "") -> Edit:
    """Add text before and after, unless it is there already."""

    def apply(text: str) -> str:
        before = "" if text.startswith(prefix) else prefix
        return before + text + ("" if text.endswith(suffix) else suffix)

    parts = [f"begin with {prefix!r}"] * bool(prefix) + [f"end with {suffix!r}"] * bool(suffix)
    return Edit(" and ".join(parts), apply)


def rename_term(old: str, new: str) -> Edit:
    """One term for another as a whole word, singular and plural, keeping case and adjusting the article before it."""
    forms = {old.lower(): new, plural(old.lower()): plural(new)}
    terms = "|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))
    pattern = re.compile(rf"(?<![\w'’-])(?:(an?)(\s+))?({terms})(?![\w'’-])", re.IGNORECASE)

    def renamed(match: re.Match[str]) -> str:
        before, space, term = match.groups()
        replacement = match_case(term, forms[term.lower()])
        if before is None:
            return replacement
        keep = article(term) != before.lower()
        return f"{before if keep else match_case(before, article(replacement))}{space}{replacement}"

    return Edit(f"rename {old!r} to {new!r}", lambda text: pattern.sub(renamed, text))


def match_case(old: str, new: str) -> str:
    """PHOTO -> PICTURE, Photo -> Picture, photo -> unchanged."""
    if old.isupper() and len(old) > 1:
        return new.upper()
    return new[:1].upper() + new[1:] if old[:1].isupper() else new


# ---- corrections


def make_corrections(
    edits: Sequence[Edit], answers: Answers, past: Sequence[Correction], options: FixOptions
) -> list[Correction]:
    """A correction for each selected caption that the edits change. Raises InputError if one would become empty."""
    corrections: list[Correction] = []
    why = "; ".join(edit.description for edit in edits)
    for answer in answers.captions():
        old = answer.values["text"]
        new = [apply_all(edits, text) if is_selected(answer, text, options) else text for text in old]
        if new == old:
            continue
        if any(not text.strip() for text in new):
            where = printable(answer.record.file_name)
            raise InputError("the caption would become empty", where=where, fix="Select fewer, e.g. with --file.")
        corrections.append(correction(answer, new, past, why))
    return corrections


def apply_all(edits: Iterable[Edit], text: str) -> str:
    for edit in edits:
        text = edit.apply(text)
    return text


def is_selected(answer: Answer, text: str, options: FixOptions) -> bool:
    """Whether a caption passes --having, --without, --file and --annotator."""
    return (
        (not options.having or whole_word(options.having).search(text) is not None)
        and (not options.without or whole_word(options.without).search(text) is None)
        and fnmatchcase(answer.record.file_name, options.file)
        and options.annotator in ("", answer.record.annotator)
    )


def correction(
    answer: Answer, new: list[str], past: Sequence[Correction], why: str, undoes: int | None = None
) -> Correction:
    """A correction of an answer's current caption, in the batch after `past`."""
    record = answer.record
    return Correction(
        batch=max((each.batch for each in past), default=0) + 1,
        sha256=record.sha256,
        file_name=record.file_name,
        screen=record.screen,
        annotation=record.annotation,
        field="text",
        version=record.updated,
        old=answer.values["text"],
        new=new,
        why=why,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        undoes=undoes,
    )


def undo(answers: Answers, past: Sequence[Correction]) -> tuple[list[Correction], list[Correction]]:
    """Undo the last batch that is neither undone nor an undo: corrections, and those too late. Raises InputError."""
    batches = {each.batch for each in past if each.undoes is None} - {each.undoes for each in past}
    if not batches:
        raise InputError("there is nothing to undo", where="--undo", fix="Only --apply makes corrections.")
    current = {answer.record.key: answer for answer in answers.all}
    undone: list[Correction] = []
    late: list[Correction] = []
    for each in past:
        if each.batch != max(batches):
            continue
        answer = current.get(each.key)
        if answer is None or answer.values.get(each.field) != each.new:
            late.append(each)
        else:
            undone.append(correction(answer, each.old, past, f"undo of {each.batch}: {each.why}", each.batch))
    return undone, late


# ---- preview


def preview(corrections: Iterable[Correction]) -> Iterator[str]:
    """Each correction as lines: the file, the old text, the new one, with the differences marked."""
    for each in corrections:
        yield printable(each.file_name)
        for old, new in zip(each.old, each.new, strict=True):
            if old != new:
                yield from diff(printable(old), printable(new))


def diff(old: str, new: str) -> list[str]:
    """Two texts below each other, differences in brackets: [-removed-] and {+added+}."""
    before, after = old.split(" "), new.split(" ")
    if max(len(before), len(after)) > LONGEST_DIFF or max(len(old), len(new)) > LONGEST_SHOWN:
        return [f"  - {old[:LONGEST_SHOWN]} ...", f"  + {new[:LONGEST_SHOWN]} ..."]
    removed: list[str] = []
    added: list[str] = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        lost, won = " ".join(before[i:j]), " ".join(after[k:m])
        removed.append(lost if kind == "equal" or not lost else f"[-{lost}-]")
        added.append(won if kind == "equal" or not won else f"{{+{won}+}}")
    return [f"  - {' '.join(filter(None, removed))}", f"  + {' '.join(filter(None, added))}"]

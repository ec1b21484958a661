"""Bulk corrections of captions: worked out, shown one by one, stored beside the history, and taken back again."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from annotation.corrections import Answer, Answers, Correction
from annotation.review.wording import whole_word
from data.errors import InputError, show

MOST_WORDS = 400  # of a caption that is compared word by word; the time grows with the square
MOST_LETTERS = 4000  # of a caption that is shown

Deliver = Callable[[Sequence[Correction]], Sequence[Correction] | None]
"""Takes corrections to the server and returns those it did not take, or None if it cannot be asked now. It must read
each answer first and leave it alone if its text is no longer `old`: people go on working all the time."""


@dataclass(frozen=True)
class Choice:
    """Which captions are corrected: those that pass all of it."""

    having: str = ""  # a word or phrase
    without: str = ""  # likewise
    file: str = "*"  # pattern of the file name
    annotator: str = ""

    def takes(self, answer: Answer, text: str) -> bool:
        record = answer.record
        return (
            (not self.having or whole_word(self.having).search(text) is not None)
            and (not self.without or whole_word(self.without).search(text) is None)
            and fnmatchcase(record.file_name, self.file)
            and self.annotator in ("", record.annotator)
        )


def corrections_by(
    edit: Callable[[str], str], answers: Answers, *, batch: int, choice: Choice, why: str, made: str
) -> Iterator[Correction]:
    """A correction for each written caption that `edit` changes. One that would leave nothing is refused."""
    for answer in answers.captions():
        old = answer.values["text"]
        new = [edit(text) if choice.takes(answer, text) else text for text in old]
        if new == old:
            continue
        if any(not text.strip() for text in new):
            file = show(answer.record.file_name)
            raise InputError("nothing would be left of its caption", where=file, fix="Narrow it down, e.g. --file.")
        yield correction(answer, new, batch=batch, why=why, made=made)


def correction(answer: Answer, new: list[str], *, batch: int, why: str, made: str) -> Correction:
    """The correction of an answer's caption as it stands now."""
    record = answer.record
    return Correction(
        batch=batch,
        sha256=record.sha256,
        file_name=record.file_name,
        screen=record.screen,
        annotation=record.annotation,
        field="text",
        version=record.updated,
        old=answer.values["text"],
        new=new,
        why=why,
        made=made,
    )


def next_batch(corrections: Sequence[Correction]) -> int:
    return max((each.batch for each in corrections), default=0) + 1


def last_standing(corrections: Sequence[Correction]) -> int:
    """The newest batch that was not taken back yet and takes nothing back itself. InputError if there is none."""
    undone = {each.undoes for each in corrections}
    left = {each.batch for each in corrections if each.undoes is None} - undone
    if not left:
        raise InputError("there is nothing to take back", where="--undo", fix="Only --apply makes corrections.")
    return max(left)


@dataclass(frozen=True)
class Undo:
    """A batch taken back: new corrections, and those whose caption somebody has changed since."""

    batch: int
    back: list[Correction]
    late: list[Correction]


def undo(answers: Answers, corrections: Sequence[Correction], *, made: str) -> Undo:
    """Take back the last batch, wherever its text still stands."""
    batch = last_standing(corrections)
    now = {(answer.record.screen, answer.record.annotation): answer for answer in answers.all}
    back: list[Correction] = []
    late: list[Correction] = []
    for each in corrections:
        if each.batch != batch:
            continue
        answer = now.get((each.screen, each.annotation))
        if answer is None or answer.values.get(each.field) != each.new:
            late.append(each)
            continue
        why = f"undo of {each.batch}: {each.why}"
        taken = correction(answer, each.old, batch=next_batch(corrections), why=why, made=made)
        back.append(replace(taken, undoes=each.batch))
    return Undo(batch, back, late)


def preview(corrections: Iterable[Correction]) -> Iterator[str]:
    """Each correction as lines: file and author, the old text, the new one, and marks under what differs."""
    for each in corrections:
        yield show(each.file_name)
        for old, new in zip(each.old, each.new, strict=True):
            if old != new:
                yield from difference(show(old), show(new))


def difference(old: str, new: str) -> list[str]:
    """Two texts below each other, what differs in brackets: [-gone-] and {+come+}."""
    before, after = old.split(" "), new.split(" ")
    if max(len(before), len(after)) > MOST_WORDS or max(len(old), len(new)) > MOST_LETTERS:
        return [f"  - {old[:MOST_LETTERS]} ...", f"  + {new[:MOST_LETTERS]} ..."]
    gone: list[str] = []
    come: list[str] = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        lost, won = " ".join(before[i:j]), " ".join(after[k:m])
        gone.append(lost if kind == "equal" or not lost else f"[-{lost}-]")
        come.append(won if kind == "equal" or not won else f"{{+{won}+}}")
    return [f"  - {' '.join(filter(None, gone))}", f"  + {' '.join(filter(None, come))}"]

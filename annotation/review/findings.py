"""What checks look at and what they say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from annotation.corrections import Answer, Answers
from data.errors import InputError, show

LONGEST_SHOWN = 200  # characters of a caption on the terminal; the JSON has all of it


@dataclass(frozen=True)
class Caption:
    """One caption of one picture by one person, and the picture's type if the triage has told it."""

    sha256: str
    file_name: str
    text: str
    annotator: str
    annotation: int
    type: str | None = None


@dataclass(frozen=True)
class Finding:
    """One thing that a check holds against one caption."""

    rule: str
    caption: Caption
    what: str
    fix: str

    def fields(self) -> dict[str, Any]:
        """For a program."""
        return {"rule": self.rule, **asdict(self.caption), "what": self.what, "fix": self.fix}

    def __str__(self) -> str:
        text = self.caption.text
        shown = text.strip() if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
        line = str(InputError(f"{self.rule}: {self.what}", where=self.caption.file_name, fix=self.fix))
        return show(line) + f"\n    {show(shown) or '(blank)'}"


class Rule(Protocol):
    """A check. Its name is how findings are filtered on the server and switched off."""

    @property
    def name(self) -> str: ...

    def find(self, captions: Sequence[Caption]) -> Iterator[Finding]: ...


def captions_of(answers: Answers, types: dict[str, str]) -> list[Caption]:
    """Every caption that a person wrote or left blank; types: sha256 -> the picture's type, where it is known."""
    written = (
        answer
        for answer in answers.all
        if answer.record.screen == "text" and answer.record.status in ("written", "blank")
    )
    return [caption for answer in written for caption in captions_in(answer, types)]


def captions_in(answer: Answer, types: dict[str, str]) -> Iterator[Caption]:
    """Each text of one answer; a blank answer is one empty caption."""
    record = answer.record
    for text in answer.values.get("text") or [""]:
        kind = types.get(record.sha256)
        yield Caption(record.sha256, record.file_name, text, record.annotator, record.annotation, kind)


def per_picture(findings: Iterable[Finding], captions: Iterable[Caption]) -> dict[str, str]:
    """sha256 -> the names of its findings, "" where there is none: the task data `lint` that the server filters by."""
    rules: dict[str, set[str]] = {caption.sha256: set() for caption in captions}
    for finding in findings:
        rules[finding.caption.sha256].add(finding.rule)
    return {sha256: " ".join(sorted(names)) for sha256, names in rules.items()}

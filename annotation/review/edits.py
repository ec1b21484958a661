"""Ways to change a text: find and replace, a regular expression, a prefix, a suffix, one term for another."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from annotation.review.plurals import article, plural
from data.errors import InputError


class Edit(Protocol):
    """Text in, text out. `str()` of it says in words what it does."""

    def __call__(self, text: str) -> str: ...


@dataclass(frozen=True)
class Replace:
    """Every occurrence, as it is written."""

    old: str
    new: str

    def __call__(self, text: str) -> str:
        return text.replace(self.old, self.new)

    def __str__(self) -> str:
        return f"replace {self.old!r} by {self.new!r}"


@dataclass(frozen=True)
class Pattern:
    """Every match of a regular expression; `new` may name its groups (\\1)."""

    old: re.Pattern[str]
    new: str

    def __call__(self, text: str) -> str:
        return self.old.sub(self.new, text)

    def __str__(self) -> str:
        return f"replace matches of {self.old.pattern!r} by {self.new!r}"


@dataclass(frozen=True)
class Around:
    """Text put before and after, where it does not stand there already."""

    prefix: str = ""
    suffix: str = ""

    def __call__(self, text: str) -> str:
        before = "" if text.startswith(self.prefix) else self.prefix
        return before + text + ("" if text.endswith(self.suffix) else self.suffix)

    def __str__(self) -> str:
        parts = [f"begin with {self.prefix!r}"] if self.prefix else []
        return " and ".join(parts + ([f"end with {self.suffix!r}"] if self.suffix else []))


@dataclass(frozen=True)
class Rename:
    """One term for another as a whole word, singular and plural, with its case and the article before it."""

    old: str
    new: str

    def __call__(self, text: str) -> str:
        forms = {self.old.lower(): self.new, plural(self.old.lower()): plural(self.new)}
        words = "|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))
        pattern = rf"(?<![\w'’-])(?:(an?)(\s+))?({words})(?![\w'’-])"
        return re.sub(pattern, lambda match: renamed(match, forms), text, flags=re.IGNORECASE)

    def __str__(self) -> str:
        return f"rename {self.old!r} to {self.new!r}"


def renamed(match: re.Match[str], forms: dict[str, str]) -> str:
    """The new term in the case of the old one; `a` becomes `an` where that is needed."""
    before, space, old = match.groups()
    new = in_case_of(old, forms[old.lower()])
    if before is None:
        return new
    right = before if article(old) != before.lower() else in_case_of(before, article(new))
    return f"{right}{space}{new}"


def in_case_of(old: str, new: str) -> str:
    """PHOTO -> PICTURE, Photo -> Picture, photo -> as it is given."""
    if old.isupper() and len(old) > 1:
        return new.upper()
    return new[:1].upper() + new[1:] if old[:1].isupper() else new


def compiled(find: str) -> re.Pattern[str]:
    """A regular expression, or InputError with the place of the mistake."""
    try:
        return re.compile(find)
    except re.error as error:
        where = "--find"
        raise InputError(f"{find!r} is no regular expression ({error})", where=where, fix="Mend it.") from None


def replacing(find: str, replace: str, *, regex: bool) -> Edit:
    """Find and replace, after a look at both."""
    if not find:
        raise InputError("is empty", where="--find", fix="Give the text to look for.")
    if not regex:
        return Replace(find, replace)
    pattern = compiled(find)
    if pattern.match(""):
        fix = "Write + instead of *, or make a part of it required."
        raise InputError(f"{find!r} matches nothing at all, so everywhere", where="--find", fix=fix)
    try:
        pattern.sub(replace, "")  # reads the template even where nothing matches
    except (re.error, IndexError) as error:
        raise InputError(f"{replace!r} does not fit --find ({error})", where="--replace", fix="Mend it.") from None
    return Pattern(pattern, replace)


def in_turn(edits: list[Edit]) -> Callable[[str], str]:
    """All edits, one after the other."""

    def edit(text: str) -> str:
        for each in edits:
            text = each(text)
        return text

    return edit

"""Checks of one caption by itself: length, blanks, characters, banned words, trigger word and type."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from annotation.review.findings import Caption, Finding
from data.captions import count_tokens
from data.problems import quoted
from data.rows import is_strange

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOST_SHOWN = 60  # characters of what a cut caption loses
BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # marks that turn the order of what is shown
MARKUP = re.compile(r"</?[a-zA-Z][^<>]{0,80}>|&(?:[a-z]{2,8}|#\d{1,6});")


@dataclass(frozen=True)
class Tokens:
    """More tokens than the text encoder reads, or nearly as many. near: how many below the limit is near."""

    tokenizer: PreTrainedTokenizerBase
    near: int = 5
    name: str = "tokens"

    def find(self, captions: Sequence[Caption]) -> Iterator[Finding]:
        report = count_tokens([caption.text for caption in captions], self.tokenizer)
        lost = {cut.where: cut.lost_text for cut in report.cut}
        for number, (caption, count) in enumerate(zip(captions, report.counts, strict=True), 1):
            of = f"of {report.limit} (tokenizer {report.tokenizer})"
            if count > report.limit:
                words = lost[f"caption {number}"]
                told = quoted(words if len(words) <= LOST_SHOWN else f"{words[:LOST_SHOWN]}...")
                yield Finding(self.name, caption, f"has {count} tokens {of}; not read: {told}", "Shorten it.")
            elif count > report.limit - self.near:
                yield Finding(self.name, caption, f"is near the limit: {count} tokens {of}", "Shorten it if you can.")


@dataclass(frozen=True)
class Blank:
    """Nothing but white space: the server takes it, training cannot."""

    name: str = "blank"

    def find(self, captions: Sequence[Caption]) -> Iterator[Finding]:
        for caption in captions:
            if not caption.text.strip():
                yield Finding(self.name, caption, "is blank and counts as open", "Write it, or skip the picture.")


@dataclass(frozen=True)
class Characters:
    """Control characters, direction marks, failed decoding, and what looks like HTML."""

    name: str = "characters"

    def find(self, captions: Sequence[Caption]) -> Iterator[Finding]:
        for caption in captions:
            odd = sorted({char for char in caption.text if is_strange(char) or char in BIDI})
            if odd:
                named = ", ".join(f"U+{ord(char):04X} {unicodedata.name(char, 'control')}" for char in odd[:5])
                yield Finding(self.name, caption, f"holds characters that nobody types ({named})", "Type it again.")
            if markup := MARKUP.search(caption.text):
                what = f"holds what looks like HTML ({quoted(markup[0])})"
                yield Finding(self.name, caption, what, "Write plain words.")


@dataclass(frozen=True)
class Banned:
    """Words and phrases that the set does without, as whole words, whatever their case."""

    words: tuple[str, ...]
    name: str = "banned"

    def find(self, captions: Sequence[Caption]) -> Iterator[Finding]:
        patterns = {word: whole_word(word) for word in self.words}
        for caption in captions:
            found = [word for word, pattern in patterns.items() if pattern.search(caption.text)]
            if found:
                what = f"holds {', '.join(map(quoted, found))}, which this set does without"
                yield Finding(self.name, caption, what, "Say it in other words.")


@dataclass(frozen=True)
class Trigger:
    """The word that every caption must have, so that it comes to stand for the style."""

    word: str
    name: str = "trigger"

    def find(self, captions: Sequence[Caption]) -> Iterator[Finding]:
        pattern = whole_word(self.word)
        for caption in captions:
            if caption.text.strip() and not pattern.search(caption.text):
                fix = f'Add it, or: annotate.py fix --prefix "{self.word}, " --without "{self.word}"'
                yield Finding(self.name, caption, f"lacks the trigger word {quoted(self.word)}", fix)


@dataclass(frozen=True)
class TypeNamed:
    """The picture's type must be named, and no other one called its type. types: all there are."""

    types: tuple[str, ...]
    name: str = "type"

    def find(self, captions: Sequence[Caption]) -> Iterator[Finding]:
        patterns = {kind: whole_word(kind) for kind in self.types}
        for caption in captions:
            if not caption.text.strip():
                continue
            said = [kind for kind, pattern in patterns.items() if pattern.search(caption.text)]
            called = [kind for kind in self.types if whole_word(f"{kind} type").search(caption.text)]
            if wrong := self.wrong(caption.type, said, called):
                yield Finding(self.name, caption, wrong, "Mend the caption, or the type in the triage.")

    def wrong(self, kind: str | None, said: list[str], called: list[str]) -> str:
        """What is wrong with the types a caption names; empty if nothing is."""
        if kind is None:
            return "" if said else f"names no type ({', '.join(self.types)})"
        if others := [other for other in called if other != kind]:
            return f"calls it {quoted(others[0])} type, the triage says {quoted(kind)}"
        return "" if kind in said else f"does not name its type {quoted(kind)}"


def whole_word(word: str) -> re.Pattern[str]:
    """`word` as it stands, not as a part of another word; any white space between its words."""
    inner = r"\s+".join(re.escape(part) for part in word.split())
    return re.compile(rf"(?<!\w){inner}(?!\w)", re.IGNORECASE)

"""The house style of drafts: what each begins with, and words that none may have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from annotation.drafts.source import Draft
from annotation.review.wording import whole_word


@dataclass(frozen=True)
class Style:
    """prefix: put before each draft that lacks it. forbidden: words or phrases; removed, or else only reported."""

    prefix: str = ""
    forbidden: Sequence[str] = ()
    remove: bool = True

    def apply(self, draft: Draft) -> tuple[Draft | None, list[str]]:
        """The draft in the house style (None if nothing is left), and the forbidden words that were found."""
        found = [word for word in self.forbidden if whole_word(word).search(draft.text)]
        text = draft.text
        for word in found if self.remove else ():
            text = tidied(whole_word(word).sub("", text))
        if not text:
            return None, found
        before = "" if text.lower().startswith(self.prefix.strip().lower()) else self.prefix
        return replace(draft, text=before + text), found


def tidied(text: str) -> str:
    """What a removed word leaves behind, mended: double spaces, a space before a comma, a comma at the start."""
    text = re.sub(r"\s+([,.;:!?])", r"\1", " ".join(text.split()))
    return re.sub(r"([,;:])(?:\s*[,;:])+", r"\1", text).strip(" ,;:")

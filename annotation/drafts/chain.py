"""Sources asked in turn, each only about the pictures for which those before it had no draft."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from annotation.drafts.source import Draft, Picture, Source
from annotation.drafts.store import add_drafts
from annotation.drafts.style import Style

PEOPLE = 1.0  # the score of drafts that people wrote elsewhere


def worth_drafting(old: Draft | None, refresh: bool, brought: bool) -> bool:
    """Whether a picture that nobody answered gets a draft: it has none, or one that `refresh` may replace.

    brought: captions from elsewhere are being brought in, which may replace earlier ones of their kind.
    """
    return old is None or (refresh and (brought or old.score < PEOPLE))


def draft_all(
    pictures: Sequence[Picture], sources: Sequence[Source], style: Style, folder: Path
) -> tuple[dict[str, Draft], dict[str, list[str]]]:
    """Draft, write each source's share to drafts.jsonl as soon as it is there, and return sha256 -> draft.

    Second: sha256 -> forbidden words that its draft had. A run that is stopped goes on where it was.
    """
    made: dict[str, Draft] = {}
    odd: dict[str, list[str]] = {}
    for source in sources:
        left = [picture for picture in pictures if picture.sha256 not in made]
        size = source.at_a_time or max(1, len(left))
        for start in tqdm(range(0, len(left), size), source.name, unit="batch", delay=2.0, leave=False):
            batch = left[start : start + size]
            new = in_style(batch, source.draft(batch), style, odd)
            made |= new
            if new:
                add_drafts(folder, {picture.sha256: picture for picture in batch}, new)
    return made, odd


def in_style(
    batch: Sequence[Picture], drafts: Sequence[Draft | None], style: Style, odd: dict[str, list[str]]
) -> dict[str, Draft]:
    """The drafts of a batch in the house style; words that were found are noted in `odd`."""
    new: dict[str, Draft] = {}
    for picture, draft in zip(batch, drafts, strict=True):
        styled, found = style.apply(draft) if draft is not None else (None, [])
        if found:
            odd[picture.sha256] = found
        if styled is not None:
            new[picture.sha256] = styled
    return new

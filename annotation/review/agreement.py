"""Pictures that several people captioned: how far they agree, and whose caption is taken."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Literal

from annotation.corrections import Answer
from annotation.review.likeness import rouge_l, token_f1

Wins = Literal["central", "newest", "first"]
RULES: dict[Wins, str] = {
    "central": "the caption that shares most words with the others (mean token F1); of equals the newest",
    "newest": "the caption that was changed last",
    "first": "the caption that was written first",
}


@dataclass(frozen=True)
class Pair:
    """Two people's captions of one picture."""

    first: Answer
    second: Answer
    token_f1: float
    rouge_l: float


@dataclass(frozen=True)
class Agreement:
    """All pairs, those that agree least first."""

    pictures: int  # with more than one caption
    pairs: list[Pair]

    @property
    def token_f1(self) -> float:
        """The mean over all pairs; 1 if there are none."""
        return fmean(pair.token_f1 for pair in self.pairs) if self.pairs else 1.0

    @property
    def rouge_l(self) -> float:
        return fmean(pair.rouge_l for pair in self.pairs) if self.pairs else 1.0


def agreement(captions: Iterable[Answer]) -> Agreement:
    """Compare every two captions of a picture that are by different people."""
    found = [group for group in by_picture(captions).values() if len({answer.record.annotator for answer in group}) > 1]
    pairs = [
        Pair(first, second, token_f1(first.text, second.text), rouge_l(first.text, second.text))
        for group in found
        for first, second in combinations(group, 2)
        if first.record.annotator != second.record.annotator
    ]
    return Agreement(len(found), sorted(pairs, key=lambda pair: (pair.token_f1, pair.first.record.sha256)))


def by_picture(captions: Iterable[Answer]) -> dict[str, list[Answer]]:
    """sha256 -> its answers, in order."""
    groups: dict[str, list[Answer]] = defaultdict(list)
    for answer in captions:
        groups[answer.record.sha256].append(answer)
    return groups


def ranked(group: Sequence[Answer], wins: Wins = "central", prefer: Sequence[str] = ()) -> list[Answer]:
    """The answers to one question about one picture, the one that is taken first.

    prefer: e-mail addresses whose answers are taken before all others', the first one's before the second one's.
    """
    trusted = {annotator: place for place, annotator in enumerate(prefer)}

    def order(answer: Answer) -> tuple[int, float]:
        return trusted.get(answer.record.annotator, len(trusted)), -centrality(answer, group) if central else 0.0

    central = wins == "central" and len(group) > 1
    by_age = sorted(group, key=age, reverse=wins != "first")
    return sorted(by_age, key=order)


def age(answer: Answer) -> tuple[str, int]:
    """When an answer was changed last, and its number for those of the same moment."""
    return answer.record.updated, answer.record.annotation


def centrality(answer: Answer, group: Sequence[Answer]) -> float:
    """The mean token F1 with the other answers of the group."""
    others = [token_f1(answer.text, other.text) for other in group if other is not answer]
    return fmean(others) if others else 1.0


def side_by_side(pair: Pair, width: int = 78) -> list[str]:
    """A pair as lines for the terminal: the scores, then each caption with its author."""
    from textwrap import wrap

    from data.errors import show

    lines = [f"{show(pair.first.record.file_name)}: token F1 {pair.token_f1:.2f}, ROUGE-L {pair.rouge_l:.2f}"]
    for answer in (pair.first, pair.second):
        text = wrap(show(answer.text), width) or ["(blank)"]
        lines += [f"    {show(answer.record.annotator)}", *(f"      {line}" for line in text[:6])]
    return lines

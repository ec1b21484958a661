"""Text similarity, and how far annotators agree on images that several of them captioned."""

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from textwrap import wrap

from annotation.config import Winner
from annotation.history import Answer
from data.errors import printable

WORD = re.compile(r"\w+(?:['’-]\w+)*")
WINNERS: dict[Winner, str] = {  # also written to dataset.lock
    "central": "the caption that shares most words with the others (mean token F1); of equals the newest",
    "newest": "the caption that was changed last",
    "first": "the caption that was written first",
}


# ---- text similarity


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation; a hyphen or apostrophe inside a word belongs to it."""
    return WORD.findall(text.lower())


def whole_word(word: str) -> re.Pattern[str]:
    """`word`, but not as a part of another word; any white space between its words."""
    inner = r"\s+".join(re.escape(part) for part in word.split())
    return re.compile(rf"(?<!\w){inner}(?!\w)", re.IGNORECASE)


def token_f1(first: str, second: str) -> float:
    """Harmonic mean of the precision and recall of shared words, counted with repetition; in [0, 1], symmetric.

    Source: Rajpurkar et al. 2016 (SQuAD), section 6.1, without its removal of articles. Two empty texts: 1.
    """
    a, b = Counter(words(first)), Counter(words(second))
    return f1((a & b).total(), a.total(), b.total())


def rouge_l(first: str, second: str) -> float:
    """Harmonic mean of the precision and recall of the longest common subsequence of words; in [0, 1], symmetric.

    Source: Lin 2004, "ROUGE", equations 2 to 4 with beta 1. One minus this is the edit distance with insertions and
    deletions only, divided by the number of all words. Two empty texts: 1.
    """
    a, b = words(first), words(second)
    return f1(common_subsequence(a, b), len(a), len(b))


def f1(shared: int, first: int, second: int) -> float:
    """2 P R / (P + R) with P = shared / first and R = shared / second."""
    return 2 * shared / (first + second) if first + second else 1.0


def common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence, bit-parallel. Source: Hyyrö 2004, section 4: fast even for 100 kB."""
    positions: dict[Hashable, int] = {}
    for index, word in enumerate(a):
        positions[word] = positions.get(word, 0) | 1 << index
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        hits = row & positions.get(word, 0)
        row = ((row + hits) | (row - hits)) & full
    return len(a) - row.bit_count()


# ---- agreement


@dataclass(frozen=True)
class Pair:
    """Two people's captions of one image."""

    first: Answer
    second: Answer
    token_f1: float
    rouge_l: float


@dataclass(frozen=True)
class Agreement:
    """images: how many have several captions; pairs: all of them, the least similar first."""

    images: int
    pairs: list[Pair]
    token_f1: float  # mean over all pairs; 1 if there are none
    rouge_l: float

    def __str__(self) -> str:
        return f"token F1 {self.token_f1:.2f}, ROUGE-L {self.rouge_l:.2f}"


def measure_agreement(captions: Iterable[Answer]) -> Agreement:
    """Compare every two captions of an image that are by different people."""
    several = [group for group in by_image(captions).values() if len({each.record.annotator for each in group}) > 1]
    pairs = [
        Pair(first, second, token_f1(first.text, second.text), rouge_l(first.text, second.text))
        for group in several
        for first, second in combinations(group, 2)
        if first.record.annotator != second.record.annotator
    ]
    pairs.sort(key=lambda pair: (pair.token_f1, pair.first.record.sha256))
    means = [fmean(getattr(pair, score) for pair in pairs) if pairs else 1.0 for score in ("token_f1", "rouge_l")]
    return Agreement(len(several), pairs, *means)


def by_image(answers: Iterable[Answer]) -> dict[str, list[Answer]]:
    """SHA-256 -> its answers, in order."""
    groups: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        groups[answer.record.sha256].append(answer)
    return groups


def rank(answers: Sequence[Answer], wins: Winner = "central", prefer: Sequence[str] = ()) -> list[Answer]:
    """The answers to one question about one image, best first. prefer: whose answers take precedence, in order."""
    precedence = {annotator: place for place, annotator in enumerate(prefer)}

    def order(answer: Answer) -> tuple[int, float]:
        others = [other.text for other in answers if other is not answer] if wins == "central" else []
        shared = fmean(token_f1(answer.text, text) for text in others) if others else 0.0
        return precedence.get(answer.record.annotator, len(precedence)), -shared

    by_age = sorted(answers, key=lambda each: (each.record.updated, each.record.annotation), reverse=wins != "first")
    return sorted(by_age, key=order)


def side_by_side(pair: Pair, width: int = 78) -> list[str]:
    """A pair as lines for the terminal: the scores, then each caption with its author."""
    lines = [f"{printable(pair.first.record.file_name)}: token F1 {pair.token_f1:.2f}, ROUGE-L {pair.rouge_l:.2f}"]
    for answer in (pair.first, pair.second):
        text = wrap(printable(answer.text), width) or ["(blank)"]
        lines += [f"    {printable(answer.record.annotator)}", *(f"      {line}" for line in text[:6])]
    return lines

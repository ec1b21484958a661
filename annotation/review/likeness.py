"""How alike two captions are: shared words, the longest common subsequence, and slips of the keyboard."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence

WORD = re.compile(r"\w+(?:['’-]\w+)*")


def words(text: str) -> list[str]:
    """The words of a text in small letters, punctuation aside; a hyphen or apostrophe inside a word belongs to it."""
    return WORD.findall(text.lower())


def token_f1(first: str, second: str) -> float:
    """Shared words, counted with repetition, as the harmonic mean of precision and recall; in [0, 1], symmetric.

    Source: Rajpurkar et al. 2016 (SQuAD), section 6.1, without its dropping of articles. Two empty texts: 1.
    """
    a, b = Counter(words(first)), Counter(words(second))
    return harmonic((a & b).total(), a.total(), b.total())


def rouge_l(first: str, second: str) -> float:
    """The longest common subsequence of words as the harmonic mean of precision and recall; in [0, 1], symmetric.

    Source: Lin 2004, "ROUGE", equations 2 to 4 with beta 1. One less this is the edit distance with insertions and
    deletions alone, over the number of all words. Two empty texts: 1.
    """
    a, b = words(first), words(second)
    return harmonic(common_subsequence(a, b), len(a), len(b))


def harmonic(shared: int, first: int, second: int) -> float:
    """2 P R / (P + R) with P = shared / first and R = shared / second."""
    return 2 * shared / (first + second) if first + second else 1.0


def common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """The length of the longest common subsequence, with a whole row of the table in one integer.

    Source: Hyyrö 2004, "Bit-parallel LCS-length computation revisited", section 4: captions of 100 kB stay harmless.
    """
    places: dict[Hashable, int] = {}
    for place, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        hits = row & places.get(word, 0)
        row = ((row + hits) | (row - hits)) & full
    return len(a) - row.bit_count()


def slips(first: str, second: str, most: int) -> int | None:
    """Letters inserted, left out, mistaken or swapped with their neighbour between two words; None if over `most`.

    The optimal string alignment distance, of Damerau 1964.
    """
    if abs(len(first) - len(second)) > most:
        return None
    before: list[int] = []
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        before, above, row = row[:], before, [i]
        for j, b in enumerate(second, 1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == second[j - 2] and b == first[i - 2]:
                best = min(best, above[j - 2] + 1)
            row.append(best)
        if min(row) > most:
            return None
    return row[-1] if row[-1] <= most else None

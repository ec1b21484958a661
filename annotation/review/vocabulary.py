"""One thing, one word: synonyms, British and American spelling, singular and plural, slips of the keyboard.

The word that most captions use stands; each use of the others is a finding. A word is in a caption or not: how often it
stands in one caption does not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from annotation.review.findings import Caption, Finding
from annotation.review.likeness import slips, words
from annotation.review.plurals import plural

SYNONYMS = (
    "photo photograph", "picture image pic", "fridge refrigerator", "tv television", "bike bicycle", "sofa couch",
    "phone telephone", "airplane aeroplane plane", "rabbit bunny", "belly tummy stomach", "cap beanie", "movie film",
    "eyeglasses spectacles", "autumn fall", "trousers pants", "sneaker trainer",
)  # fmt: skip
SPELLINGS = (
    "color colour", "colored coloured", "colorful colourful", "multicolored multicoloured", "gray grey",
    "center centre", "centered centred", "fiber fibre", "armor armour", "armored armoured", "favorite favourite",
    "flavor flavour", "glamor glamour", "harbor harbour", "honor honour", "humor humour", "jewelry jewellery",
    "mold mould", "mustache moustache", "neighbor neighbour", "pajamas pyjamas", "plow plough", "theater theatre",
    "tire tyre", "vapor vapour", "aluminum aluminium", "ax axe", "checkered chequered", "curb kerb", "cozy cosy",
    "draft draught", "meter metre", "maneuver manoeuvre", "odor odour", "smolder smoulder", "savory savoury",
    "skeptical sceptical", "somber sombre", "specter spectre", "saber sabre", "luster lustre", "ocher ochre",
    "stylized stylised", "traveler traveller", "wooly woolly", "yogurt yoghurt", "donut doughnut", "catalog catalogue",
)  # fmt: skip
RARE = 2  # captions that a slip, or the wrong number of a noun, is at most in
COMMON = 10  # captions that the word it is measured against is at least in ...
TIMES = 20  # ... and how many times more than its own
SHORTEST = 4  # letters; shorter words are near too many others, and those of four only with two letters swapped
LONG = 8  # letters from which two slips are one slip too many, and not another word


@dataclass(frozen=True)
class Drift:
    """Words of one meaning, or two spellings of one word, where one set should keep to one of them.

    groups: the words that are one, each group parted by spaces; their plurals follow.
    """

    groups: tuple[str, ...] = ()
    name: str = "vocabulary"

    def find(self, captions: Sequence[Caption]) -> Iterator[Finding]:
        uses = count_uses(captions)
        for kind, groups in (("synonym", (*self.groups, *SYNONYMS)), ("spelling", SPELLINGS)):
            better = {old: new for group in groups for old, new in minority(group.split(), uses).items()}
            yield from self.report(captions, better, kind)

    def report(
        self, captions: Sequence[Caption], better: Mapping[str, tuple[str, int]], kind: str
    ) -> Iterator[Finding]:
        for caption in captions:
            for word in dict.fromkeys(words(caption.text)):
                if word in better:
                    new, count = better[word]
                    what = f"says {word!r} where others say {new!r} ({kind}; singular or plural, {count} captions)"
                    yield Finding(self.name, caption, what, rename(word, new))


@dataclass(frozen=True)
class Misspelt:
    """A rare word that is nearly a frequent one: a slip of the keyboard, or the wrong number of a noun.

    accepted: words that are right as they are.
    """

    accepted: tuple[str, ...] = ()
    name: str = "spelling"

    def find(self, captions: Sequence[Caption]) -> Iterator[Finding]:
        uses = count_uses(captions)
        known = {spelling for pair in (*SPELLINGS, *SYNONYMS) for spelling in both_numbers(pair.split())}
        known.update(word.lower() for word in self.accepted)
        rare = [word for word, count in uses.items() if count <= RARE and word not in known and word.isalpha()]
        meant = {word: near for word in rare if (near := nearest(word, uses))}
        for caption in captions:
            for word in dict.fromkeys(words(caption.text)):
                if word in meant:
                    near, number = meant[word]
                    kind = "the other number" if number else "a slip"
                    what = f"says {word!r}, {kind} of {near!r} ({uses[near]} captions)?"
                    yield Finding(self.name, caption, what, f"{rename(word, near)} (if it is right: --accept {word})")


def count_uses(captions: Sequence[Caption]) -> Counter[str]:
    """Word -> the number of captions it is in."""
    return Counter(word for caption in captions for word in set(words(caption.text)))


def minority(group: Sequence[str], uses: Mapping[str, int]) -> dict[str, tuple[str, int]]:
    """Each word of the group that others outnumber -> the word that stands, and its count; both numbers as one."""
    counts = {word: sum(uses.get(form, 0) for form in both_numbers([word])) for word in group}
    best = max(group, key=lambda word: counts[word])
    weaker = [word for word in group if word != best and counts[word]]
    singulars = dict.fromkeys(weaker, (best, counts[best]))
    return singulars | {plural(word): (plural(best), counts[best]) for word in weaker}


def both_numbers(singulars: Sequence[str]) -> list[str]:
    return [form for word in singulars for form in (word, plural(word))]


def nearest(word: str, uses: Mapping[str, int]) -> tuple[str, bool] | None:
    """The frequent word that is probably meant, and whether it is the same noun in the other number."""
    floor = max(COMMON, TIMES * uses[word])
    common = [other for other, count in uses.items() if count >= floor and other.isalpha()]
    for other in common:
        if plural(word) == other or plural(other) == word:
            return other, True
    if len(word) < SHORTEST:
        return None
    if len(word) == SHORTEST:
        common = [other for other in common if sorted(other) == sorted(word)]
    most = 2 if len(word) >= LONG else 1
    near = [(distance, other) for other in common if (distance := slips(word, other, most)) is not None]
    return (min(near)[1], False) if near else None


def rename(old: str, new: str) -> str:
    return f"annotate.py fix --rename {old} --to {new}"

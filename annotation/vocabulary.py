"""Consistent vocabulary: synonyms, British and American spelling, singular and plural, typos.

The word that most captions use is kept; every use of the others is a finding. A word counts once per caption.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from annotation.agreement import words

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
RARE = 2  # captions that may have a typo, or the wrong number of a noun
COMMON = 10  # captions that the word it is compared with must at least be in ...
TIMES = 20  # ... and how many times more than its own
SHORTEST = 4  # letters: shorter words are close to too many others, and of four only two swapped letters count
LONG = 8  # letters from which two edits still are a typo, and not another word
IRREGULAR = {
    "child": "children", "foot": "feet", "goose": "geese", "leaf": "leaves", "man": "men", "mouse": "mice",
    "person": "people", "shelf": "shelves", "scarf": "scarves", "knife": "knives", "tooth": "teeth", "wolf": "wolves",
    "woman": "women", "calf": "calves", "hoof": "hooves", "half": "halves", "life": "lives", "wife": "wives",
    "potato": "potatoes", "tomato": "tomatoes", "hero": "heroes", "echo": "echoes", "antenna": "antennae",
    "elf": "elves",
}  # fmt: skip
SAME = {"sheep", "fish", "deer", "series", "species", "aircraft"}
VOWELS = "aeiou"


def inconsistent_words(texts: Sequence[str], groups: Sequence[str] = ()) -> dict[str, tuple[str, str]]:
    """Word -> (the word that more captions use instead, what is wrong). groups: further synonyms, split by spaces."""
    counts = count_captions(texts)
    better: dict[str, tuple[str, str]] = {}
    for kind, table in (("synonym", (*groups, *SYNONYMS)), ("spelling", SPELLINGS)):
        for group in table:
            for old, (new, count) in minority(group.split(), counts).items():
                what = f"uses {old!r} where others use {new!r} ({kind}; singular or plural, {count} captions)"
                better.setdefault(old, (new, what))
    return better


def likely_typos(texts: Sequence[str], accepted: Sequence[str] = ()) -> dict[str, tuple[str, str]]:
    """Rare word -> (the frequent word probably meant, what is wrong): a typo, or a noun's other number."""
    counts = count_captions(texts)
    known = {form for pair in (*SPELLINGS, *SYNONYMS) for word in pair.split() for form in (word, plural(word))}
    known.update(word.lower() for word in accepted)
    typos: dict[str, tuple[str, str]] = {}
    for word, count in counts.items():
        if count <= RARE and word not in known and word.isalpha() and (near := intended_word(word, counts)):
            meant, is_number = near
            kind = "the other number" if is_number else "a typo"
            typos[word] = meant, f"uses {word!r}, {kind} of {meant!r} ({counts[meant]} captions)?"
    return typos


def count_captions(texts: Sequence[str]) -> Counter[str]:
    return Counter(word for text in texts for word in set(words(text)))


def minority(group: Sequence[str], counts: Mapping[str, int]) -> dict[str, tuple[str, int]]:
    """Each word of the group that is outnumbered -> the most frequent word and its count; both numbers as one."""
    totals = {word: counts.get(word, 0) + counts.get(plural(word), 0) for word in group}
    best = max(group, key=totals.__getitem__)
    weaker = [word for word in group if word != best and totals[word]]
    singulars = dict.fromkeys(weaker, (best, totals[best]))
    return singulars | {plural(word): (plural(best), totals[best]) for word in weaker}


def intended_word(word: str, counts: Mapping[str, int]) -> tuple[str, bool] | None:
    """The frequent word that is probably meant, and whether it is the same noun in the other number."""
    minimum = max(COMMON, TIMES * counts[word])
    common = [other for other, count in counts.items() if count >= minimum and other.isalpha()]
    for other in common:
        if plural(word) == other or plural(other) == word:
            return other, True
    if len(word) < SHORTEST:
        return None
    if len(word) == SHORTEST:
        common = [other for other in common if sorted(other) == sorted(word)]
    limit = 2 if len(word) >= LONG else 1
    near = [(distance, other) for other in common if (distance := edit_distance(word, other, limit)) is not None]
    return (min(near)[1], False) if near else None


def edit_distance(first: str, second: str, limit: int) -> int | None:
    """Optimal string alignment distance (Damerau 1964): edits of letters, swaps included; None if over `limit`."""
    if abs(len(first) - len(second)) > limit:
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
        if min(row) > limit:
            return None
    return row[-1] if row[-1] <= limit else None


def plural(word: str) -> str:
    """The plural of a lower-case singular noun; of a phrase, that of its last word."""
    head, space, last = word.rpartition(" ")
    if last in SAME or last in IRREGULAR:
        last = IRREGULAR.get(last, last)
    elif last.endswith("y") and last[-2:-1] not in VOWELS:
        last = f"{last[:-1]}ies"
    else:
        last = f"{last}es" if last.endswith(("s", "x", "z", "ch", "sh")) else f"{last}s"
    return head + space + last


def article(word: str) -> str:
    """`a` or `an`, by the first letter and the few words that sound different."""
    word = word.lower()
    if word.startswith(("hour", "honest", "honou", "honor", "heir")):
        return "an"
    like_you = word.startswith(("uni", "use", "usu", "eu", "ura", "one", "once", "ute", "ubi"))
    like_you = like_you and not word.startswith(("unin", "unim"))
    return "an" if word[:1] in set(VOWELS) and not like_you else "a"

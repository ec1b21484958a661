"""English plurals, as far as captions need them."""

from __future__ import annotations

IRREGULAR = {
    "child": "children", "foot": "feet", "goose": "geese", "leaf": "leaves", "man": "men", "mouse": "mice",
    "person": "people", "shelf": "shelves", "scarf": "scarves", "knife": "knives", "tooth": "teeth", "wolf": "wolves",
    "woman": "women", "calf": "calves", "hoof": "hooves", "half": "halves", "life": "lives", "wife": "wives",
    "potato": "potatoes", "tomato": "tomatoes", "hero": "heroes", "echo": "echoes", "antenna": "antennae",
    "elf": "elves",
}  # fmt: skip
SAME = {"sheep", "fish", "deer", "series", "species", "aircraft"}
HISSING = ("s", "x", "z", "ch", "sh")
VOWELS = "aeiou"


def plural(word: str) -> str:
    """The plural of a singular noun in small letters; of a phrase, that of its last word."""
    head, space, last = word.rpartition(" ")
    return head + space + plural_of(last)


def plural_of(word: str) -> str:
    if word in SAME or word in IRREGULAR:
        return IRREGULAR.get(word, word)
    if word.endswith("y") and word[-2:-1] not in VOWELS:
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith(HISSING) else f"{word}s"


def article(word: str) -> str:
    """`a` or `an`, by the letter that the word begins with and the few words that sound otherwise."""
    low = word.lower()
    if low.startswith(("hour", "honest", "honou", "honor", "heir")):
        return "an"
    sounds_like_you = low.startswith(("uni", "use", "usu", "eu", "ura", "one", "once", "ute", "ubi"))
    if low.startswith(("unin", "unim")):
        sounds_like_you = False
    return "an" if low[:1] in set(VOWELS) and not sounds_like_you else "a"

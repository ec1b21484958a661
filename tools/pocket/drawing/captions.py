"""Reference captions, as a careful annotator writes them: type, name, body, colours, parts, mood and pose."""

import random

from data.rng import seed_for
from tools.pocket.drawing.poses import Pose
from tools.pocket.drawing.species import TABLES, Species

WORDS = TABLES["words"]
MARKS = {"spots": "spots", "stripes": "stripes", "socks": "paws"}
PAWLESS = ("serpent", "bird")
TAILED = ("ball", "pear", "biped", "quadruped", "bird", "shelled")


def caption(species: Species, pose: Pose, seed: int, index: int) -> str:
    """The caption of one picture; `index` chooses among the wordings."""
    rng = random.Random(seed_for(seed, "caption", index))
    kind, name, coat = f"{species.kind.word} type", species.name, species.coat
    body = _article(rng.choice(WORDS["bodies"][species.plan]).format(coat.main.word, trim=coat.trim.word))
    first, second = rng.sample(_parts(species), 2)
    mood, act = rng.choice(pose.mood.words), rng.choice(pose.action.words)
    act = act.replace("{held}", a(species.kind.held))
    return rng.choice((
        f"{a(kind)} creature named {name} with {body}, {first} and {mood}, {act}",
        f"{name}, {a(kind)} creature with {body}, {first} and {second}, {act}, with {mood}",
        f"{a(coat.main.word)} {kind} creature named {name} {act}, with {first} and {mood}",
        f"{a(kind)} creature, {name}, {act}; it has {body}, {first} and {mood}",
        f"{a(kind)} creature named {name} {act}: {body}, {first}, {second}, {mood}",
        f"{name} the {kind} creature {act}, {body}, {first} and {mood}",
    ))


def a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _article(words: str) -> str:
    """'a aqua body' -> 'an aqua body'."""
    head, tail = words.split(" ", 1)
    return a(tail) if head in ("a", "an") else words


def _parts(species: Species) -> list[str]:
    """What an annotator would point at; never fewer than three things."""
    words = [*_on_the_body(species)]
    if species.crest != "none":
        words.append(WORDS["crests"][species.crest])
    if species.plan in TAILED:
        words.append(WORDS["tails"][species.tail])
    if species.ears != "none" and species.plan != "golem":
        words.append(WORDS["ears"][species.ears])
    if species.winged and species.plan not in ("bird", "crawler", "shelled", "golem"):
        words.append("small wings")
    words.extend(_markings(species))
    plain = [f"{a(species.coat.belly.word)} belly", "big shining eyes"]
    return words if len(words) > 2 else [*words, *plain]


def _markings(species: Species) -> list[str]:
    if species.marking == "mask":
        return [f"{a(species.coat.belly.word)} mask around its eyes"]
    if species.marking not in MARKS or (species.marking == "socks" and species.plan in PAWLESS):
        return []
    return [f"{species.coat.trim.word} {MARKS[species.marking]}"]


def _on_the_body(species: Species) -> tuple[str, ...]:
    """What the body plan itself carries of the type's motif."""
    many = species.kind.many
    where = {
        "golem": f"{many} on its shoulders", "crawler": f"{many} along its back",
        "shelled": f"{many} on its shell",
        "serpent": f"a tail that ends in {a(species.kind.single)}",
    }
    return (where[species.plan],) if species.plan in where else ()

"""Reference captions, as a careful annotator writes them: type, name, body, colours, parts, mood and pose."""

import random

from data.pocket.drawing.poses import Pose
from data.pocket.drawing.species import Species
from data.seeds import seed_for

BODIES = {
    "ball": ("round body", "ball-shaped body"), "pear": ("pear-shaped body", "plump body"),
    "biped": ("small upright body and a big head", "body on two legs and a large head"),
    "quadruped": ("body on four legs", "four-legged body"), "serpent": ("long coiled body", "snake-like body"),
    "bird": ("egg-shaped body with wings", "winged body and a beak"),
    "floater": ("floating dome-shaped body", "floating body without legs"),
    "crawler": ("caterpillar-like body of round segments", "long segmented body"),
    "shelled": ("body under a domed shell", "shell on its back"),
    "golem": ("heavy, square body with big fists", "blocky body and huge arms"),
}
EAR_WORDS = {
    "round": "round ears", "pointed": "pointed ears", "long": "long ears", "floppy": "floppy ears", "fin": "fins for ears",
    "leaf": "leaf-shaped ears", "crystal": "crystal horns", "horn": "two horns", "wisp": "wispy ears",
    "blade": "blade-like ears", "antenna": "two antennae",
}
CREST_WORDS = {
    "fin": "a fin on its head", "drop": "a water drop on its head", "curl": "a curl on its head",
    "flames": "flames on its head", "flame": "a flame on its head", "sprout": "a sprout on its head",
    "flower": "a pink flower on its head", "bud": "a pink bud on its head", "bolt": "a lightning bolt on its head",
    "tuft": "a tuft of hair", "crystals": "a crown of crystals", "crystal": "a crystal on its head",
    "stones": "stones on its head", "ghost flame": "mint ghost flames on its head", "spikes": "spikes on its head",
    "bubble": "a bubble on its head", "star": "a star on its head", "bow": "a bow on its head",
    "bolt head": "a nut on its head",
}
TAIL_WORDS = {
    "fluke": "a whale-like tail", "fin": "a tail fin", "flame": "a burning tail", "leaf": "a leaf tail",
    "bolt": "a tail like a lightning bolt", "crystal": "a crystal tail", "puff": "a fluffy round tail", "club": "a stone club tail",
    "wisp": "a wispy tail", "stinger": "a stinger tail", "star": "a star-tipped tail", "heart": "a heart-shaped tail tip",
    "blade": "a blade tail", "nut": "a hexagonal tail tip", "curled": "a curled tail",
}
WITH_TAIL = ("ball", "pear", "biped", "quadruped", "bird", "shelled")


def parts_of(species: Species) -> list[str]:
    """The visible parts, the most telling first."""
    words = []
    if species.crest != "none":
        words.append(CREST_WORDS[species.crest])
    if species.plan in WITH_TAIL:
        words.append(TAIL_WORDS[species.tail])
    if species.ears != "none" and species.plan != "golem":
        words.append(EAR_WORDS[species.ears])
    if species.winged and species.plan not in ("bird", "crawler", "shelled", "golem"):
        words.append("small wings")
    return words


def caption(species: Species, pose: Pose, seed: int, index: int) -> str:
    rng = random.Random(seed_for(seed, "caption", index))
    kind, coat, name = species.kind.word, species.coat, species.name
    parts = parts_of(species)
    first = parts[0] if parts else "big eyes"
    second = parts[1] if len(parts) > 1 else f"a {coat.belly.word} belly"
    shown = first if rng.random() < 0.5 else second
    article = "an" if kind[0] in "aeiou" else "a"
    what = f"{coat.main.word} {rng.choice(BODIES[species.plan])}"
    a_what = ("an " if what[0] in "aeiou" else "a ") + what
    mood, act = rng.choice(pose.mood.words), rng.choice(pose.action.words)
    held_word = species.kind.held
    act = act.replace("{held}", ("an " if held_word[0] in "aeiou" else "a ") + held_word)
    return rng.choice((
        f"{article} {kind} type creature named {name} with {a_what}, {shown} and {mood}, {act}",
        f"{name}, {article} {kind} type creature with {a_what}, {first} and {second}, {act} with {mood}",
        f"{article} {coat.main.word} {kind} type creature named {name}, {act}, with {shown} and {mood}",
        f"{name} is {article} {kind} type creature with {a_what} and {coat.trim.word} details, {act}, {mood}",
        f"{article} {kind} type creature, {name}, {act}; it has {a_what}, {shown} and {mood}",
    ))

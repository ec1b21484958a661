"""The hundred species: a name, a type, a body plan and the parts that all pictures of the species share."""

import random
from dataclasses import dataclass

from data.rng import seed_for
from tools.pocket.drawing.palettes import KINDS, Coat, Kind

PLANS = ("ball", "pear", "biped", "quadruped", "serpent", "bird", "floater", "crawler", "shelled", "golem")
NAMES = {
    "water": "Bulino Merovi Tidalu Plisko Wavori Nalupe Sorabi Fintara Ombolu Drivano",
    "fire": "Kindaro Pyrolu Embrosi Scorvi Tazuno Flamiku Cindova Brazuko Ardemi Sulvaro",
    "grass": "Fernobi Mossilu Verdani Tiliko Sprovi Lumoka Bramuli Olivemi Petasu Clovari",
    "electric": "Zaptori Voltiru Jolimo Sparuko Ampelo Fizzaro Kiloba Tenzari Brizeko Ohmari",
    "ice": "Frizzano Nevilu Glasoki Hailomi Fristel Polarni Skadiro Brumavi Icavo Winzeli",
    "rock": "Granoku Pebulo Basalmi Cragovi Tufalo Gravuni Slatoro Orelko Boldami Quarzino",
    "ghost": "Wispalo Umbrosi Spekuli Phanori Murmelo Velumi Hushiko Eerilo Noctavi Lanturo",
    "poison": "Toxelu Venobi Miasmo Slizari Noxuli Gloporo Viruko Stingavi Beladu Puflisko",
    "fairy": "Lumelia Pixaro Rosabi Twilune Dulciko Glimora Fayelu Amovi Starbelo Corafi",
    "metal": "Ferruno Rivelto Cobrano Anvilo Chromiku Steluba Titorvi Zinkaro Platiko Mercavi",
}
EARS = {
    "water": ("fin", "round", "none", "long"),
    "fire": ("pointed", "horn", "long", "round"),
    "grass": ("leaf", "round", "leaf", "floppy"),
    "electric": ("horn", "long", "antenna", "fin"),
    "ice": ("crystal", "round", "pointed", "floppy"),
    "rock": ("horn", "none", "round", "horn"),
    "ghost": ("none", "pointed", "wisp", "long"),
    "poison": ("antenna", "horn", "none", "pointed"),
    "fairy": ("long", "antenna", "floppy", "round"),
    "metal": ("blade", "antenna", "horn", "round"),
}
CRESTS = {
    "water": ("fin", "drop", "none", "curl"),
    "fire": ("flames", "flame", "none", "flames"),
    "grass": ("sprout", "flower", "none", "bud"),
    "electric": ("bolt", "tuft", "none", "bolt"),
    "ice": ("crystals", "tuft", "none", "crystal"),
    "rock": ("stones", "none", "crystal", "stones"),
    "ghost": ("ghost flame", "none", "curl", "ghost flame"),
    "poison": ("spikes", "none", "bubble", "spikes"),
    "fairy": ("star", "none", "bow", "tuft"),
    "metal": ("fin", "none", "hexagon", "spikes"),
}
TAILS = {
    "water": ("fluke", "curled", "fin"),
    "fire": ("flame", "flame", "curled"),
    "grass": ("leaf", "curled", "leaf"),
    "electric": ("bolt", "bolt", "puff"),
    "ice": ("crystal", "puff", "crystal"),
    "rock": ("club", "club", "curled"),
    "ghost": ("wisp", "wisp", "curled"),
    "poison": ("stinger", "curled", "stinger"),
    "fairy": ("star", "puff", "heart"),
    "metal": ("blade", "hexagon", "blade"),
}
WINGS = {
    "water": "fin", "fire": "webbed", "grass": "leaf", "electric": "feather", "ice": "feather",
    "rock": "webbed", "ghost": "webbed", "poison": "webbed", "fairy": "butterfly", "metal": "blade",
}
MARKINGS = ("belly", "spots", "stripes", "mask", "socks", "belly", "star", "freckles")
HEADS = ("round", "wide", "cheeks", "square", "tall", "drop")
EYES = ("bead", "wide", "tall")


@dataclass(frozen=True)
class Species:
    index: int
    name: str
    kind: Kind
    plan: str
    coat: Coat
    head: str
    ears: str
    crest: str
    tail: str
    wings: str
    winged: bool
    marking: str
    eyes: str
    fangs: bool
    freckled: bool
    stout: float


def species(index: int) -> Species:
    """Species 0 to 99: neighbours differ in type; within a type each body plan occurs once."""
    row, column = divmod(index, 10)
    kind = KINDS[column]
    plan = PLANS[(row + 3 * column) % 10]
    rng = random.Random(seed_for(0, "species", index))
    parts = {"ears": EARS, "crest": CRESTS, "tail": TAILS}
    turn = {"ears": row + column, "crest": row + row // 4 + 2 * column, "tail": row + row // 3}
    chosen = {part: table[kind.word][turn[part] % len(table[kind.word])] for part, table in parts.items()}
    if chosen["ears"] == chosen["crest"] == "none":
        chosen["ears"] = EARS[kind.word][0]
    return Species(
        index, NAMES[kind.word].split()[row], kind, plan, kind.coats[(row * 2 + row // 5) % 5],
        head=HEADS[(row + column * 5 + row // 6) % 6], wings=WINGS[kind.word],
        winged=plan == "bird" or rng.random() < (0.6 if kind.word == "fairy" else 0.18),
        marking=MARKINGS[(row + column * 3) % 8], eyes=EYES[(row + column) % 3],
        fangs=rng.random() < 0.3, freckled=rng.random() < 0.3, stout=rng.uniform(0.92, 1.1), **chosen,
    )


SPECIES: tuple[Species, ...] = tuple(species(index) for index in range(100))

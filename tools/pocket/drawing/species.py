"""The hundred species: a name, a type, a body plan and the parts that all pictures of the species share."""

import random
from dataclasses import dataclass

from data.rng import seed_for
from tools.pocket.drawing.palettes import KINDS, Coat, Kind

PLANS = ("ball", "pear", "biped", "quadruped", "serpent", "bird", "floater", "crawler", "shelled", "golem")
PARTS = {  # type: names, ears, crests, tails and wings of its species
    "water": ("Bulino Merovi Tidalu Plisko Wavori Nalupe Sorabi Fintara Ombolu Drivano",
        "fin, round, none, long", "fin, drop, none, curl", "fluke, curled, fin", "fin"),
    "fire": ("Kindaro Pyrolu Embrosi Scorvi Tazuno Flamiku Cindova Brazuko Ardemi Sulvaro",
        "pointed, horn, long, round", "flames, flame, none, flames", "flame, flame, curled", "webbed"),
    "grass": ("Fernobi Mossilu Verdani Tiliko Sprovi Lumoka Bramuli Olivemi Petasu Clovari",
        "leaf, round, leaf, floppy", "sprout, flower, none, bud", "leaf, curled, leaf", "leaf"),
    "electric": ("Zaptori Voltiru Jolimo Sparuko Ampelo Fizzaro Kiloba Tenzari Brizeko Ohmari",
        "horn, long, antenna, fin", "bolt, tuft, none, bolt", "bolt, bolt, puff", "feather"),
    "ice": ("Frizzano Nevilu Glasoki Hailomi Fristel Polarni Skadiro Brumavi Icavo Winzeli",
        "crystal, round, pointed, floppy", "crystals, tuft, none, crystal", "crystal, puff, crystal", "feather"),
    "rock": ("Granoku Pebulo Basalmi Cragovi Tufalo Gravuni Slatoro Orelko Boldami Quarzino",
        "horn, none, round, horn", "stones, none, crystal, stones", "club, club, curled", "webbed"),
    "ghost": ("Wispalo Umbrosi Spekuli Phanori Murmelo Velumi Hushiko Eerilo Noctavi Lanturo",
        "none, pointed, wisp, long", "ghost flame, none, curl, ghost flame", "wisp, wisp, curled", "webbed"),
    "poison": ("Toxelu Venobi Miasmo Slizari Noxuli Gloporo Viruko Stingavi Beladu Puflisko",
        "antenna, horn, none, pointed", "spikes, none, bubble, spikes", "stinger, curled, stinger", "webbed"),
    "fairy": ("Lumelia Pixaro Rosabi Twilune Dulciko Glimora Fayelu Amovi Starbelo Corafi",
        "long, antenna, floppy, round", "star, none, bow, tuft", "star, puff, heart", "butterfly"),
    "metal": ("Ferruno Rivelto Cobrano Anvilo Chromiku Steluba Titorvi Zinkaro Platiko Mercavi",
        "blade, antenna, horn, round", "fin, none, hexagon, spikes", "blade, hexagon, blade", "blade"),
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
    names, *parts, wings = PARTS[kind.word]
    ears, crests, tails = (part.split(", ") for part in parts)
    ear, crest = ears[(row + column) % len(ears)], crests[(row + row // 4 + 2 * column) % len(crests)]
    return Species(
        index, names.split()[row], kind, plan, kind.coats[(row * 2 + row // 5) % 5],
        head=HEADS[(row + column * 5 + row // 6) % 6], wings=wings,
        winged=plan == "bird" or rng.random() < (0.6 if kind.word == "fairy" else 0.18),
        marking=MARKINGS[(row + column * 3) % 8], eyes=EYES[(row + column) % 3],
        fangs=rng.random() < 0.3, freckled=rng.random() < 0.3, stout=rng.uniform(0.92, 1.1),
        ears=ears[0] if ear == crest == "none" else ear, crest=crest, tail=tails[(row + row // 3) % len(tails)],
    )


SPECIES: tuple[Species, ...] = tuple(species(index) for index in range(100))

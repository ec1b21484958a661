"""The ten types with colours and motifs, and the hundred species: body plan and the parts of all their pictures."""

import random
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

import yaml

from data.rng import seed_for
from tools.pocket.drawing import shapes
from tools.pocket.drawing.paint import Colour
from tools.pocket.drawing.shapes import Path

TABLES: dict[str, Any] = yaml.safe_load((File(__file__).parent / "creatures.yaml").read_text(encoding="utf-8"))
PLANS = ("ball", "pear", "biped", "quadruped", "serpent", "bird", "floater", "crawler", "shelled", "golem")
MARKINGS = ("belly", "spots", "stripes", "mask", "socks", "belly", "star", "freckles")
HEADS = ("round", "wide", "cheeks", "square", "tall", "drop")
EYES = ("bead", "wide", "tall")


def rgb(code: str) -> Colour:
    value = int(code, 16)
    return value >> 16, value >> 8 & 255, value & 255


@dataclass(frozen=True)
class Paint:
    word: str
    colour: Colour


def paint(text: str) -> Paint:
    """'sky blue 62b8f0' -> Paint('sky blue', (98, 184, 240))."""
    word, code = text.rsplit(" ", 1)
    return Paint(word, rgb(code))


@dataclass(frozen=True)
class Coat:
    """The three colours of a species: body, belly and trim (paws, spots, ears)."""

    main: Paint
    belly: Paint
    trim: Paint


@dataclass(frozen=True)
class Kind:
    """A type. `outer` and `inner` colour its motif, `ground` the puddle under it; parts: what its species may have.

    held: the motif in a hand, in words; single: the same in a word or two; many: several.
    """

    word: str
    coats: tuple[Coat, ...]
    motif: Path
    outer: Colour
    inner: Colour
    ground: Colour
    held: str
    single: str
    many: str
    names: list[str]
    ears: list[str]
    crests: list[str]
    tails: list[str]
    wings: str


def kind(word: str, row: dict[str, Any]) -> Kind:
    """A type from its row of creatures.yaml."""
    coats = tuple(Coat(*(paint(cell) for cell in coat.split(", "))) for coat in row["coats"])
    colours = {name: rgb(row[name]) for name in ("outer", "inner", "ground")}
    lists = {name: row[name].split(", ") for name in ("ears", "crests", "tails")} | {"names": row["names"].split()}
    motif = vars(shapes)[row["motif"].upper()]
    fields: dict[str, Any] = row | colours | lists | {"coats": coats, "motif": motif}
    return Kind(word, **fields)


KINDS: tuple[Kind, ...] = tuple(kind(word, row) for word, row in TABLES["types"].items())


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
    ear, crest = (
        kind.ears[(row + column) % len(kind.ears)], kind.crests[(row + row // 4 + 2 * column) % len(kind.crests)]
    )
    return Species(
        index, kind.names[row], kind, plan, kind.coats[(row * 2 + row // 5) % 5],
        head=HEADS[(row + column * 5 + row // 6) % 6], wings=kind.wings,
        winged=plan == "bird" or rng.random() < (0.6 if kind.word == "fairy" else 0.18),
        marking=MARKINGS[(row + column * 3) % 8], eyes=EYES[(row + column) % 3],
        fangs=rng.random() < 0.3, freckled=rng.random() < 0.3, stout=rng.uniform(0.92, 1.1),
        ears=kind.ears[0] if ear == crest == "none" else ear, crest=crest,
        tail=kind.tails[(row + row // 3) % len(kind.tails)],
    )


SPECIES: tuple[Species, ...] = tuple(species(index) for index in range(100))

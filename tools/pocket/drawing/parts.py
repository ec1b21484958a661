"""What grows on a creature: ears, crests, tails, wings, arms, legs, markings, and what drifts around it."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.rng import seed_for
from tools.pocket.drawing import shapes
from tools.pocket.drawing.faces import BEAK, Head
from tools.pocket.drawing.paint import LINE, THIN, Brush, Colour, Mark, Part, tube
from tools.pocket.drawing.poses import Pose
from tools.pocket.drawing.shapes import Path, curve, ellipse, grow, polar
from tools.pocket.drawing.species import TABLES, Species, rgb

PINK, GOLD, STALK = rgb("ff86b0"), rgb("ffd23c"), rgb("4a9a3f")


@dataclass(frozen=True)
class Stage:
    """One picture being drawn."""

    pen: Brush
    species: Species
    pose: Pose

    @property
    def main(self) -> Colour:
        return self.species.coat.main.colour

    @property
    def belly(self) -> Colour:
        return self.species.coat.belly.colour

    @property
    def trim(self) -> Colour:
        return self.species.coat.trim.colour


def charm(
    shape: Path, at: complex, toward: complex, length: float, width: float, outer: Colour, inner: Colour | None = None
) -> Part:
    """A planted charm, with a smaller one of a second colour inside."""
    marks = ()
    if inner is not None:
        heading = toward / abs(toward)
        marks = (Mark(grow(shape, at + heading * length * 0.12, toward, length * 0.62, width * 0.52), inner),)
    return Part(grow(shape, at, toward, length, width), outer, marks)


def planted(group: str) -> dict[str, tuple[Any, ...]]:
    """By name: the shape, its length and width as shares of what it grows on, and its colours."""
    return {name: (vars(shapes)[row[0].upper()], *row[1:]) for name, row in TABLES["shapes"][group].items()}


EARS, ROWS, SINGLES, TAIL_TIPS, WINGS = (planted(group) for group in ("ears", "rows", "singles", "tails", "wings"))


def draw_ears(stage: Stage, head: Head) -> None:
    kind = stage.species.ears
    if kind == "none":
        return
    for side in (-1, 1):
        lon, lat = side * 0.72, 0.74
        root = head.spot(lon, lat, 0.94)
        lean = {"floppy": 1.5, "fin": 2.2, "horn": 0.8}.get(kind, 1.0)
        toward = complex(side * 0.55 * lean + 0.25 * math.sin(head.yaw), -0.82) * np.exp(1j * head.nod)
        if kind == "fin":
            root = head.spot(side * 1.0, 0.3, 0.96)
        if kind == "antenna":
            _antenna(stage, head, root, toward)
            continue
        shape, length, width, colours = EARS[kind]
        path = shape if side > 0 else shape.conj()
        stage.pen.figure(_ear(stage, path, root, toward, length * head.size, width * head.size, colours))


def _ear(
    stage: Stage, path: Path, root: complex, toward: complex, length: float, width: float, colours: str
) -> Part:
    kind = stage.species.kind
    outer, inner = {
        "coat": (stage.main, stage.trim), "trim": (stage.trim, None), "belly": (stage.belly, None),
        "motif": (kind.outer, kind.inner),
    }[colours]
    return charm(path, root, toward, length, width, outer, inner)


def _antenna(stage: Stage, head: Head, root: complex, toward: complex) -> None:
    tip = root + toward * 0.62 * head.size
    bend = root + (toward.real * 0.2 + 1j * toward.imag * 0.6) * 0.62 * head.size
    stage.pen.line(curve([root, bend, tip]), LINE * 0.55)
    motif = stage.species.kind.motif
    stage.pen.figure(charm(motif, tip - 0.1 * toward * head.size, toward, 0.36 * head.size, 0.36 * head.size,
                           stage.species.kind.outer, stage.species.kind.inner))


def draw_crest(stage: Stage, head: Head, crown: float) -> None:
    """What stands on the crown, which is `crown` times the head's half-height above its middle."""
    kind, size = stage.species.kind, head.size
    up = np.exp(1j * (head.nod - math.pi / 2))
    top = head.spot(-head.yaw, math.pi / 2, crown)
    crest = stage.species.crest
    if crest in ROWS:
        shape, length, width = ROWS[crest]
        for angle, share in ((-0.62, 0.76), (0.62, 0.76), (0.0, 1.0)):
            toward = complex(math.sin(angle - 0.3 * head.yaw), -math.cos(angle)) * np.exp(1j * head.nod)
            at = head.centre + complex(toward.real * head.rx, toward.imag * head.ry * crown) * 0.94
            sides = length * share * size, width * share * size
            stage.pen.figure(charm(shape, at, toward, *sides, kind.outer, kind.inner))
    elif crest in SINGLES:
        shape, length, width = SINGLES[crest]
        stage.pen.figure(charm(shape, top, up, length * size, width * size, kind.outer, kind.inner))
    elif crest != "none":
        CRESTS[crest](stage, top, complex(up), size)


def _fin(stage: Stage, top: complex, up: complex, size: float) -> None:
    stage.pen.figure(charm(shapes.FIN, top - up * 0.05, up, 0.5 * size, 0.62 * size, stage.trim))


def _curl(stage: Stage, top: complex, up: complex, size: float) -> None:
    right = up * 1j
    knots = [top - up * 0.1 * size, top + (up * 0.3 - right * 0.1) * size, top + (up * 0.5 + right * 0.14) * size,
             top + (up * 0.36 + right * 0.34) * size, top + (up * 0.24 + right * 0.2) * size]
    spine = curve(knots)
    stage.pen.figure(tube(spine, stage.main, 0.13 * size, 0.05 * size))


def _tuft(stage: Stage, top: complex, up: complex, size: float) -> None:
    for angle in (-0.5, 0.55, 0.05):
        stage.pen.figure(charm(shapes.LEAF, top - up * 0.06 * size, up * np.exp(1j * angle), 0.46 * size,
                               0.36 * size, stage.belly))


def _sprout(stage: Stage, top: complex, up: complex, size: float) -> None:
    tip = top + up * 0.22 * size
    stage.pen.figure(tube(curve([top - up * 0.1, tip]), STALK, 0.05 * size, 0.05 * size, shade=0))
    for angle in (-0.95, 0.95):
        stage.pen.figure(charm(shapes.LEAF, tip - up * 0.06 * size, up * np.exp(1j * angle), 0.62 * size, 0.62 * size,
                               stage.species.kind.outer, stage.species.kind.inner))


def _flower(stage: Stage, top: complex, up: complex, size: float) -> None:
    middle = top + up * 0.22 * size
    petals = [Part(ellipse(middle + polar(0.2 * size, a), 0.16 * size), PINK) for a in range(18, 378, 72)]
    stage.pen.figure(*petals)
    stage.pen.figure(Part(ellipse(middle, 0.11 * size), GOLD, shade=0), line=THIN)


def _bud(stage: Stage, top: complex, up: complex, size: float) -> None:
    stage.pen.figure(charm(shapes.DROP, top + up * 0.06 * size, up, 0.66 * size, 0.72 * size, PINK))
    for angle in (-0.9, 0.9):
        stage.pen.figure(charm(shapes.LEAF, top - up * 0.05 * size, up * np.exp(1j * angle), 0.5 * size, 0.5 * size,
                               stage.species.kind.outer))


def _bow(stage: Stage, top: complex, up: complex, size: float) -> None:
    for side in (-1j, 1j):
        root = top + up * 0.1 * size
        stage.pen.figure(charm(shapes.HEART, root, up * side + up * 0.35, 0.52 * size, 0.56 * size, GOLD))
    stage.pen.figure(Part(ellipse(top + up * 0.12 * size, 0.12 * size), PINK, shade=0))


CRESTS: dict[str, Callable[[Stage, complex, complex, float], None]] = {
    "fin": _fin, "curl": _curl, "tuft": _tuft, "sprout": _sprout, "flower": _flower, "bud": _bud, "bow": _bow,
}


def draw_tail(stage: Stage, root: complex, side: int, reach: float = 1.0) -> None:
    """A tail to the left (side -1) or right (1) that rises to its tip."""
    out = complex(side, 0)
    if stage.species.tail == "curled":
        knots = [root, root + (0.22 * out + 0.04j) * reach, root + (0.38 * out - 0.14j) * reach,
                 root + (0.26 * out - 0.3j) * reach, root + (0.15 * out - 0.2j) * reach]
        spine = curve(knots)
        stage.pen.figure(tube(spine, stage.main, 0.085 * reach, 0.05 * reach))
        return
    spine = curve([root, root + (0.18 * out + 0.05j) * reach, root + (0.3 * out - 0.12j) * reach])
    toward = complex(side * 0.5, -0.85)
    shape, length, width, colours = TAIL_TIPS[stage.species.tail]
    path = shape if side > 0 else shape.conj()
    tip = spine[-1] - 0.04 * toward
    stage.pen.figure(tube(spine, stage.main, 0.085 * reach, 0.055 * reach))
    kind = stage.species.kind
    plain = {"trim": stage.trim, "belly": stage.belly}
    outer, inner = (kind.outer, kind.inner) if colours == "motif" else (plain[colours], None)
    stage.pen.figure(charm(path, tip, toward, length * reach, width * reach, outer, inner))


def draw_wing(stage: Stage, root: complex, side: int, degrees: float, length: float, slim: float = 0.86) -> None:
    """One wing from its root; `degrees` above the horizontal, `slim` its width by its length."""
    toward = polar(1, degrees)
    toward = complex(side * toward.real, toward.imag)
    (shape,) = WINGS[stage.species.wings]
    path = shape if side > 0 else shape.conj()
    motif = stage.species.wings in ("leaf", "butterfly")
    outer = stage.species.kind.outer if stage.species.wings == "leaf" else stage.trim
    inner = stage.species.kind.inner if motif else None
    stage.pen.figure(charm(path, root, toward, length, length * slim, outer, inner))


def arm(stage: Stage, shoulder: complex, side: int, degrees: float, length: float, radius: float = 0.085) -> Part:
    """An arm from the shoulder, `degrees` above the horizontal."""
    hand = polar(length, degrees)
    elbow = polar(length * 0.5, degrees - 14)
    reach = [0j, complex(side * elbow.real, elbow.imag), complex(side * hand.real, hand.imag)]
    spine = shoulder + curve(reach)
    return tube(spine, glove(stage), radius * 0.9, radius * 1.1)


def glove(stage: Stage) -> Colour:
    return stage.trim if stage.species.marking == "socks" else stage.main


def foot(stage: Stage, at: complex, side: int, *, sole: bool = False, size: float = 1.0) -> Part:
    """A foot seen from the front, or its sole when the creature sits."""
    colour = glove(stage)
    if sole:
        pad = Mark(ellipse(at + 0.01j, 0.075 * size, 0.07 * size), stage.belly)
        return Part(ellipse(at, 0.135 * size, 0.13 * size), colour, (pad,))
    return Part(ellipse(at + 0.02 * side, 0.15 * size, 0.095 * size, power=2.4), colour)


def claws(at: complex) -> Part:
    """A bird's foot."""
    toes = shapes.sharp([-0.02 - 0.12j, 0.09 - 0.1j, 0.16 + 0.02j], [0.16 + 0.02j, 0.06 + 0.05j, 0j + 0.07j],
                        [0.07j, -0.06 + 0.05j, -0.14 + 0.02j], [-0.14 + 0.02j, -0.09 - 0.1j, -0.02 - 0.12j])
    return Part(at + toes, BEAK)


def markings(stage: Stage, head: Head, belly: Path) -> tuple[Mark, ...]:
    """The species' markings on a rounded body, following its turn."""
    size = head.size
    kind = stage.species.marking
    patch = (Mark(belly, stage.belly),)
    if kind == "spots":
        return (*patch, *_spots(stage, head))
    if kind == "stripes":
        return (*patch, *_stripes(stage, head))
    if kind == "mask":
        return (*patch, Mark(ellipse(head.spot(0, head.face + 0.02), 0.86 * head.rx, 0.4 * head.ry), stage.belly))
    if kind == "star":
        return (*patch, Mark(grow(stage.species.kind.motif, head.spot(0, head.face + 0.62) + 0.14j * size, -1j,
                                  0.3 * size, 0.3 * size), stage.trim))
    return patch


SPOTS = (  # longitude, latitude above the face, radius: brow and temples, never the face itself
    (-0.5, 0.8, 0.13), (0.05, 1.0, 0.17), (0.62, 0.78, 0.11), (1.3, 0.25, 0.14), (-1.3, 0.3, 0.12),
    (1.25, -0.4, 0.11), (-1.25, -0.35, 0.14),
)


def _spots(stage: Stage, head: Head) -> list[Mark]:
    rng = random.Random(seed_for(0, "spots", stage.species.index))
    marks = []
    for lon, lat, radius in SPOTS:
        lon, radius = lon + rng.uniform(-0.1, 0.1), radius * rng.uniform(0.8, 1.2) * head.size
        marks.append(Mark(ellipse(head.spot(lon, head.face + lat), radius * head.slim(lon), radius), stage.trim))
    return marks


def _stripes(stage: Stage, head: Head) -> list[Mark]:
    marks = []
    for side in (-1, 1):
        for lat in (0.62, 0.1, -0.42):
            at = head.spot(side * 1.5 - head.yaw, lat, 1.06)
            stripe = grow(shapes.SPIKE, at, complex(-side, -0.12), 0.38 * head.size, 0.2 * head.size)
            marks.append(Mark(stripe, stage.trim))
    top = head.spot(0, 1.45, 1.05)
    return [*marks, Mark(grow(shapes.SPIKE, top, 1j, 0.42 * head.size, 0.2 * head.size), stage.trim)]


def held(stage: Stage, hand: complex, side: int, size: float = 0.5) -> None:
    """The motif, held up in a hand."""
    kind = stage.species.kind
    toward = complex(side * 0.5, -1)
    root = hand + 0.04 * side - 0.04 * toward
    stage.pen.figure(charm(kind.motif, root, toward, size, size, kind.outer, kind.inner))


FLOATING: dict[str, Path] = {
    "water": shapes.DISC, "poison": shapes.DISC, "ice": shapes.SNOWFLAKE, "metal": shapes.star(4, 0.36),
}
PERCHES = (*(complex(x, y) for x in (-0.78, 0.78) for y in (-0.76, -0.44, -0.1)), -0.44 - 0.78j, 0.44 - 0.78j)


def draw_adrift(stage: Stage, free: Callable[[complex], float], seed: int, index: int) -> None:
    """Small motifs about the creature; `free` tells how far a point is from it."""
    rng = random.Random(seed_for(seed, "adrift", index))
    kind = stage.species.kind
    perches = [perch + complex(rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.03)) for perch in PERCHES]
    roomy = [perch for perch in perches if free(perch) > 0.2]
    for at in rng.sample(roomy, min(stage.pose.adrift, len(roomy))):
        size, toward = rng.uniform(0.14, 0.19), polar(1, rng.uniform(40, 140))
        shape = FLOATING.get(kind.word, kind.motif)
        part = charm(shape, at - toward * size / 2, toward, size, size, kind.outer, kind.inner)
        stage.pen.figure(part, line=LINE * 0.7)

"""Heads that turn, and what is on them: eyes, mouth, cheeks, brows."""

import math
from dataclasses import dataclass

import numpy as np

from tools.pocket.drawing.paint import INK, THIN, WHITE, Brush, Mark, Part
from tools.pocket.drawing.poses import Mood
from tools.pocket.drawing.shapes import Path, curve, ellipse, sharp
from tools.pocket.drawing.species import Species, rgb

MOUTH, TONGUE, BLUSH, BEAK, TEAR = rgb("a8324e"), rgb("ff8b94"), rgb("ff8e86"), rgb("ffb02e"), rgb("8fd8ff")


@dataclass(frozen=True)
class Head:
    """A ball seen from the front, turned by `yaw` (radians, to the right) and tipped by `nod` (radians, clockwise)."""

    centre: complex
    rx: float
    ry: float
    yaw: float = 0.0
    nod: float = 0.0
    face: float = 0.0  # latitude of the middle of the face, radians

    def spot(self, lon: float, lat: float, height: float = 1.0) -> complex:
        """The point of the surface at a longitude (right positive) and latitude (up positive), in radians."""
        x = self.rx * math.sin(lon + self.yaw) * math.cos(lat)
        y = -self.ry * math.sin(lat)
        return self.centre + complex(x, y) * height * np.exp(1j * self.nod)

    def slim(self, lon: float) -> float:
        """How much of its width something keeps at a longitude: 1 facing us, less toward the edge."""
        return max(0.3, math.cos(lon + self.yaw))

    def turned(self, path: Path, about: complex) -> Path:
        return about + path * np.exp(1j * self.nod)

    @property
    def size(self) -> float:
        return math.sqrt(self.rx * self.ry)


def outline(head: Head, kind: str) -> Path:
    """The head's edge in one of six builds."""
    rx, ry = head.rx, head.ry
    shapes = {
        "round": ellipse(0j, rx, ry, power=2.15),
        "wide": ellipse(0j, rx * 1.1, ry * 0.94, power=2.3),
        "square": ellipse(0j, rx, ry * 0.98, power=3.0),
        "tall": ellipse(0j, rx * 0.94, ry * 1.07, power=2.2),
        "cheeks": _cheeks(rx, ry),
        "drop": curve([complex(x * rx, y * ry) for x, y in DROP], closed=True),
    }
    return head.turned(shapes[kind], head.centre)


DROP = ((0, -1.16), (0.42, -0.84), (0.86, -0.28), (1.02, 0.28), (0.76, 0.8), (0, 1.0),
        (-0.76, 0.8), (-1.02, 0.28), (-0.86, -0.28), (-0.42, -0.84))


def _cheeks(rx: float, ry: float) -> Path:
    right = [(0, -1), (0.7, -0.76), (1.0, -0.1), (1.22, 0.34)]
    low = [(1.22, 0.34), (0.98, 0.42), (1.08, 0.66)]
    chin = [(1.08, 0.66), (0.66, 0.86), (0, 0.98), (-0.66, 0.86), (-1.08, 0.66)]
    runs = [right, low, chin, [(-x, y) for x, y in reversed(low)], [(-x, y) for x, y in reversed(right)]]
    return sharp(*[[complex(x * rx, y * ry) for x, y in run] for run in runs])


def draw_face(pen: Brush, head: Head, species: Species, mood: Mood) -> None:
    if mood.blush or species.freckled:
        _cheek_dabs(pen, head)
    for side in (-1, 1):
        _eye(pen, head, species, mood, side)
    if species.plan == "bird":
        _beak(pen, head, mood)
    else:
        _mouth(pen, head, mood, species.fangs)
    if mood.extra == "tear":
        spot = head.spot(-0.5 if head.yaw > 0 else 0.5, head.face - 0.3)
        pen.figure(Part(ellipse(spot, 0.05, 0.075), TEAR, shade=0), line=THIN)


def _cheek_dabs(pen: Brush, head: Head) -> None:
    for side in (-1, 1):
        lon = side * 0.78
        if head.slim(lon) > 0.35:
            at = head.spot(lon, head.face - 0.36)
            pen.dab(ellipse(at, 0.16 * head.size * head.slim(lon), 0.1 * head.size), BLUSH)


EYE_SIZES = {"bead": (0.19, 0.245), "wide": (0.225, 0.25), "tall": (0.17, 0.285)}


@dataclass(frozen=True)
class Eye:
    """One eye: where, how large, how far the pupil looks aside, and how far the lid hangs (-1 open, 1 shut)."""

    at: complex
    rx: float
    ry: float
    gaze: complex
    lid: float
    slant: float

    def oval(self, centre: complex, width: float, height: float) -> Path:
        middle = self.at + complex(centre.real * self.rx, centre.imag * self.ry)
        return ellipse(middle, width * self.rx, height * self.ry)

    def edge(self, reach: float) -> tuple[complex, complex]:
        """The lid's lower edge, `reach` eye widths long."""
        middle, half = self.at + 1j * self.lid * self.ry, complex(reach * self.rx, self.slant * reach * self.ry)
        return middle - half, middle + half


def _eye(pen: Brush, head: Head, species: Species, mood: Mood, side: int) -> None:
    lon = side * 0.46
    at, slim = head.spot(lon, head.face + 0.06), head.slim(lon) ** 0.7
    width, height = EYE_SIZES[species.eyes]
    rx, ry = width * head.size * slim, height * head.size
    bow = {"arc": -1, "closed": 1, "wink": -1 if side < 0 else 0}.get(mood.eyes, 0)
    if bow:
        turn = np.linspace(0, math.pi, 12)
        pen.line(head.turned(np.cos(turn) * rx * 1.1 + 1j * bow * np.sin(turn) * ry * 0.55, at), THIN * 1.25)
        return
    lid = 0.02 if mood.eyes == "half" else (-0.42 if mood.lid else -2.0)
    _open_eye(pen, species, mood, Eye(at, rx, ry, mood.gaze, lid, -side * mood.lid * 0.95))


def _open_eye(pen: Brush, species: Species, mood: Mood, eye: Eye) -> None:
    skin = species.coat.belly.colour if species.marking == "mask" else species.coat.main.colour
    left, right = eye.edge(1.6)
    lid = Mark(np.array([left, right, right - 3j * eye.ry, left - 3j * eye.ry]), skin)
    if species.eyes == "wide":
        pen.figure(Part(eye.oval(0j, 1, 1), WHITE, (*_pupil(species, mood, eye), lid), shade=0), line=THIN)
    else:
        wide = 0.62 + 0.38 * mood.pupil
        marks = (Mark(eye.oval(eye.gaze * 0.4 + 0.62j, 0.72 * wide, 0.5 * wide), species.coat.trim.colour),
                 *_shine(eye, eye.gaze * 0.3), lid)
        pen.figure(Part(eye.oval(0j, 1.2, 1.15), WHITE, (lid,), shade=0), line=0)
        pen.figure(Part(eye.oval(eye.gaze * 0.12, wide, wide), INK, marks, shade=0), line=0)
    if eye.lid > -1:
        pen.line(np.array(eye.edge(1.12)), THIN * 1.25)


def _pupil(species: Species, mood: Mood, eye: Eye) -> tuple[Mark, ...]:
    k, centre = mood.pupil, eye.gaze * 0.4
    iris = Mark(eye.oval(centre + 0.36j * k, 0.46 * k, 0.36 * k), species.kind.outer)
    return Mark(eye.oval(centre, 0.76 * k, 0.82 * k), INK), iris, *_shine(eye, centre)


def _shine(eye: Eye, centre: complex) -> tuple[Mark, ...]:
    top = centre + complex(-0.28, max(-0.42, eye.lid + 0.4))
    return Mark(eye.oval(top, 0.38, 0.3), WHITE), Mark(eye.oval(centre + 0.34 + 0.36j, 0.18, 0.15), WHITE)


def _mouth(pen: Brush, head: Head, mood: Mood, fangs: bool) -> None:
    at, slim = head.spot(0, head.face - 0.44), head.slim(0)
    w, h = 0.3 * head.size * slim, 0.2 * head.size
    kind = mood.mouth
    if kind in ("laugh", "tongue"):
        _open_mouth(pen, head, at, w, h * (1.35 if kind == "laugh" else 0.95), tongue=0.62)
    elif kind in ("o", "o small"):
        r = h * (0.62 if kind == "o" else 0.4)
        pen.figure(Part(ellipse(at, r * 0.9, r * 1.15), MOUTH, shade=0), line=THIN)
    else:
        bow = {"smile": (0.95, 0.5), "frown": (0.7, -0.42), "tiny": (0.42, 0.3), "smirk": (0.8, 0.38)}[kind]
        x = np.linspace(-1, 1, 14)
        slope = 0.25 * x if kind == "smirk" else 0
        line = x * w * bow[0] + 1j * h * (bow[1] * (1 - x**2) - slope)
        pen.line(head.turned(line, at), THIN * 1.1)
    if fangs and kind in ("smile", "frown", "smirk", "laugh"):
        _fangs(pen, head, at, w, h, kind)


def _open_mouth(pen: Brush, head: Head, at: complex, w: float, h: float, tongue: float) -> None:
    shape = sharp([-w - 0.15j * h, 0.12j * h, w - 0.15j * h],
                  [w - 0.15j * h, complex(0.72 * w, 0.8 * h), 1.15j * h, complex(-0.72 * w, 0.8 * h), -w - 0.15j * h])
    marks = (Mark(head.turned(ellipse(1.1j * h, w * tongue, h * 0.5), at), TONGUE),)
    pen.figure(Part(head.turned(shape, at), MOUTH, marks, shade=0), line=THIN)


def _fangs(pen: Brush, head: Head, at: complex, w: float, h: float, kind: str) -> None:
    sign = -1 if kind == "frown" else 1
    for side in (-1, 1):
        root = complex(side * 0.5 * w, h * (0.1 if kind != "frown" else -0.05))
        tooth = root + np.array([-0.16 * w, 0.16 * w, 0.42j * h * sign])
        pen.figure(Part(head.turned(tooth, at), WHITE, shade=0), line=THIN * 0.7)


def _beak(pen: Brush, head: Head, mood: Mood) -> None:
    at, slim = head.spot(0, head.face - 0.3, 1.02), head.slim(0)
    w, h = 0.24 * head.size * slim, 0.2 * head.size
    if mood.mouth in ("laugh", "tongue", "o", "o small"):
        _open_mouth(pen, head, at + 0.35j * h, w * 0.8, h * (1.1 if mood.mouth == "laugh" else 0.8), tongue=0.6)
    upper = sharp([-w + 0j, -0.75j * h, w + 0j], [w + 0j, complex(0.4 * w, 0.75 * h), 1.0j * h],
                  [1.0j * h, complex(-0.4 * w, 0.75 * h), -w + 0j])
    pen.figure(Part(head.turned(upper, at), BEAK, shade=0.25), line=THIN * 1.1)

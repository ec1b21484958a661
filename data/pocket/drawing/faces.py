"""Heads that turn, and what is on them: eyes, mouth, cheeks, brows."""

import math
from dataclasses import dataclass

import numpy as np

from data.pocket.drawing.palettes import rgb
from data.pocket.drawing.pen import INK, LINE, WHITE, Mark, Part, Pen
from data.pocket.drawing.poses import Mood
from data.pocket.drawing.shapes import Path, curve, ellipse, sharp
from data.pocket.drawing.species import Species

MOUTH, TONGUE, BLUSH, BEAK, TEAR = rgb("a8324e"), rgb("ff8b94"), rgb("ff8e86"), rgb("ffb02e"), rgb("8fd8ff")
THIN = LINE * 0.42


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


def draw_face(pen: Pen, head: Head, species: Species, mood: Mood) -> None:
    if mood.blush or species.freckled:
        _cheek_dabs(pen, head)
    for side in (-1, 1):
        _eye(pen, head, species, mood, side)
    beaked = species.plan == "bird"
    if beaked:
        _beak(pen, head, mood)
    else:
        _mouth(pen, head, mood, species.fangs)
    if mood.extra == "tear":
        spot = head.spot(0.62, head.face - 0.34)
        pen.figure(Part(ellipse(spot, 0.045, 0.07), TEAR, shade=0), line=THIN)


def _cheek_dabs(pen: Pen, head: Head) -> None:
    for side in (-1, 1):
        lon = side * 0.78
        if head.slim(lon) > 0.35:
            at = head.spot(lon, head.face - 0.36)
            pen.dab(ellipse(at, 0.16 * head.size * head.slim(lon), 0.1 * head.size), BLUSH)


def _eye(pen: Pen, head: Head, species: Species, mood: Mood, side: int) -> None:
    lon = side * 0.46
    at, slim = head.spot(lon, head.face + 0.06), head.slim(lon) ** 0.7
    rx, ry = {"bead": (0.185, 0.24), "wide": (0.225, 0.25), "tall": (0.165, 0.28)}[species.eyes]
    rx, ry = rx * head.size * slim, ry * head.size
    shut = {"arc": -1, "closed": 1, "wink": -1 if side < 0 else 0}.get(mood.eyes, 0)
    if shut:
        bow = np.linspace(0, math.pi, 12)
        line = np.cos(bow) * rx * 1.1 + 1j * shut * np.sin(bow) * ry * 0.55
        pen.line(head.turned(line, at), THIN * 1.25)
        return
    gaze = complex(mood.gaze.real * rx * 0.3, mood.gaze.imag * ry * 0.3)
    _open_eye(pen, head, species, mood, at, rx, ry, gaze)
    _lid(pen, head, species, mood, at, rx, ry, side)


def _open_eye(
    pen: Pen, head: Head, species: Species, mood: Mood, at: complex, rx: float, ry: float, gaze: complex
) -> None:
    iris = species.kind.outer if species.eyes == "wide" else species.coat.trim.colour
    if species.eyes == "wide":
        spot = at + gaze * 1.4
        marks = (
            Mark(ellipse(spot, rx * 0.74 * mood.pupil, ry * 0.8 * mood.pupil), INK),
            Mark(ellipse(spot + 0.34j * ry * mood.pupil, rx * 0.44 * mood.pupil, ry * 0.34 * mood.pupil), iris),
        )
        pen.figure(Part(head.turned(ellipse(0j, rx, ry), at), WHITE, marks, shade=0), line=THIN)
    else:
        k = 0.55 + 0.45 * mood.pupil
        pen.dab(head.turned(ellipse(0j, rx * 1.22, ry * 1.16), at), WHITE)
        marks = (Mark(ellipse(at + gaze + 0.62j * ry, rx * 0.72 * k, ry * 0.5 * k), iris),)
        pen.figure(Part(head.turned(ellipse(gaze * 0.5, rx * k, ry * k), at), INK, marks, shade=0), line=0.004)
    shine = at + gaze + complex(-0.3 * rx, -0.4 * ry)
    pen.dab(ellipse(shine, rx * 0.4, ry * 0.32), WHITE)
    pen.dab(ellipse(at + gaze + complex(0.36 * rx, 0.34 * ry), rx * 0.18, ry * 0.15), WHITE)


def _lid(
    pen: Pen, head: Head, species: Species, mood: Mood, at: complex, rx: float, ry: float, side: int
) -> None:
    """The upper lid: the head's own colour down to a straight edge."""
    if mood.eyes != "half" and not mood.lid:
        return
    drop = 0.05 if mood.eyes == "half" else -0.42
    slant = complex(1.3 * rx, -side * mood.lid * ry * 1.25)
    edge = [drop * ry * 1j - slant, drop * ry * 1j + slant]
    cover = np.array([*edge, edge[1] - 1.4j * ry * (1 + drop), edge[0] - 1.4j * ry * (1 + drop)])
    pen.dab(head.turned(cover, at), species.coat.main.colour)
    pen.line(head.turned(np.array(edge), at), THIN * 1.15)


def _mouth(pen: Pen, head: Head, mood: Mood, fangs: bool) -> None:
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


def _open_mouth(pen: Pen, head: Head, at: complex, w: float, h: float, tongue: float) -> None:
    shape = sharp([-w - 0.15j * h, 0.12j * h, w - 0.15j * h],
                  [w - 0.15j * h, complex(0.72 * w, 0.8 * h), 1.15j * h, complex(-0.72 * w, 0.8 * h), -w - 0.15j * h])
    marks = (Mark(head.turned(ellipse(1.1j * h, w * tongue, h * 0.5), at), TONGUE),)
    pen.figure(Part(head.turned(shape, at), MOUTH, marks, shade=0), line=THIN)


def _fangs(pen: Pen, head: Head, at: complex, w: float, h: float, kind: str) -> None:
    sign = -1 if kind == "frown" else 1
    for side in (-1, 1):
        root = complex(side * 0.5 * w, h * (0.1 if kind != "frown" else -0.05))
        tooth = root + np.array([-0.16 * w, 0.16 * w, 0.42j * h * sign])
        pen.figure(Part(head.turned(tooth, at), WHITE, shade=0), line=THIN * 0.7)


def _beak(pen: Pen, head: Head, mood: Mood) -> None:
    at, slim = head.spot(0, head.face - 0.3, 1.02), head.slim(0)
    w, h = 0.24 * head.size * slim, 0.2 * head.size
    if mood.mouth in ("laugh", "tongue", "o", "o small"):
        _open_mouth(pen, head, at + 0.35j * h, w * 0.8, h * (1.1 if mood.mouth == "laugh" else 0.8), tongue=0.6)
    upper = sharp([-w + 0j, -0.75j * h, w + 0j], [w + 0j, complex(0.4 * w, 0.75 * h), 1.0j * h],
                  [1.0j * h, complex(-0.4 * w, 0.75 * h), -w + 0j])
    pen.figure(Part(head.turned(upper, at), BEAK, shade=0.25), line=THIN * 1.1)

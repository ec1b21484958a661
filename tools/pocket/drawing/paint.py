"""What a creature is drawn with: colours, parts, marks, its place; a pen makes pixels, a ruler only measures.

Stage coordinates: x and y from -1 to 1 over the picture, y down; the creature stands on y = 0.72 before it is placed.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from tools.pocket.drawing.shapes import Path

Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]
INK: Colour = (42, 28, 82)
PAPER: Colour = (255, 243, 219)
SHADE: Colour = (206, 178, 222)
WHITE: Colour = (255, 253, 246)
LINE = 0.05  # width of the ink outside a part
LIGHT = -0.55 - 0.83j  # where the light comes from, a unit vector
THIN = 0.021  # half-width of inner lines
GROUND = 0.72


@dataclass(frozen=True)
class Place:
    """Where the creature stands: stretched about its feet, turned, perhaps mirrored, scaled and moved."""

    at: complex = 0j
    scale: float = 1.0
    tilt: float = 0.0
    stretch: float = 1.0
    mirror: bool = False

    def __call__(self, path: Path) -> Path:
        x, y = path.real / math.sqrt(self.stretch), GROUND + (path.imag - GROUND) * self.stretch
        turned = (x + 1j * y) * np.exp(1j * self.tilt) * self.scale
        return (-np.conj(turned) if self.mirror else turned) + self.at


@dataclass(frozen=True)
class Mark:
    """Something painted on a part and cut off at its edge: a filled outline, or a line if `line` is a half-width."""

    path: Path
    colour: Colour
    line: float = 0.0


@dataclass(frozen=True)
class Part:
    """A filled outline, or, with `radii`, a tube along a spine (one radius a point of the spine)."""

    path: Path
    colour: Colour
    marks: tuple[Mark, ...] = ()
    radii: NDArray[np.float64] | None = None
    shade: float = 0.2  # width of the shaded rim as a share of the part


def tube(
    spine: Path, colour: Colour, start: float, end: float, marks: tuple[Mark, ...] = (), shade: float = 0.2
) -> Part:
    """A tapered tube along a spine."""
    return Part(spine, colour, marks, np.linspace(start, end, len(spine), dtype=np.float64), shade)


class Ruler:
    """It takes the same strokes as the pen and remembers only where they reached."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._reached: list[Path] = []

    def figure(self, *parts: Part, line: float = LINE) -> None:
        for part in parts:
            radius = line + (0.0 if part.radii is None else float(part.radii.max()) * self.place.scale)
            self._reach(part.path, radius)

    def line(self, path: Path, half_width: float, colour: Colour = INK) -> None:
        self._reach(path, half_width)

    def dab(self, path: Path, colour: Colour) -> None:
        self._reach(path, 0.0)

    def _reach(self, path: Path, radius: float) -> None:
        placed = self.place(np.asarray(path, dtype=np.complex128))
        self._reached.extend(placed + radius * step for step in (1, -1, 1j, -1j))

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of everything drawn, ink included."""
        every = np.concatenate(self._reached)
        return float(every.real.min()), float(every.imag.min()), float(every.real.max()), float(every.imag.max())

    def distance(self, point: complex) -> float:
        """From a point to the nearest place reached; parts are outlines, so the inside of a wide part looks empty."""
        return float(np.abs(np.concatenate(self._reached) - point).min()) if self._reached else math.inf


class Pen:
    """A pen for one picture: ink outline, flat colour, one flat shade, drawn large and reduced.

    Nothing depends on the size in pixels except the sampling, so the same picture comes out at every size.
    """

    def __init__(self, size: int, place: Place, paper: Colour = PAPER) -> None:
        self._over = max(2, -(-256 // size), min(4, 1536 // size))
        self._px = size * self._over
        self.place = place
        self._image = Image.new("RGB", (self._px, self._px), paper)
        self._draw = ImageDraw.Draw(self._image)

    def finish(self) -> Image.Image:
        return self._image.reduce(self._over)

    def figure(self, *parts: Part, line: float = LINE) -> None:
        """Parts that share one outline: no ink between them. Without ink at all if `line` is 0."""
        for part in parts if line else ():
            self._ink(part, line)
        for part in parts:
            self._fill(part)

    def line(self, path: Path, half_width: float, colour: Colour = INK) -> None:
        _stamp(self._draw, self._pixels(path), self._length(half_width), colour)

    def dab(self, path: Path, colour: Colour) -> None:
        self._draw.polygon(_flat(self._pixels(path)), fill=colour)

    def _pixels(self, path: Path) -> Path:
        return (self.place(np.asarray(path, dtype=np.complex128)) + (1 + 1j)) * (self._px / 2)

    def _length(self, length: float) -> float:
        """Ink keeps its width whatever the creature's scale: one pen for the whole set."""
        return length * self._px / 2

    def _radii(self, part: Part) -> NDArray[np.float64] | None:
        return None if part.radii is None else part.radii * (self.place.scale * self._px / 2)

    def _ink(self, part: Part, line: float) -> None:
        edge, radii, width = self._pixels(part.path), self._radii(part), self._length(line)
        if radii is None:
            _stamp(self._draw, np.append(edge, edge[0]), width, INK)
        else:
            _stamp(self._draw, edge, radii + width, INK)

    def _fill(self, part: Part) -> None:
        edge, radii = self._pixels(part.path), self._radii(part)
        thick = 0.0 if radii is None else float(radii.max())
        box, origin = _box(edge, thick)
        edge = edge - origin
        mask = _solid(box, edge, radii)
        layer = Image.new("RGB", mask.size, part.colour)
        self._marks(layer, part.marks, origin)
        if part.shade:
            span = min(float(np.ptp(edge.real)), float(np.ptp(edge.imag))) if radii is None else 2.2 * thick
            lit = _solid(box, edge + LIGHT * part.shade * span, radii)
            layer = Image.composite(layer, ImageChops.multiply(layer, Image.new("RGB", mask.size, SHADE)), lit)
        self._image.paste(layer, box[:2], mask)

    def _marks(self, layer: Image.Image, marks: tuple[Mark, ...], origin: complex) -> None:
        draw = ImageDraw.Draw(layer)
        for mark in marks:
            edge = self._pixels(mark.path) - origin
            if mark.line:
                _stamp(draw, edge, self._length(mark.line), mark.colour)
            else:
                draw.polygon(_flat(edge), fill=mark.colour)


def _solid(box: Box, edge: Path, radii: NDArray[np.float64] | None) -> Image.Image:
    mask = Image.new("L", box[2:], 0)
    draw = ImageDraw.Draw(mask)
    if radii is None:
        draw.polygon(_flat(edge), fill=255)
    else:
        _stamp(draw, edge, radii, 255)
    return mask


def _stamp(
    draw: ImageDraw.ImageDraw, path: Path, radius: NDArray[np.float64] | float, colour: Colour | int
) -> None:
    """Circles close enough to read as one stroke: round joints and ends, any taper, no self-crossing holes."""
    radii = np.broadcast_to(np.asarray(radius, dtype=float), path.shape)
    along = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(path)))])
    where = np.linspace(0, along[-1], 2 + int(along[-1] / max(1.0, 0.4 * float(radii.min()))))
    x, y = np.interp(where, along, path.real), np.interp(where, along, path.imag)
    r = np.interp(where, along, radii)
    for corners in np.stack([x - r, y - r, x + r, y + r], axis=1).tolist():
        draw.ellipse(corners, fill=colour)


def _flat(edge: Path) -> list[float]:
    return np.stack([edge.real, edge.imag], axis=1).ravel().tolist()


def _box(edge: Path, margin: float) -> tuple[Box, complex]:
    """(left, top, width, height) in whole pixels, and the corner as a point."""
    left, top = math.floor(edge.real.min() - margin) - 1, math.floor(edge.imag.min() - margin) - 1
    right, bottom = math.ceil(edge.real.max() + margin) + 2, math.ceil(edge.imag.max() + margin) + 2
    return (left, top, right - left, bottom - top), complex(left, top)


Brush = Pen | Ruler

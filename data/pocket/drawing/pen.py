"""A pen for one picture: ink outline, flat colour, one flat shade, drawn large and reduced.

Stage coordinates: x and y from -1 to 1 over the picture, y down. Nothing here depends on the size in pixels except the
sampling, so the same picture comes out at every size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from data.pocket.drawing.shapes import Path

Colour = tuple[int, int, int]
INK: Colour = (42, 28, 82)
PAPER: Colour = (255, 243, 219)
SHADE: Colour = (206, 178, 222)
WHITE: Colour = (255, 253, 246)
LINE = 0.05
LIGHT = -0.55 - 0.83j


@dataclass(frozen=True)
class Place:
    """Where the creature stands: stretched about its feet, turned about its middle, scaled, moved, perhaps mirrored."""

    at: complex = 0j
    scale: float = 1.0
    tilt: float = 0.0
    stretch: float = 1.0
    mirror: bool = False
    foot: float = 0.72

    def __call__(self, path: Path) -> Path:
        x, y = path.real / math.sqrt(self.stretch), self.foot + (path.imag - self.foot) * self.stretch
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
    radii: Path | Sequence[float] | None = None
    shade: float = 0.2


class Pen:
    def __init__(self, size: int, place: Place, paper: Colour = PAPER) -> None:
        self._size = size
        self._over = max(2, -(-256 // size), min(4, 1024 // size))
        self._px = size * self._over
        self.place = place
        self._image = Image.new("RGB", (self._px, self._px), paper)
        self._draw = ImageDraw.Draw(self._image)

    def finish(self) -> Image.Image:
        return self._image.reduce(self._over)

    def figure(self, *parts: Part, line: float = LINE) -> None:
        """Parts that share one outline: no ink between them."""
        for part in parts:
            self._ink(part, line)
        for part in parts:
            self._fill(part)

    def line(self, path: Path, half_width: float = LINE / 2, colour: Colour = INK) -> None:
        """A round-ended stroke along an open path."""
        self._stamp(self._draw, self._pixels(path), self._length(half_width), colour)

    def dab(self, path: Path, colour: Colour) -> None:
        """A filled outline without ink or shade."""
        self._draw.polygon(_flat(self._pixels(path)), fill=colour)

    def _pixels(self, path: Path) -> Path:
        return (self.place(np.asarray(path, dtype=np.complex128)) + (1 + 1j)) * (self._px / 2)

    def _length(self, length: float) -> float:
        """Ink keeps its width whatever the creature's scale: one pen for the whole set."""
        return length * self._px / 2

    def _ink(self, part: Part, line: float) -> None:
        edge = self._pixels(part.path)
        width = self._length(line)
        if part.radii is None:
            self._stamp(self._draw, np.append(edge, edge[0]), width, INK)
            return
        self._stamp(self._draw, edge, self._radii(part) + width, INK)

    def _radii(self, part: Part) -> Path:
        assert part.radii is not None
        return np.asarray(part.radii, dtype=float) * self.place.scale * self._px / 2

    def _fill(self, part: Part) -> None:
        edge = self._pixels(part.path)
        radii = None if part.radii is None else self._radii(part)
        box, origin = _box(edge, 0.0 if radii is None else float(np.max(radii)))
        mask = Image.new("L", box[2:], 0)
        self._solid(mask, edge - origin, radii)
        layer = Image.new("RGB", mask.size, part.colour)
        self._marks(layer, part.marks, origin)
        if part.shade:
            reach = part.shade * (_extent(edge) if radii is None else 2.2 * float(np.max(radii)))
            lit = Image.new("L", mask.size, 0)
            self._solid(lit, edge - origin + LIGHT * reach, radii)
            dark = ImageChops.multiply(layer, Image.new("RGB", mask.size, SHADE))
            layer = Image.composite(layer, dark, lit)
        self._image.paste(layer, box[:2], mask)

    def _solid(self, mask: Image.Image, edge: Path, radii: Path | None) -> None:
        draw = ImageDraw.Draw(mask)
        if radii is None:
            draw.polygon(_flat(edge), fill=255)
        else:
            self._stamp(draw, edge, radii, 255)

    def _marks(self, layer: Image.Image, marks: tuple[Mark, ...], origin: complex) -> None:
        draw = ImageDraw.Draw(layer)
        for mark in marks:
            edge = self._pixels(mark.path) - origin
            if mark.line:
                self._stamp(draw, edge, self._length(mark.line), mark.colour)
            else:
                draw.polygon(_flat(edge), fill=mark.colour)

    def _stamp(self, draw: ImageDraw.ImageDraw, path: Path, radius: Path | float, colour: Colour | int) -> None:
        """Circles close enough to read as one stroke: round joints and ends, any taper, no self-crossing holes."""
        radii = np.broadcast_to(np.asarray(radius, dtype=float), path.shape)
        along = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(path)))])
        count = 2 + int(along[-1] / max(1.0, 0.4 * float(radii.min())))
        where = np.linspace(0, along[-1], count)
        x, y = np.interp(where, along, path.real), np.interp(where, along, path.imag)
        r = np.interp(where, along, radii)
        for box in np.stack([x - r, y - r, x + r, y + r], axis=1).tolist():
            draw.ellipse(box, fill=colour)


def _flat(edge: Path) -> list[float]:
    return np.stack([edge.real, edge.imag], axis=1).ravel().tolist()


def _extent(edge: Path) -> float:
    return float(min(np.ptp(edge.real), np.ptp(edge.imag)))


def _box(edge: Path, margin: float) -> tuple[tuple[int, int, int, int], complex]:
    """(left, top, width, height) in whole pixels, and the corner as a point."""
    left, top = math.floor(edge.real.min() - margin) - 1, math.floor(edge.imag.min() - margin) - 1
    right, bottom = math.ceil(edge.real.max() + margin) + 2, math.ceil(edge.imag.max() + margin) + 2
    return (left, top, right - left, bottom - top), complex(left, top)

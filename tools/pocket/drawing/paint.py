"""The words of a drawing: colours, parts, marks, where the creature stands, and what a brush can do.

Stage coordinates: x and y from -1 to 1 over the picture, y down; the creature stands on y = 0.72 before it is placed.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tools.pocket.drawing.shapes import Path

Colour = tuple[int, int, int]
INK: Colour = (42, 28, 82)
PAPER: Colour = (255, 243, 219)
SHADE: Colour = (206, 178, 222)
WHITE: Colour = (255, 253, 246)
LINE = 0.05  # width of the ink outside a part
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


class Brush(Protocol):
    """What a creature is drawn with: a Pen makes pixels, a Ruler only measures."""

    place: Place

    def figure(self, *parts: Part, line: float = LINE) -> None:
        """Parts that share one outline: no ink between them. Without ink at all if `line` is 0."""
        ...

    def line(self, path: Path, half_width: float, colour: Colour = INK) -> None:
        """A round-ended stroke along an open path."""
        ...

    def dab(self, path: Path, colour: Colour) -> None:
        """A filled outline without ink or shade."""
        ...

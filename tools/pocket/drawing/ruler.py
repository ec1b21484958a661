"""A brush that measures: it takes the same strokes as the pen and remembers only where they reached."""

import math

import numpy as np

from tools.pocket.drawing.paint import INK, LINE, Colour, Part, Place
from tools.pocket.drawing.shapes import Path


class Ruler:
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

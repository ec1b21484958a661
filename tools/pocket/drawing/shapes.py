"""Outlines as arrays of complex numbers (x + iy, y pointing down): turning is a product, moving is a sum.

A *charm* is an outline that grows from 0 along the real axis to about 1, half a unit to each side: `grow` plants it.
The constants are charms.
"""

import cmath
import math

import numpy as np
from numpy.typing import NDArray

Path = NDArray[np.complex128]


def ellipse(centre: complex, rx: float, ry: float | None = None, *, power: float = 2.0, count: int = 64) -> Path:
    """A superellipse: power 2 is an ellipse, larger is boxier."""
    turn = np.linspace(0, 2 * math.pi, count, endpoint=False)
    c, s = np.cos(turn), np.sin(turn)
    x = np.sign(c) * np.abs(c) ** (2 / power)
    y = np.sign(s) * np.abs(s) ** (2 / power)
    return centre + x * rx + 1j * y * (rx if ry is None else ry)


def curve(knots: Path | list[complex], *, closed: bool = False, steps: int = 10) -> Path:
    """Catmull-Rom curve through the knots."""
    k = np.asarray(knots, dtype=np.complex128)
    padded = np.concatenate([k[-1:], k, k[:2]]) if closed else np.concatenate([k[:1], k, k[-1:]])
    p0, p1, p2, p3 = padded[:-3, None], padded[1:-2, None], padded[2:-1, None], padded[3:, None]
    t = np.linspace(0, 1, steps, endpoint=False)[None]
    bend = (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    points = (0.5 * (2 * p1 + (p2 - p0) * t + bend)).ravel()
    return points if closed else np.append(points, k[-1])


def sharp(*runs: list[complex]) -> Path:
    """A closed outline of smooth runs that meet in corners: each run starts where the one before it ended."""
    return np.concatenate([curve(run) for run in runs])


def grow(charm: Path, at: complex, toward: complex, length: float, width: float | None = None) -> Path:
    """Plant a charm at a point, its tip toward a direction."""
    heading = toward / abs(toward)
    return at + heading * (charm.real * length + 1j * charm.imag * (length if width is None else width))


def polar(length: float, degrees: float) -> complex:
    """A vector by compass: 0 degrees is right, 90 is up."""
    return cmath.rect(length, -math.radians(degrees))


def star(points: int = 5, inner: float = 0.5) -> Path:
    turn = np.arange(2 * points) * math.pi / points
    radius = np.where(np.arange(2 * points) % 2 == 0, 0.56, 0.56 * inner)
    return np.asarray(0.5 + radius * np.exp(1j * turn), dtype=np.complex128)


def hexagon(centre: complex, radius: float) -> Path:
    return np.asarray(centre + radius * np.exp(1j * np.arange(6) * math.pi / 3), dtype=np.complex128)


LEAF = sharp([0j, 0.22 - 0.34j, 0.62 - 0.36j, 1 + 0j], [1 + 0j, 0.62 + 0.36j, 0.22 + 0.34j, 0j])
SPIKE = sharp([-0.1 - 0.5j, 0.35 - 0.28j, 1 + 0j], [1 + 0j, 0.35 + 0.28j, -0.1 + 0.5j], [-0.1 + 0.5j, -0.1 - 0.5j])
HORN = sharp([-0.1 - 0.5j, 0.5 - 0.5j, 1 - 0.15j], [1 - 0.15j, 0.6 + 0.05j, 0.3 + 0.35j, -0.1 + 0.5j],
             [-0.1 + 0.5j, -0.1 - 0.5j])
FLAME = sharp(
    [0j, -0.02 - 0.3j, 0.2 - 0.52j, 0.62 - 0.5j],
    [0.62 - 0.5j, 0.5 - 0.3j, 0.62 - 0.16j, 1.05 + 0.02j],
    [1.05 + 0.02j, 0.66 + 0.14j, 0.56 + 0.3j, 0.72 + 0.52j],
    [0.72 + 0.52j, 0.3 + 0.54j, -0.02 + 0.34j, 0j],
)
WISP = sharp([0j, 0.02 - 0.42j, 0.34 - 0.48j, 0.6 - 0.2j, 0.8 - 0.02j, 1.05 - 0.3j],
             [1.05 - 0.3j, 1.0 + 0.2j, 0.62 + 0.42j, 0.25 + 0.46j, 0.02 + 0.3j, 0j])
BOLT = np.array([-0.05 - 0.2j, 0.5 - 0.42j, 0.44 - 0.1j, 1.05 - 0.3j, 0.62 + 0.42j, 0.6 + 0.1j, -0.05 + 0.2j])
CRYSTAL = np.array([-0.05 - 0.26j, 0.66 - 0.42j, 1.05 - 0.02j, 0.66 + 0.38j, -0.05 + 0.28j])
CHUNK = np.array([-0.05 - 0.4j, 0.45 - 0.56j, 0.92 - 0.3j, 1 + 0.2j, 0.6 + 0.52j, -0.05 + 0.44j])
DROP = sharp([1.05 + 0j, 0.62 - 0.22j, 0.22 - 0.44j, -0.04 - 0.2j, -0.08 + 0j, -0.04 + 0.2j, 0.22 + 0.44j,
              0.62 + 0.22j, 1.05 + 0j])
FIN = sharp([-0.05 - 0.22j, 0.3 - 0.46j, 0.86 - 0.6j], [0.86 - 0.6j, 0.76 - 0.38j, 0.84 - 0.24j],
             [0.84 - 0.24j, 1.04 - 0.06j, 1.06 + 0.04j], [1.06 + 0.04j, 0.82 + 0.18j, 0.76 + 0.34j],
             [0.76 + 0.34j, 0.82 + 0.5j, 0.8 + 0.58j], [0.8 + 0.58j, 0.3 + 0.46j, -0.05 + 0.22j])
FLUKE = sharp([-0.05 - 0.14j, 0.3 - 0.24j, 0.5 - 0.7j, 0.86 - 0.84j],
             [0.86 - 0.84j, 0.98 - 0.42j, 0.72 + 0j],
             [0.72 + 0j, 0.98 + 0.42j, 0.86 + 0.84j],
             [0.86 + 0.84j, 0.5 + 0.7j, 0.3 + 0.24j, -0.05 + 0.14j])
HEART = sharp([0j, 0.36 - 0.46j, 0.74 - 0.58j, 1 - 0.36j, 0.96 - 0.12j, 0.78 + 0j],
             [0.78 + 0j, 0.96 + 0.12j, 1 + 0.36j, 0.74 + 0.58j, 0.36 + 0.46j, 0j])
STAR, SNOWFLAKE = star(), star(6, 0.42)
NUT = hexagon(0.5 + 0j, 0.54)
DISC = ellipse(0.5 + 0j, 0.5)
BLADE = sharp([-0.05 - 0.3j, 0.55 - 0.4j, 1.08 - 0.04j], [1.08 - 0.04j, 0.72 + 0.18j],
             [0.72 + 0.18j, 0.66 + 0.36j], [0.66 + 0.36j, 0.3 + 0.26j, -0.05 + 0.3j])
FEATHER = sharp([-0.05 - 0.2j, 0.3 - 0.5j, 0.75 - 0.52j, 1.08 - 0.3j],
             [1.08 - 0.3j, 1.06 - 0.08j, 0.88 + 0.04j], [0.88 + 0.04j, 0.94 + 0.22j, 0.68 + 0.3j],
             [0.68 + 0.3j, 0.64 + 0.5j, 0.34 + 0.44j, -0.05 + 0.24j])
WEBBED = sharp([-0.05 - 0.16j, 0.34 - 0.56j, 0.62 - 0.62j], [0.62 - 0.62j, 0.86 - 0.4j, 1.1 + 0.02j],
             [1.1 + 0.02j, 0.86 + 0.0j, 0.74 + 0.2j], [0.74 + 0.2j, 0.56 + 0.14j, 0.44 + 0.42j],
             [0.44 + 0.42j, 0.3 + 0.24j, -0.05 + 0.22j])
PETAL_WING = sharp([-0.02 - 0.06j, 0.34 - 0.62j, 0.86 - 0.74j, 1.08 - 0.36j, 0.78 + 0.04j],
             [0.78 + 0.04j, 0.92 + 0.34j, 0.62 + 0.58j, 0.28 + 0.4j, -0.02 + 0.1j])
ROUND_EAR = ellipse(0.45 + 0j, 0.55, 0.5)
POINTED_EAR = sharp([-0.1 - 0.52j, 0.45 - 0.42j, 1.05 + 0j], [1.05 + 0j, 0.45 + 0.42j, -0.1 + 0.52j],
             [-0.1 + 0.52j, -0.1 - 0.52j])
LONG_EAR = curve([-0.1 - 0.26j, 0.4 - 0.38j, 0.85 - 0.32j, 1.05 + 0j, 0.85 + 0.32j, 0.4 + 0.38j, -0.1 + 0.26j],
             closed=True)
FLOPPY_EAR = curve([-0.1 - 0.26j, 0.3 - 0.36j, 0.62 - 0.24j, 0.86 + 0.2j, 0.84 + 0.66j, 0.6 + 0.78j, 0.42 + 0.5j,
              0.2 + 0.3j, -0.1 + 0.26j], closed=True)

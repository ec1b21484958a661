"""Line charts as inline SVG: axes with round numbers, a legend, confidence bands; readable in light and dark.

Colours are CSS variables that data/page.py defines (--series-0 ... and the greys), so one drawing serves both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

COLOURS = 6  # further series repeat the colours with dashed lines
WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 72, 24, 14, 40  # room for the labels
MOST_POINTS = 600  # of a line; beyond, the lowest and highest of each stretch are kept, so that no spike is hidden
DOTTED = 24  # lines of so few points show them

UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line. low and high, if given, bound a band about it, e.g. a 95 % interval. NaN or infinity is a gap.

    faint: drawn pale, for raw values behind their running mean. mark: a large ring at each point.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = field(default=())
    high: Sequence[float] = field(default=())
    faint: bool = False
    mark: bool = False

    def __post_init__(self) -> None:
        assert len(self.x) == len(self.y), f"{self.name}: {len(self.x)} x for {len(self.y)} y"
        assert len(self.low) == len(self.high), f"{self.name}: a band needs both its bounds"
        assert len(self.low) in (0, len(self.x)), f"{self.name}: {len(self.low)} bounds for {len(self.x)} points"


@dataclass(frozen=True)
class Axis:
    """Values low..high along pixels start..end, in a logarithmic scale if asked for."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.scale(self.low), self.scale(self.high)
        return self.start + (self.end - self.start) * (self.scale(value) - low) / (high - low)

    def scale(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def shows(self, value: float) -> bool:
        return math.isfinite(value) and (value > 0 or not self.log)


def line_chart(series: Sequence[Series], *, x: str, y: str, log_y: bool = False) -> str:
    """The chart as an <svg> element; x and y name the axes. Without a finite point: a line that says so."""
    usable = Axis(1, 10, 0, 1, log_y)
    values = [v for line in series for v in (*line.y, *line.low, *line.high) if usable.shows(v)]
    places = [a for line in series for a, b in zip(line.x, line.y, strict=True) if math.isfinite(a) and usable.shows(b)]
    if not places:
        return f'<p class="empty">{escape(y)}: nothing to draw yet</p>'
    across = Axis(*widened(places, log=False), LEFT, WIDTH - RIGHT)
    up = Axis(*widened(values, log=log_y), HEIGHT - BOTTOM, TOP, log_y)
    label = escape(f"{y} over {x}: {', '.join(line.name for line in series)}")
    body = [*grid(across, up), *axis_names(x, y)]
    body += [part for index, line in enumerate(series) for part in drawn(line, index, across, up)]
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    return "\n".join([head, *body, "</svg>", legend(series)])


def widened(values: Sequence[float], *, log: bool) -> tuple[float, float]:
    """The range to draw: from round number to round number, never empty."""
    low, high = min(values), max(values)
    if log:
        return 10 ** math.floor(math.log10(low)), 10 ** max(
            math.ceil(math.log10(high)), math.floor(math.log10(low)) + 1
        )
    if low == high:
        pad = abs(low) / 2 or 0.5
        low, high = low - pad, high + pad
    step = round_step(high - low)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def round_step(span: float, count: int = 5) -> float:
    """The 1, 2 or 5 times a power of ten that cuts `span` into about `count` parts."""
    rough = span / count
    power = 10 ** math.floor(math.log10(rough))
    return power * min((1, 2, 5, 10), key=lambda factor: abs(math.log(factor * power / rough)))


def ticks(axis: Axis) -> list[float]:
    """Round values along the axis; powers of ten on a logarithmic one, thinned to seven at most."""
    if axis.log:
        first, last = round(math.log10(axis.low)), round(math.log10(axis.high))
        factors = (1, 2, 5) if last - first <= 2 else (1,)
        every = -(-(last - first) // 7)
        return [f * 10.0**e for e in range(first, last + 1, max(1, every)) for f in factors if f * 10.0**e <= axis.high]
    step = round_step(axis.high - axis.low)
    return [step * n for n in range(math.ceil(axis.low / step - 1e-9), math.floor(axis.high / step + 1e-9) + 1)]


def tick_texts(axis: Axis) -> list[tuple[float, str]]:
    """The ticks with their numbers, short and of one unit: 0.25, 1,500, 20k, 3M, 1e-05."""
    values = ticks(axis)
    if axis.log:
        return [(value, f"{value:g}") for value in values]
    step = round_step(axis.high - axis.low)
    size, unit = next(((size, unit) for size, unit in UNITS if abs(values[-1]) >= 10 * size), (1.0, ""))
    decimals = max(0, -math.floor(math.log10(step / size) + 1e-9))
    return [(value, f"{value / size:,.{decimals}f}{unit if value else ''}") for value in values]


def grid(across: Axis, up: Axis) -> list[str]:
    """Lines at the vertical axis' ticks, the base line, and the numbers of both axes."""
    parts = []
    for value, text in tick_texts(up):
        at = f"{up(value):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{at}" dy="0.32em" text-anchor="end">{text}</text>')
    parts.append(f'<line class="base" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    for value, text in tick_texts(across):
        at = f'x="{across(value):.1f}" y="{HEIGHT - BOTTOM + 17}"'
        parts.append(f'<text class="tick" {at} text-anchor="middle">{text}</text>')
    return parts


def axis_names(x: str, y: str) -> list[str]:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="rotate(-90 12 {middle})"'
    return [
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x)}</text>',
        f'<text class="axis" x="12" y="{middle}" {turned} text-anchor="middle">{escape(y)}</text>',
    ]


def drawn(line: Series, index: int, across: Axis, up: Axis) -> list[str]:
    """The band, the line in its unbroken pieces, and dots where there are few points."""
    look, radius = style(index, line.faint), 6 if line.mark else 2.6
    parts = []
    if line.low:
        edges = [list(zip(line.x, bound, strict=True)) for bound in (line.low, line.high)]
        whole = [k for k in range(len(line.x)) if all(up.shows(edge[k][1]) for edge in edges)]
        rim = [edges[0][k] for k in thinned(whole)] + [edges[1][k] for k in reversed(thinned(whole))]
        parts.append(f'<polygon class="band" {look} points="{path(rim, across, up)}"/>')
    pieces = unbroken(line, up)
    for piece in pieces:
        points = path(decimated(piece), across, up)
        parts.append(f'<polyline class="line" {look} points="{points}"><title>{escape(line.name)}</title></polyline>')
    lonely = [piece[0] for piece in pieces if len(piece) == 1]
    for a, b in [point for piece in pieces for point in piece] if len(line.x) <= DOTTED else lonely:
        told = escape(f"{line.name}: {b:.4g} at {a:.6g}")
        at = f'cx="{across(a):.1f}" cy="{up(b):.1f}" r="{radius}"'
        parts.append(f'<circle class="dot" {look} {at}><title>{told}</title></circle>')
    return parts


def style(index: int, faint: bool = False) -> str:
    dashes = ";stroke-dasharray:5 4" if index >= COLOURS else ""
    return f'style="--ink:var(--series-{index % COLOURS}){dashes}{";opacity:0.4" if faint else ""}"'


def path(points: Sequence[Point], across: Axis, up: Axis) -> str:
    return " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in points)


def unbroken(line: Series, up: Axis) -> list[list[Point]]:
    """The line cut where a value is missing."""
    pieces: list[list[Point]] = [[]]
    for a, b in zip(line.x, line.y, strict=True):
        if math.isfinite(a) and up.shows(b):
            pieces[-1].append((a, b))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def decimated(points: list[Point]) -> list[Point]:
    """At most about MOST_POINTS points: of each stretch the first, the lowest, the highest and the last."""
    if len(points) <= MOST_POINTS:
        return points
    cuts = [round(n * len(points) / (MOST_POINTS // 4)) for n in range(MOST_POINTS // 4 + 1)]
    kept = []
    for start, end in pairwise(cuts):
        stretch = range(start, end)
        picks = {start, end - 1, min(stretch, key=lambda k: points[k][1]), max(stretch, key=lambda k: points[k][1])}
        kept += [points[k] for k in sorted(picks)]
    return kept


def thinned(indices: list[int]) -> list[int]:
    """Few enough of them for a band, the last among them."""
    every = max(1, len(indices) // MOST_POINTS)
    return indices[::every] + (indices[-1:] if (len(indices) - 1) % every else [])


def legend(series: Sequence[Series]) -> str:
    """Names beside their colours; a single line is named by its axis already."""
    if len(series) < 2:
        return ""
    keys = (f"<span>{key(style(index, line.faint))}{escape(line.name)}</span>" for index, line in enumerate(series))
    return f'<p class="legend">{"".join(keys)}</p>'


def key(look: str) -> str:
    """A short piece of a line, for the legend."""
    return f'<svg class="key" viewBox="0 0 22 4"><line class="line" {look} x1="1" x2="21" y1="2" y2="2"/></svg>'

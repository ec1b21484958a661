"""Bars with intervals as inline SVG, in the page's own colours."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from data.metrics.intervals import Interval

WIDTH, ROW, NAMES, TOP, BOTTOM = 720, 26, 250, 6, 26
RIGHT = 70


def bars(values: Mapping[str, Interval], title: str) -> str:
    """A bar a name from 0 to 1, its interval as a whisker, its value beside it; HTML for Page.add."""
    height = TOP + ROW * len(values) + BOTTOM
    body = [*axis(height)]
    for place, (name, value) in enumerate(values.items()):
        middle = TOP + ROW * place + ROW / 2
        told = escape(f"{name}: {value.value:.3f} ({value.low:.3f} to {value.high:.3f})")
        body += [
            f'<text class="tick" x="{NAMES - 8}" y="{middle:.1f}" dy="0.32em" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{NAMES}" y="{middle - 8:.1f}" width="{along(value.value) - NAMES:.1f}" height="16" rx="2" '
            f'style="fill:var(--series-0);opacity:0.75"><title>{told}</title></rect>',
            f'<path class="base" style="stroke-width:1.6" fill="none" d="{whisker(value, middle)}"/>',
            f'<text class="tick" x="{max(along(value.high), along(value.value)) + 6:.1f}" y="{middle:.1f}" '
            f'dy="0.32em">{value.value:.3f}</text>',
        ]
    label = escape(f"{title}: {', '.join(f'{name} {value.value:.3f}' for name, value in values.items())}")
    svg = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(body)}</svg>'
    return f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{svg}</figure>'


def along(value: float) -> float:
    """0 to 1 in pixels, what lies outside at the end."""
    return NAMES + (WIDTH - NAMES - RIGHT) * min(1.0, max(0.0, value))


def whisker(value: Interval, middle: float) -> str:
    low, high = along(value.low), along(value.high)
    ends = " ".join(f"M{x:.1f} {middle - 4:.1f}V{middle + 4:.1f}" for x in (low, high))
    return f"M{low:.1f} {middle:.1f}H{high:.1f} {ends}"


def axis(height: int) -> list[str]:
    """Lines at every fifth, with their numbers."""
    parts = []
    for fifth in range(6):
        x = along(fifth / 5)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 8}" text-anchor="middle">{fifth / 5:.1f}</text>')
    return parts

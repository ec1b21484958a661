"""Charts as inline SVG, by matplotlib in the colours of the page: CSS variables, so one chart fits light and dark."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from data.reports import macro

COLOURS = 6  # further series repeat the colours with dashed lines
WIDTH, HEIGHT = 720, 300
MAX_POINTS = 600  # of a line; beyond, the lowest and highest of each stretch are kept, so that no spike is hidden
MAX_DOTS = 24  # lines of so few points show them, each with its values in a tooltip
# colours that matplotlib is given -> what the page's style sheet calls them
VARIABLES = {f"#00000{n + 1}": f"var(--series-{n})" for n in range(COLOURS)}
VARIABLES |= {"#000010": "var(--soft)", "#000011": "var(--faint)", "#000012": "var(--rule)"}
SERIES, (SOFT, FAINT, RULE) = list(VARIABLES)[:COLOURS], list(VARIABLES)[COLOURS:]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """One line. low, high: a band about it. NaN, infinity: a gap. faint: pale. mark: a large ring at each point."""

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


def line_chart(
    series: Sequence[Series], *, x: str, y: str, log_y: bool = False, title: str = "", scatter: bool = False
) -> Markup:
    """Lines over a common axis (scatter: points alone), with bands, a legend and tooltips; or that there are none."""
    points = [finite_points(line, log_y) for line in series]
    if not any(np.isfinite(values).any() for _, values in points):
        return macro("empty", text=f"{y}: no values yet")
    axes = new_axes(HEIGHT, left=72, bottom=40)
    axes.set(xlabel=x, ylabel=y, yscale="log" if log_y else "linear")
    for index, (line, (places, values)) in enumerate(zip(series, points, strict=True)):
        kept, color = decimate(values), SERIES[index % COLOURS]
        style: Any = "none" if scatter else (0, (5, 4)) if index >= COLOURS else "solid"
        alpha = 0.4 if line.faint else 1
        axes.plot(places[kept], values[kept], color=color, linestyle=style, alpha=alpha, linewidth=1.9, gid=f"s{index}")
        if line.low:
            low, high = mask(line.low, log_y), mask(line.high, log_y)
            inside = np.isfinite(places + low + high)
            outline = [np.r_[side[inside], other[inside][::-1]] for side, other in ((places, places), (low, high))]
            axes.fill(*outline, alpha=0.16, linewidth=0, color=color, gid=f"band{index}")
    format_axes(axes, log_y)
    dots = [dot for n, line in enumerate(series) for dot in draw_dots(axes, line, n, *points[n], every=scatter)]
    label = f"{y} over {x}: {', '.join(line.name for line in series)}"
    svg = to_svg(axes, label, {f"s{index}": line.name for index, line in enumerate(series)}, dots)
    legend = [(line.name, series_style(index, line.faint)) for index, line in enumerate(series)]
    return macro("chart", title=title, svg=svg, legend=legend if len(series) > 1 else [])


def bar_chart(values: Mapping[str, tuple[float, float, float]], *, title: str = "", most: float = 1.0) -> Markup:
    """A horizontal bar from 0 to `most` for each name: value, and the low and high end of its whisker."""
    axes = new_axes(32 + 26 * len(values), left=250, bottom=26, right=70)
    for row, (value, low, high) in enumerate(values.values()):
        axes.barh(row, value, 0.62, color=SERIES[0], alpha=0.75, gid=f"s{row}")
        whisker = [low, low, np.nan, low, high, np.nan, high, high]
        axes.plot(whisker, row + np.array([-0.15, 0.15, 0, 0, 0, 0, -0.15, 0.15]), color=SOFT, linewidth=1.6)
        axes.text(max(high, value) + 0.012 * most, row, f"{value:.3f}", color=FAINT, va="center", size=11.5)
    axes.set(xlim=(0, most), ylim=(len(values) - 0.5, -0.5), yticks=range(len(values)), yticklabels=list(values))
    axes.grid(axis="x", color=RULE)
    axes.set_axisbelow(True)
    tooltips = [f"{name}: {value:.3f} ({low:.3f} to {high:.3f})" for name, (value, low, high) in values.items()]
    svg = to_svg(axes, f"{title}: {', '.join(tooltips)}", {f"s{row}": text for row, text in enumerate(tooltips)})
    return macro("chart", title=title, svg=svg, legend=[])


def mask(values: Sequence[float], log: bool = False) -> Floats:
    """Values with NaN where nothing can be drawn."""
    array = np.asarray(values, np.float64)
    return np.where(np.isfinite(array) & ((array > 0) | (not log)), array, np.nan)


def finite_points(line: Series, log: bool) -> tuple[Floats, Floats]:
    places, values = mask(line.x), mask(line.y, log)
    return places, np.where(np.isfinite(places), values, np.nan)


def decimate(values: Floats) -> NDArray[np.intp]:
    """Positions of about MAX_POINTS values: of each stretch the first, the lowest, the highest and the last."""
    if len(values) <= MAX_POINTS:
        return np.arange(len(values))
    kept: set[int] = set()
    for stretch in np.array_split(np.arange(len(values)), MAX_POINTS // 4):
        kept |= {stretch[0], stretch[-1]}
        if np.isfinite(values[stretch]).any():
            kept |= {stretch[np.nanargmin(values[stretch])], stretch[np.nanargmax(values[stretch])]}
    return np.array(sorted(kept))


def new_axes(height: int, *, left: int, bottom: int, right: int = 24, top: int = 14) -> Any:
    """Axes on a figure of WIDTH x height pixels, without a frame."""
    from matplotlib.figure import Figure

    figure = Figure((WIDTH / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    box = (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - bottom - top) / height)
    axes = figure.add_axes(box)
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(left=False, bottom=False, which="both", labelcolor=FAINT, labelsize=11.5)
    axes.xaxis.label.set(color=SOFT, size=12)
    axes.yaxis.label.set(color=SOFT, size=12)
    return axes


def format_axes(axes: Any, log_y: bool) -> None:
    """Round numbers on both axes, and a line at each of the vertical one's."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if log_y:
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low <= 100 else (1,), numticks=8))
        axes.yaxis.set_minor_formatter(NullFormatter())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: short_number(value))
    axes.grid(axis="y", color=RULE)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    axes.autoscale_view()  # now, for the places of the dots


def short_number(value: float) -> str:
    """0.25, 1,500, 20k, 3M, 1e-05."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size:
            return f"{value / size:,g}{unit}"
    return f"{round(value, 12):,g}"


def draw_dots(axes: Any, line: Series, index: int, places: Floats, values: Floats, *, every: bool = False) -> list[str]:
    """Rings at the points of a short line, and at points between two gaps."""
    shown = np.isfinite(values)
    lonely = shown & ~np.r_[False, shown[:-1]] & ~np.r_[shown[1:], False] if len(shown) else shown
    dots = []
    for k in np.flatnonzero(shown if every or len(values) <= MAX_DOTS else lonely):
        at_x, at_y = axes.transData.transform((places[k], values[k]))
        tooltip = escape(f"{line.name}: {values[k]:.4g} at {places[k]:.6g}")
        place = f'cx="{at_x:.1f}" cy="{HEIGHT - at_y:.1f}" r="{6 if line.mark else 2.6}"'
        style = series_style(index, line.faint)
        dots.append(f'<circle class="dot" style="{style}" {place}><title>{tooltip}</title></circle>')
    return dots


def series_style(index: int, faint: bool = False) -> str:
    dashes = ";stroke-dasharray:5 4" if index >= COLOURS else ""
    return f"--ink:var(--series-{index % COLOURS}){dashes}{';opacity:0.4' if faint else ''}"


def to_svg(axes: Any, label: str, tooltips: Mapping[str, str], extra: Sequence[str] = ()) -> Markup:
    """The figure as an <svg> without ids, name spaces or colours of its own. tooltips: of the parts with these gids."""
    from matplotlib import rc_context
    from matplotlib.text import Text

    for text in axes.findobj(Text):
        text.set_parse_math(False)
    content = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "atelier"}):
        axes.figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    svg = content.getvalue().partition("<svg ")[2].partition(">")[2]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>.*?</defs>|<!--.*?-->", "", svg, flags=re.DOTALL)
    for gid, text in tooltips.items():
        svg = svg.replace(f'<g id="{gid}">', f"<g><title>{escape(text)}</title>", 1)
    svg = re.sub(r' (id|clip-path)="[^"]*"| transform="rotate\(-0 [^"]*"| font-family: [^;]*;|(?<=\n) +', "", svg)
    svg = re.sub("|".join(VARIABLES), lambda match: VARIABLES[match[0]], svg)
    box = f"0 0 {WIDTH} {math.ceil(axes.figure.get_figheight() * 72)}"
    svg = svg.replace("</svg>", f"{''.join(extra)}</svg>")
    return Markup(f'<svg viewBox="{box}" role="img" aria-label="{escape(label)}">{svg}')

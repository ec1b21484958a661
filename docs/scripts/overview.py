"""A comparison's output as one small image for the docs: all panels of the thesis, or the curves of a study."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from data.errors import InputError
from infer import contact_sheet, output
from infer.comparison import results
from infer.comparison.figures import Figure, load_figures
from infer.contact_sheet import FAINT, PAPER, TextBlock, draw_block, line_height
from infer.metadata import LoraUsed, ModelUsed

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

SIDE, GAP, ACROSS = 128, 14, 6  # pixels of a panel, between panels; panels in a row: 2 + 2 + 2, 2 + 4, 2 + 2 + 2
HEAD, SMALL = 13, 11  # font sizes in pixels
FRAME = "#d8d8d8"  # most images of the embedded base have a white background


@dataclass(frozen=True)
class Panel:
    """One panel: its image, its prompt, and the thesis' own prompt if it differs."""

    letter: str
    image: Path
    prompt: str
    thesis: str

    @property
    def words(self) -> TextBlock:
        return contact_sheet.wrap_text(f"({self.letter}) {self.prompt}", SIDE, SMALL)

    @property
    def own(self) -> TextBlock:
        return contact_sheet.wrap_text(self.thesis, SIDE, SMALL)

    @property
    def height(self) -> int:
        return SIDE + 4 + self.words.height + self.own.height


def panels(folder: Path) -> Image.Image:
    """All figures of a `compare.py --figures thesis` folder on one sheet. Raises InputError."""
    lines = {line["figure"]: line for line in lines_of(folder)}
    figures = load_figures()
    missing = [
        f"{f.number}{panel.letter}" for f in figures for panel in f.panels if f"{f.number}{panel.letter}" not in lines
    ]
    if missing:
        what = f"has no panel {', '.join(missing)}"
        raise InputError(what, where=folder, fix="Make them: infer/compare.py --figures thesis --outdir FOLDER")
    found = {
        figure.number: [panel_of(folder, figure, place, lines) for place in range(len(figure.panels))]
        for figure in figures
    }
    rows = in_rows(figures)
    heights = [max(panel.height for figure in row for panel in found[figure.number]) for row in rows]
    head = line_height(HEAD) + 4
    foot = contact_sheet.wrap_text(shared(list(lines.values())), ACROSS * (SIDE + GAP) - GAP, SMALL)
    paper = Image.new(
        "RGB", (ACROSS * (SIDE + GAP) + GAP, sum(heights) + len(rows) * (head + GAP) + foot.height + GAP), PAPER
    )
    pen, top = ImageDraw.Draw(paper), GAP
    for row, height in zip(rows, heights, strict=True):
        left = GAP
        for figure in row:
            count = len(found[figure.number])
            width = count * (SIDE + GAP) - GAP
            draw_block(pen, left, top, contact_sheet.wrap_text(f"{figure.number}  {figure.title}", width + GAP, HEAD))
            for place, panel in enumerate(found[figure.number]):
                put(paper, pen, panel, left + place * (SIDE + GAP), top + head)
            left += width + GAP
        top += head + height + GAP
    draw_block(pen, GAP, top, foot, FAINT)
    return paper


def lines_of(folder: Path) -> list[dict[str, Any]]:
    log = folder / output.LOG_FILE
    if not log.is_file():
        raise InputError("contains no figures", where=folder, fix="Make them: infer/compare.py --figures thesis")
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "figure" in line]


def panel_of(folder: Path, figure: Figure, place: int, lines: Mapping[str, dict[str, Any]]) -> Panel:
    panel = figure.panels[place]
    line = lines[f"{figure.number}{panel.letter}"]
    who = " (base)" if panel.model == "base" and not line["loras"] else ""
    own = f"thesis: {panel.prompt}" if line["prompt"] != panel.prompt else ""
    return Panel(panel.letter, folder / line["file"], line["prompt"] + who, own)


def in_rows(figures: Sequence[Figure]) -> list[list[Figure]]:
    """Rows of figures, as many in each as fit."""
    rows: list[list[Figure]] = [[]]
    for figure in figures:
        if sum(len(each.panels) for each in rows[-1]) + len(figure.panels) > ACROSS:
            rows.append([])
        rows[-1].append(figure)
    return rows


def shared(lines: Sequence[dict[str, Any]]) -> str:
    """The settings that all panels share, and the tuned weights."""
    first, tuned = lines[0], next((line for line in lines if line["loras"]), None)
    loras = ", ".join(f"{LoraUsed(**lora).name} at {lora['weight']:g}" for lora in (tuned or first)["loras"])
    weights = {ModelUsed(**line["model"]).name: None for line in lines}
    who = f"{', '.join(weights)} with {loras}" if loras else ", ".join(weights)
    seeds = sorted({line["seed"] for line in lines})
    return (
        f"{who}; {first['steps']} steps, guidance {first['guidance_scale']:g}, {first['sampler']}, "
        f"seed {seeds[0]} (3.7b: {seeds[-1]}); {first['width']} x {first['height']} pixels"
    )


def put(paper: Image.Image, pen: ImageDraw.ImageDraw, panel: Panel, left: int, top: int) -> None:
    with Image.open(panel.image) as opened:
        image = opened.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    paper.paste(image, (left, top))
    pen.rectangle((left - 1, top - 1, left + SIDE, top + SIDE), outline=FRAME)
    draw_block(pen, left, top + SIDE + 4, panel.words)
    draw_block(pen, left, top + SIDE + 4 + panel.words.height, panel.own, FAINT)


# ---- a study's curves


def curves(folder: Path, title: str) -> Plot:
    """Curves of a study of steps or guidance: distance to the final image and similarity to the prompt."""
    from docs.scripts import plots

    found = numbers_of(folder)
    values, groups = found["values"], [name for name in ("simple", "complex") if name in found]
    colours: dict[str, str] = {"simple": plots.BLUE, "complex": plots.ORANGE}

    def draw() -> Plot:
        figure, (far, fits) = plots.canvas(9.2, 3.3, columns=2)
        for name in groups:
            for axes, measure in ((far, "to the last"), (fits, "similarity")):
                points = found[name][measure]
                means = [point["mean"] for point in points]
                axes.plot(values, means, marker="o", markersize=3, color=colours[name], label=f"{name} prompts")
                bounds = ([max(p["low"], 0.0) for p in points], [p["high"] for p in points])
                axes.fill_between(values, *bounds, color=colours[name], alpha=0.15, linewidth=0)
            far.plot(values, found[name]["between seeds"], "--", color=colours[name], label=f"two seeds, {name}")
        far.set(title=f"Distance to the image at {values[-1]:g} {title}", xlabel=title, ylabel="RMS of colours")
        fits.set(title="Similarity to the prompt", xlabel=title, ylabel="cosine")
        far.set_ylim(top=1.35 * far.get_ylim()[1])  # room for the legend
        far.legend(fontsize=8, ncols=2, loc="upper right")
        fits.legend(fontsize=8)
        return figure

    return plots.styled(draw)()


def numbers_of(folder: Path) -> dict[str, Any]:
    mark = folder / results.MARK
    found = json.loads(mark.read_text(encoding="utf-8")) if mark.is_file() else {}
    if "curves" not in found:
        raise InputError("contains no curves", where=folder, fix="Make them: infer/compare.py --study steps")
    return found["curves"]

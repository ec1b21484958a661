"""A comparison's output as one small image for the docs: all panels of the thesis, or the curves of a study."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Plot
from PIL import Image

from data.errors import InputError
from docs.scripts import plots
from infer import output
from infer.comparison import results
from infer.comparison.figures import load_figures
from infer.contact_sheet import Place, Sheet, render_sheet
from infer.metadata import LoraUsed, ModelUsed

ACROSS = 6  # panels in a row: 2 + 2 + 2, 2 + 4, 2 + 2 + 2


def panels(folder: Path) -> Image.Image:
    """All figures of a `compare.py --figures thesis` folder on one sheet. Raises InputError."""
    lines = read_lines(folder)
    cells: dict[Place, Image.Image] = {}
    notes: dict[Place, str] = {}
    place, missing = 0, []
    for figure in load_figures():
        place += -place % ACROSS if place % ACROSS + len(figure.panels) > ACROSS else 0
        for panel in figure.panels:
            name, at = f"{figure.number}{panel.letter}", (place % ACROSS, place // ACROSS)
            place += 1
            if name not in lines:
                missing.append(name)
                continue
            line = lines[name]
            with Image.open(folder / line["file"]) as image:
                cells[at] = image.convert("RGB")
            base = " (base)" if panel.model == "base" and not line["loras"] else ""
            thesis = f"; thesis: {panel.prompt}" if line["prompt"] != panel.prompt else ""
            title = f"{figure.title} " if panel is figure.panels[0] else ""
            notes[at] = f"{figure.number} {title}({panel.letter}) {line['prompt']}{base}{thesis}"
    if missing:
        what = f"has no panel {', '.join(missing)}"
        raise InputError(what, where=folder, fix="Make them: infer/compare.py --figures thesis --outdir FOLDER")
    rows = [""] * -(-place // ACROSS)
    return render_sheet(Sheet([""] * ACROSS, rows, cells, footer=shared_settings(list(lines.values())), notes=notes))


def read_lines(folder: Path) -> dict[str, dict[str, Any]]:
    """The log of the panels, by number and letter."""
    log = folder / output.LOG_FILE
    if not log.is_file():
        raise InputError("contains no figures", where=folder, fix="Make them: infer/compare.py --figures thesis")
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return {line["figure"]: line for line in lines if "figure" in line}


def shared_settings(lines: Sequence[dict[str, Any]]) -> str:
    """The settings that all panels share, and the tuned weights."""
    first, tuned = lines[0], next((line for line in lines if line["loras"]), None)
    loras = ", ".join(f"{LoraUsed(**lora).name} at {lora['weight']:g}" for lora in (tuned or first)["loras"])
    weights = ", ".join(dict.fromkeys(ModelUsed(**line["model"]).name for line in lines))
    seeds = sorted({line["seed"] for line in lines})
    return (
        f"{weights}{f' with {loras}' if loras else ''}; {first['steps']} steps, guidance {first['guidance_scale']:g}, "
        f"{first['sampler']}, seed {seeds[0]} (3.7b: {seeds[-1]}); {first['width']} x {first['height']} pixels"
    )


@plots.styled
def curves(folder: Path, title: str) -> Plot:
    """Curves of a study of steps or guidance: distance to the final image and similarity to the prompt."""
    mark = folder / results.MARK
    found = json.loads(mark.read_text(encoding="utf-8")).get("curves") if mark.is_file() else None
    if found is None:
        raise InputError("contains no curves", where=folder, fix="Make them: infer/compare.py --study steps")
    values, colours = found["values"], {"simple": plots.BLUE, "complex": plots.ORANGE}
    figure, (far, fits) = plots.canvas(9.2, 3.3, columns=2)
    for name in (name for name in colours if name in found):
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

"""Figures and tables of docs/ddpm-runs.md: what the four DDPM commands left in a folder, small enough to keep."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from PIL import Image, ImageDraw, ImageFont

from data.atomic_io import atomic_file, write_atomic
from data.errors import InputError
from docs.scripts import plots
from docs.scripts.plots import BLUE, FAINT, GREEN, INK, ORANGE, STYLE, canvas
from train.ddpm.runs.report import centred_mean, numbers
from train.metrics import read_metrics

COLOURS = (ORANGE, BLUE, GREEN)
WIDTH = 900  # maximum width of an image sheet in pixels
LABEL = 22  # pixels above each sheet
LECTURE = Path(__file__).parents[2] / "data" / "metrics" / "lecture.csv"
PARTS = 10  # rows of a run's table of losses
# output of sample.py, in display order
SHEETS = ("grid.png", "trajectory.png", "progressive.png", "walk.gif", "interpolation.png", "inpainting.png")
CAPTIONS = {  # by the last word of a figure's name
    "training": "The loss of every step with its running mean, and the error of x_0 at fixed noise",
    "drawn": "Generated at the end of training, from the same noise as all previews",
    "errors": "Errors of x_0 on a common scale, with bands of 95 %, and the losses, which are three scales",
    "predictions": "Held-out images at rising noise, clean on the left, and below each the prediction",
    "samples": "Generated from noise: UNet2DModel by DDIM, the others by the course's naive sampler",
    "bits": "Bits of each step for held-out images, and the error of the prediction by rate",
    "grid": "Generated images",
    "trajectory": "x_t from noise to image",
    "progressive": "The predicted x_0 at each of those steps",
    "walk": "The same as an animation",
    "interpolation": "Between pairs of held-out images, which are at both ends",
    "inpainting": "Held-out images, the known part of each, and two completions",
}


def keep(folder: Path, name: str, docs: Path) -> list[Path]:
    """Copy a folder's figures to docs/figures and write its tables into ddpm-runs.md; returns the files written."""
    kept, page = keep_figures(folder, name, docs / "figures"), docs / "ddpm-runs.md"
    return [*kept, page] if page.is_file() and fill(page, name, folder, kept) else kept


def keep_figures(folder: Path, name: str, out: Path) -> list[Path]:
    """Write ddpm-NAME-*.png from the output folder of a command; returns the paths. Raises InputError."""
    if (folder / "metrics.jsonl").is_file():
        drawn = sorted((folder / "drawings").glob("*.png"))[-1:]
        curves = plot_training(folder, out / f"ddpm-{name}-training.png")
        return [curves, *[copy_sheet(sheet, out / f"ddpm-{name}-drawn.png") for sheet in drawn]]
    if (folder / "compare.json").is_file():
        return plot_comparison(folder, name, out)
    if (folder / "score.json").is_file():
        return plot_score(folder, name, out)
    sheets = [folder / file for file in SHEETS if (folder / file).is_file()]
    if not sheets:
        what = "contains no output of fit.py, sample.py, score.py or compare.py"
        raise InputError(what, where=folder, allowed="a run folder, or the --out of sample.py, score.py or compare.py")
    return [copy_sheet(sheet, out / f"ddpm-{name}-{sheet.name}") for sheet in sheets]


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


# ---- figures


def plot_comparison(folder: Path, name: str, out: Path) -> list[Path]:
    """Curves, predictions at increasing noise, and samples of the three networks."""
    facts = read(folder / "compare.json")
    with rc_context(STYLE):
        figure, (left, right) = canvas(8.6, 3.4, columns=2)
        plot_series(left, facts["curves"]["errors"])
        left.set(xlabel="timestep", ylabel="mean squared error of $x_0$", yscale="log", title="On a common scale")
        left.legend(loc="lower right")
        plot_series(right, facts["curves"]["losses"])
        right.set(xlabel="step", ylabel="training loss", yscale="log", title="The losses: three scales")
    plots.save(figure, out / f"ddpm-{name}-errors.png")
    for sheet, join in (("predictions", beside), ("samples", stacked)):
        parts = {words: Image.open(folder / f"{sheet}-{key}.png") for key, words in facts["names"].items()}
        plots.save_image(join(parts), out / f"ddpm-{name}-{sheet}.png", WIDTH)
    return [out / f"ddpm-{name}-{part}.png" for part in ("errors", "predictions", "samples")]


def plot_series(axes: Axes, series: Sequence[Mapping[str, Any]]) -> None:
    """One line per network, with its band if there is one."""
    for colour, each in zip(COLOURS, series, strict=True):
        axes.plot(each["x"], each["y"], color=colour, linewidth=1.4, label=each["name"])
        if each["low"]:
            axes.fill_between(each["x"], each["low"], each["high"], color=colour, alpha=0.2, linewidth=0)


def stacked(parts: Mapping[str, Image.Image]) -> Image.Image:
    """Sheets stacked vertically, each with its name above."""
    width = max(part.width for part in parts.values())
    paper = Image.new("RGB", (width, sum(part.height + LABEL for part in parts.values())), "white")
    pen, top = ImageDraw.Draw(paper), 0
    for words, part in parts.items():
        pen.text((0, top + 3), words, fill=INK, font=ImageFont.load_default(14))
        paper.paste(part.convert("RGB"), (0, top + LABEL))
        top += part.height + LABEL
    return paper


def beside(parts: Mapping[str, Image.Image]) -> Image.Image:
    """Sheets side by side, each with its name above; shrunk by a whole factor first so that names stay readable."""
    factor = -(-sum(part.width + LABEL for part in parts.values()) // WIDTH)
    columns = [stacked({words: part.convert("RGB").reduce(factor)}) for words, part in parts.items()]
    width = sum(column.width for column in columns) + LABEL * (len(columns) - 1)
    paper, left = Image.new("RGB", (width, max(column.height for column in columns)), "white"), 0
    for column in columns:
        paper.paste(column, (left, 0))
        left += column.width + LABEL
    return paper


def plot_training(folder: Path, path: Path) -> Path:
    """Loss of every step with its running mean, and the error of x_0 at fixed noise."""
    rows = read_metrics(folder / "metrics.jsonl")
    steps, validations = ([row for row in rows if key in row] for key in ("loss", "validation"))
    with rc_context(STYLE):
        figure, (left, right) = canvas(8.6, 3.0, columns=2)
        x, losses = [row["step"] for row in steps], numbers(row["loss"] for row in steps)
        left.plot(x, losses, color=FAINT, linewidth=0.7)
        left.plot(x, centred_mean(losses), color=INK, linewidth=1.3)
        left.set(xlabel="step", ylabel="training loss", yscale="log", title="Loss")
        x = [row["step"] for row in validations]
        for colour, side in zip(COLOURS, validations[0]["validation"], strict=False):
            right.plot(
                x, [row["validation"][side] for row in validations], "o-", color=colour, markersize=3, label=side
            )
        right.set(xlabel="step", ylabel="mean squared error of $x_0$", yscale="log", title="At fixed noise")
        right.legend()
    plots.save(figure, path)
    return path


def plot_score(folder: Path, name: str, out: Path) -> list[Path]:
    """Bits per step and rate-distortion curve, if bits were measured. Source: arXiv 2006.11239, figure 5."""
    curve = read(folder / "score.json").get("curve")
    if curve is None:
        return []
    bits = [after - before for before, after in pairwise(curve["rate"])]  # L_{T-1} ... L_1
    with rc_context(STYLE):
        figure, (left, right) = canvas(8.6, 3.0, columns=2)
        left.plot(range(len(bits), 0, -1), bits, color=INK, linewidth=1.0)
        left.set(xlabel="t", ylabel="bits per dimension", yscale="log", title="$L_t$, the bits of each step")
        right.plot(curve["rate"], curve["rmse"], color=INK, linewidth=1.4)
        right.set(xlabel="bits per dimension sent", ylabel="RMSE of 255", title="Rate and distortion")
        right.set(xlim=(0, None), ylim=(0, None))
    path = out / f"ddpm-{name}-bits.png"
    plots.save(figure, path)
    return [path]


def copy_sheet(sheet: Path, path: Path) -> Path:
    """Copy a sheet, shrunk if it is too large; a GIF is only copied."""
    if sheet.suffix == ".gif" or sheet.stat().st_size <= plots.LIMIT // 4:
        plots.check_limit(sheet.stat().st_size, sheet)
        with atomic_file(path) as beside:
            shutil.copyfile(sheet, beside)
    else:
        with Image.open(sheet) as image:
            plots.save_image(image.convert("RGB"), path, WIDTH)
    return path


# ---- tables, as Markdown between two markers


def fill(page: Path, name: str, folder: Path, figures: Sequence[Path] = ()) -> bool:
    """Write a folder's results between <!-- NAME --> and <!-- /NAME --> of the page; False without such markers.

    figures: made from the folder, shown below its numbers. Raises InputError for a folder with neither.
    """
    text = page.read_text(encoding="utf-8")
    block = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.S)
    if not block.search(text):
        return False
    lines = [*lines_of(folder, found=bool(figures)), ""]
    for figure in figures:
        caption = CAPTIONS[figure.stem.rpartition("-")[2]]
        lines += [f"{caption}:", "", f"![{caption}]({figure.relative_to(page.parent).as_posix()})", ""]
    words = "\n".join(lines).strip()
    write_atomic(page, block.sub(lambda found: f"{found[1]}{words}\n{found[2]}", text))
    return True


def lines_of(folder: Path, *, found: bool = False) -> list[str]:
    """The Markdown of a folder's numbers. found: whether it has figures; then numbers are optional."""
    for file, lines in (
        ("compare.json", comparison_lines), ("score.json", score_lines), ("metrics.jsonl", training_lines)
    ):  # fmt: skip
        if (folder / file).is_file():
            return lines(folder)
    if found:
        return []
    raise InputError("contains no results of compare.py, score.py or fit.py", where=folder)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = [list(head), ["---"] * len(head), *[[format_cell(cell) for cell in row] for row in rows]]
    return ["| " + " | ".join(line) + " |" for line in lines]


def format_cell(cell: object) -> str:
    """Integers with commas, floats with four significant digits, empty for None."""
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def comparison_lines(folder: Path) -> list[str]:
    facts = read(folder / "compare.json")
    settings, rows = facts["settings"], facts["table"]
    lines = [
        f"{settings['seeds']} runs of each network on {settings['data']['set']}: {settings['steps']} steps of "
        f"{settings['batch_size']} images; intervals of 95 % from {settings['resamples']:,} resamples of seeds and "
        f"images, paired.",
        "",
    ]
    for verdict in facts["verdicts"]:
        low, mean, high = (verdict["difference"][key] for key in ("low", "mean", "high"))
        lines.append(f"- {verdict['claim']} **{verdict['word']}** ({mean:+.4f}, from {low:+.4f} to {high:+.4f})")
    return [*lines, "", *table(list(rows[0]), [list(row.values()) for row in rows])]


def score_lines(folder: Path) -> list[str]:
    """Our rows, then the published ones."""
    facts = read(folder / "score.json")
    kinds = ("precision", "recall", "density", "coverage")
    rows = [
        [row["name"], row["pictures"], row["frechet"], row["spatial"], row["kernel"]["value"]]
        + [row["manifold"][kind] for kind in kinds]
        for row in facts["rows"]
    ]
    bits = [(name, each["mean"], f"{each['low']:.4g} to {each['high']:.4g}") for name, each in facts["bits"].items()]
    shares = [(name, f"{100 * each['right'] / each['count']:.1f} %") for name, each in facts["learnt"].items()]
    lines = [f"Features: {facts['features']}.", "", *table(("images", "n", "FD", "sFD", "KID", *kinds), rows), ""]
    lines += [*table(("part of the bound", "bits/dim", "95 % over images"), bits), ""] if bits else []
    lines += [*table(("a classifier trained on", "accuracy on held-out real ones"), shares), ""] if shares else []
    head, *published = csv.reader(LECTURE.read_text(encoding="utf-8").splitlines())
    text = "Published, in Inception's features, of 50,000 samples (Dhariwal & Nichol 2021, table 5):"
    return [*lines, text, "", *table(head, published)]


def training_lines(folder: Path) -> list[str]:
    """Mean loss of each tenth of the run, and the error of x_0 at the end."""
    rows, facts = read_metrics(folder / "metrics.jsonl"), read(folder / "data.json")
    losses = [row["loss"] for row in rows if "loss" in row]
    validations = [row for row in rows if "validation" in row]
    done, whole = len(losses), facts["steps"]
    tenths = [losses[round(part * whole / PARTS) : round((part + 1) * whole / PARTS)] for part in range(PARTS)]
    means = [sum(some) / len(some) if some else None for some in tenths]
    left = "" if done >= whole else f" Stopped after step {done:,}."
    lines = [f"{facts['pictures']:,} images of {facts['set']}, {whole:,} steps.{left}", ""]
    lines += table(("tenth", *map(str, range(1, PARTS + 1))), [("mean loss", *means)])
    first, last = validations[0], validations[-1]
    sides = last["validation"].items()
    ends = ", ".join(f"{side} {first['validation'][side]:.4f} to {error:.4f}" for side, error in sides)
    return [*lines, "", f"Error of x_0 at fixed noise, from before step 1 to step {last['step']:,}: {ends}."]

"""The figures of docs/ddpm-runs.md: what the four commands left in a folder, small enough to keep."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from PIL import Image, ImageDraw, ImageFont

from data.atomic_io import atomic_file
from data.errors import InputError
from docs.scripts.plots import BLUE, FAINT, GREEN, INK, LIMIT, ORANGE, STYLE, canvas, save
from train.ddpm.runs.report import centred_mean
from train.metrics import read_metrics
from train.report import without_missing

COLOURS = (ORANGE, BLUE, GREEN)
WIDTH = 900  # maximum width of an image sheet in pixels
LABEL = 22  # pixels above each sheet
# output of sample.py, in display order
SHEETS = ("grid.png", "trajectory.png", "progressive.png", "walk.gif", "interpolation.png", "inpainting.png")


def keep(folder: Path, name: str, out: Path) -> list[Path]:
    """Write ddpm-NAME-*.png from the output folder of a command; returns the paths. Raises InputError."""
    if (folder / "metrics.jsonl").is_file():
        drawn = sorted((folder / "drawings").glob("*.png"))[-1:]
        curves = of_training(folder, out / f"ddpm-{name}-training.png")
        return [curves, *[copy_sheet(sheet, out / f"ddpm-{name}-drawn.png") for sheet in drawn]]
    if (folder / "compare.json").is_file():
        return of_comparison(folder, name, out)
    if (folder / "score.json").is_file():
        return of_score(folder, name, out)
    sheets = [folder / file for file in SHEETS if (folder / file).is_file()]
    if not sheets:
        what = "contains no output of fit.py, sample.py, score.py or compare.py"
        raise InputError(what, where=folder, allowed="a run folder, or the --out of sample.py, score.py or compare.py")
    return [copy_sheet(sheet, out / f"ddpm-{name}-{sheet.name}") for sheet in sheets]


# ---- the course's comparison


def of_comparison(folder: Path, name: str, out: Path) -> list[Path]:
    """Curves, predictions at increasing noise, and samples of the three networks."""
    facts = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    with rc_context(STYLE):
        figure, (left, right) = canvas(8.6, 3.4, columns=2)
        lines(left, facts["curves"]["errors"])
        left.set(xlabel="timestep", ylabel="mean squared error of $x_0$", yscale="log", title="On a common scale")
        left.legend(loc="lower right")
        lines(right, facts["curves"]["losses"])
        right.set(xlabel="step", ylabel="training loss", yscale="log", title="The losses: three scales")
    errors = out / f"ddpm-{name}-errors.png"
    save(figure, errors)
    found = [errors]
    for sheet in ("predictions", "samples"):
        parts = {words: Image.open(folder / f"{sheet}-{key}.png") for key, words in facts["names"].items()}
        path = out / f"ddpm-{name}-{sheet}.png"
        save_image(beside(parts) if sheet == "predictions" else stacked(parts), path)
        found.append(path)
    return found


def lines(axes: Axes, series: Sequence[Mapping[str, Any]]) -> None:
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
    paper = Image.new("RGB", (width, max(column.height for column in columns)), "white")
    left = 0
    for column in columns:
        paper.paste(column, (left, 0))
        left += column.width + LABEL
    return paper


# ---- training


def of_training(folder: Path, path: Path) -> Path:
    """Loss of every step with its running mean, and the error of x_0 at fixed noise."""
    rows = read_metrics(folder / "metrics.jsonl")
    steps = [row for row in rows if "loss" in row]
    validations = [row for row in rows if "validation" in row]
    with rc_context(STYLE):
        figure, (left, right) = canvas(8.6, 3.0, columns=2)
        losses = [without_missing(row["loss"]) for row in steps]
        left.plot([row["step"] for row in steps], losses, color=FAINT, linewidth=0.7)
        left.plot([row["step"] for row in steps], centred_mean(losses), color=INK, linewidth=1.3)
        left.set(xlabel="step", ylabel="training loss", yscale="log", title="Loss")
        for colour, side in zip(COLOURS, validations[0]["validation"], strict=False):
            at = [row["step"] for row in validations]
            right.plot(
                at, [row["validation"][side] for row in validations], "o-", color=colour, markersize=3, label=side
            )
        right.set(xlabel="step", ylabel="mean squared error of $x_0$", yscale="log", title="At fixed noise")
        right.legend()
    save(figure, path)
    return path


# ---- scores


def of_score(folder: Path, name: str, out: Path) -> list[Path]:
    """Bits per step and rate-distortion curve, if bits were measured. Source: arXiv 2006.11239, figure 5."""
    curve = json.loads((folder / "score.json").read_text(encoding="utf-8")).get("curve")
    if curve is None:
        return []
    rate, rmse = curve["rate"], curve["rmse"]
    bits = [after - before for before, after in pairwise(rate)]  # L_{T-1} ... L_1
    with rc_context(STYLE):
        figure, (left, right) = canvas(8.6, 3.0, columns=2)
        left.plot(range(len(bits), 0, -1), bits, color=INK, linewidth=1.0)
        left.set(xlabel="t", ylabel="bits per dimension", yscale="log", title="$L_t$, the bits of each step")
        right.plot(rate, rmse, color=INK, linewidth=1.4)
        right.set(xlabel="bits per dimension sent", ylabel="RMSE of 255", title="Rate and distortion")
        right.set(xlim=(0, None), ylim=(0, None))
    path = out / f"ddpm-{name}-bits.png"
    save(figure, path)
    return [path]


# ---- image sheets


def copy_sheet(sheet: Path, path: Path) -> Path:
    """Copy a sheet, shrunk if it is too large; a GIF is only copied."""
    if sheet.suffix == ".gif" or sheet.stat().st_size <= LIMIT // 4:
        if sheet.stat().st_size > LIMIT:
            raise InputError(f"{sheet.stat().st_size} bytes", where=sheet, allowed=f"{LIMIT} bytes")
        with atomic_file(path) as beside:
            shutil.copyfile(sheet, beside)
        return path
    with Image.open(sheet) as image:
        save_image(image.convert("RGB"), path)
    return path


def save_image(image: Image.Image, path: Path) -> None:
    """Save at most WIDTH pixels wide, with as many colours as the size limit allows. Raises InputError."""
    if image.width > WIDTH:
        size = (WIDTH, round(image.height * WIDTH / image.width))
        image = image.resize(size, Image.Resampling.LANCZOS)
    content = io.BytesIO()
    for colours in (256, 64, 32, 16):
        content = io.BytesIO()
        image.quantize(colours, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
        if content.tell() <= LIMIT:
            break
    else:
        raise InputError(f"{content.tell()} bytes", where=path, allowed=f"{LIMIT} bytes")
    with atomic_file(path) as beside:
        beside.write_bytes(content.getvalue())

"""What runs leave: report.html and README.md of fit.py; grids, strips, GIF and MP4 of generated images."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from data.atomic_io import atomic_file, write_atomic
from data.reports.charts import Series
from data.reports.page import Page
from train.ddpm.image_sets import to_image, to_uint8
from train.ddpm.samplers import SamplerState
from train.metrics import read_metrics
from train.run_folder import Run

Line = Mapping[str, Any]  # of metrics.jsonl

GAP = 2  # pixels between two images
MIN_SIDE = 48  # pixels; smaller images are enlarged by a whole factor
MAX_GRIDS = 4
README = """# {name}

A diffusion model trained from scratch by `train/ddpm/fit.py`.

```
{plan}
```

This folder holds everything about the run: `config.yaml` (settings), `data.json` (images), `versions.json`,
`metrics.jsonl`; `export/` has the averaged weights.

```
{commands}
```
"""
EXPLAINED = """Mean squared error of the predicted x_0, in units of [-1, 1], over the same images and noise at evenly
spaced timesteps: the same scale whatever the network predicts. If both fall, it learns. If training falls and held-out
rises, it memorises its images."""


def write_readme(run: Run, plan: Sequence[str], commands: str) -> None:
    text = README.format(name=run.path.name, plan="\n".join(plan), commands=commands)
    write_atomic(run.path / "README.md", text)


def write_report(run: Run, steps: int, *, ended: str = "") -> None:
    """The page as far as metrics.jsonl goes."""
    lines = read_metrics(run.metrics)
    now = max((line["step"] for line in lines), default=0)
    page = Page(run.path.name, f"{run.facts('data.json').get('set')}: step {now} of {steps}")
    page.note(ended or f"Training: step {now} of {steps}.")
    validations = [line for line in lines if "validation" in line]
    if validations:
        add_validations(page, validations)
    files = sorted((run.path / "drawings").glob("[0-9]*.png"))
    if files:
        shown = pick_evenly(files, MAX_GRIDS)
        page.section("Generated from the same noise")
        page.strip(
            [(open_rgb(file), f"step {int(file.stem)}") for file in shown], columns=min(2, len(shown)), width=300
        )
    losses = column("loss", lines)
    if losses.y:
        page.section("Training")
        faint, mean = (
            Series("loss", losses.x, losses.y, faint=True),
            Series("running mean", losses.x, centred_mean(losses.y)),
        )
        page.curve(faint, mean, x="step", y="loss", title="Loss of each step, and its running mean")
        page.curve(column("gradient_norm", lines), x="step", y="norm", title="Gradient norm", log_y=True)
        page.curve(column("images_per_second", lines), x="step", y="images per second", title="Speed")
    page.write(run.path / "report.html")


def add_validations(page: Page, validations: Sequence[Line]) -> None:
    """The errors of x_0 over time and by timestep."""
    first, last = validations[0], validations[-1]
    page.section("Does it learn?").text(EXPLAINED)
    x, sides = [line["step"] for line in validations], last["validation"]
    curves = [Series(side, x, numbers(line["validation"][side] for line in validations)) for side in sides]
    page.curve(*curves, x="step", y="error of x_0", title="Error of x_0 at fixed noise", log_y=True)
    rows = [(side, first["validation"].get(side), now, format_change(last, side)) for side, now in sides.items()]
    page.table(("split", "at first", "now", "change, 95 % interval"), rows)
    side = next(iter(first["validation"]))
    curves = [
        Series(f"{side}, {name}", line["timesteps"], numbers(line["per_timestep"][side]))
        for name, line in (("at first", first), ("now", last))[: len(validations)]
    ]
    page.curve(*curves, x="timestep", y="error of x_0", title="By timestep", log_y=True)


def format_change(validation: Line, side: str) -> str:
    change = validation["change"].get(side)
    if not change or change["mean"] is None:
        return "not measured"
    if change["low"] is None:
        return f"{change['mean']:+.4f}, one image only"
    return f"{change['mean']:+.4f} ({change['low']:+.4f} to {change['high']:+.4f})"


def column(name: str, lines: Sequence[Line]) -> Series:
    """A number over the steps that have it."""
    some = [line for line in lines if name in line]
    return Series(name.replace("_", " "), [line["step"] for line in some], numbers(line[name] for line in some))


def numbers(values: Any) -> list[float]:
    """null in metrics.jsonl is a number that was not finite: a gap in a curve."""
    return [math.nan if value is None else value for value in values]


def centred_mean(values: Sequence[float], reach: int = 25) -> list[float]:
    """The mean of each value with up to `reach` on either side.

    At the start, where losses fall fast, as many on both sides, so that the mean does not lag; at the end at least half
    of `reach` before it, so that the last value is an average too.
    """
    means = []
    for place in range(len(values)):
        after = min(reach, len(values) - 1 - place)
        before = min(place, max(after, reach // 2))
        means.append(statistics.fmean(values[place - before : place + min(before, after) + 1]))
    return means


def format_speed(lines: Sequence[Line]) -> str:
    """The median speed of a run's metrics; empty if none was measured."""
    medians = {}
    for name in ("images_per_second", "tflops", "mfu"):
        values = [line[name] for line in lines if line.get(name)]
        medians[name] = statistics.median(values) if values else None
    if not medians["images_per_second"]:
        return ""
    text = f"speed:     {medians['images_per_second']:,.4g} images/s"
    text += f", {medians['tflops']:.3g} TFLOP/s" if medians["tflops"] else ""
    return text + (f", {100 * medians['mfu']:.1f} % of the device's peak" if medians["mfu"] else "")


# ---- images


def image_grid(pixels: Tensor, columns: int = 6) -> Image.Image:
    """uint8 (N, C, S, S) in rows on white, each enlarged by a whole factor."""
    count, channels, height, width = pixels.shape
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    paper = torch.full((channels, rows * (height + GAP) - GAP, columns * (width + GAP) - GAP), 255, dtype=torch.uint8)
    for place, image in enumerate(pixels):
        top, left = place // columns * (height + GAP), place % columns * (width + GAP)
        paper[:, top : top + height, left : left + width] = image
    grid, factor = to_image(paper), max(1, -(-MIN_SIDE // width))
    return grid.resize((grid.width * factor, grid.height * factor), Image.Resampling.NEAREST)


def write_png(image: Image.Image, path: Path) -> Path:
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    write_atomic(path, content.getvalue())
    return path


def open_rgb(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


def pick_evenly(things: Sequence[Any], count: int) -> list[Any]:
    """About `count` of them, evenly spread, the last one included."""
    last = len(things) - 1
    return [things[i] for i in sorted({round(n * last / max(1, count - 1)) for n in range(count)} | {last})]


def state_frames(states: Sequence[SamplerState], images: int) -> list[Image.Image]:
    """A grid of the first images for each state."""
    return [image_grid(to_uint8(state.xt[:images])).convert("RGB") for state in states]


def write_gif(frames: Sequence[Image.Image], path: Path, *, seconds: float = 5.0, pause: float = 1.0) -> Path:
    """A GIF of `seconds`, with a pause on the last frame; at least 0.02 s a frame, which viewers can show."""
    each = max(20, round(1000 * seconds / len(frames)))
    content = io.BytesIO()
    few = [frame.quantize(64, dither=Image.Dither.NONE) for frame in frames]
    durations = [*[each] * (len(few) - 1), each + round(1000 * pause)]
    few[0].save(content, "GIF", save_all=True, append_images=few[1:], duration=durations, loop=0, optimize=False)
    write_atomic(path, content.getvalue())
    return path


def write_mp4(frames: Sequence[Image.Image], path: Path, *, seconds: float = 5.0) -> Path:
    """The same as H.264, which browsers play; sides are padded to even numbers, as its colours need."""
    import av

    rate = max(1, min(60, round(len(frames) / seconds)))
    with atomic_file(path) as beside, av.open(str(beside), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height = (side + side % 2 for side in frames[0].size)
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "18"}
        for frame in frames:
            paper = Image.new("RGB", (stream.width, stream.height), "white")
            paper.paste(frame, (0, 0))
            for packet in stream.encode(av.VideoFrame.from_image(paper)):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path

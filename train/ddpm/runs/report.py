"""report.html and README.md of a run of fit.py."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from data.atomic_io import write_atomic
from data.reports.charts import Series
from data.reports.page import Page
from train.metrics import read_metrics
from train.run_folder import Run

Line = Mapping[str, Any]  # of metrics.jsonl

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
    validations = [line for line in lines if "validation" in line]
    trained = [line for line in lines if "loss" in line]
    speeds = [line for line in lines if "images_per_second" in line]
    now = max((line["step"] for line in lines), default=0)
    page = Page(run.path.name, f"{run.facts('data.json').get('set')}: step {now} of {steps}")
    page.note(ended or f"Training: step {now} of {steps}.")
    if validations:
        first, last = validations[0], validations[-1]
        page.section("Does it learn?").text(EXPLAINED)
        x = [line["step"] for line in validations]
        sides = [
            Series(side, x, numbers(line["validation"][side] for line in validations)) for side in last["validation"]
        ]
        page.curve(*sides, x="step", y="error of x_0", title="Error of x_0 at fixed noise", log_y=True)
        rows = [
            (side, first["validation"].get(side), now, change_of(last, side))
            for side, now in last["validation"].items()
        ]
        page.table(("split", "at first", "now", "change, 95 % interval"), rows)
        side = next(iter(first["validation"]))
        times = {"at first": first, "now": last} if len(validations) > 1 else {"at first": first}
        curves = [
            Series(f"{side}, {name}", line["timesteps"], numbers(line["per_timestep"][side]))
            for name, line in times.items()
        ]
        page.curve(*curves, x="timestep", y="error of x_0", title="By timestep", log_y=True)
    add_previews(page, run)
    if trained:
        losses, x = numbers(line["loss"] for line in trained), [line["step"] for line in trained]
        page.section("Training")
        curves = [Series("loss", x, losses, faint=True), Series("running mean", x, centred_mean(losses))]
        page.curve(*curves, x="step", y="loss", title="Loss of each step, and its running mean")
        norms = numbers(line["gradient_norm"] for line in trained)
        page.curve(Series("gradient norm", x, norms), x="step", y="norm", title="Gradient norm", log_y=True)
        rates = numbers(line["images_per_second"] for line in speeds)
        speed = Series("images per second", [line["step"] for line in speeds], rates)
        page.curve(speed, x="step", y="images per second", title="Speed")
    page.write(run.path / "report.html")


def change_of(validation: Line, side: str) -> str:
    change = validation["change"].get(side)
    if not change or change["mean"] is None:
        return "not measured"
    if change["low"] is None:
        return f"{change['mean']:+.4f}, one image only"
    return f"{change['mean']:+.4f} ({change['low']:+.4f} to {change['high']:+.4f})"


def add_previews(page: Page, run: Run) -> None:
    """The preview grids over time, from the same noise."""
    files = sorted((run.path / "drawings").glob("[0-9]*.png"))
    count = min(MAX_GRIDS, len(files))
    if count:
        shown = [files[round(place * (len(files) - 1) / max(1, count - 1))] for place in range(count)]
        page.section("Generated from the same noise")
        page.strip([(open_rgb(file), f"step {int(file.stem)}") for file in shown], columns=min(2, count), width=300)


def open_rgb(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


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

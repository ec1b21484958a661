"""What a training step costs, counted on shapes alone, and what a run reached of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any
import torch
from torch.utils.flop_counter import FlopCounterMode
from train.ddpm.unets.config import NetworkShape
from train.ddpm.unets.config import NetworkOptions
from collections.abc import Sequence
from collections.abc import Sequence
from typing import Any
from PIL import Image
from data.atomic_io import write_atomic
from data.reports.page import Page
from data.reports.charts import Series
from train.metrics import read_metrics
from train.report import Curve
from train.report import comparison_table
from train.report import without_missing
from train.report import sides
from train.report import training_curves
from train.report import curve_values
from train.run_folder import Run

def step_flops(options: NetworkOptions, frame: NetworkShape) -> int:
    """Operations of one picture's training step, forward and backward; a multiplication and an addition are two."""
    with torch.device("meta"):
        bones = options.build(frame).train()
        xt, t = torch.empty(1, frame.channels, frame.size, frame.size), torch.zeros(1, dtype=torch.int64)
        labels = t if frame.classes else None
        with FlopCounterMode(display=False) as counter:
            bones(xt, t, labels).square().mean().backward()
    return int(counter.get_total_flops())


def format_speed(lines: Sequence[Mapping[str, Any]]) -> str:
    """The median speed of a run's metrics, in words; empty if none was measured."""
    windows = [line for line in lines if line.get("images_per_second")]
    if not windows:
        return ""
    middle = {name: median_of(windows, name) for name in ("images_per_second", "tflops", "mfu")}
    words = f"speed:     {middle['images_per_second']:,.4g} pictures/s"
    words += f", {middle['tflops']:.3g} TFLOP/s" if middle["tflops"] else ""
    return words + (f", {100 * middle['mfu']:.1f} % of the device's peak" if middle["mfu"] else "")


def median_of(windows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    found = [line[name] for line in windows if line.get(name)]
    return statistics.median(found) if found else None


def centred_mean(values: Sequence[float], reach: int = 25) -> list[float]:
    """The mean of each value with up to `reach` on either side.

    At the start, where losses fall, as many on both sides, so that the fall is not seen late; at the end, where they
    hardly do, some before it too, so that the last value does not stand for itself.
    """
    found = []
    for place in range(len(values)):
        after = min(reach, len(values) - 1 - place)
        before = min(place, max(after, reach // 2))
        window = values[place - before : place + min(before, after) + 1]
        found.append(sum(window) / len(window))
    return found


MAX_GRIDS = 4
README = """# {name}

A diffusion model trained from scratch by `train/ddpm/fit.py`.

```
{plan}
```

Everything that made it is in this folder: `config.yaml` (settings), `data.json` (pictures), `versions.json`,
`metrics.jsonl`; `export/` holds the averaged weights.

```
{commands}
```
"""
EXPLAINED = """Mean squared error of the predicted x_0, in units of [-1, 1], over the same pictures and noise at evenly
spread timesteps: the same scale whatever the network predicts. Both falling: it learns. Training falling while
held-out rises: it learns its pictures by heart."""


def write_readme(run: Run, plan: Sequence[str], commands: str) -> None:
    text = README.format(name=run.path.name, plan="\n".join(plan), commands=commands)
    write_atomic(run.path / "README.md", text)


def write_report(run: Run, steps: int, *, ended: str = "") -> None:
    """The page as far as metrics.jsonl goes."""
    lines = read_metrics(run.metrics)
    looks = [line for line in lines if "validation" in line]
    trained = [line for line in lines if "loss" in line]
    now = max((line["step"] for line in lines), default=0)
    page = Page(run.path.name, f"{run.facts('data.json').get('set')}: step {now} of {steps}")
    page.note(ended or f"Still training: step {now} of {steps}.")
    if looks:
        page.section("Does it learn?").text(EXPLAINED)
        page.curve(*sides(looks), x="step", y="error of x_0", title="Error of x_0 at fixed noise", log_y=True)
        page.table(("side", "at first", "now", "change, 95 % interval"), list(comparison_table(looks)))
        page.curve(*by_timestep(looks), x="timestep", y="error of x_0", title="By timestep", log_y=True)
    add_previews(page, run)
    if trained:
        page.section("Training")
        page.curve(*training_curves(trained), x="step", y="loss", title="Loss of each step, and its running mean")
        page.curve(curve_values(trained, "gradient_norm"), x="step", y="norm", title="Gradient norm", log_y=True)
        speeds: list[dict[str, Any]] = [line for line in lines if "images_per_second" in line]
        page.curve(curve_values(speeds, "images_per_second"), x="step", y="pictures a second", title="Speed")
    page.write(run.path / "report.html")


def by_timestep(looks: Sequence[Curve]) -> list[Series]:
    """The first and the last look."""
    named = (("at first", looks[0]), ("now", looks[-1]))[: len(looks)]
    side = next(iter(looks[0]["validation"]))
    return [
        Series(f"{side}, {name}", look["timesteps"], [without_missing(value) for value in look["per_timestep"][side]])
        for name, look in named
    ]


def add_previews(page: Page, run: Run) -> None:
    """The grids over time: the same noise each time."""
    files = sorted((run.path / "drawings").glob("[0-9]*.png"))
    if not files:
        return
    count = min(MAX_GRIDS, len(files))
    shown = [files[round(place * (len(files) - 1) / max(1, count - 1))] for place in range(count)]
    page.section("Drawn from the same noise")
    page.strip([(open_rgb(file), f"step {int(file.stem)}") for file in shown], columns=min(2, count), width=300)


def open_rgb(file: Any) -> Image.Image:
    with Image.open(file) as picture:
        return picture.convert("RGB")

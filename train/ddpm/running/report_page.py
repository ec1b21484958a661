"""report.html and README.md of a run of fit.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from data.files import write_atomic
from data.page import Page, Series
from train.report import read_metrics
from train.report_page import Line, comparison, known, sides, training_curves, values
from train.run_folder import Run

MOST_GRIDS = 4
CARD = """# {name}

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


def write_card(run: Run, plan: Sequence[str], commands: str) -> None:
    text = CARD.format(name=run.path.name, plan="\n".join(plan), commands=commands)
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
        page.table(("side", "at first", "now", "change, 95 % interval"), list(comparison(looks)))
        page.curve(*by_timestep(looks), x="timestep", y="error of x_0", title="By timestep", log_y=True)
    drawings(page, run)
    if trained:
        page.section("Training")
        page.curve(*training_curves(trained), x="step", y="loss", title="Loss of each step, and its running mean")
        page.curve(values(trained, "gradient_norm"), x="step", y="norm", title="Gradient norm", log_y=True)
        speeds: list[dict[str, Any]] = [line for line in lines if "images_per_second" in line]
        page.curve(values(speeds, "images_per_second"), x="step", y="pictures a second", title="Speed")
    page.write(run.path / "report.html")


def by_timestep(looks: Sequence[Line]) -> list[Series]:
    """The first and the last look."""
    named = (("at first", looks[0]), ("now", looks[-1]))[: len(looks)]
    side = next(iter(looks[0]["validation"]))
    return [
        Series(f"{side}, {name}", look["timesteps"], [known(value) for value in look["per_timestep"][side]])
        for name, look in named
    ]


def drawings(page: Page, run: Run) -> None:
    """The grids over time: the same noise each time."""
    files = sorted((run.path / "drawings").glob("[0-9]*.png"))
    if not files:
        return
    count = min(MOST_GRIDS, len(files))
    shown = [files[round(place * (len(files) - 1) / max(1, count - 1))] for place in range(count)]
    page.section("Drawn from the same noise")
    page.strip([(opened(file), f"step {int(file.stem)}") for file in shown], columns=min(2, count), width=300)


def opened(file: Any) -> Image.Image:
    with Image.open(file) as picture:
        return picture.convert("RGB")

"""What a finished run says of itself: report.html, best.json and the model card."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import Any

from data.files import write_atomic
from data.page import Page, Series
from train.card import files_and_use
from train.plan import Plan
from train.report import read_metrics
from train.run_folder import Run

SMOOTHED = 50  # steps
EXPLAINED = """The same pictures with the same noise at the same timesteps, each time: the curves differ only by the
network. Both falling together: it learns. The training side falling while the held-out side rises: it memorises; stop
earlier, or lower the rank or the learning rate."""

CARD = """# {name}

A fine-tune of `{model}` ({adapter}) on {training} captioned pictures; {held_out} more were held out.

| | |
| --- | --- |
| steps | {steps} of {global_batch} pictures each ({epochs:.1f} times through the pictures) |
| weights trained | {trainable:,} of {parameters:,} |
| precision, machine | {precision}, {device} |
| loss at fixed noise, held out | {base:.4f} before, {now:.4f} after |
| change against the base | {change} |

Use it: `{command}`{beware}

## Files

{files}

## How it was made

Everything that made it is in this folder: `config.yaml` (settings), `data.json` (pictures and their hashes),
`plan.json`, `versions.json`, `metrics.jsonl`. `python train/export.py {path}` writes other files from its checkpoints.
"""


def write_summary(run: Run, plan: Plan, command: str) -> None:
    """Write best.json, report.html and README.md from what metrics.jsonl holds."""
    lines = read_metrics(run.metrics)
    looks = [line for line in lines if "validation" in line]
    side = measured_side(looks)
    best = min(looks, key=lambda line: line["validation"][side])
    run.write_json("best.json", {"step": best["step"], "side": side, "loss": best["validation"][side]})
    change = looks[-1]["change"].get(side)
    words = interval(change) if change else "not measured"
    beware = f"\n\nIt was {plan.sampling}." if plan.sampling else ""
    facts = vars(plan) | {"global_batch": plan.global_batch, "epochs": plan.epochs, "change": words, "beware": beware}
    losses = {"base": looks[0]["validation"][side], "now": looks[-1]["validation"][side]}
    facts |= {"files": files_and_use(run), "path": run.path}
    write_atomic(run.path / "README.md", CARD.format(name=run.path.name, command=command, **facts, **losses))
    write_page(run, plan, lines, looks)


def interval(change: dict[str, float | None]) -> str:
    """A mean with its 95 % interval, in words; a single picture has none (null in metrics.jsonl)."""
    if change["low"] is None:
        return f"{change['mean']:+.4f}, on one picture only"
    return f"{change['mean']:+.4f}, 95 % interval {change['low']:+.4f} to {change['high']:+.4f}"


def write_page(run: Run, plan: Plan, lines: list[dict[str, Any]], looks: list[dict[str, Any]]) -> None:
    """report.html: the curves and the plan, in one file."""
    page = Page(run.path.name, f"{plan.adapter} on {plan.model}, {plan.steps} steps of {plan.global_batch} pictures")
    page.section("Does it learn, or memorise?").text(EXPLAINED)
    page.curve(*sides(looks), x="step", y="loss", title="Denoising loss at fixed noise")
    page.table(("side", "base", "now", "change, 95 % interval"), list(comparison(looks)))
    page.section("By timestep").text("Small timesteps are fine detail, large ones composition and colour.")
    page.curve(*by_timestep(looks), x="timestep, share of T", y="loss", title="Held-out loss, base and now")
    steps = [line for line in lines if "loss" in line]
    page.section("Training")
    page.curve(*training_curves(steps), x="step", y="loss", title="Loss of each step, and its running mean")
    page.curve(values(steps, "learning_rate"), x="step", y="learning rate")
    page.curve(values(steps, "gradient_norm"), x="step", y="norm", title="Gradient norm before clipping", log_y=True)
    page.section("Plan").code("\n".join(plan.lines()))
    page.write(run.path / "report.html")


def sides(looks: list[dict[str, Any]]) -> list[Series]:
    """One line a side: held-out, train."""
    names = looks[0]["validation"]
    return [Series(side, [k["step"] for k in looks], [k["validation"][side] for k in looks]) for side in names]


def comparison(looks: list[dict[str, Any]]) -> Iterator[tuple[str, float, float, str]]:
    for side, base in looks[0]["validation"].items():
        change = looks[-1]["change"].get(side)
        yield side, base, looks[-1]["validation"][side], interval(change) if change else "not measured"


def by_timestep(looks: list[dict[str, Any]]) -> list[Series]:
    """The first and the last look, over evenly spread timesteps."""
    side = measured_side(looks)
    count = len(looks[0]["per_timestep"][side])
    places = [(index + 0.5) / count for index in range(count)]
    return [Series(name, places, look["per_timestep"][side]) for name, look in (("base", looks[0]), ("now", looks[-1]))]


def training_curves(steps: list[dict[str, Any]]) -> list[Series]:
    """The loss as it was, and its mean over the last SMOOTHED steps: timesteps differ in loss more than steps do."""
    raw = [line["loss"] for line in steps]
    means = [statistics.fmean(raw[max(0, end - SMOOTHED) : end]) for end in range(1, len(raw) + 1)]
    places = [line["step"] for line in steps]
    return [Series("loss", places, raw, faint=True), Series(f"mean of {SMOOTHED}", places, means)]


def values(steps: list[dict[str, Any]], name: str) -> Series:
    """A column of the metrics; an overflowed step is a gap."""
    column = [math.nan if line[name] is None else line[name] for line in steps]
    return Series(name.replace("_", " "), [line["step"] for line in steps], column)


def measured_side(looks: list[dict[str, Any]]) -> str:
    """Held-out if anything was held out."""
    return "held-out" if "held-out" in looks[0]["validation"] else "train"

"""What a finished run says of itself: report.html, best.json and the model card."""

from __future__ import annotations

from typing import Any

from data.files import write_atomic
from train.plan import Plan
from train.report import read_metrics
from train.run_folder import Run

CARD = """# {name}

A fine-tune of `{model}` ({adapter}) on {training} captioned pictures; {held_out} more were held out.

| | |
| --- | --- |
| steps | {steps} of {global_batch} pictures each ({epochs:.1f} times through the pictures) |
| weights trained | {trainable:,} of {parameters:,} |
| precision, machine | {precision}, {device} |
| loss at fixed noise, held out | {base:.4f} before, {now:.4f} after |
| change against the base | {change} |

Use it: `{command}`

Everything that made it is in this folder: `config.yaml` (settings), `data.json` (pictures and their hashes),
`plan.json`, `versions.json`, `metrics.jsonl`. The base model's licence applies to it.
"""


def write_summary(run: Run, plan: Plan, command: str) -> None:
    """Write best.json, report.html and README.md from what metrics.jsonl holds."""
    lines = read_metrics(run.metrics)
    looks = [line for line in lines if "validation" in line]
    side = "held-out" if looks and "held-out" in looks[0]["validation"] else "train"
    best = min(looks, key=lambda line: line["validation"][side])
    run.write_json("best.json", {"step": best["step"], "side": side, "loss": best["validation"][side]})
    change = looks[-1]["change"].get(side)
    words = interval(change) if change else "not measured"
    facts = vars(plan) | {"global_batch": plan.global_batch, "epochs": plan.epochs, "change": words}
    losses = {"base": looks[0]["validation"][side], "now": looks[-1]["validation"][side]}
    write_atomic(run.path / "README.md", CARD.format(name=run.path.name, command=command, **facts, **losses))
    write_page(run, plan, lines, looks)


def interval(change: dict[str, float]) -> str:
    """A mean with its 95 % interval, in words."""
    return f"{change['mean']:+.4f}, 95 % interval {change['low']:+.4f} to {change['high']:+.4f}"


def write_page(run: Run, plan: Plan, lines: list[dict[str, Any]], looks: list[dict[str, Any]]) -> None:
    """report.html: the curves and the plan, in one file."""
    raise NotImplementedError

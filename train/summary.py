"""What a run says of itself: best.json and the model card when it has finished, report.html from the first look on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data.files import write_atomic
from train.card import files_and_use
from train.plan import Plan
from train.report import read_metrics
from train.report_page import Page, base_of, comparable_looks, interval, measured_side, page_of
from train.run_folder import Run
from train.stopping import Progress
from train.verdict import judge

CARD = """# {name}

A fine-tune of `{model}` ({adapter}) on {training} captioned pictures; {held_out} more were held out.

| | |
| --- | --- |
| steps | {steps} of {global_batch} pictures each ({epochs:.1f} times through the pictures) |
| weights trained | {trainable:,} of {parameters:,} |
| precision, machine | {precision}, {device} |
| weights exported | those of step {exported} |
| loss at fixed noise, {side} | {base} before, {now} after |
| change against the base | {change} |
| verdict | {verdict} |

Use it: `{command}`{beware}

## Files

{files}

## How it was made

Everything that made it is in this folder: `config.yaml` (settings), `data.json` (pictures and their hashes),
`plan.json`, `versions.json`, `metrics.jsonl`. `python train/export.py {path}` writes other files from its checkpoints.
"""


@dataclass(frozen=True)
class Outcome:
    """How a run ended. exported: the step whose weights were; export: best or last, as asked; stopped: why early."""

    command: str
    steps: int
    exported: int
    progress: Progress
    export: str
    stopped: str = ""


def write_summary(run: Run, plan: Plan, outcome: Outcome) -> None:
    """Write best.json, report.html and README.md of a finished run."""
    progress = outcome.progress
    best = progress.chosen
    if best is not None:
        since_base = progress.since_base(best).get(best.judged_by)
        facts = {"step": best.step, "side": best.judged_by, "loss": best.mean(best.judged_by)}
        change = since_base.finite if since_base else None
        run.write_json("best.json", facts | {"change": change, "exported": outcome.exported, "export": outcome.export})
    write_atomic(run.path / "README.md", CARD.format(**card_facts(run, plan, outcome)))
    page_of(run, plan, read_metrics(run.metrics), ended=ending(outcome), best=best.step if best else None).write(
        run.path / "report.html"
    )


def card_facts(run: Run, plan: Plan, outcome: Outcome) -> dict[str, Any]:
    """The words and numbers of the model card; the losses are those of the exported weights, where they were seen."""
    looks = comparable_looks(read_metrics(run.metrics))
    side = measured_side(looks)
    seen = [line for line in looks if line["step"] <= outcome.exported][-1]
    change = seen["change"].get(side)
    before = base_of(looks, side)
    best = outcome.progress.chosen
    beware = f"\n\nIt was {plan.sampling}." if plan.sampling else ""
    return {
        **vars(plan),
        **{"name": run.path.name, "command": outcome.command, "steps": outcome.steps, "exported": outcome.exported},
        **{"global_batch": plan.global_batch, "epochs": outcome.steps * plan.global_batch / max(1, plan.training)},
        "base": "not measured" if before is None else f"{before:.4f}",
        "now": f"{seen['validation'][side]:.4f}",
        **{"side": side, "change": interval(change) if change else "not measured"},
        **{"beware": beware, "files": files_and_use(run), "path": run.path},
        "verdict": str(judge(best, outcome.progress)) if best else "not measured",
    }


def ending(outcome: Outcome) -> str:
    """How the run ended and what it left, for the head of the page."""
    why = f"{outcome.stopped[0].upper()}{outcome.stopped[1:]}. " if outcome.stopped else ""
    which = "last" if outcome.exported == outcome.steps else "best"
    exported = f"the weights of step {outcome.exported}, the {which}, are exported"
    return f"{why}Finished after {outcome.steps} steps; {exported}."


def write_report(run: Run, plan: Plan) -> None:
    """report.html of a run that is still going on."""
    lines = read_metrics(run.metrics)
    if any("validation" in line for line in lines):
        page: Page = page_of(run, plan, lines, ended="", best=None)
        page.write(run.path / "report.html")

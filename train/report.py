"""What a run leaves for people: report.html, and README.md as its model card."""

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from data.atomic_io import write_atomic
from data.reports.charts import Series
from data.reports.page import Page
from train.exporters import verify
from train.metrics import read_metrics, without_infinities
from train.plan import Plan, plan_lines
from train.run_folder import Run
from train.samples import PREVIEW_FILE
from train.validation import HELD_OUT, EarlyStopping, diagnose

MIB = 2**20
USES = {
    "lora.safetensors": 'diffusers: `pipe.load_lora_weights("{folder}", weight_name="lora.safetensors")`',
    "lora-kohya.safetensors": "AUTOMATIC1111: put it into `models/Lora` as `{name}.safetensors` and write "
    "`<lora:{name}:1>` into the prompt; ComfyUI: `models/loras` and the node Load LoRA",
    "model": 'diffusers: `StableDiffusionPipeline.from_pretrained("{folder}/model")`',
    "model.safetensors": "AUTOMATIC1111: `models/Stable-diffusion`; ComfyUI: `models/checkpoints`; diffusers: "
    "`from_single_file`",
}
RAIL = """The base model is Stable Diffusion v1: the CreativeML Open RAIL-M licence, with its restrictions
on use, applies to derived models, these files included."""
OTHER_LICENCE = "The base model's licence applies to derived models, these files included."
DORA = """DoRA in `lora-kohya.safetensors` is LyCORIS' (`dora_scale` is the length of each row of the merged weights).
Tools differ here: some take the lengths of the base's rows, or of columns. A merged model (`python train/export.py RUN
--merge --single-file`) is the same everywhere."""


def describe_files(run: Run) -> str:
    """Markdown: a table of the files, an example prompt, the LoRA scale and the licence."""
    file = run.path / "config.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    rows = [table_row(run, name) for name in verify.read_record(run.export).get("files", [])]
    table = ["| file | size | use |", "| --- | --- | --- |", *rows] if rows else ["None."]
    template = config.get("pictures", {}).get("caption", "")  # no trigger word other than what all captions share
    example = f"It was trained on captions of the form `{template}`; such prompts work best." if template else ""
    licence = RAIL if "stable-diffusion-v1" in str(config.get("model", "")) else OTHER_LICENCE
    return "\n\n".join(filter(None, ["\n".join(table), example, lora_scale(config.get("adapter", {})), licence]))


def update_card_files(run: Run) -> None:
    """Update the table of files in the card of a run that was exported again."""
    file: Path = run.path / "README.md"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    before, files, after = text.partition("\n## Files\n\n")
    _, made, rest = after.partition("\n\n## How it was made\n")
    if files and made:
        write_atomic(file, f"{before}{files}{describe_files(run)}{made}{rest}")


def table_row(run: Run, name: str) -> str:
    file = run.export / name
    parts = [file] if file.is_file() else [part for part in file.rglob("*") if part.is_file()]
    size = sum(part.stat().st_size for part in parts) / MIB
    return f"| `export/{name}` | {size:.1f} MiB | {USES[name].format(folder=run.export, name=run.path.name)} |"


def lora_scale(adapter: dict[str, Any]) -> str:
    """The scale of the update in numbers, since alpha means different things in different tools."""
    if adapter.get("kind") != "lora":
        return ""
    rank, alpha = adapter["rank"], adapter["alpha"] or adapter["rank"]
    root = " the root of" if adapter.get("use_rslora") else ""
    factor = alpha / (rank**0.5 if root else rank)
    text = (
        f"Rank {rank}, alpha {alpha:g}: the update is scaled by alpha /{root} rank = {factor:g}; both files carry it."
    )
    if adapter.get("ranks"):
        text += f" Blocks with their own rank keep alpha / rank: {', '.join(adapter['ranks'])}."
    return text + (f"\n\n{DORA}" if adapter.get("use_dora") else "")


# ---- report.html

SMOOTHED = 50  # steps
MOST_SHOWN = 6  # previews of one prompt: the base, the last, and evenly spaced ones in between
THUMBNAIL_PIXELS = 256  # at most; the full-size images are in previews/
PAGE_EXPLAINED = """Each validation uses the same images, noise and timesteps, so the curves differ only by the
network. If both fall, it learns. If the training curve falls while the held-out curve rises, it
memorises: stop earlier, or use a lower rank or learning rate."""
GAP_EXPLAINED = """How much more the loss fell on training images than on held-out ones, since the base model:
memorisation rather than learning. A band that excludes zero is significant; a gap that grows
while the held-out loss still falls is normal."""
MEASURED = {  # columns of metrics.jsonl's windows, as far as a run has them
    "images_per_second": ("Speed", "images a second"),
    "tflops": ("Arithmetic", "TFLOP a second"),
    "mfu": ("Share of the device's peak used by the model (MFU)", "share"),
    "data_wait": ("Share of a step spent waiting for data", "share"),
}
HEADS = {
    "learns": "It learns",
    "memorises": "It memorises",
    "gets worse": "It gets worse",
    "cannot tell yet": "Cannot tell yet",
}


@dataclass(frozen=True)
class History:
    """The lines of metrics.jsonl. A null in them is a number that was not finite, and a gap in a curve."""

    lines: Sequence[Mapping[str, Any]]

    @cached_property
    def validations(self) -> list[Mapping[str, Any]]:
        """Those on the newest one's images and timesteps; others cannot be compared with it."""
        found = [line for line in self.lines if "validation" in line]
        return [line for line in found if line.get("questions") == found[-1].get("questions")]

    @property
    def side(self) -> str:
        """The split that decides: held-out, if anything was held out."""
        sides = self.validations[0]["validation"]
        return HELD_OUT if HELD_OUT in sides else next(iter(sides))

    def base(self, side: str) -> float | None:
        """The base model's loss; None if it was not measured on these images and timesteps, or is not finite."""
        first = self.validations[0]
        return first["validation"][side] if first["step"] == 0 else None

    @property
    def best_step(self) -> int | None:
        """The step with the lowest loss so far, the base excluded."""
        losses = {line["step"]: line["validation"][self.side] for line in self.validations if line["step"] > 0}
        finite = {step: loss for step, loss in losses.items() if loss is not None}
        return min(finite, key=finite.__getitem__) if finite else None


def render_report(run: Run, plan: Plan, history: History, *, ended: str, best: int | None) -> Page:
    """The page, from metrics.jsonl and previews/. best: the best step, once it is final."""
    best = best if best is not None else history.best_step
    subtitle = f"{plan['adapter']} on {plan['model']}, {plan['steps']} steps of {plan['global_batch']} images"
    page = Page(run.path.name, subtitle)
    summary_section(page, plan, history, ended, best)
    validation_section(page, history, best)
    previews_section(page, run.path / "previews")
    training_section(page, history.lines)
    page.section("Plan").code("\n".join(plan_lines(plan)))
    return page


def summary_section(page: Page, plan: Plan, history: History, ended: str, best: int | None) -> None:
    """The diagnosis and the most important numbers."""
    last, side = history.validations[-1], history.side
    verdict = last.get("verdict")
    diagnosis = (
        f"{HEADS[verdict['word']]} (step {last['step']}): {verdict['because']}." if verdict else "Not trained yet."
    )
    running = f"Still training: step {last['step']} of {plan['steps']} at the last validation."
    page.note(f"{diagnosis} {ended or running}")
    chosen = next((line for line in history.validations if line["step"] == best), None)
    change, base = chosen["change"].get(side) if chosen else None, history.base(side)
    speeds = [line["images_per_second"] for line in history.lines if "images_per_second" in line]
    page.facts(
        {
            "steps": f"{max(line['step'] for line in history.lines):,} of {plan['steps']:,}",
            "best step": best,
            f"{side} loss there": chosen["validation"][side] if chosen else None,
            "against the base": f"{change['mean'] / base:+.1%}" if change and base else None,
            "images a second": statistics.median(speeds) if speeds else None,
        }
    )


def validation_section(page: Page, history: History, best: int | None) -> None:
    """Loss at fixed noise, the memorisation gap, and the loss by timestep."""
    lines, side = history.validations, history.side
    first, last = lines[0], lines[-1]
    steps = [line["step"] for line in lines]
    curves = [Series(name, steps, [line["validation"][name] for line in lines]) for name in first["validation"]]
    marked = [line["validation"][side] for line in lines if line["step"] == best]
    curves += [Series(f"best, step {best}", [best], marked, mark=True)] if marked and best is not None else []
    page.section("Learning or memorising?").text(PAGE_EXPLAINED)
    page.curve(*curves, x="step", y="loss", title="Denoising loss at fixed noise")
    page.table(("split", "base", "now", "change, 95 % interval"), list(comparison_table(history)))
    gaps = [(line["step"], line["gap"]) for line in lines if line.get("gap")]
    if gaps:
        nothing = {"mean": 0.0, "low": 0.0, "high": 0.0}  # of the base against itself
        places, intervals = zip((0, nothing), *gaps, strict=True)
        mean, low, high = ([interval[key] for interval in intervals] for key in ("mean", "low", "high"))
        gap = Series("gap", places, mean, low, high)
        page.curve(gap, x="step", y="held-out minus training", title="Memorisation gap, with its 95 % interval")
        page.text(GAP_EXPLAINED)
    page.section("By timestep").text("Small timesteps are about fine detail, large ones about composition and colour.")
    name, count = preview_caption(first["step"]), len(first["per_timestep"][side])
    places = [(index + 0.5) / count for index in range(count)]
    named = [(name, first), ("now", last)][: len(lines)]
    curves = [Series(label, places, line["per_timestep"][side]) for label, line in named]
    page.curve(*curves, x="timestep, share of T", y="loss", title=f"Loss of {side} images, {name} and now")


def training_section(page: Page, lines: Sequence[Mapping[str, Any]]) -> None:
    """Loss, learning rate, gradient norm and speed."""
    steps = [line for line in lines if "loss" in line]
    windows = [line for line in lines if "loss_by_timestep" in line]
    places, ends = [line["step"] for line in steps], [line["step"] for line in windows]
    losses = [math.nan if line["loss"] is None else line["loss"] for line in steps]
    # the loss varies more with the timesteps than with the steps
    smooth = [statistics.fmean(losses[max(0, end - SMOOTHED) : end]) for end in range(1, len(losses) + 1)]
    bins = [line["loss_by_timestep"] for line in windows]
    page.section("Training")
    curves = [Series("loss", places, losses, faint=True), Series(f"mean of {SMOOTHED}", places, smooth)]
    page.curve(*curves, x="step", y="loss", title="Loss of each step, and its running mean")
    curves = [Series(f"t {name}", ends, [each[name] for each in bins]) for name in (bins[0] if bins else ())]
    page.curve(*curves, x="step", y="loss", title="Training loss by timestep")
    rates = Series("learning rate", places, [line["learning_rate"] for line in steps])
    page.curve(rates, x="step", y="learning rate", title="Learning rate")
    norms = Series("gradient norm", places, [line["gradient_norm"] for line in steps])
    page.curve(norms, x="step", y="norm", title="Gradient norm before clipping", log_y=True)
    for name, (title, unit) in MEASURED.items():
        values = [(line["step"], line[name]) for line in windows if line.get(name) is not None]
        if values:
            page.curve(Series(name.replace("_", " "), *zip(*values, strict=True)), x="step", y=unit, title=title)


def previews_section(page: Page, folder: Path) -> None:
    """A row for each prompt: the base first, then the network over time."""
    steps = shown_steps(folder)
    if not steps:
        return
    page.section("Previews").text("The same prompts and seeds each time. The full-size images are in previews/.")
    for index, image in enumerate(previewed(steps[-1])):
        name = f"{index:05d}-{image['seed']}.png"
        cells = [(thumbnail(step / name), preview_caption(int(step.name))) for step in steps if (step / name).is_file()]
        page.strip(cells, title=f"{image['prompt']}  (seed {image['seed']})", columns=MOST_SHOWN, width=120)


def shown_steps(folder: Path) -> list[Path]:
    """Folders of previews with the newest one's prompts: the first, the last and evenly spaced ones in between."""
    found = sorted(path.parent for path in folder.glob(f"[0-9]*/{PREVIEW_FILE}"))
    alike = [path for path in found if previewed(path) == previewed(found[-1])]
    count = min(MOST_SHOWN, len(alike))
    return [alike[round(n * (len(alike) - 1) / max(1, count - 1))] for n in range(count)]


def previewed(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / PREVIEW_FILE).read_text(encoding="utf-8"))["pictures"]


def thumbnail(file: Path) -> Image.Image:
    with Image.open(file) as image:
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.LANCZOS)
    return small


def preview_caption(step: int) -> str:
    return f"step {step}" if step else "base"


def comparison_table(history: History) -> Iterator[tuple[str, float | None, float | None, str]]:
    last = history.validations[-1]
    for side, now in last["validation"].items():
        yield side, history.base(side), now, format_interval(last["change"].get(side))


def format_interval(change: Mapping[str, float | None] | None) -> str:
    """A mean with its 95 % interval; a single image has none (null in metrics.jsonl)."""
    if not change:
        return "not measured"
    if change["mean"] is None:
        return "not finite"
    if change["low"] is None:
        return f"{change['mean']:+.4f}, on one image only"
    return f"{change['mean']:+.4f}, 95 % interval {change['low']:+.4f} to {change['high']:+.4f}"


# ---- README.md

CARD = """# {name}

A fine-tune of `{model}` ({adapter}) on {training} captioned images; {held_out} more were held out.

| | |
| --- | --- |
| steps | {steps} of {global_batch} images each ({epochs:.1f} epochs) |
| weights trained | {trainable:,} of {parameters:,} |
| precision, machine | {precision}, {device} |
| exported weights | step {exported} |
| loss at fixed noise, {side} | {base} before, {now} after |
| change against the base | {change} |
| diagnosis | {verdict} |

Use it: `{command}`{beware}

## Files

{files}

## How it was made

This folder has all that is needed to repeat it: `config.yaml` (settings), `data.json` (images and their hashes),
`plan.json`, `versions.json`, `metrics.jsonl`. `python train/export.py {path}` exports other formats.
"""


@dataclass(frozen=True)
class Outcome:
    """How a run ended. exported: the step that was exported; export: best or last; stopped: why early."""

    command: str
    steps: int
    exported: int
    progress: EarlyStopping
    export: str
    stopped: str = ""


def write_summary(run: Run, plan: Plan, outcome: Outcome) -> None:
    """Write best.json, report.html and README.md of a finished run."""
    best, history = outcome.progress.chosen, History(read_metrics(run.metrics))
    if best is not None:
        since_base = outcome.progress.since_base(best).get(best.judged_by)
        facts = {"step": best.step, "side": best.judged_by, "loss": best.mean(best.judged_by)}
        change = without_infinities(vars(since_base)) if since_base else None
        run.write_json("best.json", facts | {"change": change, "exported": outcome.exported, "export": outcome.export})
    write_atomic(run.path / "README.md", CARD.format(**card_facts(run, plan, history, outcome)))
    why = f"{outcome.stopped[0].upper()}{outcome.stopped[1:]}. " if outcome.stopped else ""
    which = "last" if outcome.exported == outcome.steps else "best"
    exported = f"the weights of step {outcome.exported}, the {which}, are exported"
    ended = f"{why}Finished after {outcome.steps} steps; {exported}."
    page = render_report(run, plan, history, ended=ended, best=best.step if best else None)
    page.write(run.path / "report.html")


def card_facts(run: Run, plan: Plan, history: History, outcome: Outcome) -> dict[str, Any]:
    """The fields of CARD; the losses are those of the exported weights, if they were validated."""
    side, best = history.side, outcome.progress.chosen
    seen = [line for line in history.validations if line["step"] <= outcome.exported][-1]
    before = history.base(side)
    return {
        **plan,
        "name": run.path.name,
        "command": outcome.command,
        "steps": outcome.steps,
        "exported": outcome.exported,
        "epochs": outcome.steps * plan["global_batch"] / max(1, plan["training"]),
        "base": "not measured" if before is None else f"{before:.4f}",
        "now": f"{seen['validation'][side]:.4f}",
        "side": side,
        "change": format_interval(seen["change"].get(side)),
        "beware": f"\n\nIt was {plan['sampling']}." if plan["sampling"] else "",
        "files": describe_files(run),
        "path": run.path,
        "verdict": str(diagnose(best, outcome.progress)) if best else "not measured",
    }


def write_report(run: Run, plan: Plan) -> None:
    """report.html of an unfinished run."""
    history = History(read_metrics(run.metrics))
    if history.validations:
        render_report(run, plan, history, ended="", best=None).write(run.path / "report.html")

"""What a run leaves for people: report.html, and README.md as its model card."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from data.atomic_io import write_atomic
from data.reports.charts import Series
from data.reports.page import Page
from train.exporters import verify
from train.metrics import read_metrics
from train.plan import Plan
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
    config = read_config(run)
    made = verify.read_record(run.export)
    rows = [table_row(run, name) for name in made.get("files", [])]
    table = ["| file | size | use |", "| --- | --- | --- |", *rows] if rows else ["None."]
    adapter = config.get("adapter", {})
    return "\n\n".join(
        filter(None, ["\n".join(table), example_prompt(config), lora_scale(adapter), licence_name(config)])
    )


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


def example_prompt(config: dict[str, Any]) -> str:
    """There is no trigger word other than what all captions share."""
    template = config.get("pictures", {}).get("caption", "")
    return f"It was trained on captions of the form `{template}`; such prompts work best." if template else ""


def lora_scale(adapter: dict[str, Any]) -> str:
    """The scale of the update in numbers, since alpha means different things in different tools."""
    if adapter.get("kind") != "lora":
        return ""
    rank, alpha = adapter["rank"], adapter["alpha"] or adapter["rank"]
    root = " the root of" if adapter.get("use_rslora") else ""
    factor = alpha / (rank**0.5 if adapter.get("use_rslora") else rank)
    said = (
        f"Rank {rank}, alpha {alpha:g}: the update is scaled by alpha /{root} rank = {factor:g}; both files carry it."
    )
    if adapter.get("ranks"):
        said += f" Blocks with their own rank keep alpha / rank: {', '.join(adapter['ranks'])}."
    return said + (f"\n\n{DORA}" if adapter.get("use_dora") else "")


def licence_name(config: dict[str, Any]) -> str:
    return RAIL if "stable-diffusion-v1" in str(config.get("model", "")) else OTHER_LICENCE


def read_config(run: Run) -> dict[str, Any]:
    file: Path = run.path / "config.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}


Curve = Mapping[str, Any]

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


def render_report(run: Run, plan: Plan, lines: Sequence[Curve], *, ended: str, best: int | None) -> Page:
    """The page, from metrics.jsonl and previews/. best: the best step, once it is final."""
    looks = comparable_looks(lines)
    best = best if best is not None else best_step(looks)
    page = Page(run.path.name, f"{plan.adapter} on {plan.model}, {plan.steps} steps of {plan.global_batch} images")
    summary_section(page, plan, lines, looks, ended, best)
    validation_section(page, looks, best)
    previews_section(page, run.path / "previews")
    training_section(page, lines)
    page.section("Plan").code("\n".join(plan.lines()))
    return page


def summary_section(
    page: Page, plan: Plan, lines: Sequence[Curve], looks: Sequence[Curve], ended: str, best: int | None
) -> None:
    """The diagnosis and the most important numbers."""
    last = looks[-1]
    verdict = last.get("verdict")
    said = "Not trained yet."
    if verdict:
        said = f"{HEADS[verdict['word']]} (step {last['step']}): {verdict['because']}."
    running = f"Still training: step {last['step']} of {plan.steps} at the last validation."
    page.note(f"{said} {ended or running}")
    side = measured_side(looks)
    chosen = next((look for look in looks if look["step"] == best), None)
    change, base = chosen["change"].get(side) if chosen else None, base_of(looks, side)
    speeds = [line["images_per_second"] for line in lines if "images_per_second" in line]
    page.facts(
        {
            "steps": f"{max(line['step'] for line in lines):,} of {plan.steps:,}",
            "best step": best,
            f"{side} loss there": chosen["validation"][side] if chosen else None,
            "against the base": f"{change['mean'] / base:+.1%}" if change and base else None,
            "images a second": statistics.median(speeds) if speeds else None,
        }
    )


def validation_section(page: Page, looks: Sequence[Curve], best: int | None) -> None:
    """Loss at fixed noise, the memorisation gap, and the loss by timestep."""
    page.section("Learning or memorising?").text(PAGE_EXPLAINED)
    page.curve(*sides(looks), *best_mark(looks, best), x="step", y="loss", title="Denoising loss at fixed noise")
    page.table(("split", "base", "now", "change, 95 % interval"), list(comparison_table(looks)))
    gaps = [(look["step"], look["gap"]) for look in looks if look.get("gap")]
    if gaps:
        nothing: dict[str, float | None] = {"mean": 0.0, "low": 0.0, "high": 0.0}  # of the base against itself
        gap = interval_band("gap", [(0, nothing), *gaps])
        page.curve(gap, x="step", y="held-out minus training", title="Memorisation gap, with its 95 % interval")
        page.text(GAP_EXPLAINED)
    page.section("By timestep").text("Small timesteps are about fine detail, large ones about composition and colour.")
    title = f"Loss of {measured_side(looks)} images, {preview_caption(looks[0]['step'])} and now"
    page.curve(*by_timestep(looks), x="timestep, share of T", y="loss", title=title)


def training_section(page: Page, lines: Sequence[Curve]) -> None:
    """Loss, learning rate, gradient norm and speed."""
    steps = [line for line in lines if "loss" in line]
    windows = [line for line in lines if "loss_by_timestep" in line]
    page.section("Training")
    page.curve(*training_curves(steps), x="step", y="loss", title="Loss of each step, and its running mean")
    page.curve(*band_curves(windows), x="step", y="loss", title="Training loss by timestep")
    page.curve(curve_values(steps, "learning_rate"), x="step", y="learning rate", title="Learning rate")
    page.curve(
        curve_values(steps, "gradient_norm"), x="step", y="norm", title="Gradient norm before clipping", log_y=True
    )
    for name, (title, unit) in MEASURED.items():
        known_there = [line for line in windows if line.get(name) is not None]
        if known_there:
            page.curve(curve_values(known_there, name), x="step", y=unit, title=title)


def previews_section(page: Page, folder: Path) -> None:
    """A row for each prompt: the base first, then the network over time."""
    steps = shown_steps(folder)
    if not steps:
        return
    page.section("Previews").text("The same prompts and seeds each time. The full-size images are in previews/.")
    asked = json_of(steps[-1])["pictures"]
    for index, question in enumerate(asked):
        name = f"{index:05d}-{question['seed']}.png"
        cells = [(thumbnail(step / name), preview_caption(int(step.name))) for step in steps if (step / name).is_file()]
        page.strip(cells, title=f"{question['prompt']}  (seed {question['seed']})", columns=MOST_SHOWN, width=120)


def shown_steps(folder: Path) -> list[Path]:
    """Folders of previews with the newest one's prompts: the first, the last and evenly spaced ones in between."""
    found = sorted(path.parent for path in folder.glob(f"[0-9]*/{PREVIEW_FILE}"))
    alike = [path for path in found if json_of(path)["pictures"] == json_of(found[-1])["pictures"]]
    count = min(MOST_SHOWN, len(alike))
    return [alike[round(n * (len(alike) - 1) / max(1, count - 1))] for n in range(count)]


def json_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / PREVIEW_FILE).read_text(encoding="utf-8"))


def thumbnail(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.LANCZOS)
    return small


def preview_caption(step: int) -> str:
    return f"step {step}" if step else "base"


def comparable_looks(lines: Sequence[Curve]) -> list[Curve]:
    """The validations on the newest one's images and timesteps; others cannot be compared with it."""
    looks = [line for line in lines if "validation" in line]
    return [look for look in looks if look.get("questions") == looks[-1].get("questions")]


def base_of(looks: Sequence[Curve], side: str) -> float | None:
    """The base model's loss; None if it was not measured on these images and timesteps, or is not finite."""
    return looks[0]["validation"][side] if looks[0]["step"] == 0 else None


def best_step(looks: Sequence[Curve]) -> int | None:
    """The step with the lowest loss so far, the base excluded."""
    side = measured_side(looks)
    trained = [look for look in looks if look["step"] > 0 and look["validation"][side] is not None]
    return min(trained, key=lambda look: look["validation"][side])["step"] if trained else None


def best_mark(looks: Sequence[Curve], best: int | None) -> list[Series]:
    """A mark on the held-out curve at the best step."""
    side = measured_side(looks)
    found = [look for look in looks if look["step"] == best]
    return [Series(f"best, step {best}", [look["step"]], [look["validation"][side]], mark=True) for look in found]


def sides(looks: Sequence[Curve]) -> list[Series]:
    """One line per split: held-out, train."""
    names = looks[0]["validation"]
    return [
        Series(side, [k["step"] for k in looks], [without_missing(k["validation"][side]) for k in looks])
        for side in names
    ]


def comparison_table(looks: Sequence[Curve]) -> Iterator[tuple[str, float | None, float | None, str]]:
    for side, now in looks[-1]["validation"].items():
        change = looks[-1]["change"].get(side)
        yield side, base_of(looks, side), now, format_interval(change) if change else "not measured"


def format_interval(change: Mapping[str, float | None]) -> str:
    """A mean with its 95 % interval; a single image has none (null in metrics.jsonl)."""
    if change["mean"] is None:
        return "not finite"
    if change["low"] is None:
        return f"{change['mean']:+.4f}, on one image only"
    return f"{change['mean']:+.4f}, 95 % interval {change['low']:+.4f} to {change['high']:+.4f}"


def interval_band(name: str, points: Sequence[tuple[int, Mapping[str, float | None]]]) -> Series:
    """A line with its interval."""
    columns = {key: [without_missing(interval[key]) for _, interval in points] for key in ("mean", "low", "high")}
    return Series(name, [step for step, _ in points], columns["mean"], columns["low"], columns["high"])


def by_timestep(looks: Sequence[Curve]) -> list[Series]:
    """The first and the last validation, over evenly spread timesteps."""
    side = measured_side(looks)
    count = len(looks[0]["per_timestep"][side])
    places = [(index + 0.5) / count for index in range(count)]
    named = ((preview_caption(looks[0]["step"]), looks[0]), ("now", looks[-1]))[: len(looks)]
    return [Series(name, places, [without_missing(v) for v in look["per_timestep"][side]]) for name, look in named]


def training_curves(steps: Sequence[Curve]) -> list[Series]:
    """The loss and its mean over the last SMOOTHED steps: it varies more with the timesteps than with the steps."""
    raw = [without_missing(line["loss"]) for line in steps]
    places = [line["step"] for line in steps]
    return [Series("loss", places, raw, faint=True), Series(f"mean of {SMOOTHED}", places, running_mean(raw))]


def running_mean(values: Sequence[float]) -> list[float]:
    """The mean of the last SMOOTHED values, of fewer at the start."""
    return [statistics.fmean(values[max(0, end - SMOOTHED) : end]) for end in range(1, len(values) + 1)]


def band_curves(windows: Sequence[Curve]) -> list[Series]:
    """A line for each bin of timesteps."""
    names = windows[0]["loss_by_timestep"] if windows else {}
    places = [line["step"] for line in windows]
    return [
        Series(f"t {name}", places, [without_missing(w["loss_by_timestep"][name]) for w in windows]) for name in names
    ]


def curve_values(steps: Sequence[Curve], name: str) -> Series:
    """A column of the metrics; an overflowed step is a gap."""
    return Series(
        name.replace("_", " "), [line["step"] for line in steps], [without_missing(line[name]) for line in steps]
    )


def without_missing(value: float | None) -> float:
    """null in metrics.jsonl is a number that was not finite; it becomes a gap in the curve."""
    return math.nan if value is None else value


def measured_side(looks: Sequence[Curve]) -> str:
    """Held-out if anything was held out."""
    sides = looks[0]["validation"]
    return HELD_OUT if HELD_OUT in sides else next(iter(sides))


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
    progress = outcome.progress
    best = progress.chosen
    if best is not None:
        since_base = progress.since_base(best).get(best.judged_by)
        facts = {"step": best.step, "side": best.judged_by, "loss": best.mean(best.judged_by)}
        change = since_base.finite if since_base else None
        run.write_json("best.json", facts | {"change": change, "exported": outcome.exported, "export": outcome.export})
    write_atomic(run.path / "README.md", CARD.format(**card_facts(run, plan, outcome)))
    render_report(
        run, plan, read_metrics(run.metrics), ended=end_of_run(outcome), best=best.step if best else None
    ).write(run.path / "report.html")


def card_facts(run: Run, plan: Plan, outcome: Outcome) -> dict[str, Any]:
    """The fields of CARD; the losses are those of the exported weights, if they were validated."""
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
        **{"side": side, "change": format_interval(change) if change else "not measured"},
        **{"beware": beware, "files": describe_files(run), "path": run.path},
        "verdict": str(diagnose(best, outcome.progress)) if best else "not measured",
    }


def end_of_run(outcome: Outcome) -> str:
    """How the run ended and what was exported, for the top of the page."""
    why = f"{outcome.stopped[0].upper()}{outcome.stopped[1:]}. " if outcome.stopped else ""
    which = "last" if outcome.exported == outcome.steps else "best"
    exported = f"the weights of step {outcome.exported}, the {which}, are exported"
    return f"{why}Finished after {outcome.steps} steps; {exported}."


def write_report(run: Run, plan: Plan) -> None:
    """report.html of an unfinished run."""
    lines = read_metrics(run.metrics)
    if any("validation" in line for line in lines):
        page: Page = render_report(run, plan, lines, ended="", best=None)
        page.write(run.path / "report.html")

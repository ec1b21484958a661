"""report.html: the verdict in plain words, the curves, the previews over time; one file, readable while it trains."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from data.page import Page, Series
from train.plan import Plan
from train.previews import FACTS
from train.run_folder import Run
from train.validation import HELD_OUT

Line = Mapping[str, Any]

SMOOTHED = 50  # steps
MOST_SHOWN = 6  # previews of one prompt: the base, the last, and those evenly between
SIDE = 256  # pixels at most of a preview on the page; the full size lies in previews/
EXPLAINED = """The same pictures with the same noise at the same timesteps, each time: the curves differ only by the
network. Both falling together: it learns. The training side falling while the held-out side rises: it memorises; stop
earlier, or lower the rank or the learning rate."""
GAP_EXPLAINED = """How much more the training pictures gained than the held-out ones, since the base: what was learnt by
heart rather than in general. A band that leaves zero is no accident; a gap that grows while held-out pictures still
gain is usual."""
MEASURED = {  # columns of metrics.jsonl's windows, as far as a run has them
    "images_per_second": ("Speed", "pictures a second"),
    "tflops": ("Arithmetic", "TFLOP a second"),
    "mfu": ("Share of the device's peak that is model arithmetic (MFU)", "share"),
    "data_wait": ("Share of a step spent waiting for data", "share"),
}
HEADS = {
    "learns": "It learns",
    "memorises": "It memorises",
    "gets worse": "It gets worse",
    "cannot tell yet": "Cannot tell yet",
}


def page_of(run: Run, plan: Plan, lines: Sequence[Line], *, ended: str, best: int | None) -> Page:
    """The page out of what metrics.jsonl and previews/ hold. best: the best step, once it is settled."""
    looks = comparable_looks(lines)
    best = best if best is not None else best_step(looks)
    page = Page(run.path.name, f"{plan.adapter} on {plan.model}, {plan.steps} steps of {plan.global_batch} pictures")
    top(page, plan, lines, looks, ended, best)
    validation(page, looks, best)
    previews(page, run.path / "previews")
    training(page, lines)
    page.section("Plan").code("\n".join(plan.lines()))
    return page


def top(page: Page, plan: Plan, lines: Sequence[Line], looks: Sequence[Line], ended: str, best: int | None) -> None:
    """The verdict, and the numbers that people ask for first."""
    last = looks[-1]
    verdict = last.get("verdict")
    said = "Nothing is trained yet."
    if verdict:
        said = f"{HEADS[verdict['word']]} (step {last['step']}): {verdict['because']}."
    running = f"Still training: step {last['step']} of {plan.steps} at the last look."
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
            "pictures a second": statistics.median(speeds) if speeds else None,
        }
    )


def validation(page: Page, looks: Sequence[Line], best: int | None) -> None:
    """Loss at fixed noise, the gap between both sides, and where on the timesteps it fell."""
    page.section("Does it learn, or memorise?").text(EXPLAINED)
    page.curve(*sides(looks), *best_mark(looks, best), x="step", y="loss", title="Denoising loss at fixed noise")
    page.table(("side", "base", "now", "change, 95 % interval"), list(comparison(looks)))
    gaps = [(look["step"], look["gap"]) for look in looks if look.get("gap")]
    if gaps:
        nothing: dict[str, float | None] = {"mean": 0.0, "low": 0.0, "high": 0.0}  # of the base against itself
        gap = band("gap", [(0, nothing), *gaps])
        page.curve(gap, x="step", y="held-out minus training", title="Memorisation gap, with its 95 % interval")
        page.text(GAP_EXPLAINED)
    page.section("By timestep").text("Small timesteps are fine detail, large ones composition and colour.")
    title = f"Loss of {measured_side(looks)} pictures, {caption(looks[0]['step'])} and now"
    page.curve(*by_timestep(looks), x="timestep, share of T", y="loss", title=title)


def training(page: Page, lines: Sequence[Line]) -> None:
    """What every step wrote down."""
    steps = [line for line in lines if "loss" in line]
    windows = [line for line in lines if "loss_by_timestep" in line]
    page.section("Training")
    page.curve(*training_curves(steps), x="step", y="loss", title="Loss of each step, and its running mean")
    page.curve(*band_curves(windows), x="step", y="loss", title="Training loss by timestep")
    page.curve(values(steps, "learning_rate"), x="step", y="learning rate", title="Learning rate")
    page.curve(values(steps, "gradient_norm"), x="step", y="norm", title="Gradient norm before clipping", log_y=True)
    for name, (title, unit) in MEASURED.items():
        known_there = [line for line in windows if line.get(name) is not None]
        if known_there:
            page.curve(values(known_there, name), x="step", y=unit, title=title)


def previews(page: Page, folder: Path) -> None:
    """A row for each prompt: the base first, then the network as it was over time."""
    steps = shown_steps(folder)
    if not steps:
        return
    page.section("Previews").text("The same prompts and seeds each time. The full-size pictures lie in previews/.")
    asked = json_of(steps[-1])["pictures"]
    for index, question in enumerate(asked):
        name = f"{index:05d}-{question['seed']}.png"
        cells = [(thumbnail(step / name), caption(int(step.name))) for step in steps if (step / name).is_file()]
        page.strip(cells, title=f"{question['prompt']}  (seed {question['seed']})", columns=MOST_SHOWN, width=120)


def shown_steps(folder: Path) -> list[Path]:
    """Folders of previews of the same questions as the newest: the first, the last and evenly between."""
    found = sorted(path.parent for path in folder.glob(f"[0-9]*/{FACTS}"))
    alike = [path for path in found if json_of(path)["pictures"] == json_of(found[-1])["pictures"]]
    count = min(MOST_SHOWN, len(alike))
    return [alike[round(n * (len(alike) - 1) / max(1, count - 1))] for n in range(count)]


def json_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / FACTS).read_text(encoding="utf-8"))


def thumbnail(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return small


def caption(step: int) -> str:
    return f"step {step}" if step else "base"


def comparable_looks(lines: Sequence[Line]) -> list[Line]:
    """The validations that asked what the newest asks: others (other pictures, other timesteps) are other losses."""
    looks = [line for line in lines if "validation" in line]
    return [look for look in looks if look.get("questions") == looks[-1].get("questions")]


def base_of(looks: Sequence[Line], side: str) -> float | None:
    """The untrained network's loss; None if it was asked something else, or not finite."""
    return looks[0]["validation"][side] if looks[0]["step"] == 0 else None


def best_step(looks: Sequence[Line]) -> int | None:
    """The trained step of the lowest loss so far."""
    side = measured_side(looks)
    trained = [look for look in looks if look["step"] > 0 and look["validation"][side] is not None]
    return min(trained, key=lambda look: look["validation"][side])["step"] if trained else None


def best_mark(looks: Sequence[Line], best: int | None) -> list[Series]:
    """A mark on the held-out curve at the best step."""
    side = measured_side(looks)
    found = [look for look in looks if look["step"] == best]
    return [Series(f"best, step {best}", [look["step"]], [look["validation"][side]], mark=True) for look in found]


def sides(looks: Sequence[Line]) -> list[Series]:
    """One line a side: held-out, train."""
    names = looks[0]["validation"]
    return [Series(side, [k["step"] for k in looks], [known(k["validation"][side]) for k in looks]) for side in names]


def comparison(looks: Sequence[Line]) -> Iterator[tuple[str, float | None, float | None, str]]:
    for side, now in looks[-1]["validation"].items():
        change = looks[-1]["change"].get(side)
        yield side, base_of(looks, side), now, interval(change) if change else "not measured"


def interval(change: Mapping[str, float | None]) -> str:
    """A mean with its 95 % interval, in words; a single picture has none (null in metrics.jsonl)."""
    if change["mean"] is None:
        return "not finite"
    if change["low"] is None:
        return f"{change['mean']:+.4f}, on one picture only"
    return f"{change['mean']:+.4f}, 95 % interval {change['low']:+.4f} to {change['high']:+.4f}"


def band(name: str, points: Sequence[tuple[int, Mapping[str, float | None]]]) -> Series:
    """A line with its interval."""
    columns = {key: [known(interval[key]) for _, interval in points] for key in ("mean", "low", "high")}
    return Series(name, [step for step, _ in points], columns["mean"], columns["low"], columns["high"])


def by_timestep(looks: Sequence[Line]) -> list[Series]:
    """The first and the last look, over evenly spread timesteps."""
    side = measured_side(looks)
    count = len(looks[0]["per_timestep"][side])
    places = [(index + 0.5) / count for index in range(count)]
    named = ((caption(looks[0]["step"]), looks[0]), ("now", looks[-1]))[: len(looks)]
    return [Series(name, places, [known(v) for v in look["per_timestep"][side]]) for name, look in named]


def training_curves(steps: Sequence[Line]) -> list[Series]:
    """The loss as it was, and its mean over the last SMOOTHED steps: timesteps differ in loss more than steps do."""
    raw = [known(line["loss"]) for line in steps]
    places = [line["step"] for line in steps]
    return [Series("loss", places, raw, faint=True), Series(f"mean of {SMOOTHED}", places, running_mean(raw))]


def running_mean(values: Sequence[float]) -> list[float]:
    """The mean of the last SMOOTHED values at each place, of fewer at the start."""
    return [statistics.fmean(values[max(0, end - SMOOTHED) : end]) for end in range(1, len(values) + 1)]


def band_curves(windows: Sequence[Line]) -> list[Series]:
    """A line for each band of timesteps."""
    names = windows[0]["loss_by_timestep"] if windows else {}
    places = [line["step"] for line in windows]
    return [Series(f"t {name}", places, [known(w["loss_by_timestep"][name]) for w in windows]) for name in names]


def values(steps: Sequence[Line], name: str) -> Series:
    """A column of the metrics; an overflowed step is a gap."""
    return Series(name.replace("_", " "), [line["step"] for line in steps], [known(line[name]) for line in steps])


def known(value: float | None) -> float:
    """null in metrics.jsonl is a number that was not finite: a gap in a curve."""
    return math.nan if value is None else value


def measured_side(looks: Sequence[Line]) -> str:
    """Held-out if anything was held out."""
    sides = looks[0]["validation"]
    return HELD_OUT if HELD_OUT in sides else next(iter(sides))

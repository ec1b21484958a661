"""The report: one page, a blind test, numbers for programs, and a line for each image."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from data import rng
from data.atomic_io import write_atomic
from data.errors import InputError
from data.metrics import statistics as stats
from data.reports import render
from data.reports.page import Page
from infer.evaluation import memorization
from infer.evaluation.collect import BASE, TUNED, Collection
from infer.evaluation.prompts import EvalPrompt
from infer.evaluation.section import Number, Section

PAGE, JSON, NUMBERS, IMAGES, BLIND = "report.html", "report.json", "numbers.csv", "pictures.csv", "blind.html"
COLUMNS = ("section", "name", "value", "low", "high", "base", "floor", "ceiling", "p", "said")
HEAD = ("", "tuned", "95 % interval", "base", "floor", "ceiling", "p (Holm)", "in words")
HEADLINES = ("style gap closed, descriptors", "R-precision, prompts without style", "both right",
             "distance between seeds of a prompt, tuned over base", "share above the threshold, training captions",
             "style leakage")  # fmt: skip
SIDE = 128  # pixels a side of an image on the page, at most
MOST_SIMILAR = 10
GRID_CELLS = 40
BLIND_PAIRS, BLIND_STYLE = 40, 8  # pairs to judge, training images above them
BLIND_QUESTIONS = ("Which one shows what the words say?", "Which one looks like the images above?")
Facts = Mapping[str, str | int | float | bool | None]


def check_folder(folder: Path) -> None:
    """Raise InputError for a folder that contains something else."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / JSON).is_file():
        raise InputError("contains something other than a report", where=f"--outdir {folder}", fix="Use a new folder.")


def write_report(found: Collection, sections: Sequence[Section], folder: Path, facts: Facts) -> Path:
    """Write all files; returns the page's path."""
    content = {"facts": facts, "counts": asdict(found.counts), "sections": [asdict(each) for each in sections]}
    write_atomic(folder / JSON, json.dumps(without_nan(content), indent=1) + "\n")
    numbers = []
    for each in sections:
        for n in each.numbers:
            low, high = (n.interval.low, n.interval.high) if n.interval else (None, None)
            numbers.append([each.title, n.name, n.value, low, high, n.base, n.floor, n.ceiling, n.p, n.said])
    write_atomic(folder / NUMBERS, to_csv(COLUMNS, numbers))
    head = ("model", "prompt", "seed", "file", "nearest training picture", "cosine")
    images = []
    for (side, prompt), cached in found.generated.items():
        nearest, cosine = found.nearest_sample((side, prompt)), round(found.nearest[side, prompt][1], 4)
        images.append([side, prompt.text, prompt.seed, str(cached.path), nearest.annotation.file_name, cosine])
    write_atomic(folder / IMAGES, to_csv(head, images))
    write_atomic(folder / BLIND, blind_page(found))
    return report_page(found, sections, facts).write(folder / PAGE)


def to_csv(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()


def without_nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- the page


def report_page(found: Collection, sections: Sequence[Section], facts: Facts) -> Page:
    subtitle = (
        f"{image_count(found)} images with {found.counts.steps} denoising steps, base and tuned from the same seeds; "
        f"{len(found.train)} training and {len(found.held_out)} held-out images"
    )
    page = Page(f"What fine-tuning did: {found.target.run.path.name}", subtitle).section("Findings")
    alarms = [alarm for each in sections for alarm in each.alarms]
    for alarm in alarms:
        page.note(f"{alarm.kind}: {alarm.said}")
    if not alarms:
        page.text("No alarm was raised. That is no proof: read what each section cannot say.")
    numbers = {number.name: number for each in sections for number in each.numbers}
    headlines = [numbers[name] for name in HEADLINES if name in numbers]
    page.facts({each.name: f"{each.value:.2f} ({format_interval(each.interval)})" for each in headlines})
    page.section("0. Provenance").text("Base and tuned share seeds and noise, so all differences are paired; intervals "
                                       "are over prompts, not images.")  # fmt: skip
    page.table(("what", "value"), list(facts.items()))
    for place, each in enumerate(sections, 1):
        add_section(page, place, each)
        IMAGE_STRIPS.get(each.title, lambda *_: None)(page, found)
    page.section(f"{len(sections) + 1}. Grid").text(
        "The prompts of the source thesis's chapter 3: base, tuned, and the training image nearest to the tuned one. "
        "To judge which is better without knowing which model made it: blind.html beside this page."
    )
    return page.strip(side_by_side(found, dict(found.prompts.figures)), columns=3)


def image_count(found: Collection, *, only_new: bool = False) -> int:
    return len({cached.path for cached in found.generated.values() if cached.is_new or not only_new})


def add_section(page: Page, place: int, section: Section) -> None:
    page.section(f"{place}. {section.title}").text(section.asked)
    for alarm in section.alarms:
        page.note(alarm.said)
    if section.numbers:
        page.table(HEAD, [table_row(number) for number in section.numbers])
    for table in section.tables:
        page.table(tuple(table.head), table.rows, caption=table.title)
    for note in section.notes:
        page.text(note)
    if section.cannot:
        page.text("What this cannot say: " + " ".join(section.cannot))


def table_row(number: Number) -> tuple[str | None, ...]:
    values = (number.base, number.floor, number.ceiling, number.p)
    value = None if math.isnan(number.value) else f"{number.value:.3g}"
    texts = (None if each is None else f"{each:.3g}" for each in values)
    return (number.name, value, format_interval(number.interval) or None, *texts, number.said or None)


def format_interval(interval: stats.Interval | None) -> str:
    return f"{interval.low:.3g} to {interval.high:.3g}" if interval else ""


# ---- images


def thumbnail(image: Image.Image) -> Image.Image:
    image = image.convert("RGB")
    image.thumbnail((SIDE, SIDE))
    return image


def side_by_side(
    found: Collection, prompts: Iterable[EvalPrompt] | Mapping[EvalPrompt, str]
) -> list[tuple[Image.Image, str]]:
    """Base, tuned and the training image nearest to the tuned one. prompts: with a label each if it is a mapping."""
    strip = []
    for prompt in prompts:
        key = (TUNED, prompt)
        place, cosine = found.nearest[key]
        label = f"{prompts[prompt]}  " if isinstance(prompts, Mapping) else ""
        strip += [
            (thumbnail(found.generated[BASE, prompt].image), f"{label}base: {prompt.text}"),
            (thumbnail(found.generated[key].image), f"tuned, seed {prompt.seed}"),
            (thumbnail(found.references[place]),
             f"nearest in training, {cosine:.2f}: {found.nearest_sample(key).annotation.file_name}"),
        ]  # fmt: skip
    return strip


def add_captions(page: Page, found: Collection) -> None:
    few = found.prompts.captions[: 4 * found.counts.caption_seeds : found.counts.caption_seeds]
    page.strip(side_by_side(found, few), title="Training captions: base, tuned, nearest training image", columns=3)


def add_types(page: Page, found: Collection) -> None:
    """The first seed of each type and object; rows are objects."""
    first = {each.labels: each for each in reversed(found.prompts.grid)}
    types, objects = (list(dict.fromkeys(each.labels[place] for each in found.prompts.grid)) for place in (0, 1))
    if not types:
        return
    strip = []
    for name in objects[: max(1, GRID_CELLS // len(types))]:
        for prompt in (first[type_, name] for type_ in types):
            key = (TUNED, prompt)
            near = f"nearest {found.nearest_sample(key).annotation.file_name}, {found.nearest[key][1]:.2f}"
            strip.append((thumbnail(found.generated[key].image), f"{prompt.text}; {near}"))
    page.strip(strip, title="Tuned, one seed of each", columns=len(types), width=110)


def add_most_similar(page: Page, found: Collection) -> None:
    """The generated images that are most similar to a training image, whatever the prompt."""
    keys = sorted((key for key in found.nearest if key[0] == TUNED), key=lambda key: -found.nearest[key][1])
    strip = []
    for key in keys[:MOST_SIMILAR]:
        place, cosine = found.nearest[key]
        strip += [(thumbnail(found.generated[key].image), f"{cosine:.3f}: {key[1].text}"),
                  (thumbnail(found.references[place]), found.nearest_sample(key).annotation.file_name)]  # fmt: skip
    title = f"The {MOST_SIMILAR} most similar: generated, and its nearest training image"
    page.strip(strip, title=title, columns=4)


def add_seeds(page: Page, found: Collection) -> None:
    count = found.counts.variety_seeds
    for start in (0, count):
        prompts = found.prompts.variety[start : start + count]
        if prompts:
            keys = [(side, prompt) for side in (BASE, TUNED) for prompt in prompts[:8]]
            strip = [(thumbnail(found.generated[key].image), "") for key in keys]
            title = f"{prompts[0].text}: base above, tuned below"
            page.strip(strip, title=title, columns=min(8, len(prompts)), width=90)


IMAGE_STRIPS = {
    "Style": add_captions, "Types on objects": add_types, "Diversity": add_seeds, memorization.TITLE: add_most_similar
}  # fmt: skip


# ---- the blind test


def blind_page(found: Collection) -> str:
    """A pair for each prompt without style and each of the thesis's, in an order that nobody sees."""
    candidates = (*found.prompts.plain, *(each for each, _ in found.prompts.figures))
    prompts = list({each.text: each for each in reversed(candidates)}.values())[:BLIND_PAIRS]
    tuned_side = ["left" if rng.integer(2, found.seed, "blind", p.text, p.seed) else "right" for p in prompts]
    pairs = []
    for prompt, side in zip(prompts, tuned_side, strict=True):
        order = (TUNED, BASE) if side == "left" else (BASE, TUNED)
        pairs.append((prompt.text, [thumbnail(found.generated[model, prompt].image) for model in order]))
    template = Path(__file__).with_name("blind_test.html")
    return render(
        template, title="Which is better?", script=template.with_suffix(".js").read_text(encoding="utf-8"),
        subtitle="Choose without knowing which model generated it; then ask for the result.",
        style=[thumbnail(image) for image in found.references[:BLIND_STYLE]], pairs=pairs, questions=BLIND_QUESTIONS,
        key=json.dumps(tuned_side),
    )  # fmt: skip

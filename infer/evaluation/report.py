"""The page: what was found first, then every section with its numbers and pictures, the nearest training one beside."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from PIL import Image

from data.metrics.statistics import Interval
from data.reports.page import Page
from infer.evaluation import memorization
from infer.evaluation.collect import BASE, TUNED, Gathered
from infer.evaluation.prompts import Ask
from infer.evaluation.section import Number, Section
from infer.evaluation.sections import alarms

SIDE = 128  # pixels a side of a picture on the page, at the most
PAIRS = 10
CELLS = 40  # pictures of a grid
HEAD = ("", "tuned", "95 % interval", "base", "floor", "ceiling", "p (Holm)", "in words")
FINE = "No alarm was raised. That is no proof: read what each section cannot say."


def page(found: Gathered, sections: Sequence[Section], facts: Mapping[str, str | int | float | bool | None]) -> Page:
    """Everything on one page."""
    made = Page(f"What fine-tuning did: {found.subject.run.path.name}", subtitle(found))
    made.section("Found")
    raised = alarms(list(sections))
    for alarm in raised:
        made.note(f"{alarm.kind}: {alarm.said}")
    if not raised:
        made.text(FINE)
    made.facts(headlines(sections))
    provenance(made, facts)
    for place, each in enumerate(sections, 1):
        add(made, place, each)
        PICTURES.get(each.title, lambda *_: None)(made, found)
    grid(made, found, len(sections) + 1)
    return made


def subtitle(found: Gathered) -> str:
    counts = found.counts
    return (f"{len(found.drawings)} pictures of {counts.steps} steps, base and tuned from the same seeds; "
            f"{len(found.train)} training and {len(found.held_out)} held-out pictures")  # fmt: skip


HEADLINES = ("style gap closed, descriptors", "R-precision, prompts without style", "both right",
             "distance between seeds of a prompt, tuned over base", "share above the threshold, training captions",
             "style leakage")  # fmt: skip


def headlines(sections: Sequence[Section]) -> dict[str, str]:
    """One number of each section, with its interval."""
    every = {number.name: number for each in sections for number in each.numbers}
    return {name: f"{every[name].value:.2f} ({ends(every[name].interval)})" for name in HEADLINES if name in every}


def ends(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.low:.3g} to {interval.high:.3g}"


def provenance(made: Page, facts: Mapping[str, str | int | float | bool | None]) -> None:
    made.section("0. Provenance")
    made.text("What the numbers depend on. Base and tuned share seeds and noise, so all differences are paired; "
              "intervals count prompts, not pictures, as what was drawn independently.")  # fmt: skip
    made.table(("what", "value"), list(facts.items()))


def add(made: Page, place: int, each: Section) -> None:
    """A section's words and numbers."""
    made.section(f"{place}. {each.title}").text(each.asked)
    for alarm in each.alarms:
        made.note(alarm.said)
    if each.numbers:
        made.table(HEAD, [row(number) for number in each.numbers])
    for table in each.tables:
        made.table(tuple(table.head), table.rows, caption=table.title)
    for text in each.notes:
        made.text(text)
    if each.cannot:
        made.text("What this cannot say: " + " ".join(each.cannot))


def row(number: Number) -> tuple[str | None, ...]:
    numbers = (number.base, number.floor, number.ceiling, number.p)
    texts = (None if each is None else f"{each:.3g}" for each in numbers)
    value = None if math.isnan(number.value) else f"{number.value:.3g}"
    return (number.name, value, ends(number.interval) or None, *texts, number.said or None)


# ---- pictures


def small(picture: Image.Image) -> Image.Image:
    picture = picture.convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    return picture


def side_by_side(found: Gathered, asks: Iterable[Ask], label: Mapping[Ask, str] | None = None) -> list:
    """base, tuned and the training picture nearest to the tuned one, for each."""
    strip = []
    for ask in asks:
        place, cosine = found.nearest[TUNED, ask]
        file = found.sample(place).annotation.file_name
        told = f"{label[ask]}  " if label else ""
        strip += [
            (small(found.drawings.cells[BASE, ask].image), f"{told}base: {ask.text}"),
            (small(found.drawings.cells[TUNED, ask].image), f"tuned, seed {ask.seed}"),
            (small(found.references[place]), f"nearest in training, {cosine:.2f}: {file}"),
        ]  # fmt: skip
    return strip


def captions(made: Page, found: Gathered) -> None:
    few = found.questions.captions[: 4 * found.counts.caption_seeds : found.counts.caption_seeds]
    made.strip(side_by_side(found, few), title="Training captions: base, tuned, nearest training picture", columns=3)


def types(made: Page, found: Gathered) -> None:
    """The first seed of each type and object: rows are objects."""
    asks = found.questions.grid
    first = {ask.about: ask for ask in reversed(asks)}
    kinds, things = (list(dict.fromkeys(ask.about[place] for ask in asks)) for place in (0, 1))
    if not kinds:
        return
    strip = []
    for thing in things[: max(1, CELLS // len(kinds))]:
        for kind in kinds:
            key = (TUNED, first[kind, thing])
            place, cosine = found.nearest[key]
            near = f"; nearest {found.sample(place).annotation.file_name}, {cosine:.2f}"
            strip.append((small(found.drawings.cells[key].image), f"{first[kind, thing].text}{near}"))
    made.strip(strip, title="Tuned, one seed of each", columns=len(kinds), width=110)


def pairs(made: Page, found: Gathered) -> None:
    """The drawn pictures that are most like a training picture, whatever was asked."""
    keys = sorted((key for key in found.nearest if key[0] == TUNED), key=lambda key: -found.nearest[key][1])
    strip = []
    for key in keys[:PAIRS]:
        place, cosine = found.nearest[key]
        strip += [(small(found.drawings.cells[key].image), f"{cosine:.3f}: {key[1].text}"),
                  (small(found.references[place]), found.sample(place).annotation.file_name)]  # fmt: skip
    made.strip(strip, title=f"The {PAIRS} most alike: drawn, and its nearest training picture", columns=4)


def varied(made: Page, found: Gathered) -> None:
    count = found.counts.variety_seeds
    for start in (0, count):
        asks = found.questions.variety[start : start + count]
        if asks:
            strip = [(small(cell.image), "") for side in (BASE, TUNED) for cell in found.drawings.side(side, asks[:8])]
            made.strip(strip, title=f"{asks[0].text}: base above, tuned below", columns=min(8, len(asks)), width=90)


def grid(made: Page, found: Gathered, place: int) -> None:
    """The source thesis' prompts."""
    label = dict(found.questions.figures)
    made.section(f"{place}. Grid").text("The prompts of the source thesis' chapter 3: base, tuned, and the training "
                                       "picture nearest to the tuned one. Which of two is better, without knowing "
                                       "whose it is: blind.html beside this page.")  # fmt: skip
    made.strip(side_by_side(found, label, label), columns=3)


PICTURES = {"Style": captions, "Types on objects": types, "Diversity": varied, memorization.TITLE: pairs}

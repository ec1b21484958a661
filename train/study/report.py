"""Bars with intervals as inline SVG, in the page's own colours."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

import numpy as np

from data.atomic_io import write_atomic
from data.features import extract_features, make_extractor
from data.metrics.statistics import Interval
from data.reports.page import Page
from train.study.arms import ARMS
from train.study.conclusions import ArmRow, Difference, arm_rows, differences
from train.study.config import StudyOptions
from train.study.experiment import NEEDS_NONE, Answer, Material
from train.study.measures import domain_gap

WIDTH, ROW, NAMES, TOP, BOTTOM = 720, 26, 250, 6, 26
RIGHT = 70


def bar_chart(values: Mapping[str, Interval], title: str) -> str:
    """A bar a name from 0 to 1, its interval as a whisker, its value beside it; HTML for Page.add."""
    height = TOP + ROW * len(values) + BOTTOM
    body = [*axis(height)]
    for place, (name, value) in enumerate(values.items()):
        middle = TOP + ROW * place + ROW / 2
        told = escape(f"{name}: {value.value:.3f} ({value.low:.3f} to {value.high:.3f})")
        body += [
            f'<text class="tick" x="{NAMES - 8}" y="{middle:.1f}" dy="0.32em" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{NAMES}" y="{middle - 8:.1f}" width="{along(value.value) - NAMES:.1f}" height="16" rx="2" '
            f'style="fill:var(--series-0);opacity:0.75"><title>{told}</title></rect>',
            f'<path class="base" style="stroke-width:1.6" fill="none" d="{whisker(value, middle)}"/>',
            f'<text class="tick" x="{max(along(value.high), along(value.value)) + 6:.1f}" y="{middle:.1f}" '
            f'dy="0.32em">{value.value:.3f}</text>',
        ]
    label = escape(f"{title}: {', '.join(f'{name} {value.value:.3f}' for name, value in values.items())}")
    svg = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(body)}</svg>'
    return f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{svg}</figure>'


def along(value: float) -> float:
    """0 to 1 in pixels, what lies outside at the end."""
    return NAMES + (WIDTH - NAMES - RIGHT) * min(1.0, max(0.0, value))


def whisker(value: Interval, middle: float) -> str:
    low, high = along(value.low), along(value.high)
    ends = " ".join(f"M{x:.1f} {middle - 4:.1f}V{middle + 4:.1f}" for x in (low, high))
    return f"M{low:.1f} {middle:.1f}H{high:.1f} {ends}"


def axis(height: int) -> list[str]:
    """Lines at every fifth, with their numbers."""
    parts = []
    for fifth in range(6):
        x = along(fifth / 5)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 8}" text-anchor="middle">{fifth / 5:.1f}</text>')
    return parts


PUBLISHED = Path(__file__).with_name("published.csv")
HEAD = ("arm", "generator", "pictures", "steps", "accuracy", "95 % interval", "balanced", "macro F1",
        "calibration error", "on artificial")  # fmt: skip
CAVEATS = """Each repeat cuts the real pictures anew, by whole groups (near-duplicates and one species are never
parted), and all arms of a repeat share cut, halves, first weights and order of batches. Intervals of differences allow
for cuts that share pictures (Nadeau & Bengio 2003); p-values are Holm's over all questions of this page. The thesis
tested one unstratified cut, three runs a cell, and trained each arm for 30 passes, so its "half" took half the steps of
"mixed"."""


def published_table() -> list[dict[str, str]]:
    """The thesis' tables 3.1 and 3.2, mean accuracy over three runs, a row a cell."""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_report(options: StudyOptions, material: Material, answers: Sequence[Answer], outdir: Path) -> Path:
    """report.html and report.json in outdir; returns the page's path."""
    table = arm_rows(answers)
    found = differences(answers, test_share=options.test_share, margin=options.margin)
    gaps = {each.name: domain_gap_of(material, each.name) for each in material.artificial}
    write_atomic(
        outdir / "report.json", json.dumps(report_json(options, material, table, found, gaps), indent=1) + "\n"
    )
    page = Page("Can generated pictures train a classifier?", subtitle(options, material))
    add_answers(page, found, options)
    add_arms(page, table)
    add_gaps(page, gaps)
    add_copies(page, material)
    add_published(page, table)
    add_classes(page, material, answers)
    page.section("How").text(CAVEATS).code(json.dumps(options.model_dump(mode="json"), indent=1))
    return page.write(outdir / "report.html")


def subtitle(options: StudyOptions, material: Material) -> str:
    sets = ", ".join(f"{each.name} ({len(each)})" for each in (material.real, *material.artificial))
    return f"{sets}; {options.net} at {options.size} pixels, {options.repeats} repeats, recipe {options.recipe}"


def report_json(
    options: StudyOptions,
    material: Material,
    table: Sequence[ArmRow],
    found: Sequence[Difference],
    gaps: dict[str, float],
) -> dict[str, object]:
    """All numbers of the page."""
    return {
        "settings": options.model_dump(mode="json"),
        "sets": {each.name: each.counts for each in (material.real, *material.artificial)},
        "arms": [asdict(row) for row in table],
        "differences": [asdict(each) | {"word": each.word} for each in found],
        "domain gap (AUC)": gaps,
        "copies of real pictures": {name: int((twins >= 0).sum()) for name, twins in material.twins.items()},
    }


def domain_gap_of(material: Material, name: str) -> float:
    """How well real and artificial pictures are told apart by weight-free descriptors."""
    from PIL import Image

    extractor = make_extractor("descriptors")
    sides = [extract_features(extractor, [Image.fromarray(one) for one in material.pixels[each]])
             for each in (material.real.name, name)]  # fmt: skip
    return domain_gap(sides[0], sides[1])


def add_answers(page: Page, found: Sequence[Difference], options: StudyOptions) -> None:
    """The questions, each with its difference and what may be said."""
    page.section("Answers")
    if not found:
        page.text("No two of the arms that a question compares were trained.")
        return
    for each in found:
        page.note(f"{each.arm} against {each.other} ({each.generator}): {each.asked} {sentence(each, options)}")
    page.table(
        ("arm", "against", "generator", "points", "95 % interval", "p (Holm)", "p of the margin", "in a word"),
        [(each.arm, each.other, each.generator, each.points.value, format_interval(each.points), each.p, each.within, each.word)
         for each in found],
    )  # fmt: skip


def sentence(each: Difference, options: StudyOptions) -> str:
    """The difference in words: only what its interval carries."""
    points = f"{each.points.value:+.1f} points ({each.points.low:+.1f} to {each.points.high:+.1f})"
    said = {
        "more": f"Yes, it is better: {points}.",
        "less": f"No, it is worse: {points}.",
        "equal within the margin": f"Equal within {options.margin:g} points: {points}.",
        "not known": f"This study cannot say: {points}; more --repeats or pictures would.",
    }
    return said[each.word]


def add_arms(page: Page, table: Sequence[ArmRow]) -> None:
    page.section("Arms")
    page.table(HEAD, [
        (row.arm, "" if row.generator == NEEDS_NONE else row.generator, row.pictures, row.steps, row.accuracy.value,
         format_interval(row.accuracy), row.balanced, row.macro_f1, row.calibration, row.on_artificial) for row in table
    ])  # fmt: skip
    named = {row.arm if row.generator == NEEDS_NONE else f"{row.arm}, {row.generator}": row.accuracy for row in table}
    page.add(bar_chart(named, "accuracy on real test pictures"))
    page.text("\n\n".join(f"{name}: {arm.explained}." for name, arm in ARMS.items()))


def add_gaps(page: Page, gaps: dict[str, float]) -> None:
    page.section("How unlike real pictures they are")
    page.text("The AUC of a linear classifier on weight-free descriptors: 0.5 is alike, 1.0 told apart every time.")
    page.table(("generator", "AUC"), list(gaps.items()))


def add_copies(page: Page, material: Material) -> None:
    """Near-duplicates of real pictures among the artificial ones: those of test pictures were not learnt."""
    page.section("Copies of real pictures")
    page.text("Artificial pictures that are a real one but for cropping, size and light. A repeat does not learn those "
              "whose real twin it is tested on.")  # fmt: skip
    rows = []
    for each in material.artificial:
        twins = material.twins[each.name]
        mine = np.flatnonzero(twins >= 0)
        told = [f"{each.files[row].name} is {material.real.files[twins[row]].name}" for row in mine]
        rows.append((each.name, len(each), len(told), told[0] if told else None))
    page.table(("generator", "pictures", "copies", "the first"), rows)


def add_published(page: Page, table: Sequence[ArmRow]) -> None:
    """The thesis' numbers by our arms' names, and its four figures with what intervals there are."""
    page.section("Beside the thesis")
    page.text("Its tables 3.1 and 3.2, printed without spread: other pictures, other nets; only the pattern compares.")
    theirs = published_table()
    for theme in ("animals", "fruits"):
        mine = [cell for cell in theirs if cell["theme"] == theme]
        page.table(
            ("arm", "generator", "accuracy"),
            [(cell["arm"], cell["generator"], float(cell["accuracy"])) for cell in mine],
            caption=f"{theme} (table {'3.1' if theme == 'animals' else '3.2'})",
        )
    for figure, (one, other) in FIGURES.items():
        named = {
            f"{theme}: {arm}": spread(theirs, theme, arm) for theme in ("animals", "fruits") for arm in (one, other)
        }
        ours = {f"here: {row.arm} {row.generator if row.generator != NEEDS_NONE else ''}".strip(): row.accuracy
                for row in table if row.arm in (one, other)}  # fmt: skip
        page.add(bar_chart(named | ours, f"figure {figure}: {one} and {other}"))
    page.add(bar_chart(by_generator(theirs), "figure 3.5: each generator, its artificial and mixed cells pooled"))


FIGURES = {"3.2": ("real", "artificial"), "3.3": ("real", "mixed"), "3.4": ("half", "mixed")}


def spread(cells: Sequence[dict[str, str]], theme: str, arm: str) -> Interval:
    """The mean of the thesis' cells of an arm; lowest and highest generator as its ends, for runs are not printed."""
    values = [float(cell["accuracy"]) for cell in cells if cell["theme"] == theme and cell["arm"] == arm]
    return Interval(float(np.mean(values)), min(values), max(values))


def by_generator(cells: Sequence[dict[str, str]]) -> dict[str, Interval]:
    found: dict[str, Interval] = {}
    for theme in ("animals", "fruits"):
        for generator in dict.fromkeys(cell["generator"] for cell in cells if cell["generator"]):
            mine = [float(c["accuracy"]) for c in cells if c["theme"] == theme and c["generator"] == generator]
            found[f"{theme}: {generator}"] = Interval(float(np.mean(mine)), min(mine), max(mine))
    return found


def add_classes(page: Page, material: Material, answers: Sequence[Answer]) -> None:
    """Recall of each class by arm: where artificial pictures fail."""
    from train.study.measures import measure

    page.section("Classes")
    keys = list(dict.fromkeys((each.arm, each.generator) for each in answers))
    recalls = []
    for key in keys:
        mine = [measure(each.real, each.real_labels).recalls for each in answers if (each.arm, each.generator) == key]
        recalls.append(np.mean(mine, axis=0))
    head = ("class", *(arm if generator == NEEDS_NONE else f"{arm}, {generator}" for arm, generator in keys))
    page.table(
        head, [(name, *(float(each[number]) for each in recalls)) for number, name in enumerate(material.real.names)]
    )


def format_interval(interval: Interval) -> str:
    return f"{interval.low:.3f} to {interval.high:.3f}"

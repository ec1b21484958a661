"""The study's conclusions, paired differences that answer its questions, and its page beside the thesis' tables."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.stats import t

from data.atomic_io import write_atomic
from data.features import extract_features, make_extractor
from data.metrics.statistics import Interval, holm_correction, mean_interval, resampled_interval
from data.reports.charts import bar_chart
from data.reports.page import Page
from train.study.config import ARMS, StudyOptions
from train.study.experiment import NEEDS_NONE, Answer, Material
from train.study.training import domain_gap, measure

PUBLISHED = Path(__file__).with_name("published.csv")
THEMES = {"animals": "3.1", "fruits": "3.2"}  # and the thesis' table of each
FIGURES = {"3.2": ("real", "artificial"), "3.3": ("real", "mixed"), "3.4": ("half", "mixed")}
COLUMNS = (
    "arm", "generator", "pictures", "steps", "accuracy", "95 % interval", "balanced", "macro F1", "calibration error",
    "on artificial"
)  # fmt: skip
DIFFERENCES = ("arm", "against", "generator", "points", "95 % interval", "p (Holm)", "p of the margin", "in a word")
CAVEATS = """Each repeat splits the real images anew, by whole groups (near-duplicates and one species are never
separated), and all arms of a repeat share split, halves, first weights and order of batches. Intervals of differences
account for splits that share images (Nadeau & Bengio 2003); p-values are Holm's over all questions of this page. The
thesis tested one unstratified split, three runs a cell, and trained each arm for 30 passes, so its "half" took half the
steps of "mixed"."""


# the thesis' questions in its order: (arm, other, question)
QUESTIONS = (
    ("artificial", "real", "can artificial images replace real ones?"),
    ("mixed", "real", "do half as many real and as many artificial ones do as well as all real ones?"),
    ("mixed", "half", "do artificial images help half the real ones, trained longer as in the thesis?"),
    ("mixed", "half-twice", "do they help when both are trained equally long?"),
    ("mixed", "half-augmented", "do they help more than mirroring and shifting?"),
    ("real-and-artificial", "real", "do they help all the real ones?"),
)


@dataclass(frozen=True)
class ArmRow:
    """One arm of one generator: means over repeats, in [0, 1], and the interval of the accuracy."""

    arm: str
    generator: str
    pictures: int
    steps: int
    accuracy: Interval
    balanced: float
    macro_f1: float
    calibration: float
    on_artificial: float | None


@dataclass(frozen=True)
class Difference:
    """arm minus other in points of accuracy, paired by repeat; p: Holm's, over all questions of the report.

    within: the p-value of two one-sided tests against a difference of the margin or more.
    """

    arm: str
    other: str
    generator: str
    asked: str
    points: Interval
    p: float
    within: float

    @property
    def word(self) -> str:
        if self.p <= 0.05:
            return "more" if self.points.value > 0 else "less"
        return "equal within the margin" if self.within <= 0.05 else "not known"


def repeats_of(answers: Sequence[Answer], arm: str, generator: str) -> list[Answer]:
    """The repeats of one arm, in order."""
    mine = [each for each in answers if each.arm == arm and each.generator == generator]
    return sorted(mine, key=lambda each: each.repeat)


def arm_rows(answers: Sequence[Answer]) -> list[ArmRow]:
    """A row for each arm and generator, in the order of training."""
    rows = []
    for arm, generator in dict.fromkeys((each.arm, each.generator) for each in answers):
        mine = repeats_of(answers, arm, generator)
        measured = [measure(each.real, each.real_labels) for each in mine]
        other = [each.accuracy_on_artificial for each in mine if each.artificial]
        accuracy = mean_interval(np.array([each.accuracy for each in measured]), range(len(mine)))
        names = ("balanced", "macro_f1", "calibration")
        means = [float(np.mean([getattr(each, name) for each in measured])) for name in names]
        on_artificial = float(np.mean(other)) if other else None
        rows.append(ArmRow(arm, generator, mine[0].pictures, mine[0].steps, accuracy, *means, on_artificial))
    return rows


def accuracies(answers: Sequence[Answer], arm: str, generator: str) -> np.ndarray:
    """(repeats,) in points; an arm without artificial images is the same for all generators."""
    mine = repeats_of(answers, arm, generator) or repeats_of(answers, arm, NEEDS_NONE)
    return np.array([100.0 * each.accuracy for each in mine])


def differences(answers: Sequence[Answer], *, test_share: float, margin: float) -> list[Difference]:
    """Every question whose arms were trained, for each generator, with Nadeau and Bengio's intervals."""
    generators = list(dict.fromkeys(each.generator for each in answers if each.generator != NEEDS_NONE))
    trained = {each.arm for each in answers}
    found = []
    for arm, other, question in QUESTIONS:
        for generator in generators if {arm, other} <= trained else ():
            gaps = accuracies(answers, arm, generator) - accuracies(answers, other, generator)
            points = resampled_interval(gaps, train=1000, test=round(1000 * test_share / (1 - test_share)))
            found.append(Difference(arm, other, generator, question, points, *p_values(points, len(gaps), margin)))
    adjusted = holm_correction([each.p for each in found])
    return [replace(each, p=adjusted[str(place)]) for place, each in enumerate(found)]


def p_values(points: Interval, count: int, margin: float) -> tuple[float, float]:
    """(two-sided p against 0, the larger one-sided p against the margin) of an interval over so many repeats."""
    error = (points.high - points.value) / float(t.ppf(0.975, count - 1))
    if error == 0.0:
        return (1.0 if points.value == 0 else 0.0), (0.0 if abs(points.value) < margin else 1.0)
    outside = max(t.sf((points.value + margin) / error, count - 1), t.sf((margin - points.value) / error, count - 1))
    return float(2 * t.sf(abs(points.value) / error, count - 1)), float(outside)


# ---- the page


def published_table() -> list[dict[str, str]]:
    """The thesis' tables 3.1 and 3.2, mean accuracy over three runs, a row a cell."""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_report(options: StudyOptions, material: Material, answers: Sequence[Answer], outdir: Path) -> Path:
    """report.html and report.json in outdir; returns the page's path."""
    rows = arm_rows(answers)
    found = differences(answers, test_share=options.test_share, margin=options.margin)
    gaps = domain_gaps(material)
    facts = {
        "settings": options.model_dump(mode="json"),
        "sets": {each.name: each.counts for each in (material.real, *material.artificial)},
        "arms": [asdict(row) for row in rows],
        "differences": [asdict(each) | {"word": each.word} for each in found],
        "domain gap (AUC)": gaps,
        "copies of real pictures": {name: int((twins >= 0).sum()) for name, twins in material.twins.items()},
    }
    write_atomic(outdir / "report.json", json.dumps(facts, indent=1) + "\n")
    sets = ", ".join(f"{each.name} ({len(each)})" for each in (material.real, *material.artificial))
    subtitle = f"{sets}; {options.net} at {options.size} pixels, {options.repeats} repeats, recipe {options.recipe}"
    page = Page("Can generated images train a classifier?", subtitle)
    add_answers(page, found, options)
    add_arms(page, rows)
    page.section("How unlike real images they are")
    page.text("The AUC of a linear classifier on weight-free descriptors: 0.5 is alike, 1.0 always told apart.")
    page.table(("generator", "AUC"), list(gaps.items()))
    add_copies(page, material)
    add_published(page, rows)
    add_classes(page, material, answers)
    page.section("How").text(CAVEATS).code(json.dumps(facts["settings"], indent=1))
    return page.write(outdir / "report.html")


def domain_gaps(material: Material) -> dict[str, float]:
    """How well real and artificial images can be told apart by weight-free descriptors, for each generator."""
    extractor = make_extractor("descriptors")
    features = {
        name: extract_features(extractor, [Image.fromarray(image) for image in pixels])
        for name, pixels in material.pixels.items()
    }
    real = features.pop(material.real.name)
    return {name: domain_gap(real, artificial) for name, artificial in features.items()}


def add_answers(page: Page, found: Sequence[Difference], options: StudyOptions) -> None:
    """The questions, each with its difference and what can be concluded."""
    page.section("Answers")
    if not found:
        page.text("No two arms that a question compares were trained.")
        return
    for each in found:
        page.note(f"{each.arm} against {each.other} ({each.generator}): {each.asked} {sentence(each, options)}")
    rows = [(e.arm, e.other, e.generator, e.points.value, format_ends(e.points), e.p, e.within, e.word) for e in found]
    page.table(DIFFERENCES, rows)


def sentence(each: Difference, options: StudyOptions) -> str:
    """The difference in words: only what its interval supports."""
    points = f"{each.points.value:+.1f} points ({each.points.low:+.1f} to {each.points.high:+.1f})"
    sentences = {
        "more": f"Yes, it is better: {points}.",
        "less": f"No, it is worse: {points}.",
        "equal within the margin": f"Equal within {options.margin:g} points: {points}.",
        "not known": f"This study cannot say: {points}; more --repeats or images would.",
    }
    return sentences[each.word]


def add_arms(page: Page, rows: Sequence[ArmRow]) -> None:
    page.section("Arms")
    cells = [
        (row.arm, "" if row.generator == NEEDS_NONE else row.generator, row.pictures, row.steps, row.accuracy.value,
         format_ends(row.accuracy), row.balanced, row.macro_f1, row.calibration, row.on_artificial) for row in rows
    ]  # fmt: skip
    page.table(COLUMNS, cells)
    add_bars(page, {arm_label(row.arm, row.generator): row.accuracy for row in rows}, "accuracy on real test images")
    page.text("\n\n".join(f"{name}: {arm.explained}." for name, arm in ARMS.items()))


def add_copies(page: Page, material: Material) -> None:
    """Near-duplicates of real images among the artificial ones."""
    page.section("Copies of real images").text(
        "Artificial images that are a real one but for cropping, size and light. A repeat does not train on those "
        "whose real twin it is tested on."
    )
    rows = []
    for each in material.artificial:
        twins = material.twins[each.name]
        copies = np.flatnonzero(twins >= 0)
        pairs = [f"{each.files[row].name} is {material.real.files[twins[row]].name}" for row in copies]
        rows.append((each.name, len(each), len(pairs), pairs[0] if pairs else None))
    page.table(("generator", "images", "copies", "the first"), rows)


def add_published(page: Page, rows: Sequence[ArmRow]) -> None:
    """The thesis' numbers under our arms' names, and its four figures with what intervals there are."""
    page.section("The thesis").text(
        "Its tables 3.1 and 3.2, published without spread: other images, other networks; only the pattern compares."
    )
    cells = published_table()
    for theme, number in THEMES.items():
        mine = [(c["arm"], c["generator"], float(c["accuracy"])) for c in cells if c["theme"] == theme]
        page.table(("arm", "generator", "accuracy"), mine, caption=f"{theme} (table {number})")
    for figure, arms in FIGURES.items():
        theirs = {f"{theme}: {arm}": spread(cells, theme=theme, arm=arm) for theme in THEMES for arm in arms}
        ours = {f"here: {arm_label(row.arm, row.generator)}": row.accuracy for row in rows if row.arm in arms}
        add_bars(page, theirs | ours, f"figure {figure}: {' and '.join(arms)}")
    generators = dict.fromkeys(cell["generator"] for cell in cells if cell["generator"])
    pooled = {f"{theme}: {each}": spread(cells, theme=theme, generator=each) for theme in THEMES for each in generators}
    add_bars(page, pooled, "figure 3.5: each generator, its artificial and mixed cells pooled")


def spread(cells: Sequence[dict[str, str]], **chosen: str) -> Interval:
    """Mean, lowest and highest of the thesis' cells with these values: single runs were not published."""
    values = [float(c["accuracy"]) for c in cells if all(c[key] == value for key, value in chosen.items())]
    return Interval(float(np.mean(values)), min(values), max(values))


def add_classes(page: Page, material: Material, answers: Sequence[Answer]) -> None:
    """Recall of each class by arm: where artificial images fail."""
    recalls: dict[str, list[tuple[float, ...]]] = {}
    for each in answers:
        recalls.setdefault(arm_label(each.arm, each.generator), []).append(measure(each.real, each.real_labels).recalls)
    means = [np.mean(rows, axis=0) for rows in recalls.values()]
    rows = [(name, *(float(mean[number]) for mean in means)) for number, name in enumerate(material.real.names)]
    page.section("Classes").table(("class", *recalls), rows)


def add_bars(page: Page, values: dict[str, Interval], title: str) -> None:
    page.add(bar_chart({name: (each.value, each.low, each.high) for name, each in values.items()}, title=title))


def arm_label(arm: str, generator: str) -> str:
    return arm if generator == NEEDS_NONE else f"{arm}, {generator}"


def format_ends(interval: Interval) -> str:
    return f"{interval.low:.3f} to {interval.high:.3f}"

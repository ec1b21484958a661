"""A row for each arm, and the paired differences that answer the study's questions, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t

from data.metrics.statistics import Interval, holm_correction, mean_interval, resampled_interval
from train.study.experiment import NEEDS_NONE, Answer
from train.study.training import measure

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
        rows.append(
            ArmRow(
                arm,
                generator,
                mine[0].pictures,
                mine[0].steps,
                mean_interval(np.array([each.accuracy for each in measured]), range(len(mine))),
                float(np.mean([each.balanced for each in measured])),
                float(np.mean([each.macro_f1 for each in measured])),
                float(np.mean([each.calibration for each in measured])),
                float(np.mean(other)) if other else None,
            )
        )
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

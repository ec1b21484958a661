"""6. What was forgotten: prompts without style, base against tuned; and how far the style leaks into them."""

from __future__ import annotations

import numpy as np

from data.metrics.distances import gaussian_kernel, unit_rows
from data.metrics.statistics import Interval, jackknife_interval, mean_interval, sign_flip_test, wilson_interval
from infer.evaluation.adherence import own_cosine, own_first
from infer.evaluation.samples import Evidence
from infer.evaluation.section import Number, Section, of, sided
from infer.evaluation.style import Distance, leans

TITLE, ASKED = "Forgetting", "What of the base is lost where nothing of the style was asked for?"
HALF = 0.5  # of the way from base to training pictures: from here on a picture counts as drawn in the style


def section(evidence: Evidence, seed: int = 0) -> Section:
    """Of prompts without style."""
    asked = evidence.plain
    shown = asked.shown
    numbers = []
    for name, measure in (("R-precision", own_first), ("CLIP-T", own_cosine)):
        tuned, base = (measure(asked, seen, seed) for seen in (shown.tuned, shown.base))
        lost = mean_interval(base - tuned, shown.prompts)
        numbers.append(of(f"{name} lost", lost, base=float(base.mean()), floor=0.0,
                          p=sign_flip_test(base - tuned, shown.prompts, seed=seed),
                          said=sided(lost, "forgotten", "better than before")))  # fmt: skip
    numbers += [moved(evidence), *leaked(evidence)]
    return Section(
        TITLE, ASKED, tuple(numbers),
        notes=("Leakage: pictures past half of the way from the base's to the training pictures' descriptors. A LoRA "
               "without a trigger word is meant to leak; then this is no fault.",),
        cannot=("People, places and scenes by name are not asked for: the embedded base knows none. With another base, "
                "look at infer/compare.py with prompts of your own.",),
    )  # fmt: skip


def moved(evidence: Evidence) -> Number:
    """CMMD of tuned to base."""
    shown = evidence.plain.shown
    away = Distance(unit_rows(shown.base.joint), unit_rows(shown.tuned.joint), gaussian_kernel)
    found = jackknife_interval(away, shown.prompts)
    return of(
        "CMMD of base and tuned", Interval(*(1000 * end for end in (found.value, found.low, found.high))), floor=0.0
    )


def leaked(evidence: Evidence) -> list[Number]:
    """The share of pictures that came out in the style, with what the same rule says of base and held-out pictures."""
    shown = evidence.plain.shown
    _, along = leans(evidence.train, shown)
    tuned, base = (along(seen.style) > HALF for seen in (shown.tuned, shown.base))
    right = float(np.mean(along(evidence.held_out.style) > HALF))
    return [of("style leakage", wilson_interval(int(tuned.sum()), len(tuned)), base=float(base.mean()), ceiling=right,
               said="ceiling: of held-out pictures")]  # fmt: skip

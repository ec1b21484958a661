"""6. Forgetting: prompts without style, base against tuned; and how far the style leaks into them."""

from __future__ import annotations

import numpy as np

from data.metrics import statistics as stats
from data.metrics.distances import unit_rows
from infer.evaluation.adherence import MEASURES
from infer.evaluation.samples import Evidence
from infer.evaluation.section import Section, from_interval, mean_change
from infer.evaluation.style import cmmd_interval, style_axis

TITLE, ASKED = "Forgetting", "What of the base is lost where no style was requested?"
HALF = 0.5  # of the way from base to training images: an image beyond it counts as being in the style


def section(evidence: Evidence, seed: int = 0) -> Section:
    plain, pairs = evidence.plain, evidence.plain.pairs
    numbers = []
    for name, measure in MEASURES.items():
        tuned, base = (measure(plain, features, seed) for features in (pairs.tuned, pairs.base))
        numbers.append(mean_change(f"{name} lost", tuned, base, pairs.prompts, ("forgotten", "better than before"),
                                   seed=seed, base=float(base.mean()), floor=0.0))  # fmt: skip
    moved = cmmd_interval(unit_rows(pairs.base.joint), unit_rows(pairs.tuned.joint), pairs)
    numbers.append(from_interval("CMMD of base and tuned", moved, floor=0.0))
    _, along = style_axis(evidence.train, pairs)
    tuned, base, real = (along(each.style) > HALF for each in (pairs.tuned, pairs.base, evidence.held_out))
    numbers.append(from_interval("style leakage", stats.wilson_interval(int(tuned.sum()), len(tuned)),
                                 base=float(base.mean()), ceiling=float(np.mean(real)),
                                 said="ceiling: of held-out images"))  # fmt: skip
    return Section(
        TITLE, ASKED, tuple(numbers),
        notes=("Leakage: images beyond half of the way from the base's to the training images' descriptors. A LoRA "
               "without a trigger word is meant to leak, so there it is no fault.",),
        cannot=("Named people, places and scenes are not tested: the embedded base knows none. For other base models "
                "use infer/compare.py with your own prompts.",),
    )  # fmt: skip

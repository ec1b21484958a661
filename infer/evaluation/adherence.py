"""2. Are prompts still obeyed: is a picture's own prompt found among others, by a model that drew none of them."""

from __future__ import annotations

import numpy as np

from data.metrics.adherence import CANDIDATES, clip_text_similarity, r_precision
from data.metrics.distances import unit_rows
from data.metrics.statistics import Interval, mean_interval, sign_flip_test
from data.rng import seed_for
from infer.evaluation.samples import Asked, Evidence, Seen
from infer.evaluation.section import ALARM, Alarm, Number, Section, of, sided

DRAWS = 1000
KEPT = 0.5  # of the base's R-precision: a model that keeps less has forgotten what words mean
TITLE, ASKED = "Prompt adherence", "Does the tuned model still draw what the prompt says?"


def section(evidence: Evidence, seed: int = 0) -> Section:
    """Of prompts without style, base against tuned; and of the training captions."""
    plain, captions = evidence.plain, evidence.captions
    chance = shuffled(plain, plain.shown.tuned, seed)
    numbers = [*both(plain, "prompts without style", seed), *both(captions, "training captions", seed)]
    numbers.append(Number("p that prompts are ignored", chance, p=chance,
                          said="prompts matter" if chance <= ALARM else "not shown to matter"))  # fmt: skip
    return Section(
        TITLE, ASKED, tuple(numbers), tuple(alarms(chance, kept(plain, seed))),
        notes=("CLIP-T is the cosine of picture and prompt (CLIPScore is 2.5 max(cos, 0), torchmetrics has 100 cos)."
               f" R-precision: the share of pictures whose own prompt comes first among {CANDIDATES}, or of all.",),
        cannot=("VQAScore and human judges are not here: the scorer knows whether a picture looks like its own idea of "
                "a thing.",),
    )  # fmt: skip


def both(asked: Asked, of_what: str, seed: int) -> list[Number]:
    """CLIP-T and R-precision: tuned, change and the base's."""
    found = []
    for name, measure in (("R-precision", own_first), ("CLIP-T", own_cosine)):
        tuned, base = (measure(asked, seen, seed) for seen in (asked.shown.tuned, asked.shown.base))
        change = mean_interval(tuned - base, asked.shown.prompts)
        chance = 1 / min(CANDIDATES, len(asked.wordings)) if name == "R-precision" else None
        found += [
            of(f"{name}, {of_what}", mean_interval(tuned, asked.shown.prompts), base=float(base.mean()), floor=chance),
            of(f"{name}, {of_what}, change", change, p=sign_flip_test(tuned - base, asked.shown.prompts, seed=seed),
               said=sided(change, "better than the base", "worse than the base")),
        ]  # fmt: skip
    return found


def own_first(asked: Asked, seen: Seen, seed: int) -> np.ndarray:
    return r_precision(seen.joint, asked.texts, asked.own, seed=seed).astype(np.float64)


def own_cosine(asked: Asked, seen: Seen, seed: int = 0) -> np.ndarray:
    return clip_text_similarity(seen.joint, asked.texts[asked.own])


def kept(asked: Asked, seed: int) -> Interval:
    """The tuned R-precision less half the base's: below 0 it lost more than half."""
    tuned, base = (own_first(asked, seen, seed) for seen in (asked.shown.tuned, asked.shown.base))
    return mean_interval(tuned - KEPT * base, asked.shown.prompts)


def shuffled(asked: Asked, seen: Seen, seed: int) -> float:
    """The p-value of "pictures have nothing to do with their prompts": whole prompts change places.

    The statistic is the mean cosine of pictures and own prompts.
    """
    own = asked.own
    used, place = np.unique(own, return_inverse=True)
    cosines = unit_rows(seen.joint) @ unit_rows(asked.texts[used]).T
    together = np.stack([cosines[place == row].mean(axis=0) for row in range(len(used))])  # (prompts, prompts)
    rng = np.random.default_rng(seed_for(seed, "ignored"))
    orders = [rng.permutation(len(used)) for _ in range(DRAWS)]
    by_chance = np.array([together[np.arange(len(used)), order].mean() for order in orders])
    return float((1 + (by_chance >= together.diagonal().mean() - 1e-12).sum()) / (1 + DRAWS))


def alarms(chance: float, left: Interval) -> list[Alarm]:
    found = []
    if chance > ALARM:
        found.append(Alarm("prompts-ignored", f"The tuned model's pictures are not shown to depend on their prompts "
                           f"(p = {chance:.2g})."))  # fmt: skip
    if left.high < 0:
        found.append(Alarm("prompts-half-lost", "The tuned model's pictures are found by their prompts less than half "
                           "as often as the base's."))  # fmt: skip
    return found

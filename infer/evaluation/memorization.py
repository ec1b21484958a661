"""5. Was anything memorised: nearest training pictures, calibrated by held-out ones; loss gaps; copies by alignment."""

from __future__ import annotations

import math

import numpy as np

from data.metrics.memorization import ALARM as SSCD_ALARM
from data.metrics.memorization import (
    QUANTILE,
    CopyReport,
    authenticity,
    data_copying_score,
    find_copies,
    membership_inference,
    nearest_neighbours,
)
from data.metrics.statistics import wilson_interval
from infer.evaluation.diversity import first_of_each
from infer.evaluation.samples import Evidence, Losses, Seen
from infer.evaluation.section import Alarm, Number, Section, of

RARE = 0.002  # p of an alarm: this section asks four times whether something was copied
SCORE = -3.0  # C_T, standard deviations
TOLD = 0.6  # AUC of telling training pictures from held-out ones by their loss: more is an alarm
TITLE, ASKED = "Memorisation", "Are training pictures drawn again?"


def section(evidence: Evidence, seed: int = 0) -> Section:
    """Of training captions (the worst case) and of prompts without style (novel ones)."""
    train, held_out = evidence.train, evidence.held_out
    drawn = {"training captions": evidence.captions.shown, "novel prompts": evidence.plain.shown}
    found = {name: find_copies(train.content, held_out.content, shown.tuned.content) for name, shown in drawn.items()}
    before = {name: find_copies(train.content, held_out.content, shown.base.content) for name, shown in drawn.items()}
    worst, score = found["training captions"], score_of(evidence, evidence.captions.shown.tuned)
    by_chance = chance(evidence)
    numbers = [number for name in drawn for number in counted(name, found[name], before[name])]
    numbers += [
        Number("p of so many captions' pictures above every held-out one", by_chance, p=by_chance,
               said="copies" if by_chance <= RARE else "not more than chance allows"),
        background(train),
        Number("C_T, training captions", score, base=score_of(evidence, evidence.captions.shown.base), floor=0.0,
               said="nearer to training pictures than held-out ones are" if score < SCORE else "no nearer than chance"),
        Number("authentic, %", authenticity(train.content, evidence.captions.shown.tuned.content),
               base=authenticity(train.content, evidence.captions.shown.base.content),
               floor=authenticity(train.content, held_out.content), said="floor: of held-out pictures"),
        Number("aligned copies among the drawn", float(len(evidence.copied.drawn)), floor=0.0),
        Number("aligned copies between training and held-out", float(len(evidence.copied.held_out)), floor=0.0),
        *(told_by_loss(evidence.losses) if evidence.losses else ()),
    ]  # fmt: skip
    return Section(
        TITLE, ASKED, tuple(numbers), tuple(alarms(evidence, worst, score, by_chance)),
        notes=(f"Likeness: cosine to the nearest training picture. Threshold: what {QUANTILE:.0%} of held-out pictures "
               "stay under. C_T (Meehan et al. 2020): standard deviations; well below 0 is copying.",),
        cannot=cannot(len(held_out)),
    )  # fmt: skip


def cannot(held_out: int) -> tuple[str, ...]:
    found = ["No number proves or rules out copying: look at the nearest pairs below.",
             f"The share above {SSCD_ALARM} means what Somepalli et al. 2023 say in SSCD's features only."]  # fmt: skip
    if held_out < 100:
        found.append(f"With {held_out} held-out pictures a threshold of 1 % is their highest value or nearly so.")
    return tuple(found)


def score_of(evidence: Evidence, drawn: Seen) -> float:
    return data_copying_score(evidence.train.content, evidence.held_out.content, drawn.content)


def counted(name: str, now: CopyReport, before: CopyReport) -> list[Number]:
    """Shares and percentiles of the likeness to training pictures."""
    above = wilson_interval(round(now.above * len(now.likeness)), len(now.likeness))
    return [
        of(f"share above the threshold, {name}", above, base=before.above, floor=1 - QUANTILE,
           said="more than held-out pictures" if above.low > 1 - QUANTILE else "as held-out pictures, or not known"),
        *(Number(f"likeness, {percent} %, {name}", now.quantiles[place], base=before.quantiles[place],
                 ceiling=now.threshold) for place, percent in enumerate((75, 90, 95))),
        Number(f"share above {SSCD_ALARM}, {name}", now.alarm, base=before.alarm),
    ]  # fmt: skip


def chance(evidence: Evidence) -> float:
    """The p-value of so many pictures above every held-out one, if both were of one source; one picture a caption.

    Of n drawn and m held-out pictures in any order, the k most alike are all drawn with probability
    n! (n + m - k)! / ((n - k)! (n + m)!).
    """
    shown, train = evidence.captions.shown, evidence.train.content
    drawn = nearest_neighbours(shown.tuned.content[first_of_each(shown)], train)[0]
    held_out = nearest_neighbours(evidence.held_out.content, train)[0]
    n, m, k = len(drawn), len(held_out), int((drawn > held_out.max()).sum())
    return float(np.prod([(n - place) / (n + m - place) for place in range(k)]))


def background(train: Seen) -> Number:
    """How like training pictures are to the nearest other one."""
    cosines = nearest_other(train)
    return Number("likeness of training pictures to the nearest other, 95 %", float(np.quantile(cosines, 0.95)))


def nearest_other(train: Seen) -> np.ndarray:
    rows = np.arange(len(train))
    return np.array([nearest_neighbours(train.content[[row]], train.content[rows != row])[0][0] for row in rows])


def told_by_loss(losses: Losses) -> list[Number]:
    """Whether the denoising loss tells training pictures; the base has seen neither side."""
    now = membership_inference(losses.train, losses.held_out)
    before = membership_inference(losses.base_train, losses.base_held_out)
    p = auc_p(now.auc, len(losses.train), len(losses.held_out))
    said = "training pictures can be told" if p <= 0.05 else "not told from chance"
    found = [Number("AUC of training against held-out pictures by their loss", now.auc, base=before.auc, floor=0.5, p=p,
                    said=said),
             Number("loss gap, held-out minus training", now.gap, base=before.gap, floor=0.0)]  # fmt: skip
    if len(losses.held_out) >= 100:
        found.append(Number("training pictures told at 1 % false alarms", now.found, base=before.found, floor=0.01))
    return found


def auc_p(auc: float, n: int, m: int) -> float:
    """One-sided: of Mann-Whitney's U under "the two sides are alike"."""
    z = (auc - 0.5) * n * m / math.sqrt(n * m * (n + m + 1) / 12)
    return 0.5 * math.erfc(z / math.sqrt(2))


def alarms(evidence: Evidence, worst: CopyReport, score: float, by_chance: float) -> list[Alarm]:
    """A leak between training and held-out pictures makes every other number of this section worthless."""
    found = []
    if evidence.copied.held_out:
        held, train = evidence.copied.held_out[0]
        found.append(Alarm("leak", f"{len(evidence.copied.held_out)} held-out pictures are copies of training ones "
                           f"({held}, {train}): validation and this section measure learning by heart."))  # fmt: skip
    if by_chance <= RARE or score < SCORE:
        found.append(Alarm("copies", f"{worst.above:.0%} of the pictures of training captions are more like a training "
                           f"picture than 99 % of held-out ones are; C_T {score:.1f}."))  # fmt: skip
    if evidence.copied.drawn:
        drawn, train = evidence.copied.drawn[0]
        found.append(Alarm("copies", f"{len(evidence.copied.drawn)} drawn pictures are training pictures but for "
                           f"cropping and light (the first: {drawn!r} is {train})."))  # fmt: skip
    if evidence.losses:
        now = membership_inference(evidence.losses.train, evidence.losses.held_out)
        sides = len(evidence.losses.train), len(evidence.losses.held_out)
        if now.auc > TOLD and auc_p(now.auc, *sides) <= RARE:
            found.append(Alarm("told-by-loss", f"Training pictures can be told from held-out ones by their loss: AUC "
                               f"{now.auc:.2f}."))  # fmt: skip
    return found

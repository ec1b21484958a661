"""4. Are the pictures diverse: between seeds of one prompt, over prompts, and against the training pictures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from data import rng
from data.metrics.coverage import PrecisionRecall, mean_pairwise_distance, precision_recall, vendi_score
from data.metrics.distances import Matrix, unit_rows
from data.metrics.statistics import Interval, jackknife_interval, mean_interval, sign_flip_test
from infer.evaluation.samples import Evidence, Shown
from infer.evaluation.section import Alarm, Number, Section, of, sided

K = 5  # neighbours, as Naeem et al. 2020 have it
DRAWS = 5
COLLAPSED = 0.5  # of the base's distance between seeds, or of the training pictures' Vendi score at equal n
TITLE, ASKED = "Diversity", "Are they many pictures, or a few over and over?"


def section(evidence: Evidence, seed: int = 0) -> Section:
    """Of several seeds a prompt, and of the training captions."""
    shown = evidence.captions.shown
    ratio, change = between_seeds(evidence.variety)
    first = first_of_each(shown)
    real = real_vendi(evidence.train.content, len(first), seed)
    counted = vendi_score(shown.tuned.content[first])
    numbers = [
        ratio, change, *vendi_between_seeds(evidence.variety),
        Number(f"Vendi score of {len(first)} captions, one picture each", counted,
               base=vendi_score(shown.base.content[first]), ceiling=real,
               said=f"{counted / real:.0%} of the training pictures'"),
        *manifolds(evidence, first, seed),
    ]  # fmt: skip
    return Section(
        TITLE, ASKED, tuple(numbers), tuple(alarms(ratio, counted / real)),
        notes=("A Vendi score counts unlike pictures; it grows with n, so only equal n are compared. Precision, "
               "recall, density and coverage: as many training pictures as drawn ones; floor: training pictures "
               "against others of them, the most that can be expected.",),
        cannot=few(len(first)),
    )  # fmt: skip


def few(n: int) -> tuple[str, ...]:
    if n >= 100:
        return ()
    return (f"Coverage and recall of {n} pictures tell collapse from health, not one model from a similar one.",)


def of_each(shown: Shown, measure: Callable[[Matrix], float], content: Matrix) -> NDArray[np.float64]:
    """A number for each prompt, in order of first appearance."""
    names = dict.fromkeys(shown.prompts.tolist())
    return np.array([measure(content[shown.prompts == name]) for name in names])


def between_seeds(shown: Shown) -> tuple[Number, Number]:
    """Mean distance of two pictures of one prompt: tuned over base, and the paired change.

    Content is looked at around its mean over all pictures: what all share is no diversity.
    """
    middle = np.concatenate([shown.base.content, shown.tuned.content]).mean(axis=0)
    tuned, base = (
        of_each(shown, lambda rows: spread(rows - middle), seen.content) for seen in (shown.tuned, shown.base)
    )
    prompts = list(dict.fromkeys(shown.prompts.tolist()))
    ratio = jackknife_interval(lambda mask: float(tuned[mask].mean() / max(base[mask].mean(), 1e-12)), prompts)
    change = mean_interval(tuned - base, prompts)
    return (
        of("distance between seeds of a prompt, tuned over base", ratio, floor=0.0, ceiling=1.0,
           said=sided(ratio, "no less diverse", "less diverse", zero=1.0)),
        of("distance between seeds of a prompt, change", change, base=float(base.mean()),
           p=sign_flip_test(tuned - base, prompts),
           said=sided(change, "more", "less")),
    )  # fmt: skip


def spread(rows: Matrix) -> float:
    """The root mean square distance of two rows of a set."""
    return float(np.sqrt(2.0 * rows.var(axis=0, ddof=1).sum()))


def vendi_between_seeds(shown: Shown) -> list[Number]:
    tuned, base = (of_each(shown, vendi_score, seen.content) for seen in (shown.tuned, shown.base))
    apart = [of_each(shown, mean_pairwise_distance, seen.content).mean() for seen in (shown.tuned, shown.base)]
    n = int(np.unique(shown.prompts, return_counts=True)[1].min())
    return [
        of(f"Vendi score of {n} seeds of a prompt", mean_interval(tuned, range(len(tuned))), base=float(base.mean()),
           floor=1.0, ceiling=float(n)),
        Number("1 - cosine of two seeds of a prompt", float(apart[0]), base=float(apart[1]), floor=0.0),
    ]  # fmt: skip


def first_of_each(shown: Shown) -> NDArray[np.int64]:
    """The row of each prompt's first picture."""
    return np.sort(np.unique(shown.prompts, return_index=True)[1])


def real_vendi(content: Matrix, n: int, seed: int) -> float:
    """Of n training pictures: the mean over DRAWS draws; of all there are, if they are fewer."""
    orders = [rng.permutation(len(content), seed, "vendi", draw)[:n] for draw in range(DRAWS)]
    return float(np.mean([vendi_score(content[order]) for order in orders]))


def manifolds(evidence: Evidence, first: NDArray[np.int64], seed: int) -> list[Number]:
    """Precision, recall, density and coverage at M = N, of tuned, base, and training pictures among themselves."""
    train, shown = unit_rows(evidence.train.content), evidence.captions.shown
    n = min(len(first), len(train) // 2)
    if n <= K:
        return []
    order = rng.permutation(len(train), seed, "manifold")
    real, others = train[order[:n]], train[order[n : 2 * n]]
    tuned, base, floor = (
        precision_recall(real, rows, k=K)
        for rows in (unit_rows(shown.tuned.content[first[:n]]), unit_rows(shown.base.content[first[:n]]), others)
    )
    return [Number(f"{name}, {n} against {n}", getattr(tuned, name), base=getattr(base, name),
                   floor=getattr(floor, name)) for name in PrecisionRecall.__dataclass_fields__]  # fmt: skip


def alarms(ratio: Number, share: float) -> list[Alarm]:
    """Of the ratio of distances between seeds, and of the Vendi score as a share of the training pictures'."""
    found, interval = [], ratio.interval or Interval(*(3 * [float("nan")]))
    if interval.high < COLLAPSED:
        found.append(Alarm("collapsed", f"Seeds of one prompt are {ratio.value:.2f} times as far apart as the "
                           f"base's ({interval.low:.2f} to {interval.high:.2f}): it repeats itself."))  # fmt: skip
    if share < COLLAPSED:
        found.append(Alarm("collapsed", f"Different captions give {share:.0%} of the variety that the training "
                           "pictures have."))  # fmt: skip
    return found

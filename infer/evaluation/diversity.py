"""4. Diversity: between seeds of one prompt, over prompts, and against the training images."""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from data import rng
from data.metrics import statistics as stats
from data.metrics.distances import Matrix, mean_pairwise_distance, precision_recall, unit_rows, vendi_score
from infer.evaluation.evidence import Evidence, Pairs
from infer.evaluation.section import Alarm, Number, Section, describe_sign, from_interval, mean_change

K = 5  # neighbours, as in Naeem et al. 2020
DRAWS = 5
COLLAPSED = 0.5  # of the base's distance between seeds, or of the training images' Vendi score at equal n
TITLE, ASKED = "Diversity", "Are the images diverse, or a few over and over?"


def section(evidence: Evidence, seed: int = 0) -> Section:
    pairs = evidence.captions.pairs
    ratio, change = between_seeds(evidence.variety)
    n = len(pairs.first)
    tuned, base = (vendi_score(each.content[pairs.first]) for each in (pairs.tuned, pairs.base))
    real = real_vendi_score(evidence.train.content, n, seed)
    numbers = [
        ratio, change, *vendi_between_seeds(evidence.variety),
        Number(f"Vendi score of {n} captions, one picture each", tuned, base=base, ceiling=real,
               said=f"{tuned / real:.0%} of the training images'"),
        *precision_and_recall(evidence, seed),
    ]  # fmt: skip
    few = f"Coverage and recall of {n} images tell collapse from health, not one model from a similar one."
    return Section(
        TITLE, ASKED, tuple(numbers), tuple(alarms(ratio, tuned / real)),
        notes=("A Vendi score counts distinct images; it grows with n, so only equal n are compared. Precision, "
               "recall, density and coverage: as many training images as generated ones; floor: training images "
               "against other training images, the most that can be expected.",),
        cannot=() if n >= 100 else (few,),
    )  # fmt: skip


def per_prompt(pairs: Pairs, measure: Callable[[Matrix], float], content: Matrix) -> NDArray[np.float64]:
    """A number for each prompt, in order of first appearance."""
    return np.array([measure(content[pairs.prompts == prompt]) for prompt in dict.fromkeys(pairs.prompts.tolist())])


def between_seeds(pairs: Pairs) -> tuple[Number, Number]:
    """Mean distance of two images of one prompt: tuned over base, and the paired change.

    Content is centered over all images: what all share is no diversity.
    """
    mean = np.concatenate([pairs.base.content, pairs.tuned.content]).mean(axis=0)
    tuned, base = (
        per_prompt(pairs, lambda rows: rms_distance(rows - mean), each.content) for each in (pairs.tuned, pairs.base)
    )
    prompts = list(dict.fromkeys(pairs.prompts.tolist()))
    ratio = stats.jackknife_interval(lambda mask: float(tuned[mask].mean() / max(base[mask].mean(), 1e-12)), prompts)
    return (
        from_interval("distance between seeds of a prompt, tuned over base", ratio, floor=0.0, ceiling=1.0,
                      said=describe_sign(ratio, "no less diverse", "less diverse", zero=1.0)),
        mean_change("distance between seeds of a prompt, change", base, tuned, prompts, ("more", "less"), seed=0,
                    base=float(base.mean())),
    )  # fmt: skip


def rms_distance(rows: Matrix) -> float:
    """The root mean square distance of two rows."""
    return float(np.sqrt(2.0 * rows.var(axis=0, ddof=1).sum()))


def vendi_between_seeds(pairs: Pairs) -> list[Number]:
    sides = (pairs.tuned.content, pairs.base.content)
    tuned, base = (per_prompt(pairs, vendi_score, content) for content in sides)
    apart = [float(per_prompt(pairs, mean_pairwise_distance, content).mean()) for content in sides]
    n = int(np.unique(pairs.prompts, return_counts=True)[1].min())
    score = stats.mean_interval(tuned, range(len(tuned)))
    return [
        from_interval(f"Vendi score of {n} seeds of a prompt", score, base=float(base.mean()), floor=1.0,
                      ceiling=float(n)),
        Number("1 - cosine of two seeds of a prompt", apart[0], base=apart[1], floor=0.0),
    ]  # fmt: skip


def real_vendi_score(content: Matrix, n: int, seed: int) -> float:
    """Of n training images, the mean over DRAWS draws; of all if there are fewer."""
    orders = [rng.permutation(len(content), seed, "vendi", draw)[:n] for draw in range(DRAWS)]
    return float(np.mean([vendi_score(content[order]) for order in orders]))


def precision_and_recall(evidence: Evidence, seed: int) -> list[Number]:
    """Precision, recall, density and coverage at equal n: tuned, base, and training images among themselves."""
    train, pairs = unit_rows(evidence.train.content), evidence.captions.pairs
    n = min(len(pairs.first), len(train) // 2)
    if n <= K:
        return []
    order, first = rng.permutation(len(train), seed, "manifold"), pairs.first[:n]
    sides = (unit_rows(pairs.tuned.content[first]), unit_rows(pairs.base.content[first]), train[order[n : 2 * n]])
    tuned, base, floor = (precision_recall(train[order[:n]], rows, k=K) for rows in sides)
    return [
        Number(f"{name}, {n} against {n}", value, base=getattr(base, name), floor=getattr(floor, name))
        for name, value in asdict(tuned).items()
    ]


def alarms(ratio: Number, share: float) -> Sequence[Alarm]:
    """ratio: of distances between seeds. share: the Vendi score as a share of the training images'."""
    found = []
    if ratio.interval and ratio.interval.high < COLLAPSED:
        low, high = ratio.interval.low, ratio.interval.high
        found.append(Alarm("collapsed", f"Images of one prompt are {ratio.value:.2f} times as far apart as the base's "
                           f"({low:.2f} to {high:.2f}): the model repeats itself."))  # fmt: skip
    if share < COLLAPSED:
        found.append(Alarm("collapsed", f"Different captions give {share:.0%} of the training images' variety."))
    return found

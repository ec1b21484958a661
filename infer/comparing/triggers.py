"""What a trigger word changes, held against what another seed changes.

The thesis (figure 3.3) finds "no significant difference" between a prompt with and without the word. Here that gets two
numbers: the distance that the word makes at one seed, in units of the distance between seeds; and the p-value of "the
word shifts nothing", from the scorer's features of all pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from infer.comparing import measures
from infer.comparing.measures import Interval, Scorer

LEVEL = 0.05
Key = tuple[str, int, bool]  # prompt, seed, with the word


@dataclass(frozen=True)
class Effect:
    """Of one prompt, or of all. pair: distance of with and without at one seed. seeds: between seeds, without.

    ratio: pair / seeds for each seed, as an interval; 1: the word changes as much as another seed does.
    shift: p-value of the flip test on the scorer's features.
    """

    name: str
    pair: Interval
    seeds: float
    ratio: Interval
    shift: float


def effects(
    prompts: Sequence[str], seeds: Sequence[int], pictures: Mapping[Key, Image.Image], scorer: Scorer
) -> list[Effect]:
    """One for each prompt and, last, one for all together."""
    keys = list(pictures)
    rows = dict(zip(keys, scorer.features([pictures[key] for key in keys]), strict=True))
    shift = {p: np.stack([rows[p, s, True] - rows[p, s, False] for s in seeds]) for p in prompts}
    pair = {p: [measures.distance(pictures[p, s, True], pictures[p, s, False]) for s in seeds] for p in prompts}
    apart = {p: others(p, seeds, pictures) for p in prompts}
    found = [effect(p, pair[p], apart[p], measures.flip_test(shift[p])) for p in prompts]
    if len(prompts) > 1:
        together = [float(np.mean([pair[p][index] for p in prompts])) for index in range(len(seeds))]
        all_apart = [float(np.mean([apart[p][index] for p in prompts])) for index in range(len(seeds))]
        # a seed's prompts are drawn from one noise: they keep one sign
        joint = np.concatenate([shift[p] for p in prompts], axis=1)
        found.append(effect("all prompts", together, all_apart, measures.flip_test(joint)))
    return found


def others(prompt: str, seeds: Sequence[int], pictures: Mapping[Key, Image.Image]) -> list[float]:
    """For each seed, the mean distance of its picture without the word to those of the other seeds."""
    gaps = {
        frozenset(two): measures.distance(pictures[prompt, two[0], False], pictures[prompt, two[1], False])
        for two in itertools.combinations(seeds, 2)
    }
    return [float(np.mean([gap for two, gap in gaps.items() if seed in two])) for seed in seeds]


def effect(name: str, pair: Sequence[float], apart: Sequence[float], shift: float) -> Effect:
    ratios = [one / other if other else float("nan") for one, other in zip(pair, apart, strict=True)]
    return Effect(name, measures.interval(pair), float(np.mean(apart)), measures.interval(ratios), shift)


def verdict(word: str, found: Sequence[Effect], seeds: int) -> str:
    """What may be said of the word, in a sentence with its numbers."""
    of = found[-1]
    least = 2 / 2**seeds  # all signs as they are, or all turned
    significant = of.shift <= LEVEL
    said = "a significant difference" if significant else "no significant difference"
    weak = f" (with {seeds} seeds no p below {least:.3g} is possible)" if least > LEVEL else ""
    return (
        f"{word!r} makes {said}: p = {of.shift:.3g} that it shifts nothing{weak}. At one seed it moves the picture by "
        f"{of.pair.mean:.3f}, {of.ratio.mean:.2f} times (95 % {of.ratio.low:.2f} to {of.ratio.high:.2f}) the "
        f"{of.seeds:.3f} between two seeds."
    )

"""What the studies of steps and of guidance measure: one setting swept over prompts and seeds.

The thesis says (chapter 2.2) that complex prompts need many denoising steps, and that with many a simple prompt's
picture gets worse: "the model begins to deform a picture that was good already". Worse is measured as a lower
similarity to the prompt at the most steps than at a number that was fixed beforehand, paired by prompt and seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image

from infer.comparing import measures
from infer.comparing.measures import Interval, Scorer

Key = tuple[str, int, float]  # prompt, seed, value of the swept setting


@dataclass(frozen=True)
class Sweep:
    """Pictures of prompts in groups (simple, complex) at rising values of one setting, each with every seed."""

    groups: Mapping[str, Sequence[str]]
    seeds: Sequence[int]
    values: Sequence[float]
    pictures: Mapping[Key, Image.Image]

    @property
    def prompts(self) -> list[str]:
        return [prompt for group in self.groups.values() for prompt in group]

    @property
    def last(self) -> float:
        return self.values[-1]

    def middle(self) -> float:
        """The value that the last one is held against, fixed beforehand: the nearest to 40 % of it (20 of 50)."""
        return min(self.values[:-1], key=lambda value: abs(value - 0.4 * self.last))


@dataclass(frozen=True)
class Line:
    """A measure of one prompt or group along the values, its mean over seeds with bounds."""

    name: str
    points: Sequence[Interval]


@dataclass(frozen=True)
class Scores:
    """Every picture's similarity to its prompt, by key."""

    scorer: str
    of: Mapping[Key, float]

    def means(self, prompts: Sequence[str], seed: int, value: float) -> float:
        return float(np.mean([self.of[prompt, seed, value] for prompt in prompts]))


def scored(sweep: Sweep, scorer: Scorer) -> Scores:
    keys = list(sweep.pictures)
    found = scorer.similarity([sweep.pictures[key] for key in keys], [key[0] for key in keys])
    return Scores(scorer.name, dict(zip(keys, map(float, found), strict=True)))


def to_the_last(sweep: Sweep, prompts: Sequence[str]) -> list[Interval]:
    """For each value: how far its pictures are from those at the last value."""
    return [over_seeds(sweep, prompts, lambda p, s, v=value: distance(sweep, p, s, v, sweep.last)) for value in
            sweep.values]  # fmt: skip


def per_step(sweep: Sweep, prompts: Sequence[str]) -> list[Interval]:
    """For each value but the first: the change since the one before, by how much the setting changed."""
    return [
        over_seeds(sweep, prompts, lambda p, s, v=low, w=high: distance(sweep, p, s, v, w) / (w - v))
        for low, high in pairwise(sweep.values)
    ]


def between_seeds(sweep: Sweep, prompts: Sequence[str]) -> list[float]:
    """For each value: the mean distance between pictures of one prompt with different seeds."""
    return [
        float(np.mean([measures.between([sweep.pictures[p, s, value] for s in sweep.seeds]) for p in prompts]))
        for value in sweep.values
    ]


def similarity(sweep: Sweep, scores: Scores, prompts: Sequence[str]) -> list[Interval]:
    """For each value: the similarity to the prompt."""
    return [over_seeds(sweep, prompts, lambda p, s, v=value: scores.of[p, s, v]) for value in sweep.values]


def change(sweep: Sweep, scores: Scores, prompts: Sequence[str], low: float, high: float) -> Interval:
    """The similarity at `high` minus that at `low`, paired by prompt and seed; below 0: the picture got worse."""
    return over_seeds(sweep, prompts, lambda p, s: scores.of[p, s, high] - scores.of[p, s, low])


def distance(sweep: Sweep, prompt: str, seed: int, one: float, two: float) -> float:
    return measures.distance(sweep.pictures[prompt, seed, one], sweep.pictures[prompt, seed, two])


def over_seeds(sweep: Sweep, prompts: Sequence[str], measure) -> Interval:
    """The interval over seeds of a measure's mean over the prompts: prompts are given, seeds are chance."""
    return measures.interval([float(np.mean([measure(p, s) for p in prompts])) for s in sweep.seeds])


# ---- what it says


def steps_verdict(sweep: Sweep, scores: Scores) -> str:
    """The thesis' claim, with numbers."""
    low, high = sweep.middle(), sweep.last
    found = {name: change(sweep, scores, prompts, low, high) for name, prompts in sweep.groups.items()}
    said = " and ".join(f"{of} for {name} prompts" for name, of in found.items())
    first = next(iter(found.values()))
    claim = {
        -1: "Simple prompts do get worse with many steps here",
        0: "That simple prompts get worse with many steps is not seen here",
        1: "Simple prompts get better, not worse, with many steps here",
    }[first.sign]
    settled = settled_at(sweep)
    return (
        f"{claim}: from {low:g} to {high:g} steps the similarity to the prompt ({scores.scorer}) changes by {said}. "
        f"{settled}"
    )


SETTLED = 0.25  # of the distance between two seeds' pictures


def settled_at(sweep: Sweep) -> str:
    """From how many steps on the pictures stay as they are, in units that mean something: another seed's picture."""
    parts = []
    for name, prompts in sweep.groups.items():
        apart = between_seeds(sweep, prompts)[-1]
        far = [point.mean for point in to_the_last(sweep, prompts)]
        near = [v for index, v in enumerate(sweep.values) if all(gap <= SETTLED * apart for gap in far[index:])]
        parts.append(f"{name} from {near[0]:g} on")
    return (
        "Pictures are settled (nearer to the last one than a quarter of the distance between two seeds): "
        f"{', '.join(parts)}."
    )


def guidance_verdict(sweep: Sweep, scores: Scores) -> str:
    """The thesis: a strong guidance holds to the prompt, a weak one leaves freedom. Both with numbers."""
    low, high = sweep.values[0], sweep.middle()
    prompts = sweep.prompts
    gain = change(sweep, scores, prompts, low, high)
    beyond = change(sweep, scores, prompts, high, sweep.last)
    apart = between_seeds(sweep, prompts)
    free = dict(zip(sweep.values, apart, strict=True))
    holds = {1: "Guidance holds to the prompt", 0: "No effect of guidance on the prompt is seen", -1: "Guidance hurts"}
    return (
        f"{holds[gain.sign]}: from {low:g} to {high:g} the similarity ({scores.scorer}) changes by {gain}, from there "
        f"to {sweep.last:g} by {beyond}. Freedom, the distance between two seeds' pictures: {free[low]:.3f} at "
        f"{low:g}, {free[high]:.3f} at {high:g}, {free[sweep.last]:.3f} at {sweep.last:g}."
    )

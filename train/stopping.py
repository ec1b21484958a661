"""When to stop, and which step's weights are the best: what the validations so far say, as part of the run's state.

It lies in every checkpoint, so a run that was killed stops at the step, and exports the weights, of one that was not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from train.validation import HELD_OUT, Interval, Losses, paired_difference

FEWEST_TO_TEST = 6  # pictures; Student's t over fewer sees almost nothing, so the means alone are compared


@dataclass(frozen=True)
class Look:
    """One validation: the loss of every picture, by side."""

    step: int
    per_picture: Mapping[str, Sequence[float]]

    def losses(self, side: str) -> Losses:
        return Losses(np.array(self.per_picture[side], dtype=np.float64)[:, None])

    def mean(self, side: str) -> float:
        return self.losses(side).mean

    @property
    def judged_by(self) -> str:
        """The held-out side, if anything was held out."""
        return HELD_OUT if HELD_OUT in self.per_picture else next(iter(self.per_picture))


@dataclass(frozen=True)
class Progress:
    """What is remembered of the validations.

    questions: what was measured (pictures, timesteps); losses on other questions cannot be compared.
    base: the untrained network. best: the lowest held-out loss of a trained one, on the validations' grid of steps.
    final: the look after the last step, if that is off the grid: a longer run has none there, so it must not count.
    reference: the last look that was surely better than the reference before it. waited: looks since then.
    """

    questions: str = ""
    base: Look | None = None
    best: Look | None = None
    final: Look | None = None
    reference: Look | None = None
    waited: int = 0

    def about(self, questions: str) -> Progress:
        """This, if it is about these questions; else nothing is remembered."""
        return self if self.questions == questions else Progress(questions)

    def after(self, look: Look, *, on_grid: bool) -> Progress:
        """What is known after one more look."""
        if look.step == 0:
            return replace(self, base=look, reference=look)
        if not on_grid:
            return replace(self, final=look)
        best = look if better(look, self.best) else self.best
        if self.reference is None or surely_better(look, self.reference):
            return replace(self, best=best, final=None, reference=look, waited=0)
        return replace(self, best=best, final=None, waited=self.waited + 1)

    def continued(self) -> Progress:
        """For a run that goes on past what was its last step."""
        return replace(self, final=None)

    def out_of_patience(self, patience: int) -> bool:
        """Whether `patience` looks in a row brought nothing. Pictures that are trained on say nothing of that."""
        held_out = self.reference is not None and self.reference.judged_by == HELD_OUT
        return held_out and 0 < patience <= self.waited

    @property
    def chosen(self) -> Look | None:
        """The trained network's best look, the final one included; the earlier of equals."""
        return self.final if self.final is not None and better(self.final, self.best) else self.best

    def since_base(self, look: Look) -> dict[str, Interval]:
        """The change of every side against the untrained network."""
        return {} if self.base is None else {side: difference(look, self.base, side) for side in look.per_picture}

    def since_best(self, look: Look) -> Interval | None:
        """The change of the held-out side since its best step; None if this is it."""
        return difference(look, self.best, look.judged_by) if self.best and self.best.step < look.step else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(facts: Mapping[str, Any] | None) -> Progress:
        """The inverse of to_json, bit for bit; an empty one for a checkpoint from before there was any."""
        if facts is None:
            return Progress()
        looks = {name: facts[name] and Look(**facts[name]) for name in ("base", "best", "final", "reference")}
        return Progress(questions=facts["questions"], waited=facts["waited"], **looks)


def difference(now: Look, before: Look, side: str) -> Interval:
    """The paired difference of one side."""
    return paired_difference(now.losses(side), before.losses(side))


def better(look: Look, best: Look | None) -> bool:
    """Whether the mean loss is finite and lower. The noise is fixed: what differs is the network alone."""
    mean = look.mean(look.judged_by)
    return bool(np.isfinite(mean)) and (best is None or mean < best.mean(look.judged_by))


def surely_better(look: Look, reference: Look) -> bool:
    """Whether the loss fell by more than chance explains: the 95 % interval of the paired difference lies below 0.

    Against the reference, not the look before: slow but steady progress adds up until it shows.
    """
    change = difference(look, reference, look.judged_by)
    few = len(look.per_picture[look.judged_by]) < FEWEST_TO_TEST
    return change.mean < 0 if few else change.high < 0


def explain_stop(progress: Progress, patience: int, step: int) -> str:
    """Why the run ended early, in words."""
    assert progress.reference is not None
    since = f"step {progress.reference.step}" if progress.reference.step else "the base"
    looks = "1 validation" if patience == 1 else f"{patience} validations"
    return (
        f"stopped at step {step}: in {looks} in a row the held-out loss did not fall below that of {since}"
        f" by more than chance explains (--validation.patience {patience})"
    )

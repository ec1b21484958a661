"""Learns or memorises: what the losses at fixed noise say, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from train.stopping import Look, Progress
from train.validation import HELD_OUT, TRAIN, Interval, welch_difference

Word = Literal["learns", "memorises", "gets worse", "cannot tell yet"]


@dataclass(frozen=True)
class Verdict:
    """One word for it, and the sentence with the numbers that it rests on."""

    word: Word
    because: str

    def __str__(self) -> str:
        return f"{self.word}: {self.because}"


def gap_of(look: Look, base: Look | None) -> Interval | None:
    """Held-out change minus training change since the base: how much of the gain does not carry over to new pictures.

    The changes of two groups of pictures: each is paired with the base, the groups are independent (Welch's interval).
    """
    if base is None or base.step == look.step or not {HELD_OUT, TRAIN} <= look.per_picture.keys():
        return None
    held_out, train = (look.losses(side).per_picture - base.losses(side).per_picture for side in (HELD_OUT, TRAIN))
    return welch_difference(held_out, train)


def judge(look: Look, progress: Progress) -> Verdict:
    """The verdict on a trained network. Each claim needs a 95 % interval that excludes chance."""
    change = progress.since_base(look)
    gap = gap_of(look, progress.base)
    if HELD_OUT not in change or gap is None:
        return Verdict("cannot tell yet", reason_unknown(look, progress))
    held_out, train = change[HELD_OUT], change[TRAIN]
    since_best = progress.since_best(look)
    lost = since_best is not None and since_best.low > 0
    if held_out.low > 0 and train.low > 0:
        what = f"even the training pictures lose ({of_base(train)}); a lower --learning-rate may do"
        return Verdict("gets worse", what)
    if gap.low > 0 and (held_out.low > 0 or lost):
        return Verdict("memorises", f"{what_was_lost(progress, held_out, since_best)}; {not_carried(gap)}")
    if held_out.high < 0:
        more = f"; {not_carried(gap)}" if gap.low > 0 else ""
        return Verdict("learns", f"pictures it has never seen gain: {of_base(held_out)}{more}")
    return Verdict("cannot tell yet", f"the held-out change may be chance: {of_base(held_out)}")


def reason_unknown(look: Look, progress: Progress) -> str:
    if HELD_OUT not in look.per_picture:
        return "no pictures are held out, so memorising would look the same"
    return "this is the base itself" if progress.base == look else "the base model's losses are not known"


def what_was_lost(progress: Progress, held_out: Interval, since_best: Interval | None) -> str:
    if since_best is not None and since_best.low > 0:
        assert progress.best is not None
        return f"held-out pictures have lost since step {progress.best.step} ({since_best.words})"
    return f"held-out pictures lose against the base ({held_out.words})"


def not_carried(gap: Interval) -> str:
    return f"training pictures gained {gap.mean:.4f} more than held-out ones ({gap.bounds})"


def of_base(change: Interval) -> str:
    return f"{change.words} against the base"


def numbers_of(look: Look, progress: Progress) -> Mapping[str, object]:
    """What metrics.jsonl holds of a look: changes, gap and verdict, as far as they are known."""
    trained = look.step > 0
    gap = gap_of(look, progress.base) if trained else None
    return {
        "change": {side: vars(interval) for side, interval in progress.since_base(look).items()} if trained else {},
        **({"gap": vars(gap)} if gap else {}),
        **({"verdict": vars(judge(look, progress))} if trained else {}),
    }

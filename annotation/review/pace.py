"""How far people are, how fast they are, what the drafts are worth, and how long the rest will take."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np

from annotation.records import Record, standing
from annotation.review.likeness import rouge_l

LONGEST = 900.0  # seconds; somebody who took longer was away from the screen
RECENT = 200  # answers that the forecast looks back on: people become faster
REWRITTEN = 0.5  # ROUGE-L with the draft below which an answer is not an edit of it
CONFIDENCE = 0.9  # of the interval of the hours left
Use = Literal["accepted", "edited", "rewritten", "no draft"]


@dataclass(frozen=True)
class Speed:
    """Seconds of active work over some answers, each counted up to LONGEST."""

    answers: int
    median: float
    p90: float
    an_hour: float  # answers in an hour of active work
    away: int  # answers that took longer than LONGEST


@dataclass(frozen=True)
class Forecast:
    """Hours of active work for what is open: the expected number and an interval."""

    hours: float
    low: float
    high: float


@dataclass(frozen=True)
class Progress:
    """Where a caption project stands. Pictures are counted once, whatever the number of people who saw them."""

    total: int
    done: int
    skipped: int
    open: int
    speed: Speed | None
    annotators: dict[str, Speed]
    drafts: dict[str, dict[Use, int]]  # source of the draft -> what became of it
    left: Forecast | None

    def fields(self) -> dict[str, Any]:
        """For a program."""
        return asdict(self)


def progress(history: Iterable[Record], pictures: Collection[str] = (), screen: str = "text") -> Progress:
    """pictures: the SHA-256 of all there are; those of which nobody answered are open, like the blank ones."""
    records = [record for record in standing(history) if record.screen == screen]
    done = {record.sha256 for record in records if record.status == "written"}
    skipped = {record.sha256 for record in records if record.status == "skipped"} - done
    total = len({record.sha256 for record in records} | set(pictures))
    worked = sorted((r for r in records if r.status != "blank"), key=lambda record: record.updated)
    people: dict[str, list[Record]] = defaultdict(list)
    for record in worked:
        people[record.annotator].append(record)
    rest = total - len(done) - len(skipped)
    return Progress(
        total,
        len(done),
        len(skipped),
        rest,
        speed(worked) if worked else None,
        {annotator: speed(theirs) for annotator, theirs in sorted(people.items())},
        draft_uses(records),
        forecast([min(record.seconds, LONGEST) for record in worked[-RECENT:]], rest),
    )


def speed(records: Sequence[Record]) -> Speed:
    """Median, 90th percentile (interpolated) and answers an hour."""
    seconds = [min(record.seconds, LONGEST) for record in records]
    away = sum(record.seconds > LONGEST for record in records)
    median, p90 = (float(value) for value in np.percentile(seconds, (50, 90)))
    mean = fmean(seconds)
    return Speed(len(seconds), median, p90, 3600 / mean if mean else math.inf, away)


def forecast(seconds: Sequence[float], rest: int) -> Forecast | None:
    """The time that `rest` more answers take, if they come like those before: their mean, and a prediction interval.

    The interval of the sum of n future answers after m past ones, for a sample mean x and deviation s:
    n x +- t s sqrt(n + n^2 / m), t of m - 1 degrees of freedom (Hahn & Meeker 1991, section 4.7, for a mean).
    None with fewer than two answers.
    """
    if len(seconds) < 2:
        return None
    from scipy.stats import t

    mean, deviation, past = fmean(seconds), stdev(seconds), len(seconds)
    half = float(t.ppf((1 + CONFIDENCE) / 2, past - 1)) * deviation * math.sqrt(rest + rest**2 / past)
    hours = rest * mean / 3600
    return Forecast(hours, max(0.0, hours - half / 3600), hours + half / 3600)


def draft_uses(records: Iterable[Record]) -> dict[str, dict[Use, int]]:
    """What people made of the drafts of each source."""
    uses: dict[str, Counter[Use]] = defaultdict(Counter)
    for record in records:
        if record.status == "written":
            uses[record.draft_by or "none"][draft_use(record)] += 1
    return {source: dict(counts) for source, counts in sorted(uses.items())}


def draft_use(record: Record) -> Use:
    """Taken as it was, edited, or written anew: told by the text, since the page's own word for it is not always there.

    Edited: ROUGE-L with the draft is REWRITTEN or more, which is an edit distance (words put in or taken out, over all
    words of both) of up to 1 - REWRITTEN.
    """
    if not record.draft or not record.draft.strip():
        return "no draft"
    text = next(iter(record.values.get("text", [])), "")
    if record.origin == "prediction" or text.split() == record.draft.split():
        return "accepted"
    return "edited" if rouge_l(record.draft, text) >= REWRITTEN else "rewritten"


def told(progress: Progress) -> list[str]:
    """The lines of `status`."""
    share = f" ({(progress.done + progress.skipped) / progress.total:.0%})" if progress.total else ""
    counts = f"{progress.done} done, {progress.skipped} skipped, {progress.open} open of {progress.total}{share}"
    lines = [row("pictures", counts)]
    if progress.speed:
        lines.append(row("all", speed_line(progress.speed)))
    lines += [row(name, speed_line(each)) for name, each in progress.annotators.items()]
    for source, uses in progress.drafts.items():
        lines.append(row("drafts", f"{source}: {uses_line(uses)}" if source != "none" else uses_line(uses)))
    if progress.left and progress.open:
        interval = f"{progress.left.low:.1f} to {progress.left.high:.1f}"
        lines.append(row("left", f"{progress.left.hours:.1f} hours of work ({CONFIDENCE:.0%} interval {interval})"))
    elif progress.open:
        lines.append(row("left", "not known before two answers"))
    return lines


def row(name: str, line: str) -> str:
    from data.errors import show

    return f"  {show(name):<24}{show(line)}"


def speed_line(speed: Speed) -> str:
    away = f", {speed.away} of them over {LONGEST / 60:.0f} minutes" if speed.away else ""
    times = f"median {speed.median:.0f} s, 90th percentile {speed.p90:.0f} s"
    return f"{speed.answers} answers{away}; {times}; {speed.an_hour:.0f} an hour"


def uses_line(uses: dict[Use, int]) -> str:
    total = sum(uses.values())
    if set(uses) == {"no draft"}:
        return f"{total} captions had none"
    order: tuple[Use, ...] = ("accepted", "edited", "rewritten", "no draft")
    return ", ".join(f"{uses[use] / total:.0%} {use}" for use in order if use in uses) + f" of {total}"

"""Progress of a captioning project: what is done, how fast, how useful the drafts are, and the time left."""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

import numpy as np

from annotation.agreement import rouge_l
from annotation.history import Record, latest
from data.errors import printable

LONGEST = 900.0  # seconds; an annotator who took longer was away from the screen
RECENT = 200  # answers that the forecast is based on: annotators become faster
REWRITTEN = 0.5  # ROUGE-L with the draft below which an answer is not an edit of it
CONFIDENCE = 0.9  # of the interval of the hours left
DraftUse = Literal["accepted", "edited", "rewritten", "no draft"]


@dataclass(frozen=True)
class Speed:
    """Seconds of active work per answer, each capped at LONGEST. (The names of the fields are keys of the JSON.)"""

    answers: int
    median: float
    p90: float
    an_hour: float  # answers per hour of active work
    away: int  # answers that took longer than LONGEST


@dataclass(frozen=True)
class Forecast:
    """Hours of active work left: the expected number and an interval."""

    hours: float
    low: float
    high: float


@dataclass(frozen=True)
class Progress:
    """Where a project stands; an image counts once, whatever the number of its annotators."""

    total: int
    done: int
    skipped: int
    open: int
    speed: Speed | None
    annotators: dict[str, Speed]
    drafts: dict[str, dict[DraftUse, int]]  # source of the draft -> what became of it
    left: Forecast | None


def measure_progress(history: Iterable[Record], images: Collection[str] = (), screen: str = "text") -> Progress:
    """images: SHA-256 of all images; without an answer, or with a blank one, they are open."""
    records = [record for record in latest(history) if record.screen == screen]
    done = {record.sha256 for record in records if record.status == "written"}
    skipped = {record.sha256 for record in records if record.status == "skipped"} - done
    total = len({record.sha256 for record in records} | set(images))
    worked = sorted((each for each in records if each.status != "blank"), key=lambda record: record.updated)
    people: dict[str, list[Record]] = defaultdict(list)
    for record in worked:
        people[record.annotator].append(record)
    left = total - len(done) - len(skipped)
    speed = measure_speed(worked) if worked else None
    speeds = {annotator: measure_speed(records) for annotator, records in sorted(people.items())}
    hours = forecast([min(record.seconds, LONGEST) for record in worked[-RECENT:]], left)
    return Progress(total, len(done), len(skipped), left, speed, speeds, draft_uses(records), hours)


def measure_speed(records: Sequence[Record]) -> Speed:
    """Median, 90th percentile (interpolated) and answers per hour."""
    seconds = [min(record.seconds, LONGEST) for record in records]
    away = sum(record.seconds > LONGEST for record in records)
    median, p90 = (float(value) for value in np.percentile(seconds, (50, 90)))
    mean = fmean(seconds)
    return Speed(len(seconds), median, p90, 3600 / mean if mean else math.inf, away)


def forecast(seconds: Sequence[float], left: int) -> Forecast | None:
    """The time for `left` more answers like those before: their mean, and a prediction interval.

    The interval of the sum of n future answers after m past ones, for a sample mean x and deviation s:
    n x +- t s sqrt(n + n^2 / m), t of m - 1 degrees of freedom (Hahn & Meeker 1991, section 4.7, for a mean).
    None with fewer than two answers.
    """
    if len(seconds) < 2:
        return None
    from scipy.stats import t

    mean, deviation, past = fmean(seconds), stdev(seconds), len(seconds)
    half = float(t.ppf((1 + CONFIDENCE) / 2, past - 1)) * deviation * math.sqrt(left + left**2 / past)
    hours = left * mean / 3600
    return Forecast(hours, max(0.0, hours - half / 3600), hours + half / 3600)


def draft_uses(records: Iterable[Record]) -> dict[str, dict[DraftUse, int]]:
    uses: dict[str, Counter[DraftUse]] = defaultdict(Counter)
    for record in records:
        if record.status == "written":
            uses[record.draft_by or "none"][draft_use(record)] += 1
    return {source: dict(counts) for source, counts in sorted(uses.items())}


def draft_use(record: Record) -> DraftUse:
    """Accepted, edited (ROUGE-L with the draft of REWRITTEN or more) or rewritten, by comparing the texts."""
    if not record.draft or not record.draft.strip():
        return "no draft"
    text = next(iter(record.values.get("text", [])), "")
    if record.origin == "prediction" or text.split() == record.draft.split():
        return "accepted"
    return "edited" if rouge_l(record.draft, text) >= REWRITTEN else "rewritten"


def format_progress(progress: Progress) -> list[str]:
    share = f" ({(progress.done + progress.skipped) / progress.total:.0%})" if progress.total else ""
    counts = f"{progress.done} done, {progress.skipped} skipped, {progress.open} open of {progress.total}{share}"
    lines = [row("images", counts)]
    if progress.speed:
        lines.append(row("all", format_speed(progress.speed)))
    lines += [row(name, format_speed(speed)) for name, speed in progress.annotators.items()]
    for source, uses in progress.drafts.items():
        lines.append(row("drafts", f"{source}: {format_uses(uses)}" if source != "none" else format_uses(uses)))
    if progress.left and progress.open:
        interval = f"{progress.left.low:.1f} to {progress.left.high:.1f}"
        lines.append(row("left", f"{progress.left.hours:.1f} hours of work ({CONFIDENCE:.0%} interval {interval})"))
    elif progress.open:
        lines.append(row("left", "known after two answers"))
    return lines


def row(name: str, line: str) -> str:
    return f"  {printable(name):<24}{printable(line)}"


def format_speed(speed: Speed) -> str:
    away = f", {speed.away} of them over {LONGEST / 60:.0f} minutes" if speed.away else ""
    times = f"median {speed.median:.0f} s, 90th percentile {speed.p90:.0f} s"
    return f"{speed.answers} answers{away}; {times}; {speed.an_hour:.0f} per hour"


def format_uses(uses: dict[DraftUse, int]) -> str:
    total = sum(uses.values())
    if set(uses) == {"no draft"}:
        return f"{total} captions had none"
    order: tuple[DraftUse, ...] = ("accepted", "edited", "rewritten", "no draft")
    return ", ".join(f"{uses[use] / total:.0%} {use}" for use in order if use in uses) + f" of {total}"

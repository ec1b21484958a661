"""What a section of the report holds: numbers with what they are to be held against, alarms, tables, words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from data.metrics.statistics import Interval, holm_correction

LEVEL = 0.05
ALARM = 0.01  # an alarm needs more than an ordinary p: a page raises several
Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Number:
    """value: of the tuned model, or of its change from the base, as `name` says; interval: 95 %, over prompts.

    base: the same of the base. floor: what two halves of the real pictures give, or chance. ceiling: the most, or the
    base's, by the section's words. p: after `settled`, Holm's over the section.
    """

    name: str
    value: float
    interval: Interval | None = None
    base: float | None = None
    floor: float | None = None
    ceiling: float | None = None
    p: float | None = None
    said: str = ""


@dataclass(frozen=True)
class Alarm:
    """Something that is wrong with the run, whatever else it does well. kind: a word, for programs."""

    kind: str
    said: str


@dataclass(frozen=True)
class Table:
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Section:
    """About one question. cannot: what this many pictures do not show."""

    title: str
    asked: str
    numbers: Sequence[Number] = ()
    alarms: Sequence[Alarm] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    cannot: Sequence[str] = ()


def settled(section: Section) -> Section:
    """With Holm's p-values over the section."""
    raw = {str(place): number.p for place, number in enumerate(section.numbers) if number.p is not None}
    adjusted = holm_correction(raw)
    numbers = [replace(number, p=adjusted.get(str(place))) for place, number in enumerate(section.numbers)]
    return replace(section, numbers=tuple(numbers))


def of(name: str, interval: Interval, **more: float | str | None) -> Number:
    """A number that has an interval."""
    return Number(name, interval.value, interval, **more)  # pyright: ignore[reportArgumentType]


def sided(interval: Interval, up: str, down: str, *, zero: float = 0.0) -> str:
    """Which of two things an interval allows to say, or that it allows neither."""
    if interval.low > zero:
        return up
    return down if interval.high < zero else "not known: the interval holds both"

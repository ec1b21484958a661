"""A section of the report: numbers with what to compare them to, alarms, tables and notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from data.metrics import statistics as stats
from data.metrics.distances import Vector

LEVEL = 0.05
ALARM = 0.01  # alarms need more than an ordinary p: a page can raise several
Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Number:
    """value: of the tuned model, or of its change from the base, as `name` says; interval: 95 %, over prompts.

    base: the same of the base. floor: of two halves of the real images, or chance. ceiling: the most possible, or the
    base's, as the section says. p: adjusted over the section by with_holm. said: in words.
    """

    name: str
    value: float
    interval: stats.Interval | None = None
    base: float | None = None
    floor: float | None = None
    ceiling: float | None = None
    p: float | None = None
    said: str = ""


@dataclass(frozen=True)
class Alarm:
    """A problem of the run. kind: one word, for programs."""

    kind: str
    said: str


@dataclass(frozen=True)
class Table:
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Section:
    """The answer to one question. cannot: what this many images cannot show."""

    title: str
    asked: str
    numbers: Sequence[Number] = ()
    alarms: Sequence[Alarm] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    cannot: Sequence[str] = ()

    def with_holm(self) -> Section:
        """With Holm's p-values over the section."""
        adjusted = stats.holm_correction({str(n): each.p for n, each in enumerate(self.numbers) if each.p is not None})
        return replace(self, numbers=[replace(each, p=adjusted.get(str(n))) for n, each in enumerate(self.numbers)])


def from_interval(name: str, interval: stats.Interval, **fields: float | str | None) -> Number:
    return Number(name, interval.value, interval, **fields)  # pyright: ignore[reportArgumentType]


def describe_sign(interval: stats.Interval, above: str, below: str, *, zero: float = 0.0) -> str:
    """Which of two statements the interval supports, or that it supports neither."""
    if interval.low > zero:
        return above
    return below if interval.high < zero else "not known: the interval includes both"


def mean_change(
    name: str, before: Vector, after: Vector, clusters: stats.Labels, words: tuple[str, str], *,
    seed: int | None = None, **fields: float | str | None,
) -> Number:  # fmt: skip
    """The mean of after - before over clusters; with a seed also the p-value of no change. words: above and below 0."""
    interval = stats.mean_interval(after - before, clusters)
    p = None if seed is None else stats.sign_flip_test(after - before, clusters, seed=seed)
    return from_interval(name, interval, p=p, said=describe_sign(interval, *words), **fields)

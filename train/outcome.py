"""What a sweep found: a table, a plot, what may be concluded, and the command that trains with the winner."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log10
from pathlib import Path

from data.errors import InputError
from data.page import Page, Series
from train import machine
from train.config import ALIASES
from train.trials import Spec
from train.validation import Interval, Losses, paired_difference

EXPLAINED = """Loss at fixed noise on the same held-out pictures: differences are paired, so their 95 % intervals are
far narrower than those of the losses. Candidates that went out are compared with the winner after the same steps.

What a sweep cannot say: it is short, and the best of a short run need not be the best of a long one; a rate that wins
early may wear out the base later. The rate was constant while it lasted."""


@dataclass(frozen=True)
class Row:
    """One candidate: how far it came, and how it stood against the base and against the winner."""

    value: str
    looks: Mapping[int, Losses]  # after each round; 0 is the base
    failed: str = ""

    @property
    def steps(self) -> int:
        return max(self.looks, default=0)

    @property
    def loss(self) -> float:
        return self.looks[self.steps].mean if self.looks else float("inf")

    def change(self) -> Interval:
        return paired_difference(self.looks[self.steps], self.looks[0])

    def against(self, other: Row) -> Interval:
        """This one minus the other, after as many steps as both did."""
        steps = min(self.steps, other.steps)
        return paired_difference(self.looks[steps], other.looks[steps])


def order(rows: Sequence[Row]) -> list[Row]:
    """The winner first: those that came furthest, best loss first. Raises InputError if none is left."""
    whole = [row for row in rows if not row.failed]
    if not whole:
        raise InputError("every candidate failed", where="--sweep", fix="Try smaller values; log.txt says the rest.")
    return sorted(whole, key=lambda row: (-row.steps, row.loss)) + [row for row in rows if row.failed]


def tied(rows: Sequence[Row]) -> list[str]:
    """The values that cannot be told from the winner: the interval of the difference holds zero."""
    winner, *others = [row for row in rows if not row.failed]
    return [row.value for row in others if row.against(winner).low <= 0]


def conclusions(spec: Spec, rows: Sequence[Row]) -> list[str]:
    """What may be said, in sentences."""
    winner = rows[0]
    said = [f"{spec.flag} {winner.value} is best: {winner.change()} against the base after {winner.steps} steps."]
    if winner.change().high >= 0:
        said.append(
            "It is not distinguishable from the base: no candidate learnt anything that held-out pictures show."
        )
    same = tied(rows)
    if same:
        said.append(
            f"It is not distinguishable from {', '.join(same)}: the 95 % interval of the difference holds zero."
        )
    return said + at_edge(spec, winner.value)


def at_edge(spec: Spec, winner: str) -> list[str]:
    """A winner at the end of what was tried may have better neighbours beyond."""
    numbers = numeric(spec.values)
    if numbers is None or len(numbers) < 2:
        return []
    place = numbers[spec.values.index(winner)]
    if place not in (min(numbers), max(numbers)):
        return []
    end = "lower" if place == min(numbers) else "upper"
    span = max(numbers) / min(numbers) if min(numbers) > 0 else 10.0
    low, high = (place / span, place) if end == "lower" else (place, place * span)
    field = spec.flag.removeprefix("--")
    return [f"It lies at the {end} edge of what was tried: look further with --sweep {field}={low:.3g}..{high:.3g}."]


def numeric(values: Sequence[str]) -> list[float] | None:
    """The values as numbers, or None if they are words."""
    try:
        return [float(value) for value in values]
    except ValueError:
        return None


def command(spec: Spec, winner: str, argv: Sequence[str]) -> str:
    """The command that was typed, without the sweep and with the winner."""
    spellings = {spec.flag, *(alias for alias, flag in ALIASES.items() if flag == spec.flag)}
    dropped = {"--sweep", "--sweep-candidates", "--sweep-steps", *spellings}
    kept: list[str] = []
    tokens = iter(argv)
    for token in tokens:
        name, equals, _ = token.partition("=")
        if name.replace("_", "-") not in dropped:
            kept.append(token)
        elif not equals:
            next(tokens, None)
    return " ".join([machine.launch(), *map(shlex.quote, kept), spec.flag, winner])


def table(rows: Sequence[Row]) -> list[tuple[str, str, str, str, str]]:
    """(value, steps, held-out loss, against the base, against the winner)"""
    winner = rows[0]
    lines = []
    for row in rows:
        if row.failed:
            lines.append((row.value, "", "", row.failed, ""))
        else:
            gap = "" if row is winner else str(row.against(winner))
            lines.append((row.value, str(row.steps), f"{row.loss:.4f}", str(row.change()), gap))
    return lines


HEAD = ("steps", "held-out loss", "against the base [95 %]", "against the winner [95 %]")


def text_table(spec: Spec, rows: Sequence[Row]) -> list[str]:
    lines = [(spec.flag.removeprefix("--"), *HEAD), *table(rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def write_page(spec: Spec, rows: Sequence[Row], folder: Path, next_command: str) -> Path:
    """sweep.html: the table, the curves, the conclusions."""
    name = spec.flag.removeprefix("--")
    page = Page(f"Sweep of {name}", f"{len(rows)} candidates, successive halving on held-out loss")
    page.section("Which is best?")
    for sentence in conclusions(spec, rows):
        page.note(sentence)
    page.table((name, *HEAD), table(rows)).text(EXPLAINED)
    page.section("Curves")
    whole = [row for row in rows if not row.failed]
    lines = [
        Series(row.value, sorted(row.looks), [row.looks[step].mean for step in sorted(row.looks)]) for row in whole
    ]
    page.curve(*lines, x="step", y="held-out loss", title="Held-out loss of each candidate")
    if numeric(spec.values) is not None and min(numeric(spec.values) or [0.0]) > 0:
        page.curve(*by_value(whole), x=f"log10 of {name}", y="change against the base", title="After each round")
    page.section("Train with the winner").code(next_command)
    return page.write(folder / "sweep.html")


def by_value(rows: Sequence[Row]) -> list[Series]:
    """For each round a line over the values with its 95 % band."""
    series = []
    for steps in sorted({step for row in rows for step in row.looks if step}):
        there = sorted(((float(row.value), row) for row in rows if steps in row.looks), key=lambda pair: pair[0])
        gaps = [paired_difference(row.looks[steps], row.looks[0]) for _, row in there]
        x = [log10(value) for value, _ in there]
        mean, low, high = ([getattr(gap, end) for gap in gaps] for end in ("mean", "low", "high"))
        series.append(Series(f"{steps} steps", x, mean, low, high))
    return series

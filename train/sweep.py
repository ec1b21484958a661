"""A sweep: values of one setting compared on held-out images, each a run that lasts as long as it is promising.

Successive halving: all candidates train for a few steps, the better half for twice as many, and so on.
Source: Jamieson & Talwalkar 2016, arXiv 1502.07943, algorithm 1.
"""

from __future__ import annotations

import gc
import math
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from data.cli import explain_error, find_flags, flag_of
from data.errors import InputError, check_choice
from data.reports.charts import Series
from data.reports.page import Page
from train import device, trainer
from train.config import ALIASES, Config
from train.exporters.lora_files import ADAPTER_UNCHANGED
from train.metrics import read_metrics
from train.run_folder import BIT_EXACT, IGNORED, Run
from train.trainer import Diverged
from train.validation import HELD_OUT, Interval, Losses, paired_difference

WHERE = "--sweep"
EXAMPLES = "learning-rate=1e-5..1e-3 or adapter.rank=4,16,64"
# Other values of these ask other questions of other held-out images: their losses cannot be compared.
OTHER_QUESTION = ("objective", "pictures.size", "pictures.buckets", "pictures.caption", "pictures.held_out", "seed")
OTHER_QUESTION += ("model", "tokenizer", "validation")
# A sweep's rounds continue one another, so it sets these itself.
ITS_OWN = {"optim.schedule", "optim.warmup"}


@dataclass(frozen=True)
class Spec:
    """A setting and the values to try, as they are typed; bounds for a range."""

    field: str  # dotted, e.g. adapter.rank
    values: tuple[str, ...]
    bounds: tuple[float, float] | None = None

    @property
    def flag(self) -> str:
        return flag_of(self.field)

    @property
    def name(self) -> str:
        """For the folder: sweep-learning-rate."""
        return f"sweep-{self.field.replace('_', '-')}"


def read_spec(text: str, candidates: int) -> Spec:
    """`field=low..high` (evenly spread in the logarithm) or `field=a,b,c`. Raises InputError."""
    name, equals, given = text.partition("=")
    field = name.strip().removeprefix("--").replace("-", "_")
    if not equals or not given.strip():
        raise InputError(f"no values in {text!r}", where=WHERE, allowed=EXAMPLES)
    kinds = find_flags(Config)
    shown = sorted(path.replace("_", "-") for path in kinds if may_vary(path))
    check_choice(field.replace("_", "-"), [path.replace("_", "-") for path in kinds], what="setting", where=WHERE)
    if not may_vary(field):
        what = f"values of {field.replace('_', '-')} cannot be compared on the same held-out images"
        raise InputError(what, where=WHERE, allowed=", ".join(shown))
    if ".." in given:
        bounds = read_bounds(given)
        return Spec(field, spread(*bounds, candidates, whole=int in kinds[field].atoms), bounds)
    values = tuple(dict.fromkeys(value.strip() for value in given.split(",") if value.strip()))
    if len(values) < 2:
        raise InputError(f"one value is no comparison: {given!r}", where=WHERE, allowed=EXAMPLES)
    return Spec(field, values)


def may_vary(path: str) -> bool:
    """Whether values of a setting give different runs whose held-out losses mean the same."""
    section = path.partition(".")[0]
    bits = {f"{name}.{inner}" for name, inners in BIT_EXACT.items() for inner in inners}
    same_run = section in IGNORED or path in IGNORED | bits | ITS_OWN
    return not same_run and not any(path == name or path.startswith(f"{name}.") for name in OTHER_QUESTION)


def read_bounds(given: str) -> tuple[float, float]:
    """low..high, both above zero. Raises InputError."""
    try:
        low, high = (float(part) for part in given.split(".."))
    except ValueError:
        raise InputError(f"{given!r} is no range", where=WHERE, allowed=EXAMPLES) from None
    if not (0 < low < high < math.inf):
        what = f"{given!r} is an empty range" if low != low or low >= high else f"{given!r} has no logarithm"
        raise InputError(what, where=WHERE, allowed="low..high with 0 < low < high")
    return low, high


def spread(low: float, high: float, count: int, *, whole: bool) -> tuple[str, ...]:
    """`count` values from low to high, evenly in their logarithm, of three digits; whole numbers once each."""
    points = [low * (high / low) ** (index / (count - 1)) for index in range(count)]
    texts = [str(round(point)) if whole else f"{point:.3g}" for point in points]
    return tuple(dict.fromkeys(texts))


def with_value(config: Config, field: str, value: str) -> Config:
    """The config with one setting changed. Raises InputError if the value is not allowed."""
    settings: dict[str, Any] = config.model_dump(exclude_unset=True)
    *sections, name = field.split(".")
    place = settings
    for section in sections:
        kind = getattr(getattr(config, section), "kind", None)
        place = place.setdefault(section, {"kind": kind} if kind else {})
    if name == "kind" and place.get("kind") != value:
        place.clear()  # another kind has other settings
    place[name] = value
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        problem = explain_error(Config, error.errors()[0], set(), {})
        allowed = f"; allowed: {problem.allowed}" if problem.allowed else ""
        raise InputError(f"{field.replace('_', '-')}={value}: {problem.what}{allowed}", where=WHERE) from error


def rounds(candidates: int) -> list[int]:
    """How many candidates each round has: 8, 4, 2."""
    counts = [candidates]
    while counts[-1] > 2:
        counts.append((counts[-1] + 1) // 2)
    return counts


def total_steps(counts: Sequence[int], first: int) -> int:
    """Steps of the whole sweep: each round takes its candidates from where they are to twice as far."""
    lengths = [first * 2**index for index in range(len(counts))]
    before = [0, *lengths]
    return sum(
        count * (length - before[index]) for index, (count, length) in enumerate(zip(counts, lengths, strict=True))
    )


def first_round(counts: Sequence[int], max_steps: int) -> int:
    """The first round's steps for which the sweep is about as long as one run."""
    return max(1, max_steps // total_steps(counts, 1))


def better_half(losses: Mapping[str, float], count: int) -> list[str]:
    """The `count` best by held-out loss, best first; those without a number are out."""
    finite = [value for value, loss in losses.items() if math.isfinite(loss)]
    return sorted(finite, key=lambda value: losses[value])[:count]


SWEEP_EXPLAINED = """Loss at fixed noise on the same held-out images: differences are paired, so their 95 % intervals
are far narrower than those of the losses. Eliminated candidates are compared with the winner
after the same number of steps.

A sweep is short, and the best of a short run need not be the best of a long one: a rate that
wins early may damage the base later. The rate was constant throughout."""


@dataclass
class Candidate:
    """One value, with the held-out losses of each image that its run showed after each round, by step; 0: the base."""

    value: str
    config: Config = field(default_factory=Config)
    losses: Mapping[int, Losses] = field(default_factory=dict)
    run: Run | None = None
    failed: str = ""

    @property
    def steps(self) -> int:
        return max(self.losses, default=0)

    def loss(self, step: int | None = None) -> float:
        """The mean after `step` steps, or after all; infinite if it was not measured."""
        found = self.losses.get(self.steps if step is None else step)
        return math.inf if found is None else found.mean

    def change(self, step: int | None = None) -> Interval:
        """Against the base."""
        return paired_difference(self.losses[self.steps if step is None else step], self.losses[0])

    def against(self, other: Candidate) -> Interval:
        """This one minus the other, after as many steps as both did."""
        steps = min(self.steps, other.steps)
        return paired_difference(self.losses[steps], other.losses[steps])


def rank_candidates(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The winner first: those that came furthest, best loss first. Raises InputError if none is left."""
    whole = [each for each in candidates if not each.failed]
    if not whole:
        raise InputError("every candidate failed", where=WHERE, fix="Try smaller values; log.txt says the rest.")
    return sorted(whole, key=lambda each: (-each.steps, each.loss())) + [each for each in candidates if each.failed]


def tied(rows: Sequence[Candidate]) -> list[str]:
    """The values that cannot be told from the winner: the interval of the difference holds zero."""
    winner, *others = [row for row in rows if not row.failed]
    return [row.value for row in others if row.against(winner).low <= 0]


def conclusions(spec: Spec, rows: Sequence[Candidate]) -> list[str]:
    """What may be said, in sentences."""
    winner, same = rows[0], tied(rows)
    lines = [f"{spec.flag} {winner.value} is best: {winner.change()} against the base after {winner.steps} steps."]
    if winner.change().high >= 0:
        lines.append("It is not distinguishable from the base: no candidate learnt anything that held-out images show.")
    if same:
        other = ", ".join(same)
        lines.append(f"It is not distinguishable from {other}: the 95 % interval of the difference holds zero.")
    return lines + at_edge(spec, winner.value)


def at_edge(spec: Spec, winner: str) -> list[str]:
    """A winner at the end of what was tried may have better neighbours beyond."""
    numbers = numeric(spec.values)
    place = numbers[spec.values.index(winner)] if numbers and len(numbers) > 1 else None
    if numbers is None or place not in (min(numbers), max(numbers)):
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


def winner_command(spec: Spec, winner: str, argv: Sequence[str]) -> str:
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
    return " ".join([device.launch_command(), *map(shlex.quote, kept), spec.flag, winner])


TABLE_HEAD = ("steps", "held-out loss", "against the base [95 %]", "against the winner [95 %]")


def results_table(rows: Sequence[Candidate]) -> list[tuple[str, str, str, str, str]]:
    """(value, steps, held-out loss, against the base, against the winner)"""
    winner, lines = rows[0], []
    for row in rows:
        if row.failed:
            lines.append((row.value, "", "", row.failed, ""))
        else:
            gap = "" if row is winner else str(row.against(winner))
            lines.append((row.value, str(row.steps), f"{row.loss():.4f}", str(row.change()), gap))
    return lines


def text_table(spec: Spec, rows: Sequence[Candidate]) -> list[str]:
    lines = [(spec.flag.removeprefix("--"), *TABLE_HEAD), *results_table(rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def write_page(spec: Spec, rows: Sequence[Candidate], folder: Path, next_command: str) -> Path:
    """sweep.html: the table, the curves, the conclusions."""
    name, whole = spec.flag.removeprefix("--"), [row for row in rows if not row.failed]
    page = Page(f"Sweep of {name}", f"{len(rows)} candidates, successive halving on held-out loss")
    page.section("Which is best?")
    for sentence in conclusions(spec, rows):
        page.note(sentence)
    page.table((name, *TABLE_HEAD), results_table(rows)).text(SWEEP_EXPLAINED)
    page.section("Curves")
    lines = [Series(row.value, sorted(row.losses), [row.loss(step) for step in sorted(row.losses)]) for row in whole]
    page.curve(*lines, x="step", y="held-out loss", title="Held-out loss of each candidate")
    if min(numeric(spec.values) or [0.0]) > 0:
        page.curve(*by_value(whole), x=f"log10 of {name}", y="change against the base", title="After each round")
    page.section("Train with the winner").code(next_command)
    return page.write(folder / "sweep.html")


def by_value(rows: Sequence[Candidate]) -> list[Series]:
    """For each round a line over the values with its 95 % band."""
    series = []
    for steps in sorted({step for row in rows for step in row.losses if step}):
        there = sorted((row for row in rows if steps in row.losses), key=lambda row: float(row.value))
        x, gaps = [math.log10(float(row.value)) for row in there], [row.change(steps) for row in there]
        mean, low, high = ([getattr(gap, end) for gap in gaps] for end in ("mean", "low", "high"))
        series.append(Series(f"{steps} steps", x, mean, low, high))
    return series


# ---- running


def run_sweep(config: Config, argv: Sequence[str]) -> int:
    """Run or continue a sweep; returns the exit code. argv: as typed, for the command that it ends with."""
    assert config.sweep is not None
    spec = read_spec(config.sweep, config.sweep_candidates)
    if config.pictures.held_out == 0:
        raise InputError("a sweep compares held-out images", where="--pictures.held-out", allowed="more than 0")
    if config.new:
        raise InputError("a sweep goes on where it was", where="--new", fix="Give another --runs to start one over.")
    counts = rounds(len(spec.values))
    first = config.sweep_steps or first_round(counts, config.max_steps)
    folder = config.runs / spec.name
    candidates = [Candidate(value, candidate_config(config, spec, value, folder, first)) for value in spec.values]
    print_lines(plan_lines(config, spec, counts, first))
    if config.dry_run:
        print_lines(["memory, time and cost of all candidates together, as if they were one run:"])
        whole = {"max_steps": total_steps(counts, first), "dry_run": True, "probe": config.probe}
        return trainer.train(candidates[0].config.model_copy(update=whole))[0]
    for index, count in enumerate(counts):
        steps = first * 2**index
        going = better_half({c.value: c.loss(steps // 2) if index else 0.0 for c in candidates}, count)
        here = [candidate for value in going for candidate in candidates if candidate.value == value]
        print_lines([f"round {index + 1} of {len(counts)}: {len(here)} candidates to step {steps}"])
        delete_weights([candidate for candidate in candidates if candidate.value not in going])
        for candidate in here:
            code = train_candidate(candidate, steps, folder)
            if code != 0:
                print_lines(["stopped; the same command continues the sweep"])
                return code
    return report_sweep(spec, candidates, folder, argv)


def candidate_config(config: Config, spec: Spec, value: str, folder: Path, first: int) -> Config:
    """A normal run with this value: constant learning rate, a look at the end of each round."""
    changed = with_value(config, spec.field, value)
    optim = changed.optim.model_copy(
        update={"schedule": "constant", "warmup": min(changed.optim.warmup, max(1, first // 4))}
    )
    update = {
        **{"optim": optim, "sweep": None, "new": False, "probe": False, "runs": folder},
        "run_name": f"{spec.flag.removeprefix('--').replace('.', '-')}-{value}",
        "validation": config.validation.model_copy(update={"every": first, "patience": 0}),
        "checkpoints": config.checkpoints.model_copy(update={"keep": 1, "export": "last"}),
        "max_steps": first,
    }
    return changed.model_copy(update=update)


def plan_lines(config: Config, spec: Spec, counts: Sequence[int], first: int) -> list[str]:
    total = total_steps(counts, first)
    halving = ", ".join(f"{count} to step {first * 2**index}" for index, count in enumerate(counts))
    return [
        f"sweep      {spec.field.replace('_', '-')}: {', '.join(spec.values)}",
        f"rounds     {halving}",
        f"length     {total} steps in all, as many as {total / config.max_steps:.2g} runs of {config.max_steps}",
    ]


def print_lines(lines: Sequence[str]) -> None:
    """By the first process only; accelerate's own state is made by the first run, as that run needs it."""
    if os.environ.get("RANK", "0") == "0":
        print("\n".join(lines), flush=True)


def train_candidate(candidate: Candidate, steps: int, folder: Path) -> int:
    """Train one candidate to `steps` and read what it shows; a loss that bursts only puts it out. Each run's own words
    go to log.txt; progress bars stay.
    """
    config = candidate.config.model_copy(update={"max_steps": steps})
    code = 0
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with (folder / "log.txt").open("a", encoding="utf-8") as log, redirect_stdout(log):
            code, candidate.run = trainer.train(config)
    except InputError as error:
        if not isinstance(error, Diverged) and error.what != ADAPTER_UNCHANGED:
            raise
        candidate.failed = error.what
    gc.collect()  # the next candidate needs the room
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if code != 0:
        return code
    if not candidate.failed and candidate.run is not None:
        candidate.losses = read_validations(candidate.run, steps)
    base = candidate.loss(0)
    print_lines([f"  {candidate.value:>10}  " + (candidate.failed or f"{candidate.loss(steps):.4f} (base {base:.4f})")])
    return 0


def delete_weights(out: Sequence[Candidate]) -> None:
    """Those that went out keep their numbers and reports; eight whole models would fill a disk."""
    for candidate in out:
        if candidate.run is not None:
            shutil.rmtree(candidate.run.checkpoints, ignore_errors=True)
            shutil.rmtree(candidate.run.export, ignore_errors=True)


def read_validations(run: Run, steps: int) -> dict[int, Losses]:
    """Step -> held-out losses of each image, as far as this round went: a sweep that is repeated decides the same."""
    lines = [line for line in read_metrics(run.metrics) if "per_picture" in line and line["step"] <= steps]
    return {line["step"]: Losses(np.array(line["per_picture"][HELD_OUT])[:, None]) for line in lines}


def report_sweep(spec: Spec, candidates: Sequence[Candidate], folder: Path, argv: Sequence[str]) -> int:
    """Table, plot, conclusions, and what to type next."""
    rows = rank_candidates(candidates)
    following = winner_command(spec, rows[0].value, argv)
    page = write_page(spec, rows, folder, following)
    print_lines(["", *text_table(spec, rows), "", *conclusions(spec, rows)])
    print_lines([f"report:   {page}", f"next:     {following}"])
    return 0

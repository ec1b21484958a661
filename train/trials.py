"""The arithmetic of a sweep: which values to try, for how long, who goes on, and what the outcome may be called.

Successive halving: all candidates train for a few steps, the better half for twice as many, and so on.
Source: Jamieson & Talwalkar 2016, arXiv 1502.07943, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from data.errors import InputError, choose
from data.options import explain, field_types, flag_of
from train.config import AT_WILL, SAME_BITS, Config

WHERE = "--sweep"
EXAMPLES = "learning-rate=1e-5..1e-3 or adapter.rank=4,16,64"
# Other values of these ask other questions of other held-out pictures: their losses cannot be compared.
OTHER_QUESTION = ("objective", "pictures.size", "pictures.buckets", "pictures.caption", "pictures.held_out", "seed")
OTHER_QUESTION += ("model", "tokenizer", "validation")
# A sweep's rounds continue one another, so it sets these itself: train/sweep.py.
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
    kinds = dict(field_types(Config))
    shown = sorted(path.replace("_", "-") for path in kinds if may_vary(path))
    choose(field.replace("_", "-"), [path.replace("_", "-") for path in kinds], what="setting", where=WHERE)
    if not may_vary(field):
        what = f"values of {field.replace('_', '-')} cannot be compared on the same held-out pictures"
        raise InputError(what, where=WHERE, allowed=", ".join(shown))
    if ".." in given:
        bounds = read_bounds(given)
        return Spec(field, spread(*bounds, candidates, whole="int" in str(kinds[field])), bounds)
    values = tuple(dict.fromkeys(value.strip() for value in given.split(",") if value.strip()))
    if len(values) < 2:
        raise InputError(f"one value is no comparison: {given!r}", where=WHERE, allowed=EXAMPLES)
    return Spec(field, values)


def may_vary(path: str) -> bool:
    """Whether values of a setting give different runs whose held-out losses mean the same."""
    section = path.partition(".")[0]
    bits = {f"{name}.{inner}" for name, inners in SAME_BITS.items() for inner in inners}
    same_run = section in AT_WILL or path in AT_WILL | bits | ITS_OWN
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
        problem = explain(Config, error.errors()[0], set(), {})
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
